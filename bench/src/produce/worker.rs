//! One thread of the produce generator: queues what is due, reads what is answered, sleeps until either changes.
//!
//! Invariant: answers come in the order of the requests of their connection, so the intended times are a queue.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Instant;

use corelog_schemas::messages::{Acks, ProduceResponse};
use corelog_schemas::{Api, ErrorCode, Failure};

use super::ProduceOptions;
use crate::error::{BenchError, BenchResult};
use crate::kafka;
use crate::load::connection::{Connection, Incoming, Receiver, Template};
use crate::load::event::Events;
use crate::load::{Run, Schedule, Tally, Window, Worker};
use crate::wire::decode_response;

/// A connection and the requests prepared for it.
pub(super) struct ProduceConnection {
    connection: Connection,
    address: String,
    templates: Vec<Template>,
    pending: Pending,
    schedule: Schedule,
    /// Its place among all connections, for the schedule.
    place: (usize, usize),
    is_writable: bool,
}

/// Requests that are not answered yet.
#[derive(Default)]
struct Pending {
    /// Intended times, oldest first.
    intended: VecDeque<Instant>,
    sent: u32,
    answered: u32,
}

impl ProduceConnection {
    pub(super) fn new(connection: Connection, templates: Vec<Template>) -> Self {
        Self {
            address: connection.address().to_owned(),
            connection,
            templates,
            pending: Pending::default(),
            schedule: Schedule::FlatOut,
            place: (0, 1),
            is_writable: true,
        }
    }

    /// Queues what is due, as far as the in-flight limit allows.
    fn queue_due(&mut self, now: Instant, end: Instant, in_flight_max: usize) {
        while self.pending.intended.len() < in_flight_max {
            if self.schedule.next_due().unwrap_or(now) >= end {
                break;
            }
            let Some(intended) = self.schedule.take_due(now) else { break };
            let template = &self.templates[self.pending.sent as usize % self.templates.len()];
            self.connection.queue(template, self.pending.sent);
            self.pending.sent = self.pending.sent.wrapping_add(1);
            self.pending.intended.push_back(intended);
        }
    }
}

/// One thread's connections.
pub(super) struct ProduceWorker {
    connections: Vec<ProduceConnection>,
    in_flight_max: usize,
    is_answered: bool,
    batch: BatchSize,
    rate: Option<f64>,
}

#[derive(Clone, Copy)]
struct BatchSize {
    records: u64,
    bytes: u64,
}

impl ProduceWorker {
    pub(super) fn new(options: &ProduceOptions) -> Self {
        let records = u64::from(options.batch_records);
        Self {
            connections: Vec::new(),
            in_flight_max: options.in_flight,
            is_answered: options.acks != Acks::None,
            batch: BatchSize { records, bytes: records * options.record_bytes as u64 },
            rate: None,
        }
    }

    /// Adds the connection with number `index` of `count`, which together send `rate` requests a second.
    pub(super) fn add(
        &mut self,
        mut connection: ProduceConnection,
        index: usize,
        count: usize,
        rate: Option<f64>,
    ) {
        connection.place = (index, count);
        self.rate = rate;
        self.connections.push(connection);
    }

