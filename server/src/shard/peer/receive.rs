//! Frames of a replication stream, cut out of what a socket delivers.
//!
//! Owns: the memory that the next bytes go to. A frame lies in one piece and is handed out as a part of that memory,
//! so between the socket and the follower's log there is one copy: the one into the log's tail chunk.
//! Invariant: `filled <= filling.len()`; all of `filling` is initialised, and nobody else sees it.
//! Invariant: a buffer is filled again only when no part that was handed out of it is left.
//! Invariant: a large frame is read to its end and not beyond, so that the next one begins a buffer of its own and
//! is not moved; of small ones, what is cut off at the end of a buffer is moved once.
//! Limits: at most [`SPARES_MAX`] buffers wait to be used again, none larger than [`SPARE_BYTES_MAX`]; parts that were
//! handed out are bounded by the credit of the stream.

use bytes::{Bytes, BytesMut};
use corelog_schemas::FrameLimits;
use corelog_schemas::frame::{FRAME_PREFIX_BYTES, FrameError, FramePrefix};

/// Least length of a buffer: many small frames come by one system call.
const BUFFER_BYTES: usize = 256 << 10;

/// Above this a frame is read to its end and no further.
const READ_EXACT_BYTES: usize = 32 << 10;

/// Buffers kept for another use: one being appended to a log, one being filled, and as many again for bursts.
const SPARES_MAX: usize = 4;

/// A larger buffer was made for a rare frame and is given back.
const SPARE_BYTES_MAX: usize = 4 << 20;

/// One frame as it came.
#[derive(Debug)]
pub(super) struct ReceivedFrame {
    /// Its fixed part.
    pub(super) prefix: FramePrefix,
    /// The flatbuffer, not verified yet.
    pub(super) head: Bytes,
    /// What follows it.
    pub(super) payload: Bytes,
}

/// Cuts a byte stream into frames.
pub(super) struct FrameReceiver {
    limits: FrameLimits,
    /// Where bytes go now; empty if no buffer was needed yet.
    filling: BytesMut,
    filled: usize,
    /// Received, and handed out frame by frame.
    received: Bytes,
    /// Whole buffers, parts of which may still be in use.
    spares: Vec<Bytes>,
    /// Length of the frame before: the next one is probably like it.
    last_frame_bytes: usize,
    moved_bytes: u64,
}

impl FrameReceiver {
    pub(super) fn new(limits: FrameLimits) -> Self {
        Self {
            limits,
            filling: BytesMut::new(),
            filled: 0,
            received: Bytes::new(),
            spares: Vec::new(),
            last_frame_bytes: 0,
            moved_bytes: 0,
        }
    }

    /// The next frame that has come whole.
    ///
    /// Errors: the stream cannot be read on; close it.
    pub(super) fn next_frame(&mut self) -> Result<Option<ReceivedFrame>, FrameError> {
        if self.received.is_empty() && self.frame_in_filling()?.is_some_and(|bytes| bytes <= self.filled) {
            self.hand_out();
        }
        let Some(prefix) = prefix_of(&self.received, &self.limits)? else { return Ok(None) };
        let frame_bytes = frame_bytes(&prefix);
        if self.received.len() < frame_bytes {
            return Ok(None);
        }
        let mut frame = self.received.split_to(frame_bytes);
        self.last_frame_bytes = frame_bytes;
        let mut head = frame.split_off(FRAME_PREFIX_BYTES);
        let payload = head.split_off(prefix.head_bytes as usize);
        Ok(Some(ReceivedFrame { prefix, head, payload }))
    }

    /// Where the next bytes go: at least one. Call it when [`FrameReceiver::next_frame`] has nothing.
    ///
    /// Errors: the stream cannot be read on; close it.
    pub(super) fn window(&mut self) -> Result<&mut [u8], FrameError> {
        if self.filled == 0 {
            self.begin_buffer()?;
        }
        let known = self.frame_in_filling()?;
        let wanted = known.unwrap_or(BUFFER_BYTES);
        if wanted > self.filling.len() {
            self.grow(wanted);
        }
        let until = match known {
            Some(frame_bytes) if frame_bytes > READ_EXACT_BYTES => frame_bytes,
            None if self.last_frame_bytes > READ_EXACT_BYTES => {
                self.filling.len().min(self.last_frame_bytes.max(self.filled + FRAME_PREFIX_BYTES))
            }
            _ => self.filling.len(),
        };
        assert!(self.filled < until, "a whole frame of {wanted} bytes is there");
        Ok(&mut self.filling[self.filled..until])
    }

