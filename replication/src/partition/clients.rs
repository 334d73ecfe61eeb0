//! A leader towards producers and consumers.
//!
//! Owns: the order of a produce (role and epoch, validation, admission, sequence, append), what a fetch may see, and
//! who may be answered. Invariants: R6 to R9 of `lib.rs`.
//! Invariant: between the last check and the append nothing awaits, so a leadership that ended while the append
//! waited for its turn appends nothing.
//! Invariant: `acks = all` is refused before anything is appended while the stored ISR is too small.

use corelog_engine::batch::{BatchHeader, BatchLimits, BatchSummary, validate};
use corelog_engine::disk::Disk;
use corelog_engine::log::{Appended, ReadBatches, ReadLimits, TrimError, Trimmed};
use corelog_engine::{LeaderEpoch, Offset, TimestampMs};

use super::{Counters, Partition};
use crate::derived::{SequenceError, SequenceVerdict, next_sequence};
use crate::errors::{DeleteRecordsError, FetchError, LeaderError, ListOffsetsError, ProduceError};
use crate::follower::EpochEnd;
use crate::leader::Leader;
use crate::progress::{Advanced, Goal, Leading};

/// What is asked of a produce beyond the format of its batches.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProduceChecks {
    /// The epoch that the producer believes in; `None`: no check.
    pub leader_epoch: Option<LeaderEpoch>,
    /// Latest timestamp that is believed; `None`: any.
    pub timestamp_max: Option<TimestampMs>,
    /// When it is to be answered.
    pub ack: Ack,
}

/// When a produce is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ack {
    /// When it has its place.
    None,
    /// When the leader has it, as safe as the flush says.
    Leader,
    /// When all in-sync replicas have it, as safe as the flush says.
    #[default]
    All,
}

/// Where records went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produced {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Exclusive end.
    pub end_offset: Offset,
    /// The time stamped into the records, if the topic's timestamp type is log append time. `None` also for batches
    /// that were there already.
    pub append_time: Option<TimestampMs>,
    /// First offset that can be read.
    pub log_start: Offset,
    /// The batches of an idempotent producer were in the log already: nothing was appended.
    pub is_duplicate: bool,
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

impl<D: Disk> Partition<D> {
    /// Checks that this replica leads, in the epoch that a request names if it names one.
    pub fn check_epoch(&self, requested: Option<LeaderEpoch>) -> Result<(), LeaderError> {
        let current = self.leader_epoch();
        if self.0.progress.leading(|_| ()).is_none() {
            return Err(LeaderError::NotLeader { epoch: current });
        }
        match requested {
            Some(requested) if requested < current => Err(LeaderError::Fenced { requested, current }),
            Some(requested) if requested > current => Err(LeaderError::Unknown { requested, current }),
            _ => Ok(()),
        }
    }

    /// As [`Partition::check_epoch`], for what another leader could contradict: refused while cut off from the
    /// coordination service.
    fn check_served(&self, requested: Option<LeaderEpoch>) -> Result<(), LeaderError> {
        self.check_epoch(requested)?;
        if self.0.progress.is_isolated() { Err(LeaderError::Isolated) } else { Ok(()) }
    }

    fn check_produce(&self, checks: &ProduceChecks) -> Result<(), ProduceError> {
        match checks.ack {
            Ack::All => self.check_epoch(checks.leader_epoch)?,
            Ack::None | Ack::Leader => self.check_served(checks.leader_epoch)?,
        }
        match self.0.progress.leading(|leading| leading.lacks_replicas()) {
            Some(Some((isr, min_insync_replicas))) if checks.ack == Ack::All => {
                Err(ProduceError::NotEnoughReplicas { isr, min_insync_replicas })
            }
            _ => Ok(()),
        }
    }

