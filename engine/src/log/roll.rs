//! Rolling: seals the active segment and starts the next one; stores what a start after a crash needs.
//!
//! Owns: the change of segments, the life of a sealed segment until it is trimmed, the recovery point.
//! Invariant: a checkpoint never points behind a segment that is not trimmed: recovery takes the length of an
//! earlier file as its bytes.
//! Crash story: the process dies between the sync of the last bytes of a segment and its trim. The checkpoint
//! still points into it; recovery scans from there, finds zeroes, and trims it.

use std::io;
use std::rc::Rc;

use super::prepare::NEXT_SEGMENT_NAME;
use super::recovery::CHECKPOINT_NAME;
use super::segment::{Chunk, segment_path};
use super::{AppendError, Log, LogFailure, Mark, NextSegment, Segment, Writer};
use crate::checkpoint::{self, LogCheckpoint};
use crate::disk::{Disk, DiskFile, OpenMode};
use crate::types::Offset;

/// Marks the log's checkpoint as being stored, until dropped.
pub(super) struct Storing<D: Disk>(Log<D>);

impl<D: Disk> Drop for Storing<D> {
    fn drop(&mut self) {
        self.0.state_mut().checkpointing = false;
        self.0.0.progress.notify_all();
    }
}

impl<D: Disk> Log<D> {
    /// Seals the active segment and starts the next one at the log end. The turnstile is held.
    pub(super) async fn roll(&self) -> Result<(), AppendError> {
        self.wait_for_next_segment().await;
        let base = self.ends().end;
        let path = segment_path(&self.0.dir, base);
        let taken = std::mem::replace(&mut self.state_mut().next_segment, NextSegment::Absent);
        let opened = match taken {
            NextSegment::Ready { file, prepared_end } => {
                let from = self.0.dir.join(NEXT_SEGMENT_NAME);
                self.engine().disk().rename(&from, &path).await.map(|()| (file, prepared_end))
            }
            _ => self.engine().disk().open(&path, OpenMode::CreateNew).await.map(|file| (file, 0)),
        };
        let (file, prepared_end) = opened.map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull => AppendError::StorageFull { path: path.clone() },
            _ => AppendError::CannotRoll { path: path.clone(), reason: error.to_string() },
        })?;
        let segment = Rc::new(Segment::new(&self.0.dir, base, base, 0));
        segment.set_file(Some(file));
        segment.start_index(self.engine());
        let sealed = self.state_mut().start_segment(segment, prepared_end);
        for start in sealed.clean_below(sealed.written_bytes.get()) {
            self.engine().cache(&sealed, start);
        }
        // All of it may be durable already: then no sync comes that would finish it.
        self.finish_durable();
        self.wake_commits();
        Ok(())
    }

    async fn wait_for_next_segment(&self) {
        loop {
            let progress = match self.state().next_segment {
                NextSegment::BeingPrepared => self.0.progress.notified(),
                _ => return,
            };
            progress.await;
        }
    }

    /// Finishes the sealed segments that are wholly durable and that nobody is still writing ahead in.
    pub(super) fn finish_durable(&self) {
        loop {
            let segment = {
                let mut state = self.state_mut();
                let first = &state.writers[0];
                if state.writers.len() == 1 || !first.is_wholly_durable() || first.preparing {
                    return;
                }
                state.writers.pop_front().expect("there is more than one").segment
            };
            self.finish_sealed(segment);
        }
    }

    /// Trims a sealed, durable segment to its bytes and stores its indexes, in the background.
    fn finish_sealed(&self, segment: Rc<Segment<D>>) {
        self.state_mut().trimming += 1;
        let log = self.clone();
        self.engine().queue_background(async move {
            let trimmed = log.trim_sealed(&segment).await;
            log.state_mut().trimming -= 1;
            match trimmed {
                Ok(()) => {
                    log.state_mut().finishing.retain(|s| !Rc::ptr_eq(s, &segment));
                    log.engine().opened_sealed(&segment);
                    log.store_checkpoint_soon();
                }
                // The checkpoint stays before it, so that the next start trims it.
                Err(error) => {
                    tracing::warn!(segment = %segment.path.display(), %error, "cannot trim a sealed segment");
                }
            }
            log.0.progress.notify_all();
        });
    }

    async fn trim_sealed(&self, segment: &Rc<Segment<D>>) -> io::Result<()> {
        if segment.gone.get() {
            return Ok(());
        }
        let file = segment.file(self.engine()).await?;
        file.set_length(segment.bytes.get()).await?;
        file.sync().await?;
        // Not a reason to keep the segment in the way of the recovery point and of retention: on a full disk that
        // would be for ever. What its index files lack is read from the segment.
        if let Err(error) = segment.store_index(self.engine(), segment.end_offset.get()).await {
            tracing::warn!(segment = %segment.path.display(), %error, "cannot store the index of a sealed segment");
        }
        Ok(())
    }

    pub(super) fn checkpoint_if_due(&self) {
        if self.state().appended_since_checkpoint >= self.engine().options().checkpoint_bytes {
            self.store_checkpoint_soon();
        }
    }

    fn store_checkpoint_soon(&self) {
        {
            let mut state = self.state_mut();
            if state.checkpoint_queued || state.failure.is_some() {
                return;
            }
            state.checkpoint_queued = true;
        }
        let log = self.clone();
        self.engine().queue_background(async move {
            let stored = log.store_checkpoint_now().await;
            log.state_mut().checkpoint_queued = false;
            log.0.progress.notify_all();
            if let Err(error) = stored {
                tracing::warn!(dir = %log.0.dir.display(), %error, "cannot store the recovery point");
            }
        });
    }

    /// Stores the recovery point, the log start and the leader epochs. Durable when it returns.
    pub(super) async fn store_checkpoint(&self, clean: bool) -> io::Result<()> {
        let (checkpoint, segment) = {
            let mut state = self.state_mut();
            state.appended_since_checkpoint = 0;
            let (segment, mark) = state.recovery_point();
            let checkpoint = LogCheckpoint {
                log_id: self.0.id,
                log_start_offset: state.ends.start,
                recovery_point: mark.offset,
                segment_base_offset: segment.base,
                segment_position: mark.position,
                clean,
                boot_id: self.engine().options().boot_id,
                epochs: state.epochs.clone(),
            };
            (checkpoint, segment)
        };
        segment.store_index(self.engine(), checkpoint.recovery_point).await?;
        let disk = self.engine().disk();
        checkpoint::store(disk, &self.0.dir.join(CHECKPOINT_NAME), &checkpoint).await
    }

    /// Stores the recovery point after whoever else is at it. Not after a clean close, which it would undo.
    pub(super) async fn store_checkpoint_now(&self) -> io::Result<()> {
        let _storing = self.storing_turn().await;
        if self.state().failure == Some(LogFailure::Closed) {
            return Err(io::Error::other("the log is closed"));
        }
        self.store_checkpoint(false).await
    }

    /// The turn to store the checkpoint. Who has it waits for nobody but the disk.
    pub(super) async fn storing_turn(&self) -> Storing<D> {
        loop {
            if !std::mem::replace(&mut self.state_mut().checkpointing, true) {
                return Storing(self.clone());
            }
            let progress = self.0.progress.notified();
            progress.await;
        }
    }

    /// Trims the active segment and stores a checkpoint from which the next start opens without a scan. All is
    /// durable already.
    pub(super) async fn store_clean_checkpoint(&self) -> Result<(), LogFailure> {
        let _storing = self.storing_turn().await;
        let segment = self.state().active().segment.clone();
        let trimmed = async {
            if let Some(file) = segment.open_file() {
                file.set_length(segment.bytes.get()).await?;
                file.sync().await?;
            }
            match self.engine().disk().remove_file(&self.0.dir.join(NEXT_SEGMENT_NAME)).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            self.store_checkpoint(true).await
        };
        trimmed.await.map_err(|error| LogFailure::Poisoned {
            path: segment.path.clone(),
            operation: "clean close",
            reason: error.to_string(),
        })
    }
}