    /// Counts `count` bytes, put at the front of the window, as received.
    pub(super) fn received(&mut self, count: usize) {
        let room = self.filling.len() - self.filled;
        assert!(count <= room, "{count} bytes into {room}");
        self.filled += count;
    }

    /// Length of the frame that is being filled, once its prefix is there.
    fn frame_in_filling(&self) -> Result<Option<usize>, FrameError> {
        let prefix = prefix_of(&self.filling[..self.filled], &self.limits)?;
        Ok(prefix.as_ref().map(frame_bytes))
    }

    /// Takes a buffer, and moves into it what is left of the last one.
    fn begin_buffer(&mut self) -> Result<(), FrameError> {
        let left = std::mem::take(&mut self.received);
        let known = prefix_of(&left, &self.limits)?.as_ref().map(frame_bytes);
        let wanted = known.unwrap_or(self.last_frame_bytes.min(SPARE_BYTES_MAX)).max(BUFFER_BYTES);
        if self.filling.len() < wanted {
            self.filling = self.take_buffer(wanted);
        }
        self.filling[..left.len()].copy_from_slice(&left);
        self.filled = left.len();
        self.moved_bytes += left.len() as u64;
        Ok(())
    }

    /// A larger buffer for the frame that is being filled: its length is known now.
    fn grow(&mut self, wanted: usize) {
        let mut larger = self.take_buffer(wanted);
        larger[..self.filled].copy_from_slice(&self.filling[..self.filled]);
        self.moved_bytes += self.filled as u64;
        let smaller = std::mem::replace(&mut self.filling, larger);
        self.keep(smaller.freeze());
    }

    /// A buffer of at least `wanted` bytes that nobody else sees.
    fn take_buffer(&mut self, wanted: usize) -> BytesMut {
        for index in (0..self.spares.len()).rev() {
            if self.spares[index].len() < wanted {
                continue;
            }
            match self.spares.swap_remove(index).try_into_mut() {
                Ok(buffer) => return buffer,
                Err(in_use) => self.spares.push(in_use),
            }
        }
        BytesMut::zeroed(wanted)
    }

    /// Makes what was filled readable; the buffer is used again when all its parts are gone.
    fn hand_out(&mut self) {
        let whole = std::mem::take(&mut self.filling).freeze();
        self.received = whole.slice(..self.filled);
        self.filled = 0;
        self.keep(whole);
    }

    fn keep(&mut self, whole: Bytes) {
        if whole.is_empty() || whole.len() > SPARE_BYTES_MAX {
            return;
        }
        if self.spares.len() == SPARES_MAX {
            self.spares.remove(0);
        }
        self.spares.push(whole);
    }
}

fn prefix_of(bytes: &[u8], limits: &FrameLimits) -> Result<Option<FramePrefix>, FrameError> {
    bytes.first_chunk::<FRAME_PREFIX_BYTES>().map(|prefix| FramePrefix::parse(prefix, limits)).transpose()
}

