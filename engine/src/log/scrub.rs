//! Looking for damage that nobody has met yet: reads sealed segments from the device and checks every batch.
//!
//! Owns: where a look goes on, and how far a damaged range reaches.
//! Invariant: what is found is a run of whole batches by position and by offset, so that the same bytes of another
//! replica fit in (`repair.rs`).
//! Invariant: the indexes are not touched, chunks in memory are neither used nor pushed out: the device is asked.
//! Not here: when and how fast (the caller calls it with a budget); mending.
//! How a range ends: where the damaged batch says it does, if a batch follows there; else at the next batch that the
//! offset index knows; else at the next sound batch of a later offset; else with the segment.

use std::io;
use std::rc::Rc;

use super::scan::{STORED_BATCH_BYTES_MAX, read_from, scan_file};
use super::{Log, Mark, ReadError, Segment};
use crate::batch::{
    BatchHeader, Continuity, HEADER_BYTES, HeaderCheck, StoredError, StoredScan, find_plausible_header,
};
use crate::disk::{Disk, IoClass};
use crate::engine::Engine;
use crate::types::Offset;

/// Where the next look at a log begins. The default is the beginning of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubCursor {
    segment_base: Offset,
    position: u64,
    offset: Offset,
}

impl ScrubCursor {
    /// Below it all was looked at.
    pub fn offset(&self) -> Offset {
        self.offset
    }
}

/// What one look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Where the next one goes on; `None` behind the last sealed segment: the round is complete.
    pub next: Option<ScrubCursor>,
    /// Bytes that were read and checked.
    pub checked_bytes: u64,
    /// What is damaged among them.
    pub damaged: Vec<DamagedRange>,
}

/// A run of whole batches of one segment that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedRange {
    /// The segment.
    pub segment_base: Offset,
    /// Where in it the range begins, in bytes.
    pub position: u64,
    /// How long it is.
    pub length_bytes: u64,
    /// First offset of the range.
    pub from: Offset,
    /// Exclusive end of its offsets.
    pub to: Offset,
    /// What is wrong with its first batch.
    pub reason: String,
}

impl<D: Disk> Log<D> {
    /// Reads about `bytes_max` bytes of sealed segments from `cursor` on, and checks them: lengths, checksums,
    /// offsets, and leader epochs against the log's table.
    ///
    /// Errors: the disk failed. Damage is a result, not an error.
    /// Cost: direct reads of class `Scrub`, one buffer; a damaged batch some more.
    pub async fn scrub(&self, cursor: ScrubCursor, bytes_max: u64) -> Result<ScrubProgress, ReadError> {
        let mut progress = ScrubProgress { next: Some(cursor), ..ScrubProgress::default() };
        while let Some(cursor) = progress.next
            && progress.checked_bytes < bytes_max
        {
            let Some(segment) = self.sealed_from(cursor.segment_base) else {
                progress.next = None;
                break;
            };
            let beginning = Mark { position: 0, offset: segment.base };
            let mark = match cursor.segment_base == segment.base && cursor.position > 0 {
                true => Mark { position: cursor.position, offset: cursor.offset },
                false => beginning,
            };
            let left = bytes_max - progress.checked_bytes;
            let life = segment.life.get();
            let looked = self.look(&segment, mark, left).await;
            if segment.gone.get() || segment.life.get() != life || !segment.sealed.get() {
                // Deleted, cut or mended meanwhile: nothing was learnt. The next call finds what is there now.
                return Ok(progress);
            }
            let looked = looked?;
            progress.checked_bytes += looked.end.position - mark.position;
            progress.damaged.extend(looked.damaged);
            let Mark { position, offset } = looked.end;
            let end = Mark { position: segment.bytes.get(), offset: segment.end_offset.get() };
            if position >= end.position && offset < end.offset {
                let reason = "the segment ends before its last offset".to_owned();
                progress.damaged.push(damaged(&segment, looked.end, end, reason));
            }
            let segment_base = if position >= segment.bytes.get() { offset } else { segment.base };
            let position = if segment_base == segment.base { position } else { 0 };
            progress.next = Some(ScrubCursor { segment_base, position, offset });
        }
        Ok(progress)
    }

