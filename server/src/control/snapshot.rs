//! What a shard knows of the world: one immutable picture of topics, partitions, shards and data directories.
//!
//! Owns: the shape of the picture and its look-ups. Made by the control thread, shared by `Arc`, never changed.
//! Invariant: versions grow by each change; a shard that has applied version n has acted on all of 1..=n.
//! Invariant: topics are sorted by name; partition i of a topic stands at index i; shard i stands at index i; nodes are
//! sorted by number.
//! Invariant: a leadership that the picture shows is stored: a shard may act on it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use corelog_engine::{LeaderEpoch, LogId, PartitionId, TimestampMs, TopicId, TopicPartition};
pub use corelog_replication::NodeId;
use corelog_replication::cluster::{Endpoint, Incarnation};
use corelog_replication::coordination::Version;
use corelog_replication::{Assignment, ReplicaId, Role};
use rustc_hash::{FxHashMap, FxHashSet};

use super::options::TopicOptions;
use crate::config::Config;

/// Number of a shard in its node, from 0. Nothing on disk that outlives a start depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The place of this shard in a list of all shards.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Place of a data directory in [`Snapshot::data_dirs`], from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataDirIndex(pub u16);

impl DataDirIndex {
    /// As an index.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Number of a snapshot since this start of the node; the first is 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotVersion(pub u64);

impl SnapshotVersion {
    /// The next one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for SnapshotVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a shard listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardAddress {
    /// Its node.
    pub node: NodeId,
    /// Its number in the node.
    pub shard: ShardId,
    /// CPU that it is pinned to.
    pub core: u16,
    /// Advertised name or address for clients.
    pub host: String,
    /// Advertised TCP port for clients.
    pub port: u16,
    /// Advertised to the other nodes' replication streams; port 0 on a node without any.
    pub replication: Endpoint,
}

/// A node that runs, as everybody sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeMetadata {
    /// Its number.
    pub node: NodeId,
    /// This start of it.
    pub incarnation: Incarnation,
    /// It is about to stop.
    pub is_stopping: bool,
    /// Its shards, by number.
    pub shards: Vec<ShardAddress>,
}

/// Whether a data directory can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataDirState {
    /// Reads and appends.
    Online,
    /// Below the free-space watermark: produce is refused with `DiskFull`; reads and deletes go on.
    Full {
        /// What was free when it was last measured.
        free_bytes: u64,
    },
    /// Missing, unreadable, of another node, or failed: its partitions are offline until the next start.
    Offline {
        /// What happened, for a person.
        reason: String,
    },
}

/// One data directory (usually one disk).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDirMetadata {
    /// Its path.
    pub path: PathBuf,
    /// Whether it can be used now.
    pub state: DataDirState,
    /// Whether its last stop was clean: recovery may then skip the scan.
    pub was_clean: bool,
}

/// Where the leader of a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderPlace {
    /// Its node.
    pub node: NodeId,
    /// Its shard there.
    pub shard: ShardId,
}

/// The replica of a partition that this node holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalReplica {
    /// Shard that owns it during this run of the node.
    pub shard: ShardId,
    /// Data directory that holds its log.
    pub data_dir: DataDirIndex,
    /// Identity of the log; a new log is made with this id.
    pub log_id: LogId,
    /// It is not yet on the durable list of logs made. `true`: make the log if its directory is missing (or open what
    /// a crash has left), report [`super::ShardReport::LogsMade`], and take no role before a snapshot says `false`.
    /// `false`: a missing directory is a loss, to be reported as a fault and never replaced by an empty log.
    pub is_new: bool,
    /// What it has to do.
    pub assignment: Assignment,
    /// Where the leader's shard accepts replication streams; `None` unless the role is to follow.
    pub leader_endpoint: Option<Endpoint>,
}

/// One partition and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionMetadata {
    /// Its number in the topic.
    pub id: PartitionId,
    /// Who leads it; `None`: nobody, or a node that does not run.
    pub leader: Option<LeaderPlace>,
    /// Of the newest leadership: stored durably before the snapshot is published.
    pub leader_epoch: LeaderEpoch,
    /// All replicas, preferred leader first.
    pub replicas: Vec<ReplicaId>,
    /// Those in sync, as stored.
    pub isr: Vec<ReplicaId>,
    /// The replica of this node, if it has one.
    pub local: Option<LocalReplica>,
}

impl PartitionMetadata {
    /// A partition with one replica, which this node holds and leads.
    pub fn led_alone(
        partition: TopicPartition,
        me: ReplicaId,
        shard: ShardId,
        data_dir: DataDirIndex,
        leader_epoch: LeaderEpoch,
    ) -> Self {
        let assignment = Assignment {
            partition,
            me,
            role: Role::Lead,
            leader_epoch,
            replicas: vec![me],
            isr: vec![me],
            version: Version(0),
            min_insync_replicas: 1,
        };
        Self {
            id: partition.partition,
            leader: Some(LeaderPlace { node: me.node, shard }),
            leader_epoch,
            replicas: vec![me],
            isr: vec![me],
            local: Some(LocalReplica {
                shard,
                data_dir,
                log_id: me.log,
                is_new: false,
                assignment,
                leader_endpoint: None,
            }),
        }
    }

