//! Removing from both ends: retention and deletion at the start, truncation at the end.
//!
//! Owns: the order in which files and checkpoints change.
//! Invariant: the start moves before files go, so a reader gets "out of range", never a missing file.
//! Crash story, deletion: the process dies between the removal of two segments. The new start is durable before
//! the first of them goes, and recovery removes what lies wholly before it.
//! Crash story, truncation: the checkpoint is moved back to the cut before the file is cut. Dying between the two
//! leaves the log as it was: recovery scans from the cut and finds the same batches.

use std::io;
use std::rc::Rc;

use super::read::locate;
use super::retention::{SealedSegment, expired};
use super::{Log, LogFailure, Mark, NextSegment, Segment, State, TrimError, Writer};
use crate::disk::{Disk, DiskFile};
use crate::types::{Offset, TimestampMs};

/// What retention removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Segments removed.
    pub segments: usize,
    /// Bytes removed.
    pub bytes: u64,
    /// The log start offset now.
    pub start: Offset,
}

/// A cut that is made in memory and not on the disk.
pub(super) struct OwedCut<D: Disk> {
    segment: Rc<Segment<D>>,
    mark: Mark,
    /// The segments behind it.
    removed: Vec<Rc<Segment<D>>>,
}

impl<D: Disk> Clone for OwedCut<D> {
    fn clone(&self) -> Self {
        Self { segment: self.segment.clone(), mark: self.mark, removed: self.removed.clone() }
    }
}

impl<D: Disk> Log<D> {
    /// Makes `to` the log start: records before it are not read any more, and segments wholly before it go.
    /// Durable when it returns. `to` below the start changes nothing.
    ///
    /// Errors: `to` is above the log end (the caller also keeps it at or below the high watermark).
    /// Cancel: it goes on to its end.
    pub async fn delete_records_before(&self, to: Offset, now: TimestampMs) -> Result<Trimmed, TrimError> {
        let log = self.clone();
        self.engine().detach(async move { log.move_start_to(to, now).await }).await
    }