    /// The damaged range that holds `offset`, for who met it while reading; `None` if what is there is sound, or
    /// not written yet.
    ///
    /// Cost: reads from the index entry before it, or from the beginning of the segment if there is no index.
    pub async fn damage_at(&self, offset: Offset) -> Result<Option<DamagedRange>, ReadError> {
        let segment = self.state().segment_for(offset);
        let mut mark = self.known_batch_before(&segment, offset).await?;
        while mark.offset <= offset && mark.position < segment.written_bytes.get() {
            let looked = self.look(&segment, mark, DAMAGE_LOOK_BYTES).await?;
            if let Some(range) =
                looked.damaged.into_iter().find(|range| range.from <= offset && offset < range.to)
            {
                return Ok(Some(range));
            }
            mark = looked.end;
        }
        Ok(None)
    }

    /// The oldest finished segment at or behind `base`.
    fn sealed_from(&self, base: Offset) -> Option<Rc<Segment<D>>> {
        let state = self.state();
        let end = state.deletable_end();
        state.sealed.iter().find(|s| s.base >= base).filter(|s| s.base < end).cloned()
    }

    /// A batch that begins at or before `offset`, as far as the index knows one.
    async fn known_batch_before(&self, segment: &Rc<Segment<D>>, offset: Offset) -> Result<Mark, ReadError> {
        let beginning = Mark { position: 0, offset: segment.base };
        if segment.load_index(self.engine()).await.is_err() {
            return Ok(beginning);
        }
        let Some(entry) = segment.index().floor(offset) else { return Ok(beginning) };
        let header = header_at(self.engine(), segment, entry.position).await?;
        Ok(match header.filter(|header| header.last_offset() == entry.offset) {
            Some(header) => Mark { position: entry.position, offset: header.base_offset },
            None => beginning,
        })
    }

    /// Checks the batches of a segment from `from` on, about `bytes_max` bytes of them.
    async fn look(&self, segment: &Rc<Segment<D>>, from: Mark, bytes_max: u64) -> Result<Looked, ReadError> {
        let segment_end = segment.written_bytes.get();
        let mut end = from.position.saturating_add(bytes_max).min(segment_end);
        let mut looked = Looked { end: from, damaged: Vec::new() };
        while looked.end.position < end {
            let Mark { position, offset } = looked.end;
            let (reached, error) =
                self.scan_range(segment, position, end, offset, &mut looked.damaged).await?;
            looked.end = reached;
            match error {
                None => break,
                // The epoch of the batch before was damaged, which is noted; this one was not checked yet.
                Some(StoredError::LeaderEpoch { .. }) if looked.end.position > position => {}
                Some(StoredError::Incomplete { need, .. }) if end < segment_end => {
                    if !looked.is_behind(from) {
                        // One batch at least.
                        end = reached.position.saturating_add(need as u64).min(segment_end);
                        continue;
                    }
                    break;
                }
                Some(error) => {
                    let behind = end_of_damage(self.engine(), segment, reached).await?;
                    looked.damaged.push(damaged(segment, reached, behind, error.to_string()));
                    looked.end = behind;
                }
            }
        }
        Ok(looked)
    }

    /// Scans one range; batches of a wrong epoch are damaged ones that end where they say.
    async fn scan_range(
        &self,
        segment: &Rc<Segment<D>>,
        start: u64,
        end: u64,
        offset: Offset,
        found: &mut Vec<DamagedRange>,
    ) -> Result<(Mark, Option<StoredError>), ReadError> {
        let file = segment.file(self.engine()).await.map_err(|error| disk_error(segment, &error))?;
        let mut scan = StoredScan::new(HeaderCheck::exact(offset, STORED_BATCH_BYTES_MAX));
        let scanned =
            scan_file(self.engine(), &file, (start, end), IoClass::Scrub, &mut scan, |header, at| {
                let expected = self.state().epochs.epoch_at(header.base_offset);
                if expected.is_some() && expected != header.leader_epoch {
                    let from = Mark { position: at, offset: header.base_offset };
                    let behind =
                        Mark { position: at + u64::from(header.size_bytes), offset: header.next_offset() };
                    let reason = format!("leader epoch {:?}, the log has {expected:?}", header.leader_epoch);
                    found.push(damaged(segment, from, behind, reason));
                }
            });
        let ended = scanned.await.map_err(|error| disk_error(segment, &error))?;
        Ok((Mark { position: ended.position, offset: scan.summary().next_offset }, ended.error))
    }
}

/// One read of who looks for the damage that a reader met.
const DAMAGE_LOOK_BYTES: u64 = 1 << 20;

struct Looked {
    end: Mark,
    damaged: Vec<DamagedRange>,
}

impl Looked {
    fn is_behind(&self, mark: Mark) -> bool {
        self.end.position > mark.position
    }
}

