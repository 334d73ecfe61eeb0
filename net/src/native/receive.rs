//! The receive buffer of one connection.
//!
//! Owns: where the next bytes from the socket go, so that each frame lies in one piece and is moved as rarely as can be.
//! Invariant: `start <= end <= bytes.len()`; the frame being received begins at `start`.
//! Invariant: a large frame is read to its end and not beyond, and behind it no more than such a frame again, so that
//! the next one begins at the front: a stream of equally large frames is never moved in memory, and comes by one read
//! each. Of small ones, what is cut off at the end of the buffer is moved once.
//! Not here: who may have how much memory (`budget.rs`), what a frame is (`corelog_schemas::frame`).

use super::options::{READ_AHEAD_BYTES_MAX, READ_AHEAD_BYTES_MIN};

/// Above this a frame is read to its end and no further: moving part of the next one would cost more than one more
/// system call.
const READ_EXACT_BYTES: usize = 32 << 10;

const _: () = assert!(READ_AHEAD_BYTES_MIN < READ_EXACT_BYTES && READ_EXACT_BYTES < READ_AHEAD_BYTES_MAX);

pub(crate) struct ReceiveBuffer {
    /// Initialised once when it grows, so that a socket can be read into a plain slice.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Length of the frame before: the next one is probably like it.
    last_frame_bytes: usize,
    moved_bytes: u64,
}

impl ReceiveBuffer {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; READ_AHEAD_BYTES_MIN], start: 0, end: 0, last_frame_bytes: 0, moved_bytes: 0 }
    }

    /// Memory that it holds.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Received and not consumed.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Forgets the frame of `frame_bytes` at the front.
    pub(crate) fn consume(&mut self, frame_bytes: usize) {
        let unread = self.end - self.start;
        assert!(frame_bytes <= unread, "{frame_bytes} of {unread} unread bytes");
        self.start += frame_bytes;
        self.last_frame_bytes = frame_bytes;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Bytes moved within the buffer since this was last asked.
    pub(crate) fn take_moved_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.moved_bytes)
    }

    /// Where the next bytes go, at least one. `frame_bytes` is the length of the frame at `start`, if it is known; it
    /// is larger than what is unread. The buffer grows to hold it: the caller has asked for the memory.
    pub(crate) fn window(&mut self, frame_bytes: Option<usize>) -> &mut [u8] {
        let wanted = frame_bytes.unwrap_or(READ_AHEAD_BYTES_MIN);
        assert!(wanted > self.end - self.start, "a whole frame of {wanted} bytes is there");
        if self.start > 0 && self.start + wanted > self.bytes.len() {
            self.move_to_front();
        }
        if wanted > self.bytes.len() {
            self.bytes.resize(wanted, 0);
        }
        let until = match frame_bytes {
            Some(frame_bytes) if frame_bytes > READ_EXACT_BYTES => self.start + frame_bytes,
            None if self.last_frame_bytes > READ_EXACT_BYTES => {
                self.bytes.len().min(self.end + self.last_frame_bytes)
            }
            _ => self.bytes.len().min(self.end + READ_AHEAD_BYTES_MAX),
        };
        &mut self.bytes[self.end..until]
    }

    /// Counts `count` bytes, put at the front of the window, as received. A read that fills a small buffer makes it
    /// larger: there is probably more.
    pub(crate) fn received(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.end, "{count} bytes into {}", self.bytes.len() - self.end);
        self.end += count;
        if self.end == self.bytes.len() && self.end < READ_AHEAD_BYTES_MAX {
            self.bytes.resize((self.end * 4).min(READ_AHEAD_BYTES_MAX), 0);
        }
    }

    /// Gives back what is more than `bytes` (and than what is unread).
    pub(crate) fn trim(&mut self, bytes: usize) {
        self.move_to_front();
        let bytes = bytes.max(self.end).max(READ_AHEAD_BYTES_MIN);
        if bytes < self.bytes.len() {
            self.bytes.truncate(bytes);
            self.bytes.shrink_to_fit();
        }
    }

    fn move_to_front(&mut self) {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.moved_bytes += (self.end - self.start) as u64;
            (self.start, self.end) = (0, self.end - self.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(buffer: &mut ReceiveBuffer, frame_bytes: Option<usize>, available: usize) -> usize {
        let window = buffer.window(frame_bytes).len();
        assert!(window > 0, "there is always room for a byte");
        let count = window.min(available);
        buffer.received(count);
        count
    }

    #[test]
    fn a_stream_of_large_frames_is_never_moved() {
        for frame_bytes in [1_000_100, 100_050, 50_000] {
            let mut buffer = ReceiveBuffer::new();
            let (mut reads, mut frames) = (0, 0);
            while frames < 100 {
                let known = (buffer.unread().len() >= 16).then_some(frame_bytes);
                put(&mut buffer, known, usize::MAX);
                reads += 1;
                while buffer.unread().len() >= frame_bytes {
                    buffer.consume(frame_bytes);
                    frames += 1;
                }
            }
            assert_eq!(buffer.take_moved_bytes(), 0, "frames of {frame_bytes} bytes");
            assert!(reads < 105, "{reads} reads for 100 frames of {frame_bytes} bytes");
            assert!(buffer.capacity() <= frame_bytes.max(READ_AHEAD_BYTES_MAX));
        }
    }

    #[test]
    fn memory_of_a_large_frame_can_be_given_back() {
        let mut buffer = ReceiveBuffer::new();
        put(&mut buffer, Some(1_000_000), usize::MAX);
        buffer.consume(1_000_000);
        assert_eq!(buffer.capacity(), 1_000_000);
        buffer.trim(0);
        assert_eq!(buffer.capacity(), READ_AHEAD_BYTES_MIN);
    }

    #[test]
    fn small_frames_move_less_than_one_frame_a_read() {
        let mut buffer = ReceiveBuffer::new();
        let (mut reads, mut received) = (0, 0);
        while received < 10_000_000 {
            let known = (!buffer.unread().is_empty()).then_some(1_000);
            received += put(&mut buffer, known, usize::MAX);
            reads += 1;
            while buffer.unread().len() >= 1_000 {
                buffer.consume(1_000);
            }
        }
        assert_eq!(buffer.capacity(), READ_AHEAD_BYTES_MAX, "it grew under load");
        let moved = buffer.take_moved_bytes();
        assert!(moved <= reads * 1_000, "{moved} bytes moved in {reads} reads");
        assert!(received as u64 / reads > 60_000, "{reads} reads for {received} bytes");
    }

    #[test]
    fn trimming_keeps_what_is_unread() {
        let mut buffer = ReceiveBuffer::new();
        let window = buffer.window(Some(500_000));
        window[..20_000].fill(7);
        window[19_999] = 8;
        buffer.received(20_000);
        buffer.consume(10_000);
        buffer.trim(0);
        assert_eq!((buffer.capacity(), buffer.unread().len()), (10_000, 10_000));
        assert_eq!((buffer.unread()[0], buffer.unread()[9_999]), (7, 8));
    }
}
