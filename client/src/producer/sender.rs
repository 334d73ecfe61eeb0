//! The task that empties the producer's queues: one per producer, owns its connections.
//!
//! Owns: which request leaves when, and what becomes of its batches: acked, sent again, failed.
//! Loop: fail what is over time, send what is ready, wait for an answer, a new record or a timer.
//! Invariant: every batch that leaves the accumulator comes back to it or gets its outcome, exactly once.
//! Ends: when the producer is closed and nothing waits or is on its way.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use corelog_engine::Offset;
use corelog_engine::batch::BatchFields;
use corelog_schemas::messages::{Acks, PartitionRef, ProducePartition, ProduceRequest};
use corelog_schemas::{ErrorCode, Failure};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::ProducerShared;
use super::accumulator::{Batch, PartitionSend};
use super::delivery::{BatchAck, DeliveryReport, RetryNotice};
use super::request::{Done, SLOW_MS, SLOW_TICK_MS, Waiting};
use super::sequences::{Sequences, finish};
use crate::cluster::PartitionKey;
use crate::error::{DeliveryError, RequestError, is_stale_metadata};
use crate::pool::ConnectionPool;
use crate::retry::{FailedAttempt, RetryDecision};

/// How often to look again while a shard has all the requests on their way that it may have.
const BUSY_TICK_MS: u64 = 20;
/// Longest time that we ask the server to wait for replicas; our own timeout is a little longer.
const SERVER_TIMEOUT_SHARE: u64 = 9;

type InFlight = FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send>>>;

struct Sender {
    shared: Arc<ProducerShared>,
    pool: Arc<ConnectionPool>,
    in_flight: InFlight,
    /// Requests on their way, by shard.
    requests: HashMap<Arc<str>, usize>,
    /// Shards that asked us to wait, and until when.
    throttled: HashMap<Arc<str>, u64>,
    refreshing: HashSet<Arc<str>>,
    sequences: Sequences,
    request_bytes_max: usize,
}

/// Runs until the producer is closed and empty.
pub(super) async fn run(shared: Arc<ProducerShared>) {
    let mut sender = Sender {
        pool: Arc::new(shared.cluster.new_pool()),
        in_flight: FuturesUnordered::new(),
        requests: HashMap::new(),
        throttled: HashMap::new(),
        refreshing: HashSet::new(),
        sequences: Sequences::default(),
        request_bytes_max: shared.config.request_bytes_max,
        shared,
    };
    loop {
        let now_ms = sender.shared.now_ms();
        let refused = sender.turn(now_ms);
        let (next_ms, ended) = {
            let queues = sender.shared.lock();
            (queues.accumulator.next_wake_ms(), queues.closed && queues.accumulator.is_empty())
        };
        if ended {
            return;
        }
        let pause = next_ms.map(|at| {
            let at = if refused { at.max(now_ms + BUSY_TICK_MS) } else { at };
            Duration::from_millis(at.saturating_sub(now_ms))
        });
        tokio::select! {
            biased;
            Some(done) = sender.in_flight.next() => sender.done(done),
            () = sender.shared.wake.notified() => {}
            () = sleep_or_forever(pause) => {}
        }
    }
}

