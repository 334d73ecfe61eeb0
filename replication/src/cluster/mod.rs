//! The cluster as the coordination service stores it: records, their keys, and the picture they make.

mod records;

pub use records::{
    ControllerRecord, DataDirId, DataDirRecord, Endpoint, FaultKind, Incarnation, NodeIntent, NodeRecord,
    PartitionLeader, PartitionRecord, Removal, RemovedLog, ReplicaFault, ReplicaRecord, ShardRecord,
    Suspicion, TopicRecord,
};
