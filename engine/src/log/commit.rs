//! The commit path: turns appended bytes into written and durable ones.
//!
//! Owns: the next writes and the next sync of one log, and what their completion moves.
//! Invariant: `written` is the last batch boundary below which the device has taken everything, over all writers
//! in order; `durable` is what `written` was when a sync that has succeeded was started.
//! Invariant: one sync of a log at a time. Whoever appends while it runs is covered by the next one: group commit.
//! Invariant: after a failed write or sync the log is poisoned and never written again: the kernel may have
//! dropped the pages or not, and a later sync that succeeds would prove nothing.
//! Crash story: power fails after the writes, before the sync. `durable` did not move and nobody was answered
//! with flush = commit; recovery may find the bytes or not.
//! Not here: which bytes make a write (`plan.rs`), who drives (`engine.rs`).

use std::io;
use std::rc::Rc;

use super::plan::{WritePlan, WriteRange};
use super::{FlushPolicy, Log, LogFailure, Mark, Segment, State};
use crate::buffer::{DmaBuffer, DmaSlice};
use crate::disk::{BLOCK_BYTES, Disk, DiskFile, IoClass};
use crate::engine::Job;
use crate::types::Offset;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What one sync covers.
struct SyncRound<D: Disk> {
    segments: Vec<(Rc<Segment<D>>, Mark)>,
    dir_sync_needed: bool,
    end: Offset,
}

impl<D: Disk> Log<D> {
    /// Queues the log for the commit driver, once.
    pub(super) fn wake_commits(&self) {
        if !self.0.queued.replace(true) {
            self.engine().queue_commit(self.clone());
        }
    }

    pub(crate) fn leave_commit_queue(&self) {
        self.0.queued.set(false);
    }

    /// The writes and the sync that may start now, at most `free` of them. Called by the driver; what does not
    /// start now is asked for again when something completes.
    pub(crate) fn next_commit_jobs(&self, free: usize) -> Vec<Job> {
        let mut jobs: Vec<Job> = Vec::new();
        if self.state().failure.is_some() {
            return jobs;
        }
        // First the sync: it waits for the writes now in flight, not for those that start now.
        if let Some(round) = self.next_sync() {
            jobs.push(Box::pin(self.clone().sync(round)));
        }
        while jobs.len() < free
            && let Some(job) = self.next_write()
        {
            jobs.push(job);
        }
        if jobs.len() == free {
            self.wake_commits();
        }
        jobs
    }

    fn next_write(&self) -> Option<Job> {
        let mut state = self.state_mut();
        for at in 0..state.writers.len() {
            let writer = &mut state.writers[at];
            let Some(range) = writer.plan.next() else { continue };
            // A range beyond the prepared end would still be right, only slow; admission does not let it happen.
            let tail = if range.end % BLOCK == 0 {
                None
            } else {
                // All tail blocks in flight: the log is asked again when one comes back.
                Some(self.engine().take_tail_block()?)
            };
            let segment = writer.segment.clone();
            let file = segment.open_file().expect("a segment that is written is open");
            writer.plan.dispatch(range);
            let (slices, tail) = gather(&segment, range, tail);
            if tail.is_some() {
                self.engine().count(|s| s.copied_bytes += range.end % BLOCK);
            }
            return Some(Box::pin(self.clone().write(segment, file, range, slices, tail)));
        }
        None
    }

    async fn write(
        self,
        segment: Rc<Segment<D>>,
        file: D::File,
        range: WriteRange,
        slices: Vec<DmaSlice>,
        tail: Option<DmaBuffer>,
    ) {
        let device_bytes: usize = slices.iter().map(|s| s.len()).sum();
        let result = file.write_at(slices, range.start, IoClass::Commit).await;
        if let Some(tail) = tail {
            self.engine().give_back_tail_block(tail);
        }
        self.engine().count(|s| {
            s.writes += 1;
            s.device_written_bytes += device_bytes as u64;
        });
        match result {
            Ok(()) => self.written(&segment, range),
            Err(error) => {
                self.with_plan(&segment, |plan| plan.fail(range));
                self.poison(&segment, "write", &error);
            }
        }
        self.wake_commits();
    }

    fn with_plan<T>(&self, segment: &Rc<Segment<D>>, change: impl FnOnce(&mut WritePlan) -> T) -> Option<T> {
        let mut state = self.state_mut();
        let writer = state.writers.iter_mut().find(|w| Rc::ptr_eq(&w.segment, segment));
        writer.map(|w| change(&mut w.plan))
    }

    fn written(&self, segment: &Rc<Segment<D>>, range: WriteRange) {
        if self.with_plan(segment, |plan| plan.complete(range)) != Some(true) {
            self.0.progress.notify_all();
            return;
        }
        let advanced = {
            let mut state = self.state_mut();
            let before = state.ends.written;
            advance_written(&mut state);
            assert!(state.ends.written >= before, "the written end went back");
            state.ends.written > before
        };
        for start in segment.clean_below(segment.written_bytes.get()) {
            self.engine().cache(segment, start);
        }
        self.engine().relieve();
        if advanced {
            self.tell_progress();
        } else {
            // Somebody may wait for room or for a write to end.
            self.0.progress.notify_all();
        }
    }

