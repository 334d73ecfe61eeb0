//! What the control thread knows: every topic, the data directories, and the snapshot made of them.
//!
//! Owns: the picture in memory. It changes only after the store has accepted a write, so it never shows what a crash
//! could take back.
//! Invariant: `topics` and `by_name` name the same topics; a published topic is rebuilt only when it has changed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use corelog_engine::{LeaderEpoch, PartitionId, TimestampMs, TopicId, TopicPartition};
use corelog_replication::ReplicaId;
use corelog_replication::cluster::Incarnation;
use corelog_schemas::messages::TopicRef;
use rustc_hash::{FxHashMap, FxHashSet};

use super::data_dir::{DataDir, DataDirId};
use super::options::TopicOptions;
use super::placement::DataDirSpace;
use super::snapshot::{
    DataDirIndex, DataDirMetadata, DataDirState, NodeId, NodeMetadata, PartitionMetadata, ShardAddress,
    Snapshot, SnapshotHead, SnapshotVersion, TopicMetadata,
};
use super::store::{DeletedTopic, StoredTopic};

/// A data directory, as the control thread sees it.
#[derive(Debug)]
pub struct DataDirEntry {
    /// Its path; for one that is configured no more, its last one.
    pub path: PathBuf,
    /// Its identity; unknown if it could not be opened and never was.
    pub id: Option<DataDirId>,
    /// Whether it can be used.
    pub state: DataDirState,
    /// Whether its last stop was clean.
    pub was_clean: bool,
    /// Size of its file system, as last measured.
    pub total_bytes: u64,
    /// What is free of it.
    pub free_bytes: u64,
    /// The directory, locked; `None` while offline from the start.
    pub open: Option<DataDir>,
}

struct Entry {
    stored: StoredTopic,
    published: Arc<TopicMetadata>,
}

/// Everything that snapshots are made of.
pub struct State {
    /// Random identity of the cluster.
    pub cluster_id: String,
    /// This node.
    pub node: NodeId,
    /// Epoch of all partitions that this node leads in this run.
    pub leader_epoch: LeaderEpoch,
    /// When the node was started.
    pub started: TimestampMs,
    /// Shards, by number.
    pub shards: Vec<ShardAddress>,
    /// Data directories, by index.
    pub data_dirs: Vec<DataDirEntry>,
    /// Deleted topics not yet gone from disk.
    pub deleted: Vec<DeletedTopic>,
    /// Defaults of topics.
    pub defaults: TopicOptions,
    version: SnapshotVersion,
    topics: FxHashMap<TopicId, Entry>,
    by_name: BTreeMap<String, TopicId>,
}

/// What a state starts from; its topics follow by [`State::put_topic`].
pub struct StateStart {
    /// Random identity of the cluster.
    pub cluster_id: String,
    /// This node.
    pub node: NodeId,
    /// Epoch of this run.
    pub leader_epoch: LeaderEpoch,
    /// Now.
    pub started: TimestampMs,
    /// Data directories.
    pub data_dirs: Vec<DataDirEntry>,
    /// Deleted topics.
    pub deleted: Vec<DeletedTopic>,
    /// Defaults of topics.
    pub defaults: TopicOptions,
}

impl State {
    /// A state without topics and shards.
    pub fn new(start: StateStart) -> Self {
        let StateStart { cluster_id, node, leader_epoch, started, data_dirs, deleted, defaults } = start;
        Self {
            cluster_id,
            node,
            leader_epoch,
            started,
            shards: Vec::new(),
            data_dirs,
            deleted,
            defaults,
            version: SnapshotVersion(0),
            topics: FxHashMap::default(),
            by_name: BTreeMap::new(),
        }
    }

    /// Takes in a topic that the store has accepted.
    pub fn put_topic(&mut self, stored: StoredTopic) {
        let published = Arc::new(self.publish(&stored));
        self.by_name.insert(stored.name.clone(), stored.id);
        self.topics.insert(stored.id, Entry { stored, published });
    }

    /// Forgets a topic that the store has deleted, but for what is left of it on disk.
    pub fn delete_topic(&mut self, id: TopicId) {
        let Some(Entry { stored, .. }) = self.topics.remove(&id) else { return };
        self.by_name.remove(&stored.name);
        let mut data_dirs: Vec<DataDirId> = stored.partitions.iter().map(|p| p.data_dir).collect();
        data_dirs.sort();
        data_dirs.dedup();
        self.deleted.push(DeletedTopic { id, name: stored.name, data_dirs });
    }

