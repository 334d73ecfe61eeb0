//! State beside the records, made from the log when it is first needed.
//!
//! Owns: reading what of the log a state does not reflect yet. See `derived` for the rules.
//! Crash story: a replica starts, leads, and the first idempotent batch is one that it took before it died. It is
//! held until the log was read, and found there.

use corelog_engine::batch::BatchWalk;
use corelog_engine::disk::{Disk, IoClass};
use corelog_engine::log::{ReadError, ReadLimits};

use super::Partition;

/// Bytes of the log that are looked at at a time.
const LOAD_BYTES: usize = 1 << 20;

impl<D: Disk> Partition<D> {
    /// Makes the table of producers from the log, if it does not reflect it already. Whoever has time may call it
    /// before the first idempotent batch comes.
    ///
    /// Errors: the log could not be read; what was read stays known.
    /// Cost: reads all of the log that is not known: once after a start, or after a cut that could not be undone.
    /// Cancel: what was read stays known.
    pub async fn load_producers(&self) -> Result<(), ReadError> {
        loop {
            let ends = self.0.log.ends();
            let from = {
                let mut producers = self.0.producers.borrow_mut();
                // What lies below the log start is gone, and so is what it said.
                if producers.end().is_none_or(|end| end < ends.start) {
                    producers.begin(ends.start);
                }
                producers.end().expect("it has begun")
            };
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

    /// Whether the table of producers reflects the whole log.
    pub(super) fn knows_producers(&self) -> bool {
        self.0.producers.borrow().loaded(self.0.log.ends().end).is_some()
    }
}
