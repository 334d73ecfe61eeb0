//! The cluster as one node knows it: nodes, what is not well, and what will not stay well. Pure.
//!
//! Owns: what counts as unwell. Not here: sizes and offsets, which the shards of the leaders know (`describe.rs`).

use std::collections::BTreeMap;

use corelog_engine::TopicPartition;
use corelog_replication::NodeId;
use corelog_replication::cluster::{
    ClusterState, FaultKind, NodeRecord, PartitionRecord, ReplicaRecord, TopicRecord,
};
use corelog_replication::controller::Standing;
use corelog_schemas::messages::{
    ClusterNode, DescribeClusterRequest, DescribeClusterResponse, NodeState, PartitionHealth, ReplicaTrouble,
};

use super::options::TopicOptions;

/// Topics with one replica, and problems, that are named at most.
const NAMED_MAX: usize = 1_000;

/// What of it is this node's own knowledge.
#[derive(Clone, Copy, Debug)]
pub struct Answering<'a> {
    /// The node that answers.
    pub node: NodeId,
    /// It is cut off from the coordination service.
    pub is_isolated: bool,
    /// Version of its picture.
    pub version: u64,
    /// Its defaults of topic options.
    pub defaults: &'a TopicOptions,
}

/// How one partition is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Nobody leads it.
    pub is_offline: bool,
    /// Fewer in sync than there are replicas.
    pub is_under_replicated: bool,
    /// Fewer in sync than `acks = all` asks for.
    pub is_below_min_insync: bool,
    /// Led by another replica than the preferred one.
    pub is_not_preferred: bool,
}

impl Health {
    fn is_well(self) -> bool {
        !self.is_offline && !self.is_under_replicated && !self.is_below_min_insync
    }
}

/// Describes the cluster.
pub fn describe_cluster(
    cluster: &ClusterState,
    request: &DescribeClusterRequest,
    answering: Answering<'_>,
) -> DescribeClusterResponse {
    let mut counts = [0_u32; 4];
    let mut unhealthy = Vec::new();
    let mut partitions = 0;
    for (id, topic) in &cluster.topics {
        let options = TopicOptions::resolve(answering.defaults, &topic.options)
            .unwrap_or_else(|_| answering.defaults.clone());
        for (of, record) in cluster.partitions_of(*id).take(topic.partitions as usize) {
            partitions += 1;
            let min_insync = options.min_insync_replicas_of(record.replicas.len());
            let health = health_of(cluster, of, record, min_insync);
            let facts = [
                health.is_offline,
                health.is_under_replicated,
                health.is_below_min_insync,
                health.is_not_preferred,
            ];
            for (count, fact) in counts.iter_mut().zip(facts) {
                *count += u32::from(fact);
            }
            if !health.is_well() {
                unhealthy.push((health, partition_health(cluster, of, topic, record, min_insync)));
            }
        }
    }
    unhealthy.sort_by_key(|(health, _)| (!health.is_offline, !health.is_below_min_insync));
    unhealthy.truncate(request.partitions_max as usize);
    let single = cluster.topics.values().filter(|topic| has_one_replica(cluster, topic));
    let [offline, under_replicated, below_min_insync, not_preferred] = counts;
    DescribeClusterResponse {
        cluster_id: cluster.cluster.as_ref().map_or_else(String::new, |record| record.cluster_id.clone()),
        version: answering.version,
        answering_node: answering.node.0,
        is_isolated: answering.is_isolated,
        controller_node: cluster.controller.as_ref().map(|controller| controller.node.0),
        controller_epoch: cluster.controller_epoch.as_ref().map_or(0, |epoch| epoch.0),
        nodes: nodes(cluster),
        topics: count(cluster.topics.len()),
        partitions,
        offline,
        under_replicated,
        below_min_insync,
        not_preferred,
        unhealthy: unhealthy.into_iter().map(|(_, health)| health).collect(),
        topics_with_one_replica: single.map(|topic| topic.name.clone()).take(NAMED_MAX).collect(),
        problems: cluster.problems.iter().map(|(key, why)| format!("{key}: {why}")).take(NAMED_MAX).collect(),
    }
}