/// Its length; at most the limit of a frame, which is 32 bits wide.
fn frame_bytes(prefix: &FramePrefix) -> usize {
    prefix.frame_bytes as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FrameLimits = FrameLimits { frame_bytes_max: 8 << 20, head_bytes_max: 1 << 20 };

    fn frame(number: u32, head_bytes: u32, payload_bytes: usize) -> Vec<u8> {
        let frame_bytes = (FRAME_PREFIX_BYTES + head_bytes as usize + payload_bytes) as u64;
        let prefix = FramePrefix { frame_bytes, head_bytes, correlation_id: number, api: 1 };
        let mut bytes = prefix.to_bytes().to_vec();
        bytes.extend(std::iter::repeat_n(b'h', head_bytes as usize));
        bytes.extend(std::iter::repeat_n(number as u8, payload_bytes));
        bytes
    }

    /// Feeds `stream` in reads of at most `read_bytes`; yields the receiver and how many reads it took.
    fn feed(mut stream: &[u8], read_bytes: usize, keep: bool) -> (Vec<ReceivedFrame>, FrameReceiver, usize) {
        let mut receiver = FrameReceiver::new(LIMITS);
        let (mut frames, mut reads, mut count) = (Vec::new(), 0, 0u32);
        loop {
            while let Some(frame) = receiver.next_frame().unwrap() {
                assert_eq!(frame.prefix.correlation_id, count, "frames come in order");
                assert!(frame.head.iter().all(|&byte| byte == b'h'));
                assert!(frame.payload.iter().all(|&byte| byte == count as u8));
                count += 1;
                if keep {
                    frames.push(frame);
                }
            }
            if stream.is_empty() {
                return (frames, receiver, reads);
            }
            let window = receiver.window().unwrap();
            let length = window.len().min(read_bytes).min(stream.len());
            window[..length].copy_from_slice(&stream[..length]);
            receiver.received(length);
            stream = &stream[length..];
            reads += 1;
        }
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_the_socket_cuts_them() {
        let lengths = [0, 1, 100, 40_000, 5_000_000, 10, 300_000, 0, 70_000];
        let stream: Vec<u8> =
            (0..).zip(lengths).flat_map(|(number, bytes)| frame(number, number, bytes)).collect();
        for read_bytes in [7, 4_096, 65_536, usize::MAX] {
            let (frames, _, _) = feed(&stream, read_bytes, true);
            let seen: Vec<usize> = frames.iter().map(|frame| frame.payload.len()).collect();
            assert_eq!(seen, lengths, "reads of {read_bytes} bytes");
        }
    }

    #[test]
    fn a_stream_of_large_frames_is_hardly_moved_and_uses_its_buffers_again() {
        let stream: Vec<u8> = (0..50).flat_map(|number| frame(number, 40, 1_000_000)).collect();
        let (_, receiver, reads) = feed(&stream, usize::MAX, false);
        assert!(receiver.moved_bytes <= BUFFER_BYTES as u64, "{} bytes were moved", receiver.moved_bytes);
        assert!(reads < 55, "{reads} reads for 50 frames");
        assert!(receiver.spares.len() <= 2, "{} buffers for one frame at a time", receiver.spares.len());
    }

    #[test]
    fn many_small_frames_come_by_few_reads() {
        let stream: Vec<u8> = (0..10_000).flat_map(|number| frame(number, 40, 200)).collect();
        let (_, receiver, reads) = feed(&stream, usize::MAX, false);
        assert!(reads <= stream.len() / BUFFER_BYTES + 2, "{reads} reads");
        assert!(receiver.moved_bytes <= reads as u64 * 256, "{} bytes were moved", receiver.moved_bytes);
    }

    #[test]
    fn what_was_handed_out_is_never_written_again() {
        let stream: Vec<u8> = (0..40).flat_map(|number| frame(number, 16, 200_000)).collect();
        let (frames, receiver, _) = feed(&stream, usize::MAX, true);
        for (number, frame) in (0u32..).zip(&frames) {
            assert!(frame.payload.iter().all(|&byte| byte == number as u8), "frame {number}");
        }
        assert!(receiver.spares.len() <= SPARES_MAX);
    }

    #[test]
    fn garbage_and_oversized_frames_end_the_stream_before_memory_is_made_for_them() {
        let check = |bytes: &[u8]| {
            let mut receiver = FrameReceiver::new(LIMITS);
            receiver.window().unwrap()[..bytes.len()].copy_from_slice(bytes);
            receiver.received(bytes.len());
            assert!(receiver.next_frame().is_err());
            assert!(receiver.filling.len() <= BUFFER_BYTES);
        };
        check(b"GET / HTTP/1.1\r\n");
        let mut huge = FramePrefix { frame_bytes: 1 << 31, head_bytes: 0, correlation_id: 0, api: 1 };
        check(&huge.to_bytes());
        huge.frame_bytes = 20;
        huge.head_bytes = 500;
        check(&huge.to_bytes());
    }
}
