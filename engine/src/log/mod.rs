//! One partition's log: ordered batches in segment files, with four ends.
//!
//! Owns: the public face of a log and its state. The work is in the files beside: `append` (order and copy),
//! `commit` (write and sync), `read`, `roll`, `recovery`, `trim` (retention, deletion, truncation).
//! Invariant: start <= durable <= written <= end, counted in offsets; within one opening none of the last three
//! goes back except by `truncate`.
//! Invariant: state changes in synchronous methods; no borrow of it is held across an `.await`.
//! Crash story: the process dies at any point. What was written is found by `recovery`; who was answered had
//! been told of nothing beyond `written` (flush = interval) or `durable` (flush = commit).

mod append;
mod commit;
mod doubt;
mod errors;
mod options;
mod place;
mod plan;
mod prepare;
mod read;
mod recovery;
mod repair;
mod replicated;
mod reset;
mod retention;
mod roll;
mod scan;
mod scrub;
mod segment;
mod timestamp;
mod trim;

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::rc::Rc;

pub use append::{Admission, Appended};
pub use errors::{AppendError, LogFailure, OpenError, ReadError, RepairError, ReplicatedError, TrimError};
pub use options::{CleanupPolicy, EngineOptions, FlushPolicy, LogOptions, ReadLimits};
pub use place::{ActiveSegment, Placement, place};
pub(crate) use prepare::AHEAD_BYTES_MIN;
pub use read::ReadBatches;
pub use recovery::{CutTail, RecoveryReport};
pub use retention::{SealedSegment, expired};
pub use scrub::{DamagedRange, ScrubCursor, ScrubProgress};
pub(crate) use segment::Segment;
pub use trim::Trimmed;

use crate::buffer::DmaBuffer;
use crate::checkpoint::EpochTable;
use crate::disk::Disk;
use crate::engine::Engine;
use crate::notify::{Notify, Turnstile};
use crate::types::{LeaderEpoch, LogId, Offset, TimestampMs};
use plan::WritePlan;

/// The bounds of a log. All but `start` are exclusive ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogEnds {
    /// First offset still readable.
    pub start: Offset,
    /// End of what survives power loss.
    pub durable: Offset,
    /// End of what the device has taken: survives kill -9.
    pub written: Offset,
    /// Log end offset: the next record gets it.
    pub end: Offset,
}

/// Which end a waiter waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The device has it.
    Written,
    /// A sync has covered it.
    Durable,
}

/// Who is told, at once and on the same core, when the ends of a log move. Called without a borrow held, so it
/// may call back into the log.
pub trait LogListener {
    /// One of the ends moved: forward, or back by [`Log::truncate`] and [`Log::reset_to`].
    fn ends_advanced(&self, ends: LogEnds);
    /// Batches were appended: the log end moved, nothing else.
    fn appended(&self, _ends: LogEnds) {}
    /// Retention keeps what lies at or behind this: a replica must not delete what is not committed.
    fn retention_end(&self) -> Offset {
        Offset(u64::MAX)
    }
    /// The log takes no more appends; whoever waits for an end will not see it.
    fn failed(&self, failure: &LogFailure);
}

/// Sizes of a log, for metrics and describe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Bytes of batches in all segments.
    pub bytes: u64,
    /// Segments, the active one included.
    pub segments: usize,
    /// Appended bytes that the device has not taken.
    pub unwritten_bytes: u64,
}

/// A log. Cheap to clone; all clones are the same log.
pub struct Log<D: Disk>(Rc<LogInner<D>>);

impl<D: Disk> Clone for Log<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct LogInner<D: Disk> {
    engine: Engine<D>,
    dir: PathBuf,
    id: LogId,
    state: RefCell<State<D>>,
    /// Admission to append, and every change of the list of segments: one at a time.
    turnstile: Turnstile,
    /// An end moved, a write completed, the log failed, or bytes were prepared.
    progress: Notify,
    /// The log end moved, or the log failed.
    appended: Notify,
    listener: RefCell<Option<Rc<dyn LogListener>>>,
    queued: Cell<bool>,
    /// See `doubt.rs`.
    unverified: Cell<bool>,
}

impl<D: Disk> Drop for LogInner<D> {
    fn drop(&mut self) {
        self.engine.share_ahead(self.state.get_mut().ahead_bytes, prepare::AHEAD_BYTES_MIN);
    }
}

