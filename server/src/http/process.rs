//! What the kernel says of this process: memory, descriptors, CPU time.
//!
//! Owns: reading `/proc/self`. What cannot be read is left out, never guessed.
//! Source: proc(5).

use std::fs;

/// Numbers of this process; `None` where the kernel does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Process {
    /// Memory in RAM.
    pub(super) resident_bytes: Option<u64>,
    /// Locked memory (registered buffers and rings).
    pub(super) locked_bytes: Option<u64>,
    /// Open descriptors.
    pub(super) open_fds: Option<u64>,
    /// How many may be open.
    pub(super) max_fds: Option<u64>,
    /// User and system time.
    pub(super) cpu_seconds: Option<f64>,
    /// Threads.
    pub(super) threads: Option<u64>,
}

/// Reads `/proc/self`: a handful of system calls.
pub(super) fn read() -> Process {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    Process {
        resident_bytes: status_field(&status, "VmRSS:").map(|kib| kib * 1024),
        locked_bytes: status_field(&status, "VmLck:").map(|kib| kib * 1024),
        // The directory itself is one of them while it is read.
        open_fds: fs::read_dir("/proc/self/fd")
            .ok()
            .map(|entries| (entries.count() as u64).saturating_sub(1)),
        max_fds: max_fds(&limits),
        cpu_seconds: cpu_ticks(&stat).map(|ticks| ticks as f64 / ticks_per_second()),
        threads: status_field(&status, "Threads:"),
    }
}

fn status_field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn max_fds(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// utime and stime: fields 14 and 15. The command name before them may hold spaces, so count from its closing bracket.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user + system)
}

fn ticks_per_second() -> f64 {
    // SAFETY: sysconf reads a constant of the system and touches no memory of ours.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_described() {
        let process = read();
        assert!(process.resident_bytes.is_some_and(|bytes| bytes > 100_000), "{process:?}");
        assert!(process.open_fds.is_some_and(|fds| fds >= 3), "{process:?}");
        assert!(process.threads >= Some(1) && process.max_fds.is_some() && process.cpu_seconds.is_some());
    }

    #[test]
    fn a_command_name_with_spaces_does_not_shift_the_fields() {
        let stat = "1 (a) b (c) S 1 1 1 0 -1 4194560 1 2 3 4 70 30 0 0 20 0 1 0 5";
        assert_eq!(cpu_ticks(stat), Some(100));
        assert_eq!(cpu_ticks(""), None);
    }
}
