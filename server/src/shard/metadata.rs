//! Where things are: answered by any shard from its snapshot, without asking anybody.

use corelog_engine::TopicPartition;
use corelog_replication::ReplicaId;
use corelog_schemas::messages::{
    MetadataRequest, MetadataResponse, MetadataTopics, PartitionMetadata, ShardAddress, TopicMetadata,
    TopicRef,
};
use corelog_schemas::{ErrorCode, Failure};

use super::registry::State;
use super::state::{Shard, find_topic};
use crate::control::{self, DataDirState, Snapshot};

/// Answers a metadata request.
pub(super) fn describe(shard: &Shard, request: &MetadataRequest) -> MetadataResponse {
    let snapshot = shard.snapshot();
    let topics = match &request.topics {
        MetadataTopics::All => snapshot.topics().iter().map(|t| topic(shard, &snapshot, t)).collect(),
        MetadataTopics::These(topics) => topics.iter().map(|t| named(shard, &snapshot, t)).collect(),
    };
    let shards = snapshot.nodes.iter().flat_map(|node| &node.shards).map(|address| ShardAddress {
        node: address.node.0,
        shard: address.shard.0,
        host: address.host.clone(),
        port: address.port,
    });
    MetadataResponse {
        version: snapshot.version.0,
        cluster_id: snapshot.cluster_id.to_string(),
        shards: shards.collect(),
        topics,
        controller_node: None,
    }
}

fn nodes(replicas: &[ReplicaId]) -> Vec<u32> {
    replicas.iter().map(|replica| replica.node.0).collect()
}

fn named(shard: &Shard, snapshot: &Snapshot, of: &TopicRef) -> TopicMetadata {
    match find_topic(snapshot, of) {
        Ok(found) => topic(shard, snapshot, found),
        Err(failure) => unknown(of, failure),
    }
}

fn unknown(of: &TopicRef, failure: Failure) -> TopicMetadata {
    let (topic_id, name) = match of {
        TopicRef::Id(id) => (Some(*id), String::new()),
        TopicRef::Name(name) => (None, name.to_string()),
    };
    TopicMetadata { failure: Some(failure), topic_id, name, partitions: Vec::new() }
}

fn topic(shard: &Shard, snapshot: &Snapshot, topic: &control::TopicMetadata) -> TopicMetadata {
    let partitions = topic.partitions.iter().map(|partition| {
        let id = TopicPartition { topic: topic.id, partition: partition.id };
        let led_here = partition.led_by(snapshot.node);
        let is_offline = partition.leader.is_none()
            || partition.local.as_ref().filter(|_| led_here.is_some()).is_some_and(|local| {
                matches!(snapshot.data_dir(local.data_dir).state, DataDirState::Offline { .. })
            });
        // Of its own partitions a shard knows more than the snapshot says.
        let (is_failed, log_start_offset) = shard.registry.with(id, |entry| match entry.map(|e| &e.state) {
            Some(State::Open(open)) => (false, Some(open.log_start().0)),
            Some(State::Failed(_)) => (led_here.is_some(), None),
            Some(State::Opening | State::Leaving) | None => (false, None),
        });
        PartitionMetadata {
            partition: partition.id.0,
            error: (is_offline || is_failed).then_some(ErrorCode::PartitionOffline),
            leader_node: partition.leader.map_or(0, |leader| leader.node.0),
            leader_shard: partition.leader.map_or(0, |leader| leader.shard.0),
            leader_epoch: partition.leader_epoch.0,
            log_start_offset,
            replicas: nodes(&partition.replicas),
            in_sync: nodes(&partition.isr),
        }
    });
    TopicMetadata {
        failure: None,
        topic_id: Some(topic.id.0),
        name: topic.name.to_string(),
        partitions: partitions.collect(),
    }
}
