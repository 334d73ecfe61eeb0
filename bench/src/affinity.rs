//! Pinning of the threads that make load or stand in for a server.

use crate::error::{BenchError, BenchResult};

/// Pins the calling thread to a core.
pub(crate) fn pin_to(core: usize) -> BenchResult<()> {
    if core_affinity::set_for_current(core_affinity::CoreId { id: core }) {
        Ok(())
    } else {
        Err(BenchError::Usage(format!(
            "this thread cannot be pinned to core {core}; is it online and allowed?"
        )))
    }
}

/// Cores for load generators: those asked for (checked against the mask), else all that are left to them by
/// `reserved`, else the last one.
pub(crate) fn generator_cores(asked: Option<&str>, reserved: &[usize]) -> BenchResult<Vec<usize>> {
    let allowed = corelog_tuning::Cores::detect().allowed;
    if let Some(list) = asked {
        let cores = corelog_tuning::parse_core_list(list)?;
        corelog_tuning::cores::check_allowed(&cores, &allowed)?;
        return Ok(cores);
    }
    let left: Vec<usize> = allowed.iter().copied().filter(|core| !reserved.contains(core)).collect();
    match (left.as_slice(), allowed.last()) {
        ([], Some(&last)) => Ok(vec![last]),
        ([], None) => Err(BenchError::Usage("no core may be used".into())),
        (left, _) => Ok(left.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generator_keeps_off_the_servers_cores_where_it_can() {
        let allowed = corelog_tuning::Cores::detect().allowed;
        assert_eq!(generator_cores(None, &[]).expect("cores are there"), allowed);
        let last = *allowed.last().expect("one core at least");
        assert_eq!(generator_cores(None, &allowed).expect("it must share then"), [last]);
        assert!(
            !generator_cores(None, &[last]).expect("cores are there").contains(&last) || allowed.len() == 1
        );
        assert!(generator_cores(Some("4095"), &[]).is_err());
        assert!(generator_cores(Some("x"), &[]).is_err());
    }
}