struct State<D: Disk> {
    options: LogOptions,
    ends: LogEnds,
    epoch: Option<LeaderEpoch>,
    epochs: EpochTable,
    /// Sealed segments, oldest first.
    sealed: VecDeque<Rc<Segment<D>>>,
    /// Segments not yet wholly durable; the last one is active and always there.
    writers: VecDeque<Writer<D>>,
    next_segment: NextSegment<D>,
    /// Sealed segments that are not yet trimmed.
    finishing: VecDeque<Rc<Segment<D>>>,
    /// How many of them the background is at: a file is not cut or closed meanwhile.
    trimming: usize,
    syncing: bool,
    /// End that a sync which is due waits for.
    sync_target: Option<Offset>,
    /// A sync was asked for although the policy would not.
    sync_wanted: bool,
    unsynced_since: Option<TimestampMs>,
    /// When somebody last asked to append: the time by which segments expire between two calls of retention.
    last_admit: TimestampMs,
    /// How far to write ahead.
    ahead_bytes: u64,
    /// When that was last looked at.
    ahead_since: TimestampMs,
    appended_since_checkpoint: u64,
    end_when_last_idle: Offset,
    checkpointing: bool,
    checkpoint_queued: bool,
    failure: Option<LogFailure>,
    /// Grows with each truncation: a reader that waited meanwhile starts over.
    generation: u64,
    /// Base offset of the sealed segment that is being mended: it is neither deleted nor recycled meanwhile.
    repairing: Option<Offset>,
    /// A cut that could not be stored: it is stored before anything is appended.
    owed_cut: Option<trim::OwedCut<D>>,
}

/// The segment after the active one.
enum NextSegment<D: Disk> {
    Absent,
    BeingPrepared,
    Ready { file: D::File, prepared_end: u64 },
}

/// The writing side of a segment.
struct Writer<D: Disk> {
    segment: Rc<Segment<D>>,
    plan: WritePlan,
    /// End position and end offset of each append that the device has not taken whole.
    pending: VecDeque<(u64, Offset)>,
    /// End of the last append that the device has taken whole.
    written_mark: Mark,
    /// End of what a sync has covered.
    durable_mark: Mark,
    /// Blocks below are written (zeroes), so that a sync moves data and nothing else.
    prepared_end: u64,
    preparing: bool,
    /// The file's name is not durable yet.
    dir_sync_needed: bool,
    /// Memory for what was admitted.
    spare: VecDeque<DmaBuffer>,
    chunk_bytes_next: usize,
}

/// A batch boundary: as a byte and as an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    position: u64,
    offset: Offset,
}

impl<D: Disk> Writer<D> {
    /// A writer at the end of a segment whose bytes are all durable.
    fn at_end(segment: Rc<Segment<D>>, prepared_end: u64) -> Self {
        let mark = Mark { position: segment.bytes.get(), offset: segment.end_offset.get() };
        Self {
            plan: WritePlan::at(mark.position),
            segment,
            pending: VecDeque::new(),
            written_mark: mark,
            durable_mark: mark,
            prepared_end,
            preparing: false,
            dir_sync_needed: false,
            spare: VecDeque::new(),
            chunk_bytes_next: append::CHUNK_BYTES_MIN,
        }
    }

    fn unwritten_bytes(&self) -> u64 {
        self.plan.appended() - self.plan.written()
    }

    fn is_wholly_written(&self) -> bool {
        self.plan.written() == self.plan.appended()
    }

    fn is_wholly_durable(&self) -> bool {
        self.durable_mark.position == self.plan.appended()
    }
}

impl<D: Disk> State<D> {
    fn active(&self) -> &Writer<D> {
        self.writers.back().expect("a log has an active segment")
    }

    fn active_mut(&mut self) -> &mut Writer<D> {
        self.writers.back_mut().expect("a log has an active segment")
    }

    fn unwritten_bytes(&self) -> u64 {
        self.writers.iter().map(Writer::unwritten_bytes).sum()
    }

    fn bytes(&self) -> u64 {
        let sealed: u64 = self.sealed.iter().map(|s| s.bytes.get()).sum();
        sealed + self.active().plan.appended()
    }

    /// The segment that holds `offset`, or the first one behind it.
    fn segment_for(&self, offset: Offset) -> Rc<Segment<D>> {
        let after = self.sealed.partition_point(|s| s.end_offset.get() <= offset);
        self.sealed.get(after).unwrap_or(&self.active().segment).clone()
    }

    fn check(&self) -> Result<(), LogFailure> {
        self.failure.clone().map_or(Ok(()), Err)
    }
}

impl<D: Disk> Log<D> {
    /// Identity of the log's directory.
    pub fn id(&self) -> LogId {
        self.0.id
    }

    /// The log's directory.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// The bounds now.
    pub fn ends(&self) -> LogEnds {
        self.state().ends
    }

    /// The options now.
    pub fn options(&self) -> LogOptions {
        self.state().options
    }

    /// Changes the options; segment limits take effect at the next append.
    pub fn set_options(&self, options: LogOptions) {
        self.state_mut().options = options;
        self.wake_commits();
    }

