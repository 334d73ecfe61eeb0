//! Latencies: recorded in nanoseconds, told in microseconds.
//!
//! Owns: the histogram's range and precision. Invariant: nothing is dropped; what is beyond the range counts as
//! its end, and the end is longer than any run waits.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency told apart: longer than any request waits.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// Three digits: 1 in 1,000 is finer than two runs agree.
const DIGITS: u8 = 3;

/// A histogram of latencies.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(
            Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS).expect("the bounds are constants that fit"),
        )
    }
}

impl Latencies {
    /// Counts one latency. Cost: a few nanoseconds, no allocation.
    pub fn record(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record(nanoseconds);
    }

    /// Adds what another thread counted.
    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("both have the same bounds");
    }

    /// What to print.
    pub fn percentiles(&self) -> Percentiles {
        let at = |quantile: f64| self.0.value_at_quantile(quantile) as f64 / 1e3;
        Percentiles {
            count: self.0.len(),
            mean_us: self.0.mean() / 1e3,
            min_us: if self.0.is_empty() { 0.0 } else { self.0.min() as f64 / 1e3 },
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p99_9_us: at(0.999),
            p99_99_us: at(0.9999),
            max_us: self.0.max() as f64 / 1e3,
        }
    }
}

/// A latency distribution, in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Percentiles {
    pub count: u64,
    pub mean_us: f64,
    pub min_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p99_9_us: f64,
    pub p99_99_us: f64,
    pub max_us: f64,
}

impl Percentiles {
    /// Heads for [`Percentiles::row`].
    pub(crate) const HEAD: &str = "     p50      p90      p99    p99.9   p99.99      max";

    /// One line for people, in milliseconds.
    pub(crate) fn row(&self) -> String {
        [self.p50_us, self.p90_us, self.p99_us, self.p99_9_us, self.p99_99_us, self.max_us]
            .map(|us| format!("{:>8.3}", us / 1e3))
            .join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_thousand_known_latencies() {
        let mut latencies = Latencies::default();
        for us in 1..=1000 {
            latencies.record(Duration::from_micros(us));
        }
        let p = latencies.percentiles();
        assert_eq!(p.count, 1000);
        for (got, expected) in [(p.p50_us, 500.0), (p.p99_us, 990.0), (p.max_us, 1000.0), (p.mean_us, 500.5)]
        {
            assert!((got - expected).abs() / expected < 0.002, "{got} is not about {expected}");
        }
    }

    #[test]
    fn nothing_recorded_reads_as_zero_and_beyond_the_range_counts_as_its_end() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.percentiles().max_us, 0.0);
        assert_eq!(latencies.percentiles().min_us, 0.0);
        latencies.record(Duration::from_secs(100_000));
        assert!(latencies.percentiles().max_us >= LATENCY_NS_MAX as f64 / 1e3);
    }

    #[test]
    fn added_histograms_count_together() {
        let (mut a, mut b) = (Latencies::default(), Latencies::default());
        a.record(Duration::from_micros(1));
        b.record(Duration::from_micros(3));
        a.add(&b);
        assert_eq!(a.percentiles().count, 2);
    }
}
