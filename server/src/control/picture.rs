//! From what the coordination service stores to what the shards of this node are shown.
//!
//! Owns: the published topics and the version of the newest snapshot. Pure but for the node's lists of logs, which it asks.
//! Invariant: a published topic is rebuilt only when something that it is made of has changed; others are shared between
//! snapshots.
//! Invariant: a replica whose place still holds a log that is to be deleted is not shown before that log is gone, so no
//! two logs ever share a directory.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use corelog_engine::{PartitionId, TopicId, TopicPartition};
use corelog_replication::cluster::{
    ClusterState, DataDirId, NodeRecord, PartitionRecord, ReplicaRecord, TopicRecord, Versioned,
};
use corelog_replication::{ReplicaId, Role};
use rustc_hash::{FxHashMap, FxHashSet};

use super::local::Local;
use super::options::TopicOptions;
use super::snapshot::{
    LeaderPlace, LocalReplica, NodeId, NodeMetadata, PartitionMetadata, ShardAddress, ShardId, Snapshot,
    SnapshotHead, SnapshotVersion, TopicMetadata,
};

/// Changes of in-sync replicas of partitions that this node leads, since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IsrChanges {
    /// Members that left.
    pub shrinks: u64,
    /// Members that came.
    pub expands: u64,
}

/// What was published of a topic, and of what it was made.
struct Published {
    record: Rc<TopicRecord>,
    partitions: Vec<Option<Versioned<PartitionRecord>>>,
    metadata: Arc<TopicMetadata>,
}

/// The place of a log that has to go.
type Blocked = BTreeSet<(TopicPartition, DataDirId)>;

/// The newest picture for the shards.
pub struct Picture {
    version: SnapshotVersion,
    defaults: TopicOptions,
    nodes: Vec<NodeMetadata>,
    blocked: Blocked,
    /// Topics whose logs have been put on a list since.
    touched: FxHashSet<TopicId>,
    topics: FxHashMap<TopicId, Published>,
    isr_changes: IsrChanges,
}

impl Picture {
    /// A picture of nothing.
    pub fn new(defaults: TopicOptions) -> Self {
        Self {
            version: SnapshotVersion(0),
            defaults,
            nodes: Vec::new(),
            blocked: Blocked::new(),
            touched: FxHashSet::default(),
            topics: FxHashMap::default(),
            isr_changes: IsrChanges::default(),
        }
    }

    /// Options of topics that do not say.
    pub fn defaults(&self) -> &TopicOptions {
        &self.defaults
    }

    /// What has been seen of the ISR.
    pub fn isr_changes(&self) -> IsrChanges {
        self.isr_changes
    }

    /// Logs of this topic were made.
    pub fn touch(&mut self, topic: TopicId) {
        self.touched.insert(topic);
    }

    /// The next snapshot.
    pub fn next(&mut self, cluster: &ClusterState, local: &mut Local, is_isolated: bool) -> Arc<Snapshot> {
        let nodes: Vec<NodeMetadata> = cluster
            .nodes
            .iter()
            .filter(|(id, _)| cluster.is_live(**id))
            .map(|(_, node)| metadata_of(node))
            .collect();
        if nodes != self.nodes {
            // Who leads where may have changed anywhere.
            self.touched.extend(self.topics.keys());
            self.nodes = nodes;
        }
        let removed = self.block(cluster, local.node);
        self.topics.retain(|id, _| cluster.topics.contains_key(id));
        for (id, record) in &cluster.topics {
            if self.touched.contains(id) || !self.is_current(cluster, *id, record) {
                self.publish(cluster, local, *id, record);
            }
        }
        self.touched.clear();
        self.version = self.version.next();
        let head = SnapshotHead {
            version: self.version,
            cluster_id: local.cluster_id.as_str().into(),
            node: local.node,
            started: local.started,
            incarnation: local.incarnation,
            shards: local.shards.clone(),
            nodes: self.nodes.clone(),
            is_isolated,
            data_dirs: local.data_dir_metadata(),
            removed,
        };
        Arc::new(Snapshot::new(head, self.topics.values().map(|topic| topic.metadata.clone()).collect()))
    }

    /// Notes the places of logs that are to be deleted; returns the logs.
    fn block(&mut self, cluster: &ClusterState, me: NodeId) -> FxHashSet<corelog_engine::LogId> {
        let (mut blocked, mut removed) = (Blocked::new(), FxHashSet::default());
        for (_, removal) in cluster.removals_of(me) {
            for log in &removal.logs {
                let of = TopicPartition { topic: removal.topic, partition: PartitionId(log.partition) };
                blocked.insert((of, log.dir));
                removed.insert(log.log);
            }
        }
        self.touched.extend(blocked.symmetric_difference(&self.blocked).map(|(of, _)| of.topic));
        self.blocked = blocked;
        removed
    }

