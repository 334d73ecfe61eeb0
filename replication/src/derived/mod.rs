//! What a partition carries beside its records, and can always be made again from them.
//!
//! Owns: the seam ([`DerivedState`]) and how far a state has come with its log ([`Derived`]). Every replica keeps it,
//! so that a follower that becomes leader has it at once; a replica that has just started reads its log once.
//! Invariant: a state that says it is loaded reflects exactly the batches in `[start, end)` of the log, in order.
//! Invariant: what reflects a batch that is gone is thrown away: a cut that the state cannot undo, a snapshot beyond
//! the durable end or beyond a cut. The log is the truth.
//! Not here: what is derived (`producers.rs`), its file (`snapshot.rs`), reading the log (`partition/derive.rs`).
//! Crash story: a leader accepts a batch, dies before it answers, and another replica leads. The producer sends the
//! batch again; the new leader copied it, has observed it, and answers with its offset instead of appending twice.

mod producers;
mod snapshot;

use corelog_engine::Offset;
use corelog_engine::batch::BatchHeader;

pub use producers::{PRODUCERS_MAX, ProducerTable, SequenceError, SequenceVerdict, next_sequence};
pub use snapshot::{ProducerSnapshot, SNAPSHOT_NAME};

/// A state that follows from the batches of a log alone.
pub trait DerivedState {
    /// Takes in the next batch of the log.
    fn observe(&mut self, header: &BatchHeader);

    /// Forgets the batches at or behind `end`. Returns whether it could: if not, it has to be made again.
    #[must_use]
    fn truncate_to(&mut self, end: Offset) -> bool;

    /// Forgets everything.
    fn reset(&mut self);
}

/// A state, and how much of its log it reflects.
#[derive(Debug, Default)]
pub struct Derived<S> {
    state: S,
    /// Exclusive end of what it reflects; `None`: nothing, it has to be made.
    end: Option<Offset>,
}

impl<S: DerivedState> Derived<S> {
    /// The state, if it reflects the log up to `log_end`.
    pub fn loaded(&self, log_end: Offset) -> Option<&S> {
        (self.end == Some(log_end)).then_some(&self.state)
    }

    /// Takes in a batch, if it is the next one; a batch that is known already, or has a gap before it, is left out.
    pub fn observe(&mut self, header: &BatchHeader) {
        // The log start may lie within the first batch.
        let is_next = self.end.is_some_and(|end| header.base_offset <= end && end < header.next_offset());
        if is_next {
            self.state.observe(header);
            self.end = Some(header.next_offset());
        }
    }

    /// The log was cut at `end`.
    pub fn truncate_to(&mut self, end: Offset) {
        if self.end.is_some_and(|reflected| reflected > end) {
            if self.state.truncate_to(end) {
                self.end = Some(end);
            } else {
                self.forget();
            }
        }
    }

    /// Begins with a log, or a part of one, that begins at `start` and of which nothing is reflected yet.
    pub fn begin(&mut self, start: Offset) {
        self.state.reset();
        self.end = Some(start);
    }

    /// Goes on from a state that reflects the log up to `end`.
    pub fn restore(&mut self, state: S, end: Offset) {
        self.state = state;
        self.end = Some(end);
    }

    /// Exclusive end of what it reflects.
    pub fn end(&self) -> Option<Offset> {
        self.end
    }

    fn forget(&mut self) {
        self.state.reset();
        self.end = None;
    }
}
