//! One thread of the fetch generator.
//!
//! Invariant: at most one request is in flight on a connection, since the next offset is known only from its answer.

use std::sync::atomic::Ordering;
use std::time::Instant;

use corelog_schemas::messages::{
    FetchPartition, FetchPartitionResult, FetchRequest, FetchResponse, PartitionRef,
};
use corelog_schemas::{Api, Encoder, ErrorCode};

use super::cursor::BatchCursor;
use super::{FetchMode, FetchOptions};
use crate::error::{BenchError, BenchResult};
use crate::load::connection::{Connection, Incoming, Receiver};
use crate::load::event::Events;
use crate::load::{Run, Tally, Worker};
use crate::wire::decode_response;

/// Where a partition is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    partition: u32,
    next_offset: u64,
    /// Where to begin again at the end of a cold read; `None` when reading the tail.
    again_from: Option<u64>,
}

impl Position {
    pub(super) fn new(partition: u32, mode: FetchMode, earliest: u64, latest: u64) -> Self {
        match mode {
            FetchMode::Cold => Self { partition, next_offset: earliest, again_from: Some(earliest) },
            FetchMode::Tail => Self { partition, next_offset: latest, again_from: None },
        }
    }

    /// Moves on after an answer that ended at `next` (if it had batches) below the high watermark `end`.
    fn advance(&mut self, next: Option<u64>, end: Option<u64>) {
        self.next_offset = next.unwrap_or(self.next_offset);
        if let (Some(start), Some(end)) = (self.again_from, end)
            && self.next_offset >= end
        {
            self.next_offset = start;
        }
    }

    /// Moves to where the log begins now, after its beginning was deleted.
    fn reset(&mut self, log_start: Option<u64>) {
        if let Some(start) = log_start {
            self.next_offset = self.next_offset.max(start);
            self.again_from = self.again_from.map(|from| from.max(start));
        }
    }
}

/// A connection and what it reads.
pub(super) struct FetchConnection {
    connection: Connection,
    is_writable: bool,
    reading: Reading,
}

/// The request in flight, and the answer as far as it has come.
struct Reading {
    address: String,
    topic_id: u128,
    positions: Vec<Position>,
    options: FetchOptions,
    /// Which position the next request names first, so that all get their turn.
    first: usize,
    sent: u32,
    intended: Option<Instant>,
    results: Vec<FetchPartitionResult>,
    /// Which result's batches are arriving, and how many bytes of them are still to come.
    current: (usize, u64),
    cursor: BatchCursor,
    bytes: u64,
    records: u64,
    fault: Option<String>,
}

impl FetchConnection {
    pub(super) fn new(
        connection: Connection,
        topic_id: u128,
        positions: Vec<Position>,
        options: &FetchOptions,
    ) -> Self {
        let reading = Reading {
            address: connection.address().to_owned(),
            topic_id,
            positions,
            options: options.clone(),
            first: 0,
            sent: 0,
            intended: None,
            results: Vec::new(),
            current: (0, 0),
            cursor: BatchCursor::default(),
            bytes: 0,
            records: 0,
            fault: None,
        };
        Self { connection, is_writable: true, reading }
    }
}

impl Reading {
    /// The next request.
    fn request(&mut self, now: Instant) -> FetchRequest {
        let count = self.positions.len();
        let partitions = (0..count)
            .map(|i| {
                let position = &self.positions[(self.first + i) % count];
                FetchPartition {
                    from: PartitionRef::by_id(self.topic_id, position.partition),
                    fetch_offset: position.next_offset,
                    max_bytes: self.options.fetch_bytes,
                    leader_epoch: None,
                    last_epoch: None,
                }
            })
            .collect();
        self.intended = Some(now);
        self.sent = self.sent.wrapping_add(1);
        FetchRequest {
            min_bytes: self.options.min_bytes,
            max_wait_ms: self.options.max_wait.as_millis() as u32,
            max_bytes: self.options.fetch_bytes,
            partitions,
        }
    }

    /// Closes the batches of the current result and opens the next one that has any.
    fn next_result(&mut self) {
        loop {
            let (index, left) = self.current;
            if left > 0 {
                return;
            }
            if let Some(result) = self.results.get(index) {
                if !self.cursor.is_between() {
                    self.fault = Some("a batch is cut off at the end of a partition's part".into());
                }
                self.records += self.cursor.records;
                let count = self.positions.len();
                let position = &mut self.positions[(self.first + index) % count];
                match result.failure.as_ref().map(|failure| failure.code) {
                    Some(ErrorCode::OffsetOutOfRange) => position.reset(result.log_start_offset),
                    Some(_) => {}
                    None => position.advance(self.cursor.next_offset, result.high_watermark),
                }
                self.cursor = BatchCursor::default();
            }
            if index + 1 >= self.results.len() {
                self.current = (self.results.len(), 0);
                return;
            }
            self.current = (index + 1, u64::from(self.results[index + 1].records_bytes));
        }
    }
}

