//! Bytes a second, for work that must not be felt.
//!
//! Owns: the budget. Who has used bytes is told how long to wait before the next ones, so that a piece larger than a
//! second's budget still goes through, and pays for it afterwards.

use std::cell::Cell;

/// A budget of bytes a second, shared by all who use it.
#[derive(Debug)]
pub(crate) struct Throttle {
    bytes_per_second: Option<u64>,
    /// When what was used so far is paid for, in microseconds.
    paid_us: Cell<u64>,
}

impl Throttle {
    /// A budget; `None`: no limit.
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.filter(|&bytes| bytes > 0), paid_us: Cell::new(0) }
    }

    /// Uses `bytes` now; returns how many ms to wait before the next ones.
    pub(crate) fn used(&self, bytes: u64, now_ms: u64) -> u64 {
        let Some(rate) = self.bytes_per_second else { return 0 };
        let now_us = now_ms.saturating_mul(1_000);
        let cost_us = u128::from(bytes) * 1_000_000 / u128::from(rate);
        let paid_us =
            self.paid_us.get().max(now_us).saturating_add(u64::try_from(cost_us).unwrap_or(u64::MAX));
        self.paid_us.set(paid_us);
        (paid_us - now_us).div_ceil(1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_work_takes_a_second_whoever_does_it() {
        let throttle = Throttle::new(Some(1_000_000));
        assert_eq!(throttle.used(500_000, 10), 500);
        assert_eq!(throttle.used(500_000, 10), 1_000);
        assert_eq!(throttle.used(1_000, 2_000), 1, "what was not used is not saved up");
        assert_eq!(Throttle::new(None).used(u64::MAX, 0), 0);
    }
}