fn damaged<D: Disk>(segment: &Segment<D>, from: Mark, behind: Mark, reason: String) -> DamagedRange {
    DamagedRange {
        segment_base: segment.base,
        position: from.position,
        length_bytes: behind.position - from.position,
        from: from.offset,
        to: behind.offset,
        reason,
    }
}

/// The next batch behind the damaged one at `from` that can be believed.
async fn end_of_damage<D: Disk>(
    engine: &Engine<D>,
    segment: &Rc<Segment<D>>,
    from: Mark,
) -> Result<Mark, ReadError> {
    let segment_end = Mark { position: segment.written_bytes.get(), offset: segment.end_offset.get() };
    let follows = |mark: Mark| async move {
        if mark.position >= segment_end.position {
            return Ok(mark == segment_end);
        }
        let header = header_at(engine, segment, mark.position).await?;
        Ok::<_, ReadError>(header.is_some_and(|header| header.base_offset == mark.offset))
    };
    if let Some(header) = header_at(engine, segment, from.position).await?
        && header.base_offset == from.offset
    {
        let mark =
            Mark { position: from.position + u64::from(header.size_bytes), offset: header.next_offset() };
        if follows(mark).await? {
            return Ok(mark);
        }
    }
    let known: Vec<_> = match segment.load_index(engine).await {
        Ok(()) => segment.index().offsets().iter().filter(|e| e.position > from.position).collect(),
        Err(_) => Vec::new(),
    };
    for entry in known {
        let header = header_at(engine, segment, entry.position).await?;
        if let Some(header) =
            header.filter(|h| h.last_offset() == entry.offset && h.base_offset > from.offset)
        {
            return Ok(Mark { position: entry.position, offset: header.base_offset });
        }
    }
    let found = next_sound_batch(engine, segment, from).await.map_err(|error| disk_error(segment, &error))?;
    Ok(found.unwrap_or(segment_end))
}

/// The header at `position`, if one can be there.
async fn header_at<D: Disk>(
    engine: &Engine<D>,
    segment: &Segment<D>,
    position: u64,
) -> Result<Option<BatchHeader>, ReadError> {
    let read = async {
        let file = segment.file(engine).await?;
        let buffer = engine.allocate(2 * crate::disk::BLOCK_BYTES).await;
        let end = (position + HEADER_BYTES as u64).min(segment.written_bytes.get());
        let (buffer, range) = read_from(&file, buffer, position, end, IoClass::Scrub).await?;
        Ok(BatchHeader::parse(&buffer.bytes()[range]).ok())
    };
    read.await.map_err(|error: io::Error| disk_error(segment, &error))
}

/// The first sound batch behind `from`: where there is no index, or a damaged one.
async fn next_sound_batch<D: Disk>(
    engine: &Engine<D>,
    segment: &Rc<Segment<D>>,
    from: Mark,
) -> io::Result<Option<Mark>> {
    let file = segment.file(engine).await?;
    let end = segment.written_bytes.get();
    let mut check = HeaderCheck::exact(from.offset.advance(1), STORED_BATCH_BYTES_MAX);
    check.continuity = Continuity::GapsAllowed;
    let mut position = from.position + 1;
    let mut buffer = engine.allocate(engine.options().cold_read_bytes).await;
    while position + HEADER_BYTES as u64 <= end {
        let range;
        (buffer, range) = read_from(&file, buffer, position, end, IoClass::Scrub).await?;
        let bytes = buffer.bytes()[range].to_vec();
        let mut at = 0;
        while let Some(found) = find_plausible_header(&bytes, at, &check) {
            let header = BatchHeader::parse(&bytes[found..]).expect("a plausible header parses");
            let start = position + found as u64;
            let behind = start + u64::from(header.size_bytes);
            if behind <= end {
                let one = HeaderCheck::exact(header.base_offset, STORED_BATCH_BYTES_MAX);
                let mut scan = StoredScan::new(one);
                let scanned = scan_file(engine, &file, (start, behind), IoClass::Scrub, &mut scan, |_, _| {});
                if scanned.await?.error.is_none() {
                    return Ok(Some(Mark { position: start, offset: header.base_offset }));
                }
            }
            at = found + 1;
        }
        if bytes.len() < HEADER_BYTES {
            break;
        }
        // A header may begin in the last bytes and end in the next ones.
        position += (bytes.len() - HEADER_BYTES + 1) as u64;
    }
    Ok(None)
}

fn disk_error<D: Disk>(segment: &Segment<D>, error: &io::Error) -> ReadError {
    ReadError::Disk { path: segment.path.clone(), reason: error.to_string() }
}
