//! Finding the first record at or after a time.
//!
//! Owns: the way from the time indexes to one record. Timestamps need not ascend: "first" is by offset.

use std::rc::Rc;

use super::{Log, ReadError, ReadLimits, Segment};
use crate::batch::{BatchHeader, BatchSpan, BatchWalk, Compression, HEADER_BYTES, RecordIter, TimestampType};
use crate::buffer::DmaSlice;
use crate::disk::Disk;
use crate::types::{Offset, TimestampMs};

/// Read at a time on the way: an index interval and a little.
const READ_BYTES: usize = 64 << 10;

impl<D: Disk> Log<D> {
    /// Offset and timestamp of the first record at or after `at`, below `visible_end`; `None` if there is none.
    ///
    /// For a compressed batch it is the first record of the batch that holds such a record: the engine has no
    /// codecs, so a reader skips what is older.
    /// Cost: an index look-up per segment, then a read of about an index interval.
    pub async fn offset_for_timestamp(
        &self,
        at: TimestampMs,
        visible_end: Offset,
    ) -> Result<Option<(Offset, TimestampMs)>, ReadError> {
        loop {
            let generation = self.state().generation;
            let found = self.search(at, visible_end).await;
            let start_moved = matches!(found, Err(ReadError::OffsetOutOfRange { .. }));
            if !start_moved && self.state().generation == generation {
                return found;
            }
        }
    }

    async fn search(
        &self,
        at: TimestampMs,
        visible_end: Offset,
    ) -> Result<Option<(Offset, TimestampMs)>, ReadError> {
        let segments = {
            let state = self.state();
            let active = state.active().segment.clone();
            state.sealed.iter().cloned().chain([active]).collect::<Vec<_>>()
        };
        for segment in segments {
            if segment.base >= visible_end {
                break;
            }
            let loaded = segment.load_index(self.engine()).await;
            if segment.gone.get() {
                // Retention came between: what it held is before the log start.
                continue;
            }
            loaded?;
            if segment.index().max_timestamp() < Some(at) {
                continue;
            }
            if let Some(found) = self.find_in(&segment, at, visible_end).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn find_in(
        &self,
        segment: &Rc<Segment<D>>,
        at: TimestampMs,
        visible_end: Offset,
    ) -> Result<Option<(Offset, TimestampMs)>, ReadError> {
        let hint = segment.index().time_floor(at);
        let start = self.ends().start;
        let mut from = hint.map_or(segment.base, |entry| entry.offset).max(start);
        // A wrong entry is found by the batch that it names; then the segment is searched from its beginning.
        let mut unproven = hint.filter(|entry| entry.offset == from);
        let end = visible_end.min(segment.end_offset.get());
        'search: while from < end {
            let read = self.read(from, end, ReadLimits::bytes(READ_BYTES)).await?;
            for span in BatchWalk::new(&read.slices).flatten() {
                if let Some(entry) = unproven.take()
                    && (span.header.last_offset(), span.header.max_timestamp)
                        != (entry.offset, entry.timestamp)
                {
                    from = segment.base.max(start);
                    continue 'search;
                }
                if span.header.max_timestamp >= at
                    && let Some(found) = first_record(&read.slices, &span, at, start)
                {
                    return Ok(Some(found));
                }
            }
            if read.next_offset <= from {
                break;
            }
            from = read.next_offset;
        }
        Ok(None)
    }
}

/// The first record of a batch at or after `at`, not before the log start.
fn first_record(
    slices: &[DmaSlice],
    span: &BatchSpan,
    at: TimestampMs,
    start: Offset,
) -> Option<(Offset, TimestampMs)> {
    let header: BatchHeader = span.header;
    let first = header.base_offset.max(start);
    if header.attributes.timestamp_type() == TimestampType::LogAppendTime {
        return Some((first, header.max_timestamp));
    }
    if header.attributes.compression() != Some(Compression::None) {
        return Some((first, header.base_timestamp));
    }
    let batch: Vec<u8> = span.pieces(slices).flatten().copied().collect();
    let records = RecordIter::new(&header, &batch[HEADER_BYTES..]);
    let found = records.flatten().find(|record| record.timestamp >= at && record.offset >= start);
    found.map(|record| (record.offset, record.timestamp))
}
