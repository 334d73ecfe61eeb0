//! The control thread: metadata, topic administration, and what it tells the shards.
//!
//! Owns: which topics exist, with which ids, options and places. One thread, one writer. Shards never ask the
//! store: they get immutable snapshots and answer with the version that they have applied.
//! Not here: how a shard opens, serves and closes partitions (`crate::shard`).

pub mod admin;
pub mod cleanup;
pub mod data_dir;
pub mod describe;
pub mod messages;
pub mod names;
pub mod options;
pub mod placement;
pub mod snapshot;
pub mod spawn;
pub mod start;
pub mod state;
pub mod stats;
pub mod store;
pub mod thread;
pub mod view;
pub mod waiting;
mod wire;

pub use messages::{
    AdminRequest, MadeLog, PartitionFailure, ShardCommand, ShardLink, ShardReport, link_shards,
};
pub use options::TopicOptions;
pub use snapshot::{
    DataDirIndex, DataDirMetadata, DataDirState, LeaderPlace, LocalReplica, NodeId, NodeMetadata,
    PartitionMetadata, ShardAddress, ShardId, Snapshot, SnapshotVersion, TopicMetadata,
};
pub use spawn::{ControlHandle, ControlThread, Watcher};
pub use start::{Opened, StartError, open};
pub use stats::{LatencyBuckets, PartitionStats, ShardStats};
pub use thread::{Control, Stopped};
pub use view::{Observer, View};