    /// The sync that may start now: once all writes that were in flight when it became due are complete. Without
    /// that wait a large write and the small one of its tail end in two syncs, those who waited for them append
    /// apart, and groups crumble until each holds one batch.
    fn next_sync(&self) -> Option<SyncRound<D>> {
        let mut state = self.state_mut();
        let due = state.options.flush == FlushPolicy::Commit || state.sync_wanted;
        if state.syncing || !due || state.ends.written == state.ends.durable {
            if state.ends.written == state.ends.durable && state.ends.written == state.ends.end {
                state.sync_wanted = false;
            }
            return None;
        }
        let target = match state.sync_target {
            Some(target) => target,
            None => state.dispatched_end(),
        };
        if state.ends.written < target {
            state.sync_target = Some(target);
            return None;
        }
        state.sync_target = None;
        let end = state.ends.written;
        let dirty: Vec<_> =
            state.writers.iter().filter(|w| w.written_mark.position > w.durable_mark.position).collect();
        let round = SyncRound {
            segments: dirty.iter().map(|w| (w.segment.clone(), w.written_mark)).collect(),
            dir_sync_needed: dirty.iter().any(|w| w.dir_sync_needed),
            end,
        };
        state.syncing = true;
        if end == state.ends.end {
            state.sync_wanted = false;
            state.unsynced_since = None;
        }
        Some(round)
    }

    async fn sync(self, round: SyncRound<D>) {
        let result = self.sync_files(&round).await;
        self.state_mut().syncing = false;
        match result {
            Ok(()) => self.synced(round),
            Err(error) => {
                let segment = &round.segments.last().expect("a sync round has segments").0;
                self.poison(segment, "sync", &error);
            }
        }
        self.wake_commits();
    }

    async fn sync_files(&self, round: &SyncRound<D>) -> io::Result<()> {
        for (segment, _) in &round.segments {
            let file = segment.open_file().expect("a segment that is synced is open");
            file.sync().await?;
            self.engine().count(|s| s.syncs += 1);
        }
        if round.dir_sync_needed {
            // The first bytes of a new segment count only once its name does.
            self.engine().disk().sync_dir(&self.0.dir).await?;
        }
        Ok(())
    }

    fn synced(&self, round: SyncRound<D>) {
        {
            let mut state = self.state_mut();
            for (segment, mark) in &round.segments {
                let writer = state.writers.iter_mut().find(|w| Rc::ptr_eq(&w.segment, segment));
                let writer = writer.expect("a writer stays until it is durable");
                writer.durable_mark = *mark;
                writer.dir_sync_needed = false;
            }
            assert!(round.end >= state.ends.durable, "the durable end went back");
            state.ends.durable = round.end;
        }
        self.finish_durable();
        self.checkpoint_if_due();
        self.tell_progress();
    }

    fn poison(&self, segment: &Segment<D>, operation: &'static str, error: &io::Error) {
        self.fail(LogFailure::Poisoned { path: segment.path.clone(), operation, reason: error.to_string() });
    }
}

impl<D: Disk> State<D> {
    /// End of the last append whose bytes are all on the device or on their way.
    fn dispatched_end(&self) -> Offset {
        let mut end = self.ends.written;
        for writer in &self.writers {
            let dispatched = writer.plan.dispatched();
            let after = writer.pending.partition_point(|(position, _)| *position <= dispatched);
            if let Some(&(_, offset)) = after.checked_sub(1).and_then(|last| writer.pending.get(last)) {
                end = offset;
            }
            if after < writer.pending.len() {
                break;
            }
        }
        end
    }
}

/// Moves the written end over all writers, in order: bytes of a new segment count only behind all of the old one.
fn advance_written<D: Disk>(state: &mut State<D>) {
    for writer in &mut state.writers {
        let written = writer.plan.written();
        writer.segment.written_bytes.set(written);
        while let Some(&(position, offset)) = writer.pending.front()
            && position <= written
        {
            writer.pending.pop_front();
            writer.written_mark = Mark { position, offset };
        }
        state.ends.written = writer.written_mark.offset;
        if !writer.is_wholly_written() {
            break;
        }
    }
}

/// The buffers of one device write. Whole blocks come from the chunks as they are; a partial tail block comes
/// from a private copy, padded with zeroes, because appends go on behind it while the device reads it.
fn gather<D: Disk>(
    segment: &Segment<D>,
    range: WriteRange,
    tail: Option<DmaBuffer>,
) -> (Vec<DmaSlice>, Option<DmaBuffer>) {
    let whole_end = range.end / BLOCK * BLOCK;
    let mut slices = Vec::with_capacity(3);
    let mut position = range.start;
    while position < whole_end {
        let slice = chunk_slice(segment, position, whole_end);
        position += slice.len() as u64;
        slices.push(slice);
    }
    let tail = tail.map(|mut copy| {
        while position < range.end {
            let slice = chunk_slice(segment, position, range.end);
            copy.append(&slice);
            position += slice.len() as u64;
        }
        copy.append_zeroes(BLOCK_BYTES - copy.filled());
        slices.push(copy.slice(0..BLOCK_BYTES));
        copy
    });
    (slices, tail)
}

fn chunk_slice<D: Disk>(segment: &Segment<D>, position: u64, end: u64) -> DmaSlice {
    let (slice, _) = segment.chunk_at(position).expect("unwritten bytes are in memory");
    let wanted = (end - position).min(slice.len() as u64) as usize;
    slice.slice(0..wanted)
}
