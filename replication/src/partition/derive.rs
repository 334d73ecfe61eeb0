//! State beside the records, made from its snapshot and from the log when it is first needed.
//!
//! Owns: reading what of the log a state does not reflect yet, and when it is stored. See `derived` for the rules.
//! Crash story: a replica starts, leads, and the first idempotent batch is one that it took before it died. It is
//! held until the log was read, and found there.

use std::cell::Cell;
use std::io;
use std::path::PathBuf;

use corelog_engine::batch::BatchWalk;
use corelog_engine::checkpoint::{load, store};
use corelog_engine::disk::{Disk, IoClass};
use corelog_engine::log::{LogFailure, ReadError, ReadLimits};
use corelog_engine::{LogEnds, Offset};

use super::Partition;
use crate::derived::{ProducerSnapshot, SNAPSHOT_NAME};

/// Bytes of the log that are looked at at a time.
const LOAD_BYTES: usize = 1 << 20;

/// A snapshot is stored again after so many bytes: reading them takes a tenth of a second on a good disk, and the
/// two syncs of a snapshot are nothing beside writing them.
const SNAPSHOT_BYTES: u64 = 256 << 20;

/// As above, for a log that is closed and has no idempotent producers: a clean stop is not to write a file for each of
/// a thousand small logs.
const CLOSING_SNAPSHOT_BYTES: u64 = 16 << 20;

/// What is known of the snapshot file.
#[derive(Default)]
pub(super) struct SnapshotState {
    /// Bytes that had been appended when it was stored, or when it was last looked at.
    at_bytes: Cell<u64>,
    /// End of the log that it reflects.
    end: Cell<Option<Offset>>,
    is_storing: Cell<bool>,
}

impl<D: Disk> Partition<D> {
    /// Makes the table of producers from its snapshot and the log, if it does not reflect the log already. Whoever has
    /// time may call it before the first idempotent batch comes.
    ///
    /// Errors: the log could not be read; what was read stays known.
    /// Cost: reads what of the log is not known: once after a start, or after a cut that could not be undone.
    /// Cancel: what was read stays known.
    pub async fn load_producers(&self) -> Result<(), ReadError> {
        if self.0.producers.borrow().end().is_none() {
            self.load_snapshot().await;
        }
        loop {
            let ends = self.0.log.ends();
            let from = self.begin_producers(ends);
            if from >= ends.end {
                return Ok(());
            }
            let limits = ReadLimits { bytes_max: LOAD_BYTES, class: IoClass::CatchUp };
            let read = match self.0.log.read(from, ends.end, limits).await {
                // The log start moved on, or the log was cut: look again.
                Err(ReadError::OffsetOutOfRange { .. }) => continue,
                read => read?,
            };
            let mut producers = self.0.producers.borrow_mut();
            for batch in BatchWalk::new(&read.slices) {
                producers.observe(&batch.expect("a log serves whole batches").header);
            }
        }
    }

    /// Where the log has to be read from.
    fn begin_producers(&self, ends: LogEnds) -> Offset {
        let mut producers = self.0.producers.borrow_mut();
        // Nothing is known, or there is a gap before the log start.
        if producers.end().is_none_or(|end| end < ends.start) {
            producers.begin(ends.start);
        }
        producers.end().expect("it has begun")
    }

    /// Takes the snapshot over, if there is one that fits. One that cannot be read is as good as none.
    async fn load_snapshot(&self) {
        let disk = self.0.log.engine().disk();
        let Ok(Some(snapshot)) = load::<ProducerSnapshot, D>(disk, &self.snapshot_path()).await else {
            return;
        };
        let ends = self.0.log.ends();
        let mut producers = self.0.producers.borrow_mut();
        if producers.end().is_none() && snapshot.fits(ends.start, ends.durable, &self.0.log.epochs()) {
            producers.restore(snapshot.table, snapshot.end);
        }
    }

    /// Stores the table of producers if much was appended since it was last stored; `is_closing`: if it is worth it.
    /// The shard calls it on a slow timer, and before it closes the log.
    ///
    /// Errors: the log could not be read, or the snapshot not be stored: the next start reads more of the log.
    /// Cancel: the old snapshot stays, or the new one is there.
    pub async fn store_producers(&self, is_closing: bool) -> io::Result<()> {
        let state = &self.0.snapshot;
        let bytes = self.0.progress.appended_bytes();
        let unstored = bytes.saturating_sub(state.at_bytes.get());
        let is_due = unstored >= if is_closing { CLOSING_SNAPSHOT_BYTES } else { SNAPSHOT_BYTES };
        let end = self.0.log.ends().end;
        let has_producers = self.0.producers.borrow().loaded(end).is_some_and(|table| !table.is_empty());
        if state.is_storing.get() || !(is_due || is_closing && has_producers) {
            return Ok(());
        }
        if !is_closing {
            self.load_producers().await.map_err(io::Error::other)?;
        }
        let Some(snapshot) = self.snapshot_now() else { return Ok(()) };
        let storing = Storing::begin(&state.is_storing);
        let end = snapshot.end;
        store(self.0.log.engine().disk(), &self.snapshot_path(), &snapshot).await?;
        drop(storing);
        state.at_bytes.set(bytes);
        state.end.set(Some(end));
        Ok(())
    }

    /// Stores what is derived from the log, then closes that ([`corelog_engine::Log::close`]).
    pub async fn close(&self) -> Result<(), LogFailure> {
        if let Err(error) = self.store_producers(true).await {
            tracing::warn!(dir = %self.0.log.dir().display(), %error, "cannot store the producers of a log");
        }
        self.0.log.close().await
    }

    /// The table, if it reflects the whole log and is not stored yet.
    fn snapshot_now(&self) -> Option<ProducerSnapshot> {
        let end = self.0.log.ends().end;
        if self.0.snapshot.end.get() == Some(end) {
            return None;
        }
        let epoch = self.0.log.epochs().epoch_at(Offset(end.0.checked_sub(1)?))?;
        let table = self.0.producers.borrow().loaded(end)?.clone();
        Some(ProducerSnapshot { end, epoch, table })
    }

    fn snapshot_path(&self) -> PathBuf {
        self.0.log.dir().join(SNAPSHOT_NAME)
    }

    /// Whether the table of producers reflects the whole log.
    pub(super) fn knows_producers(&self) -> bool {
        self.0.producers.borrow().loaded(self.0.log.ends().end).is_some()
    }
}

/// One snapshot at a time, also if its future is dropped.
struct Storing<'a>(&'a Cell<bool>);

impl<'a> Storing<'a> {
    fn begin(is_storing: &'a Cell<bool>) -> Self {
        is_storing.set(true);
        Self(is_storing)
    }
}

impl Drop for Storing<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}