    fn publish(&self, stored: &StoredTopic) -> TopicMetadata {
        // What was valid when it was stored may be out of range for another version: better the defaults than no topic.
        let options = TopicOptions::resolve(&self.defaults, &stored.options).unwrap_or_else(|error| {
            tracing::error!(topic = stored.name, %error, "stored options are not valid; using the defaults");
            self.defaults.clone()
        });
        let partitions = stored.partitions.iter().zip(0..).map(|(partition, number)| {
            let of = TopicPartition { topic: stored.id, partition: PartitionId(number) };
            let me = ReplicaId { node: self.node, log: partition.log_id };
            let dir = self.data_dir_index(partition.data_dir);
            let mut alone = PartitionMetadata::led_alone(of, me, partition.shard, dir, self.leader_epoch);
            if let Some(local) = &mut alone.local {
                local.is_new = !partition.is_confirmed;
            }
            alone
        });
        TopicMetadata {
            id: stored.id,
            name: stored.name.as_str().into(),
            created: stored.created,
            options,
            partitions: partitions.collect(),
        }
    }

    /// Panics if no entry has the id: the start makes one for every directory that a partition names.
    fn data_dir_index(&self, id: DataDirId) -> DataDirIndex {
        let found = self.data_dirs.iter().position(|dir| dir.id == Some(id));
        let index = found.unwrap_or_else(|| panic!("data directory {id} has no entry"));
        DataDirIndex(u16::try_from(index).expect("data directories are counted in 16 bits"))
    }

    /// The topic of that id.
    pub fn topic(&self, id: TopicId) -> Option<&StoredTopic> {
        self.topics.get(&id).map(|entry| &entry.stored)
    }

    /// The topic that a client means.
    pub fn find(&self, topic: &TopicRef) -> Option<&StoredTopic> {
        match topic {
            TopicRef::Id(id) => self.topic(TopicId(*id)),
            TopicRef::Name(name) => self.topic(*self.by_name.get(&**name)?),
        }
    }

    /// Every topic.
    pub fn topics(&self) -> impl Iterator<Item = &StoredTopic> {
        self.topics.values().map(|entry| &entry.stored)
    }

    /// Partitions of each shard.
    pub fn shard_loads(&self) -> Vec<usize> {
        let mut loads = vec![0; self.shards.len()];
        for partition in self.topics().flat_map(|topic| &topic.partitions) {
            loads[partition.shard.index()] += 1;
        }
        loads
    }

    /// Partitions of all topics.
    pub fn partition_count(&self) -> usize {
        self.topics().map(|topic| topic.partitions.len()).sum()
    }

    /// Data directories that take new partitions: online, not full.
    pub fn spaces(&self) -> Vec<DataDirSpace> {
        let mut counts: FxHashMap<DataDirId, usize> = FxHashMap::default();
        for partition in self.topics().flat_map(|topic| &topic.partitions) {
            *counts.entry(partition.data_dir).or_default() += 1;
        }
        let usable = self.data_dirs.iter().zip(0..).filter(|(dir, _)| dir.state == DataDirState::Online);
        usable
            .map(|(dir, index)| DataDirSpace {
                data_dir: DataDirIndex(index),
                free_bytes: dir.free_bytes,
                partitions: dir.id.and_then(|id| counts.get(&id).copied()).unwrap_or(0),
            })
            .collect()
    }

    /// The next snapshot.
    pub fn next_snapshot(&mut self) -> Arc<Snapshot> {
        self.version = self.version.next();
        let data_dirs = self.data_dirs.iter().map(|dir| DataDirMetadata {
            path: dir.path.clone(),
            state: dir.state.clone(),
            was_clean: dir.was_clean,
        });
        let head = SnapshotHead {
            version: self.version,
            cluster_id: self.cluster_id.as_str().into(),
            node: self.node,
            started: self.started,
            incarnation: Incarnation(u64::from(self.leader_epoch.0)),
            nodes: vec![NodeMetadata {
                node: self.node,
                incarnation: Incarnation(u64::from(self.leader_epoch.0)),
                is_stopping: false,
                shards: self.shards.clone(),
            }],
            shards: self.shards.clone(),
            is_isolated: false,
            data_dirs: data_dirs.collect(),
            removed: FxHashSet::default(),
        };
        Arc::new(Snapshot::new(head, self.topics.values().map(|entry| entry.published.clone()).collect()))
    }
}
