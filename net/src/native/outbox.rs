//! Answers on their way into the socket, several in one system call.
//!
//! Owns: the heads of a batch of answers in one reused buffer, their payloads by reference, and how far the socket has
//! taken them.
//! Invariant: record bytes are not copied here: slices of the shard's buffers go to the kernel as they are.

use std::io::IoSlice;
use std::ops::Range;

use bytes::Bytes;
use corelog_engine::buffer::DmaSlice;
use corelog_schemas::messages::{FetchPartitionResult, FetchResponse, ProduceResponse};
use corelog_schemas::{Api, Encoder, Failure};

use super::backend::{FetchAnswer, Records};
use super::transport::WRITE_PARTS_MAX;

/// A batch of answers is closed at this size: enough for one system call, and little enough to start soon.
const BATCH_BYTES: usize = 1 << 20;

/// Above this the buffer of heads is given back after use: one large answer must not be kept by an idle connection.
const HEADS_BYTES_KEPT_MAX: usize = 64 << 10;

/// A run of bytes to send.
enum Part {
    /// Of `heads`.
    Heads(Range<usize>),
    Shared(DmaSlice),
    Owned(Bytes),
}

#[derive(Default)]
pub(crate) struct Outbox {
    encoder: Encoder,
    heads: Vec<u8>,
    parts: Vec<Part>,
    bytes: usize,
    /// Parts that are sent whole, and how much of the next one is.
    sent_parts: usize,
    sent_of_part: usize,
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= BATCH_BYTES
    }

    pub(crate) fn put_failure(&mut self, correlation_id: u32, failure: &Failure) {
        self.put_heads(|encoder, heads| encoder.failure(heads, correlation_id, failure));
    }

    pub(crate) fn put_produced(&mut self, correlation_id: u32, response: &ProduceResponse) {
        self.put_heads(|encoder, heads| encoder.response(heads, Api::Produce, correlation_id, response));
    }

    /// A frame that is whole already.
    pub(crate) fn put_frame(&mut self, frame: &[u8]) {
        self.put_heads(|_, heads| heads.extend_from_slice(frame));
    }

    /// Returns the number of record bytes.
    pub(crate) fn put_fetched(&mut self, correlation_id: u32, answer: FetchAnswer) -> u64 {
        let mut payloads = Vec::with_capacity(answer.partitions.len());
        let partitions = answer.partitions.into_iter().map(|p| {
            let records_bytes = u32::try_from(p.records.len()).expect("a fetch is cut to fetch_bytes_max");
            payloads.push(p.records);
            FetchPartitionResult {
                failure: p.failure,
                records_bytes,
                high_watermark: p.high_watermark,
                log_start_offset: p.log_start_offset,
                leader_epoch: p.leader_epoch,
                diverged: p.diverged,
            }
        });
        let response = FetchResponse { throttle_ms: answer.throttle_ms, partitions: partitions.collect() };
        self.put_heads(|encoder, heads| encoder.response(heads, Api::Fetch, correlation_id, &response));
        let before = self.bytes;
        for records in payloads {
            match records {
                Records::Empty => {}
                Records::Shared(slices) => slices.into_iter().for_each(|slice| self.put(Part::Shared(slice))),
                Records::Owned(bytes) => self.put(Part::Owned(bytes)),
            }
        }
        (self.bytes - before) as u64
    }

    fn put_heads(&mut self, encode: impl FnOnce(&mut Encoder, &mut Vec<u8>)) {
        let start = self.heads.len();
        encode(&mut self.encoder, &mut self.heads);
        let end = self.heads.len();
        if let Some(Part::Heads(last)) = self.parts.last_mut() {
            // Answers without payload follow each other in `heads`: one part for all of them.
            last.end = end;
            self.bytes += end - start;
        } else {
            self.put(Part::Heads(start..end));
        }
    }

    fn put(&mut self, part: Part) {
        let length = part_bytes(&self.heads, &part).len();
        if length > 0 {
            self.bytes += length;
            self.parts.push(part);
        }
    }

    /// Shows what is to be sent next, at most [`WRITE_PARTS_MAX`] parts, as `io` asks for it.
    pub(crate) fn unsent<'a>(&'a self, io: &mut [IoSlice<'a>; WRITE_PARTS_MAX]) -> usize {
        let mut count = 0;
        for part in self.parts[self.sent_parts..].iter().take(WRITE_PARTS_MAX) {
            let bytes = part_bytes(&self.heads, part);
            let from = if count == 0 { self.sent_of_part } else { 0 };
            io[count] = IoSlice::new(&bytes[from..]);
            count += 1;
        }
        count
    }

    /// Counts `count` bytes as sent; once all are, forgets them. Returns whether all are.
    pub(crate) fn sent(&mut self, count: usize) -> bool {
        let mut left = count;
        while self.sent_parts < self.parts.len() {
            let rest = part_bytes(&self.heads, &self.parts[self.sent_parts]).len() - self.sent_of_part;
            if left < rest {
                self.sent_of_part += left;
                return false;
            }
            left -= rest;
            self.sent_parts += 1;
            self.sent_of_part = 0;
        }
        assert_eq!(left, 0, "the transport says that it sent more than there was");
        self.clear();
        true
    }

    fn clear(&mut self) {
        self.parts.clear();
        self.heads.clear();
        if self.heads.capacity() > HEADS_BYTES_KEPT_MAX {
            self.heads = Vec::new();
        }
        (self.bytes, self.sent_parts, self.sent_of_part) = (0, 0, 0);
    }
}

