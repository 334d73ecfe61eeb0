//! Beginning anew at another offset: a follower whose leader no longer has what it would need next.
//!
//! Owns: the order in which the old log goes and the empty one comes.
//! Invariant: the log on disk is the old one or the empty one, never a part of either: a marker file says which.
//! It is there before the first old file goes, and it is gone, for good, before the first append.
//! Crash story: the process dies before the marker is durable: the old log is whole. It dies after: `recovery`
//! finds the marker, removes whatever segments it sees, and makes the empty log again from the start.

use std::io;
use std::path::Path;
use std::rc::Rc;

use super::prepare::NEXT_SEGMENT_NAME;
use super::recovery::CHECKPOINT_NAME;
use super::segment::{Segment, is_segment_file};
use super::{Log, LogEnds, LogFailure, NextSegment, State, TrimError, Writer};
use crate::checkpoint::{self, EpochTable, LogCheckpoint, ResetMarker};
use crate::disk::{Disk, OpenMode};
use crate::engine::Engine;
use crate::notify::Pass;
use crate::types::{LogId, Offset};

/// Name of the marker.
pub(super) const RESET_NAME: &str = "log.reset";

impl<D: Disk> Log<D> {
    /// Drops all batches; the log is empty then and goes on at `offset`, which may lie anywhere. It has no terms,
    /// and a term of its own has ended. Durable when it returns.
    ///
    /// Who waits for an end up to `offset` is told that it is reached: the caller has turned them away before.
    /// Errors: nothing was changed; or the log failed halfway and is empty once it is opened again.
    /// Cancel: it goes on to its end.
    pub async fn reset_to(&self, offset: Offset) -> Result<(), TrimError> {
        let pass = self.0.turnstile.enter().await;
        self.reset_holding(offset, pass).await.map(drop)
    }

    /// The turn goes with the work, so that nobody appends before it is done.
    pub(super) async fn reset_holding(&self, offset: Offset, pass: Pass) -> Result<Pass, TrimError> {
        let log = self.clone();
        self.engine().detach(async move { log.reset_now(offset).await.map(|()| pass) }).await
    }

    async fn reset_now(&self, offset: Offset) -> Result<(), TrimError> {
        self.state().check()?;
        self.flush().await?;
        self.wait_for_background().await;
        let storing = self.storing_turn().await;
        let disk = self.engine().disk();
        let marker = ResetMarker { log_id: self.0.id, offset };
        let stored = checkpoint::store(disk, &self.0.dir.join(RESET_NAME), &marker).await;
        stored.map_err(|error| TrimError::Disk(error.to_string()))?;
        let segment = Rc::new(Segment::new(&self.0.dir, offset, offset, 0));
        segment.start_index(self.engine());
        for old in self.state_mut().reset(segment.clone()) {
            old.drop_chunks();
            old.set_file(None);
        }
        let made = make_empty(self.engine(), &self.0.dir, self.0.id, offset).await;
        drop(storing);
        match made {
            Ok(file) => segment.set_file(Some(file)),
            Err(error) => {
                let (path, operation) = (segment.path.clone(), "beginning anew");
                self.fail(LogFailure::Poisoned { path, operation, reason: error.to_string() });
            }
        }
        self.tell_progress();
        Ok(self.state().check()?)
    }
}

impl<D: Disk> State<D> {
    /// Makes the empty `segment` the only one; returns the others. All is written and nothing is in flight.
    fn reset(&mut self, segment: Rc<Segment<D>>) -> Vec<Rc<Segment<D>>> {
        self.generation += 1;
        let offset = segment.base;
        let active = self.active().segment.clone();
        let removed: Vec<_> = self.sealed.drain(..).chain([active]).collect();
        for old in &removed {
            old.gone.set(true);
        }
        self.finishing.clear();
        self.next_segment = NextSegment::Absent;
        self.owed_cut = None;
        self.sync_target = None;
        self.sync_wanted = false;
        self.unsynced_since = None;
        self.appended_since_checkpoint = 0;
        self.writers = [Writer::at_end(segment, 0)].into();
        self.ends = LogEnds { start: offset, durable: offset, written: offset, end: offset };
        self.epoch = None;
        self.epochs = EpochTable::default();
        removed
    }
}

/// What the marker promises: removes all segments in `dir`, makes an empty one at `offset`, stores a checkpoint
/// that says so, and removes the marker. Durable when it returns; may be done again after a crash at any point.
pub(super) async fn make_empty<D: Disk>(
    engine: &Engine<D>,
    dir: &Path,
    id: LogId,
    offset: Offset,
) -> io::Result<D::File> {
    let disk = engine.disk();
    for entry in disk.list(dir).await? {
        if is_segment_file(&entry.name) || entry.name == NEXT_SEGMENT_NAME {
            disk.remove_file(&dir.join(entry.name)).await?;
        }
    }
    disk.sync_dir(dir).await?;
    let segment = Segment::<D>::new(dir, offset, offset, 0);
    let file = disk.open(&segment.path, OpenMode::CreateNew).await?;
    disk.sync_dir(dir).await?;
    let empty = LogCheckpoint {
        log_id: id,
        log_start_offset: offset,
        recovery_point: offset,
        segment_base_offset: offset,
        segment_position: 0,
        clean: false,
        boot_id: engine.options().boot_id,
        epochs: EpochTable::default(),
    };
    checkpoint::store(disk, &dir.join(CHECKPOINT_NAME), &empty).await?;
    disk.remove_file(&dir.join(RESET_NAME)).await?;
    disk.sync_dir(dir).await?;
    Ok(file)
}
