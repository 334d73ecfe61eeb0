//! Indexes of one segment: where to start reading for an offset, and for a time.
//!
//! Owns: which batches get an entry, and the two files beside a segment (`offset`, `time`).
//! Invariant: an index is a hint. An entry that is missing costs a longer scan; one that is wrong is found when it
//! is used, because it names what stands at its position ([`OffsetEntry`], [`TimeEntry`]); then the indexes are
//! built again from the segment.
//! Not here: reading the segment (`log`).
//!
//! Crash story: the files are written when a segment is sealed or at a clean stop. After any other end they are
//! missing or stop short, and [`SegmentIndex::resume_position`] says from where the batches must be fed again.

mod offset;
#[cfg(test)]
mod tests;
mod time;

pub use offset::{OFFSET_ENTRY_BYTES, OffsetEntry, OffsetIndex};
pub use time::{TIME_ENTRY_BYTES, TimeEntry, TimeIndex};

use crate::batch::BatchHeader;
use crate::types::{Offset, TimestampMs};

/// What is known of a segment whose index files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentBounds {
    /// Offset of its first record, and its name.
    pub base_offset: Offset,
    /// Offset after its last record.
    pub end_offset: Offset,
    /// Its length in bytes.
    pub length_bytes: u64,
}

/// Why an index file is not used: throw it away and build the index again from the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Not a whole number of entries: the file was cut.
    #[error("an index file of {bytes} bytes is not a whole number of {entry_bytes}-byte entries")]
    Length {
        /// Length of the file.
        bytes: usize,
        /// Size of an entry.
        entry_bytes: usize,
    },
    /// An entry that does not come after the one before it.
    #[error("entry {entry} of the index is not above the one before it")]
    Order {
        /// Which entry, from 0.
        entry: usize,
    },
    /// An entry that points outside the segment.
    #[error("entry {entry} of the index points outside the segment")]
    Bounds {
        /// Which entry, from 0.
        entry: usize,
    },
}

/// Both indexes of one segment, and what was seen since the last entry.
#[derive(Clone, Debug)]
pub struct SegmentIndex {
    offsets: OffsetIndex,
    times: TimeIndex,
    interval_bytes: u64,
    bytes_since_entry: u64,
    /// The latest timestamp so far, and the last offset of the first batch that had it.
    max: Option<TimeEntry>,
}

impl SegmentIndex {
    /// Of an empty segment; an entry is made each time that more than `interval_bytes` have passed.
    pub fn new(base_offset: Offset, interval_bytes: u64) -> Self {
        Self {
            offsets: OffsetIndex::new(base_offset),
            times: TimeIndex::new(base_offset),
            interval_bytes,
            bytes_since_entry: 0,
            max: None,
        }
    }

    /// From the contents of the two files. Batches from [`SegmentIndex::resume_position`] on must be fed again,
    /// unless the segment was sealed.
    pub fn decode(
        offset_file: &[u8],
        time_file: &[u8],
        bounds: SegmentBounds,
        interval_bytes: u64,
    ) -> Result<Self, IndexError> {
        let offsets = OffsetIndex::decode(offset_file, bounds)?;
        let times = TimeIndex::decode(time_file, bounds)?;
        let max = times.last();
        Ok(Self { offsets, times, interval_bytes, bytes_since_entry: 0, max })
    }

    /// Takes note of the batch at `position`: in order, each batch of the segment once.
    pub fn append(&mut self, header: &BatchHeader, position: u64) {
        let last = TimeEntry { timestamp: header.max_timestamp, offset: header.last_offset() };
        let no_timestamp = last.timestamp < TimestampMs(0);
        if !no_timestamp && self.max.is_none_or(|max| last.timestamp > max.timestamp) {
            self.max = Some(last);
        }
        if self.bytes_since_entry > self.interval_bytes {
            self.offsets.append(OffsetEntry { offset: last.offset, position });
            if let Some(max) = self.max {
                self.times.append(max);
            }
            self.bytes_since_entry = 0;
        }
        self.bytes_since_entry += u64::from(header.size_bytes);
    }

    /// Makes the time index whole when the segment is sealed: its last entry is then the segment's latest
    /// timestamp.
    pub fn seal(&mut self) {
        if let Some(max) = self.max {
            self.times.append(max);
        }
    }

    /// The last indexed batch that ends at or before `offset`; a scan for `offset` begins at its position, or at 0
    /// if there is none. Whoever reads there checks that the batch at that position has this last offset.
    pub fn floor(&self, offset: Offset) -> Option<OffsetEntry> {
        self.offsets.floor(offset)
    }

    /// Position from which a scan finds the batch with `offset`.
    pub fn position_of(&self, offset: Offset) -> u64 {
        self.floor(offset).map_or(0, |entry| entry.position)
    }

    /// The last entry whose timestamp is at or before `at`: no record of a batch before its own is at or after
    /// `at`, so a scan for the first such record begins at [`SegmentIndex::position_of`] its offset, or at 0 if
    /// there is none. Whoever reads there checks that the batch with this last offset has this latest timestamp.
    pub fn time_floor(&self, at: TimestampMs) -> Option<TimeEntry> {
        self.times.floor(at)
    }

    /// Position from which a scan finds the first record at or after `at`.
    pub fn position_of_time(&self, at: TimestampMs) -> u64 {
        self.time_floor(at).map_or(0, |entry| self.position_of(entry.offset))
    }

    /// Latest timestamp of a record; `None` if no batch has one.
    pub fn max_timestamp(&self) -> Option<TimestampMs> {
        self.max.map(|max| max.timestamp)
    }

    /// Position of the last indexed batch, or 0.
    pub fn resume_position(&self) -> u64 {
        self.offsets.last().map_or(0, |entry| entry.position)
    }

    /// Forgets what lies at or behind `end`, and all that was seen since the last entry that stays. Returns the
    /// position from which the batches that stay must be fed again.
    ///
    /// Without that, a later time entry would claim to be the latest of batches that it has not seen.
    pub fn truncate(&mut self, end: Offset) -> u64 {
        self.offsets.truncate(end);
        let resume_position = self.resume_position();
        // A time entry names a batch at or before the offset entry it was made with, or (when sealed) any later
        // one: those are seen again.
        let known_end = self.offsets.last().map(|entry| entry.offset);
        self.times.truncate(known_end);
        self.max = self.times.last();
        self.bytes_since_entry = 0;
        resume_position
    }

    /// Entries of the offset index.
    pub fn offsets(&self) -> &OffsetIndex {
        &self.offsets
    }

    /// Entries of the time index.
    pub fn times(&self) -> &TimeIndex {
        &self.times
    }

    /// Memory that the entries take, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.offsets.memory_bytes() + self.times.memory_bytes()
    }
}