    /// Why the log takes no appends, if it does not.
    pub fn failure(&self) -> Option<LogFailure> {
        self.state().failure.clone()
    }

    /// Sizes now.
    pub fn stats(&self) -> LogStats {
        let state = self.state();
        LogStats {
            bytes: state.bytes(),
            segments: state.sealed.len() + 1,
            unwritten_bytes: state.unwritten_bytes(),
        }
    }

    /// The leadership term in which it appends, if it leads.
    pub fn leader_epoch(&self) -> Option<LeaderEpoch> {
        self.state().epoch
    }

    /// The newest leadership term that has a batch in the log.
    pub fn newest_epoch(&self) -> Option<LeaderEpoch> {
        self.state().epochs.latest().map(|latest| latest.epoch)
    }

    /// The terms of the log and where each began.
    pub fn epochs(&self) -> EpochTable {
        self.state().epochs.clone()
    }

    /// Begins a leadership term: appends carry `epoch` from now on.
    ///
    /// The caller has stored the term durably before (in the metadata store), so that after a crash no older
    /// term is used again and a batch that reappears behind a cut is told by its epoch.
    ///
    /// Errors: the log failed, or the term is not above all terms in the log.
    pub fn begin_epoch(&self, epoch: LeaderEpoch) -> Result<(), AppendError> {
        let mut state = self.state_mut();
        state.check()?;
        if let Some(newest) = state.epochs.latest().map(|latest| latest.epoch).max(state.epoch)
            && epoch <= newest
        {
            return Err(AppendError::StaleEpoch { requested: epoch, newest });
        }
        state.epoch = Some(epoch);
        Ok(())
    }

    /// Goes on in a term that may have been used: the bug that [`Log::begin_epoch`] prevents.
    #[cfg(feature = "canary")]
    pub fn resume_epoch(&self, epoch: LeaderEpoch) {
        self.state_mut().epoch = Some(epoch);
    }

    /// Who is told when the ends move. One at a time; the last one set.
    pub fn set_listener(&self, listener: Rc<dyn LogListener>) {
        *self.0.listener.borrow_mut() = Some(listener);
    }

    /// Waits until `offset` (an exclusive end) has reached a stage.
    ///
    /// Errors: the log failed before it did.
    pub async fn wait(&self, stage: Stage, offset: Offset) -> Result<(), LogFailure> {
        loop {
            let progress = {
                let state = self.state();
                let reached = match stage {
                    Stage::Written => state.ends.written,
                    Stage::Durable => state.ends.durable,
                };
                if reached >= offset {
                    return Ok(());
                }
                state.check()?;
                self.0.progress.notified()
            };
            progress.await;
        }
    }

    /// Waits until the log end is above `from`: at once when batches are appended, before they are written.
    ///
    /// Errors: the log failed before it was.
    pub async fn appended_beyond(&self, from: Offset) -> Result<(), LogFailure> {
        loop {
            let appended = {
                let state = self.state();
                if state.ends.end > from {
                    return Ok(());
                }
                state.check()?;
                self.0.appended.notified()
            };
            appended.await;
        }
    }

    /// Makes all that was appended durable, whatever the policy.
    pub async fn flush(&self) -> Result<(), LogFailure> {
        let end = {
            let mut state = self.state_mut();
            state.sync_wanted = true;
            state.ends.end
        };
        self.wake_commits();
        self.wait(Stage::Durable, end).await
    }

    /// Starts a sync if the flush interval of the log has passed. The shard calls it on a timer.
    pub fn flush_if_due(&self, now: TimestampMs) {
        let due = {
            let mut state = self.state_mut();
            let FlushPolicy::Interval { ms_max, .. } = state.options.flush else { return };
            let due = state.unsynced_since.is_some_and(|since| now < since || now.ms_since(since) >= ms_max);
            state.sync_wanted |= due;
            due
        };
        if due {
            self.wake_commits();
        }
    }

    /// Gives memory and write-ahead back if nothing was appended since the last call. The shard calls it on a slow
    /// timer. Returns whether anything was held.
    pub fn release_idle_memory(&self) -> bool {
        let mut state = self.state_mut();
        let end = state.ends.end;
        if std::mem::replace(&mut state.end_when_last_idle, end) != end {
            return false;
        }
        state.ahead_bytes = self.engine().share_ahead(state.ahead_bytes, prepare::AHEAD_BYTES_MIN);
        let writer = state.active_mut();
        if !writer.pending.is_empty() || self.0.turnstile.is_taken() {
            return false;
        }
        writer.chunk_bytes_next = append::CHUNK_BYTES_MIN;
        let held = !writer.spare.is_empty();
        writer.spare.clear();
        writer.segment.release_tail() | held
    }

