//! What a shard reports of itself when the control thread asks: counters, sizes, and how its replicas are.
//!
//! Owns: the shape of a report. Counters count from the start of the process and never go back.
//! Not here: how they become metrics (`crate::http`) or answers to clients (`wire.rs`).

use corelog_engine::{EngineStats, LeaderEpoch, Offset, TopicPartition};
use corelog_replication::ReplicaId;
use corelog_replication::stream::StreamStats;

use super::snapshot::{ShardId, SnapshotVersion};

/// Upper bounds of the latency buckets, in microseconds: about two a doubling where people look, coarser beyond.
pub const LATENCY_BOUNDS_US: [u64; 16] = [
    50, 100, 200, 500, 1_000, 2_000, 3_000, 5_000, 10_000, 20_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 5_000_000,
];

/// A latency histogram of fixed buckets: no allocation, a few nanoseconds to record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyBuckets {
    /// How many fell into each bucket (not cumulated); the last one is beyond all bounds.
    pub counts: [u64; LATENCY_BOUNDS_US.len() + 1],
    /// Sum of all, in microseconds.
    pub sum_us: u64,
}

impl LatencyBuckets {
    /// Counts one.
    pub fn record(&mut self, us: u64) {
        let bucket = LATENCY_BOUNDS_US.partition_point(|&bound| bound < us);
        self.counts[bucket] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// One partition, as its shard sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionStats {
    /// Which.
    pub partition: TopicPartition,
    /// First offset that can be read.
    pub log_start: Offset,
    /// Exclusive end of what is committed.
    pub high_watermark: Offset,
    /// Offset that the next record gets.
    pub log_end: Offset,
    /// Exclusive end of what has been synced.
    pub durable_end: Offset,
    /// Bytes of its segments.
    pub log_bytes: u64,
    /// How many segments.
    pub segments: u32,
    /// Record bytes appended.
    pub produce_bytes: u64,
    /// Records appended.
    pub produce_records: u64,
    /// Record bytes fetched.
    pub fetch_bytes: u64,
    /// Its part in the partition's leadership, and how far the others are.
    pub replica: ReplicaStats,
    /// Why it takes no appends, or is not open at all.
    pub failure: Option<String>,
}

/// What a replica does now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplicaRole {
    /// Nothing: nobody leads, as far as it knows, or its log is not open.
    #[default]
    Idle,
    /// It leads.
    Leads,
    /// It copies from the leader.
    Follows,
}

/// One replica, and for a leader what it knows of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaStats {
    /// What it does.
    pub role: ReplicaRole,
    /// The newest epoch that it has seen.
    pub leader_epoch: LeaderEpoch,
    /// How many replicas the partition has.
    pub replicas: usize,
    /// Those in sync, as they are stored; empty unless it leads.
    pub isr: Vec<ReplicaId>,
    /// With fewer in sync `acks = all` is refused.
    pub min_insync_replicas: usize,
    /// The followers that copy from it now.
    pub followers: Vec<FollowerStats>,
}

impl ReplicaStats {
    /// Whether it leads with fewer replicas in sync than there are.
    pub fn is_under_replicated(&self) -> bool {
        self.role == ReplicaRole::Leads && self.isr.len() < self.replicas
    }

    /// Whether it leads and refuses `acks = all` for want of replicas in sync.
    pub fn is_under_min_isr(&self) -> bool {
        self.role == ReplicaRole::Leads && self.isr.len() < self.min_insync_replicas
    }
}

/// A follower that copies a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerStats {
    /// Which replica.
    pub replica: ReplicaId,
    /// Records of the leader's log that it does not have durable.
    pub lag_records: u64,
    /// It is fed from the leader's disk, not from memory.
    pub is_catching_up: bool,
}

/// What the replication streams of a shard have carried.
#[derive(Clone, Debug, Default)]
pub struct StreamTotals {
    /// Connections that are open, of both directions.
    pub connections: u32,
    /// Bytes sent to and received from other nodes, heads included.
    pub sent_bytes: u64,
    /// See `sent_bytes`.
    pub received_bytes: u64,
    /// Each connection, scrubbing and repairs.
    pub streams: StreamStats,
}

/// One shard.
#[derive(Clone, Debug)]
pub struct ShardStats {
    /// Which.
    pub shard: ShardId,
    /// Snapshot that it has applied.
    pub applied: SnapshotVersion,
    /// Open connections.
    pub connections: u32,
    /// Connections accepted.
    pub connections_accepted: u64,
    /// Connections turned away at the limit.
    pub connections_refused: u64,
    /// Buffer memory in use.
    pub buffer_bytes: u64,
    /// Its budget.
    pub buffer_bytes_max: u64,
    /// Requests answered.
    pub requests: u64,
    /// Requests answered with an error.
    pub request_errors: u64,
    /// Requests passed on to another shard.
    pub requests_forwarded: u64,
    /// Record bytes that came in.
    pub produce_bytes: u64,
    /// Record bytes that went out.
    pub fetch_bytes: u64,
    /// From the arrival of a produce to its answer.
    pub produce_latency: LatencyBuckets,
    /// From the arrival of a fetch to its answer, the wait for bytes included.
    pub fetch_latency: LatencyBuckets,
    /// What the engines of its data directories have counted, added up.
    pub engine: EngineStats,
    /// Time of a sync.
    pub sync_latency: LatencyBuckets,
    /// Its replication streams.
    pub replication: StreamTotals,
    /// Every partition of which it has a replica.
    pub partitions: Vec<PartitionStats>,
}

impl ShardStats {
    /// A report with nothing counted.
    pub fn new(shard: ShardId) -> Self {
        Self {
            shard,
            applied: SnapshotVersion(0),
            connections: 0,
            connections_accepted: 0,
            connections_refused: 0,
            buffer_bytes: 0,
            buffer_bytes_max: 0,
            requests: 0,
            request_errors: 0,
            requests_forwarded: 0,
            produce_bytes: 0,
            fetch_bytes: 0,
            produce_latency: LatencyBuckets::default(),
            fetch_latency: LatencyBuckets::default(),
            engine: EngineStats::default(),
            sync_latency: LatencyBuckets::default(),
            replication: StreamTotals::default(),
            partitions: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_rise_and_each_belongs_to_its_own_bucket() {
        assert!(LATENCY_BOUNDS_US.windows(2).all(|pair| pair[0] < pair[1]));
        let mut buckets = LatencyBuckets::default();
        for us in [0, 50, 51, 5_000_000, 5_000_001] {
            buckets.record(us);
        }
        assert_eq!((buckets.counts[0], buckets.counts[1]), (2, 1));
        assert_eq!((buckets.counts[15], buckets.counts[16]), (1, 1));
        assert_eq!((buckets.count(), buckets.sum_us), (5, 10_000_102));
    }
}
