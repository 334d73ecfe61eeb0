//! Where metadata is kept: the coordination service of one node alone, and of a cluster.
//!
//! Owns: the two implementations of `corelog_replication::coordination` that run in a server, and their errors.
//! Not here: what is stored (`corelog_replication::cluster`), how a node finds its cluster (`control/join.rs`).

mod format1;
mod keyspace;
mod kv;
mod outbox;
pub mod zookeeper;

use corelog_engine::TopicId;
use corelog_replication::cluster::DataDirId;

pub use kv::{KvStore, NodeLocal};

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
