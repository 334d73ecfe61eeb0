//! The clocks of a shard: the only place where it reads them.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use corelog_engine::TimestampMs;

/// Wall clock and time since the shard began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    started: Instant,
}

impl Clock {
    /// Starts now.
    pub(super) fn new() -> Self {
        Self { started: Instant::now() }
    }

    /// The wall clock. It may step; nothing but timestamps and retention depends on it.
    pub(super) fn now(&self) -> TimestampMs {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        TimestampMs(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// Milliseconds since the shard began; never goes back.
    pub(super) fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Microseconds since the shard began; never goes back.
    pub(super) fn elapsed_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}