/// One thread's connections.
#[derive(Default)]
pub(super) struct FetchWorker {
    connections: Vec<FetchConnection>,
}

impl FetchWorker {
    pub(super) fn add(&mut self, connection: FetchConnection) {
        self.connections.push(connection);
    }
}

impl Worker for FetchWorker {
    fn run(mut self, run: &Run<'_>) -> BenchResult<Tally> {
        let mut tally = Tally::default();
        let mut encoder = Encoder::default();
        let mut events = Events::new().map_err(BenchError::io("opening an epoll descriptor"))?;
        for (i, c) in self.connections.iter().enumerate() {
            events.add(c.connection.stream(), i).map_err(BenchError::io("watching a socket"))?;
        }
        loop {
            let now = Instant::now();
            if now >= run.window.end || run.is_stopped() {
                return Ok(tally);
            }
            for c in &mut self.connections {
                if c.reading.intended.is_none() {
                    let id = c.reading.sent;
                    let request = c.reading.request(now);
                    c.connection.queue_request(&mut encoder, id, &request);
                }
                if c.is_writable && c.connection.has_outgoing() {
                    c.connection.send()?;
                    c.is_writable = !c.connection.has_outgoing();
                }
            }
            let sleep = run.sleep(Instant::now(), None);
            for ready in events.wait(Some(sleep)).map_err(BenchError::io("waiting for sockets"))? {
                let c = &mut self.connections[ready.index];
                c.is_writable |= ready.write;
                if ready.read {
                    let mut answer = Answer { reading: &mut c.reading, tally: &mut tally, run };
                    while c.connection.receive(&mut answer)? {}
                    if let Some(fault) = c.reading.fault.take() {
                        return Err(BenchError::protocol(&c.reading.address, fault));
                    }
                }
            }
        }
    }
}

struct Answer<'a, 'r> {
    reading: &'a mut Reading,
    tally: &'a mut Tally,
    run: &'a Run<'r>,
}

impl Receiver for Answer<'_, '_> {
    fn head(&mut self, frame: &Incoming<'_>) -> BenchResult<()> {
        let reading = &mut *self.reading;
        let Incoming::Native { prefix, head } = frame else {
            return Err(BenchError::protocol(&reading.address, "an answer of another protocol"));
        };
        if reading.intended.is_none() || prefix.correlation_id.wrapping_add(1) != reading.sent {
            return Err(BenchError::protocol(&reading.address, "an answer that nothing asked for"));
        }
        reading.results = match decode_response::<FetchResponse>(Api::Fetch, prefix, head, &reading.address) {
            Ok(response) => response.partitions,
            Err(BenchError::Refused { failure, .. }) => {
                self.tally.refused(&failure);
                Vec::new()
            }
            Err(e) => return Err(e),
        };
        for failure in reading.results.iter().filter_map(|result| result.failure.as_ref()) {
            self.tally.refused(failure);
        }
        reading.bytes = prefix.payload_bytes();
        reading.records = 0;
        reading.current = (0, reading.results.first().map_or(0, |result| u64::from(result.records_bytes)));
        reading.next_result();
        Ok(())
    }

    fn payload(&mut self, mut bytes: &[u8]) {
        let reading = &mut *self.reading;
        self.run.counters.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        while !bytes.is_empty() {
            let (index, left) = reading.current;
            let piece = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            if piece == 0 {
                reading.fault = Some("more batches than the head announces".into());
                return;
            }
            if let Err(e) = reading.cursor.feed(&bytes[..piece]) {
                reading.fault = Some(e.to_string());
                return;
            }
            bytes = &bytes[piece..];
            reading.current = (index, left - piece as u64);
            reading.next_result();
        }
    }

    fn end(&mut self) {
        let reading = &mut *self.reading;
        let Some(intended) = reading.intended.take() else { return };
        reading.first = (reading.first + 1) % reading.positions.len().max(1);
        self.run.counters.records.fetch_add(reading.records, Ordering::Relaxed);
        self.tally.answered(&self.run.window, intended, Instant::now(), reading.records, reading.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cold_read_begins_again_at_the_end_and_a_tail_read_stays_there() {
        let mut cold = Position::new(0, FetchMode::Cold, 5, 20);
        cold.advance(Some(12), Some(20));
        assert_eq!(cold.next_offset, 12);
        cold.advance(Some(20), Some(20));
        assert_eq!(cold.next_offset, 5);
        let mut tail = Position::new(0, FetchMode::Tail, 5, 20);
        tail.advance(None, Some(20));
        assert_eq!(tail.next_offset, 20);
        tail.advance(Some(25), Some(25));
        assert_eq!(tail.next_offset, 25);
    }

    #[test]
    fn a_log_whose_beginning_was_deleted_is_read_from_its_new_one() {
        let mut position = Position::new(0, FetchMode::Cold, 5, 20);
        position.reset(Some(9));
        assert_eq!((position.next_offset, position.again_from), (9, Some(9)));
        position.reset(None);
        assert_eq!(position.next_offset, 9);
    }
}
