//! Producer: takes records, batches them per partition, delivers them in order.
//!
//! Owns: the path of a record from `send` to its queue. `accumulator` holds the queues, `sender` is the task that
//! empties them, `delivery` tells the outcome.
//! Invariant: records of one partition are appended in the order in which `send` took them, and reported in that
//! order, with any number of retries (one request per partition is on its way at a time).
//! Invariant: memory held by records that are not acked stays under `buffer_bytes_max`; at the limit `send` waits.
//! Delivery: a record whose ack was lost is sent again, and the server recognizes it (`sequences`), unless the producer
//! gave it up in between.

pub(crate) mod accumulator;
mod config;
mod delivery;
mod request;
mod sender;
mod sequences;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use corelog_engine::TimestampMs;
use corelog_engine::batch::{NewRecord, RECORD_BYTES_MAX, RecordHeader};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use self::accumulator::{Accumulator, AccumulatorLimits, Entry, Pushed};
pub use self::config::{ProducerConfig, ProducerConfigError};
pub use self::delivery::{
    BatchAck, Delivery, DeliveryReport, RecordMetadata, ReportCallback, RetryCallback, RetryNotice,
};
use crate::cluster::{Cluster, PartitionKey, Topic};
use crate::error::SendError;
use crate::partitioner::Partitioner;

/// Batches of an idempotent producer that a server remembers of each partition, as Kafka's.
const IDEMPOTENT_BATCHES_MAX: usize = 5;

/// What a record costs besides its key, value and headers: lengths, deltas, its tag.
const RECORD_OVERHEAD_BYTES: usize = 32;

/// A record to be sent. Borrowed: its bytes are copied once, into the batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProducerRecord<'a> {
    /// Decides the partition, unless `partition` does.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers, in order.
    pub headers: &'a [RecordHeader<'a>],
    /// Create time; `None` is now.
    pub timestamp: Option<TimestampMs>,
    /// This partition, whatever the key.
    pub partition: Option<u32>,
    /// Comes back in the delivery report.
    pub tag: u64,
}

impl ProducerRecord<'_> {
    fn reserved_bytes(&self) -> usize {
        let headers = self.headers.iter().map(|h| h.key.len() + h.value.map_or(0, <[u8]>::len) + 10);
        let body = self.key.map_or(0, <[u8]>::len) + self.value.map_or(0, <[u8]>::len);
        RECORD_OVERHEAD_BYTES + body + headers.sum::<usize>()
    }
}

struct Queues {
    accumulator: Accumulator,
    partitioner: Partitioner,
    /// No more records are taken.
    closed: bool,
    /// Nobody wants the rest delivered.
    abandoned: bool,
}

pub(crate) struct ProducerShared {
    config: ProducerConfig,
    cluster: Arc<Cluster>,
    queues: Mutex<Queues>,
    memory: Semaphore,
    /// The sender has something to look at.
    wake: Notify,
    started: Instant,
}

impl ProducerShared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).expect("a process does not run for so long")
    }
}

