//! How a node is cut to its host: which cores, how much memory, how deep each disk is driven.
//!
//! Owns: the order of precedence: configuration, then tuning files, then safe defaults. Pure but for the look at the
//! host that it is given.

use std::path::{Path, PathBuf};
use std::time::Duration;

use corelog_engine::checkpoint::BootId;
use corelog_engine::disk::uring::UringOptions;
use corelog_engine::log::EngineOptions;
use corelog_net::native::SessionOptions;
use corelog_tuning::cores::check_allowed;
use corelog_tuning::{
    CoreListError, CoresFile, DiskFile, Host, TuningError, core_plan, memory_bytes_per_core,
};

use crate::config::Config;
use crate::shard::ShardOptions;

/// Why a node cannot be cut to its host.
#[derive(Debug, thiserror::Error)]
pub enum ResourceError {
    /// A core that the process may not use, or none at all: mend `cores.data`, or the CPU set of the process.
    #[error("cores.data: {0}")]
    Cores(#[from] CoreListError),
    /// A tuning file cannot be used.
    #[error(transparent)]
    Tuning(#[from] TuningError),
}

/// What a node runs on.
#[derive(Clone, Debug)]
pub(super) struct Resources {
    /// Cores that run a shard each, in the order of the shards.
    pub(super) data_cores: Vec<u16>,
    /// Core of the control thread.
    pub(super) control_core: Option<u16>,
    /// Buffer memory of each shard.
    pub(super) memory_bytes: usize,
    /// Limits of the ring of each data directory, in their order.
    pub(super) rings: Vec<UringOptions>,
    /// What an operator should know.
    pub(super) warnings: Vec<String>,
}

/// Cuts a node to its host.
pub(super) fn plan(config: &Config, host: &Host) -> Result<Resources, ResourceError> {
    let cores_file =
        config.tuning.cores_file.as_deref().map(|path| CoresFile::load(path, host)).transpose()?;
    let disk_file = config.tuning.disk_file.as_deref().map(DiskFile::load).transpose()?;
    let tuned = cores_file.clone().unwrap_or_default();
    let default = core_plan(&host.cores);
    let data: Vec<usize> = match &config.cores.data {
        Some(cores) => cores.iter().map(|&core| usize::from(core)).collect(),
        None if !tuned.data.is_empty() => tuned.data.clone(),
        None => default.data.clone(),
    };
    check_allowed(&data, &host.cores.allowed)?;
    let chosen = config.cores.control.map(usize::from).or(tuned.control).or(default.control);
    // A default that someone's list of data cores has taken is nobody's choice: let the scheduler place the thread.
    let is_free = |core: &usize| config.cores.control.is_some() || !data.contains(core);
    let control = chosen.filter(is_free);
    if let Some(core) = control {
        check_allowed(&[core], &host.cores.allowed)?;
    }
    let memory_bytes = config
        .memory_bytes_per_shard
        .or(tuned.memory_bytes_per_core)
        .unwrap_or_else(|| memory_bytes_per_core(&host.memory, data.len()));
    let mut warnings: Vec<String> = host.warnings(data.len()).into_iter().map(|w| w.0).collect();
    warnings.extend(cores_file.iter().flat_map(|file| file.warnings(host)).map(|w| w.0));
    Ok(Resources {
        data_cores: data.iter().map(|&core| core as u16).collect(),
        control_core: control.map(|core| core as u16),
        memory_bytes: usize::try_from(memory_bytes).unwrap_or(usize::MAX),
        rings: config.data.dirs.iter().map(|dir| ring_options(disk_file.as_ref(), dir)).collect(),
        warnings,
    })
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

/// What each shard is told; only the core differs.
pub(super) fn shard_options(config: &Config, resources: &Resources, core: u16) -> ShardOptions {
    let limits = &config.limits;
    let default = SessionOptions::default();
    let frame_bytes = limits.frame_bytes_max as usize;
    let sessions = SessionOptions {
        connections_max: limits.connections_max as usize,
        frame_bytes_max: limits.frame_bytes_max,
        head_bytes_max: default.head_bytes_max.min(limits.frame_bytes_max),
        in_flight_bytes_max: limits.in_flight_bytes_max,
        in_flight_requests_max: limits.in_flight_requests_max,
        fetch_bytes_max: default.fetch_bytes_max.min(limits.frame_bytes_max),
        // Two whole frames at least, so that one slow sender of a large frame does not hold all others up.
        large_frames_bytes_max: (resources.memory_bytes / 2)
            .clamp(2 * frame_bytes, LARGE_FRAMES_BYTES_MAX.max(2 * frame_bytes)),
        idle_timeout_ms: limits.idle_timeout_ms.unwrap_or(0),
        ..default
    };
    let engine = EngineOptions {
        // A frame may be one append of one partition.
        unwritten_bytes_max: EngineOptions::default().unwritten_bytes_max.max(frame_bytes),
        open_files_max: limits.open_files_max,
        boot_id: boot_id(),
        ..EngineOptions::default()
    };
    ShardOptions {
        core: usize::from(core),
        memory_bytes: resources.memory_bytes,
        polling: Duration::from_micros(config.cores.polling_us),
        auto_create: config.topic.auto_create,
        sessions,
        engine,
        rings: resources.rings.clone(),
        // The shard gives up a little before the control thread gives the shard up.
        stop_timeout: Duration::from_millis(limits.stop_timeout_ms / 10 * 9),
    }
}

/// Receive memory of large frames of one shard: eight of the default limit at a time.
const LARGE_FRAMES_BYTES_MAX: usize = 128 << 20;

/// Identity of this boot of the kernel; unknown on a host without it, which then counts as the same boot.
fn boot_id() -> Option<BootId> {
    let path = PathBuf::from("/proc/sys/kernel/random/boot_id");
    std::fs::read_to_string(path).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};
    use corelog_tuning::{Cores, Memory};

    fn host(allowed: &[usize]) -> Host {
        let cores = Cores { allowed: allowed.to_vec(), quota: None };
        Host { cores, ..corelog_tuning::detect() }
    }

    fn config(flags: &[(&'static str, &str)]) -> Config {
        let mut sources = Sources::default();
        for (key, value) in flags {
            sources = sources.flag(key, *value, "--flag");
        }
        load(&sources).unwrap()
    }

    #[test]
    fn named_cores_win_and_the_default_leaves_one_for_the_control_thread() {
        let check = |flags: &[(&'static str, &str)], data: &[u16], control| {
            let found = plan(&config(flags), &host(&[0, 1, 2])).unwrap();
            assert_eq!((&found.data_cores[..], found.control_core), (data, control));
        };
        check(&[], &[0, 1], Some(2));
        check(&[("cores.data", "2")], &[2], None);
        check(&[("cores.data", "1"), ("cores.control", "0")], &[1], Some(0));
    }

    #[test]
    fn a_core_that_is_not_ours_is_refused() {
        let error = plan(&config(&[("cores.data", "0,9")]), &host(&[0, 1])).unwrap_err();
        assert!(error.to_string().contains("core 9"), "{error}");
    }

    #[test]
    fn limits_reach_the_shard_and_agree_with_each_other() {
        let config = config(&[("memory.per_shard", "64MiB"), ("limits.frame_bytes_max", "32MiB")]);
        let resources = plan(&config, &host(&[0, 1])).unwrap();
        let options = shard_options(&config, &resources, 0);
        assert_eq!(options.sessions.check(), Ok(()));
        assert_eq!(options.memory_bytes, 64 << 20);
        assert_eq!(options.engine.unwritten_bytes_max, 32 << 20);
        assert_eq!(options.rings.len(), config.data.dirs.len());
        assert!(Memory::detect().total_bytes > 0);
    }
}
