//! What the streams of a shard are doing, for metrics and `cluster status`.

use corelog_engine::TopicPartition;

use crate::cluster::Incarnation;
use crate::replica::{NodeId, ReplicaId};

/// Everything of one shard.
#[derive(Clone, Debug, Default)]
pub struct StreamStats {
    /// Followers' shards that copy from here.
    pub feeders: Vec<FeederStats>,
    /// Leaders' shards that this one copies from.
    pub fetchers: Vec<FetcherStats>,
    /// Bytes that the scrubber has looked at.
    pub scrubbed_bytes: u64,
    /// Damaged ranges that were found, by readers or the scrubber.
    pub damaged_ranges: u64,
    /// Of these, mended from another replica.
    pub repaired_ranges: u64,
}

/// One connection of a follower's shard.
#[derive(Clone, Debug)]
pub struct FeederStats {
    /// Its node.
    pub node: NodeId,
    /// Its shard.
    pub shard: u16,
    /// Which start of its node.
    pub incarnation: Incarnation,
    /// The partitions that it copies.
    pub streams: Vec<FollowerLag>,
    /// Bytes of batches sent.
    pub sent_bytes: u64,
    /// Of these, read from disk for streams far behind.
    pub caught_up_bytes: u64,
    /// What may be sent now; negative: more was sent.
    pub credit_bytes: i64,
}

/// How far one follower of one partition is.
#[derive(Clone, Copy, Debug)]
pub struct FollowerLag {
    /// Which partition.
    pub partition: TopicPartition,
    /// Which replica.
    pub replica: ReplicaId,
    /// Records that the leader has and the follower has not reported as durable.
    pub lag_records: u64,
    /// It is fed from disk.
    pub is_catching_up: bool,
}

/// One leader's shard that this one copies from.
#[derive(Clone, Debug)]
pub struct FetcherStats {
    /// Its node.
    pub node: NodeId,
    /// Its shard.
    pub shard: u16,
    /// Whether there is a connection.
    pub is_connected: bool,
    /// Partitions that are copied from there.
    pub partitions: usize,
    /// Bytes of batches received.
    pub received_bytes: u64,
    /// Connections made since this shard began to copy from there.
    pub connections: u64,
    /// Partitions that cannot go on now, and why.
    pub problems: Vec<(TopicPartition, String)>,
}
