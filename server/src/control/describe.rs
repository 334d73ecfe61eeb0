//! Answers about topics and the node: a snapshot joined with what the shards report. Pure, but for the asking.
//!
//! Owns: the shape of these answers. Not here: which options exist (`options.rs`).

use std::collections::BTreeMap;

use corelog_engine::{TopicId, TopicPartition};
use corelog_replication::cluster::ClusterState;
use corelog_schemas::messages::{
    DataDirDescription, DescribeNodeResponse, DescribeTopicsRequest, DescribeTopicsResponse,
    ListTopicsRequest, ListTopicsResponse, PartitionDescription, ReplicaDescription, ShardDescription,
    TopicDescription, TopicListing, TopicOption, TopicRef,
};
use corelog_schemas::{ErrorCode, Failure};
use rustc_hash::FxHashMap;

use super::admin::UnknownTopic;
use super::describe_cluster::trouble_of;
use super::snapshot::{DataDirState, PartitionMetadata, Snapshot, TopicMetadata};
use super::stats::{PartitionStats, ShardStats};
use super::view::View;

/// Name and version of this server.
pub const SOFTWARE: &str = concat!("corelog ", env!("CARGO_PKG_VERSION"));

/// Names topics, sorted.
pub fn list_topics(snapshot: &Snapshot, request: &ListTopicsRequest) -> ListTopicsResponse {
    let matching = snapshot.topics().iter().filter(|topic| topic.name.starts_with(&request.name_prefix));
    let topics = matching.map(|topic| TopicListing {
        topic_id: topic.id.0,
        name: topic.name.to_string(),
        partitions: count(topic.partitions.len()),
        replication_factor: replication_factor(topic),
    });
    ListTopicsResponse { topics: topics.collect() }
}

/// Replicas that each partition has, where not all have the same number the least.
fn replication_factor(topic: &TopicMetadata) -> u16 {
    let least = topic.partitions.iter().map(|partition| partition.replicas.len()).min().unwrap_or(0);
    u16::try_from(least).unwrap_or(u16::MAX)
}

/// Describes topics. `failures`: partitions that the shards of this node cannot serve.
pub fn describe_topics(
    snapshot: &Snapshot,
    cluster: &ClusterState,
    request: &DescribeTopicsRequest,
    failures: &FxHashMap<TopicPartition, Failure>,
    stats: &[Option<ShardStats>],
) -> DescribeTopicsResponse {
    let reported: FxHashMap<TopicPartition, &PartitionStats> =
        stats.iter().flatten().flat_map(|shard| &shard.partitions).map(|p| (p.partition, p)).collect();
    let describe = |wanted: &TopicRef| {
        let topic = match wanted {
            TopicRef::Id(id) => snapshot.topic_by_id(TopicId(*id)),
            TopicRef::Name(name) => snapshot.topic_by_name(name),
        };
        let Some(topic) = topic else { return unknown(wanted) };
        let partitions = topic.partitions.iter().map(|partition| {
            let of = TopicPartition { topic: topic.id, partition: partition.id };
            let knowledge =
                Knowledge { cluster, of, failure: failures.get(&of), stats: reported.get(&of).copied() };
            describe_partition(snapshot, partition, knowledge)
        });
        TopicDescription {
            failure: None,
            topic_id: Some(topic.id.0),
            name: topic.name.to_string(),
            replication_factor: replication_factor(topic),
            created_ms: topic.created.0,
            options: describe_options(topic, cluster.topics.get(&topic.id).map(|topic| &topic.options)),
            partitions: partitions.collect(),
        }
    };
    DescribeTopicsResponse { topics: request.topics.iter().map(describe).collect() }
}

fn unknown(wanted: &TopicRef) -> TopicDescription {
    let (topic_id, name) = match wanted {
        TopicRef::Id(id) => (Some(*id), String::new()),
        TopicRef::Name(name) => (None, name.to_string()),
    };
    TopicDescription {
        failure: Some(UnknownTopic { topic: wanted.clone() }.into()),
        topic_id,
        name,
        replication_factor: 0,
        created_ms: 0,
        options: Vec::new(),
        partitions: Vec::new(),
    }
}

fn describe_options(topic: &TopicMetadata, set: Option<&BTreeMap<String, String>>) -> Vec<TopicOption> {
    let is_set = |name: &str| set.is_some_and(|set| set.contains_key(name));
    topic
        .options
        .values()
        .map(|(name, value)| TopicOption {
            key: name.to_owned(),
            value: Some(value.to_string()),
            is_default: !is_set(name),
        })
        .collect()
}

/// What is known of a partition beside the snapshot.
#[derive(Clone, Copy)]
struct Knowledge<'a> {
    cluster: &'a ClusterState,
    of: TopicPartition,
    failure: Option<&'a Failure>,
    stats: Option<&'a PartitionStats>,
}

impl Knowledge<'_> {
    /// Why the replica here does not serve.
    fn failure_here(self, dir: Option<&DataDirState>) -> Option<Failure> {
        match (dir, self.failure, self.stats) {
            (Some(DataDirState::Offline { reason }), _, _) => {
                Some(Failure::new(ErrorCode::PartitionOffline, reason.as_str()))
            }
            (_, Some(failure), _) => Some(failure.clone()),
            (_, None, Some(stats)) => {
                stats.failure.as_ref().map(|reason| Failure::new(ErrorCode::StorageFailed, reason.as_str()))
            }
            (_, None, None) => Some(Failure::new(
                ErrorCode::PartitionOffline,
                "its shard has not reported it yet; ask again in a moment",
            )),
        }
    }
}

