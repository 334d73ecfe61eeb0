//! Orders to delete logs: for whom, which, in records of bounded size.
//!
//! Owns: how removals are made of replicas that are not wanted any more.

use std::collections::BTreeMap;

use corelog_engine::TopicId;

use crate::cluster::keys::{RemovalId, Subject};
use crate::cluster::{PartitionRecord, Removal, RemovedLog, ReplicaRecord, Stored};
use crate::coordination::Op;
use crate::replica::NodeId;

/// The op that orders one node to delete logs of a topic. Panics if `logs` is empty.
pub(super) fn order(node: NodeId, topic: TopicId, name: &str, logs: Vec<RemovedLog>) -> Op {
    let id = RemovalId { node, topic, first: logs.first().expect("a removal names at least one log").log };
    let removal = Removal { node, topic, name: name.to_owned(), logs };
    Op::Create { key: Subject::Removal(id).key(), value: removal.encode(), is_ephemeral: false }
}

/// The op that orders the deletion of one replica's log.
pub(super) fn of_replica(topic: TopicId, name: &str, partition: u32, replica: &ReplicaRecord) -> Op {
    order(replica.node, topic, name, vec![removed(partition, replica)])
}

/// The ops that order the deletion of all logs of some partitions of one topic: one for each node.
pub(super) fn of_partitions<'a>(
    topic: TopicId,
    name: &str,
    partitions: impl Iterator<Item = (u32, &'a PartitionRecord)>,
) -> Vec<Op> {
    let mut by_node: BTreeMap<NodeId, Vec<RemovedLog>> = BTreeMap::new();
    for (number, record) in partitions {
        for replica in &record.replicas {
            by_node.entry(replica.node).or_default().push(removed(number, replica));
        }
    }
    by_node.into_iter().map(|(node, logs)| order(node, topic, name, logs)).collect()
}

fn removed(partition: u32, replica: &ReplicaRecord) -> RemovedLog {
    RemovedLog { partition, log: replica.log, dir: replica.dir }
}
