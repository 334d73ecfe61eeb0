//! The log engine of one shard: record batches, segments on direct I/O, recovery.
//!
//! Owns: the bytes of a partition, from append to device and back. Knows nobody above: no sockets, no
//! replication, no clock, no executor. It returns futures and takes `now`; whoever runs it spawns and sleeps.
//! Invariant: everything here belongs to one core. Nothing is `Send`, nothing locks.

pub mod batch;
pub mod buffer;
pub mod checkpoint;
pub mod disk;
pub mod index;
pub mod types;

mod engine;
pub mod log;
pub mod notify;

pub use engine::{Engine, EngineStats};
pub use log::{Log, LogEnds, LogOptions};
pub use types::{LeaderEpoch, LogId, Offset, PartitionId, TimestampMs, TopicId, TopicPartition};
