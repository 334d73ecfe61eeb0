//! The ephemeral keys of this node: what it wants to be there, against what is. Pure.
//!
//! Owns: which keys this node keeps (its registration, faults of its replicas, suspicions) and the commits that
//! bring the store to it. Level-triggered: asked again after each change, empty when all is there.
//! Invariant: a key counts as kept only if it was made in the present session: one that an older session made goes
//! with that session, so it is made again.
//! Crash story: the process restarts before the session of its former life has expired. The old registration is
//! still there, and is replaced in one commit, so that others see one incarnation follow the other.

use std::collections::BTreeMap;

use crate::coordination::{Key, Op, Value, Version};

/// What is stored under a key now.
/// Stands for the session of a key that may have been made or not.
const NO_SESSION: u64 = 0;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct There {
    pub(super) value: Value,
    pub(super) version: Version,
}

/// What this node keeps, and in which session it made it.
#[derive(Debug, Default)]
pub(super) struct OwnKeys {
    wanted: BTreeMap<Key, Value>,
    /// Session in which each key was made; keys that are wanted no more stay until they are gone.
    made: BTreeMap<Key, u64>,
}

impl OwnKeys {
    /// Keeps a value under a key from now on.
    pub(super) fn want(&mut self, key: Key, value: Value) {
        self.wanted.insert(key, value);
    }

    /// Keeps it no more.
    pub(super) fn drop(&mut self, key: &str) {
        self.wanted.remove(key);
    }

    /// Keeps nothing more.
    pub(super) fn drop_all(&mut self) {
        self.wanted.clear();
    }

    /// A commit of [`OwnKeys::missing`] for this key has ended in this session. What it made is remembered even if
    /// it is not wanted any more by now: else nobody would take it away. `is_stored`: it is known to have happened.
    pub(super) fn committed(&mut self, key: &str, session: u64, ops: &[Op], is_stored: bool) {
        match (ops.last(), is_stored) {
            (Some(Op::Delete { .. }), true) => {
                self.made.remove(key);
            }
            (Some(Op::Create { .. } | Op::Put { .. }), true) => {
                self.made.insert(key.to_owned(), session);
            }
            (Some(Op::Create { .. }), false) => {
                self.made.entry(key.to_owned()).or_insert(NO_SESSION);
            }
            _ => {}
        }
    }

    /// One commit for each key that is not as wanted.
    pub(super) fn missing(
        &self,
        session: u64,
        stored: impl Fn(&str) -> Option<There>,
    ) -> Vec<(Key, Vec<Op>)> {
        let wanted = self.wanted.iter().filter_map(|(key, value)| {
            let is_ours = self.made.get(key) == Some(&session);
            let create = Op::Create { key: key.clone(), value: value.clone(), is_ephemeral: true };
            let ops = match stored(key) {
                None => vec![create],
                Some(there) if !is_ours => {
                    vec![Op::Delete { key: key.clone(), version: there.version }, create]
                }
                Some(there) if there.value != *value => {
                    vec![Op::Put { key: key.clone(), value: value.clone(), version: there.version }]
                }
                Some(_) => return None,
            };
            Some((key.clone(), ops))
        });
        let unwanted = self.made.keys().filter(|key| !self.wanted.contains_key(*key)).filter_map(|key| {
            let there = stored(key)?;
            Some((key.clone(), vec![Op::Delete { key: key.clone(), version: there.version }]))
        });
        wanted.chain(unwanted).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        text.as_bytes().into()
    }

    fn there(text: &str, version: i64) -> Option<There> {
        Some(There { value: value(text), version: Version(version) })
    }

    fn create(text: &str) -> Op {
        Op::Create { key: "/k".into(), value: value(text), is_ephemeral: true }
    }

    fn delete(version: i64) -> Op {
        Op::Delete { key: "/k".into(), version: Version(version) }
    }

    fn check(own: &OwnKeys, session: u64, stored: Option<There>, expected: &[Op]) {
        let ops: Vec<Op> =
            own.missing(session, |_| stored.clone()).into_iter().flat_map(|(_, ops)| ops).collect();
        assert_eq!(ops, expected);
    }

    fn store(own: &mut OwnKeys, session: u64, ops: &[Op]) {
        own.committed("/k", session, ops, true);
    }

    #[test]
    fn a_key_is_made_changed_and_taken_away() {
        let mut own = OwnKeys::default();
        own.want("/k".into(), value("a"));
        check(&own, 1, None, &[create("a")]);
        store(&mut own, 1, &[create("a")]);
        check(&own, 1, there("a", 0), &[]);
        own.want("/k".into(), value("b"));
        let put = Op::Put { key: "/k".into(), value: value("b"), version: Version(0) };
        check(&own, 1, there("a", 0), std::slice::from_ref(&put));
        store(&mut own, 1, &[put]);
        own.drop("/k");
        check(&own, 1, there("b", 1), &[delete(1)]);
        store(&mut own, 1, &[delete(1)]);
        check(&own, 1, None, &[]);
    }

    #[test]
    fn a_key_that_is_not_wanted_any_more_when_it_was_made_is_taken_away() {
        for is_known in [true, false] {
            let mut own = OwnKeys::default();
            own.want("/k".into(), value("a"));
            own.drop("/k");
            own.committed("/k", 1, &[create("a")], is_known);
            check(&own, 1, there("a", 0), &[delete(0)]);
            store(&mut own, 1, &[delete(0)]);
            check(&own, 1, None, &[]);
        }
    }

    #[test]
    fn what_another_session_made_is_made_again_in_one_commit() {
        let mut own = OwnKeys::default();
        own.want("/k".into(), value("a"));
        check(&own, 1, there("former life", 3), &[delete(3), create("a")]);
        store(&mut own, 1, &[delete(3), create("a")]);
        check(&own, 2, there("a", 0), &[delete(0), create("a")]);
    }

    #[test]
    fn a_key_that_vanished_is_made_again() {
        let mut own = OwnKeys::default();
        own.want("/k".into(), value("a"));
        store(&mut own, 1, &[create("a")]);
        check(&own, 1, None, &[create("a")]);
    }
}
