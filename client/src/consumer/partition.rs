//! What a consumer knows about one assigned partition: position, buffer, what is under way.
//!
//! Owns: the state and its rules. Pure: time is an argument, nothing is sent here.
//! Invariant: `position <= fetch_offset`; what lies between them is in the buffer (`opened`, then `fetched`).
//! Invariant: an answer counts only if it carries the `generation` under which it was asked: a seek, a pause or
//! a failure in between starts a new one.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use corelog_engine::{Offset, TopicId};
use corelog_schemas::messages::OffsetSpec;

use super::decode::{BadBatch, ConsumerRecord, open_batch};
use crate::error::ConsumeError;

/// Where to start reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// The first record that is there.
    Earliest,
    /// Only what is appended from now on.
    Latest,
    /// This offset.
    Offset(Offset),
    /// The first record with this timestamp (ms since the Unix epoch) or a later one; if none is, as `Latest`.
    TimestampMs(i64),
}

impl StartAt {
    /// The look-up that finds the offset; `None` if it is known.
    pub(super) fn lookup(self) -> Option<OffsetSpec> {
        match self {
            Self::Earliest => Some(OffsetSpec::Earliest),
            Self::Latest => Some(OffsetSpec::Latest),
            Self::TimestampMs(at) => Some(OffsetSpec::Timestamp(at)),
            Self::Offset(_) => None,
        }
    }
}

/// What stands between the partition and its next record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The start must be looked up.
    Unresolved(StartAt),
    /// Reading.
    Reading,
    /// An error was handed out: nothing happens until a seek.
    Failed,
}

/// One assigned partition.
#[derive(Debug)]
pub(super) struct AssignedPartition {
    pub topic: Arc<str>,
    pub partition: u32,
    pub stage: Stage,
    pub paused: bool,
    /// Names what is asked now; answers to older questions are ignored.
    pub generation: u64,
    /// A look-up or a fetch is on its way.
    pub under_way: bool,
    /// The topic that was read so far: another id under the same name is another topic.
    pub topic_id: Option<TopicId>,
    /// The next offset to hand out.
    pub position: Offset,
    /// The next offset to ask for.
    pub fetch_offset: Offset,
    /// Leader epoch of the last batch before `fetch_offset`, if it was fetched from here.
    pub fetched_epoch: Option<u32>,
    pub high_watermark: Option<Offset>,
    /// Nothing is asked before (back-off).
    pub not_before_ms: u64,
    pub attempts: u32,
    /// When the failures in a row began.
    pub failing_since_ms: Option<u64>,
    opened: VecDeque<ConsumerRecord>,
    fetched: VecDeque<Bytes>,
    fetched_bytes: usize,
    /// A batch that came damaged is asked for once more.
    damaged_at: Option<Offset>,
    /// Leader epoch of the last batch that `position` is in or behind.
    position_epoch: Option<u32>,
}

impl AssignedPartition {
    pub(super) fn new(topic: Arc<str>, partition: u32, start: StartAt) -> Self {
        let mut assigned = Self {
            topic,
            partition,
            stage: Stage::Failed,
            paused: false,
            generation: 0,
            under_way: false,
            topic_id: None,
            position: Offset::ZERO,
            fetch_offset: Offset::ZERO,
            fetched_epoch: None,
            high_watermark: None,
            not_before_ms: 0,
            attempts: 0,
            failing_since_ms: None,
            opened: VecDeque::new(),
            fetched: VecDeque::new(),
            fetched_bytes: 0,
            damaged_at: None,
            position_epoch: None,
        };
        assigned.seek(start);
        assigned
    }

    /// Goes elsewhere; what is buffered or on its way is thrown away, and a failure is forgotten.
    pub(super) fn seek(&mut self, start: StartAt) {
        self.stage = match start {
            StartAt::Offset(offset) => {
                self.position = offset;
                Stage::Reading
            }
            other => Stage::Unresolved(other),
        };
        self.topic_id = None;
        self.damaged_at = None;
        self.position_epoch = None;
        self.succeeded();
        self.not_before_ms = 0;
        self.drop_buffer();
    }