/// Only the leader's node knows sizes, offsets and lags; others leave them out.
fn describe_partition(
    snapshot: &Snapshot,
    partition: &PartitionMetadata,
    knowledge: Knowledge<'_>,
) -> PartitionDescription {
    let data_dir = partition.local.as_ref().map(|local| snapshot.data_dir(local.data_dir));
    let is_led_here = partition.led_by(snapshot.node).is_some();
    let here = || knowledge.failure_here(data_dir.map(|dir| &dir.state));
    let failure = match partition.leader {
        Some(_) if is_led_here => here(),
        Some(_) => None,
        None => partition.local.as_ref().and_then(|_| here()).or_else(|| {
            Some(Failure::new(ErrorCode::PartitionOffline, "nobody leads it: no replica in sync runs"))
        }),
    };
    let is_told = is_led_here || partition.leader.is_none();
    let stats = knowledge.stats.filter(|_| is_told);
    PartitionDescription {
        failure,
        partition: partition.id.0,
        leader_node: partition.leader.map_or(0, |leader| leader.node.0),
        leader_shard: partition.leader.map_or(0, |leader| leader.shard.0),
        leader_epoch: partition.leader_epoch.0,
        log_start_offset: stats.map(|s| s.log_start.0),
        high_watermark: stats.map(|s| s.high_watermark.0),
        log_end_offset: stats.map(|s| s.log_end.0),
        durable_end_offset: stats.map(|s| s.durable_end.0),
        log_bytes: stats.map_or(0, |s| s.log_bytes),
        segments: stats.map_or(0, |s| s.segments),
        data_dir: data_dir.filter(|_| is_told).map_or_else(String::new, |dir| dir.path.display().to_string()),
        replicas: describe_replicas(partition, knowledge, stats),
    }
}

fn describe_replicas(
    partition: &PartitionMetadata,
    Knowledge { cluster, of, .. }: Knowledge<'_>,
    stats: Option<&PartitionStats>,
) -> Vec<ReplicaDescription> {
    let Some(record) = cluster.partitions.get(&of) else { return Vec::new() };
    let replicas = record.replicas.iter().map(|place| {
        let replica = place.id();
        let is_leader = partition.leader.is_some_and(|leader| leader.node == replica.node);
        let follower = stats
            .and_then(|stats| stats.replica.followers.iter().find(|follower| follower.replica == replica));
        let end = stats.map(|stats| stats.log_end.0);
        let lag = if is_leader { end.map(|_| 0) } else { follower.map(|follower| follower.lag_records) };
        ReplicaDescription {
            node: replica.node.0,
            shard: cluster.shard_of(place).unwrap_or(0),
            is_leader,
            in_sync: partition.isr.contains(&replica),
            is_live: cluster.is_live(replica.node),
            log_end_offset: end.zip(lag).map(|(end, lag)| end.saturating_sub(lag)),
            lag_records: lag,
            lag_ms: None,
            trouble: trouble_of(cluster, place).map_or_else(String::new, |trouble| trouble.reason),
        }
    });
    replicas.collect()
}

/// Describes this node.
pub fn describe_node(view: &View, stats: &[Option<ShardStats>]) -> DescribeNodeResponse {
    let snapshot = &view.snapshot;
    let shards = snapshot.shards.iter().zip(stats).map(|(address, stats)| ShardDescription {
        shard: address.shard.0,
        core: address.core,
        host: address.host.clone(),
        port: address.port,
        partitions: count(snapshot.partitions_of(address.shard).count()),
        connections: stats.as_ref().map_or(0, |s| s.connections),
        buffer_bytes: stats.as_ref().map_or(0, |s| s.buffer_bytes),
        buffer_bytes_max: stats.as_ref().map_or(0, |s| s.buffer_bytes_max),
        produce_bytes: stats.as_ref().map_or(0, |s| s.produce_bytes),
        fetch_bytes: stats.as_ref().map_or(0, |s| s.fetch_bytes),
        requests: stats.as_ref().map_or(0, |s| s.requests),
    });
    let mut partitions = vec![0_usize; snapshot.data_dirs.len()];
    for (_, _, local) in snapshot.local_partitions() {
        partitions[local.data_dir.index()] += 1;
    }
    let data_dirs = snapshot.data_dirs.iter().zip(&view.data_dirs).zip(partitions);
    let data_dirs = data_dirs.map(|((dir, sizes), partitions)| DataDirDescription {
        path: dir.path.display().to_string(),
        state: match &dir.state {
            DataDirState::Online => Ok(()),
            DataDirState::Full { free_bytes } => Err(Failure::new(
                ErrorCode::DiskFull,
                format!("{free_bytes} bytes are free, less than data.free_bytes_min: produce is refused"),
            )),
            DataDirState::Offline { reason } => {
                Err(Failure::new(ErrorCode::PartitionOffline, reason.as_str()))
            }
        },
        total_bytes: sizes.total_bytes,
        free_bytes: sizes.free_bytes,
        partitions: count(partitions),
    });
    DescribeNodeResponse {
        node: snapshot.node.0,
        cluster_id: snapshot.cluster_id.to_string(),
        software: SOFTWARE.to_owned(),
        started_ms: snapshot.started.0,
        metadata_version: snapshot.version.0,
        shards: shards.collect(),
        data_dirs: data_dirs.collect(),
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).expect("limits keep counts far below 2^32")
}
