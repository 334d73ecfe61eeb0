//! How much memory this process may use.

use std::fs;

use crate::cores::cgroup_dir;
use crate::files::Warning;
use crate::resource_limit;

/// Memory of the host, as far as this process may use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Memory of the machine.
    pub total_bytes: u64,
    /// What could be given out without swapping.
    pub available_bytes: u64,
    /// Limit of the control group, if there is one.
    pub limit_bytes: Option<u64>,
    /// Memory that may be locked (RLIMIT_MEMLOCK, soft): io_uring takes its rings and registered buffers from it.
    pub locked_bytes_max: u64,
}

/// What one glommio executor needs locked.
const LOCKED_BYTES_PER_CORE: u64 = 512 * 1024;

impl Memory {
    /// Reads `/proc/meminfo` and the control group.
    pub fn detect() -> Self {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            total_bytes: parse_meminfo(&meminfo, "MemTotal:").unwrap_or(0),
            available_bytes: parse_meminfo(&meminfo, "MemAvailable:").unwrap_or(0),
            limit_bytes: detect_limit(),
            locked_bytes_max: resource_limit(libc::RLIMIT_MEMLOCK),
        }
    }

    /// What this process may use at most.
    pub fn usable_bytes(&self) -> u64 {
        self.total_bytes.min(self.limit_bytes.unwrap_or(u64::MAX))
    }

    pub(crate) fn warnings(&self, data_cores: usize) -> Option<Warning> {
        let needed_bytes = LOCKED_BYTES_PER_CORE * data_cores as u64;
        (self.locked_bytes_max < needed_bytes).then(|| {
            Warning(format!(
                "only {} bytes of memory may be locked, and {data_cores} data core(s) need {needed_bytes}; raise it \
                 (LimitMEMLOCK= of the systemd unit, or `ulimit -l unlimited`)",
                self.locked_bytes_max
            ))
        })
    }
}

/// Value of a line such as `MemTotal:  24691008 kB`, in bytes.
fn parse_meminfo(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn detect_limit() -> Option<u64> {
    let text = match cgroup_dir("") {
        Some(dir) => fs::read_to_string(dir.join("memory.max")).ok()?,
        None => fs::read_to_string(cgroup_dir("memory")?.join("memory.limit_in_bytes")).ok()?,
    };
    parse_limit(&text)
}

/// A limit in bytes; "max" (version 2) and a number near 2^63 (version 1) mean none.
fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse::<u64>().ok().filter(|&bytes| bytes < 1 << 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_counts_in_kibibytes() {
        let text = "MemTotal:       2048 kB\nMemFree:  1 kB\nMemAvailable:   1024 kB\n";
        assert_eq!(parse_meminfo(text, "MemTotal:"), Some(2 << 20));
        assert_eq!(parse_meminfo(text, "MemAvailable:"), Some(1 << 20));
        assert_eq!(parse_meminfo(text, "SwapTotal:"), None);
    }

    #[test]
    fn no_limit_has_two_spellings() {
        assert_eq!(parse_limit("max\n"), None);
        assert_eq!(parse_limit("9223372036854771712\n"), None);
        assert_eq!(parse_limit("1073741824\n"), Some(1 << 30));
    }

    #[test]
    fn too_little_locked_memory_is_told_with_the_remedy() {
        let memory =
            Memory { total_bytes: 1, available_bytes: 1, limit_bytes: None, locked_bytes_max: 1 << 20 };
        assert_eq!(memory.warnings(2), None);
        let warning = memory.warnings(3).expect("three cores need more");
        assert!(warning.0.contains("ulimit -l"), "{}", warning.0);
    }
}
