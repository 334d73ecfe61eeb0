//! One partition that this replica leads: its log, the leader's machine, and everybody who waits.
//!
//! Owns: the order of a produce (epoch, validation, admission, append), what a fetch may see, and who may be
//! answered. Invariants: R6 to R9 of `lib.rs`.
//! Invariant: between the last check and the append nothing awaits, so a leadership that ended while the append
//! waited for its turn appends nothing.
//! Not here: request formats, time-outs and who is asking (`net`, `server`).

use std::cell::Cell;
use std::rc::Rc;

use corelog_engine::batch::{BatchLimits, validate};
use corelog_engine::disk::Disk;
use corelog_engine::log::{
    AppendError, FlushPolicy, LogFailure, LogListener, LogStats, ReadBatches, ReadLimits, Stage, Trimmed,
};
use corelog_engine::{LeaderEpoch, Log, LogEnds, LogOptions, Offset, TimestampMs, TopicPartition};

use crate::errors::{DeleteRecordsError, EpochError, FetchError, ListOffsetsError, ProduceError};
use crate::leader::{Event, Leader, LeaderStart};
use crate::progress::{Advanced, Goal, Progress};
use crate::replica::{NodeId, ReplicaId};

/// A partition that this replica leads. Cheap to clone; all clones are the same partition.
pub struct Partition<D: Disk>(Rc<Inner<D>>);

struct Inner<D: Disk> {
    id: TopicPartition,
    log: Log<D>,
    progress: Rc<Progress>,
    counters: Cell<Counters>,
}

#[derive(Clone, Copy, Default)]
struct Counters {
    produce_bytes: u64,
    produce_records: u64,
    fetch_bytes: u64,
}

/// What is asked of a produce beyond the format of its batches.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProduceChecks {
    /// The epoch that the producer believes in; `None`: no check.
    pub leader_epoch: Option<LeaderEpoch>,
    /// Latest timestamp that is believed; `None`: any.
    pub timestamp_max: Option<TimestampMs>,
}

/// When a produce is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// When it has its place.
    None,
    /// When the leader has it, as safe as the flush says.
    Leader,
    /// When all in-sync replicas have it, as safe as the flush says.
    All,
}

/// Where records went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produced {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Exclusive end.
    pub end_offset: Offset,
    /// The time stamped into the records, if the topic's timestamp type is log append time.
    pub append_time: Option<TimestampMs>,
    /// First offset that can be read.
    pub log_start: Offset,
}

/// What a fetch found.
#[derive(Debug)]
pub struct Fetched {
    /// Whole batches.
    pub batches: ReadBatches,
    /// End of what may be read.
    pub high_watermark: Offset,
    /// First offset that can be read.
    pub log_start: Offset,
    /// The leader's epoch.
    pub leader_epoch: LeaderEpoch,
    /// [`Partition::committed_bytes`] when the high watermark was this.
    pub committed_bytes: u64,
}

/// Sizes and counters of a partition; counters count since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionStats {
    /// Bounds of the log.
    pub ends: LogEnds,
    /// End of what may be read.
    pub high_watermark: Offset,
    /// Sizes of the log.
    pub log: LogStats,
    /// Record bytes appended.
    pub produce_bytes: u64,
    /// Records appended.
    pub produce_records: u64,
    /// Record bytes fetched.
    pub fetch_bytes: u64,
    /// Futures that wait for an end to move.
    pub waiting: usize,
}

impl<D: Disk> Clone for Partition<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: Disk> Partition<D> {
    /// Begins to lead, as the only member of the ISR.
    ///
    /// The caller has stored `epoch` durably before. What the log has is durable when it is opened, so the high
    /// watermark starts at its end: nobody else could have committed more.
    /// Errors: the log failed, or holds a batch of this epoch or a later one.
    pub fn lead(
        id: TopicPartition,
        node: NodeId,
        log: Log<D>,
        epoch: LeaderEpoch,
    ) -> Result<Self, AppendError> {
        log.begin_epoch(epoch)?;
        let ends = log.ends();
        let me = ReplicaId { node, log: log.id() };
        let leader = Leader::new(LeaderStart {
            me,
            epoch,
            isr: vec![me],
            epoch_start: ends.end,
            high_watermark: ends.start,
            stage: stage_of(log.options().flush),
        });
        let progress = Rc::new(Progress::new(leader));
        progress.ends_advanced(ends);
        log.set_listener(progress.clone());
        Ok(Self(Rc::new(Inner { id, log, progress, counters: Cell::default() })))
    }

