//! Which znodes there are below the root, as far as this node has seen.
//!
//! Owns: what a znode that was read again means to the node, and which parents a commit has to make or may sweep away.
//! Pure: reading is in `read.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use corelog_replication::coordination::{Entry, Event, Key, Op, Value, Version};

/// Which state of a znode: what made it and what changed it last (transaction numbers of ZooKeeper).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) created: i64,
    pub(super) changed: i64,
}

/// A znode as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Znode {
    pub(super) value: Value,
    pub(super) version: Version,
    pub(super) stamp: Stamp,
    pub(super) has_children: bool,
}

/// The root's descendants, by path below the root.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// `None`: there for the sake of others.
    known: BTreeMap<Key, Option<Stamp>>,
}

fn stamp_of(znode: &Znode) -> Option<Stamp> {
    (!znode.value.is_empty()).then_some(znode.stamp)
}

/// Every proper ancestor of a path, the highest first; not the root.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').skip(1).map(|(at, _)| &path[..at])
}

impl Tree {
    /// Takes over everything that was read; returns the keys among it, sorted.
    pub(super) fn replace(&mut self, znodes: BTreeMap<Key, Znode>) -> Vec<Entry> {
        self.known = znodes.iter().map(|(path, znode)| (path.clone(), stamp_of(znode))).collect();
        let keys = znodes.into_iter().filter(|(_, znode)| !znode.value.is_empty());
        keys.map(|(key, znode)| Entry { key, value: znode.value, version: znode.version }).collect()
    }

    /// Takes over a znode that was read again, `None` if it is gone; returns what is new about it.
    pub(super) fn update(&mut self, path: String, znode: Option<Znode>) -> Option<Event> {
        let Some(znode) = znode else {
            let was_key = self.known.remove(&path)?.is_some();
            return was_key.then_some(Event::Removed { key: path });
        };
        let stamp = stamp_of(&znode);
        let before = self.known.insert(path.clone(), stamp).flatten();
        match (before, stamp) {
            (_, None) => before.is_some().then_some(Event::Removed { key: path }),
            (before, stamp) if before == stamp => None,
            _ => Some(Event::Changed(Entry { key: path, value: znode.value, version: znode.version })),
        }
    }

    /// Parents that a commit needs and that are not known to be there, the highest first. From here on they are known.
    pub(super) fn missing_parents(&mut self, ops: &[Op]) -> Vec<String> {
        let created = ops.iter().filter(|op| matches!(op, Op::Create { .. }));
        let mut missing = Vec::new();
        for parent in created.flat_map(|op| ancestors(op.key())) {
            if !self.known.contains_key(parent) {
                self.known.insert(parent.to_owned(), None);
                missing.push(parent.to_owned());
            }
        }
        missing
    }

    /// The parents that a commit needs are not there after all.
    pub(super) fn forget_parents(&mut self, ops: &[Op]) {
        for parent in ops.iter().flat_map(|op| ancestors(op.key())) {
            if self.known.get(parent) == Some(&None) {
                self.known.remove(parent);
            }
        }
    }

    /// Parents that a commit empties, as far as is known. From here on they are taken for gone. The highest ones stay:
    /// they are few, and used again and again.
    pub(super) fn emptied_parents(&mut self, ops: &[Op]) -> Vec<String> {
        let gone: BTreeSet<&str> =
            ops.iter().filter(|op| matches!(op, Op::Delete { .. })).map(Op::key).collect();
        let kept: BTreeSet<&str> = ops
            .iter()
            .filter(|op| !matches!(op, Op::Delete { .. }))
            .filter_map(|op| ancestors(op.key()).last())
            .collect();
        let parents: BTreeSet<&str> = gone.iter().filter_map(|key| ancestors(key).last()).collect();
        let mut emptied = Vec::new();
        for parent in parents {
            let is_low = ancestors(parent).next().is_some();
            if is_low && !kept.contains(parent) && self.children(parent).all(|child| gone.contains(child)) {
                emptied.push(parent.to_owned());
            }
        }
        for parent in &emptied {
            self.known.remove(parent);
        }
        emptied
    }

    fn children(&self, parent: &str) -> impl Iterator<Item = &str> {
        let prefix = format!("{parent}/");
        let from = Bound::Excluded(prefix.clone());
        let after = self.known.range((from, Bound::Unbounded)).map(|(path, _)| path.as_str());
        after.take_while(move |path| path.starts_with(&prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn znode(value: &str, created: i64, changed: i64) -> Znode {
        Znode {
            value: value.as_bytes().into(),
            version: Version(changed - created),
            stamp: Stamp { created, changed },
            has_children: false,
        }
    }

    fn tree(paths: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::default();
        tree.replace(paths.iter().map(|(path, value)| ((*path).to_owned(), znode(value, 1, 1))).collect());
        tree
    }

    fn update(tree: &mut Tree, path: &str, znode: Option<Znode>) -> Option<String> {
        tree.update(path.to_owned(), znode).map(|event| match event {
            Event::Changed(entry) => format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value)),
            Event::Removed { key } => format!("no {key}"),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn only_what_is_new_is_told() {
        let mut tree = tree(&[("/t", ""), ("/t/a", "1")]);
        assert_eq!(update(&mut tree, "/t/a", Some(znode("1", 1, 1))), None);
        assert_eq!(update(&mut tree, "/t/a", Some(znode("2", 1, 2))), Some("/t/a=2".to_owned()));
        // Removed and made again with the same value.
        assert_eq!(update(&mut tree, "/t/a", Some(znode("2", 3, 3))), Some("/t/a=2".to_owned()));
        assert_eq!(update(&mut tree, "/t/a", None), Some("no /t/a".to_owned()));
        assert_eq!(update(&mut tree, "/t/a", None), None);
        // Parents are nobody's business.
        assert_eq!(update(&mut tree, "/t", None), None);
        assert_eq!(update(&mut tree, "/u", Some(znode("", 4, 4))), None);
    }

    fn create(key: &str) -> Op {
        Op::Create { key: key.to_owned(), value: b"1".as_slice().into(), is_ephemeral: false }
    }

    fn delete(key: &str) -> Op {
        Op::Delete { key: key.to_owned(), version: Version(0) }
    }

    #[test]
    fn parents_are_made_once_the_highest_first() {
        let mut tree = tree(&[("/t", "")]);
        let ops = [create("/t/a"), create("/p/1/x"), create("/p/1/y"), create("/top"), delete("/q/r/s")];
        assert_eq!(tree.missing_parents(&ops), ["/p", "/p/1"]);
        assert_eq!(tree.missing_parents(&ops), [""; 0]);
    }

    #[test]
    fn parents_go_with_the_last_key_below_them() {
        let paths =
            [("/p", ""), ("/p/1", ""), ("/p/1/x", "1"), ("/p/1/y", "1"), ("/p/10", ""), ("/p/10/x", "1")];
        let mut tree = tree(&paths);
        assert_eq!(tree.emptied_parents(&[delete("/p/1/x")]), [""; 0]);
        assert_eq!(tree.emptied_parents(&[delete("/p/1/x"), delete("/p/1/y"), create("/p/1/z")]), [""; 0]);
        let both = [delete("/p/1/x"), delete("/p/1/y")];
        assert_eq!(tree.emptied_parents(&both), ["/p/1"]);
        // The next one that needs it makes it again.
        assert_eq!(tree.missing_parents(&[create("/p/1/z")]), ["/p/1"]);
        // The highest stay.
        assert_eq!(tree.emptied_parents(&[delete("/p")]), [""; 0]);
    }
}
