//! Who used the processor during a run: a process, this process, and the hypervisor's other guests.
//!
//! Units: seconds of CPU. `/proc` counts in clock ticks (10 ms on every kernel we know), so a run of a second is
//! known to about 1 %.

use std::fs;

/// Reads the CPU time that a process has used.
#[derive(Clone, Copy, Debug)]
pub struct ProcessCpu {
    pid: u32,
    start_seconds: f64,
}

impl ProcessCpu {
    /// Starts counting for a process; `None` if it cannot be seen.
    pub fn start(pid: u32) -> Option<Self> {
        Some(Self { pid, start_seconds: process_cpu_seconds(pid)? })
    }

    /// CPU-seconds since the start (all threads); `None` if the process has gone.
    pub fn seconds(&self) -> Option<f64> {
        Some(process_cpu_seconds(self.pid)? - self.start_seconds)
    }
}

/// User and system time of all threads of a process, from `/proc/<pid>/stat` (proc(5), fields 14 and 15).
fn process_cpu_seconds(pid: u32) -> Option<f64> {
    parse_process_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
        .map(|ticks| ticks / ticks_per_second())
}

fn parse_process_stat(text: &str) -> Option<f64> {
    // The second field is the program's name in brackets and may hold spaces and brackets itself.
    let rest = &text[text.rfind(')')? + 1..];
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64)
}

fn ticks_per_second() -> f64 {
    // SAFETY: sysconf has no preconditions.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

/// CPU-seconds of the calling thread.
pub(crate) fn thread_cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "the clock of the calling thread always exists");
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Reads how much of the machine the hypervisor gave to others.
#[derive(Clone, Copy, Debug)]
pub struct StealProbe {
    steal: u64,
    total: u64,
}

/// Stolen time above this share spoils a run: it is marked, and does not count.
pub(crate) const STEAL_PERCENT_MAX: f64 = 2.0;

impl StealProbe {
    /// Starts counting.
    pub fn start() -> Self {
        let (steal, total) = read_steal().unwrap_or((0, 0));
        Self { steal, total }
    }

    /// Stolen share of all cores' time since the start, in per cent.
    pub fn percent(&self) -> f64 {
        let Some((steal, total)) = read_steal() else { return 0.0 };
        let total = total.saturating_sub(self.total);
        if total == 0 { 0.0 } else { 100.0 * steal.saturating_sub(self.steal) as f64 / total as f64 }
    }
}

fn read_steal() -> Option<(u64, u64)> {
    parse_steal(&fs::read_to_string("/proc/stat").ok()?)
}

/// Stolen and total ticks from the first line: user nice system idle iowait irq softirq steal guest guest_nice,
/// where the guest times are already within user and nice.
fn parse_steal(text: &str) -> Option<(u64, u64)> {
    let fields: Vec<u64> = text
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_ascii_whitespace()
        .take(8)
        .map(|field| field.parse().ok())
        .collect::<Option<_>>()?;
    Some((*fields.get(7)?, fields.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_brackets_does_not_shift_the_fields() {
        let text = "42 (odd) name) R 1 42 42 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 7 8 9";
        assert_eq!(parse_process_stat(text), Some(300.0));
        assert_eq!(parse_process_stat("42 (short) R 1"), None);
    }

    #[test]
    fn steal_is_the_eighth_field_of_eight() {
        assert_eq!(parse_steal("cpu  1 2 3 4 5 6 7 8 100 100\ncpu0 9"), Some((8, 36)));
        assert_eq!(parse_steal("intr 1"), None);
    }

    #[test]
    fn this_process_is_seen_and_a_missing_one_is_not() {
        let cpu = ProcessCpu::start(std::process::id()).expect("we run");
        assert!(cpu.seconds().expect("we still run") >= 0.0);
        assert!(ProcessCpu::start(u32::MAX).is_none());
        assert!(thread_cpu_seconds() > 0.0);
    }
}
