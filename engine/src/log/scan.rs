//! Reads a segment from front to back: recovery, lost indexes, scrubbing, and the tail block of a log that wakes up.
//!
//! Owns: the loop of direct reads that feeds a `StoredScan`. One buffer at a time.
//! Not here: what a bad batch means (`recovery.rs` and its callers decide).

use std::io;

use super::segment::Segment;
use crate::batch::{BatchHeader, StoredError, StoredScan, TailState};
use crate::buffer::DmaBuffer;
use crate::disk::{BLOCK_BYTES, Disk, DiskFile, IoClass};
use crate::engine::Engine;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Largest batch that a segment can hold; larger lengths are damage.
pub(super) const STORED_BATCH_BYTES_MAX: usize = 1 << 30;

/// How a scan ended.
pub(super) struct ScanEnd {
    /// Where the first byte stands that is not a sound batch.
    pub(super) position: u64,
    /// What stands there; `None` if the range ended behind a whole batch.
    pub(super) error: Option<StoredError>,
}

/// Feeds `[start, end)` of a file to `scan`, which expects a batch at `start`; `each` gets the header and the
/// position of each sound batch. Stops at the first that is not.
///
/// Errors: the disk's; a bad batch is a result, not an error.
pub(super) async fn scan_file<D: Disk>(
    engine: &Engine<D>,
    file: &D::File,
    (start, end): (u64, u64),
    class: IoClass,
    scan: &mut StoredScan,
    mut each: impl FnMut(&BatchHeader, u64),
) -> io::Result<ScanEnd> {
    let mut buffer = engine.allocate(engine.options().cold_read_bytes).await;
    let mut position = start;
    while position < end {
        let bytes;
        (buffer, bytes) = read_from(file, buffer, position, end, class).await?;
        if bytes.is_empty() {
            break;
        }
        let bytes = &buffer.bytes()[bytes];
        position += bytes.len() as u64;
        if let Err(error) = scan.feed(bytes, |header, at| each(header, start + at)) {
            return Ok(ScanEnd { position: start + scan.summary().bytes, error: Some(error) });
        }
    }
    let error = match scan.tail() {
        TailState::Whole => None,
        TailState::Partial { need, have } => Some(StoredError::Incomplete { need, have }),
    };
    Ok(ScanEnd { position: start + scan.summary().bytes, error })
}

/// Reads as much of `[position, end)` as the buffer takes; returns which part of the buffer it is.
pub(super) async fn read_from<F: DiskFile>(
    file: &F,
    mut buffer: DmaBuffer,
    position: u64,
    end: u64,
    class: IoClass,
) -> io::Result<(DmaBuffer, std::ops::Range<usize>)> {
    buffer.clear();
    let from = position / BLOCK * BLOCK;
    let skip = (position - from) as usize;
    let length = ((end - from).next_multiple_of(BLOCK) as usize).min(buffer.capacity());
    let (buffer, read) = file.read_at(buffer, length, from, class).await;
    let read = read?.min((end - from) as usize);
    Ok((buffer, skip.min(read)..read))
}

/// The first `count` bytes of the block at `position` of a segment.
pub(super) async fn read_block<D: Disk>(
    segment: &Segment<D>,
    engine: &Engine<D>,
    position: u64,
    count: usize,
) -> io::Result<Vec<u8>> {
    let file = segment.file(engine).await?;
    let buffer = engine.allocate(BLOCK_BYTES).await;
    let (buffer, read) = file.read_at(buffer, BLOCK_BYTES, position, IoClass::Commit).await;
    if read? < count {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the segment is shorter than its batches"));
    }
    Ok(buffer.bytes()[..count].to_vec())
}
