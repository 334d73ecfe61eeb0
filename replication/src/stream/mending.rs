//! Damage on this shard's disks: looking for it, and mending it with another replica's bytes.
//!
//! Owns: what is known to be damaged and not mended yet, the scrubber's round over all logs, the pace of both.
//! Invariant: what another replica sends is checked against what is damaged (offsets, length, checksums, epochs) by
//! the log before a byte is written.
//! Not here: how a range is found and written (`corelog_engine::log`).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use corelog_engine::notify::Notify;
use corelog_engine::{Offset, TopicPartition};

use super::stats::StreamStats;

/// Damaged places that wait to be mended; others are found again by the next round.
const DAMAGED_MAX: usize = 1_024;

/// What is damaged, and what was done about it.
#[derive(Default)]
pub(crate) struct Mending {
    damaged: RefCell<VecDeque<(TopicPartition, Offset)>>,
    changed: Notify,
    scrubbed_bytes: Cell<u64>,
    damaged_ranges: Cell<u64>,
    repaired_ranges: Cell<u64>,
}

impl Mending {
    /// Damage was met.
    pub(crate) fn damaged(&self, id: TopicPartition, offset: Offset) {
        let mut damaged = self.damaged.borrow_mut();
        if damaged.len() < DAMAGED_MAX && !damaged.contains(&(id, offset)) {
            damaged.push_back((id, offset));
            drop(damaged);
            self.changed.notify_all();
        }
    }

    /// Lets the tasks look whether they are to end.
    pub(crate) fn wake(&self) {
        self.changed.notify_all();
    }

    /// Its part of the statistics.
    pub(crate) fn stats(&self) -> StreamStats {
        StreamStats {
            scrubbed_bytes: self.scrubbed_bytes.get(),
            damaged_ranges: self.damaged_ranges.get(),
            repaired_ranges: self.repaired_ranges.get(),
            ..StreamStats::default()
        }
    }
}
