//! From configuration and host to what a shard is told.
//!
//! Owns: how the limits of `corelog.toml` become limits of sessions, engine and rings, and the few that follow from
//! others. Not here: which cores and how much memory (`crate::config::host`).

use std::path::Path;
use std::time::Duration;

use corelog_engine::checkpoint::BootId;
use corelog_engine::disk::uring::UringOptions;
use corelog_engine::log::EngineOptions;
use corelog_net::native::SessionOptions;
use corelog_tuning::DiskFile;

use corelog_replication::IsrOptions;
use corelog_replication::stream::StreamOptions;

use crate::config::host::HostPlan;
use crate::config::{Config, ReplicationConfig};
use crate::shard::ShardOptions;

/// Receive memory of large frames of one shard: eight of the default limit at a time.
const LARGE_FRAMES_BYTES_MAX: usize = 128 << 20;

/// What the shard on `core` is told.
pub(super) fn shard_options(config: &Config, plan: &HostPlan, core: u16) -> ShardOptions {
    let memory_bytes = usize::try_from(plan.memory_bytes_per_shard).unwrap_or(usize::MAX);
    let limits = &config.limits;
    let rings = config.data.dirs.iter().map(|dir| ring_options(plan.disks.as_ref(), dir));
    ShardOptions {
        core: usize::from(core),
        memory_bytes,
        polling: Duration::from_micros(config.cores.polling_us),
        auto_create: config.topic.auto_create,
        sessions: session_options(config, memory_bytes),
        streams: stream_options(&config.replication, memory_bytes),
        isr: IsrOptions {
            lag_max_ms: config.replication.lag_max_ms,
            disconnect_max_ms: config.replication.disconnect_max_ms,
            ..IsrOptions::default()
        },
        engine: EngineOptions {
            // A frame may be one append of one partition.
            unwritten_bytes_max: EngineOptions::default()
                .unwritten_bytes_max
                .max(limits.frame_bytes_max as usize),
            open_files_max: limits.open_files_max,
            boot_id: boot_id(),
            ..EngineOptions::default()
        },
        rings: rings.collect(),
        // The shard gives up a little before the control thread gives the shard up.
        stop_timeout: Duration::from_millis(limits.stop_timeout_ms / 10 * 9),
    }
}

fn session_options(config: &Config, memory_bytes: usize) -> SessionOptions {
    let limits = &config.limits;
    let default = SessionOptions::default();
    // Two whole frames at least, so that one slow sender of a large frame does not hold all others up.
    let two_frames = 2 * limits.frame_bytes_max as usize;
    SessionOptions {
        connections_max: limits.connections_max as usize,
        frame_bytes_max: limits.frame_bytes_max,
        head_bytes_max: default.head_bytes_max.min(limits.frame_bytes_max),
        in_flight_bytes_max: limits.in_flight_bytes_max,
        in_flight_requests_max: limits.in_flight_requests_max,
        fetch_bytes_max: default.fetch_bytes_max.min(limits.frame_bytes_max),
        large_frames_bytes_max: (memory_bytes / 2).min(LARGE_FRAMES_BYTES_MAX).max(two_frames),
        idle_timeout_ms: limits.idle_timeout_ms.unwrap_or(0),
        ..default
    }
}

fn stream_options(config: &ReplicationConfig, memory_bytes: usize) -> StreamOptions {
    let default = StreamOptions::default();
    let scrub = config.scrub_bytes_per_second;
    StreamOptions {
        // What one leader's shard may send ahead lies in memory beside this shard's buffers, and there is one for each
        // shard of the other nodes: a small shard takes less.
        credit_bytes: (memory_bytes as u64 / 16).clamp(1 << 20, default.credit_bytes),
        catch_up_bytes_per_second: config.catch_up_bytes_per_second,
        scrub_bytes_per_second: (scrub > 0).then_some(scrub),
        ..default
    }
}

fn ring_options(tuned: Option<&DiskFile>, dir: &Path) -> UringOptions {
    let default = UringOptions::default();
    match tuned.and_then(|file| file.of(dir)) {
        None => default,
        Some(disk) => UringOptions {
            commit_depth_max: disk.commit_depth_max.unwrap_or(default.commit_depth_max),
            cold_read_depth_max: disk.cold_read_depth_max.unwrap_or(default.cold_read_depth_max),
            background_depth_max: disk.background_depth_max.unwrap_or(default.background_depth_max),
            ..default
        },
    }
}

/// Identity of this boot of the kernel; unknown on a host without it, which then counts as the same boot.
fn boot_id() -> Option<BootId> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    #[test]
    fn limits_reach_the_shard_and_agree_with_each_other() {
        let sources = Sources::default()
            .flag("limits.frame_bytes_max", "32MiB", "--flag")
            .flag("data.dirs", "/a,/b", "--data")
            .flag("cores.polling", "50us", "--flag");
        let config = load(&sources).unwrap();
        let plan = HostPlan {
            data_cores: vec![3],
            control_core: None,
            memory_bytes_per_shard: 64 << 20,
            disks: None,
            warnings: Vec::new(),
        };
        let options = shard_options(&config, &plan, 3);
        assert_eq!(options.sessions.check(), Ok(()));
        assert_eq!((options.core, options.memory_bytes, options.rings.len()), (3, 64 << 20, 2));
        assert_eq!(options.polling, Duration::from_micros(50));
        assert_eq!(options.engine.unwritten_bytes_max, 32 << 20);
        assert!(options.stop_timeout.as_millis() < u128::from(config.limits.stop_timeout_ms));
        assert!(boot_id().is_some(), "Linux has one");
    }
}
