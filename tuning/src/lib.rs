//! Cores, memory and disks of this host: what is there, what Corelog takes by default, what two files say instead.
//!
//! Owns: detection (`cores`, `memory`, `disk`, `ring`), the default split of a host (`defaults`), and the two
//! tuning files (`files`): `cores.toml` and `disk.toml`.
//! Invariant: a missing file means safe defaults; a file that no longer fits the host yields a warning that says
//! what to do, never a silent change.
//! Not here: measuring (the crate `bench`); server settings that are a matter of taste (the server's configuration).

pub mod cores;
pub mod defaults;
pub mod disk;
pub mod files;
pub mod memory;
pub mod ring;

pub use cores::{CoreListError, Cores, parse_core_list};
pub use defaults::{CorePlan, core_plan, memory_bytes_per_core};
pub use files::{CoresFile, DiskFile, TuningError, Warning};
pub use memory::Memory;
pub use ring::Ring;

/// What this host offers to this process.
#[derive(Clone, Debug)]
pub struct Host {
    /// Release of the running kernel, such as `6.18.44`.
    pub kernel: String,
    /// Cores that this process may use.
    pub cores: Cores,
    /// Memory that this process may use.
    pub memory: Memory,
    /// What io_uring can do here.
    pub ring: Ring,
    /// Descriptors that this process may open (RLIMIT_NOFILE, soft).
    pub open_files_max: u64,
}

/// Looks at the host. Reads `/proc` and `/sys` and opens one io_uring; changes nothing.
pub fn detect() -> Host {
    Host {
        kernel: kernel_release(),
        cores: Cores::detect(),
        memory: Memory::detect(),
        ring: Ring::detect(),
        open_files_max: resource_limit(libc::RLIMIT_NOFILE),
    }
}

impl Host {
    /// What an operator should know before the first start, worst first. Empty on a fit host.
    pub fn warnings(&self, data_cores: usize) -> Vec<Warning> {
        let mut warnings = Vec::new();
        warnings.extend(self.ring.warnings());
        warnings.extend(self.memory.warnings(data_cores));
        if let Some(quota) = self.cores.quota.filter(|quota| data_cores as f64 > *quota) {
            warnings.push(Warning(format!(
                "{data_cores} shards share a CPU quota of {quota} cores; a shard that is throttled stalls its \
                 partitions, so use fewer data cores"
            )));
        }
        if self.open_files_max < OPEN_FILES_MIN {
            warnings.push(Warning(format!(
                "only {} files may be open at once; raise it to at least {OPEN_FILES_MIN} (LimitNOFILE= of the \
                 systemd unit, or `ulimit -n`)",
                self.open_files_max
            )));
        }
        warnings
    }
}

/// A partition holds up to three descriptors open and a connection one.
const OPEN_FILES_MIN: u64 = 16_384;

/// Raises the number of files that this process may open as far as it may itself (soft limit to hard limit), and
/// returns it. A server has no reason to keep to the soft limit, which is small for the sake of `select`.
pub fn raise_open_files() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 0;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: `raised` is a valid argument; on failure nothing has changed.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        raised.rlim_cur
    } else {
        limit.rlim_cur
    }
}

fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |s| s.trim().to_owned())
}

/// Soft limit of a resource; `u64::MAX` means none.
pub(crate) fn resource_limit(resource: libc::__rlimit_resource_t) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer.
    let result = unsafe { libc::getrlimit(resource, &raw mut limit) };
    if result == 0 { limit.rlim_cur } else { 0 }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_soft_limit_of_open_files_goes_up_to_the_hard_one() {
        let before = super::resource_limit(libc::RLIMIT_NOFILE);
        let raised = super::raise_open_files();
        assert!(raised >= before && raised == super::resource_limit(libc::RLIMIT_NOFILE));
    }

    #[test]
    fn more_shards_than_the_quota_allows_are_warned_about() {
        let mut host = super::detect();
        host.cores.quota = None;
        let without = host.warnings(2).len();
        host.cores.quota = Some(1.5);
        let warnings = host.warnings(2);
        assert_eq!(warnings.len(), without + 1);
        assert!(warnings.iter().any(|warning| warning.0.contains("quota of 1.5 cores")), "{warnings:?}");
        assert_eq!(host.warnings(1).len(), without);
    }

    #[test]
    fn this_host_is_seen_whole() {
        let host = super::detect();
        assert!(!host.cores.allowed.is_empty());
        assert!(host.memory.total_bytes > 0);
        assert!(host.open_files_max > 0);
        assert!(host.kernel.contains('.'), "{:?} is no kernel release", host.kernel);
    }
}
