//! Replicas: added and taken away, online.
//!
//! Invariant: no partition is left without a replica, or without a member of its ISR; a leader that goes hands over to a
//! sound member of the ISR in the same write.

use corelog_engine::{TopicId, TopicPartition};

use super::{UnknownPartition, UnknownTopic, partition, topic};
use crate::cluster::keys::Subject;
use crate::cluster::{ClusterState, PartitionRecord, ReplicaRecord, Stored, TopicRecord};
use crate::controller::commits::Commits;
use crate::controller::election::{best, led_by};
use crate::controller::placement::{PlacementError, Sites};
use crate::controller::standing::exists;
use crate::controller::{Standing, removal};
use crate::coordination::Op;
use crate::replica::NodeId;

/// Why no replica was added. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddReplicaError {
    /// See [`UnknownPartition`].
    #[error(transparent)]
    Unknown(#[from] UnknownPartition),
    /// The node has one.
    #[error("node {node} has a replica of the partition; choose another node")]
    HasOne {
        /// Which node.
        node: NodeId,
    },
    /// The node cannot take one now.
    #[error(
        "node {node} does not run, or has no usable data directory; start or repair it, or choose another node"
    )]
    NodeUnavailable {
        /// Which node.
        node: NodeId,
    },
    /// No node can take one now.
    #[error(transparent)]
    Placement(#[from] PlacementError),
}

/// Why no replica was taken away. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoveReplicaError {
    /// See [`UnknownPartition`].
    #[error(transparent)]
    Unknown(#[from] UnknownPartition),
    /// There is none.
    #[error("node {node} has no replica of the partition; `topic describe` shows who has")]
    NoReplica {
        /// Which node.
        node: NodeId,
    },
    /// It is the only one.
    #[error("it is the only replica; add another one first, or delete the topic")]
    LastReplica,
    /// Nobody else has everything.
    #[error("it is the only replica in sync; wait until another one is, or add one")]
    LastInSync,
    /// It leads, and nobody else in sync can take over.
    #[error("it leads, and no other replica in sync can take over now; wait until one can")]
    NoSuccessor,
}

/// Why the number of replicas was not changed, or not everywhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetReplicasError {
    /// See [`UnknownTopic`].
    #[error(transparent)]
    Unknown(#[from] UnknownTopic),
    /// None at all were asked for.
    #[error("a partition has at least one replica; ask for 1 or more, or delete the topic")]
    None,
    /// No node can take another one.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// Too many replicas of a partition are needed where they are.
    #[error("partition {}: {error}", .partition.partition)]
    Remove {
        /// Which partition.
        partition: TopicPartition,
        /// Why.
        error: RemoveReplicaError,
    },
}

/// Decides on another replica of a partition. It copies everything, joins the ISR, and then stays; a replica whose node
/// is dead leaves for it (`surplus.rs`).
///
/// `on`: which node gets it; `None`: the one with the fewest.
pub fn add_replica(
    state: &ClusterState,
    id: TopicPartition,
    on: Option<NodeId>,
    random: &mut dyn FnMut() -> u128,
) -> Result<Vec<Vec<Op>>, AddReplicaError> {
    let stored = partition(state, id)?;
    if let Some(node) = on.filter(|node| stored.on_node(*node).is_some()) {
        return Err(AddReplicaError::HasOne { node });
    }
    let mut sites = Sites::of(state);
    sites.see_topic(state, id.topic);
    let place = sites.place_replica(stored, on, random).map_err(|error| match on {
        Some(node) => AddReplicaError::NodeUnavailable { node },
        None => error.into(),
    })?;
    let mut next = (*stored.record).clone();
    next.replicas.push(place);
    let key = Subject::Partition(id).key();
    Ok(vec![vec![Op::Put { key, value: next.encode(), version: stored.version }]])
}

/// Decides on one replica less of a partition; its node deletes the log when it can.
pub fn remove_replica(
    state: &ClusterState,
    id: TopicPartition,
    node: NodeId,
) -> Result<Vec<Vec<Op>>, RemoveReplicaError> {
    let stored = partition(state, id)?;
    let gone = *stored.on_node(node).ok_or(RemoveReplicaError::NoReplica { node })?;
    let next = without(state, stored, &gone)?;
    let name = &state.topics.get(&id.topic).ok_or(UnknownPartition { partition: id })?.name;
    let key = Subject::Partition(id).key();
    let put = Op::Put { key, value: next.encode(), version: stored.version };
    Ok(vec![vec![put, removal::of_replica(id.topic, name, id.partition.0, &gone)]])
}

/// Decides on the number of replicas of all partitions of a topic: adds where there are fewer, takes away where there
/// are more (dead ones first, then those out of sync, then the last in order of preference).
pub fn set_replicas(
    state: &ClusterState,
    id: TopicId,
    replicas: u16,
    random: &mut dyn FnMut() -> u128,
) -> Result<Vec<Vec<Op>>, SetReplicasError> {
    let stored = topic(state, id)?;
    if replicas == 0 {
        return Err(SetReplicasError::None);
    }
    let mut commits = Commits::new(vec![]);
    if stored.replicas != replicas {
        let record = TopicRecord { replicas, ..(*stored.record).clone() };
        let key = Subject::Topic(id).key();
        commits.add([Op::Put { key, value: record.encode(), version: stored.version }]);
    }
    let mut sites = Sites::of(state);
    sites.see_topic(state, id);
    let wanted = usize::from(replicas);
    for (id, partition) in state.partitions_of(id).filter(|(id, _)| exists(state, *id)) {
        let mut next = (*partition.record).clone();
        while next.replicas.len() < wanted {
            let place = sites.place_replica(&next, None, random)?;
            next.replicas.push(place);
        }
        let mut orders = Vec::new();
        while next.replicas.len() > wanted {
            let gone = least_needed(state, &next);
            next = without(state, &next, &gone)
                .map_err(|error| SetReplicasError::Remove { partition: id, error })?;
            orders.push(removal::of_replica(id.topic, &stored.name, id.partition.0, &gone));
        }
        if next != *partition.record {
            let key = Subject::Partition(id).key();
            let put = Op::Put { key, value: next.encode(), version: partition.version };
            commits.add([put].into_iter().chain(orders));
        }
    }
    Ok(commits.finish())
}

fn least_needed(state: &ClusterState, record: &PartitionRecord) -> ReplicaRecord {
    let need = |replica: &&ReplicaRecord| {
        let is_in_sync = record.isr.contains(&replica.id());
        let is_leader = record.leader.is_some_and(|leader| leader.replica == replica.id());
        (is_leader, is_in_sync, Standing::of(state, replica).is_sound())
    };
    // Of several that are equally needed the last one.
    *record.replicas.iter().rev().min_by_key(need).expect("a partition has at least one replica")
}

/// The record without one of its replicas.
fn without(
    state: &ClusterState,
    record: &PartitionRecord,
    gone: &ReplicaRecord,
) -> Result<PartitionRecord, RemoveReplicaError> {
    if record.replicas.len() == 1 {
        return Err(RemoveReplicaError::LastReplica);
    }
    let mut next = record.clone();
    next.isr.retain(|member| *member != gone.id());
    if next.isr.is_empty() {
        return Err(RemoveReplicaError::LastInSync);
    }
    next.replicas.retain(|replica| replica.id() != gone.id());
    if record.leader.is_some_and(|leader| leader.replica == gone.id()) {
        let standing = |replica: &ReplicaRecord| Standing::of(state, replica);
        let successor = best(&next, &standing);
        next = led_by(&next, successor.ok_or(RemoveReplicaError::NoSuccessor)?, &standing);
    }
    Ok(next)
}
