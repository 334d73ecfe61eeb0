//! Decides when the active segment is sealed.
//!
//! Owns: one pure decision. Not here: how a segment rolls (`roll.rs`).

use super::options::LogOptions;
use crate::types::TimestampMs;

/// Facts about the active segment.
#[derive(Clone, Copy, Debug)]
pub struct ActiveSegment {
    /// Bytes of batches in it.
    pub bytes: u64,
    /// When its first batch was appended; `None` while it is empty.
    pub first_append: Option<TimestampMs>,
    /// Offsets from its base to the log end; an index entry holds them in 32 bits.
    pub records: u64,
}

/// Where the next batches go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Behind what is there.
    Active,
    /// Into a new segment.
    Roll,
}

/// Decides whether `append_bytes` with `append_records` go into the active segment.
///
/// Batches never straddle two segments, and an empty segment accepts anything, so that one oversized append gets
/// a segment to itself instead of rolling forever. A clock that stepped back never rolls.
pub fn place(
    active: ActiveSegment,
    append_bytes: u64,
    append_records: u64,
    now: TimestampMs,
    options: &LogOptions,
) -> Placement {
    assert!(append_bytes > 0, "an empty append has no place in a log");
    let Some(first_append) = active.first_append else { return Placement::Active };
    if active.bytes == 0 {
        return Placement::Active;
    }
    let too_big = active.bytes + append_bytes > options.segment_bytes_max;
    let too_old = now.ms_since(first_append) > options.segment_age_max_ms;
    let too_many = active.records + append_records > u64::from(u32::MAX >> 1);
    if too_big || too_old || too_many { Placement::Roll } else { Placement::Active }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(bytes: u64, age_ms: i64, records: u64, append: u64, expected: Placement) {
        let options = LogOptions { segment_bytes_max: 1000, segment_age_max_ms: 50, ..LogOptions::default() };
        let active = ActiveSegment { bytes, first_append: (bytes > 0).then_some(TimestampMs(0)), records };
        assert_eq!(place(active, append, 1, TimestampMs(age_ms), &options), expected);
    }

    #[test]
    fn rolls_when_too_big_too_old_or_too_many() {
        check(900, 0, 10, 100, Placement::Active);
        check(901, 0, 10, 100, Placement::Roll);
        check(10, 50, 10, 100, Placement::Active);
        check(10, 51, 10, 100, Placement::Roll);
        check(10, 0, u64::from(u32::MAX), 100, Placement::Roll);
    }

    #[test]
    fn empty_segment_takes_anything_and_a_clock_step_back_never_rolls() {
        check(0, 1_000_000, 0, 5000, Placement::Active);
        check(10, -1_000_000, 10, 100, Placement::Active);
    }
}