    /// Empties the buffer: the next fetch begins at the position again.
    pub(super) fn drop_buffer(&mut self) {
        self.generation += 1;
        self.under_way = false;
        self.opened.clear();
        self.fetched.clear();
        self.fetched_bytes = 0;
        self.fetch_offset = self.position;
        self.fetched_epoch = self.position_epoch;
    }

    /// The leader's log leaves what was read here at `end`, where its `epoch` ends: reading goes on from there. Returns
    /// where it was if records were handed out that are gone.
    pub(super) fn truncated(&mut self, epoch: u32, end: Offset) -> Option<Offset> {
        let was = self.position;
        self.position = self.position.min(end);
        self.position_epoch = Some(epoch);
        self.drop_buffer();
        (end < was).then_some(was)
    }

    /// The start was found.
    pub(super) fn resolved(&mut self, offset: Offset) {
        self.stage = Stage::Reading;
        self.position = offset;
        self.position_epoch = None;
        self.under_way = false;
        self.drop_buffer();
        self.succeeded();
    }

    pub(super) fn succeeded(&mut self) {
        self.attempts = 0;
        self.failing_since_ms = None;
    }

    /// Bytes that wait, as fetched.
    pub(super) fn buffered_bytes(&self) -> usize {
        self.fetched_bytes
    }

    pub(super) fn has_buffered(&self) -> bool {
        !self.opened.is_empty() || !self.fetched.is_empty()
    }

    /// Whether records may be handed out.
    pub(super) fn is_readable(&self) -> bool {
        self.stage == Stage::Reading && !self.paused
    }

    /// Whether a fetch of it may leave now.
    pub(super) fn wants_fetch(&self, now_ms: u64) -> bool {
        self.is_readable() && !self.under_way && self.not_before_ms <= now_ms
    }

    /// Takes in fetched batches; `next` is the offset behind the last of them, `epoch` its leader epoch.
    pub(super) fn take_in(&mut self, batches: Bytes, next: Offset, epoch: Option<u32>) {
        assert!(next > self.fetch_offset, "a fetch goes forward");
        self.fetched_bytes += batches.len();
        self.fetched.push_back(batches);
        self.fetch_offset = next;
        self.fetched_epoch = epoch.or(self.fetched_epoch);
    }

    /// The next record of the buffer.
    ///
    /// A damaged batch is asked for once more (the buffer is dropped); damaged again, it is an error and the
    /// partition stands until a seek.
    pub(super) fn next_record(
        &mut self,
        unpacked_bytes_max: usize,
    ) -> Result<Option<ConsumerRecord>, ConsumeError> {
        loop {
            if let Some(record) = self.opened.pop_front() {
                self.position = record.offset.advance(1);
                return Ok(Some(record));
            }
            let Some(batches) = self.fetched.front_mut() else { return Ok(None) };
            let before = batches.len();
            let opened = open_batch(&self.topic, self.partition, batches, self.position, unpacked_bytes_max);
            match opened {
                Ok(opened) => {
                    self.fetched_bytes -= before - batches.len();
                    if batches.is_empty() {
                        self.fetched.pop_front();
                    }
                    self.opened = opened.records.into();
                    self.position_epoch = opened.leader_epoch.or(self.position_epoch);
                    if self.opened.is_empty() {
                        self.position = self.position.max(opened.next_offset);
                    }
                }
                Err(bad) => return self.damaged(bad).map(|()| None),
            }
        }
    }

