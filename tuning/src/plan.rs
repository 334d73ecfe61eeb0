//! From host, tuning file and settings to what a node runs with.
//!
//! Owns: the order of precedence: a setting wins over the file, the file over the defaults. Pure.

use crate::cores::{CoreListError, check_allowed};
use crate::defaults::{core_plan, memory_bytes_per_core};
use crate::files::{CoresFile, Warning};
use crate::{Cores, Host};

/// What the settings say; `None` leaves it to the file or to the defaults.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Cores that run a shard each.
    pub data: Option<Vec<usize>>,
    /// Core of the control thread.
    pub control: Option<usize>,
    /// Buffer memory of each shard.
    pub memory_bytes_per_core: Option<u64>,
}

/// What a node runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Cores that run a shard each, in the order of the shards.
    pub data: Vec<usize>,
    /// Core to pin the control thread to; `None` leaves it to the kernel.
    pub control: Option<usize>,
    /// Buffer memory of each shard.
    pub memory_bytes_per_core: u64,
    /// What an operator should know about host and file; the node starts nevertheless.
    pub warnings: Vec<Warning>,
}

/// Plans a node. Errors: a core that this process may not use, or that is to run two shards.
pub fn plan(host: &Host, file: Option<&CoresFile>, asked: &Asked) -> Result<Plan, CoreListError> {
    let none = CoresFile::default();
    let file = file.unwrap_or(&none);
    let from_file = (!file.data.is_empty()).then(|| file.data.clone());
    let allowed = &host.cores.allowed;
    let wanted_control = asked.control.or(file.control);
    let data = match asked.data.clone().or(from_file) {
        Some(data) => data,
        None => default_data(&host.cores, wanted_control),
    };
    check_allowed(&data, allowed)?;
    check_allowed(wanted_control.as_slice(), allowed)?;
    if let Some((_, core)) = data.iter().enumerate().find(|(i, core)| data[..*i].contains(core)) {
        return Err(CoreListError::Twice { list: format!("{data:?}"), core: *core });
    }
    let control = wanted_control.or_else(|| allowed.iter().copied().rfind(|core| !data.contains(core)));
    let memory_bytes_per_core = asked
        .memory_bytes_per_core
        .or(file.memory_bytes_per_core)
        .unwrap_or_else(|| memory_bytes_per_core(&host.memory, data.len()));
    let mut warnings = host.warnings(data.len());
    warnings.extend(file.warnings(host));
    if let Some(quota) = host.cores.quota
        && (data.len() as f64) > quota
    {
        warnings.push(Warning(format!(
            "{} shards share a CPU quota of {quota} cores; a shard that is throttled stalls its partitions; use fewer \
             data cores",
            data.len()
        )));
    }
    Ok(Plan { data, control, memory_bytes_per_core, warnings })
}

/// The default data cores, without the one that the control thread was given.
fn default_data(cores: &Cores, control: Option<usize>) -> Vec<usize> {
    let Some(control) = control else { return core_plan(cores).data };
    let left: Vec<usize> = cores.allowed.iter().copied().filter(|core| *core != control).collect();
    let shards = core_plan(cores).data.len();
    if left.is_empty() { vec![control] } else { left.into_iter().take(shards).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Memory, Ring};

    fn host(allowed: &[usize], quota: Option<f64>) -> Host {
        Host {
            kernel: "6.18.0".into(),
            cores: Cores { allowed: allowed.to_vec(), quota },
            memory: Memory {
                total_bytes: 16 << 30,
                available_bytes: 0,
                limit_bytes: None,
                locked_bytes_max: u64::MAX,
            },
            ring: Ring { refused: None, lacking: vec![] },
            open_files_max: u64::MAX,
        }
    }

    fn check(file: &CoresFile, asked: &Asked, data: &[usize], control: Option<usize>) {
        let plan = plan(&host(&[0, 1, 2, 3], None), Some(file), asked).expect("it fits");
        assert_eq!((plan.data.as_slice(), plan.control), (data, control), "{file:?} {asked:?}");
        assert_eq!(plan.warnings, []);
    }

    #[test]
    fn settings_win_over_the_file_and_the_file_over_the_defaults() {
        let empty = CoresFile::default();
        let file = CoresFile { data: vec![2], control: Some(3), ..CoresFile::default() };
        let asked = Asked { data: Some(vec![1, 0]), ..Asked::default() };
        check(&empty, &Asked::default(), &[0, 1, 2], Some(3));
        check(&file, &Asked::default(), &[2], Some(3));
        check(&file, &asked, &[1, 0], Some(3));
        check(&empty, &asked, &[1, 0], Some(3));
        check(&empty, &Asked { control: Some(0), ..Asked::default() }, &[1, 2, 3], Some(0));
        check(&empty, &Asked { data: Some(vec![0, 1, 2, 3]), ..Asked::default() }, &[0, 1, 2, 3], None);
    }

    #[test]
    fn memory_comes_from_the_same_places() {
        let memory = |file: Option<u64>, asked: Option<u64>| {
            let file = CoresFile { memory_bytes_per_core: file, ..CoresFile::default() };
            let asked = Asked { memory_bytes_per_core: asked, ..Asked::default() };
            plan(&host(&[0, 1, 2], None), Some(&file), &asked).expect("it fits").memory_bytes_per_core
        };
        assert_eq!(memory(None, None), 2 << 30);
        assert_eq!(memory(Some(1 << 30), None), 1 << 30);
        assert_eq!(memory(Some(1 << 30), Some(1 << 28)), 1 << 28);
    }

    #[test]
    fn cores_that_are_not_there_or_stand_twice_are_refused() {
        let refused = |data: Vec<usize>, control| {
            let asked = Asked { data: Some(data), control, ..Asked::default() };
            plan(&host(&[0, 1], None), None, &asked).expect_err("it does not fit")
        };
        assert!(matches!(refused(vec![5], None), CoreListError::NotAllowed { core: 5, .. }));
        assert!(matches!(refused(vec![0], Some(7)), CoreListError::NotAllowed { core: 7, .. }));
        assert!(matches!(refused(vec![0, 0], None), CoreListError::Twice { core: 0, .. }));
    }

    #[test]
    fn more_shards_than_the_quota_allows_are_warned_about() {
        let asked = Asked { data: Some(vec![0, 1, 2]), ..Asked::default() };
        let plan = plan(&host(&[0, 1, 2, 3], Some(1.5)), None, &asked).expect("it fits");
        assert!(plan.warnings.iter().any(|w| w.0.contains("quota")), "{:?}", plan.warnings);
    }
}