    /// Flushes, seals nothing, trims the active segment to its length and stores a clean checkpoint: the next
    /// start need not scan. The log takes no appends afterwards.
    ///
    /// Errors: the log had failed, or the disk failed now; the next start scans what is not known durable. Either
    /// way nothing of this log is in flight any more: it may be opened again.
    /// Cancel: it goes on to its end.
    pub async fn close(&self) -> Result<(), LogFailure> {
        let log = self.clone();
        self.engine().detach(async move { log.close_now().await }).await
    }

    async fn close_now(&self) -> Result<(), LogFailure> {
        let _pass = self.0.turnstile.enter().await;
        let flushed = self.flush().await;
        self.wait_for_writes().await;
        self.wait_for_background().await;
        let stored = match flushed {
            Ok(()) if self.state().owed_cut.is_some() => self.store_owed_before_close().await,
            Ok(()) => self.store_clean_checkpoint().await,
            failed => failed,
        };
        self.fail(LogFailure::Closed);
        self.0.listener.take();
        stored
    }

    /// Without it the next start would find what was cut, and must not take it for what a clean stop left.
    async fn store_owed_before_close(&self) -> Result<(), LogFailure> {
        match self.store_cut_if_owed().await {
            Ok(()) => self.store_clean_checkpoint().await,
            Err(TrimError::Failed(failure)) => Err(failure),
            Err(error) => Err(LogFailure::Poisoned {
                path: self.0.dir.clone(),
                operation: "storing a cut",
                reason: error.to_string(),
            }),
        }
    }

    /// Closes the log and removes its directory. Readers that are under way see it as closed.
    /// Cancel: it goes on to its end.
    pub async fn delete(&self) -> std::io::Result<()> {
        let log = self.clone();
        self.engine().detach(async move { log.delete_now().await }).await
    }

    async fn delete_now(&self) -> std::io::Result<()> {
        let _pass = self.0.turnstile.enter().await;
        self.fail(LogFailure::Closed);
        self.wait_for_writes().await;
        self.wait_for_background().await;
        let segments = {
            let state = self.state();
            let active = state.active().segment.clone();
            state.sealed.iter().cloned().chain([active]).collect::<Vec<_>>()
        };
        for segment in segments {
            segment.gone.set(true);
            segment.drop_chunks();
            segment.set_file(None);
        }
        self.0.listener.take();
        self.engine().disk().remove_dir_all(&self.0.dir).await?;
        match self.0.dir.parent() {
            // The parent may go at the same time, with all of a topic.
            Some(parent) => match self.engine().disk().sync_dir(parent).await {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                other => other,
            },
            None => Ok(()),
        }
    }

    /// The engine that it belongs to.
    pub fn engine(&self) -> &Engine<D> {
        &self.0.engine
    }

    fn state(&self) -> Ref<'_, State<D>> {
        self.0.state.borrow()
    }

    fn state_mut(&self) -> RefMut<'_, State<D>> {
        self.0.state.borrow_mut()
    }

    /// Marks the log as failed and tells everybody. The first failure stays.
    fn fail(&self, failure: LogFailure) {
        {
            let mut state = self.state_mut();
            if state.failure.is_some() {
                return;
            }
            state.failure = Some(failure.clone());
        }
        if let LogFailure::Poisoned { .. } = failure {
            tracing::error!(dir = %self.0.dir.display(), "{failure}; it takes no appends until it is opened again");
        }
        self.0.progress.notify_all();
        self.0.appended.notify_all();
        let listener = self.0.listener.borrow().clone();
        if let Some(listener) = listener {
            listener.failed(&failure);
        }
    }

    fn tell_appended(&self) {
        self.0.appended.notify_all();
        let listener = self.0.listener.borrow().clone();
        if let Some(listener) = listener {
            let ends = self.ends();
            listener.appended(ends);
        }
    }

    fn tell_progress(&self) {
        self.0.progress.notify_all();
        let listener = self.0.listener.borrow().clone();
        if let Some(listener) = listener {
            let ends = self.ends();
            listener.ends_advanced(ends);
        }
    }

    async fn wait_for_writes(&self) {
        loop {
            let progress = {
                let state = self.state();
                if !state.syncing && state.writers.iter().all(|w| !w.plan.is_writing()) {
                    return;
                }
                self.0.progress.notified()
            };
            progress.await;
        }
    }

    async fn wait_for_background(&self) {
        loop {
            let progress = {
                let state = self.state();
                let preparing = state.writers.iter().any(|w| w.preparing);
                let next = matches!(state.next_segment, NextSegment::BeingPrepared);
                if !preparing && !next && !state.checkpoint_queued && state.trimming == 0 {
                    return;
                }
                self.0.progress.notified()
            };
            progress.await;
        }
    }
}