    fn is_current(&self, cluster: &ClusterState, id: TopicId, record: &Versioned<TopicRecord>) -> bool {
        let Some(published) = self.topics.get(&id) else { return false };
        if !Rc::ptr_eq(&published.record, &record.record) {
            return false;
        }
        let mut stored = cluster.partitions_of(id);
        let is_same =
            |(number, known): (u32, &Option<Versioned<PartitionRecord>>)| match (known, stored.next()) {
                (Some(known), Some((of, now))) => {
                    of.partition.0 == number
                        && Rc::ptr_eq(&known.record, &now.record)
                        && known.version == now.version
                }
                _ => false,
            };
        (0..).zip(&published.partitions).all(is_same)
    }

    fn publish(
        &mut self,
        cluster: &ClusterState,
        local: &mut Local,
        id: TopicId,
        record: &Versioned<TopicRecord>,
    ) {
        // What was valid when it was stored may be out of range for another version: better the defaults than no topic.
        let options = TopicOptions::resolve(&self.defaults, &record.options).unwrap_or_else(|error| {
            tracing::error!(topic = record.name, %error, "stored options are not valid; using the defaults");
            self.defaults.clone()
        });
        let partitions: Vec<_> = (0..record.partitions)
            .map(|number| {
                let of = TopicPartition { topic: id, partition: PartitionId(number) };
                cluster.partitions.get(&of).cloned()
            })
            .collect();
        let published = (0..).zip(&partitions).map(|(number, stored)| {
            let of = TopicPartition { topic: id, partition: PartitionId(number) };
            match stored {
                Some(stored) => self.partition(cluster, local, of, stored, &options),
                None => unknown(of.partition),
            }
        });
        let metadata = TopicMetadata {
            id,
            name: record.name.as_str().into(),
            created: record.created,
            partitions: published.collect(),
            options,
        };
        if let Some(before) = self.topics.get(&id) {
            self.isr_changes.count(&before.metadata, &metadata, local.node);
        }
        let published = Published { record: record.record.clone(), partitions, metadata: Arc::new(metadata) };
        self.topics.insert(id, published);
    }

    fn partition(
        &self,
        cluster: &ClusterState,
        local: &mut Local,
        of: TopicPartition,
        stored: &Versioned<PartitionRecord>,
        options: &TopicOptions,
    ) -> PartitionMetadata {
        let leader =
            cluster.leader_location(of).map(|(node, shard)| LeaderPlace { node, shard: ShardId(shard) });
        let here = stored.on_node(local.node).filter(|here| !self.blocked.contains(&(of, here.dir)));
        PartitionMetadata {
            id: of.partition,
            leader,
            leader_epoch: stored.leader_epoch,
            replicas: stored.replicas.iter().map(ReplicaRecord::id).collect(),
            isr: stored.isr.clone(),
            local: here.and_then(|here| local_replica(cluster, local, of, here, options)),
        }
    }
}

fn local_replica(
    cluster: &ClusterState,
    local: &mut Local,
    of: TopicPartition,
    here: &ReplicaRecord,
    options: &TopicOptions,
) -> Option<LocalReplica> {
    let mut assignment = cluster.assignment(local.node, local.incarnation, of)?;
    assignment.min_insync_replicas = options.min_insync_replicas_of(assignment.replicas.len());
    let leader_endpoint = match assignment.role {
        Role::Follow { leader, shard } => cluster.replication_endpoint(leader.node, shard).cloned(),
        Role::Lead | Role::Wait => None,
    };
    let shards = u16::try_from(local.shards.len()).expect("shards are counted in 16 bits");
    let data_dir = local.data_dir_index(here.dir);
    Some(LocalReplica {
        shard: ShardId(here.shard % shards),
        data_dir,
        log_id: here.log,
        is_new: !local.is_made(data_dir, here.log),
        assignment,
        leader_endpoint,
    })
}

/// A partition whose record is missing or makes no sense.
fn unknown(id: PartitionId) -> PartitionMetadata {
    PartitionMetadata {
        id,
        leader: None,
        leader_epoch: corelog_engine::LeaderEpoch(0),
        replicas: Vec::new(),
        isr: Vec::new(),
        local: None,
    }
}

fn metadata_of(node: &NodeRecord) -> NodeMetadata {
    let shards = node.shards.iter().zip(0..).map(|(shard, number)| ShardAddress {
        node: node.node,
        shard: ShardId(number),
        core: shard.core,
        host: shard.client.host.clone(),
        port: shard.client.port,
        replication: shard.replication.clone(),
    });
    NodeMetadata {
        node: node.node,
        incarnation: node.incarnation,
        is_stopping: node.is_stopping,
        shards: shards.collect(),
    }
}

impl IsrChanges {
    /// Counts what has changed in partitions that `me` leads.
    fn count(&mut self, before: &TopicMetadata, after: &TopicMetadata, me: NodeId) {
        let lacks = |isr: &[ReplicaId], than: &[ReplicaId]| {
            than.iter().filter(|member| !isr.contains(member)).count() as u64
        };
        for (before, after) in before.partitions.iter().zip(&after.partitions) {
            if before.isr != after.isr && after.led_by(me).is_some() {
                self.shrinks += lacks(&after.isr, &before.isr);
                self.expands += lacks(&before.isr, &after.isr);
            }
        }
    }
}
