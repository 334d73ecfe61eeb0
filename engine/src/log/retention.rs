//! Decides which old segments go.
//!
//! Owns: one pure decision. Invariant: the active segment never goes, and a segment goes only with all older
//! ones, so that the log stays one range of offsets.
//! Not here: removing the files (`mod.rs`).

use super::options::{CleanupPolicy, LogOptions};
use crate::types::{Offset, TimestampMs};

/// Facts about one sealed segment, oldest first.
#[derive(Clone, Copy, Debug)]
pub struct SealedSegment {
    /// Exclusive end of its offsets.
    pub end: Offset,
    /// Its bytes.
    pub bytes: u64,
    /// Newest record timestamp in it; `None` if not known (then age does not delete it).
    pub max_timestamp: Option<TimestampMs>,
}

/// Counts how many of the oldest segments go.
///
/// A segment below the log start goes whatever the policy. By bytes, one goes while the log without it still
/// holds `retention_bytes`. By age, one goes once its newest record is older than `retention_ms`; a timestamp
/// ahead of `now` is not old.
pub fn expired(
    sealed: &[SealedSegment],
    log_bytes: u64,
    start: Offset,
    now: TimestampMs,
    options: &LogOptions,
) -> usize {
    let deletes = options.cleanup_policy == CleanupPolicy::Delete;
    let mut left_bytes = log_bytes;
    let mut count = 0;
    for segment in sealed {
        let below_start = segment.end <= start;
        let too_many_bytes = options.retention_bytes.is_some_and(|max| left_bytes - segment.bytes >= max);
        let too_old = match (options.retention_ms, segment.max_timestamp) {
            (Some(max), Some(newest)) => now.ms_since(newest) > max,
            _ => false,
        };
        if !(below_start || deletes && (too_many_bytes || too_old)) {
            break;
        }
        left_bytes -= segment.bytes;
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments() -> Vec<SealedSegment> {
        (1..=4)
            .map(|i| SealedSegment {
                end: Offset(i * 10),
                bytes: 100,
                max_timestamp: Some(TimestampMs(i as i64 * 1000)),
            })
            .collect()
    }

    fn check(options: LogOptions, start: u64, now: i64, expected: usize) {
        assert_eq!(expired(&segments(), 450, Offset(start), TimestampMs(now), &options), expected);
    }

    fn keep() -> LogOptions {
        LogOptions { retention_ms: None, retention_bytes: None, ..LogOptions::default() }
    }

    #[test]
    fn keeps_all_without_limits_and_drops_what_is_below_the_start() {
        check(keep(), 0, i64::MAX, 0);
        check(keep(), 20, 0, 2);
        check(keep(), 29, 0, 2);
    }

    #[test]
    fn by_bytes_the_log_never_falls_below_the_limit() {
        check(LogOptions { retention_bytes: Some(450), ..keep() }, 0, 0, 0);
        check(LogOptions { retention_bytes: Some(350), ..keep() }, 0, 0, 1);
        check(LogOptions { retention_bytes: Some(0), ..keep() }, 0, 0, 4);
    }

    #[test]
    fn by_age_and_not_when_the_clock_steps_back() {
        check(LogOptions { retention_ms: Some(500), ..keep() }, 0, 2501, 2);
        check(LogOptions { retention_ms: Some(500), ..keep() }, 0, -5_000_000, 0);
        check(
            LogOptions { retention_ms: Some(1), cleanup_policy: CleanupPolicy::Keep, ..keep() },
            10,
            i64::MAX,
            1,
        );
    }
}