impl<D: Disk> super::State<D> {
    fn start_segment(&mut self, segment: Rc<Segment<D>>, prepared_end: u64) -> Rc<Segment<D>> {
        let mut writer = Writer::at_end(segment, prepared_end);
        writer.dir_sync_needed = true;
        let old = self.active_mut();
        writer.chunk_bytes_next = old.chunk_bytes_next;
        writer.spare = std::mem::take(&mut old.spare);
        let sealed = old.segment.clone();
        if let Some(open) = sealed.open_chunk.take() {
            let bytes = open.buffer.slice(0..open.buffer.filled());
            sealed.insert_chunk(open.start, Chunk { bytes, dirty: true, from_disk: false });
        }
        self.sealed.push_back(sealed.clone());
        sealed.sealed.set(true);
        self.finishing.push_back(sealed.clone());
        self.writers.push_back(writer);
        sealed
    }

    /// The last batch boundary below which all is durable and all earlier segments are trimmed.
    fn recovery_point(&self) -> (Rc<Segment<D>>, Mark) {
        let first = &self.writers[0];
        match self.finishing.front() {
            Some(segment) if segment.base < first.segment.base => {
                let mark = Mark { position: segment.bytes.get(), offset: segment.end_offset.get() };
                (segment.clone(), mark)
            }
            _ => (first.segment.clone(), first.durable_mark),
        }
    }

    /// Offset below which whole sealed segments may be deleted: those being written, trimmed or mended stay.
    pub(super) fn deletable_end(&self) -> Offset {
        let writing = self.writers[0].segment.base;
        let end = self.finishing.front().map_or(writing, |s| s.base.min(writing));
        self.repairing.map_or(end, |base| base.min(end))
    }
}
