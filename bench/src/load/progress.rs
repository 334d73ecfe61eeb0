//! The live line of a run, on standard error, and only for a person: nothing is printed into a pipe.

use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Counters, Window};

/// Time between two lines.
const INTERVAL: Duration = Duration::from_millis(500);

pub(super) struct Progress {
    is_terminal: bool,
    last: Instant,
    last_bytes: u64,
    last_records: u64,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            is_terminal: std::io::stderr().is_terminal(),
            last: Instant::now(),
            last_bytes: 0,
            last_records: 0,
        }
    }

    /// Prints a line if it is time for one.
    pub(super) fn show(&mut self, window: &Window, counters: &[Counters]) {
        let elapsed = self.last.elapsed();
        if !self.is_terminal || elapsed < INTERVAL {
            return;
        }
        let sum = |of: fn(&Counters) -> u64| counters.iter().map(of).sum::<u64>();
        let bytes = sum(|c| c.bytes.load(Ordering::Relaxed));
        let records = sum(|c| c.records.load(Ordering::Relaxed));
        let line =
            live_line(window, Instant::now(), elapsed, bytes - self.last_bytes, records - self.last_records);
        // A terminal that is gone is no reason to stop measuring.
        let _ = write!(std::io::stderr(), "\r\x1b[K{line}");
        (self.last, self.last_bytes, self.last_records) = (Instant::now(), bytes, records);
    }

    /// Removes the line.
    pub(super) fn clear(&self) {
        if self.is_terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

fn live_line(window: &Window, now: Instant, elapsed: Duration, bytes: u64, records: u64) -> String {
    let (phase, left) = if now < window.measure {
        ("warming up", window.measure - now)
    } else if now < window.end {
        ("measuring", window.end - now)
    } else {
        ("waiting for answers", window.drained.saturating_duration_since(now))
    };
    let seconds = elapsed.as_secs_f64();
    format!(
        "{phase}, {:.0} s left: {:.1} MB/s, {:.0} records/s",
        left.as_secs_f64(),
        bytes as f64 / 1e6 / seconds,
        records as f64 / seconds
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_phase_time_and_rate() {
        let start = Instant::now();
        let window = Window::new(start, Duration::from_secs(2), Duration::from_secs(10));
        let line = |at_ms| {
            live_line(
                &window,
                start + Duration::from_millis(at_ms),
                Duration::from_millis(500),
                5_000_000,
                50,
            )
        };
        assert_eq!(line(1000), "warming up, 1 s left: 10.0 MB/s, 100 records/s");
        assert_eq!(line(3000), "measuring, 9 s left: 10.0 MB/s, 100 records/s");
        assert_eq!(line(13_000), "waiting for answers, 9 s left: 10.0 MB/s, 100 records/s");
    }
}
