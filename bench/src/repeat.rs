//! The median of several runs: one run on a shared machine says little.
//!
//! Owns: which runs count. A run that the hypervisor spoilt does not, and is made again while there is patience.

use serde::Serialize;

use crate::cpu::STEAL_PERCENT_MAX;
use crate::error::BenchResult;
use crate::load::LoadFigures;

/// All runs, and the one in the middle.
#[derive(Debug, Serialize)]
pub(crate) struct Repeated {
    /// The median of the runs that count: by latency at a set rate, else by throughput.
    #[serde(flatten)]
    pub(crate) median: LoadFigures,
    /// Every run, in order.
    pub(crate) runs: Vec<RunLine>,
    /// Stolen share during the median run.
    #[serde(skip)]
    pub(crate) steal_percent: f64,
}

/// One run in short.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RunLine {
    /// Millions of bytes a second.
    pub(crate) megabytes_per_second: f64,
    /// Requests a second.
    pub(crate) requests_per_second: f64,
    /// Median latency.
    pub(crate) p50_us: f64,
    /// Latency that 1 in 100 passes.
    pub(crate) p99_us: f64,
    /// Millions of bytes for each CPU-second of the server.
    pub(crate) megabytes_per_server_cpu_second: Option<f64>,
    /// Stolen share during the run.
    pub(crate) steal_percent: f64,
}

/// Runs until `count` runs count, at most twice as often, and picks the median.
pub(crate) fn repeat(
    count: usize,
    is_paced: bool,
    mut run: impl FnMut() -> BenchResult<(LoadFigures, f64)>,
) -> BenchResult<Repeated> {
    let mut all: Vec<(LoadFigures, f64)> = Vec::new();
    let counting =
        |all: &[(LoadFigures, f64)]| all.iter().filter(|(_, steal)| *steal <= STEAL_PERCENT_MAX).count();
    while counting(&all) < count && all.len() < 2 * count {
        all.push(run()?);
    }
    let runs = all.iter().map(|(figures, steal)| line(figures, *steal)).collect();
    if counting(&all) > 0 {
        all.retain(|(_, steal)| *steal <= STEAL_PERCENT_MAX);
    }
    let key = |f: &LoadFigures| if is_paced { f.latency.p99_us } else { f.megabytes_per_second };
    all.sort_by(|(a, _), (b, _)| key(a).total_cmp(&key(b)));
    let middle = (all.len() - 1) / 2;
    let (median, steal_percent) = all.swap_remove(middle);
    Ok(Repeated { median, runs, steal_percent })
}

fn line(figures: &LoadFigures, steal_percent: f64) -> RunLine {
    RunLine {
        megabytes_per_second: figures.megabytes_per_second,
        requests_per_second: figures.requests_per_second,
        p50_us: figures.latency.p50_us,
        p99_us: figures.latency.p99_us,
        megabytes_per_server_cpu_second: figures.megabytes_per_server_cpu_second,
        steal_percent,
    }
}

impl Repeated {
    /// Lines for people: the median run, and the others in short.
    pub(crate) fn table(&self, bytes_are: &str) -> String {
        let mut text = self.median.table(bytes_are);
        if self.runs.len() > 1 {
            text.push_str(&format!("\n\nmedian of {} runs:", self.runs.len()));
            for run in &self.runs {
                let per_cpu = run.megabytes_per_server_cpu_second.unwrap_or(0.0);
                let spoilt =
                    if run.steal_percent > STEAL_PERCENT_MAX { ", spoilt: does not count" } else { "" };
                text.push_str(&format!(
                    "\n{:>10.1} MB/s {:>9.0} requests/s   p50 {:.3} ms   p99 {:.3} ms   {per_cpu:.0} MB per server \
                     CPU-second   steal {:.1} %{spoilt}",
                    run.megabytes_per_second,
                    run.requests_per_second,
                    run.p50_us / 1e3,
                    run.p99_us / 1e3,
                    run.steal_percent
                ));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::Latencies;

    fn figures(megabytes_per_second: f64) -> LoadFigures {
        LoadFigures {
            seconds: 1.0,
            requests: 1,
            records: 1,
            bytes: 1,
            megabytes_per_second,
            records_per_second: 1.0,
            requests_per_second: 1.0,
            latency: Latencies::default().percentiles(),
            server_cpu_seconds: None,
            megabytes_per_server_cpu_second: None,
            generator_cpu_seconds: 1.0,
            generator_busy_percent: 1.0,
            unsent: 0,
            errors: Vec::new(),
        }
    }

    fn check(count: usize, runs: &[(f64, f64)], expected_median: f64, expected_runs: usize) {
        let mut runs = runs.iter().cycle();
        let next = || {
            let (rate, steal) = *runs.next().expect("they come again and again");
            Ok((figures(rate), steal))
        };
        let repeated = repeat(count, false, next).expect("no run fails");
        assert_eq!(
            (repeated.median.megabytes_per_second, repeated.runs.len()),
            (expected_median, expected_runs)
        );
        assert!(repeated.table("bytes").contains("MB/s"));
    }

    #[test]
    fn the_median_is_of_the_runs_that_count() {
        check(1, &[(5.0, 0.0)], 5.0, 1);
        check(3, &[(5.0, 0.0), (9.0, 0.0), (7.0, 0.0)], 7.0, 3);
        check(2, &[(1.0, 50.0), (7.0, 0.0), (9.0, 0.0)], 7.0, 3);
        check(2, &[(1.0, 50.0), (2.0, 50.0)], 1.0, 4);
    }
}
