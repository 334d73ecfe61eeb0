//! The cluster as the coordination service stores it: records, their keys, and the picture they make.

mod codec;
pub mod keys;
mod records;
mod state;
mod suspicion;

pub use codec::{ControllerEpoch, DecodeError, NamedTopic, Stored};
pub use records::{
    ClusterRecord, ControllerRecord, DataDirId, DataDirRecord, Deletion, Endpoint, FaultKind, Incarnation,
    NodeIntent, NodeRecord, PartitionLeader, PartitionRecord, Removal, RemovedLog, ReplicaFault,
    ReplicaRecord, ShardRecord, Suspicion, TopicRecord,
};
pub use state::{Changed, ClusterState, MIN_INSYNC_REPLICAS, Versioned};