async fn sleep_or_forever(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

impl Sender {
    /// Fails what is over time and sends what is ready; says whether something ready had to stay.
    fn turn(&mut self, now_ms: u64) -> bool {
        let over = {
            let mut queues = self.shared.lock();
            if queues.abandoned { queues.accumulator.abandon() } else { queues.accumulator.expire(now_ms) }
        };
        for send in over {
            for batch in send.batches {
                let error = self.give_up_error(&send.key, &batch);
                self.settle(&send.key, batch, Err(error));
            }
        }
        loop {
            let (sends, refused) = self.drain(now_ms);
            if sends.is_empty() {
                return refused;
            }
            for (address, sends) in sends {
                self.start(address, sends);
            }
        }
    }

    fn give_up_error(&self, key: &PartitionKey, batch: &Batch) -> DeliveryError {
        if batch.attempts == 0 && self.shared.lock().abandoned {
            return DeliveryError::Closed;
        }
        let last = batch.last_error.clone().or_else(|| {
            let topic = self.shared.cluster.cached(&key.0)?;
            let reason = topic.partitions.get(key.1 as usize)?.error?;
            Some(format!("it was never sent: {}", reason.text()).into())
        });
        DeliveryError::GaveUp {
            attempts: batch.attempts,
            maybe_appended: batch.maybe_appended,
            last: last
                .unwrap_or_else(|| "it was never sent: no leader is known, or its shard is busy".into()),
        }
    }

    /// Takes one request's worth of ready batches for each shard.
    fn drain(&mut self, now_ms: u64) -> (HashMap<Arc<str>, Vec<PartitionSend>>, bool) {
        let mut leaderless: Vec<(PartitionKey, u64)> = Vec::new();
        let mut refused = false;
        let mut bytes_to: HashMap<Arc<str>, usize> = HashMap::new();
        let mut leaders: HashMap<PartitionKey, Arc<str>> = HashMap::new();
        let in_flight_max = self.shared.config.in_flight_requests_max;
        let mut guard = self.shared.lock();
        let queues = &mut *guard;
        let sends = queues.accumulator.drain(now_ms, |key, bytes, created_ms| {
            let topic = self.shared.cluster.cached(&key.0);
            let Some(address) = topic.as_ref().and_then(|topic| topic.leader(key.1)) else {
                leaderless.push((key.clone(), created_ms));
                return false;
            };
            let busy = self.requests.get(address).is_some_and(|count| *count >= in_flight_max);
            let throttled = self.throttled.get(address).is_some_and(|until| *until > now_ms);
            let taken = bytes_to.get(address).copied().unwrap_or(0);
            if busy || throttled || (taken > 0 && taken + bytes > self.request_bytes_max) {
                refused = true;
                return false;
            }
            *bytes_to.entry(Arc::clone(address)).or_default() += bytes;
            leaders.insert(key.clone(), Arc::clone(address));
            true
        });
        let mut by_shard: HashMap<Arc<str>, Vec<PartitionSend>> = HashMap::new();
        for send in sends {
            if matches!(send.batches.last(), Some(batch) if batch.attempts == 1) {
                queues.partitioner.batch_closed(&send.key.0, send.key.1);
            }
            let address = leaders.remove(&send.key).expect("accepted above");
            by_shard.entry(address).or_default().push(send);
        }
        let backoff_ms = (self.shared.config.retry.failover_backoff_ms_max / 2).max(1);
        for (key, _) in &leaderless {
            queues.accumulator.postpone(key, now_ms + backoff_ms);
        }
        drop(guard);
        for (key, created_ms) in leaderless {
            let topic = self.shared.cluster.cached(&key.0);
            let reason = topic.map_or(ErrorCode::NotLeader, |topic| topic.no_leader(key.1));
            let reason = format!("{} ({})", reason.text(), reason.name());
            self.tell_retry(&key, &reason, now_ms.saturating_sub(created_ms));
            self.refresh(key.0);
        }
        (by_shard, refused)
    }

    /// Looks a topic up again, unless that is under way.
    fn refresh(&mut self, topic: Arc<str>) {
        if !self.refreshing.insert(Arc::clone(&topic)) {
            return;
        }
        let cluster = Arc::clone(&self.shared.cluster);
        self.in_flight.push(Box::pin(async move {
            let generation = cluster.cached(&topic).map_or(0, |known| known.generation);
            if let Err(error) = cluster.topic_newer_than(&topic, generation).await {
                tracing::debug!(%topic, %error, "metadata refresh failed");
            }
            Done::Refreshed { topic }
        }));
    }

    /// Builds the request and puts it on its way.
    fn start(&mut self, address: Arc<str>, mut sends: Vec<PartitionSend>) {
        *self.requests.entry(Arc::clone(&address)).or_default() += 1;
        let mut payload = Vec::new();
        let mut partitions = Vec::new();
        for send in &mut sends {
            let mut records_bytes = 0;
            for batch in &mut send.batches {
                let bytes = self.finish(&send.key, batch);
                records_bytes += bytes.len();
                payload.push(bytes);
            }
            let topic = self.shared.cluster.cached(&send.key.0);
            let to = match topic {
                Some(topic) => PartitionRef::by_id(topic.id.0, send.key.1),
                None => PartitionRef::by_name(&send.key.0, send.key.1),
            };
            let records_bytes = u32::try_from(records_bytes).expect("requests are smaller than 4 GiB");
            partitions.push(ProducePartition { to, records_bytes, leader_epoch: None });
        }
        let timeout_ms = self.pool.options().request_timeout_ms * SERVER_TIMEOUT_SHARE / 10;
        let request = ProduceRequest {
            acks: self.shared.config.acks,
            timeout_ms: u32::try_from(timeout_ms).unwrap_or(u32::MAX),
            partitions,
        };
        let pool = Arc::clone(&self.pool);
        let waiting = Waiting::new(pool, address, request, payload, sends);
        self.in_flight.push(Box::pin(waiting.wait(SLOW_MS)));
    }

    fn finish(&mut self, key: &PartitionKey, batch: &mut Batch) -> Bytes {
        let config = &self.shared.config;
        if config.idempotent && config.acks != Acks::None {
            return self.sequences.finish(key, batch, config.compression);
        }
        finish(batch, config.compression, &BatchFields::default())
    }

    /// A request is not answered: its partitions may have another leader by now, that has to get them.
    fn slow(&mut self, mut waiting: Waiting) {
        let topics: HashSet<Arc<str>> = waiting.sends().map(|send| Arc::clone(&send.key.0)).collect();
        for topic in topics {
            self.refresh(topic);
        }
        let address = Arc::clone(&waiting.address);
        let cluster = Arc::clone(&self.shared.cluster);
        let moved = waiting.take_moved(|send| {
            let topic = cluster.cached(&send.key.0);
            topic.and_then(|topic| topic.leader(send.key.1).map(|leader| *leader != address)).unwrap_or(false)
        });
        if waiting.sends().next().is_some() {
            self.in_flight.push(Box::pin(waiting.wait(SLOW_TICK_MS)));
        } else {
            self.request_ended(&address);
        }
        for send in moved {
            self.try_again(
                send,
                &format!("{address} did not answer, and another leader took over"),
                true,
                true,
            );
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Refreshed { topic } => {
                self.refreshing.remove(&topic);
            }
            Done::Slow(waiting) => self.slow(waiting),
            Done::TooLarge { address, sends, bytes_max } => {
                self.request_ended(&address);
                self.too_large(sends, bytes_max);
            }
            Done::Request { address, sends, results } => {
                self.request_ended(&address);
                match results {
                    Ok(answered) => {
                        if answered.throttle_ms > 0 {
                            let until = self.shared.now_ms() + u64::from(answered.throttle_ms);
                            self.throttled.insert(address, until);
                        }
                        for (send, result) in sends.into_iter().zip(answered.partitions) {
                            match result {
                                Ok(ack) => self.acked(send, ack),
                                Err(failure) => self.refused(send, &failure),
                            }
                        }
                    }
                    Err(error) => {
                        for send in sends {
                            self.request_failed(send, &error);
                        }
                    }
                }
            }
        }
    }

    fn request_ended(&mut self, address: &Arc<str>) {
        let count = self.requests.get_mut(address).expect("counted when it left");
        *count -= 1;
        if *count == 0 {
            self.requests.remove(address);
        }
    }

    fn acked(&mut self, send: PartitionSend, ack: BatchAck) {
        let mut base_offset = ack.base_offset;
        for batch in send.batches {
            let records = u64::from(batch.record_count);
            self.settle(&send.key, batch, Ok(BatchAck { base_offset, ..ack }));
            // What a server says is not believed to be small enough.
            base_offset = base_offset.and_then(|base| base.0.checked_add(records)).map(Offset);
        }
        self.shared.lock().accumulator.completed(&send.key);
    }

    fn refused(&mut self, send: PartitionSend, failure: &Failure) {
        if is_stale_metadata(failure.code) {
            self.refresh(Arc::clone(&send.key.0));
        }
        if failure.code == ErrorCode::OutOfOrderSequence {
            // The leader lacks what came before: acked with acks = 1 by a leader that is gone, or given up by an operator.
            self.sequences.give_up(&send.key);
        }
        if failure.code.is_retriable() {
            let maybe_appended = matches!(failure.code, ErrorCode::RequestTimedOut | ErrorCode::Unacked);
            let is_failover = is_stale_metadata(failure.code);
            self.try_again(send, &failure.to_string(), maybe_appended, is_failover);
        } else {
            self.fail(send, &DeliveryError::Refused(failure.clone()));
        }
    }

    fn request_failed(&mut self, send: PartitionSend, error: &RequestError) {
        if let RequestError::Refused(failure) = error {
            return self.refused(send, failure);
        }
        // The shard may be gone for good, and its partitions elsewhere.
        self.refresh(Arc::clone(&send.key.0));
        let maybe_appended =
            matches!(error, RequestError::Disconnected { .. } | RequestError::TimedOut { .. });
        self.try_again(send, &error.to_string(), maybe_appended, true);
    }

    /// Puts batches back for another try; those whose time or tries are used up fail. Those are the oldest, so
    /// reports stay in order.
    fn try_again(&mut self, send: PartitionSend, error: &str, maybe_appended: bool, is_failover: bool) {
        let now_ms = self.shared.now_ms();
        let jitter = rand::random::<f64>();
        let error: Arc<str> = error.into();
        let mut not_before_ms = now_ms;
        let mut again = Vec::new();
        for mut batch in send.batches {
            batch.maybe_appended |= maybe_appended;
            batch.last_error = Some(Arc::clone(&error));
            let failed = FailedAttempt {
                attempts: batch.attempts,
                now_ms,
                deadline_ms: batch.deadline_ms,
                is_failover,
                jitter,
            };
            match self.shared.config.retry.decide(failed) {
                RetryDecision::At(at_ms) => {
                    not_before_ms = not_before_ms.max(at_ms);
                    again.push(batch);
                }
                RetryDecision::GiveUp => {
                    let error = self.give_up_error(&send.key, &batch);
                    self.settle(&send.key, batch, Err(error));
                }
            }
        }
        tracing::debug!(topic = %send.key.0, partition = send.key.1, %error, batches = again.len(), "produce retried");
        if let Some(oldest) = again.first() {
            self.tell_retry(&send.key, &error, now_ms.saturating_sub(oldest.created_ms));
        }
        self.shared.lock().accumulator.give_back(&send.key, again, not_before_ms);
    }

    fn tell_retry(&self, key: &PartitionKey, reason: &str, waited_ms: u64) {
        if let Some(callback) = &self.shared.config.on_retry {
            callback(&RetryNotice { topic: &key.0, partition: key.1, reason, waited_ms });
        }
    }

    fn fail(&mut self, send: PartitionSend, error: &DeliveryError) {
        for batch in send.batches {
            self.settle(&send.key, batch, Err(error.clone()));
        }
        self.shared.lock().accumulator.completed(&send.key);
    }

    /// The server takes only smaller frames: cut the requests to size; a batch that is too large alone fails.
    fn too_large(&mut self, sends: Vec<PartitionSend>, bytes_max: usize) {
        self.request_bytes_max = self.request_bytes_max.min(bytes_max);
        self.shared.lock().accumulator.limit_requests(bytes_max);
        let now_ms = self.shared.now_ms();
        for mut send in sends {
            if send.batches.len() == 1 && send.bytes() > bytes_max {
                let message =
                    format!("a batch of {} bytes, the server's frames hold {bytes_max}", send.bytes());
                let failure = Failure::new(ErrorCode::BatchTooLarge, message);
                self.fail(send, &DeliveryError::Refused(failure));
                continue;
            }
            for batch in &mut send.batches {
                batch.attempts -= 1;
                batch.sent_with = None;
            }
            self.shared.lock().accumulator.give_back(&send.key, send.batches, now_ms);
        }
    }

    /// Tells the outcome of a batch and gives its memory back.
    fn settle(&mut self, key: &PartitionKey, batch: Batch, outcome: Result<BatchAck, DeliveryError>) {
        if outcome.is_err() && batch.stamped_by.is_some() {
            self.sequences.give_up(key);
        }
        if let Some(callback) = &self.shared.config.on_delivery {
            callback(&DeliveryReport {
                topic: &key.0,
                partition: key.1,
                tags: &batch.tags,
                outcome: &outcome,
            });
        }
        batch.cell.set(outcome);
        self.shared.memory.add_permits(batch.reserved_bytes);
    }
}
