//! The report that the control thread asks for: everything that sessions, engines and partitions have counted.

use corelog_engine::{EngineStats, TopicPartition};
use corelog_replication::CurrentRole;
use corelog_replication::stream::{FollowerLag, StreamStats};
use rustc_hash::FxHashMap;

use super::registry::{Entry, ShardPartition, State};
use super::state::Shard;
use crate::control::stats::{FollowerStats, ReplicaRole, ReplicaStats, StreamTotals};
use crate::control::{PartitionStats, ShardStats};

/// Counts now.
pub(super) fn report(shard: &Shard) -> ShardStats {
    let connections = shard.sessions.connections();
    let traffic = shard.sessions.traffic();
    let counters = &shard.counters;
    let mut stats = ShardStats::new(shard.id);
    stats.applied = shard.applied.get();
    stats.connections = u32::try_from(connections.open).unwrap_or(u32::MAX);
    stats.connections_accepted = connections.accepted;
    stats.connections_refused = connections.refused;
    stats.buffer_bytes = shard.pool.used_bytes() as u64;
    stats.buffer_bytes_max = shard.pool.bytes_max() as u64;
    stats.requests = traffic.requests;
    stats.request_errors = traffic.failed_requests + counters.produce_failures.get();
    stats.requests_forwarded = counters.forwarded.get();
    stats.produce_bytes = traffic.produce_bytes;
    stats.fetch_bytes = traffic.fetch_bytes;
    stats.produce_latency = *counters.produce_latency.borrow();
    stats.fetch_latency = *counters.fetch_latency.borrow();
    stats.engine =
        shard.engines.iter().flatten().fold(EngineStats::default(), |sum, engine| sum.plus(&engine.stats()));
    stats.sync_latency = *shard.sync_times.borrow();
    stats.replication = replication(shard);
    stats.partitions = partitions(shard, &followers(&stats.replication.streams));
    stats
}

fn replication(shard: &Shard) -> StreamTotals {
    let traffic = shard.host.traffic();
    let (sent_bytes, received_bytes) = traffic.bytes();
    let connections = traffic.connections();
    StreamTotals { connections, sent_bytes, received_bytes, streams: shard.replicas.stats() }
}

/// The followers of each partition that is led here.
type Followers = FxHashMap<TopicPartition, Vec<FollowerStats>>;

fn followers(streams: &StreamStats) -> Followers {
    let mut followers = Followers::default();
    for lag in streams.feeders.iter().flat_map(|feeder| &feeder.streams) {
        let FollowerLag { partition, replica, lag_records, is_catching_up } = *lag;
        let stats = FollowerStats { replica, lag_records, is_catching_up };
        followers.entry(partition).or_default().push(stats);
    }
    followers
}

fn replica_stats(entry: &Entry, partition: &ShardPartition, followers: &Followers) -> ReplicaStats {
    let assignment = entry.told.as_ref().map(|told| &told.assignment);
    let role = match partition.role() {
        CurrentRole::Idle => ReplicaRole::Idle,
        CurrentRole::Leading => ReplicaRole::Leads,
        CurrentRole::Following(_) => ReplicaRole::Follows,
    };
    let leads = role == ReplicaRole::Leads;
    ReplicaStats {
        role,
        leader_epoch: partition.leader_epoch(),
        replicas: assignment.map_or(1, |assignment| assignment.replicas.len()),
        isr: if leads { assignment.map(|a| a.isr.clone()).unwrap_or_default() } else { Vec::new() },
        min_insync_replicas: assignment.map_or(1, |assignment| assignment.min_insync_replicas),
        followers: followers.get(&partition.id()).filter(|_| leads).cloned().unwrap_or_default(),
    }
}

fn partitions(shard: &Shard, followers: &Followers) -> Vec<PartitionStats> {
    let of_one = |(id, entry): (&TopicPartition, &Entry)| match &entry.state {
        State::Open(partition) => of_open(entry, partition, followers),
        State::Failed(trouble) => not_open(*id, trouble.failure.to_string()),
        State::Opening => not_open(*id, "it is being opened".to_owned()),
        State::Leaving => not_open(*id, "it is being closed".to_owned()),
    };
    let mut all: Vec<PartitionStats> =
        shard.registry.with_all(|entries| entries.iter().map(of_one).collect());
    all.sort_by_key(|stats| stats.partition);
    all
}

fn of_open(entry: &Entry, partition: &ShardPartition, followers: &Followers) -> PartitionStats {
    let stats = partition.stats();
    PartitionStats {
        partition: partition.id(),
        log_start: stats.ends.start,
        high_watermark: stats.high_watermark,
        log_end: stats.ends.end,
        durable_end: stats.ends.durable,
        log_bytes: stats.log.bytes,
        segments: u32::try_from(stats.log.segments).unwrap_or(u32::MAX),
        produce_bytes: stats.produce_bytes,
        produce_records: stats.produce_records,
        fetch_bytes: stats.fetch_bytes,
        replica: replica_stats(entry, partition, followers),
        failure: partition.failure().map(|failure| failure.to_string()),
    }
}

fn not_open(partition: corelog_engine::TopicPartition, reason: String) -> PartitionStats {
    PartitionStats {
        partition,
        log_start: Default::default(),
        high_watermark: Default::default(),
        log_end: Default::default(),
        durable_end: Default::default(),
        log_bytes: 0,
        segments: 0,
        produce_bytes: 0,
        produce_records: 0,
        fetch_bytes: 0,
        replica: ReplicaStats::default(),
        failure: Some(reason),
    }
}