    /// Which partition it is.
    pub fn id(&self) -> TopicPartition {
        self.0.id
    }

    /// Its log.
    pub fn log(&self) -> &Log<D> {
        &self.0.log
    }

    /// The epoch in which this replica leads.
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.0.progress.leader(Leader::epoch)
    }

    /// Exclusive end of what may be read.
    pub fn high_watermark(&self) -> Offset {
        self.0.progress.leader(Leader::high_watermark)
    }

    /// First offset that can be read.
    pub fn log_start(&self) -> Offset {
        self.0.log.ends().start
    }

    /// Bytes committed since it was opened: with [`Partition::committed_bytes_reached`], how a reader waits for a
    /// number of bytes.
    pub fn committed_bytes(&self) -> u64 {
        self.0.progress.committed_bytes()
    }

    /// Why it takes no appends, if it does not.
    pub fn failure(&self) -> Option<LogFailure> {
        self.0.progress.failure()
    }

    /// Sizes and counters now.
    pub fn stats(&self) -> PartitionStats {
        let counters = self.0.counters.get();
        PartitionStats {
            ends: self.0.log.ends(),
            high_watermark: self.high_watermark(),
            log: self.0.log.stats(),
            produce_bytes: counters.produce_bytes,
            produce_records: counters.produce_records,
            fetch_bytes: counters.fetch_bytes,
            waiting: self.0.progress.waiting(),
        }
    }

    /// Changes the options of the log, and what its acks mean.
    pub fn set_options(&self, options: LogOptions) {
        self.0.log.set_options(options);
        self.0.progress.step(Event::StageChanged { stage: stage_of(options.flush) });
    }

    /// Checks the epoch that a request names.
    pub fn check_epoch(&self, requested: Option<LeaderEpoch>) -> Result<(), EpochError> {
        let current = self.leader_epoch();
        match requested {
            Some(requested) if requested < current => Err(EpochError::Fenced { requested, current }),
            Some(requested) if requested > current => Err(EpochError::Unknown { requested, current }),
            _ => Ok(()),
        }
    }

    /// Checks batches, waits for their turn, for memory and for disk space, and appends them.
    ///
    /// Shape: one or more whole batches back to back. `clock` is read when the append happens, which may be long
    /// after the call.
    /// Durability: none yet; see [`Partition::acked`].
    /// Errors: nothing was appended; see each variant.
    /// Cancel: dropping it before it is ready appends nothing.
    /// Cost: one pass for the checksum, one copy.
    pub async fn produce(
        &self,
        batches: &[u8],
        checks: ProduceChecks,
        clock: impl Fn() -> TimestampMs,
    ) -> Result<Produced, ProduceError> {
        self.check_epoch(checks.leader_epoch)?;
        let limits = BatchLimits {
            batch_bytes_max: self.0.log.options().batch_bytes_max,
            timestamp_max: checks.timestamp_max,
            ..BatchLimits::default()
        };
        let summary = validate(batches, &limits)?;
        let admission = self.0.log.admit(batches.len(), summary.records, clock()).await?;
        self.check_epoch(checks.leader_epoch)?;
        let appended = admission.append(batches, clock())?;
        self.0.progress.appended(appended.end_offset, batches.len() as u64);
        self.count(|c| {
            c.produce_bytes += batches.len() as u64;
            c.produce_records += summary.records;
        });
        Ok(Produced {
            base_offset: appended.base_offset,
            end_offset: appended.end_offset,
            append_time: appended.append_time,
            log_start: self.log_start(),
        })
    }

    /// Ready when a produce that ends at `end` may be answered; `None`: at once.
    pub fn acked(&self, ack: Ack, end: Offset) -> Option<Advanced> {
        match ack {
            Ack::None => None,
            Ack::Leader => Some(self.0.progress.wait(Goal::Local(end))),
            Ack::All => Some(self.0.progress.wait(Goal::HighWatermark(end))),
        }
    }

    /// Reads committed batches from the one that holds `from` on.
    ///
    /// Shape: the first batch comes whole whatever `bytes_max`. Empty, without error, between the high watermark
    /// and the log end.
    pub async fn fetch(
        &self,
        from: Offset,
        bytes_max: usize,
        leader_epoch: Option<LeaderEpoch>,
    ) -> Result<Fetched, FetchError> {
        self.check_epoch(leader_epoch)?;
        let high_watermark = self.high_watermark();
        let committed_bytes = self.committed_bytes();
        let batches = self.0.log.read(from, high_watermark, ReadLimits::bytes(bytes_max)).await?;
        self.count(|c| c.fetch_bytes += batches.bytes as u64);
        Ok(Fetched {
            batches,
            high_watermark,
            log_start: self.log_start(),
            leader_epoch: self.leader_epoch(),
            committed_bytes,
        })
    }

    /// Ready when there is something to read at `from`.
    pub fn readable(&self, from: Offset) -> Advanced {
        self.0.progress.wait(Goal::Readable(from))
    }

    /// Ready when [`Partition::committed_bytes`] has reached `total`.
    pub fn committed_bytes_reached(&self, total: u64) -> Advanced {
        self.0.progress.wait(Goal::CommittedBytes(total))
    }

    /// Lets everybody who waits for an ack look again, so that time-outs need no timer for each.
    pub fn wake_producers(&self) {
        self.0.progress.wake_producers();
    }

    /// Lets everybody who waits for records look again.
    pub fn wake_readers(&self) {
        self.0.progress.wake_readers();
    }

    /// The first offset that can be read.
    pub fn earliest(&self, leader_epoch: Option<LeaderEpoch>) -> Result<Offset, ListOffsetsError> {
        self.check_epoch(leader_epoch)?;
        Ok(self.log_start())
    }

    /// The high watermark, once it is known in this epoch (R8).
    pub fn latest(&self, leader_epoch: Option<LeaderEpoch>) -> Result<Offset, ListOffsetsError> {
        self.check_epoch(leader_epoch)?;
        let high_watermark = self.high_watermark();
        if !self.0.progress.leader(Leader::is_caught_up) {
            return Err(ListOffsetsError::NotCaughtUp { high_watermark });
        }
        Ok(high_watermark)
    }

    /// Offset and timestamp of the first committed record at or after `at`; `None` if there is none.
    pub async fn offset_for_timestamp(
        &self,
        at: TimestampMs,
        leader_epoch: Option<LeaderEpoch>,
    ) -> Result<Option<(Offset, TimestampMs)>, ListOffsetsError> {
        let visible_end = self.latest(leader_epoch)?;
        Ok(self.0.log.offset_for_timestamp(at, visible_end).await?)
    }

    /// Makes `before` the log start; `None`: the high watermark. Durable when it returns.
    pub async fn delete_records(
        &self,
        before: Option<Offset>,
        now: TimestampMs,
    ) -> Result<Trimmed, DeleteRecordsError> {
        let high_watermark = self.high_watermark();
        let to = before.unwrap_or(high_watermark);
        if to > high_watermark {
            return Err(DeleteRecordsError::AboveHighWatermark { requested: to, high_watermark });
        }
        // With flush = interval the mark may be ahead of the durable end, and the log start must not be.
        if to > self.0.log.ends().durable {
            self.0.log.flush().await.map_err(corelog_engine::log::TrimError::Failed)?;
        }
        Ok(self.0.log.delete_records_before(to, now).await?)
    }

    fn count(&self, add: impl FnOnce(&mut Counters)) {
        let mut counters = self.0.counters.get();
        add(&mut counters);
        self.0.counters.set(counters);
    }
}

fn stage_of(flush: FlushPolicy) -> Stage {
    match flush {
        FlushPolicy::Commit => Stage::Durable,
        FlushPolicy::Interval { .. } => Stage::Written,
    }
}
