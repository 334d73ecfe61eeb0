//! What becomes of a sent record: the outcome of its batch, told to everyone who waits for it.
//!
//! Owns: one cell per batch, set once. Order: the outcomes of one partition are set in the order of its batches,
//! so a report never overtakes an earlier one of the same partition.

use std::sync::{Arc, OnceLock};

use corelog_engine::{Offset, TimestampMs};
use tokio::sync::Notify;

use crate::error::DeliveryError;

/// Where a record went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordMetadata {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: u32,
    /// Its offset; `None` with `acks = 0`, where the server does not answer.
    pub offset: Option<Offset>,
    /// The time stamped by the server, if the topic says so (log append time).
    pub append_time: Option<TimestampMs>,
}

/// What the server answered for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchAck {
    /// Offset of the batch's first record; `None` with `acks = 0`.
    pub base_offset: Option<Offset>,
    /// The time stamped by the server, if any.
    pub append_time: Option<TimestampMs>,
}

/// Outcome of a batch, as it is handed to the report callback: in order per partition, once per batch.
#[derive(Debug)]
pub struct DeliveryReport<'a> {
    /// The topic.
    pub topic: &'a Arc<str>,
    /// The partition.
    pub partition: u32,
    /// The callers' tags of the batch's records, in order.
    pub tags: &'a [u64],
    /// Where they went, or why they did not.
    pub outcome: &'a Result<BatchAck, DeliveryError>,
}

/// A failure that is being waited out, as it is handed to the retry callback: once per failed try.
#[derive(Clone, Copy, Debug)]
pub struct RetryNotice<'a> {
    /// The topic.
    pub topic: &'a Arc<str>,
    /// The partition.
    pub partition: u32,
    /// What stands in the way: what the last try failed with, or why nobody leads the partition.
    pub reason: &'a str,
    /// For how long the oldest record has waited.
    pub waited_ms: u64,
}

/// Called with every failure that is being waited out, on the producer's own task: it must not block.
pub type RetryCallback = Arc<dyn Fn(&RetryNotice<'_>) + Send + Sync>;

/// Called with the outcome of every batch, on the producer's own task: it must not block.
pub type ReportCallback = Arc<dyn Fn(&DeliveryReport<'_>) + Send + Sync>;

/// Set once, awaited by many.
#[derive(Debug, Default)]
pub(crate) struct OutcomeCell {
    outcome: OnceLock<Result<BatchAck, DeliveryError>>,
    done: Notify,
}

impl OutcomeCell {
    /// Sets the outcome and wakes all who wait. A second outcome is a bug.
    pub(crate) fn set(&self, outcome: Result<BatchAck, DeliveryError>) {
        let fresh = self.outcome.set(outcome).is_ok();
        assert!(fresh, "a batch has one outcome");
        self.done.notify_waiters();
    }

    pub(super) async fn wait(&self) -> Result<BatchAck, DeliveryError> {
        loop {
            // Registered before the look, so that an outcome set between the two is not missed.
            let done = self.done.notified();
            if let Some(outcome) = self.outcome.get() {
                return outcome.clone();
            }
            done.await;
        }
    }
}

/// The promise of a record's outcome. Dropping it changes nothing: the record is sent all the same.
#[derive(Debug)]
pub struct Delivery {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: u32,
    pub(crate) index: u32,
    pub(crate) cell: Arc<OutcomeCell>,
}

impl Delivery {
    /// The partition that the record goes to.
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// Waits until the record is acked, or has failed for good.
    ///
    /// Cancel: may be dropped and called again on another `Delivery` only; the record is unaffected.
    pub async fn wait(self) -> Result<RecordMetadata, DeliveryError> {
        let ack = self.cell.wait().await?;
        Ok(RecordMetadata {
            topic: self.topic,
            partition: self.partition,
            offset: ack.base_offset.map(|base| base.advance(u64::from(self.index))),
            append_time: ack.append_time,
        })
    }

    /// Whether the outcome is known, so that `wait` would return at once.
    pub fn is_done(&self) -> bool {
        self.cell.outcome.get().is_some()
    }
}
