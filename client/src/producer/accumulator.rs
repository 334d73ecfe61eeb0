//! Gathers records into batches, and says which batches may be sent now.
//!
//! Owns: the queue of each partition: one open batch, closed ones behind each other, and at most one request on
//! its way. Pure: time is an argument, nothing is sent here.
//! Invariant: **order per partition.** Only one request per partition is on its way, and a batch that comes back
//! for a retry goes to the front; so a later record never passes an earlier one, whatever fails. All closed
//! batches of a partition travel in one request, so the limit of one costs little.
//! Invariant: in a queue, an older batch has at least as many attempts and an earlier deadline than a younger
//! one; so batches give up oldest first and their reports stay in order.
//! Not here: the bound on memory (a semaphore in `producer`), retries (`retry`), compression (`sender`).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use corelog_engine::batch::{BatchBuilder, BuildError, NewRecord};

use super::delivery::OutcomeCell;
use crate::cluster::PartitionKey;

/// Limits of the queues.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AccumulatorLimits {
    /// A batch is closed when it would grow beyond this, header included.
    pub batch_bytes: usize,
    /// How long an open batch waits for more records. 0: until the partition's last request is answered.
    pub linger_ms: u64,
    /// Most bytes of one partition in one request.
    pub partition_request_bytes_max: usize,
    /// Most batches of one partition in one request: the server remembers so many of an idempotent producer.
    pub partition_request_batches_max: usize,
    /// A batch older than this that is not on its way has failed.
    pub delivery_timeout_ms: u64,
    /// Whether anybody wants the tags back.
    pub keep_tags: bool,
}

/// The bytes of a batch: still open to be compressed, or ready for the wire (and for a retry).
#[derive(Debug)]
pub(crate) enum BatchBody {
    /// Records as pushed.
    Building(BatchBuilder),
    /// A finished record batch.
    Finished(Bytes),
}

/// A batch on its way from the first record to its outcome.
#[derive(Debug)]
pub(crate) struct Batch {
    pub body: BatchBody,
    pub record_count: u32,
    /// Uncompressed size, an upper bound of what is sent.
    pub bytes: usize,
    /// What it holds of the producer's memory.
    pub reserved_bytes: usize,
    pub created_ms: u64,
    pub deadline_ms: u64,
    pub attempts: u32,
    /// The request in which it was sent first. Tried again, the batches of one request stay together and alone: an
    /// idempotent producer repeats a request as it was.
    pub sent_with: Option<u64>,
    /// The producer id that its bytes carry.
    pub stamped_by: Option<i64>,
    pub tags: Vec<u64>,
    /// Whether an attempt may have reached the log though no answer came.
    pub maybe_appended: bool,
    /// What the last attempt failed with.
    pub last_error: Option<Arc<str>>,
    pub cell: Arc<OutcomeCell>,
}

/// Batches of one partition that go out together.
#[derive(Debug)]
pub(crate) struct PartitionSend {
    pub key: PartitionKey,
    pub batches: Vec<Batch>,
}

impl PartitionSend {
    /// Upper bound of what it puts on the wire.
    pub(crate) fn bytes(&self) -> usize {
        self.batches.iter().map(|batch| batch.bytes).sum()
    }
}

/// Where a pushed record stands.
#[derive(Debug)]
pub(crate) struct Pushed {
    pub cell: Arc<OutcomeCell>,
    /// Its place in the batch.
    pub index: u32,
    /// Whether a batch was closed to make room for it.
    pub closed_batch: bool,
    /// Whether something may be sent now that could not before, or a timer starts: the sender must look.
    pub wake_sender: bool,
}

#[derive(Debug, Default)]
struct PartitionQueue {
    open: Option<Batch>,
    closed: VecDeque<Batch>,
    /// Outcomes of the batches on their way; empty if there is no request.
    in_flight: Vec<Arc<OutcomeCell>>,
    /// Back-off: nothing leaves before.
    not_before_ms: u64,
}

impl PartitionQueue {
    fn is_idle(&self) -> bool {
        self.open.is_none() && self.closed.is_empty() && self.in_flight.is_empty()
    }

    fn oldest(&self) -> Option<&Batch> {
        self.closed.front().or(self.open.as_ref())
    }

    /// When something may leave; `None` if there is nothing, or a request is on its way.
    fn ready_ms(&self, linger_ms: u64) -> Option<u64> {
        if !self.in_flight.is_empty() {
            return None;
        }
        let lingered = if self.closed.is_empty() { self.open.as_ref()?.created_ms + linger_ms } else { 0 };
        Some(lingered.max(self.not_before_ms))
    }
}

/// All queues of one producer.
#[derive(Debug)]
pub(crate) struct Accumulator {
    limits: AccumulatorLimits,
    queues: HashMap<PartitionKey, PartitionQueue>,
    /// How many requests have been taken.
    requests: u64,
}