    async fn move_start_to(&self, to: Offset, now: TimestampMs) -> Result<Trimmed, TrimError> {
        {
            let mut state = self.state_mut();
            state.check()?;
            let (start, end) = (state.ends.start, state.ends.durable);
            if to > end {
                return Err(TrimError::OutOfRange { requested: to, start, end });
            }
            if to > start {
                state.move_start(to);
            }
        }
        let stored = self.store_checkpoint_now().await;
        self.tell_progress();
        match stored {
            Ok(()) => self.retain(now).await,
            // Removing segments makes room; then it is stored.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                let trimmed = self.retain(now).await?;
                self.store_checkpoint_now().await.map_err(disk_error)?;
                Ok(trimmed)
            }
            Err(error) => Err(disk_error(error)),
        }
    }

    /// Removes the segments that the retention options, or the log start, no longer keep, up to
    /// [`super::LogListener::retention_end`].
    ///
    /// Errors: the new log start could not be stored, or a file not be removed: then it stays until the log is opened again.
    /// Cancel: it goes on to its end.
    pub async fn apply_retention(&self, now: TimestampMs) -> Result<Trimmed, TrimError> {
        let log = self.clone();
        self.engine().detach(async move { log.retain(now).await }).await
    }

    async fn retain(&self, now: TimestampMs) -> Result<Trimmed, TrimError> {
        let removed = self.take_expired(now, usize::MAX).await;
        let trimmed = Trimmed {
            segments: removed.len(),
            bytes: removed.iter().map(|s| s.bytes.get()).sum(),
            start: self.ends().start,
        };
        if removed.is_empty() {
            return Ok(trimmed);
        }
        match self.store_checkpoint_now().await {
            Ok(()) => self.remove_expired(removed, false).await.map_err(disk_error)?,
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                self.remove_expired(removed, true).await.map_err(disk_error)?;
                self.store_checkpoint_now().await.map_err(disk_error)?;
            }
            Err(error) => return Err(disk_error(error)),
        }
        Ok(trimmed)
    }

    /// Removes the files of segments that [`Log::take_expired`] took, oldest first. The log start behind them is
    /// durable: power loss may bring some of the files back and not others, or one whose blocks were used again.
    /// Where it could not be stored (the disk is full), `one_by_one` makes each removal durable before the next,
    /// so that what is left is one range all the same.
    pub(super) async fn remove_expired(
        &self,
        removed: Vec<Rc<Segment<D>>>,
        one_by_one: bool,
    ) -> io::Result<()> {
        for segment in removed {
            segment.remove_files(self.engine()).await?;
            if one_by_one {
                self.engine().disk().sync_dir(&self.0.dir).await?;
            }
        }
        Ok(())
    }

    /// Takes at most `most` segments that are no longer kept out of the log, oldest first; their files are still
    /// there, and the caller makes the new log start durable before it touches them.
    pub(super) async fn take_expired(&self, now: TimestampMs, most: usize) -> Vec<Rc<Segment<D>>> {
        let candidates = {
            let state = self.state();
            let end = state.deletable_end();
            state.sealed.iter().take_while(|s| s.base < end).cloned().collect::<Vec<_>>()
        };
        if self.options().retention_ms.is_some() {
            for segment in &candidates {
                // Its newest timestamp is in its index. A damaged one is not deleted by age.
                if segment.max_timestamp.get().is_none() && segment.load_index(self.engine()).await.is_err() {
                    tracing::warn!(segment = %segment.path.display(), "no index: its age is not known");
                }
            }
        }
        let listener = self.0.listener.borrow().clone();
        let retention_end = listener.map_or(Offset(u64::MAX), |listener| listener.retention_end());
        let removed: Vec<_> = {
            let mut state = self.state_mut();
            let facts: Vec<_> = candidates.iter().map(facts).collect();
            let count = expired(&facts, state.bytes(), state.ends.start, now, &state.options).min(most);
            let count = facts.iter().take(count).take_while(|segment| segment.end <= retention_end).count();
            // A truncation, or another caller, may have come between.
            let same = candidates.iter().zip(&state.sealed).take(count).all(|(a, b)| Rc::ptr_eq(a, b));
            let removed = if same { state.sealed.drain(..count).collect() } else { Vec::new() };
            if let Some(last) = removed.last() {
                let start = state.ends.start.max(last.end_offset.get());
                state.move_start(start);
            }
            removed
        };
        if !removed.is_empty() {
            self.tell_progress();
        }
        removed
    }

    /// Cuts the tail of the log: the batch that holds `to`, and all behind it, go. Durable when it returns.
    ///
    /// For a follower whose leader lacks what it has. Who waits for an end above the cut waits on.
    /// Appends that are under way are waited for; slices that readers hold stay as they are.
    /// Errors: `to` is below the log start; or the cut could not be stored: see [`TrimError::Disk`].
    /// Cancel: it goes on to its end.
    pub async fn truncate(&self, to: Offset) -> Result<Offset, TrimError> {
        let log = self.clone();
        self.engine().detach(async move { log.cut_end(to).await }).await
    }

    async fn cut_end(&self, to: Offset) -> Result<Offset, TrimError> {
        let _pass = self.0.turnstile.enter().await;
        let (start, end) = {
            let state = self.state();
            state.check()?;
            (state.ends.start, state.ends.end)
        };
        if to < start {
            return Err(TrimError::OutOfRange { requested: to, start, end });
        }
        self.store_cut_if_owed().await?;
        if to >= end {
            return Ok(end);
        }
        self.flush().await?;
        self.wait_for_background().await;
        let (segment, mark) = self.cut_point(to).await?;
        {
            let mut state = self.state_mut();
            let removed = state.cut(&segment, mark);
            state.owed_cut = Some(OwedCut { segment, mark, removed });
        }
        let stored = self.store_cut_if_owed().await;
        self.tell_progress();
        stored.map(|()| mark.offset)
    }

    /// Stores a cut that is made in memory only, if there is one. The turnstile is held, and the future is run to
    /// its end: what it asks of the disk must not fall on later appends.
    ///
    /// Errors: no space: it is owed still, and nothing is appended before it is stored, because what was cut could
    /// come back behind it. Any other failure of the disk poisons the log.
    pub(super) async fn store_cut_if_owed(&self) -> Result<(), TrimError> {
        let Some(owed) = self.state().owed_cut.clone() else { return Ok(()) };
        match self.store_cut(&owed).await {
            Ok(()) => {
                self.state_mut().owed_cut = None;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Err(disk_error(error)),
            Err(error) => {
                let (path, operation) = (owed.segment.path.clone(), "cutting the tail");
                let failure = LogFailure::Poisoned { path, operation, reason: error.to_string() };
                self.fail(failure.clone());
                Err(failure.into())
            }
        }
    }

    /// The boundary before the batch that holds `to`.
    async fn cut_point(&self, to: Offset) -> Result<(Rc<Segment<D>>, Mark), TrimError> {
        let segment = self.state().segment_for(to);
        match locate(self.engine(), &segment, to).await? {
            Some((header, position)) => Ok((segment, Mark { position, offset: header.base_offset })),
            None => {
                let mark = Mark { position: segment.bytes.get(), offset: segment.end_offset.get() };
                Ok((segment, mark))
            }
        }
    }

    async fn store_cut(&self, owed: &OwedCut<D>) -> io::Result<()> {
        self.store_checkpoint_now().await?;
        // What the index files say of batches behind the cut must not be taken for what will stand there.
        owed.segment.remove_index_files(self.engine()).await?;
        self.engine().disk().sync_dir(&self.0.dir).await?;
        // The last first, each for good before the next: a crash in between leaves a longer log, not one with a hole.
        for later in owed.removed.iter().rev() {
            later.remove_files(self.engine()).await?;
            self.engine().disk().sync_dir(&self.0.dir).await?;
        }
        let file = owed.segment.file(self.engine()).await?;
        file.set_length(owed.mark.position).await?;
        file.sync().await?;
        self.engine().disk().sync_dir(&self.0.dir).await
    }
}