    /// The shard of `node` that leads it; `None` if another node does, or nobody.
    pub fn led_by(&self, node: NodeId) -> Option<ShardId> {
        self.leader.filter(|leader| leader.node == node).map(|leader| leader.shard)
    }
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicMetadata {
    /// Its identity: a topic deleted and created again is another one.
    pub id: TopicId,
    /// Its name.
    pub name: Box<str>,
    /// When it was created.
    pub created: TimestampMs,
    /// Its options, with defaults filled in.
    pub options: TopicOptions,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionMetadata>,
}

impl TopicMetadata {
    /// The partition of that number.
    pub fn partition(&self, id: PartitionId) -> Option<&PartitionMetadata> {
        self.partitions.get(usize::try_from(id.0).ok()?)
    }

    /// Directory of this topic below `topics/` of a data directory.
    pub fn directory_name(&self) -> String {
        topic_directory_name(&self.name, self.id)
    }
}

/// `NAME-XXXXXXXX`: the name, and the first 8 hex digits of the id, so that a topic created again under the same
/// name never meets what is left of the old one.
pub fn topic_directory_name(name: &str, id: TopicId) -> String {
    format!("{name}-{:08x}", id.0 >> 96)
}

/// One version of everything.
#[derive(Debug)]
pub struct Snapshot {
    /// Which version.
    pub version: SnapshotVersion,
    /// Random identity of the cluster, made with the metadata store.
    pub cluster_id: Box<str>,
    /// This node.
    pub node: NodeId,
    /// When this node was started.
    pub started: TimestampMs,
    /// This start of this node.
    pub incarnation: Incarnation,
    /// All shards of this node, by number.
    pub shards: Vec<ShardAddress>,
    /// Every node that runs, this one too.
    pub nodes: Vec<NodeMetadata>,
    /// Cut off from the coordination service for longer than its session: acks=1, acks=0 and reads are refused.
    pub is_isolated: bool,
    /// Data directories of this node, as configured.
    pub data_dirs: Vec<DataDirMetadata>,
    /// Logs of this node that are to be deleted: a shard that has one open lets go of it and need not sync it. The
    /// control thread removes the directory when every shard has applied the snapshot.
    pub removed: FxHashSet<LogId>,
    topics: Vec<Arc<TopicMetadata>>,
    by_id: FxHashMap<TopicId, usize>,
}

/// Everything of a snapshot but its topics.
#[derive(Clone, Debug)]
pub struct SnapshotHead {
    /// Which version.
    pub version: SnapshotVersion,
    /// Random identity of the cluster.
    pub cluster_id: Box<str>,
    /// This node.
    pub node: NodeId,
    /// When this node was started.
    pub started: TimestampMs,
    /// This start of this node.
    pub incarnation: Incarnation,
    /// All shards of this node, by number.
    pub shards: Vec<ShardAddress>,
    /// Every node that runs, this one too.
    pub nodes: Vec<NodeMetadata>,
    /// Cut off from the coordination service for longer than its session: acks=1, acks=0 and reads are refused.
    pub is_isolated: bool,
    /// Data directories of this node, as configured.
    pub data_dirs: Vec<DataDirMetadata>,
    /// Logs of this node that are to be deleted: a shard that has one open lets go of it and need not sync it. The
    /// control thread removes the directory when every shard has applied the snapshot.
    pub removed: FxHashSet<LogId>,
}

impl Snapshot {
    /// Joins a head and topics, in any order.
    ///
    /// Panics if two topics share a name or an id: the store allows neither.
    pub fn new(head: SnapshotHead, mut topics: Vec<Arc<TopicMetadata>>) -> Self {
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(topics.windows(2).all(|pair| pair[0].name != pair[1].name), "two topics of one name");
        let by_id: FxHashMap<_, _> =
            topics.iter().enumerate().map(|(index, topic)| (topic.id, index)).collect();
        assert_eq!(by_id.len(), topics.len(), "two topics of one id");
        let SnapshotHead { version, cluster_id, node, started, incarnation, shards, .. } = head;
        let SnapshotHead { nodes, is_isolated, data_dirs, removed, .. } = head;
        Self {
            version,
            cluster_id,
            node,
            started,
            incarnation,
            shards,
            nodes,
            is_isolated,
            data_dirs,
            removed,
            topics,
            by_id,
        }
    }

    /// The picture of a node that has not found its cluster yet. No shard ever gets it.
    pub fn empty(config: &Config, started: TimestampMs, shards: Vec<ShardAddress>) -> Self {
        let head = SnapshotHead {
            version: SnapshotVersion(0),
            cluster_id: "".into(),
            node: config.node.id,
            started,
            incarnation: Incarnation(0),
            shards,
            nodes: Vec::new(),
            is_isolated: false,
            data_dirs: Vec::new(),
            removed: FxHashSet::default(),
        };
        Self::new(head, Vec::new())
    }

    /// All topics, sorted by name.
    pub fn topics(&self) -> &[Arc<TopicMetadata>] {
        &self.topics
    }

