//! A configuration on a host: which cores, how much memory, which disk depths this node really gets.
//!
//! Owns: what "auto" means. A setting wins over a tuning file, and a tuning file over the defaults of the host. Pure,
//! but for reading the tuning files: the host is an argument.
//! Invariant: a plan names only cores that this process may use, and at least one shard.

use std::path::PathBuf;

use corelog_tuning::{
    Cores, CoresFile, DiskFile, Host, TuningError, Warning, core_plan, memory_bytes_per_core,
};

use super::Config;
use super::check::port_conflict;

/// What a node runs on.
#[derive(Clone, Debug)]
pub struct HostPlan {
    /// Cores of the shards, by number of the shard.
    pub data_cores: Vec<u16>,
    /// Core of the control thread; `None`: wherever the scheduler likes.
    pub control_core: Option<u16>,
    /// Buffer memory of one shard.
    pub memory_bytes_per_shard: u64,
    /// Depths of the disks, if a tuning file names them.
    pub disks: Option<DiskFile>,
    /// What an operator should know; the node runs nevertheless.
    pub warnings: Vec<Warning>,
}

impl HostPlan {
    /// How many shards.
    pub fn shards(&self) -> u16 {
        u16::try_from(self.data_cores.len()).expect("core numbers have 12 bits")
    }
}

/// Why a configuration does not fit this host.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A tuning file cannot be read or does not fit.
    #[error("{key}: {error}")]
    Tuning {
        /// The setting that names it.
        key: &'static str,
        /// Why.
        error: Box<TuningError>,
    },
    /// A core that this process may not use.
    #[error("{key}: core {core} is not among the cores that this process may use ({allowed:?})")]
    Core {
        /// The setting.
        key: &'static str,
        /// Which.
        core: u16,
        /// What may be used.
        allowed: Vec<usize>,
    },
    /// Shards and HTTP want the same port, or there are not enough ports.
    #[error("{0}")]
    Ports(String),
    /// Two frames do not fit a shard's memory.
    #[error(
        "memory.per_shard is {memory_bytes} bytes on this host, which does not hold two frames of limits.frame_bytes_max ({frame_bytes}); lower that, use fewer cores.data, or set memory.per_shard"
    )]
    Memory {
        /// What a shard would get.
        memory_bytes: u64,
        /// The largest frame.
        frame_bytes: u32,
    },
}

/// Plans a node on a host. Reads the tuning files that the configuration names.
pub fn plan(config: &Config, host: &Host) -> Result<HostPlan, HostError> {
    let tuned = |key| move |error| HostError::Tuning { key, error: Box::new(error) };
    let cores_file: Option<CoresFile> = match &config.tuning.cores_file {
        Some(path) => Some(CoresFile::load(path, host).map_err(tuned("tuning.cores_file"))?),
        None => None,
    };
    let disks = match &config.tuning.disk_file {
        Some(path) => Some(DiskFile::load(path).map_err(tuned("tuning.disk_file"))?),
        None => None,
    };
    plan_with(config, host, cores_file.as_ref(), disks)
}

fn plan_with(
    config: &Config,
    host: &Host,
    cores_file: Option<&CoresFile>,
    disks: Option<DiskFile>,
) -> Result<HostPlan, HostError> {
    let tuned = cores_file.filter(|file| !file.data.is_empty());
    let data_cores: Vec<u16> = match (&config.cores.data, tuned) {
        (Some(cores), _) => cores.clone(),
        (None, Some(file)) => numbers(&file.data),
        (None, None) => numbers(&core_plan(&control_last(&host.cores, config.cores.control)).data),
    };
    let is_free = |core: &usize| !data_cores.iter().any(|data| usize::from(*data) == *core);
    let control_core = match (config.cores.control, cores_file.and_then(|file| file.control)) {
        (Some(core), _) => Some(core),
        (None, Some(core)) => u16::try_from(core).ok(),
        (None, None) => {
            let last_free = host.cores.allowed.iter().rev().find(|core| is_free(core));
            last_free.and_then(|core| u16::try_from(*core).ok())
        }
    };
    check_allowed("cores.data", &data_cores, host)?;
    check_allowed("cores.control", control_core.as_slice(), host)?;
    let memory_bytes_per_shard = config
        .memory_bytes_per_shard
        .or_else(|| cores_file.and_then(|file| file.memory_bytes_per_core))
        .unwrap_or_else(|| memory_bytes_per_core(&host.memory, data_cores.len()));
    let frame_bytes = config.limits.frame_bytes_max;
    if memory_bytes_per_shard < 2 * u64::from(frame_bytes) {
        return Err(HostError::Memory { memory_bytes: memory_bytes_per_shard, frame_bytes });
    }
    let mut warnings = host.warnings(data_cores.len());
    warnings.extend(cores_file.map(|file| file.warnings(host)).unwrap_or_default());
    if let Some(disks) = &disks {
        let dirs = config.data.dirs.iter().map(|dir| (dir, corelog_tuning::disk::detect(dir)));
        let found: Vec<(PathBuf, _)> =
            dirs.filter_map(|(dir, info)| Some((dir.clone(), info.ok()?))).collect();
        warnings.extend(disks.warnings(&found));
    }
    let plan = HostPlan { data_cores, control_core, memory_bytes_per_shard, disks, warnings };
    match port_conflict(config, plan.shards()) {
        Some(text) => Err(HostError::Ports(text)),
        None => Ok(plan),
    }
}

