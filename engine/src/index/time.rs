//! The time index of a segment: where the first record at or after a time is to be looked for.
//!
//! Owns: the layout of `.timeindex` files.
//! Invariant: an entry holds the latest timestamp of all batches up to the moment it was made, so timestamps
//! ascend even where the records' do not.

use crate::index::{IndexError, SegmentBounds};
use crate::types::{Offset, TimestampMs};

/// Size of an entry in the file.
pub const TIME_ENTRY_BYTES: usize = 12;

/// Largest relative offset: Kafka's tools read it as signed.
const RELATIVE_MAX: u64 = i32::MAX as u64;

/// The latest timestamp of a segment up to some batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeEntry {
    /// The timestamp.
    pub timestamp: TimestampMs,
    /// Last offset of the first batch that has it.
    pub offset: Offset,
}

/// Entries of one segment, ascending in timestamp and in offset.
///
/// Shape of the file: entries of 12 bytes, big-endian: timestamp i64, offset less the segment's base offset i32.
/// Source: Kafka's `TimeIndex`.
#[derive(Clone, Debug)]
pub struct TimeIndex {
    base_offset: Offset,
    entries: Vec<TimeEntry>,
}

impl TimeIndex {
    /// Without entries.
    pub fn new(base_offset: Offset) -> Self {
        Self { base_offset, entries: Vec::new() }
    }

    /// Adds an entry, unless it says nothing new or the format cannot hold it.
    pub fn append(&mut self, entry: TimeEntry) {
        if entry.offset < self.base_offset || entry.offset.records_since(self.base_offset) > RELATIVE_MAX {
            return;
        }
        if self
            .entries
            .last()
            .is_none_or(|last| last.timestamp < entry.timestamp && last.offset < entry.offset)
        {
            self.entries.push(entry);
        }
    }

    /// The last entry whose timestamp is at or before `at`.
    pub fn floor(&self, at: TimestampMs) -> Option<TimeEntry> {
        let after = self.entries.partition_point(|entry| entry.timestamp <= at);
        self.entries.get(after.checked_sub(1)?).copied()
    }

    /// The last entry.
    pub fn last(&self) -> Option<TimeEntry> {
        self.entries.last().copied()
    }

    /// All entries, ascending.
    pub fn iter(&self) -> impl Iterator<Item = TimeEntry> {
        self.entries.iter().copied()
    }

    /// Drops the entries behind `last`, or all.
    pub fn truncate(&mut self, last: Option<Offset>) {
        let keep = self.entries.partition_point(|entry| Some(entry.offset) <= last);
        self.entries.truncate(keep);
    }

    /// Contents of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.entries.len() * TIME_ENTRY_BYTES);
        for entry in &self.entries {
            let relative = entry.offset.records_since(self.base_offset) as u32;
            out.extend_from_slice(&entry.timestamp.0.to_be_bytes());
            out.extend_from_slice(&relative.to_be_bytes());
        }
        out
    }

    /// From the contents of the file, checked against the segment.
    pub fn decode(file: &[u8], bounds: SegmentBounds) -> Result<Self, IndexError> {
        let (chunks, rest) = file.as_chunks::<TIME_ENTRY_BYTES>();
        if !rest.is_empty() {
            return Err(IndexError::Length { bytes: file.len(), entry_bytes: TIME_ENTRY_BYTES });
        }
        let records = bounds.end_offset.records_since(bounds.base_offset);
        let mut entries: Vec<TimeEntry> = Vec::with_capacity(chunks.len());
        for (entry, chunk) in chunks.iter().enumerate() {
            let (timestamp, relative) = chunk.split_at(8);
            let timestamp = i64::from_be_bytes(timestamp.try_into().expect("eight bytes"));
            let relative = u32::from_be_bytes(relative.try_into().expect("four bytes"));
            if timestamp < 0 || u64::from(relative) >= records {
                return Err(IndexError::Bounds { entry });
            }
            let offset = bounds.base_offset.advance(u64::from(relative));
            let timestamp = TimestampMs(timestamp);
            if entries.last().is_some_and(|last| last.timestamp >= timestamp || last.offset >= offset) {
                return Err(IndexError::Order { entry });
            }
            entries.push(TimeEntry { timestamp, offset });
        }
        Ok(Self { base_offset: bounds.base_offset, entries })
    }

    /// Memory that the entries take.
    pub fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<TimeEntry>()
    }
}
