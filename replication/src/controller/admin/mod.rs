//! What an operator asks for, decided: the picture and a request in, commits out.
//!
//! Owns: the rules and their errors, one enum for each operation. Pure; any node does it for whoever asked, by
//! compare-and-set against the picture that it has. After a conflict the request is decided anew on the newest one: an
//! operation that was done in part goes on from there, one that is done has nothing left to commit.
//! Not here: names, options and limits of topics (the server checks them before it asks), authorization.

mod leaders;
mod nodes;
mod replicas;
mod topics;

pub use leaders::{
    ElectPreferredError, ElectUncleanError, elect_all_preferred, elect_preferred, elect_unclean,
};
pub use nodes::{DrainError, ForgetNodeError, drain, forget_node, leaders_on};
pub use replicas::{
    AddReplicaError, RemoveReplicaError, SetReplicasError, add_replica, remove_replica, set_replicas,
};
pub use topics::{
    CreatePartitionsError, CreateTopicError, NewTopic, alter_options, create_partitions, create_topic,
    delete_topic,
};

use corelog_engine::{TopicId, TopicPartition};

use super::standing::exists;
use crate::cluster::{ClusterState, PartitionRecord, TopicRecord, Versioned};

/// There is no such topic (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no topic with the id {topic}; `topic list` shows all")]
pub struct UnknownTopic {
    /// What was asked for.
    pub topic: TopicId,
}

/// There is no such partition (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no partition {} of the topic with the id {}; `topic describe` shows all", .partition.partition, .partition.topic)]
pub struct UnknownPartition {
    /// What was asked for.
    pub partition: TopicPartition,
}

fn topic(state: &ClusterState, topic: TopicId) -> Result<&Versioned<TopicRecord>, UnknownTopic> {
    state.topics.get(&topic).ok_or(UnknownTopic { topic })
}

fn partition(
    state: &ClusterState,
    partition: TopicPartition,
) -> Result<&Versioned<PartitionRecord>, UnknownPartition> {
    let stored = state.partitions.get(&partition).filter(|_| exists(state, partition));
    stored.ok_or(UnknownPartition { partition })
}

#[cfg(test)]
mod tests;