/// A producer; all methods take `&self`, so that many tasks may send through one `Arc`.
///
/// Dropped: what was sent before is abandoned unless it is on its way; call `close` first.
pub struct Producer {
    shared: Arc<ProducerShared>,
    sender: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Producer {
    /// Starts a producer on the current tokio runtime.
    pub(crate) fn start(cluster: Arc<Cluster>, config: ProducerConfig) -> Result<Self, ProducerConfigError> {
        config.check()?;
        let limits = AccumulatorLimits {
            batch_bytes: config.batch_bytes,
            linger_ms: config.linger_ms,
            partition_request_bytes_max: config.partition_request_bytes_max,
            partition_request_batches_max: if config.idempotent {
                IDEMPOTENT_BATCHES_MAX
            } else {
                usize::MAX
            },
            delivery_timeout_ms: config.delivery_timeout_ms,
            keep_tags: config.on_delivery.is_some(),
        };
        let queues = Queues {
            accumulator: Accumulator::new(limits),
            partitioner: Partitioner::new(config.keyless_rule, rand::random::<u32>() & 0xffff),
            closed: false,
            abandoned: false,
        };
        let shared = Arc::new(ProducerShared {
            memory: Semaphore::new(config.buffer_bytes_max.min(Semaphore::MAX_PERMITS)),
            cluster,
            queues: Mutex::new(queues),
            wake: Notify::new(),
            started: Instant::now(),
            config,
        });
        let sender = tokio::spawn(sender::run(Arc::clone(&shared)));
        Ok(Self { shared, sender: Mutex::new(Some(sender)) })
    }

    /// Takes a record; returns where it will go and a promise of its outcome.
    ///
    /// Waits for memory when `buffer_bytes_max` is reached, and for metadata when the topic is seen first. Order:
    /// records of one partition are appended in the order in which these calls return.
    /// Cancel: the record is either not taken, or taken and sent.
    pub async fn send(&self, topic: &str, record: ProducerRecord<'_>) -> Result<Delivery, SendError> {
        let topic = self.topic(topic).await?;
        let bytes = record.reserved_bytes();
        let bytes_max = self.shared.config.buffer_bytes_max.min(RECORD_BYTES_MAX);
        if bytes > bytes_max {
            return Err(SendError::RecordTooLarge { bytes, bytes_max });
        }
        let permits = u32::try_from(bytes).expect("records are smaller than 2 GiB");
        let permit = match self.shared.memory.try_acquire_many(permits) {
            Ok(permit) => permit,
            Err(_) => {
                // What lingers holds the memory that we wait for.
                self.shared.lock().accumulator.close_open_batches();
                self.shared.wake.notify_one();
                self.shared.memory.acquire_many(permits).await.map_err(|_| SendError::Closed)?
            }
        };
        let delivery = self.enqueue(&topic, &record, bytes)?;
        // From here on the batch owns the memory; the sender gives it back with the outcome.
        permit.forget();
        Ok(delivery)
    }

    /// The topic, patient: a topic that was just created, or a server that is just restarting, is waited for.
    async fn topic(&self, name: &str) -> Result<Arc<Topic>, SendError> {
        if let Some(topic) = self.shared.cluster.cached(name) {
            return Ok(topic);
        }
        let retry = self.shared.config.retry;
        let deadline_ms = self.shared.now_ms() + self.shared.config.delivery_timeout_ms;
        let mut attempts = 0;
        loop {
            let error = match self.shared.cluster.topic(name).await {
                Ok(topic) => return Ok(topic),
                Err(error) => error,
            };
            attempts += 1;
            let unknown = error.code().is_some();
            let failed = crate::retry::FailedAttempt {
                attempts,
                now_ms: self.shared.now_ms(),
                deadline_ms,
                is_failover: true,
                jitter: rand::random::<f64>(),
            };
            match retry.decide(failed) {
                crate::retry::RetryDecision::At(at_ms) if error.is_retriable() && !unknown => {
                    let pause = at_ms.saturating_sub(failed.now_ms);
                    tokio::time::sleep(Duration::from_millis(pause)).await;
                }
                _ => return Err(SendError::Metadata { topic: name.into(), source: error }),
            }
        }
    }

    fn enqueue(
        &self,
        topic: &Arc<Topic>,
        record: &ProducerRecord<'_>,
        reserved_bytes: usize,
    ) -> Result<Delivery, SendError> {
        let partitions = topic.partition_count();
        let now_ms = self.shared.now_ms();
        let mut queues = self.shared.lock();
        let queues = &mut *queues;
        if queues.closed {
            return Err(SendError::Closed);
        }
        let partition = match record.partition {
            Some(partition) if partition >= partitions => {
                return Err(SendError::NoSuchPartition {
                    topic: Arc::clone(&topic.name),
                    partition,
                    partitions,
                });
            }
            Some(partition) => partition,
            None => queues.partitioner.place(&topic.name, partitions, record.key),
        };
        let new = NewRecord {
            timestamp: record.timestamp.unwrap_or_else(wall_clock),
            key: record.key,
            value: record.value,
            headers: record.headers,
        };
        let key: PartitionKey = (Arc::clone(&topic.name), partition);
        let entry = Entry { tag: record.tag, reserved_bytes };
        let pushed = queues.accumulator.push(&key, &new, entry, now_ms);
        let Pushed { cell, index, closed_batch, wake_sender } = pushed
            .map_err(|_| SendError::RecordTooLarge { bytes: reserved_bytes, bytes_max: RECORD_BYTES_MAX })?;
        if closed_batch {
            queues.partitioner.batch_closed(&key.0, key.1);
        }
        if wake_sender {
            self.shared.wake.notify_one();
        }
        Ok(Delivery { topic: key.0, partition, index, cell })
    }

    /// Sends all that was taken before this call, without lingering, and waits for its outcomes.
    pub async fn flush(&self) {
        let cells = self.shared.lock().accumulator.close_open_batches();
        self.shared.wake.notify_one();
        for cell in cells {
            // The outcome is the business of whoever holds the delivery or the report callback.
            let _ = cell.wait().await;
        }
    }

    /// Takes no more records, delivers what was taken, and ends. What is not acked in time fails by
    /// `delivery_timeout_ms`.
    pub async fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.memory.close();
        self.flush().await;
        self.shared.wake.notify_one();
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender
            && let Err(error) = sender.await
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let mut queues = self.shared.lock();
        queues.closed = true;
        queues.abandoned = true;
        drop(queues);
        self.shared.memory.close();
        self.shared.wake.notify_one();
    }
}

fn wall_clock() -> TimestampMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TimestampMs(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
