//! The growing path: a single node becomes the first of a cluster and takes all its metadata along.
//!
//! Owns: which commits carry the contents of the embedded store over to an empty place in the coordination service. Pure.
//! Invariant: everything but `/cluster` is stored first; whoever comes meanwhile finds no cluster and waits.
//! Invariant: nothing that somebody else has stored there is changed: a place that is not empty is refused.
//! Crash story: killed anywhere, the next start compares what is there with what it has, and goes on where it stopped.
//! The embedded store is put aside before `/cluster` is written, so that no later start serves from it by accident.

use std::collections::BTreeMap;

use corelog_replication::cluster::keys::{CLUSTER, CONTROLLER, CONTROLLER_EPOCH, Subject};
use corelog_replication::coordination::{COMMIT_BYTES_MAX, Entry, Key, OPS_MAX, Op, commit_bytes};

/// Why metadata are not carried over. Nothing that was there has been changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrowError {
    /// Somebody else's.
    #[error(
        "the coordination service already holds {key}, which this node did not put there; choose an empty zookeeper.root, or remove what is left there of an earlier attempt"
    )]
    NotEmpty {
        /// The first of them.
        key: Key,
    },
}

/// What goes along: not the cluster's identity, which comes last, and nothing that belongs to a session.
fn goes_along(key: &str) -> bool {
    match Subject::parse(key) {
        Some(
            Subject::ControllerEpoch
            | Subject::Intent(_)
            | Subject::Topic(_)
            | Subject::Name(_)
            | Subject::Partition(_)
            | Subject::Deletion(_)
            | Subject::Removal(_),
        ) => true,
        Some(
            Subject::Cluster
            | Subject::Controller
            | Subject::Node(_)
            | Subject::Fault(_)
            | Subject::Suspicion { .. },
        )
        | None => false,
    }
}

/// The next commit; `None` when all is there. `/controller_epoch` comes first and alone: it keeps others from founding a
/// cluster in the same place.
pub(super) fn next_commit(
    source: &[Entry],
    there: &BTreeMap<Key, Entry>,
) -> Result<Option<Vec<Op>>, GrowError> {
    let wanted: BTreeMap<&str, &Entry> = source
        .iter()
        .filter(|entry| goes_along(&entry.key))
        .map(|entry| (entry.key.as_str(), entry))
        .collect();
    let is_ours =
        |entry: &&Entry| wanted.get(entry.key.as_str()).is_some_and(|ours| ours.value == entry.value);
    // A node that waits for the cluster may have a session, but has stored nothing.
    let foreign =
        there.values().find(|entry| !is_ours(entry) && ![CLUSTER, CONTROLLER].contains(&entry.key.as_str()));
    if let Some(foreign) = foreign {
        return Err(GrowError::NotEmpty { key: foreign.key.clone() });
    }
    let create = |entry: &Entry| Op::Create {
        key: entry.key.clone(),
        value: entry.value.clone(),
        is_ephemeral: false,
    };
    if let Some(lock) = wanted.get(CONTROLLER_EPOCH).filter(|_| !there.contains_key(CONTROLLER_EPOCH)) {
        return Ok(Some(vec![create(lock)]));
    }
    let mut ops: Vec<Op> = Vec::new();
    for entry in wanted.values().filter(|entry| !there.contains_key(&entry.key)) {
        ops.push(create(entry));
        if ops.len() == OPS_MAX || commit_bytes(&ops) > COMMIT_BYTES_MAX / 2 {
            break;
        }
    }
    Ok(Some(ops).filter(|ops| !ops.is_empty()))
}

#[cfg(test)]
mod tests {
    use corelog_replication::coordination::{Version, check_limits};

    use super::*;

    fn entry(key: &str, value: &[u8]) -> Entry {
        Entry { key: key.to_owned(), value: value.into(), version: Version(3) }
    }

    fn name(number: usize) -> String {
        format!("/names/topic-{number}")
    }

    fn source(names: usize, value_bytes: usize) -> Vec<Entry> {
        let mut entries: Vec<Entry> =
            (0..names).map(|number| entry(&name(number), &vec![b'x'; value_bytes])).collect();
        entries.extend(["/cluster", "/controller", "/nodes/1", "/other"].map(|key| entry(key, b"y")));
        entries.push(entry(CONTROLLER_EPOCH, b"7"));
        entries
    }

    /// Carries everything over and says in how many commits.
    fn carry(source: &[Entry], there: &mut BTreeMap<Key, Entry>) -> usize {
        for commits in 0..1_000 {
            let Some(ops) = next_commit(source, there).expect("it is ours") else { return commits };
            check_limits(&ops).expect("it is small enough");
            for op in ops {
                let Op::Create { key, value, is_ephemeral: false } = op else { panic!("{op:?}") };
                let before = there.insert(key.clone(), Entry { key, value, version: Version(0) });
                assert_eq!(before, None);
            }
        }
        panic!("it does not end");
    }

    #[test]
    fn all_that_lasts_goes_along_in_small_commits_after_the_lock() {
        let source = source(1_200, 10);
        let first = next_commit(&source, &BTreeMap::new()).expect("empty").expect("work");
        assert_eq!(first.iter().map(Op::key).collect::<Vec<_>>(), [CONTROLLER_EPOCH]);
        let mut there = BTreeMap::new();
        assert_eq!(carry(&source, &mut there), 1 + 3);
        assert_eq!(there.len(), 1_201);
        assert!(!there.contains_key(CLUSTER) && !there.contains_key("/nodes/1"));
    }

    #[test]
    fn large_values_make_small_commits() {
        assert_eq!(carry(&source(10, 400 << 10), &mut BTreeMap::new()), 1 + 5);
    }

    #[test]
    fn an_interrupted_move_goes_on_where_it_stopped() {
        let source = source(20, 10);
        let mut there = BTreeMap::new();
        carry(&source[..7], &mut there);
        carry(&source, &mut there);
        assert_eq!(there.len(), 21);
    }

    #[test]
    fn what_somebody_else_has_stored_is_not_touched() {
        let source = source(20, 10);
        for foreign in [entry("/topics/1", b"z"), entry(&name(3), b"another topic")] {
            let there = BTreeMap::from([(foreign.key.clone(), foreign.clone())]);
            assert_eq!(next_commit(&source, &there), Err(GrowError::NotEmpty { key: foreign.key }));
        }
    }
}