    fn damaged(&mut self, bad: BadBatch) -> Result<(), ConsumeError> {
        let again = self.damaged_at != Some(self.position);
        self.damaged_at = Some(self.position);
        self.drop_buffer();
        if again {
            return Ok(());
        }
        self.stage = Stage::Failed;
        Err(ConsumeError::BadBatch {
            topic: Arc::clone(&self.topic),
            partition: self.partition,
            offset: bad.base_offset.unwrap_or(self.position),
            next_offset: bad.next_offset,
            reason: bad.reason.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use corelog_engine::batch::{BatchBuilder, BatchFields, NewRecord};

    use super::*;

    fn batch(base: u64, records: u32) -> Bytes {
        let mut builder = BatchBuilder::new(1 << 20);
        for _ in 0..records {
            builder.push(&NewRecord { value: Some(b"v"), ..NewRecord::default() }).expect("fits");
        }
        let fields = BatchFields { base_offset: Offset(base), ..BatchFields::default() };
        builder.finish(&fields).expect("has records").into()
    }

    fn reading(at: u64) -> AssignedPartition {
        AssignedPartition::new("t".into(), 0, StartAt::Offset(Offset(at)))
    }

    fn offsets(partition: &mut AssignedPartition) -> Vec<u64> {
        std::iter::from_fn(|| partition.next_record(1 << 20).expect("sound")).map(|r| r.offset.0).collect()
    }

    #[test]
    fn records_come_in_order_and_the_position_follows() {
        let mut partition = reading(1);
        partition.take_in(batch(0, 3), Offset(3), None);
        partition.take_in(batch(3, 2), Offset(5), None);
        assert!(partition.has_buffered());
        assert_eq!(partition.next_record(1 << 20).expect("sound").map(|r| r.offset), Some(Offset(1)));
        assert_eq!(partition.position, Offset(2));
        assert_eq!(offsets(&mut partition), [2, 3, 4]);
        assert_eq!((partition.position, partition.fetch_offset), (Offset(5), Offset(5)));
        assert_eq!((partition.buffered_bytes(), partition.has_buffered()), (0, false));
    }

    #[test]
    fn a_seek_starts_a_new_generation_with_an_empty_buffer() {
        let mut partition = reading(0);
        partition.take_in(batch(0, 3), Offset(3), None);
        let generation = partition.generation;
        partition.under_way = true;
        partition.seek(StartAt::Offset(Offset(1)));
        assert!(partition.generation > generation);
        assert!(partition.wants_fetch(0));
        assert_eq!((partition.fetch_offset, partition.buffered_bytes()), (Offset(1), 0));
        partition.seek(StartAt::Earliest);
        assert!(!partition.wants_fetch(0), "the start is not known");
        partition.resolved(Offset(7));
        assert_eq!(partition.position, Offset(7));
    }

    #[test]
    fn what_was_given_up_is_told_only_if_it_was_handed_out() {
        let mut partition = reading(0);
        partition.take_in(batch(0, 3), Offset(3), Some(1));
        partition.take_in(batch(3, 2), Offset(5), Some(2));
        assert_eq!(partition.fetched_epoch, Some(2));
        assert!(partition.next_record(1 << 20).expect("sound").is_some());
        assert_eq!(partition.truncated(1, Offset(3)), None, "what is gone was never seen");
        assert_eq!((partition.position, partition.fetch_offset), (Offset(1), Offset(1)));
        partition.take_in(batch(0, 3), Offset(3), Some(1));
        assert_eq!(offsets(&mut partition), [1, 2]);
        assert_eq!(partition.truncated(0, Offset(2)), Some(Offset(3)));
        assert_eq!((partition.position, partition.fetched_epoch), (Offset(2), Some(0)));
        partition.seek(StartAt::Offset(Offset(1)));
        assert_eq!(partition.fetched_epoch, None, "nothing is known of what lies before");
    }

    #[test]
    fn a_damaged_batch_is_fetched_once_more_before_it_is_an_error() {
        let mut damaged = batch(0, 3).to_vec();
        damaged[70] ^= 1;
        let damaged = Bytes::from(damaged);
        let mut partition = reading(0);
        partition.take_in(damaged.clone(), Offset(3), None);
        assert!(partition.next_record(1 << 20).expect("asked again").is_none());
        assert_eq!((partition.fetch_offset, partition.stage), (Offset(0), Stage::Reading));
        partition.take_in(damaged, Offset(3), None);
        let error = partition.next_record(1 << 20).expect_err("damaged again");
        assert!(matches!(error, ConsumeError::BadBatch { offset: Offset(0), .. }), "{error}");
        assert_eq!(partition.stage, Stage::Failed);
        partition.seek(StartAt::Offset(Offset(0)));
        partition.take_in(batch(0, 3), Offset(3), None);
        assert_eq!(offsets(&mut partition), [0, 1, 2]);
    }
}
