//! The control thread: the node's part in its cluster, administration, and what it tells the shards.
//!
//! Owns: the way from the coordination service (by the agent of `corelog_replication`) to the shards of this node and back;
//! a node alone takes the same way, with a store of its own. Shards never ask the store: they get immutable snapshots and
//! answer with the version that they have applied.
//! Not here: how a shard opens, serves and closes partitions (`crate::shard`).

pub mod admin;
mod agent_ends;
pub mod cleanup;
mod cluster_requests;
pub mod data_dir;
pub mod describe;
pub mod describe_cluster;
mod grow;
pub mod join;
pub mod known_dirs;
pub mod local;
pub mod log_list;
mod logs;
pub mod messages;
pub mod names;
pub mod open;
pub mod options;
pub mod picture;
mod requests;
pub mod snapshot;
pub mod spawn;
pub mod start;
pub mod stats;
mod stop;
pub mod store;
pub mod thread;
pub mod view;
mod waiting;
mod wire;

pub use messages::{
    AdminRequest, MadeLog, PartitionFailure, ShardCommand, ShardLink, ShardReport, link_shards,
};
pub use options::TopicOptions;
pub use snapshot::{
    DataDirIndex, DataDirMetadata, DataDirState, LeaderPlace, LocalReplica, NodeId, NodeMetadata,
    PartitionMetadata, ShardAddress, ShardId, Snapshot, SnapshotVersion, TopicMetadata,
};
pub use spawn::{ControlError, ControlHandle, ControlThread, Watcher};
pub use start::{Found, StartError, look};
pub use stats::{LatencyBuckets, PartitionStats, ShardStats};
pub use thread::{Control, Stopped};
pub use view::{Observer, View};
