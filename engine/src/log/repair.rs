//! Mending a damaged range of a sealed segment with the same bytes of another replica.
//!
//! Owns: what must match before a byte is written, and the order of the writes.
//! Invariant: only sound batches of exactly the damaged offsets, bytes and terms are written, and only into a sealed
//! segment that neither retention nor recycling nor a cut touches meanwhile.
//! Invariant: afterwards they are read back from the device and checked; if that fails, it is said.
//! Crash story: the process dies between the writes. The range was damaged and is damaged still: its readers and the
//! scrubber find it again. Blocks at its edges are written with the bytes they have, so a torn one loses nothing.
//! Where the range reaches into the last block of the segment, the file becomes longer for a moment: a marker beside
//! it says how long it is, and `recovery` cuts it there.

use std::io;
use std::rc::Rc;

use super::scan::{STORED_BATCH_BYTES_MAX, read_block, scan_file};
use super::segment::segment_path;
use super::{DamagedRange, Log, RepairError, Segment};
use crate::batch::{BatchHeader, HeaderCheck, StampedBatches, StampedLimits, StoredScan};
use crate::checkpoint::{self, RepairMarker};
use crate::disk::{BLOCK_BYTES, Disk, DiskFile, IoClass};
use crate::types::Offset;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Suffix of the marker of a repair.
const MARKER_EXTENSION: &str = "repair";

/// Base offset of the segment whose repair the file of this name marks.
pub(super) fn repaired_segment(name: &str) -> Option<Offset> {
    let digits = name.strip_suffix(MARKER_EXTENSION)?.strip_suffix('.')?;
    super::segment::base_offset_in(digits)
}

/// Keeps a segment from retention and recycling, until dropped.
struct Repairing<D: Disk>(Log<D>);

impl<D: Disk> Drop for Repairing<D> {
    fn drop(&mut self) {
        self.0.state_mut().repairing = None;
    }
}

impl<D: Disk> Log<D> {
    /// Writes `batches`, as another replica has them, over the damaged `range`, durably, and reads them back.
    ///
    /// Errors: see each variant; what cannot match is refused before a byte is written.
    /// Cancel: it goes on to its end.
    /// Cost: appends of this log wait meanwhile.
    pub async fn repair(&self, range: &DamagedRange, batches: &[u8]) -> Result<(), RepairError> {
        let (log, range, batches) = (self.clone(), range.clone(), batches.to_vec());
        self.engine().detach(async move { log.repair_now(&range, &batches).await }).await
    }

    async fn repair_now(&self, range: &DamagedRange, batches: &[u8]) -> Result<(), RepairError> {
        self.check_fits(range, batches)?;
        // No roll, cut, reset or deletion meanwhile.
        let _pass = self.0.turnstile.enter().await;
        self.state().check()?;
        let segment = self.keep_sealed(range)?;
        let _repairing = Repairing(self.clone());
        let written = self.write_over(&segment, range.position, batches).await;
        segment.mended(range.position, range.position + range.length_bytes);
        written.map_err(|error| disk_error(&segment, &error))?;
        self.read_back(&segment, range).await
    }

    fn check_fits(&self, range: &DamagedRange, bytes: &[u8]) -> Result<(), RepairError> {
        let batches = StampedBatches::check(bytes, &StampedLimits::default())?;
        let (found_from, found_to) = (batches.base_offset(), batches.end_offset());
        let found_bytes = bytes.len() as u64;
        if (found_from, found_to, found_bytes) != (range.from, range.to, range.length_bytes) {
            let DamagedRange { length_bytes, from, to, .. } = *range;
            return Err(RepairError::DoesNotFit {
                length_bytes,
                from,
                to,
                found_bytes,
                found_from,
                found_to,
            });
        }
        let state = self.state();
        let mut position = 0;
        while position < bytes.len() {
            let header = BatchHeader::parse(&bytes[position..]).expect("checked batches");
            let offset = header.base_offset;
            let found = header.leader_epoch.expect("checked batches are stamped");
            if let Some(expected) = state.epochs.epoch_at(offset)
                && expected != found
            {
                return Err(RepairError::OtherEpoch { offset, found, expected });
            }
            position += header.size();
        }
        Ok(())
    }