    /// The topic of that id.
    pub fn topic_by_id(&self, id: TopicId) -> Option<&Arc<TopicMetadata>> {
        self.by_id.get(&id).map(|&index| &self.topics[index])
    }

    /// The topic that has that name now.
    pub fn topic_by_name(&self, name: &str) -> Option<&Arc<TopicMetadata>> {
        let found = self.topics.binary_search_by(|topic| (*topic.name).cmp(name)).ok()?;
        Some(&self.topics[found])
    }

    /// The partition, if its topic exists and has so many.
    pub fn partition(&self, of: TopicPartition) -> Option<&PartitionMetadata> {
        self.topic_by_id(of.topic)?.partition(of.partition)
    }

    /// Every partition of which `shard` holds a replica.
    pub fn partitions_of(
        &self,
        shard: ShardId,
    ) -> impl Iterator<Item = (&Arc<TopicMetadata>, &PartitionMetadata, &LocalReplica)> {
        self.local_partitions().filter(move |(_, _, local)| local.shard == shard)
    }

    /// Every partition of which this node holds a replica.
    pub fn local_partitions(
        &self,
    ) -> impl Iterator<Item = (&Arc<TopicMetadata>, &PartitionMetadata, &LocalReplica)> {
        self.topics
            .iter()
            .flat_map(|topic| topic.partitions.iter().map(move |partition| (topic, partition)))
            .filter_map(|(topic, partition)| Some((topic, partition, partition.local.as_ref()?)))
    }

    /// The node, if it runs.
    pub fn node(&self, id: NodeId) -> Option<&NodeMetadata> {
        let found = self.nodes.binary_search_by_key(&id, |node| node.node).ok()?;
        Some(&self.nodes[found])
    }

    /// The data directory that holds a partition.
    pub fn data_dir(&self, index: DataDirIndex) -> &DataDirMetadata {
        &self.data_dirs[index.index()]
    }

    /// Directory of the log of a replica here: `DATA_DIR/topics/NAME-XXXXXXXX/PARTITION`.
    pub fn log_directory(
        &self,
        topic: &TopicMetadata,
        partition: PartitionId,
        local: &LocalReplica,
    ) -> PathBuf {
        log_directory(&self.data_dir(local.data_dir).path, topic, partition)
    }
}

/// Directory of the log of a partition below a data directory.
pub fn log_directory(data_dir: &Path, topic: &TopicMetadata, partition: PartitionId) -> PathBuf {
    data_dir.join("topics").join(topic.directory_name()).join(partition.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(name: &str, id: u128, shards: &[u16]) -> Arc<TopicMetadata> {
        let partitions = shards.iter().zip(0..).map(|(&shard, number)| {
            let partition = TopicPartition { topic: TopicId(id), partition: PartitionId(number) };
            let me = ReplicaId { node: NodeId(1), log: LogId(id + u128::from(number)) };
            PartitionMetadata::led_alone(partition, me, ShardId(shard), DataDirIndex(0), LeaderEpoch(1))
        });
        Arc::new(TopicMetadata {
            id: TopicId(id),
            name: name.into(),
            created: TimestampMs(0),
            options: TopicOptions::default(),
            partitions: partitions.collect(),
        })
    }

    fn snapshot(topics: Vec<Arc<TopicMetadata>>) -> Snapshot {
        let data_dirs =
            vec![DataDirMetadata { path: "/d".into(), state: DataDirState::Online, was_clean: true }];
        let head = SnapshotHead {
            version: SnapshotVersion(1),
            cluster_id: "c".into(),
            node: NodeId(1),
            started: TimestampMs(0),
            incarnation: Incarnation(1),
            shards: Vec::new(),
            nodes: Vec::new(),
            is_isolated: false,
            data_dirs,
            removed: FxHashSet::default(),
        };
        Snapshot::new(head, topics)
    }

    #[test]
    fn topics_are_found_by_name_and_by_id() {
        let all = snapshot(vec![topic("b", 2, &[0]), topic("a", 9, &[1, 0]), topic("c", 1, &[1])]);
        for (name, id) in [("a", 9), ("b", 2), ("c", 1)] {
            assert_eq!(all.topic_by_name(name).map(|t| t.id), Some(TopicId(id)));
            assert_eq!(all.topic_by_id(TopicId(id)).map(|t| &*t.name), Some(name));
        }
        assert!(all.topic_by_name("d").is_none());
        assert!(all.topic_by_id(TopicId(3)).is_none());
        let of_1: Vec<_> = all.partitions_of(ShardId(1)).map(|(t, p, _)| (&*t.name, p.id.0)).collect();
        assert_eq!(of_1, [("a", 0), ("c", 0)]);
    }

    #[test]
    fn a_log_directory_names_topic_id_and_partition() {
        let id = 0x1234_5678_9abc_def0_0000_0000_0000_0001;
        let all = snapshot(vec![topic("orders", id, &[0, 0])]);
        let orders = &all.topics()[0];
        let partition = &orders.partitions[1];
        let local = partition.local.as_ref().expect("it is here");
        let directory = all.log_directory(orders, partition.id, local);
        assert_eq!(directory, Path::new("/d/topics/orders-12345678/1"));
    }
}
