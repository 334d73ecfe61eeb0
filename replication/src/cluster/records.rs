//! What the coordination service stores about the cluster, as typed records.
//!
//! Owns: the shapes. `keys.rs` says under which key each lies and how it is encoded (JSON, so that an operator can
//! read it with the service's own tools), `state.rs` joins them into one picture.
//! Evolution: records gain optional fields; fields that this version does not know are ignored.

use std::collections::BTreeMap;

use corelog_engine::{LeaderEpoch, LogId, TimestampMs, TopicId};

use crate::replica::{NodeId, ReplicaId};

/// Random number of one start of a node: a restarted process is somebody else and never resumes its leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

/// Random identity of a data directory, made with it: paths change, the id stays; a new disk has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DataDirId(pub u128);

/// The cluster itself: made once, by its first node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterRecord {
    /// Its random identity: nodes and data directories of another cluster are refused.
    pub cluster_id: String,
    /// Number of the format of everything that is stored beside it.
    pub format: u32,
}

/// Where something listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Name or address, as peers and clients reach it.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// One shard of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardRecord {
    /// CPU that it is pinned to.
    pub core: u16,
    /// For clients.
    pub client: Endpoint,
    /// For the other nodes' replication streams.
    pub replication: Endpoint,
}

/// One data directory that a node can use now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDirRecord {
    /// Its identity.
    pub id: DataDirId,
    /// Bytes free when the node registered.
    pub free_bytes: u64,
}

/// A node that runs (ephemeral: gone with its session).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its number.
    pub node: NodeId,
    /// This start of it.
    pub incarnation: Incarnation,
    /// When it was started.
    pub started: TimestampMs,
    /// Version of the program.
    pub program_version: String,
    /// Failure domain, empty if none is configured (a seam: placement does not look at it yet).
    pub rack: String,
    /// Its shards, by number.
    pub shards: Vec<ShardRecord>,
    /// Its usable data directories.
    pub data_dirs: Vec<DataDirRecord>,
    /// It is about to stop: leadership leaves first.
    pub is_stopping: bool,
    /// Where its metrics and health are served, if they are.
    pub http: Option<Endpoint>,
}

/// What an operator has asked of a node (persistent; also the memory that the node exists).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIntent {
    /// Its number.
    pub node: NodeId,
    /// Leads nothing if another in-sync replica can, until this is taken back (drain).
    pub is_drained: bool,
}

/// Who decides (ephemeral). Its epoch stands beside, persistent, and each of its commits checks that version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerRecord {
    /// Which node.
    pub node: NodeId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// Number of this term.
    pub epoch: u64,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicRecord {
    /// Its identity.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created: TimestampMs,
    /// Number of partitions; each has a [`PartitionRecord`].
    pub partitions: u32,
    /// Replicas wanted of each partition.
    pub replicas: u16,
    /// Whether Corelog itself made it.
    pub is_internal: bool,
    /// Options set on it; others follow the configuration.
    pub options: BTreeMap<String, String>,
}

/// One replica's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaRecord {
    /// Its node.
    pub node: NodeId,
    /// Its log. Chosen with the place; a node makes the log once, and says so if it finds it lost later.
    pub log: LogId,
    /// The data directory that holds the log.
    pub dir: DataDirId,
    /// Its shard, modulo the number of shards that the node has now.
    pub shard: u16,
}

impl ReplicaRecord {
    /// Its identity.
    pub fn id(&self) -> ReplicaId {
        ReplicaId { node: self.node, log: self.log }
    }
}

/// Who leads a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionLeader {
    /// Which replica.
    pub replica: ReplicaId,
    /// Which start of its node: a later one leads only in a later epoch.
    pub incarnation: Incarnation,
}

/// The state of one partition. Changed by compare-and-set alone: by the controller (with a check of its epoch) and,
/// as to the ISR, by the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionRecord {
    /// All replicas, preferred leader first; never two of one node.
    pub replicas: Vec<ReplicaRecord>,
    /// Those in sync, each of them one of `replicas`. Never empty: the last one stays even if it is lost, because it
    /// is the only one that had everything.
    pub isr: Vec<ReplicaId>,
    /// Who leads; `None`: nobody can.
    pub leader: Option<PartitionLeader>,
    /// Of the newest leadership, whether it lasts or not.
    pub leader_epoch: LeaderEpoch,
    /// The epoch that began with an unclean election, if there was one: consumers are told of the truncation.
    pub unclean_epoch: Option<LeaderEpoch>,
}

impl PartitionRecord {
    /// What always holds of it; the text says what does not. Each writer keeps it, each reader refuses the rest.
    pub fn check(&self) -> Result<(), String> {
        if self.replicas.is_empty() {
            return Err("a partition has at least one replica".to_owned());
        }
        if self.isr.is_empty() {
            return Err("the ISR is never empty".to_owned());
        }
        for (at, replica) in self.replicas.iter().enumerate() {
            if self.replicas[..at].iter().any(|other| other.node == replica.node) {
                return Err(format!("two replicas on node {}", replica.node));
            }
        }
        for (at, member) in self.isr.iter().enumerate() {
            if self.isr[..at].contains(member) {
                return Err(format!("{member} is in the ISR twice"));
            }
            if self.replica(*member).is_none() {
                return Err(format!("{member} is in the ISR but is no replica"));
            }
        }
        match self.leader {
            Some(leader) if !self.isr.contains(&leader.replica) => {
                Err(format!("the leader {} is not in the ISR", leader.replica))
            }
            _ => Ok(()),
        }
    }

    /// The place of a replica.
    pub fn replica(&self, id: ReplicaId) -> Option<&ReplicaRecord> {
        self.replicas.iter().find(|replica| replica.id() == id)
    }

    /// The replica that a node has.
    pub fn on_node(&self, node: NodeId) -> Option<&ReplicaRecord> {
        self.replicas.iter().find(|replica| replica.node == node)
    }
}

/// Why a replica must not lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// Its log was made and is not there any more: it counts as never having been.
    Lost,
    /// A write or sync failed, or the log cannot be opened: out of service until the node restarts.
    Failed,
    /// It may lack what it acked (power loss with `flush = interval`, damage with sound batches behind): not
    /// electable until it has caught up from another one.
    Unverified,
}

/// What a node says about one of its replicas (ephemeral).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaFault {
    /// Which replica.
    pub replica: ReplicaId,
    /// How bad.
    pub kind: FaultKind,
    /// For a person.
    pub reason: String,
}

/// What one node says about the process of another (ephemeral): it refuses connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspicion {
    /// Who says so.
    pub by: NodeId,
    /// About which node.
    pub node: NodeId,
    /// About which start of it; says nothing about a later one.
    pub incarnation: Incarnation,
}

/// A topic that goes: its partitions have to follow, and their logs (persistent; the controller takes it away when the
/// last partition is gone).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// The topic.
    pub topic: TopicId,
    /// Its name, for the directories.
    pub name: String,
}

/// Logs that a node has to delete (persistent; the node takes it away when they are gone).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Where they are.
    pub node: NodeId,
    /// Their topic.
    pub topic: TopicId,
    /// Its name, for the directory.
    pub name: String,
    /// Partition number, log and data directory of each.
    pub logs: Vec<RemovedLog>,
}

/// One log to delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemovedLog {
    /// Partition number.
    pub partition: u32,
    /// Its log.
    pub log: LogId,
    /// Its data directory.
    pub dir: DataDirId,
}