/// The cores with the one that somebody has chosen for control at the end, where `core_plan` leaves one out.
fn control_last(cores: &Cores, control: Option<u16>) -> Cores {
    let mut cores = cores.clone();
    let chosen = cores.allowed.iter().position(|core| u16::try_from(*core).ok() == control);
    if let Some(index) = chosen {
        let core = cores.allowed.remove(index);
        cores.allowed.push(core);
    }
    cores
}

fn numbers(cores: &[usize]) -> Vec<u16> {
    cores.iter().filter_map(|core| u16::try_from(*core).ok()).collect()
}

fn check_allowed(key: &'static str, cores: &[u16], host: &Host) -> Result<(), HostError> {
    match cores.iter().find(|core| !host.cores.allowed.contains(&usize::from(**core))) {
        Some(core) => Err(HostError::Core { key, core: *core, allowed: host.cores.allowed.clone() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Sources, load};
    use super::*;

    fn host(allowed: &[usize], total_bytes: u64) -> Host {
        let mut host = corelog_tuning::detect();
        host.cores.allowed = allowed.to_vec();
        host.cores.quota = None;
        host.memory.total_bytes = total_bytes;
        host.memory.limit_bytes = None;
        host
    }

    fn config(changes: &[(&'static str, &str)]) -> Config {
        let sources = changes.iter().fold(Sources::default(), |s, (key, value)| s.flag(key, *value, "test"));
        load(&sources).expect("it is right")
    }

    fn check(changes: &[(&'static str, &str)], allowed: &[usize], data: &[u16], control: Option<u16>) {
        let plan = plan(&config(changes), &host(allowed, 8 << 30)).expect("it fits");
        assert_eq!(
            (plan.data_cores.as_slice(), plan.control_core),
            (data, control),
            "{changes:?} on {allowed:?}"
        );
    }

    #[test]
    fn auto_leaves_one_core_to_the_control_thread() {
        check(&[], &[0, 1, 2, 3], &[0, 1, 2], Some(3));
        check(&[], &[5], &[5], None);
        check(&[("cores.data", "1-2")], &[0, 1, 2, 3], &[1, 2], Some(3));
        check(&[("cores.data", "0-3")], &[0, 1, 2, 3], &[0, 1, 2, 3], None);
        check(&[("cores.control", "0")], &[0, 1, 2, 3], &[1, 2, 3], Some(0));
        check(&[("cores.control", "5")], &[5], &[5], Some(5));
    }

    #[test]
    fn what_does_not_fit_the_host_is_refused_with_advice() {
        let check = |changes: &[(&'static str, &str)], allowed: &[usize], memory_bytes: u64, words: &str| {
            let error = plan(&config(changes), &host(allowed, memory_bytes)).expect_err(words).to_string();
            assert!(error.contains(words), "{error:?} does not say {words:?}");
        };
        check(&[("cores.data", "7")], &[0, 1], 8 << 30, "core 7 is not among");
        check(&[("cores.control", "7")], &[0, 1], 8 << 30, "cores.control: core 7");
        check(
            &[("limits.frame_bytes_max", "64MiB"), ("limits.in_flight_bytes_max", "64MiB")],
            &[0, 1],
            1 << 28,
            "set memory.per_shard",
        );
        check(&[("http.address", "127.0.0.1:9702")], &[0, 1, 2, 3], 8 << 30, "belongs to shard 2");
        check(&[("tuning.cores_file", "/no/such/cores.toml")], &[0, 1], 8 << 30, "tuning.cores_file");
    }

    #[test]
    fn settings_win_over_the_tuning_file() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("cores.toml");
        std::fs::write(&file, "data = [1, 2]\ncontrol = 0\nmemory_bytes_per_core = 100000000\n")
            .expect("written");
        let file = file.display().to_string();
        let host = host(&[0, 1, 2, 3], 8 << 30);
        let tuned = plan(&config(&[("tuning.cores_file", &file)]), &host).expect("it fits");
        assert_eq!((tuned.data_cores, tuned.control_core), (vec![1, 2], Some(0)));
        assert_eq!(tuned.memory_bytes_per_shard, 100_000_000);
        let changes =
            [("tuning.cores_file", file.as_str()), ("cores.data", "3"), ("memory.per_shard", "1GiB")];
        let set = plan(&config(&changes), &host).expect("it fits");
        assert_eq!((set.data_cores, set.control_core), (vec![3], Some(0)));
        assert_eq!(set.memory_bytes_per_shard, 1 << 30);
    }
}