fn part_bytes<'a>(heads: &'a [u8], part: &'a Part) -> &'a [u8] {
    match part {
        Part::Heads(range) => &heads[range.clone()],
        Part::Shared(slice) => slice,
        Part::Owned(bytes) => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::super::backend::FetchedPartition;
    use super::*;

    fn drain(outbox: &mut Outbox, step: usize) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let mut io = [IoSlice::new(&[]); WRITE_PARTS_MAX];
            let count = outbox.unsent(&mut io);
            let shown: Vec<u8> = io[..count].iter().flat_map(|part| part.iter().copied()).collect();
            let taken = shown.len().min(step);
            all.extend_from_slice(&shown[..taken]);
            if outbox.sent(taken) {
                return all;
            }
        }
    }

    fn fill(outbox: &mut Outbox) {
        outbox.put_failure(1, &corelog_schemas::ErrorCode::Overloaded.into());
        outbox.put_produced(2, &ProduceResponse { throttle_ms: 0, partitions: vec![] });
        let records = |text: &'static str| FetchedPartition {
            records: Records::Owned(Bytes::from_static(text.as_bytes())),
            ..FetchedPartition::default()
        };
        let partitions = vec![records("abc"), FetchedPartition::default(), records("d")];
        assert_eq!(outbox.put_fetched(3, FetchAnswer { throttle_ms: 0, partitions }), 4);
        outbox.put_frame(b"frame");
    }

    #[test]
    fn any_short_write_sends_the_same_bytes_once() {
        let mut outbox = Outbox::default();
        fill(&mut outbox);
        let whole = drain(&mut outbox, usize::MAX);
        assert!(outbox.is_empty() && whole.ends_with(b"abcdframe"));
        for step in 1..whole.len() {
            fill(&mut outbox);
            assert_eq!(drain(&mut outbox, step), whole, "{step} bytes a write");
        }
    }

    #[test]
    fn answers_without_payload_are_one_part() {
        let mut outbox = Outbox::default();
        for correlation_id in 0..100 {
            outbox.put_produced(correlation_id, &ProduceResponse { throttle_ms: 0, partitions: vec![] });
        }
        assert_eq!(outbox.parts.len(), 1);
    }

    #[test]
    fn more_parts_than_one_write_takes_are_sent_in_order() {
        let mut outbox = Outbox::default();
        let partitions = (0..200u8).map(|i| FetchedPartition {
            records: Records::Owned(Bytes::from(vec![i; 3])),
            ..FetchedPartition::default()
        });
        outbox.put_fetched(1, FetchAnswer { throttle_ms: 0, partitions: partitions.collect() });
        let whole = drain(&mut outbox, usize::MAX);
        let expected: Vec<u8> = (0..200u8).flat_map(|i| [i; 3]).collect();
        assert!(whole.ends_with(&expected));
    }
}
