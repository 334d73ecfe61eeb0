//! The offset index of a segment: where the batch with an offset is to be looked for.
//!
//! Owns: the layout of `.index` files.

use crate::index::{IndexError, SegmentBounds};
use crate::types::Offset;

/// Size of an entry in the file.
pub const OFFSET_ENTRY_BYTES: usize = 8;

/// Largest relative offset and position: Kafka's tools read them as signed.
const FIELD_MAX: u64 = i32::MAX as u64;

/// One indexed batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OffsetEntry {
    /// Offset of its last record.
    pub offset: Offset,
    /// Where it begins in the segment.
    pub position: u64,
}

/// Entries of one segment, ascending in offset and in position.
///
/// Shape of the file: entries of 8 bytes, big-endian: offset less the segment's base offset i32, position i32.
/// Cost: 8 bytes of memory an entry; a lookup is a binary search.
/// Source: Kafka's `OffsetIndex` (an entry names the last offset of the batch at its position, which is what the
/// dump tool verifies).
#[derive(Clone, Debug)]
pub struct OffsetIndex {
    base_offset: Offset,
    entries: Vec<(u32, u32)>,
}

impl OffsetIndex {
    /// Without entries.
    pub fn new(base_offset: Offset) -> Self {
        Self { base_offset, entries: Vec::new() }
    }

    /// Adds an entry. One that the format cannot hold, or that does not ascend, is left out: an index is a hint.
    pub fn append(&mut self, entry: OffsetEntry) {
        let relative = entry.offset.records_since(self.base_offset);
        if relative > FIELD_MAX || entry.position > FIELD_MAX || entry.offset < self.base_offset {
            return;
        }
        let new = (relative as u32, entry.position as u32);
        if self.entries.last().is_none_or(|last| last.0 < new.0 && last.1 < new.1) {
            self.entries.push(new);
        }
    }

    /// The last entry at or before `offset`.
    pub fn floor(&self, offset: Offset) -> Option<OffsetEntry> {
        if offset < self.base_offset {
            return None;
        }
        let relative = offset.records_since(self.base_offset);
        let after = self.entries.partition_point(|entry| u64::from(entry.0) <= relative);
        Some(self.entry(*self.entries.get(after.checked_sub(1)?)?))
    }

    /// The last entry.
    pub fn last(&self) -> Option<OffsetEntry> {
        self.entries.last().map(|&entry| self.entry(entry))
    }

    /// All entries, ascending.
    pub fn iter(&self) -> impl Iterator<Item = OffsetEntry> {
        self.entries.iter().map(|&entry| self.entry(entry))
    }

    /// Drops the entries of batches that end at or behind `end`.
    pub fn truncate(&mut self, end: Offset) {
        let relative = end.records_since(self.base_offset);
        let keep = self.entries.partition_point(|entry| u64::from(entry.0) < relative);
        self.entries.truncate(keep);
    }

    /// Contents of the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.entries.len() * OFFSET_ENTRY_BYTES);
        for (relative, position) in &self.entries {
            out.extend_from_slice(&relative.to_be_bytes());
            out.extend_from_slice(&position.to_be_bytes());
        }
        out
    }

    /// From the contents of the file, checked against the segment.
    pub fn decode(file: &[u8], bounds: SegmentBounds) -> Result<Self, IndexError> {
        let (chunks, rest) = file.as_chunks::<OFFSET_ENTRY_BYTES>();
        if !rest.is_empty() {
            return Err(IndexError::Length { bytes: file.len(), entry_bytes: OFFSET_ENTRY_BYTES });
        }
        let records = bounds.end_offset.records_since(bounds.base_offset);
        let mut entries: Vec<(u32, u32)> = Vec::with_capacity(chunks.len());
        for (entry, [a, b, c, d, e, f, g, h]) in chunks.iter().enumerate() {
            let (relative, position) =
                (u32::from_be_bytes([*a, *b, *c, *d]), u32::from_be_bytes([*e, *f, *g, *h]));
            if u64::from(relative) >= records || u64::from(position) >= bounds.length_bytes {
                return Err(IndexError::Bounds { entry });
            }
            if entries.last().is_some_and(|last| last.0 >= relative || last.1 >= position) {
                return Err(IndexError::Order { entry });
            }
            entries.push((relative, position));
        }
        Ok(Self { base_offset: bounds.base_offset, entries })
    }

    /// Memory that the entries take.
    pub fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<(u32, u32)>()
    }

    fn entry(&self, (relative, position): (u32, u32)) -> OffsetEntry {
        OffsetEntry { offset: self.base_offset.advance(u64::from(relative)), position: u64::from(position) }
    }
}