impl<D: Disk> State<D> {
    fn move_start(&mut self, start: Offset) {
        assert!(
            start >= self.ends.start && start <= self.ends.end,
            "the log start moves forward, within the log"
        );
        self.ends.start = start;
        self.epochs.truncate_from_start(start);
    }

    /// Makes `segment`, cut at `mark`, the active one; returns the segments behind it. All bytes are written and
    /// nothing is in flight.
    fn cut(&mut self, segment: &Rc<Segment<D>>, mark: Mark) -> Vec<Rc<Segment<D>>> {
        self.generation += 1;
        let active = self.active().segment.clone();
        let mut removed: Vec<_> = self.sealed.iter().filter(|s| s.base > segment.base).cloned().collect();
        if !Rc::ptr_eq(&active, segment) {
            removed.push(active);
        }
        for later in &removed {
            later.gone.set(true);
        }
        self.sealed.retain(|s| s.base < segment.base);
        self.finishing.retain(|s| s.base < segment.base);
        segment.life.set(segment.life.get() + 1);
        segment.drop_chunks();
        segment.index.take();
        segment.sealed.set(false);
        segment.bytes.set(mark.position);
        segment.written_bytes.set(mark.position);
        segment.end_offset.set(mark.offset);
        segment.max_timestamp.set(None);
        self.next_segment = NextSegment::Absent;
        self.sync_target = None;
        self.writers = [Writer::at_end(segment.clone(), super::prepare::align_up(mark.position))].into();
        // The log start may lie within the first batch: when that goes, the log is empty and begins before it.
        self.ends.start = self.ends.start.min(mark.offset);
        self.ends.end = mark.offset;
        self.ends.written = mark.offset;
        self.ends.durable = self.ends.durable.min(mark.offset);
        self.epochs.truncate_from_end(mark.offset);
        removed
    }
}

fn facts<D: Disk>(segment: &Rc<Segment<D>>) -> SealedSegment {
    SealedSegment {
        end: segment.end_offset.get(),
        bytes: segment.bytes.get(),
        max_timestamp: segment.max_timestamp.get(),
    }
}

fn disk_error(error: io::Error) -> TrimError {
    TrimError::Disk(error.to_string())
}
