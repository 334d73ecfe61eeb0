//! The history checker: what clients saw, held against what was promised.
//!
//! Owns: the shape of a history (`history.rs`), the content of test records (`record.rs`), and the verdict. Pure: no
//! simulation, no clock, no I/O, so that the simulation and the tests on real processes are judged by one rule.
//! The rules are those of "What must hold": one value for each (partition, offset); acked records are at their
//! offsets; no failed produce is read, none twice or half; no reorder; consumers never go back and never skip; high
//! watermarks and "latest" never regress; one leader per epoch; replicas agree.
//!
//! Use: clients write [`RecordTag`]s and note each operation in a [`History`]; at the end all faults are healed,
//! every partition is read whole, each replica's log too, and [`check`] says what does not fit.

mod final_state;
mod history;
mod order;
mod places;
mod reads;
mod record;
#[cfg(test)]
mod tests;
mod violation;

pub use history::{
    Event, FinalPartition, FinalReplica, History, Latest, LeaderSeen, Move, MoveReason, PartitionKey,
    Produce, ProduceOutcome, Promise, Read, Stored, UncleanElection,
};
pub use record::{RecordError, RecordTag, VALUE_BYTES_MIN};
pub use violation::Violation;

use places::Places;

/// All that does not fit, in the order of the rules; empty: everything held.
///
/// Cost: about n log n in the number of operations.
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    let places = Places::collect(history, &mut found);
    final_state::check(history, &places, &mut found);
    order::check(history, &places, &mut found);
    reads::check(history, &mut found);
    found
}
