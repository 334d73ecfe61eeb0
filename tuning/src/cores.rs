//! Which cores this process may use, and lists of cores as people write them.
//!
//! Owns: the list syntax `0,2-4`, the affinity mask and the CPU quota of the control group (versions 1 and 2).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Highest core number that a list may name: above any machine, and it bounds what a typing error can allocate.
const CORE_NUMBER_MAX: usize = 4095;

/// Cores that this process may use.
#[derive(Clone, Debug, PartialEq)]
pub struct Cores {
    /// Numbers of the cores in the affinity mask (which a control group's cpuset narrows), ascending.
    pub allowed: Vec<usize>,
    /// CPU-seconds per second that the control group grants; `None` without a quota.
    pub quota: Option<f64>,
}

impl Cores {
    /// Reads the mask and the quota of this process.
    pub fn detect() -> Self {
        let mut allowed: Vec<usize> =
            core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect();
        allowed.sort_unstable();
        Self { allowed, quota: detect_quota() }
    }
}

/// Why a list of cores makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoreListError {
    /// Not a number or a range of numbers.
    #[error("{part:?} in the core list {list:?} is neither a core number nor a range; write it like 0,2-4")]
    Syntax {
        /// The list.
        list: String,
        /// The part that cannot be read.
        part: String,
    },
    /// A core named twice would get two shards.
    #[error("core {core} stands twice in the core list {list:?}")]
    Twice {
        /// The list.
        list: String,
        /// The core.
        core: usize,
    },
    /// No core at all.
    #[error("the core list is empty; write it like 0,2-4")]
    Empty,
    /// A core that this process may not use.
    #[error("core {core} is not among the cores that this process may use ({allowed:?})")]
    NotAllowed {
        /// The core.
        core: usize,
        /// What may be used.
        allowed: Vec<usize>,
    },
}

/// Parses a list of cores such as `0,2-4`, in the order written.
pub fn parse_core_list(list: &str) -> Result<Vec<usize>, CoreListError> {
    let mut seen = BTreeSet::new();
    let mut cores = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let syntax = || CoreListError::Syntax { list: list.to_owned(), part: part.to_owned() };
        let number = |text: &str| match text.trim().parse::<usize>() {
            Ok(core) if core <= CORE_NUMBER_MAX => Ok(core),
            _ => Err(syntax()),
        };
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(syntax());
        }
        for core in first..=last {
            if !seen.insert(core) {
                return Err(CoreListError::Twice { list: list.to_owned(), core });
            }
            cores.push(core);
        }
    }
    if cores.is_empty() { Err(CoreListError::Empty) } else { Ok(cores) }
}

/// Checks that all cores may be used.
pub fn check_allowed(cores: &[usize], allowed: &[usize]) -> Result<(), CoreListError> {
    match cores.iter().find(|core| !allowed.contains(core)) {
        Some(&core) => Err(CoreListError::NotAllowed { core, allowed: allowed.to_vec() }),
        None => Ok(()),
    }
}

fn detect_quota() -> Option<f64> {
    if let Some(dir) = cgroup_dir("") {
        // Version 2: "max 100000" or "150000 100000".
        return parse_quota_v2(&fs::read_to_string(dir.join("cpu.max")).ok()?);
    }
    let dir = cgroup_dir("cpu")?;
    let read = |name: &str| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<i64>().ok();
    let (quota, period) = (read("cpu.cfs_quota_us")?, read("cpu.cfs_period_us")?);
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

fn parse_quota_v2(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

/// Directory of this process's control group for a version 1 controller, or of version 2 for `""`.
pub(crate) fn cgroup_dir(controller: &str) -> Option<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    let inside = parse_cgroup(&text, controller)?;
    let mount = if controller.is_empty() {
        PathBuf::from("/sys/fs/cgroup")
    } else {
        Path::new("/sys/fs/cgroup").join(controller)
    };
    // In a container the group's own path is not mounted; its root is what we see.
    let dir = mount.join(inside.trim_start_matches('/'));
    let dir = if dir.exists() { dir } else { mount };
    let is_v2 = dir.join("cgroup.controllers").exists();
    (is_v2 == controller.is_empty() && dir.exists()).then_some(dir)
}

/// Finds the path of a controller in lines such as `4:cpu,cpuacct:/a/b` (version 1) or `0::/a/b` (version 2).
fn parse_cgroup<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let found = if controller.is_empty() {
            number == "0" && controllers.is_empty()
        } else {
            controllers.split(',').any(|c| c == controller)
        };
        found.then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_keep_their_order_and_expand_ranges() {
        let table: [(&str, &[usize]); 5] =
            [("0", &[0]), ("3,1", &[3, 1]), ("0-2", &[0, 1, 2]), (" 4 , 0-1 ", &[4, 0, 1]), ("1,", &[1])];
        for (list, expected) in table {
            assert_eq!(parse_core_list(list).as_deref(), Ok(expected), "{list:?}");
        }
    }

    #[test]
    fn senseless_lists_say_what_is_wrong() {
        assert_eq!(parse_core_list(""), Err(CoreListError::Empty));
        assert_eq!(parse_core_list(" , "), Err(CoreListError::Empty));
        for list in ["a", "1-", "-1", "3-1", "1 2", "0-99999999", "18446744073709551616"] {
            assert!(matches!(parse_core_list(list), Err(CoreListError::Syntax { .. })), "{list:?}");
        }
        assert!(matches!(parse_core_list("0-2,1"), Err(CoreListError::Twice { core: 1, .. })));
    }

    #[test]
    fn a_core_outside_the_mask_is_named() {
        assert_eq!(check_allowed(&[0, 1], &[0, 1, 2]), Ok(()));
        let refused = check_allowed(&[0, 7], &[0, 1]);
        assert_eq!(refused, Err(CoreListError::NotAllowed { core: 7, allowed: vec![0, 1] }));
    }

    #[test]
    fn quotas_of_version_2() {
        assert_eq!(parse_quota_v2("max 100000\n"), None);
        assert_eq!(parse_quota_v2("150000 100000\n"), Some(1.5));
        assert_eq!(parse_quota_v2("nonsense"), None);
    }

    #[test]
    fn control_groups_of_both_versions_are_found() {
        let text = "12:cpuset:/pod\n4:cpu,cpuacct:/a/b\n0::/unified\n";
        assert_eq!(parse_cgroup(text, "cpu"), Some("/a/b"));
        assert_eq!(parse_cgroup(text, "memory"), None);
        assert_eq!(parse_cgroup(text, ""), Some("/unified"));
    }
}
