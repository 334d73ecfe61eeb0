//! What one generator thread has counted.

use std::collections::BTreeMap;
use std::time::Instant;

use corelog_schemas::Failure;
use serde::Serialize;

use super::Window;
use crate::latency::Latencies;

/// Counts of one thread; added up at the end.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) latencies: Latencies,
    pub(crate) requests: u64,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// Requests of the schedule that were due and never sent.
    pub(crate) unsent: u64,
    errors: BTreeMap<&'static str, (u64, String)>,
}

/// How often a code came.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ErrorCount {
    /// Its name.
    pub(crate) code: &'static str,
    /// How often.
    pub(crate) count: u64,
    /// What the server said the first time.
    pub(crate) first_message: String,
}

impl Tally {
    /// Counts an answer: its latency by the time it was intended, its bytes by the time it came.
    pub(crate) fn answered(
        &mut self,
        window: &Window,
        intended: Instant,
        now: Instant,
        records: u64,
        bytes: u64,
    ) {
        if window.holds(intended) {
            self.latencies.record(now.saturating_duration_since(intended));
        }
        if window.holds(now) {
            self.requests += 1;
            self.records += records;
            self.bytes += bytes;
        }
    }

    /// Counts a request that was due and never sent, with the latency that it has had at least.
    pub(crate) fn never_sent(&mut self, window: &Window, intended: Instant) {
        if window.holds(intended) {
            self.unsent += 1;
            self.latencies.record(window.end - intended);
        }
    }

    /// Counts a refusal.
    pub(crate) fn refused(&mut self, failure: &Failure) {
        let entry = self.errors.entry(failure.code.name()).or_insert_with(|| (0, failure.message.clone()));
        entry.0 += 1;
    }

    /// Refusals so far.
    pub(crate) fn errors(&self) -> Vec<ErrorCount> {
        self.errors
            .iter()
            .map(|(&code, (count, message))| ErrorCount {
                code,
                count: *count,
                first_message: message.clone(),
            })
            .collect()
    }

    /// Adds what another thread has counted.
    pub(crate) fn add(&mut self, other: Self) {
        self.latencies.add(&other.latencies);
        self.requests += other.requests;
        self.records += other.records;
        self.bytes += other.bytes;
        self.unsent += other.unsent;
        for (code, (count, message)) in other.errors {
            self.errors.entry(code).or_insert_with(|| (0, message)).0 += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use corelog_schemas::ErrorCode;

    use super::*;

    #[test]
    fn warm_up_counts_nothing_and_a_late_answer_counts_as_latency_alone() {
        let start = Instant::now();
        let window = Window::new(start, Duration::from_secs(1), Duration::from_secs(1));
        let at = |ms| start + Duration::from_millis(ms);
        let mut tally = Tally::default();
        tally.answered(&window, at(0), at(500), 10, 100);
        assert_eq!((tally.requests, tally.latencies.percentiles().count), (0, 0));
        tally.answered(&window, at(900), at(1100), 10, 100);
        assert_eq!((tally.requests, tally.latencies.percentiles().count), (1, 0));
        tally.answered(&window, at(1900), at(2900), 10, 100);
        assert_eq!((tally.requests, tally.latencies.percentiles().count), (1, 1));
        assert!(tally.latencies.percentiles().max_us >= 999_000.0);
        tally.never_sent(&window, at(1500));
        assert_eq!((tally.unsent, tally.latencies.percentiles().count), (1, 2));
    }

    #[test]
    fn errors_are_counted_by_code_with_the_first_message() {
        let mut tally = Tally::default();
        tally.refused(&Failure::new(ErrorCode::DiskFull, "first"));
        tally.refused(&Failure::new(ErrorCode::DiskFull, "second"));
        let mut other = Tally::default();
        other.refused(&Failure::new(ErrorCode::DiskFull, "third"));
        other.refused(&Failure::new(ErrorCode::Overloaded, "fourth"));
        tally.add(other);
        let errors = tally.errors();
        assert_eq!(errors.len(), 2);
        assert_eq!(
            (errors[0].code, errors[0].count, errors[0].first_message.as_str()),
            ("DiskFull", 3, "first")
        );
    }
}