/// How a partition is.
pub fn health_of(
    cluster: &ClusterState,
    of: TopicPartition,
    record: &PartitionRecord,
    min_insync: usize,
) -> Health {
    let leader = cluster.leader_location(of);
    let preferred = record.replicas.first().map(|replica| replica.node);
    Health {
        is_offline: leader.is_none(),
        is_under_replicated: record.isr.len() < record.replicas.len(),
        is_below_min_insync: record.isr.len() < min_insync,
        is_not_preferred: leader.is_some_and(|(node, _)| Some(node) != preferred),
    }
}

/// Whether a lost disk takes records of the topic with it.
pub fn has_one_replica(cluster: &ClusterState, topic: &TopicRecord) -> bool {
    cluster.partitions_of(topic.id).any(|(_, partition)| partition.replicas.len() < 2)
}

fn partition_health(
    cluster: &ClusterState,
    of: TopicPartition,
    topic: &TopicRecord,
    record: &PartitionRecord,
    min_insync: usize,
) -> PartitionHealth {
    PartitionHealth {
        topic_id: of.topic.0,
        topic: topic.name.clone(),
        partition: of.partition.0,
        leader_node: cluster.leader_location(of).map(|(node, _)| node.0),
        leader_epoch: record.leader_epoch.0,
        replicas: record.replicas.iter().map(|replica| replica.node.0).collect(),
        in_sync: record.isr.iter().map(|replica| replica.node.0).collect(),
        min_insync_replicas: u16::try_from(min_insync).unwrap_or(u16::MAX),
        troubles: record.replicas.iter().filter_map(|replica| trouble_of(cluster, replica)).collect(),
    }
}

/// What is wrong with a replica, if anything is.
pub fn trouble_of(cluster: &ClusterState, replica: &ReplicaRecord) -> Option<ReplicaTrouble> {
    let trouble = |kind: &str, reason: &str| {
        Some(ReplicaTrouble { node: replica.node.0, kind: kind.to_owned(), reason: reason.to_owned() })
    };
    let standing = Standing::of(cluster, replica);
    if standing.incarnation.is_none() {
        return trouble("gone", "its node does not run");
    }
    if standing.is_dir_missing {
        return trouble("lost", "the data directory that held it is not there");
    }
    let fault = cluster.faults.get(&replica.id())?;
    let kind = match fault.kind {
        FaultKind::Lost => "lost",
        FaultKind::Failed => "failed",
        FaultKind::Unverified => "unverified",
    };
    trouble(kind, &fault.reason)
}

#[derive(Clone, Copy, Default)]
struct Load {
    replicas: u32,
    in_sync: u32,
    leaders: u32,
}

fn nodes(cluster: &ClusterState) -> Vec<ClusterNode> {
    let mut loads: BTreeMap<NodeId, Load> =
        cluster.intents.keys().chain(cluster.nodes.keys()).map(|node| (*node, Load::default())).collect();
    for (of, record) in &cluster.partitions {
        for replica in &record.replicas {
            let load = loads.entry(replica.node).or_default();
            load.replicas += 1;
            load.in_sync += u32::from(record.isr.contains(&replica.id()));
        }
        if let Some((node, _)) = cluster.leader_location(*of) {
            loads.entry(node).or_default().leaders += 1;
        }
    }
    loads.into_iter().map(|(node, load)| describe_node(cluster, node, load)).collect()
}

fn describe_node(cluster: &ClusterState, node: NodeId, load: Load) -> ClusterNode {
    let record: Option<&NodeRecord> = cluster.nodes.get(&node).map(|node| &*node.record);
    let state = match record {
        None => NodeState::Gone,
        Some(_) if cluster.is_suspected(node) => NodeState::Suspected,
        Some(record) if record.is_stopping => NodeState::Stopping,
        Some(_) => NodeState::Live,
    };
    let client = record.and_then(|record| record.shards.first()).map(|shard| &shard.client);
    ClusterNode {
        node: node.0,
        state,
        is_drained: cluster.is_drained(node),
        software: record.map_or_else(String::new, |record| format!("corelog {}", record.program_version)),
        started_ms: record.map_or(0, |record| record.started.0),
        host: client.map_or_else(String::new, |client| client.host.clone()),
        port: client.map_or(0, |client| client.port),
        shards: record.map_or(0, |record| u16::try_from(record.shards.len()).unwrap_or(u16::MAX)),
        data_dirs: record.map_or(0, |record| u16::try_from(record.data_dirs.len()).unwrap_or(u16::MAX)),
        replicas: load.replicas,
        replicas_in_sync: load.in_sync,
        leaders: load.leaders,
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).expect("limits keep counts far below 2^32")
}