impl Accumulator {
    pub(crate) fn new(limits: AccumulatorLimits) -> Self {
        Self { limits, queues: HashMap::new(), requests: 0 }
    }

    /// Adds a record to the open batch of its partition, closing that first if the record does not fit.
    ///
    /// Errors: only `RecordTooLarge`, for a record that no batch can hold.
    pub(crate) fn push(
        &mut self,
        key: &PartitionKey,
        record: &NewRecord<'_>,
        entry: Entry,
        now_ms: u64,
    ) -> Result<Pushed, BuildError> {
        if !self.queues.contains_key(key) {
            self.queues.insert(key.clone(), PartitionQueue::default());
        }
        let limits = self.limits;
        let queue = self.queues.get_mut(key).expect("inserted above");
        let mut closed_batch = false;
        let had_open = queue.open.is_some();
        loop {
            let batch = queue.open.get_or_insert_with(|| Batch::open(&limits, now_ms));
            let BatchBody::Building(builder) = &mut batch.body else {
                unreachable!("an open batch is being built");
            };
            match builder.push(record) {
                Ok(index) => {
                    batch.record_count = index + 1;
                    batch.bytes = builder.size_bytes();
                    batch.reserved_bytes += entry.reserved_bytes;
                    if limits.keep_tags {
                        batch.tags.push(entry.tag);
                    }
                    let cell = Arc::clone(&batch.cell);
                    let wake_sender = queue.in_flight.is_empty() && (closed_batch || !had_open);
                    return Ok(Pushed { cell, index, closed_batch, wake_sender });
                }
                Err(BuildError::BatchFull { .. }) => {
                    queue.closed.extend(queue.open.take());
                    closed_batch = true;
                }
                Err(error @ BuildError::RecordTooLarge { .. }) => {
                    if batch.record_count == 0 {
                        queue.open = None;
                    }
                    if queue.is_idle() {
                        self.queues.remove(key);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Takes what may be sent now: for each ready partition, oldest first, its closed batches (or the open one
    /// when it has lingered) up to the limits. `accept` says whether the request that it would join has room
    /// for so many bytes, of which the oldest were created then; a refused partition stays queued.
    pub(crate) fn drain(
        &mut self,
        now_ms: u64,
        mut accept: impl FnMut(&PartitionKey, usize, u64) -> bool,
    ) -> Vec<PartitionSend> {
        let limits = self.limits;
        let mut ready: Vec<(u64, PartitionKey)> = Vec::new();
        for (key, queue) in &self.queues {
            if queue.ready_ms(limits.linger_ms).is_some_and(|at| at <= now_ms)
                && let Some(oldest) = queue.oldest()
            {
                ready.push((oldest.created_ms, key.clone()));
            }
        }
        ready.sort_unstable();
        let mut sends = Vec::new();
        for (created_ms, key) in ready {
            let queue = self.queues.get_mut(&key).expect("listed above");
            let (count, with_open, bytes) = queue.plan(&limits, now_ms);
            if !accept(&key, bytes, created_ms) {
                continue;
            }
            let mut batches: Vec<Batch> = queue.closed.drain(..count).collect();
            if with_open {
                batches.extend(queue.open.take());
            }
            self.requests += 1;
            for batch in &mut batches {
                batch.attempts += 1;
                batch.sent_with.get_or_insert(self.requests);
            }
            queue.in_flight = batches.iter().map(|batch| Arc::clone(&batch.cell)).collect();
            sends.push(PartitionSend { key, batches });
        }
        sends
    }

    /// The request of this partition has ended and none of its batches comes back.
    pub(crate) fn completed(&mut self, key: &PartitionKey) {
        self.settle(key, Vec::new(), 0);
    }

    /// The request of this partition has failed; these batches go back to the front, to leave at `not_before_ms`.
    pub(crate) fn give_back(&mut self, key: &PartitionKey, batches: Vec<Batch>, not_before_ms: u64) {
        self.settle(key, batches, not_before_ms);
    }

    fn settle(&mut self, key: &PartitionKey, batches: Vec<Batch>, not_before_ms: u64) {
        let queue = self.queues.get_mut(key).expect("a queue with a request on its way is kept");
        assert!(!queue.in_flight.is_empty(), "a request ends once");
        queue.in_flight.clear();
        queue.not_before_ms = not_before_ms;
        for batch in batches.into_iter().rev() {
            queue.closed.push_front(batch);
        }
        if queue.is_idle() {
            self.queues.remove(key);
        }
    }

    /// Keeps a partition back until then: its leader is not known.
    pub(crate) fn postpone(&mut self, key: &PartitionKey, not_before_ms: u64) {
        if let Some(queue) = self.queues.get_mut(key) {
            queue.not_before_ms = queue.not_before_ms.max(not_before_ms);
        }
    }

    /// Takes the batches whose time is over, oldest first per partition. Batches on their way are left: their
    /// request has a timeout of its own.
    pub(crate) fn expire(&mut self, now_ms: u64) -> Vec<PartitionSend> {
        self.take_waiting(|batch| batch.deadline_ms <= now_ms)
    }

    /// Takes all batches that are not on their way: the producer is being given up.
    pub(crate) fn abandon(&mut self) -> Vec<PartitionSend> {
        self.take_waiting(|_| true)
    }

    fn take_waiting(&mut self, over: impl Fn(&Batch) -> bool) -> Vec<PartitionSend> {
        let mut taken = Vec::new();
        for (key, queue) in &mut self.queues {
            if !queue.in_flight.is_empty() {
                continue;
            }
            let mut batches = Vec::new();
            while let Some(batch) = queue.closed.pop_front_if(|batch| over(batch)) {
                batches.push(batch);
            }
            if queue.closed.is_empty() {
                batches.extend(queue.open.take_if(|batch| over(batch)));
            }
            if !batches.is_empty() {
                taken.push(PartitionSend { key: key.clone(), batches });
            }
        }
        self.queues.retain(|_, queue| !queue.is_idle());
        taken
    }

    /// Closes every open batch, so that nothing lingers; returns the outcomes of all that is under way.
    pub(crate) fn close_open_batches(&mut self) -> Vec<Arc<OutcomeCell>> {
        let mut cells = Vec::new();
        for queue in self.queues.values_mut() {
            queue.closed.extend(queue.open.take());
            cells.extend(queue.in_flight.iter().cloned());
            cells.extend(queue.closed.iter().map(|batch| Arc::clone(&batch.cell)));
        }
        cells
    }

    /// When the sender must look again if nothing else happens; `None` if nothing waits.
    pub(crate) fn next_wake_ms(&self) -> Option<u64> {
        let waiting = self.queues.values().filter(|queue| queue.in_flight.is_empty());
        waiting
            .filter_map(|queue| {
                let ready = queue.ready_ms(self.limits.linger_ms)?;
                Some(ready.min(queue.oldest()?.deadline_ms))
            })
            .min()
    }

    /// Lowers the bytes of a request: the server takes no larger frames. Batches that are larger alone still
    /// leave alone, for the server to refuse.
    pub(crate) fn limit_requests(&mut self, bytes_max: usize) {
        let limit = &mut self.limits.partition_request_bytes_max;
        *limit = (*limit).min(bytes_max);
    }

    /// Whether nothing waits and nothing is on its way.
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }
}

/// What the producer keeps about a record besides its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// The caller's tag.
    pub tag: u64,
    /// Memory that was reserved for it.
    pub reserved_bytes: usize,
}

impl Batch {
    fn open(limits: &AccumulatorLimits, now_ms: u64) -> Self {
        Self {
            body: BatchBody::Building(BatchBuilder::new(limits.batch_bytes)),
            record_count: 0,
            bytes: 0,
            reserved_bytes: 0,
            created_ms: now_ms,
            deadline_ms: now_ms.saturating_add(limits.delivery_timeout_ms),
            attempts: 0,
            sent_with: None,
            stamped_by: None,
            tags: Vec::new(),
            maybe_appended: false,
            last_error: None,
            cell: Arc::default(),
        }
    }
}

impl PartitionQueue {
    /// How many closed batches leave, whether the open one joins, and their bytes in all.
    ///
    /// The first batch always goes; a batch larger than `batch_bytes` (one huge record) goes alone, so that the
    /// server's refusal of it does not hit its neighbours.
    fn plan(&self, limits: &AccumulatorLimits, now_ms: u64) -> (usize, bool, usize) {
        if let Some(request) = self.closed.front().and_then(|batch| batch.sent_with) {
            let again = self.closed.iter().take_while(|batch| batch.sent_with == Some(request));
            let (count, bytes) = again.fold((0, 0), |(count, bytes), batch| (count + 1, bytes + batch.bytes));
            return (count, false, bytes);
        }
        let mut bytes = 0;
        let mut count = 0;
        let fits = |bytes: usize, batch: &Batch| {
            bytes == 0
                || (batch.bytes <= limits.batch_bytes
                    && bytes + batch.bytes <= limits.partition_request_bytes_max)
        };
        for batch in &self.closed {
            if !fits(bytes, batch) || count >= limits.partition_request_batches_max {
                return (count, false, bytes);
            }
            count += 1;
            bytes += batch.bytes;
            if batch.bytes > limits.batch_bytes {
                return (count, false, bytes);
            }
        }
        match &self.open {
            Some(open)
                if open.created_ms + limits.linger_ms <= now_ms
                    && fits(bytes, open)
                    && count < limits.partition_request_batches_max =>
            {
                (count, true, bytes + open.bytes)
            }
            _ => (count, false, bytes),
        }
    }
}

#[cfg(test)]
#[path = "accumulator_tests.rs"]
mod tests;
