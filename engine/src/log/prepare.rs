//! Writing ahead: blocks are allocated and written (zeroes) before appended bytes land in them.
//!
//! Owns: how far ahead, and who does it. Measured on ext4 (DESIGN D4): writes into blocks that are only
//! allocated pay a metadata change each, several times the cost of the write.
//! Invariant: a write of the commit path never passes `prepared_end`; so a full disk is met here, before offsets
//! are assigned.
//! Policy: nothing ahead while idle, else a few seconds of the recent rate ([`adapt`]), within
//! `write_ahead_bytes_max` for a log and `write_ahead_total_bytes_max` for all; the background keeps half of it free.

use std::io;
use std::path::Path;
use std::rc::Rc;

use super::{AppendError, Log, LogFailure, NextSegment, Segment};
use crate::disk::{BLOCK_BYTES, Disk, DiskFile, IoClass, OpenMode};

/// Written ahead of the first append of a log that wakes up: one device write.
pub(crate) const AHEAD_BYTES_MIN: u64 = 64 << 10;

/// One step of the background, after which producers that wait may go on.
const STEP_BYTES: u64 = 4 << 20;

/// From this distance on a log is busy enough to have its next segment made in advance.
const NEXT_SEGMENT_AHEAD_BYTES: u64 = 1 << 20;

/// Name of the next segment's file until the roll gives it its base offset. Recovery removes it.
pub(super) const NEXT_SEGMENT_NAME: &str = "next.segment";

/// Decides how far a log is written ahead, when half of the distance was used up in `used_ms`.
///
/// So the distance is what the log appends in 2 to 16 seconds. A distance that stays small would make each stretch
/// of a few appends pay for a write of zeroes and a sync of the new length.
pub(super) fn adapt(ahead_bytes: u64, used_ms: u64, bytes_max: u64) -> u64 {
    match used_ms {
        0..1_000 => (ahead_bytes * 2).min(bytes_max.max(AHEAD_BYTES_MIN)),
        1_000..8_000 => ahead_bytes,
        _ => (ahead_bytes / 2).max(AHEAD_BYTES_MIN),
    }
}

/// Marks the active segment as being written ahead, until dropped.
struct Preparing<D: Disk> {
    log: Log<D>,
    segment: Rc<Segment<D>>,
}

impl<D: Disk> Drop for Preparing<D> {
    fn drop(&mut self) {
        if let Some(writer) =
            self.log.state_mut().writers.iter_mut().find(|w| Rc::ptr_eq(&w.segment, &self.segment))
        {
            writer.preparing = false;
        }
        self.log.0.progress.notify_all();
        // The segment may have been sealed meanwhile: it is trimmed only now, or a late zero would grow it again.
        self.log.finish_durable();
    }
}

impl<D: Disk> Log<D> {
    /// Whether the active segment is prepared for `bytes` more.
    pub(super) fn is_prepared(&self, bytes: u64) -> Result<bool, AppendError> {
        let state = self.state();
        state.check()?;
        let writer = state.active();
        Ok(align_up(writer.plan.appended() + bytes) <= writer.prepared_end)
    }

    /// Waits until the active segment is prepared for `bytes` more; prepares them itself if nobody is at it.
    pub(super) async fn ensure_prepared(&self, bytes: u64) -> Result<(), AppendError> {
        loop {
            let (segment, progress) = {
                let mut state = self.state_mut();
                state.check()?;
                let writer = state.active_mut();
                let needed = align_up(writer.plan.appended() + bytes);
                if needed <= writer.prepared_end {
                    return Ok(());
                }
                (writer.segment.clone(), writer.preparing.then(|| self.0.progress.notified()))
            };
            match progress {
                Some(progress) => progress.await,
                None => self.prepare_now(segment, bytes).await?,
            }
        }
    }