    /// Queues and sends on all connections; returns when the next request is due.
    fn send_due(&mut self, run: &Run<'_>, tally: &mut Tally, now: Instant) -> BenchResult<Option<Instant>> {
        let mut next: Option<Instant> = None;
        for c in &mut self.connections {
            if now < run.window.last_send {
                c.queue_due(now, run.window.end, self.in_flight_max);
            }
            if c.is_writable && c.connection.has_outgoing() {
                let sent = c.connection.send()?;
                c.is_writable = !c.connection.has_outgoing();
                if !self.is_answered {
                    for _ in 0..sent {
                        c.pending.complete(run, tally, self.batch, Instant::now());
                    }
                }
            }
            let due = c.schedule.next_due().filter(|due| *due < run.window.end);
            if c.pending.intended.len() < self.in_flight_max {
                next = match (next, due) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
        }
        Ok(next)
    }

    /// Whether the run is over: nothing more to send, and nothing to wait for.
    fn is_done(&self, window: &Window, now: Instant) -> bool {
        now >= window.end
            && self.connections.iter().all(|c| {
                let is_behind = c.schedule.next_due().is_some_and(|due| due < window.end);
                c.pending.intended.is_empty() && (!is_behind || now >= window.last_send)
            })
    }

    /// Counts what was due and never sent.
    fn count_unsent(&mut self, run: &Run<'_>, tally: &mut Tally) {
        for c in &mut self.connections {
            if c.schedule.next_due().is_none() {
                continue;
            }
            while let Some(intended) = c.schedule.take_due(run.window.end).filter(|at| *at < run.window.end) {
                tally.never_sent(&run.window, intended);
            }
        }
    }
}

impl Worker for ProduceWorker {
    fn run(mut self, run: &Run<'_>) -> BenchResult<Tally> {
        let mut tally = Tally::default();
        let mut events = Events::new().map_err(BenchError::io("opening an epoll descriptor"))?;
        for (i, c) in self.connections.iter_mut().enumerate() {
            let (index, count) = c.place;
            c.schedule = Schedule::new(run.window.start, self.rate, index, count);
            events.add(c.connection.stream(), i).map_err(BenchError::io("watching a socket"))?;
        }
        loop {
            let now = Instant::now();
            if self.is_done(&run.window, now) || now >= run.window.drained || run.is_stopped() {
                break;
            }
            let next = self.send_due(run, &mut tally, now)?;
            // An acks=0 flood never waits for an answer, so it must not wait for events either while it can write.
            let can_go_on =
                !self.is_answered && self.rate.is_none() && self.connections.iter().any(|c| c.is_writable);
            let sleep = if can_go_on { std::time::Duration::ZERO } else { run.sleep(Instant::now(), next) };
            for ready in events.wait(Some(sleep)).map_err(BenchError::io("waiting for sockets"))? {
                let c = &mut self.connections[ready.index];
                c.is_writable |= ready.write;
                if ready.read {
                    let (pending, address) = (&mut c.pending, c.address.as_str());
                    let mut answers = Answers { pending, tally: &mut tally, run, batch: self.batch, address };
                    while c.connection.receive(&mut answers)? {}
                }
            }
        }
        self.count_unsent(run, &mut tally);
        Ok(tally)
    }
}

impl Pending {
    /// Counts the oldest request as done.
    fn complete(&mut self, run: &Run<'_>, tally: &mut Tally, batch: BatchSize, now: Instant) {
        let Some(intended) = self.intended.pop_front() else { return };
        tally.answered(&run.window, intended, now, batch.records, batch.bytes);
        run.counters.bytes.fetch_add(batch.bytes, Ordering::Relaxed);
        run.counters.records.fetch_add(batch.records, Ordering::Relaxed);
    }
}

struct Answers<'a, 'r> {
    pending: &'a mut Pending,
    tally: &'a mut Tally,
    run: &'a Run<'r>,
    batch: BatchSize,
    address: &'a str,
}

impl Receiver for Answers<'_, '_> {
    fn head(&mut self, frame: &Incoming<'_>) -> BenchResult<()> {
        let answered = frame.correlation_id();
        if answered != self.pending.answered || self.pending.intended.is_empty() {
            let what = format!("answer {answered} instead of {}", self.pending.answered);
            return Err(BenchError::protocol(self.address, what));
        }
        self.pending.answered = self.pending.answered.wrapping_add(1);
        match failure_of(frame, self.address)? {
            None => self.pending.complete(self.run, self.tally, self.batch, Instant::now()),
            Some(failure) => {
                self.pending.intended.pop_front();
                self.tally.refused(&failure);
            }
        }
        Ok(())
    }

    fn payload(&mut self, _bytes: &[u8]) {}

    fn end(&mut self) {}
}

/// What a produce answer complains of, in either protocol.
fn failure_of(frame: &Incoming<'_>, address: &str) -> BenchResult<Option<Failure>> {
    match frame {
        Incoming::Native { prefix, head } => {
            match decode_response::<ProduceResponse>(Api::Produce, prefix, head, address) {
                Ok(response) => Ok(response.partitions.into_iter().find_map(Result::err)),
                Err(BenchError::Refused { failure, .. }) => Ok(Some(failure)),
                Err(e) => Err(e),
            }
        }
        Incoming::Kafka { body, .. } => match kafka::produce_error(body) {
            Some(0) => Ok(None),
            Some(code) => Ok(Some(Failure::new(ErrorCode::Unknown, format!("Kafka's error code {code}")))),
            None => Err(BenchError::protocol(address, "an answer that is cut short")),
        },
    }
}
