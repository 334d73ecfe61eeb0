//! Keys and values in memory, and what a commit does to them.
//!
//! Owns: the rules of a commit (versions, all or nothing), as a pure function.
//! Not here: when that is durable (`kv.rs`).

use std::collections::BTreeMap;

use corelog_replication::coordination::{CommitError, Entry, Event, Key, Op, Value, Version};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) value: Value,
    pub(super) version: Version,
    pub(super) is_ephemeral: bool,
}

/// What a commit did to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) key: Key,
    /// What is there now.
    pub(super) after: Option<Slot>,
    /// Whether what was there before lives on disk.
    pub(super) was_stored: bool,
}

impl Change {
    pub(super) fn event(&self) -> Event {
        let key = self.key.clone();
        match &self.after {
            Some(slot) => Event::Changed(Entry { key, value: slot.value.clone(), version: slot.version }),
            None => Event::Removed { key },
        }
    }
}

/// What a commit did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Applied {
    /// By part.
    pub(super) versions: Vec<Version>,
    /// One for each key that is other than before, in the order of the last part about it.
    pub(super) changes: Vec<Change>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Keyspace {
    slots: BTreeMap<Key, Slot>,
}

impl Keyspace {
    pub(super) fn insert(&mut self, key: Key, slot: Slot) {
        self.slots.insert(key, slot);
    }

    pub(super) fn entries(&self) -> Vec<Entry> {
        let entry = |(key, slot): (&Key, &Slot)| Entry {
            key: key.clone(),
            value: slot.value.clone(),
            version: slot.version,
        };
        self.slots.iter().map(entry).collect()
    }

    pub(super) fn ephemerals(&self) -> impl Iterator<Item = (&Key, &Slot)> {
        self.slots.iter().filter(|(_, slot)| slot.is_ephemeral)
    }

    /// Does all parts, or none.
    pub(super) fn apply(&mut self, ops: &[Op]) -> Result<Applied, CommitError> {
        let mut overlay: BTreeMap<&str, (usize, Option<Slot>)> = BTreeMap::new();
        let mut versions = Vec::with_capacity(ops.len());
        for (at, op) in ops.iter().enumerate() {
            let key = op.key();
            let there = match overlay.get(key) {
                Some((_, slot)) => slot.as_ref(),
                None => self.slots.get(key),
            };
            let Some((version, after)) = step(op, there) else {
                return Err(CommitError::Conflict { key: key.to_owned() });
            };
            versions.push(version);
            if let Some(after) = after {
                overlay.insert(key, (at, after));
            }
        }
        let mut changed: Vec<(usize, &str, Option<Slot>)> =
            overlay.into_iter().map(|(key, (at, slot))| (at, key, slot)).collect();
        changed.sort_by_key(|(at, _, _)| *at);
        let mut changes = Vec::with_capacity(changed.len());
        for (_, key, after) in changed {
            let before = self.slots.get(key);
            if before.is_none() && after.is_none() {
                continue;
            }
            let was_stored = before.is_some_and(|slot| !slot.is_ephemeral);
            changes.push(Change { key: key.to_owned(), after, was_stored });
        }
        self.put(&changes);
        Ok(Applied { versions, changes })
    }

    /// Takes over what a commit did elsewhere.
    pub(super) fn put(&mut self, changes: &[Change]) {
        for change in changes {
            match &change.after {
                Some(slot) => {
                    self.slots.insert(change.key.clone(), slot.clone());
                }
                None => {
                    self.slots.remove(&change.key);
                }
            }
        }
    }
}

/// What one part does to what is there: its new version, and what is there afterwards if that is something else.
/// `None`: it does not fit.
#[expect(clippy::option_option, reason = "nothing changes, or nothing is there")]
fn step(op: &Op, there: Option<&Slot>) -> Option<(Version, Option<Option<Slot>>)> {
    match op {
        Op::Check { version, .. } => {
            there.filter(|slot| slot.version == *version).map(|slot| (slot.version, None))
        }
        Op::Create { value, is_ephemeral, .. } => there.is_none().then(|| {
            let slot = Slot { value: value.clone(), version: Version(0), is_ephemeral: *is_ephemeral };
            (slot.version, Some(Some(slot)))
        }),
        Op::Put { value, version, .. } => there.filter(|slot| slot.version == *version).map(|slot| {
            let version = Version(version.0 + 1);
            let slot = Slot { value: value.clone(), version, is_ephemeral: slot.is_ephemeral };
            (version, Some(Some(slot)))
        }),
        Op::Delete { version, .. } => {
            there.filter(|slot| slot.version == *version).map(|_| (Version(0), Some(None)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(key: &str, value: &str) -> Op {
        Op::Create { key: key.to_owned(), value: value.as_bytes().into(), is_ephemeral: false }
    }

    fn delete(key: &str, version: i64) -> Op {
        Op::Delete { key: key.to_owned(), version: Version(version) }
    }

    fn put(key: &str, value: &str, version: i64) -> Op {
        Op::Put { key: key.to_owned(), value: value.as_bytes().into(), version: Version(version) }
    }

    #[test]
    fn parts_see_what_earlier_ones_did_and_one_event_tells_the_end() {
        let mut keys = Keyspace::default();
        keys.apply(&[create("/b", "old")]).expect("it is free");
        let ops = [delete("/b", 0), create("/a", "1"), create("/b", "new"), put("/b", "newer", 0)];
        let applied = keys.apply(&ops).expect("all parts fit");
        assert_eq!(applied.versions, [0, 0, 0, 1].map(Version));
        let events: Vec<Event> = applied.changes.iter().map(Change::event).collect();
        let changed = |key: &str, value: &str, version| {
            Event::Changed(Entry {
                key: key.to_owned(),
                value: value.as_bytes().into(),
                version: Version(version),
            })
        };
        assert_eq!(events, [changed("/a", "1", 0), changed("/b", "newer", 1)]);
    }

    #[test]
    fn what_came_and_went_in_one_commit_is_no_change() {
        let mut keys = Keyspace::default();
        let applied = keys.apply(&[create("/a", "1"), delete("/a", 0)]).expect("all parts fit");
        assert_eq!(applied.changes, []);
        assert_eq!(keys, Keyspace::default());
    }

    #[test]
    fn a_part_that_does_not_fit_undoes_the_others() {
        let mut keys = Keyspace::default();
        keys.apply(&[create("/a", "1")]).expect("it is free");
        let before = keys.clone();
        for wrong in [create("/a", "2"), put("/a", "2", 1), put("/c", "2", 0), delete("/a", 7)] {
            let key = wrong.key().to_owned();
            assert_eq!(keys.apply(&[create("/b", "1"), wrong]), Err(CommitError::Conflict { key }));
            assert_eq!(keys, before);
        }
    }
}
