//! Where metadata is kept: the trait that the control thread writes through, and what it writes.
//!
//! Owns: the stored shapes and the contract. Today there is one implementation, embedded (`redb.rs`); a cluster will
//! keep the same things in ZooKeeper, with the same compare-and-set on versions.
//! Invariant: a write is all or nothing, and durable when it returns; no shard learns of anything before that.
//! Not here: whether a change makes sense (`admin.rs`).

mod embedded;
mod format1;
mod keyspace;
mod kv;
mod outbox;
pub mod zookeeper;

use std::collections::BTreeMap;

use corelog_engine::{LeaderEpoch, LogId, TimestampMs, TopicId};
use serde::{Deserialize, Serialize};

pub use embedded::EmbeddedStore;
pub use kv::{KvStore, NodeLocal};

use super::data_dir::DataDirId;
use super::snapshot::{NodeId, ShardId};

/// Grows by one with each write of one thing; a write names the version that it has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version(pub u64);

/// A partition, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredPartition {
    /// Identity of its log.
    pub log_id: LogId,
    /// Data directory that holds the log; it stays there.
    pub data_dir: DataDirId,
    /// Shard that had it last; the next start may choose another one.
    pub shard: ShardId,
    /// Whether a shard has confirmed that the log exists.
    pub is_confirmed: bool,
}

/// A topic, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTopic {
    /// Its identity.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created: TimestampMs,
    /// Options set on it; others follow the configuration.
    pub options: BTreeMap<String, String>,
    /// By number.
    pub partitions: Vec<StoredPartition>,
    /// For compare-and-set.
    pub version: Version,
}

/// A deleted topic whose directories are not all gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletedTopic {
    /// Its identity.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// Data directories that may still hold some of it.
    pub data_dirs: Vec<DataDirId>,
}

/// What a start finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Random identity of the cluster.
    pub cluster_id: String,
    /// This node.
    pub node: NodeId,
    /// Every topic.
    pub topics: Vec<StoredTopic>,
    /// Deleted topics not yet gone from disk.
    pub deleted: Vec<DeletedTopic>,
    /// Every data directory that ever was of this node, with its last path.
    pub data_dirs: BTreeMap<DataDirId, String>,
}

/// One part of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Stores a topic. `expected`: the version that it replaces, `None` for a new one (whose name must be free).
    /// The store gives it the next version.
    PutTopic {
        /// The topic.
        topic: StoredTopic,
        /// What must be there now.
        expected: Option<Version>,
    },
    /// Takes a topic away and remembers that its directories must go.
    DeleteTopic {
        /// Which.
        id: TopicId,
        /// What must be there now.
        expected: Version,
    },
    /// Some directories of a deleted topic are gone; without any left, it is forgotten.
    ForgetDeleted {
        /// Which.
        id: TopicId,
        /// Data directories that hold nothing of it any more.
        data_dirs: Vec<DataDirId>,
    },
    /// Remembers a data directory.
    PutDataDir {
        /// Its identity.
        id: DataDirId,
        /// Where it is mounted now.
        path: String,
    },
}

/// Why the store could not read or write.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Written by a newer version.
    #[error(
        "the metadata store {path} has format {found}, and this version of corelog knows formats up to {known}; run the newer version that wrote it"
    )]
    NewerFormat {
        /// File of the store.
        path: String,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Somebody else has changed it since we read: read again, decide again.
    #[error("{what} has changed meanwhile; try again")]
    Conflict {
        /// What was to be changed.
        what: String,
    },
    /// What is stored makes no sense.
    #[error("the metadata store {path} is damaged: {problem}; restore it from a copy")]
    Damaged {
        /// File of the store.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// The device or the file system failed.
    #[error("the metadata store {path} failed: {problem}; look at the disk, then restart the node")]
    Failed {
        /// File of the store.
        path: String,
        /// What happened.
        problem: String,
    },
}

/// Joins the many error types of redb: what matters is whether the bytes or the device are at fault.
fn classify(path: &str, error: redb::Error) -> StoreError {
    let path = path.to_owned();
    let problem = error.to_string();
    match error {
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::RepairAborted => StoreError::Damaged { path, problem },
        redb::Error::Io(io) if io.kind() == std::io::ErrorKind::InvalidData => {
            StoreError::Damaged { path, problem: io.to_string() }
        }
        _ => StoreError::Failed { path, problem },
    }
}

/// The store of metadata, as the control thread needs it. One writer per node.
///
/// Calls may block for a device sync; the control thread has nothing better to do.
pub trait Coordination {
    /// Everything that is stored.
    fn load(&self) -> Result<Stored, StoreError>;

    /// Begins a new incarnation of this node: the epoch under which it leads its partitions until it stops, greater
    /// than all before.
    ///
    /// Durability: stored before it returns, so before anything is appended under it.
    fn begin_incarnation(&mut self) -> Result<LeaderEpoch, StoreError>;

    /// Applies all changes, or none. Returns the topics put, with their new versions.
    fn write(&mut self, changes: &[Change]) -> Result<Vec<StoredTopic>, StoreError>;
}
