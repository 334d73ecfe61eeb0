//! How a host is split when nobody says otherwise. Pure: facts in, plan out.

use crate::cores::Cores;
use crate::memory::Memory;

/// Which cores run shards, and which one the control thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorePlan {
    /// Cores that run a shard each.
    pub data: Vec<usize>,
    /// Core of the control thread; `None` on a host with one core, which it then shares.
    pub control: Option<usize>,
}

/// Splits the allowed cores: the last one for the control thread, HTTP and the kernel's own work, all others for
/// shards. A quota lowers the number of shards: a shard that is throttled stalls all its partitions at once.
///
/// # Panics
/// If no core is allowed; a process always runs on one.
pub fn core_plan(cores: &Cores) -> CorePlan {
    assert!(!cores.allowed.is_empty(), "a process runs on at least one core");
    let (control, data) = match cores.allowed.as_slice() {
        [only] => (None, vec![*only]),
        [data @ .., control] => (Some(*control), data.to_vec()),
        [] => unreachable!("checked above"),
    };
    let data_max = cores.quota.map_or(usize::MAX, |quota| (quota as usize).max(1));
    CorePlan { data: data.into_iter().take(data_max).collect(), control }
}

/// Least that a shard can work with: some tens of partitions with a tail buffer each, and a few large requests.
pub const MEMORY_BYTES_PER_CORE_MIN: u64 = 64 << 20;
/// Most that a shard takes unasked: enough for the tails of thousands of partitions. More only caches cold data, and
/// until the kernel has given all of it, each append pays for a cleared page: half of the CPU time with 2 GiB.
pub const MEMORY_BYTES_PER_CORE_MAX: u64 = 192 << 20;

/// Buffer memory of one shard: a quarter of what the process may use, shared out over the shards, within limits.
/// The rest is left to the kernel, to clients on the same host, and to the process outside the buffers.
///
/// # Panics
/// If `data_cores` is 0.
pub fn memory_bytes_per_core(memory: &Memory, data_cores: usize) -> u64 {
    assert!(data_cores > 0, "a node has at least one shard");
    let share = memory.usable_bytes() / 4 / data_cores as u64;
    share.clamp(MEMORY_BYTES_PER_CORE_MIN, MEMORY_BYTES_PER_CORE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_core_is_the_control_threads() {
        let plan = |allowed: &[usize], quota| core_plan(&Cores { allowed: allowed.to_vec(), quota });
        assert_eq!(plan(&[3], None), CorePlan { data: vec![3], control: None });
        assert_eq!(plan(&[0, 1], None), CorePlan { data: vec![0], control: Some(1) });
        assert_eq!(plan(&[0, 2, 4, 6], None), CorePlan { data: vec![0, 2, 4], control: Some(6) });
        assert_eq!(plan(&[0, 1, 2, 3], Some(2.5)), CorePlan { data: vec![0, 1], control: Some(3) });
        assert_eq!(plan(&[0, 1, 2, 3], Some(0.5)), CorePlan { data: vec![0], control: Some(3) });
    }

    #[test]
    fn memory_is_shared_out_within_limits() {
        let per_core = |total_bytes, limit_bytes, cores| {
            let memory = Memory { total_bytes, available_bytes: 0, limit_bytes, locked_bytes_max: 0 };
            memory_bytes_per_core(&memory, cores)
        };
        assert_eq!(per_core(2 << 30, None, 4), 128 << 20);
        assert_eq!(per_core(16 << 30, Some(2 << 30), 4), 128 << 20);
        assert_eq!(per_core(1 << 30, None, 64), MEMORY_BYTES_PER_CORE_MIN);
        assert_eq!(per_core(1 << 40, None, 2), MEMORY_BYTES_PER_CORE_MAX);
    }
}