    /// The sealed segment of the range, kept from now on.
    fn keep_sealed(&self, range: &DamagedRange) -> Result<Rc<Segment<D>>, RepairError> {
        let mut state = self.state_mut();
        let end = state.deletable_end();
        let range_end = range.position + range.length_bytes;
        let segment = state.sealed.iter().find(|s| s.base == range.segment_base && s.base < end).cloned();
        match segment.filter(|s| range_end <= s.bytes.get() && range.to <= s.end_offset.get()) {
            Some(segment) => {
                state.repairing = Some(segment.base);
                Ok(segment)
            }
            None => {
                let DamagedRange { from, to, .. } = *range;
                Err(RepairError::NotSealed { dir: self.0.dir.clone(), from, to })
            }
        }
    }

    async fn write_over(&self, segment: &Rc<Segment<D>>, position: u64, bytes: &[u8]) -> io::Result<()> {
        let segment_bytes = segment.bytes.get();
        let end = position + bytes.len() as u64;
        let grows = end.next_multiple_of(BLOCK) > segment_bytes && !segment_bytes.is_multiple_of(BLOCK);
        let marker = segment_path(&self.0.dir, segment.base).with_extension(MARKER_EXTENSION);
        let disk = self.engine().disk();
        if grows {
            checkpoint::store(disk, &marker, &RepairMarker { segment_bytes }).await?;
        }
        let file = segment.file(self.engine()).await?;
        let blocks = self.with_edges(segment, position, bytes).await?;
        let mut at = position / BLOCK * BLOCK;
        for piece in blocks.chunks(self.engine().options().cold_read_bytes) {
            let mut buffer = self.engine().allocate(piece.len()).await;
            buffer.append(piece);
            file.write_at(vec![buffer.slice(0..piece.len())], at, IoClass::Background).await?;
            at += piece.len() as u64;
        }
        if grows {
            file.set_length(segment_bytes).await?;
        }
        file.sync().await?;
        if grows {
            disk.remove_file(&marker).await?;
            disk.sync_dir(&self.0.dir).await?;
        }
        Ok(())
    }

    /// `bytes` made up to whole blocks with what stands around them.
    async fn with_edges(&self, segment: &Segment<D>, position: u64, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let engine = self.engine();
        let head_bytes = (position % BLOCK) as usize;
        let mut blocks = match head_bytes {
            0 => Vec::new(),
            _ => read_block(segment, engine, position - head_bytes as u64, head_bytes).await?,
        };
        blocks.extend_from_slice(bytes);
        let end = position + bytes.len() as u64;
        let last = end / BLOCK * BLOCK;
        let kept_end = (last + BLOCK).min(segment.bytes.get());
        if end > last && kept_end > end {
            let block = read_block(segment, engine, last, (kept_end - last) as usize).await?;
            blocks.extend_from_slice(&block[(end - last) as usize..]);
        }
        blocks.resize(blocks.len().next_multiple_of(BLOCK_BYTES), 0);
        Ok(blocks)
    }

    async fn read_back(&self, segment: &Rc<Segment<D>>, range: &DamagedRange) -> Result<(), RepairError> {
        let scanned = async {
            let file = segment.file(self.engine()).await?;
            let mut scan = StoredScan::new(HeaderCheck::exact(range.from, STORED_BATCH_BYTES_MAX));
            let bytes = (range.position, range.position + range.length_bytes);
            scan_file(self.engine(), &file, bytes, IoClass::Background, &mut scan, |_, _| {}).await
        };
        let ended = scanned.await.map_err(|error| disk_error(segment, &error))?;
        match ended.error {
            None => Ok(()),
            Some(error) => Err(RepairError::StillDamaged {
                path: segment.path.clone(),
                position: ended.position,
                reason: error.to_string(),
            }),
        }
    }
}

fn disk_error<D: Disk>(segment: &Segment<D>, error: &io::Error) -> RepairError {
    RepairError::Disk { path: segment.path.clone(), reason: error.to_string() }
}
