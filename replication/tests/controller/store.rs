//! The store of these tests: compare-and-set in memory, and the log of events that each picture follows at its own pace.

use std::collections::BTreeMap;

use corelog_replication::coordination::{CommitError, Entry, Event, Key, Op, Value, Version, check_limits};

/// All keys, and everything that ever happened to them.
#[derive(Default)]
pub(crate) struct Store {
    keys: BTreeMap<Key, (Value, Version)>,
    /// Events since the beginning; a picture remembers how many it has seen.
    pub(crate) events: Vec<Event>,
}

impl Store {
    /// Does all parts or none.
    pub(crate) fn commit(&mut self, ops: &[Op]) -> Result<(), CommitError> {
        check_limits(ops)?;
        // Later parts see what earlier ones did, and nothing is done until all fit.
        let mut after: BTreeMap<&str, Option<(Value, Version)>> = BTreeMap::new();
        for op in ops {
            let there = match after.get(op.key()) {
                Some(there) => there.as_ref().map(|(_, version)| *version),
                None => self.version(op.key()),
            };
            let (expected, next) = match op {
                Op::Check { version, .. } => {
                    if there != Some(*version) {
                        return Err(CommitError::Conflict { key: op.key().to_owned() });
                    }
                    continue;
                }
                Op::Create { value, .. } => (None, Some((value.clone(), Version(0)))),
                Op::Put { value, version, .. } => {
                    (Some(*version), Some((value.clone(), Version(version.0 + 1))))
                }
                Op::Delete { version, .. } => (Some(*version), None),
            };
            if there != expected {
                return Err(CommitError::Conflict { key: op.key().to_owned() });
            }
            after.insert(op.key(), next);
        }
        for (key, next) in after {
            let key = key.to_owned();
            match next {
                Some((value, version)) => {
                    self.keys.insert(key.clone(), (value.clone(), version));
                    self.events.push(Event::Changed(Entry { key, value, version }));
                }
                None => {
                    self.keys.remove(&key);
                    self.events.push(Event::Removed { key });
                }
            }
        }
        Ok(())
    }

    /// The version of a key, if it is there.
    pub(crate) fn version(&self, key: &str) -> Option<Version> {
        self.keys.get(key).map(|(_, version)| *version)
    }
}