    async fn prepare_now(&self, segment: Rc<Segment<D>>, bytes: u64) -> Result<(), AppendError> {
        let file = segment.file(self.engine()).await.map_err(|e| self.prepare_error(&segment, &e))?;
        let (start, end) = {
            let mut state = self.state_mut();
            let segment_bytes_max = align_up(state.options.segment_bytes_max);
            let ahead = state.ahead_bytes.min(STEP_BYTES);
            let writer = state.active_mut();
            writer.preparing = true;
            let needed = align_up(writer.plan.appended() + bytes);
            // The producer waits for what it needs and one step; the background does the rest.
            (writer.prepared_end, (needed + ahead).min(segment_bytes_max).max(needed))
        };
        self.adapt_ahead();
        let _preparing = Preparing { log: self.clone(), segment: segment.clone() };
        self.zero(&segment, &file, start, end, IoClass::Commit)
            .await
            .map_err(|e| self.prepare_error(&segment, &e))
    }

    /// Adapts the distance to the rate of the log, within the budget of the engine.
    fn adapt_ahead(&self) {
        let mut state = self.state_mut();
        let used_ms = state.last_admit.ms_since(state.ahead_since);
        state.ahead_since = state.last_admit;
        let bytes = adapt(state.ahead_bytes, used_ms, self.engine().options().write_ahead_bytes_max);
        state.ahead_bytes = self.engine().share_ahead(state.ahead_bytes, bytes);
    }

    async fn zero(
        &self,
        segment: &Rc<Segment<D>>,
        file: &D::File,
        start: u64,
        end: u64,
        class: IoClass,
    ) -> io::Result<()> {
        file.zero(start, end, class).await?;
        self.engine().count(|s| s.device_zeroed_bytes += end - start);
        if let Some(writer) = self.state_mut().writers.iter_mut().find(|w| Rc::ptr_eq(&w.segment, segment)) {
            writer.prepared_end = end;
        }
        Ok(())
    }

    fn prepare_error(&self, segment: &Segment<D>, error: &io::Error) -> AppendError {
        if error.kind() == io::ErrorKind::StorageFull {
            return AppendError::StorageFull { path: segment.path.clone() };
        }
        let failure = LogFailure::Poisoned {
            path: segment.path.clone(),
            operation: "write ahead",
            reason: error.to_string(),
        };
        self.fail(failure.clone());
        failure.into()
    }

    /// After an append: lets the background write ahead, and make the next segment, if the log is busy.
    pub(super) fn prepare_ahead(&self) {
        let (ahead, next) = {
            let state = self.state();
            let writer = state.active();
            let limit = align_up(state.options.segment_bytes_max);
            let busy = state.ahead_bytes > AHEAD_BYTES_MIN;
            let left = writer.prepared_end - writer.plan.appended();
            let at_limit = writer.prepared_end >= limit;
            (
                busy && !writer.preparing && !at_limit && left < state.ahead_bytes / 2,
                at_limit
                    && state.ahead_bytes >= NEXT_SEGMENT_AHEAD_BYTES
                    && matches!(state.next_segment, NextSegment::Absent),
            )
        };
        if ahead {
            self.adapt_ahead();
            let segment = {
                let mut state = self.state_mut();
                let writer = state.active_mut();
                writer.preparing = true;
                writer.segment.clone()
            };
            let preparing = Preparing { log: self.clone(), segment };
            self.engine().queue_background(self.clone().prepare_in_background(preparing));
        }
        if next {
            self.state_mut().next_segment = NextSegment::BeingPrepared;
            self.engine().queue_background(self.clone().prepare_next_segment());
        }
    }

    async fn prepare_in_background(self, preparing: Preparing<D>) {
        let segment = preparing.segment.clone();
        // Its own open file: the kernel reports a failed sync once to each, and the commit path must not miss one
        // because this task was told first.
        let file = match self.engine().disk().open(&segment.path, OpenMode::Existing).await {
            Ok(file) => file,
            Err(error) => {
                if !segment.gone.get() {
                    tracing::debug!(segment = %segment.path.display(), %error, "cannot write ahead now");
                }
                return;
            }
        };
        while let Some((start, end)) = self.next_step(&segment) {
            let mut result = self.zero(&segment, &file, start, end, IoClass::Background).await;
            if result.is_ok() {
                // The new length is made durable here, so that no commit has to.
                result = file.sync().await;
            }
            self.0.progress.notify_all();
            if let Err(error) = result {
                // A full disk is met again, and answered, by the producer that needs the space.
                if error.kind() != io::ErrorKind::StorageFull {
                    self.prepare_error(&segment, &error);
                }
                return;
            }
        }
    }

