//! When to try again: exponential back-off with jitter, and the deadline of the whole attempt.
//!
//! Owns: the arithmetic. Pure: time and randomness are arguments. Which errors are worth another try is
//! decided where the errors are (`error.rs`).

/// Limits of trying again. Units: milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often to try again after the first attempt; 0 never tries again.
    pub retries_max: u32,
    /// Pause before the first retry. 10 ms: shorter than anybody notices.
    pub backoff_ms: u64,
    /// Longest pause; the pause doubles up to here. 1 s: a restarting server is found soon after it is back.
    pub backoff_ms_max: u64,
    /// Longest pause while a leader is looked for, for the first [`FAILOVER_RETRIES`] retries. 40 ms: what a failover
    /// costs a client beyond the cluster's own time is half of this.
    pub failover_backoff_ms_max: u64,
}

/// How often a leader is looked for without long pauses: some 10 s, within which a cluster has elected one.
pub const FAILOVER_RETRIES: u32 = 300;

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { retries_max: u32::MAX, backoff_ms: 10, backoff_ms_max: 1_000, failover_backoff_ms_max: 40 }
    }
}

/// What to do after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryDecision {
    /// Try again at this time (same clock as `now_ms`).
    At(u64),
    /// The retries are used up, or the deadline comes before the next try.
    GiveUp,
}

/// Facts about a failed attempt.
#[derive(Clone, Copy, Debug)]
pub struct FailedAttempt {
    /// Attempts made so far, at least 1.
    pub attempts: u32,
    /// Now, in ms of any steady clock.
    pub now_ms: u64,
    /// When the whole attempt ends, same clock.
    pub deadline_ms: u64,
    /// Whether it failed because the leader is gone, moved or not known: one comes soon, or has.
    pub is_failover: bool,
    /// Uniform in `[0, 1)`: spreads the retries of many clients that lost the same server.
    pub jitter: f64,
}

impl RetryPolicy {
    /// The pause before retry number `retry` (from 1): doubled each time, capped, then shortened by up to half.
    pub fn backoff_ms(&self, retry: u32, is_failover: bool, jitter: f64) -> u64 {
        assert!(retry > 0, "the first attempt needs no pause");
        assert!((0.0..1.0).contains(&jitter), "jitter {jitter} is outside [0, 1)");
        let is_quick = is_failover && retry <= FAILOVER_RETRIES;
        let max = if is_quick {
            self.failover_backoff_ms_max.min(self.backoff_ms_max)
        } else {
            self.backoff_ms_max
        };
        let doublings = (retry - 1).min(32);
        let full = self.backoff_ms.saturating_mul(1u64 << doublings).min(max);
        let cut = (full as f64 * 0.5 * jitter) as u64;
        full - cut
    }

    /// Decides about another try.
    pub fn decide(&self, failed: FailedAttempt) -> RetryDecision {
        assert!(failed.attempts > 0, "a failed attempt counts");
        if failed.attempts > self.retries_max {
            return RetryDecision::GiveUp;
        }
        let at =
            failed.now_ms.saturating_add(self.backoff_ms(failed.attempts, failed.is_failover, failed.jitter));
        if at >= failed.deadline_ms { RetryDecision::GiveUp } else { RetryDecision::At(at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: RetryPolicy =
        RetryPolicy { retries_max: 3, backoff_ms: 100, backoff_ms_max: 350, failover_backoff_ms_max: 150 };

    fn after(attempts: u32, jitter: f64) -> RetryDecision {
        POLICY.decide(FailedAttempt {
            attempts,
            now_ms: 1_000,
            deadline_ms: 2_000,
            is_failover: false,
            jitter,
        })
    }

    #[test]
    fn pauses_double_up_to_the_cap() {
        assert_eq!(after(1, 0.0), RetryDecision::At(1_100));
        assert_eq!(after(2, 0.0), RetryDecision::At(1_200));
        assert_eq!(after(3, 0.0), RetryDecision::At(1_350));
        assert_eq!(after(4, 0.0), RetryDecision::GiveUp);
    }

    #[test]
    fn jitter_shortens_by_at_most_half() {
        assert_eq!(after(2, 0.5), RetryDecision::At(1_150));
        assert_eq!(POLICY.backoff_ms(1, false, 0.999), 51);
        assert_eq!(RetryPolicy::default().backoff_ms(u32::MAX, false, 0.0), 1_000);
    }

    #[test]
    fn a_leader_is_looked_for_without_long_pauses_for_a_while() {
        assert_eq!(POLICY.backoff_ms(3, true, 0.0), 150);
        assert_eq!(POLICY.backoff_ms(FAILOVER_RETRIES, true, 0.0), 150);
        assert_eq!(POLICY.backoff_ms(FAILOVER_RETRIES + 1, true, 0.0), 350);
        assert_eq!(RetryPolicy::default().backoff_ms(5, true, 0.0), 40);
    }

    #[test]
    fn the_deadline_beats_the_retries() {
        let failed =
            FailedAttempt { attempts: 1, now_ms: 1_000, deadline_ms: 1_100, is_failover: false, jitter: 0.0 };
        assert_eq!(POLICY.decide(failed), RetryDecision::GiveUp);
        let none = RetryPolicy { retries_max: 0, ..POLICY };
        assert_eq!(none.decide(FailedAttempt { deadline_ms: 9_999, ..failed }), RetryDecision::GiveUp);
    }
}
