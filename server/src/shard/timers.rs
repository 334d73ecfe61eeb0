//! What a shard does by the clock: time-outs, flush intervals, retention, and the look after failed logs.
//!
//! Owns: how often. An idle shard wakes about once a second.
//! Not here: what is due (`net` for connections, the engine for flush and retention).

use std::collections::HashSet;
use std::time::Duration;

use corelog_engine::disk::Disk;
use corelog_engine::log::{FlushPolicy, LogFailure};
use corelog_replication::cluster::{FaultKind, ReplicaFault};
use glommio::timer::sleep;

use super::failures;
use super::state::{Shard, SharedShard};
use crate::control::{DataDirIndex, PartitionFailure, ShardReport};

/// Grain of all time-outs.
const TICK: Duration = Duration::from_secs(1);

/// Grain of all times of replication; the shortest of them is about a second.
const STREAMS_TICK: Duration = Duration::from_millis(100);

/// How often segments are looked at for retention: much finer than any sensible `retention_ms`.
const RETENTION_INTERVAL: Duration = Duration::from_secs(30);

/// How often is looked which partitions have enough new records to store again what is derived from them.
const DERIVED_INTERVAL: Duration = Duration::from_secs(10);

/// How often logs that took no append give memory back.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);

/// Bounds of the pace at which flush intervals are looked at; in between a quarter of the shortest interval.
const FLUSH_TICK_MS: std::ops::RangeInclusive<u64> = 10..=1_000;

/// Closes overdue connections, answers overdue produces, reports failed logs.
pub(super) async fn tick(shard: SharedShard) {
    let mut reported = HashSet::new();
    let mut failed_dirs = HashSet::new();
    loop {
        sleep(TICK).await;
        shard.sessions.expire_overdue(shard.clock.elapsed_ms());
        for partition in shard.registry.open() {
            partition.wake_producers();
            let Some(failure @ LogFailure::Poisoned { .. }) = partition.failure() else { continue };
            if !reported.insert(partition.id()) {
                continue;
            }
            let (replica, reason) = (partition.me(), failure.to_string());
            shard.report(ShardReport::Fault(ReplicaFault { replica, kind: FaultKind::Failed, reason })).await;
            let failure = PartitionFailure { partition: partition.id(), failure: failures::of_log(&failure) };
            let data_dir = shard.registry.with(partition.id(), |entry| entry.map(|entry| entry.data_dir));
            shard.report(ShardReport::PartitionFailed(failure)).await;
            if let Some(data_dir) = data_dir
                && !failed_dirs.contains(&data_dir)
                && let Some(reason) = probe(&shard, data_dir).await
            {
                failed_dirs.insert(data_dir);
                shard.report(ShardReport::DataDirFailed { data_dir, reason }).await;
            }
        }
    }
}

/// Looks whether a data directory still answers; says how it fails if it does.
async fn probe(shard: &Shard, data_dir: DataDirIndex) -> Option<String> {
    let path = shard.snapshot.borrow().data_dir(data_dir).path.clone();
    let engine = shard.engines.get(data_dir.index())?.as_ref()?;
    let written = engine.disk().replace_file(&path.join("probe"), b"corelog".to_vec()).await;
    let removed = match written {
        Ok(()) => engine.disk().remove_file(&path.join("probe")).await,
        Err(error) => Err(error),
    };
    removed.err().map(|error| format!("{} does not take a small file: {error}", path.display()))
}

/// Looks at the replication streams: who is in sync, who is silent, who is to be tried again.
pub(super) async fn streams(shard: SharedShard) {
    loop {
        sleep(STREAMS_TICK).await;
        shard.replicas.tick();
    }
}

/// Starts the syncs that the flush intervals of topics ask for.
pub(super) async fn flush(shard: SharedShard) {
    loop {
        let mut shortest_ms: Option<u64> = None;
        let now = shard.clock.now();
        for partition in shard.registry.open() {
            if let FlushPolicy::Interval { ms_max, .. } = partition.log().options().flush {
                shortest_ms = Some(shortest_ms.map_or(ms_max, |shortest| shortest.min(ms_max)));
                partition.log().flush_if_due(now);
            }
        }
        sleep(Duration::from_millis(flush_tick_ms(shortest_ms))).await;
    }
}

/// How long to sleep between two looks at the flush intervals, the shortest of which is given.
fn flush_tick_ms(shortest_ms: Option<u64>) -> u64 {
    let quarter = shortest_ms.map_or(u64::MAX, |ms| ms / 4);
    quarter.clamp(*FLUSH_TICK_MS.start(), *FLUSH_TICK_MS.end())
}

/// Removes what retention no longer keeps. Runs in the background queue.
pub(super) async fn retention(shard: SharedShard) {
    loop {
        sleep(RETENTION_INTERVAL).await;
        for partition in shard.registry.open() {
            match partition.log().apply_retention(shard.clock.now()).await {
                Ok(trimmed) if trimmed.segments > 0 => tracing::info!(
                    dir = %partition.log().dir().display(),
                    segments = trimmed.segments,
                    bytes = trimmed.bytes,
                    start = trimmed.start.0,
                    "retention removed segments"
                ),
                Ok(_) => {}
                Err(error) => tracing::warn!(
                    dir = %partition.log().dir().display(), %error, "retention failed; it is tried again"
                ),
            }
            glommio::yield_if_needed().await;
        }
    }
}

/// Stores what is derived from logs, so that a start need not read them whole. Runs in the background queue.
pub(super) async fn derived(shard: SharedShard) {
    loop {
        sleep(DERIVED_INTERVAL).await;
        for partition in shard.registry.open() {
            // A poisoned or full disk has been told already, and the log holds all that is needed.
            if let Err(error) = partition.store_producers(false).await {
                tracing::debug!(dir = %partition.log().dir().display(), %error, "cannot store the producers");
            }
            glommio::yield_if_needed().await;
        }
    }
}

/// Lets idle logs give memory back.
pub(super) async fn idle(shard: SharedShard) {
    loop {
        sleep(IDLE_INTERVAL).await;
        for partition in shard.registry.open() {
            partition.log().release_idle_memory();
            glommio::yield_if_needed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flush_tick_follows_the_shortest_interval_within_bounds() {
        let of = |shortest| flush_tick_ms(shortest);
        assert_eq!([of(None), of(Some(1_000)), of(Some(1)), of(Some(3_600_000))], [1_000, 250, 10, 1_000]);
    }
}