    fn next_step(&self, segment: &Rc<Segment<D>>) -> Option<(u64, u64)> {
        let state = self.state();
        let writer = state.active();
        if state.failure.is_some() || !Rc::ptr_eq(&writer.segment, segment) {
            return None;
        }
        let limit = align_up(state.options.segment_bytes_max);
        let end = align_up(writer.plan.appended() + state.ahead_bytes).min(limit);
        (writer.prepared_end < end).then(|| (writer.prepared_end, end.min(writer.prepared_end + STEP_BYTES)))
    }

    async fn prepare_next_segment(self) {
        let prepared = self.create_next_segment().await;
        self.state_mut().next_segment = match prepared {
            Ok((file, prepared_end)) => NextSegment::Ready { file, prepared_end },
            Err(error) => {
                tracing::warn!(dir = %self.0.dir.display(), %error, "cannot make the next segment in advance");
                NextSegment::Absent
            }
        };
        self.0.progress.notify_all();
    }

    async fn create_next_segment(&self) -> io::Result<(D::File, u64)> {
        let path = self.0.dir.join(NEXT_SEGMENT_NAME);
        let disk = self.engine().disk();
        match disk.remove_file(&path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (file, mut start) = match self.recycle_expired(&path).await? {
            Some(recycled) => recycled,
            None => (disk.open(&path, OpenMode::CreateNew).await?, 0),
        };
        let end = self.state().ahead_bytes.min(align_up(self.options().segment_bytes_max)).max(start);
        while start < end {
            let step = end.min(start + STEP_BYTES);
            file.zero(start, step, IoClass::Background).await?;
            self.engine().count(|s| s.device_zeroed_bytes += step - start);
            start = step;
        }
        file.sync().await?;
        Ok((file, end))
    }

    /// Makes the file of an expired segment the next one, so that its blocks need not be written ahead again.
    /// Returns it with the end of the blocks that are written.
    ///
    /// What it holds are batches of this partition with offsets below the new segment's base and an epoch not
    /// above the present one: `recovery` does not take them for the next batch. Never the file of another log.
    async fn recycle_expired(&self, path: &Path) -> io::Result<Option<(D::File, u64)>> {
        let now = self.state().last_admit;
        let Some(segment) = self.take_expired(now, 1).await.pop() else { return Ok(None) };
        let stored = self.store_checkpoint_now().await;
        let bytes = segment.bytes.get();
        if stored.is_err() || bytes < self.options().segment_bytes_max / 2 {
            self.remove_expired(vec![segment], stored.is_err()).await?;
            return Ok(None);
        }
        let file = segment.file(self.engine()).await?;
        // Readers under way see the mark before the first byte changes.
        segment.gone.set(true);
        self.engine().disk().rename(&segment.path, path).await?;
        segment.remove_files(self.engine()).await?;
        self.engine().count(|s| s.recycled_segments += 1);
        Ok(Some((file, bytes / BLOCK_BYTES as u64 * BLOCK_BYTES as u64)))
    }
}

/// The next block boundary at or after `position`.
pub(super) fn align_up(position: u64) -> u64 {
    position.next_multiple_of(BLOCK_BYTES as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_follows_the_rate_within_its_limits() {
        let check = |ahead, used_ms, expected| assert_eq!(adapt(ahead, used_ms, 1 << 20), expected);
        check(AHEAD_BYTES_MIN, 0, AHEAD_BYTES_MIN * 2);
        check(1 << 20, 10, 1 << 20);
        check(1 << 19, 1_000, 1 << 19);
        check(1 << 19, 8_000, 1 << 18);
        check(AHEAD_BYTES_MIN, 1 << 40, AHEAD_BYTES_MIN);
        assert_eq!(adapt(AHEAD_BYTES_MIN, 0, 0), AHEAD_BYTES_MIN, "a limit below the minimum");
    }
}
