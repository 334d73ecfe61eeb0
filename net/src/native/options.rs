//! Limits of sessions, each with its reason.

/// Limits of one shard's native sessions. What a peer can make grow is bounded here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionOptions {
    /// Open connections on this shard. Each costs up to [`READ_AHEAD_BYTES_MAX`] of receive buffer while busy.
    pub connections_max: usize,
    /// Largest frame, so also the largest produce request. Must hold the largest batch of any topic, and some more.
    pub frame_bytes_max: u32,
    /// Largest head of a request: it is what gets decoded into structs (10,000 topic names fit).
    pub head_bytes_max: u32,
    /// Request bytes of one connection that are read and not answered yet; beyond it nothing more is read. One
    /// request always passes. Fairness between connections: the memory itself is the engine's, which has its budget.
    pub in_flight_bytes_max: u64,
    /// Requests of one connection that are read and not answered yet.
    pub in_flight_requests_max: u32,
    /// Answer bytes that one connection may ask for before it reads them; one fetch always passes.
    pub answer_bytes_max: u64,
    /// Record bytes of the whole shard that are read and not taken by their peers yet: they lie in the buffers that
    /// producers need too, so keep it well below the shard's memory. Beyond it no fetch is begun, and the slowest peer
    /// is closed if it has been at one batch of answers for [`SLOW_PEER_MS`].
    pub unsent_bytes_max: u64,
    /// Most record bytes of one fetch, whatever it asks for.
    pub fetch_bytes_max: u32,
    /// Longest wait of a fetch, whatever it asks for: how long a vanished consumer is kept.
    pub fetch_wait_ms_max: u32,
    /// Memory of the shard for frames larger than [`READ_AHEAD_BYTES_MAX`] while they arrive, all connections
    /// together. Who finds it used up waits its turn.
    pub large_frames_bytes_max: usize,
    /// A new connection that has not said hello in this time is closed.
    pub handshake_timeout_ms: u64,
    /// A frame that has begun must have arrived whole in this time (while the server is ready to read it).
    pub frame_timeout_ms: u64,
    /// A connection without a request under way is closed after so long. 0: never.
    pub idle_timeout_ms: u64,
    /// A peer that takes not one byte of an answer for so long is closed.
    pub write_timeout_ms: u64,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            connections_max: 4_000,
            frame_bytes_max: 16 << 20,
            head_bytes_max: 1 << 20,
            in_flight_bytes_max: 64 << 20,
            in_flight_requests_max: 1_024,
            answer_bytes_max: 32 << 20,
            unsent_bytes_max: 64 << 20,
            fetch_bytes_max: 16 << 20,
            fetch_wait_ms_max: 60_000,
            large_frames_bytes_max: 128 << 20,
            handshake_timeout_ms: 10_000,
            frame_timeout_ms: 60_000,
            idle_timeout_ms: 600_000,
            write_timeout_ms: 30_000,
        }
    }
}

/// Why options cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionOptionsError {
    /// Frames above the limit could never be read.
    #[error(
        "large_frames_bytes_max ({large_frames_bytes_max}) must be at least frame_bytes_max ({frame_bytes_max})"
    )]
    LargeFramesBelowFrame {
        /// Budget of the shard.
        large_frames_bytes_max: usize,
        /// Largest frame.
        frame_bytes_max: u32,
    },
    /// No handshake fits.
    #[error("frame_bytes_max and head_bytes_max must be at least {HANDSHAKE_BYTES_MAX}")]
    FrameBelowHandshake,
    /// Nothing could ever be served.
    #[error("{0} must be positive")]
    Zero(&'static str),
}

impl SessionOptions {
    /// Fits the limits to a shard with so much buffer memory: slow consumers hold at most a quarter of it, so that the
    /// rest is left to producers, and frames that arrive take at most half as much beside it.
    #[must_use]
    pub fn within_buffers(mut self, buffer_bytes: usize) -> Self {
        self.unsent_bytes_max = self.unsent_bytes_max.min((buffer_bytes as u64 / 4).max(1));
        let large_frames_bytes_max = self.large_frames_bytes_max.min(buffer_bytes / 2);
        self.large_frames_bytes_max = large_frames_bytes_max.max(self.frame_bytes_max as usize);
        self
    }

    /// Checks the limits against each other.
    pub fn check(&self) -> Result<(), SessionOptionsError> {
        let positive = [
            ("connections_max", self.connections_max as u64),
            ("in_flight_bytes_max", self.in_flight_bytes_max),
            ("in_flight_requests_max", u64::from(self.in_flight_requests_max)),
            ("answer_bytes_max", self.answer_bytes_max),
            ("unsent_bytes_max", self.unsent_bytes_max),
            ("fetch_bytes_max", u64::from(self.fetch_bytes_max)),
            ("handshake_timeout_ms", self.handshake_timeout_ms),
            ("frame_timeout_ms", self.frame_timeout_ms),
            ("write_timeout_ms", self.write_timeout_ms),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(SessionOptionsError::Zero(name));
        }
        if self.frame_bytes_max.min(self.head_bytes_max) < HANDSHAKE_BYTES_MAX {
            return Err(SessionOptionsError::FrameBelowHandshake);
        }
        if self.large_frames_bytes_max < self.frame_bytes_max as usize {
            return Err(SessionOptionsError::LargeFramesBelowFrame {
                large_frames_bytes_max: self.large_frames_bytes_max,
                frame_bytes_max: self.frame_bytes_max,
            });
        }
        Ok(())
    }
}

/// A receive buffer at rest: what an idle connection costs.
pub const READ_AHEAD_BYTES_MIN: usize = 8 << 10;

/// A busy receive buffer: a burst of small requests in one system call.
pub const READ_AHEAD_BYTES_MAX: usize = 128 << 10;

/// Largest frame before the handshake is done: strangers get little.
pub const HANDSHAKE_BYTES_MAX: u32 = 4 << 10;

/// A peer that takes longer for one batch of answers is closed when others wait for the memory that it holds.
pub const SLOW_PEER_MS: u64 = 5_000;

/// What an administrative answer counts against `answer_bytes_max` while it is made: a description of some 10,000
/// partitions. So a connection has few of them under way.
pub(crate) const ADMIN_ANSWER_BYTES: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_agree_with_each_other() {
        assert_eq!(SessionOptions::default().check(), Ok(()));
    }

    #[test]
    fn a_small_shard_gets_small_limits_that_still_agree() {
        let small = SessionOptions::default().within_buffers(64 << 20);
        assert_eq!((small.unsent_bytes_max, small.large_frames_bytes_max), (16 << 20, 32 << 20));
        assert_eq!(SessionOptions::default().within_buffers(1).check(), Ok(()));
        let large = SessionOptions::default().within_buffers(8 << 30);
        assert_eq!(large, SessionOptions::default(), "more memory than the limits ask for changes nothing");
    }

    #[test]
    fn contradictions_are_refused() {
        let check = |change: fn(&mut SessionOptions), expected| {
            let mut options = SessionOptions::default();
            change(&mut options);
            assert_eq!(options.check(), Err(expected));
        };
        check(|o| o.connections_max = 0, SessionOptionsError::Zero("connections_max"));
        check(|o| o.head_bytes_max = 100, SessionOptionsError::FrameBelowHandshake);
        check(
            |o| o.large_frames_bytes_max = 5,
            SessionOptionsError::LargeFramesBelowFrame {
                large_frames_bytes_max: 5,
                frame_bytes_max: 16 << 20,
            },
        );
    }
}
