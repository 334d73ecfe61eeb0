//! What the tests of the agent's decisions share: pictures of clusters from what would be stored.

use corelog_engine::TimestampMs;

use crate::cluster::keys::Subject;
use crate::cluster::{ClusterState, Endpoint, Incarnation, NodeRecord, ShardRecord, Stored};
use crate::coordination::{Entry, Event, Key, Value, Version};
use crate::replica::NodeId;

/// The picture of these keys, all of version 0.
pub(super) fn cluster(keys: Vec<(Key, Value)>) -> ClusterState {
    let entry = |(key, value)| Entry { key, value, version: Version(0) };
    let mut cluster = ClusterState::default();
    cluster.apply(&Event::State { session: 1, entries: keys.into_iter().map(entry).collect() });
    assert!(cluster.problems.is_empty(), "{:?}", cluster.problems);
    cluster
}

/// Registrations of these nodes; the incarnation of each is its number.
pub(super) fn registered(nodes: &[u32]) -> Vec<(Key, Value)> {
    let there = |port| Endpoint { host: "h".to_owned(), port };
    let shard = ShardRecord { core: 0, client: there(1), replication: there(2) };
    let registration = |node: &u32| {
        let record = NodeRecord {
            node: NodeId(*node),
            incarnation: Incarnation(u64::from(*node)),
            started: TimestampMs(0),
            program_version: String::new(),
            rack: String::new(),
            shards: vec![shard.clone()],
            data_dirs: Vec::new(),
            is_stopping: false,
            http: None,
        };
        (Subject::Node(record.node).key(), record.encode())
    };
    nodes.iter().map(registration).collect()
}
