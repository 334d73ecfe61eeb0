//! Topics that go: their partitions follow, and each node gets the order to delete its logs.
//!
//! Owns: cleaning up after deletions, and after topics that were begun and never made.
//! Invariant: a partition's record goes in the same commit that stores the orders to delete its logs.
//! Crash story: a node dies while it makes a topic that needs several commits. The name is taken and leads nowhere; after
//! a while it is set free, and the partitions are deleted like those of any other topic. If the node was only slow, its
//! last commit fails, because it checks the name.

use std::collections::BTreeMap;

use corelog_engine::TopicId;

use super::commits::Commits;
use super::removal;
use crate::cluster::keys::Subject;
use crate::cluster::{ClusterState, Deletion, Stored};
use crate::coordination::Op;

/// Partitions in one commit: each has up to a handful of logs in the removal records.
const PARTITIONS_PER_COMMIT: usize = 50;

/// Adds what finishes the deletions that are stored.
pub(super) fn finish_deletions(state: &ClusterState, commits: &mut Commits) {
    for (topic, deletion) in &state.deletions {
        let partitions: Vec<_> = state.partitions_of(*topic).collect();
        for some in partitions.chunks(PARTITIONS_PER_COMMIT) {
            let deletes = some.iter().map(|(id, stored)| Op::Delete {
                key: Subject::Partition(*id).key(),
                version: stored.version,
            });
            let records = some.iter().map(|(id, stored)| (id.partition.0, &*stored.record));
            let orders = removal::of_partitions(*topic, &deletion.name, records);
            commits.add(deletes.chain(orders));
        }
        if partitions.is_empty() {
            commits.add([Op::Delete { key: Subject::Deletion(*topic).key(), version: deletion.version }]);
        }
    }
}

/// Names that are taken by topics which do not exist, and since when that is known.
#[derive(Debug, Default)]
pub(super) struct Unmade {
    since_ms: BTreeMap<TopicId, u64>,
}

impl Unmade {
    /// Adds what gives up the topics that have not come to be within `patience_ms`.
    pub(super) fn give_up(
        &mut self,
        state: &ClusterState,
        now_ms: u64,
        patience_ms: u64,
        commits: &mut Commits,
    ) {
        let mut since_ms = BTreeMap::new();
        for (name, stored) in state.names.iter().filter(|(_, stored)| !state.topics.contains_key(&stored.0)) {
            let topic = stored.0;
            let since = self.since_ms.get(&topic).copied().unwrap_or(now_ms);
            since_ms.insert(topic, since);
            if now_ms >= since.saturating_add(patience_ms) {
                let deletion = Deletion { topic, name: name.clone() };
                let free = Op::Delete { key: Subject::Name(name.clone()).key(), version: stored.version };
                let key = Subject::Deletion(topic).key();
                // A deletion under way finds the partitions by itself.
                let create = (!state.deletions.contains_key(&topic)).then(|| Op::Create {
                    key,
                    value: deletion.encode(),
                    is_ephemeral: false,
                });
                commits.add([free].into_iter().chain(create));
            }
        }
        self.since_ms = since_ms;
    }

    /// When the next one is given up.
    pub(super) fn next_ms(&self, patience_ms: u64) -> Option<u64> {
        self.since_ms.values().min().map(|since| since.saturating_add(patience_ms))
    }
}
