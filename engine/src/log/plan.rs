//! Plans the device writes of one segment: a pure cursor over byte positions.
//!
//! Owns: which bytes are appended, handed to the device, and written as one contiguous prefix.
//! Invariant: written <= dispatched <= appended; `written` never goes back.
//! Invariant: no block has two writes in flight. The partial tail block is written again when more is appended,
//! but only after its last write has completed: the device may order two writes of one block as it likes.
//! Invariant: a write that failed is never passed by `written`, whatever completes behind it.
//! Crash story: power fails with writes 1, 2, 3 in flight and only 2 and 3 complete. `written` still stands
//! before 1, nobody was told anything beyond it, and recovery cuts there.

use std::collections::VecDeque;

use crate::disk::BLOCK_BYTES;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// From this many whole blocks on, the partial tail is left to a write of its own, so that the next large
/// write need not wait for this one.
const SPLIT_BYTES: u64 = 256 << 10;

/// Largest single device write.
const WRITE_BYTES_MAX: u64 = 1 << 20;

/// One device write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WriteRange {
    /// First byte, at a block boundary.
    pub(crate) start: u64,
    /// Exclusive end of the content; the device gets zeroes up to the next block boundary.
    pub(crate) end: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct WritePlan {
    appended: u64,
    dispatched: u64,
    written: u64,
    in_flight: VecDeque<InFlight>,
    failed: bool,
}

#[derive(Debug)]
struct InFlight {
    end: u64,
    done: bool,
}

impl WritePlan {
    /// A plan for a segment whose first `end` bytes are on the device.
    pub(crate) fn at(end: u64) -> Self {
        Self { appended: end, dispatched: end, written: end, in_flight: VecDeque::new(), failed: false }
    }

    /// Exclusive end of the appended bytes.
    pub(crate) fn appended(&self) -> u64 {
        self.appended
    }

    /// Exclusive end of the contiguous prefix that the device has taken.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// Exclusive end of what was handed to the device.
    pub(crate) fn dispatched(&self) -> u64 {
        self.dispatched
    }

    /// Whether a write is in flight.
    pub(crate) fn is_writing(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Counts `bytes` more as appended.
    pub(crate) fn append(&mut self, bytes: u64) {
        self.appended += bytes;
    }

    /// The next write that may start now. The caller writes it, or asks again later: nothing changes before
    /// [`WritePlan::dispatch`].
    pub(crate) fn next(&self) -> Option<WriteRange> {
        if self.failed || self.dispatched == self.appended || self.tail_block_is_in_flight() {
            return None;
        }
        let start = self.dispatched / BLOCK * BLOCK;
        let whole_end = self.appended / BLOCK * BLOCK;
        let end = if self.appended - start > WRITE_BYTES_MAX {
            start + WRITE_BYTES_MAX
        } else if whole_end.saturating_sub(start) >= SPLIT_BYTES {
            whole_end
        } else {
            self.appended
        };
        Some(WriteRange { start, end })
    }

    /// Counts a range from [`WritePlan::next`] as handed to the device.
    pub(crate) fn dispatch(&mut self, range: WriteRange) {
        assert!(range.start <= self.dispatched, "a write may not leave a hole");
        assert!(range.end > self.dispatched && range.end <= self.appended, "a write moves forward");
        self.dispatched = range.end;
        self.in_flight.push_back(InFlight { end: range.end, done: false });
    }

    /// Counts a dispatched range as completed; returns whether the written prefix moved.
    pub(crate) fn complete(&mut self, range: WriteRange) -> bool {
        let write = self.in_flight.iter_mut().find(|w| w.end == range.end && !w.done);
        write.expect("a completed write was in flight").done = true;
        let before = self.written;
        if self.failed {
            // The failed write is no longer in the list, so the front may lie behind it.
            self.in_flight.retain(|w| !w.done);
        }
        while self.in_flight.front().is_some_and(|w| w.done) {
            self.written = self.in_flight.pop_front().expect("the front was there").end;
        }
        assert!(self.written >= before, "the written prefix went back");
        self.written > before
    }

    /// Counts a dispatched range as failed: the prefix stays below it for ever, and nothing more is dispatched.
    pub(crate) fn fail(&mut self, range: WriteRange) {
        self.failed = true;
        self.in_flight.retain(|w| w.end != range.end);
    }

    fn tail_block_is_in_flight(&self) -> bool {
        !self.dispatched.is_multiple_of(BLOCK)
            && self.in_flight.back().is_some_and(|w| w.end == self.dispatched && !w.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(plan: &mut WritePlan) -> Option<WriteRange> {
        let range = plan.next()?;
        plan.dispatch(range);
        Some(range)
    }

    #[test]
    fn small_appends_share_one_write_and_rewrite_the_tail_block_only_after_it() {
        let mut plan = WritePlan::at(100);
        plan.append(50);
        let first = start(&mut plan).unwrap();
        assert_eq!(first, WriteRange { start: 0, end: 150 });
        plan.append(5000);
        assert_eq!(plan.next(), None, "the tail block is in flight");
        assert!(plan.complete(first));
        assert_eq!(start(&mut plan), Some(WriteRange { start: 0, end: 5150 }));
    }

    #[test]
    fn large_appends_leave_the_tail_to_a_write_of_its_own() {
        let mut plan = WritePlan::at(0);
        plan.append((3 << 20) + 7);
        let ranges: Vec<_> = std::iter::from_fn(|| start(&mut plan)).collect();
        let ends: Vec<_> = ranges.iter().map(|r| r.end).collect();
        assert_eq!(ends, [1 << 20, 2 << 20, 3 << 20, (3 << 20) + 7]);
    }

    #[test]
    fn a_failed_write_is_never_passed() {
        let mut plan = WritePlan::at(0);
        plan.append(3 << 20);
        let ranges: Vec<_> = std::iter::from_fn(|| start(&mut plan)).collect();
        plan.fail(ranges[1]);
        assert!(!plan.complete(ranges[2]));
        assert!(!plan.complete(ranges[0]));
        assert_eq!(plan.written(), 0);
        assert!(!plan.is_writing());
        plan.append(10);
        assert_eq!(plan.next(), None);
    }

    #[test]
    fn writes_completed_out_of_order_move_the_prefix_in_order() {
        let mut plan = WritePlan::at(0);
        plan.append(3 << 20);
        let ranges: Vec<_> = std::iter::from_fn(|| start(&mut plan)).collect();
        assert!(!plan.complete(ranges[2]));
        assert!(!plan.complete(ranges[1]));
        assert_eq!(plan.written(), 0);
        assert!(plan.complete(ranges[0]));
        assert_eq!(plan.written(), 3 << 20);
        assert!(!plan.is_writing());
    }
}