    /// Checks batches, waits for their turn, for memory and for disk space, and appends them.
    ///
    /// Shape: one or more whole batches back to back. `clock` is read when the append happens, which may be long
    /// after the call. Batches of an idempotent producer that are in the log already are answered with their offsets.
    /// Durability: none yet; see [`Partition::acked`].
    /// Errors: nothing was appended; see each variant.
    /// Cancel: dropping it before it is ready appends nothing.
    /// Cost: one pass for the checksum, one copy. The first batch of an idempotent producer after a start reads what
    /// of the log is not known yet.
    pub async fn produce(
        &self,
        batches: &[u8],
        checks: ProduceChecks,
        clock: impl Fn() -> TimestampMs,
    ) -> Result<Produced, ProduceError> {
        self.check_produce(&checks)?;
        let limits = BatchLimits {
            batch_bytes_max: self.0.log.options().batch_bytes_max,
            timestamp_max: checks.timestamp_max,
            ..BatchLimits::default()
        };
        let summary = validate(batches, &limits)?;
        let is_idempotent = headers(batches, &summary).any(|header| header.producer_id >= 0);
        let admission = loop {
            if is_idempotent {
                self.load_producers().await?;
            }
            let admission = self.0.log.admit(batches.len(), summary.records, clock()).await?;
            self.check_produce(&checks)?;
            // It may have followed meanwhile, cut its log, and lead again.
            if !is_idempotent || self.knows_producers() {
                break admission;
            }
        };
        if is_idempotent && let Some(duplicate) = self.find_duplicate(batches, &summary)? {
            return Ok(duplicate);
        }
        let appended = admission.append(batches, clock())?;
        self.observe_appended(batches, &summary, &appended);
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
            is_duplicate: false,
        })
    }

    /// Where the batches of an idempotent producer lie if they are in the log already. All batches of a request are
    /// of one producer, in sequence; all of them are new, or none: it was appended whole, and comes again as it was.
    fn find_duplicate(
        &self,
        batches: &[u8],
        summary: &BatchSummary,
    ) -> Result<Option<Produced>, ProduceError> {
        let producers = self.0.producers.borrow();
        let table = producers.loaded(self.0.log.ends().end).expect("the caller has looked");
        let all = || headers(batches, summary);
        for (previous, header) in all().zip(all().skip(1)) {
            check_follows(&previous, &header)?;
        }
        let SequenceVerdict::Duplicate { base_offset, .. } = table.check(&summary.first)? else {
            return Ok(None);
        };
        let mut last_end = base_offset;
        for header in all() {
            let SequenceVerdict::Duplicate { end_offset, .. } = table.check(&header)? else {
                return Err(SequenceError::PartlyTaken { producer_id: header.producer_id }.into());
            };
            last_end = end_offset;
        }
        let log_start = self.log_start();
        Ok(Some(Produced {
            base_offset,
            end_offset: last_end,
            append_time: None,
            log_start,
            is_duplicate: true,
        }))
    }

    fn observe_appended(&self, batches: &[u8], summary: &BatchSummary, appended: &Appended) {
        let mut producers = self.0.producers.borrow_mut();
        let mut base_offset = appended.base_offset;
        for header in headers(batches, summary) {
            let stamped = BatchHeader { base_offset, ..header };
            base_offset = stamped.next_offset();
            producers.observe(&stamped);
        }
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
        self.check_served(leader_epoch)?;
        let epoch = self.leader_epoch();
        let high_watermark = self.high_watermark();
        let committed_bytes = self.committed_bytes();
        let batches = self.0.log.read(from, high_watermark, ReadLimits::bytes(bytes_max)).await?;
        // What was read may have been cut since, and other records stand there now.
        self.check_epoch(Some(epoch))?;
        self.count(|c| c.fetch_bytes += batches.bytes as u64);
        Ok(Fetched {
            batches,
            high_watermark,
            log_start: self.log_start(),
            leader_epoch: epoch,
            committed_bytes,
        })
    }

    /// Where what a reader has read parts from this log; `None`: nowhere. Its position is `from`, and the last batch
    /// that it read before was of `last_epoch`.
    ///
    /// A leader from outside the ISR begins without records that were read: the reader has to go back, and be told.
    /// Source: KIP-320.
    pub fn diverged(&self, from: Offset, last_epoch: LeaderEpoch) -> Option<EpochEnd> {
        let end = self.0.log.ends().end;
        if last_epoch == self.leader_epoch() && from <= end {
            return None;
        }
        let epochs = self.0.log.epochs();
        // A leadership that left nothing here: all that it appended was given up.
        let all = (epochs.latest()?.epoch, end);
        let (epoch, end) = epochs.end_offset_for(last_epoch, end).unwrap_or(all);
        let is_prefix = epoch == last_epoch && from <= end;
        (!is_prefix).then(|| EpochEnd { epoch, end: end.min(from) })
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
        self.check_served(leader_epoch)?;
        Ok(self.log_start())
    }

    /// The high watermark, once it is known in this epoch (R8).
    pub fn latest(&self, leader_epoch: Option<LeaderEpoch>) -> Result<Offset, ListOffsetsError> {
        self.check_served(leader_epoch)?;
        let high_watermark = self.high_watermark();
        let is_caught_up = |leading: &mut Leading| Leader::is_caught_up(&leading.leader);
        if self.0.progress.leading(is_caught_up) != Some(true) {
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
        let epoch = self.leader_epoch();
        let found = self.0.log.offset_for_timestamp(at, visible_end).await?;
        self.check_epoch(Some(epoch))?;
        Ok(found)
    }

    /// Makes `before` the log start; `None`: the high watermark. Durable when it returns; followers do the same.
    pub async fn delete_records(
        &self,
        before: Option<Offset>,
        now: TimestampMs,
    ) -> Result<Trimmed, DeleteRecordsError> {
        self.check_served(None)?;
        let high_watermark = self.high_watermark();
        let to = before.unwrap_or(high_watermark);
        if to > high_watermark {
            return Err(DeleteRecordsError::AboveHighWatermark { requested: to, high_watermark });
        }
        // With flush = interval the mark may be ahead of the durable end, and the log start must not be.
        if to > self.0.log.ends().durable {
            self.0.log.flush().await.map_err(TrimError::Failed)?;
        }
        Ok(self.0.log.delete_records_before(to, now).await?)
    }

    fn count(&self, add: impl FnOnce(&mut Counters)) {
        let mut counters = self.0.counters.get();
        add(&mut counters);
        self.0.counters.set(counters);
    }
}

/// The headers of batches that are valid, as their producer wrote them.
fn headers<'a>(batches: &'a [u8], summary: &BatchSummary) -> impl Iterator<Item = BatchHeader> + 'a {
    // Nearly always there is one, and it was read already.
    let mut first = Some(summary.first);
    let mut rest = batches;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let header = first.take().unwrap_or_else(|| {
            BatchHeader::parse_unstamped(rest).expect("only validated batches are walked")
        });
        rest = &rest[header.size()..];
        Some(header)
    })
}

/// Checks that two batches of one request are of one producer and in sequence.
fn check_follows(previous: &BatchHeader, header: &BatchHeader) -> Result<(), SequenceError> {
    let expected = next_sequence(previous);
    let is_same =
        (previous.producer_id, previous.producer_epoch) == (header.producer_id, header.producer_epoch);
    if is_same && header.base_sequence == expected {
        return Ok(());
    }
    let (producer_id, found) = (header.producer_id, header.base_sequence);
    Err(SequenceError::OutOfOrder { producer_id, expected, found })
}
