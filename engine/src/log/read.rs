//! Reading: from an offset to the buffers that hold it.
//!
//! Owns: the walk from the index to whole batches, and the cold reads on its way.
//! Invariant: what is returned is a run of whole, sound batches below the visible end, and the first of them
//! holds the wanted offset. Batches that came from the device are checked by their CRC each time they are served.
//! Invariant: a reader waits for memory only while it holds none, or in its turn, which one has at a time; so readers,
//! and logs that append, cannot starve each other.
//! Crash story: the segment is deleted or truncated while a cold read waits. The reader holds its own buffers,
//! sees the mark, and starts over: it gets the new state of the log or an offset out of range, never a mixture.

use std::io;
use std::path::Path;
use std::rc::Rc;

use super::{Log, ReadError, ReadLimits, Segment};
use crate::batch::{BatchHeader, CrcCheck, HEADER_BYTES};
use crate::buffer::DmaSlice;
use crate::checkpoint::EpochTable;
use crate::disk::{BLOCK_BYTES, Disk, DiskFile, IoClass};
use crate::engine::Engine;
use crate::notify::Pass;
use crate::types::{LeaderEpoch, Offset};

const BLOCK: u64 = BLOCK_BYTES as u64;

/// First direct read of a cold reader that does not go on where another ended: an index interval and a little.
const SEEK_READ_BYTES: usize = 64 << 10;

/// What a read found. The slices are the bytes of whole batches, in order.
#[derive(Debug, Default)]
pub struct ReadBatches {
    /// The bytes; empty if nothing is visible at or above the offset yet.
    pub slices: Vec<DmaSlice>,
    /// Sum of the slices.
    pub bytes: usize,
    /// Offset after the last batch, or the offset asked for if there is none.
    pub next_offset: Offset,
}

impl<D: Disk> Log<D> {
    /// Reads whole batches from the one that holds `from` on, below `visible_end`.
    ///
    /// Shape: the first batch is returned whole whatever its size and may begin before `from`; later ones keep
    /// within `limits`. Empty, without error, for `from` in `[visible_end, end]`.
    /// Errors: see each variant.
    /// Cost: tail reads copy nothing and wait for nothing; cold reads are direct, with read-ahead.
    /// Cancel: harmless.
    pub async fn read(
        &self,
        from: Offset,
        visible_end: Offset,
        limits: ReadLimits,
    ) -> Result<ReadBatches, ReadError> {
        loop {
            let (segment, generation) = {
                let state = self.state();
                let (start, end) = (state.ends.start, state.ends.end);
                if from < start || from > end {
                    return Err(ReadError::OffsetOutOfRange { requested: from, start, end });
                }
                if from >= visible_end.min(end) {
                    return Ok(ReadBatches { next_offset: from, ..ReadBatches::default() });
                }
                (state.segment_for(from), state.generation)
            };
            // Retention and cuts take a segment out of the log before they mark it; only deletion does not.
            if segment.gone.get() {
                return Err(ReadError::Closed);
            }
            let result = read_segment(self.engine(), &segment, from, visible_end, limits).await;
            if segment.gone.get() || self.state().generation != generation {
                continue;
            }
            let (batches, terms) = result?;
            let state = self.state();
            terms.iter().try_for_each(|term| term.check(&state.epochs, &segment.path))?;
            return Ok(batches);
        }
    }
}

/// Batches of one segment from the one that holds `from` on. Offsets within a segment have no gaps: where one is
/// missing, bytes were lost.
async fn read_segment<D: Disk>(
    engine: &Engine<D>,
    segment: &Rc<Segment<D>>,
    from: Offset,
    visible_end: Offset,
    limits: ReadLimits,
) -> Result<(ReadBatches, Vec<Term>), ReadError> {
    segment.load_index(engine).await?;
    let place = true_place(engine, segment, from, limits.class).await?;
    let mut run = Run::new(engine, segment, place, limits.class);
    let Some((first, start)) = run.find(from).await? else {
        return Err(run.corrupt(segment.bytes.get(), "the segment ends before this offset".to_owned()));
    };
    let mut at = start;
    let mut terms: Vec<Term> = Vec::new();
    let mut header = Some(first);
    while let Some(batch) = header {
        let is_first = at == start;
        let end = at + u64::from(batch.size_bytes);
        let fits = (end - start) as usize <= limits.bytes_max;
        if batch.base_offset >= visible_end || !(is_first || fits) {
            break;
        }
        if !run.reach(end, is_first).await? {
            break;
        }
        match run.check_crc(&batch, at) {
            Ok(()) => {}
            Err(ReadError::Corrupt { .. }) if !is_first => break,
            Err(error) => return Err(error),
        }
        match terms.last_mut() {
            Some(term) if term.epoch == batch.leader_epoch => term.last = batch.last_offset(),
            _ => terms.push(Term::of(&batch, at)),
        }
        run.offset = Some(batch.next_offset());
        at = end;
        header = match run.header(at, false).await {
            // What is sound before the damage is served; who asks for what comes next is told.
            Err(ReadError::Corrupt { .. }) => None,
            other => other?,
        };
    }
    if limits.class == IoClass::CatchUp {
        engine.forgot_cached(segment.evict_loaded_below(at));
    }
    let next_offset = run.offset.expect("the first batch was accepted");
    let batches = ReadBatches { slices: run.cut(start, at), bytes: (at - start) as usize, next_offset };
    Ok((batches, terms))
}

/// Batches of one leadership term in a row, as their headers say. The epoch is not under the checksum, so it is
/// compared with the log's table.
struct Term {
    epoch: Option<LeaderEpoch>,
    first: Offset,
    last: Offset,
    position: u64,
}

impl Term {
    fn of(header: &BatchHeader, position: u64) -> Self {
        Self { epoch: header.leader_epoch, first: header.base_offset, last: header.last_offset(), position }
    }

    fn check(&self, epochs: &EpochTable, path: &Path) -> Result<(), ReadError> {
        for offset in [self.first, self.last] {
            let expected = epochs.epoch_at(offset);
            if expected.is_some() && expected != self.epoch {
                return Err(ReadError::Corrupt {
                    path: path.to_owned(),
                    position: self.position,
                    offset: self.first,
                    reason: format!("leader epoch {:?}, the log has {expected:?}", self.epoch),
                });
            }
        }
        Ok(())
    }
}

/// Header and position of the batch that holds `offset`; `None` if the segment ends before it.
pub(super) async fn locate<D: Disk>(
    engine: &Engine<D>,
    segment: &Rc<Segment<D>>,
    offset: Offset,
) -> Result<Option<(BatchHeader, u64)>, ReadError> {
    segment.load_index(engine).await?;
    let place = true_place(engine, segment, offset, IoClass::ColdRead).await?;
    Run::new(engine, segment, place, IoClass::ColdRead).find(offset).await
}

/// Where a batch begins, and with which offset, if that is known.
struct Place {
    position: u64,
    offset: Option<Offset>,
}

/// The place from which a scan finds `from`. The index entry it comes from is checked against the batch that it
/// names: a wrong entry costs a new index, never a wrong answer.
async fn true_place<D: Disk>(
    engine: &Engine<D>,
    segment: &Rc<Segment<D>>,
    from: Offset,
    class: IoClass,
) -> Result<Place, ReadError> {
    let beginning = Place { position: 0, offset: Some(segment.base) };
    loop {
        let Some(entry) = segment.index().floor(from) else { return Ok(beginning) };
        let position = entry.position;
        let unknown = Place { position, offset: None };
        let header = Run::new(engine, segment, unknown, class).header(position, true).await;
        match header {
            Ok(Some(header)) if header.last_offset() == entry.offset => {
                return Ok(Place { position, offset: Some(header.base_offset) });
            }
            Err(error @ ReadError::Disk { .. }) => return Err(error),
            _ => {}
        }
        if segment.gone.get() || !segment.sealed.get() {
            return Ok(beginning);
        }
        if !segment.rebuild_index(engine).await {
            // Not the index but the segment is bad.
            let reason =
                format!("the batch of the index that ends with offset {} is not there", entry.offset);
            let place = Place { position, offset: Some(from) };
            return Err(Run::new(engine, segment, place, class).corrupt(position, reason));
        }
    }
}

/// A contiguous range of a segment, held by the reader.
struct Run<'a, D: Disk> {
    engine: &'a Engine<D>,
    segment: &'a Rc<Segment<D>>,
    pieces: Vec<Piece>,
    start: u64,
    end: u64,
    /// Offset with which the next batch must begin.
    offset: Option<Offset>,
    class: IoClass,
    /// Leave to wait for memory with some in hand.
    turn: Option<Pass>,
}

struct Piece {
    start: u64,
    bytes: DmaSlice,
    from_disk: bool,
}

impl<'a, D: Disk> Run<'a, D> {
    fn new(engine: &'a Engine<D>, segment: &'a Rc<Segment<D>>, place: Place, class: IoClass) -> Self {
        let Place { position, offset } = place;
        let pieces = Vec::new();
        Self { engine, segment, pieces, start: position, end: position, offset, class, turn: None }
    }

    /// The first batch that ends behind `from`, and its position; `None` if the segment ends before it.
    async fn find(&mut self, from: Offset) -> Result<Option<(BatchHeader, u64)>, ReadError> {
        let mut at = self.start;
        loop {
            let Some(header) = self.header(at, true).await? else { return Ok(None) };
            if header.next_offset() > from {
                return Ok(Some((header, at)));
            }
            self.offset = Some(header.next_offset());
            at += u64::from(header.size_bytes);
            self.forget_before(at);
        }
    }

    /// The header at `position`; `None` at the end of the segment, or if it is not in memory and there is none
    /// left to read it into (never if `must`).
    async fn header(&mut self, position: u64, must: bool) -> Result<Option<BatchHeader>, ReadError> {
        let segment_end = self.segment.bytes.get();
        if position >= segment_end {
            return Ok(None);
        }
        if !self.reach((position + HEADER_BYTES as u64).min(segment_end), must).await? {
            return Ok(None);
        }
        let mut bytes = [0; HEADER_BYTES];
        let mut filled = 0;
        for part in self.parts(position, position + HEADER_BYTES as u64) {
            bytes[filled..filled + part.len()].copy_from_slice(part);
            filled += part.len();
        }
        let header =
            BatchHeader::parse(&bytes[..filled]).map_err(|e| self.corrupt(position, e.to_string()))?;
        // A lost or misdirected write left another batch here, or none.
        if self.offset.is_some_and(|offset| offset != header.base_offset) {
            let reason = format!("the batch there begins at offset {}", header.base_offset);
            return Err(self.corrupt(position, reason));
        }
        let end = position + u64::from(header.size_bytes);
        if end > segment_end {
            let reason = format!("it says that it ends at byte {end}, the segment does at {segment_end}");
            return Err(self.corrupt(position, reason));
        }
        Ok(Some(header))
    }

    /// Extends the run to `end`; false if that takes memory that is not there and it is not a `must`.
    async fn reach(&mut self, end: u64, must: bool) -> Result<bool, ReadError> {
        while self.end < end {
            let (bytes, from_disk) = match self.segment.chunk_at(self.end) {
                Some((bytes, from_disk)) => {
                    let end = self.end + bytes.len() as u64;
                    if from_disk && end == self.segment.cold_end.get() {
                        read_ahead(self.engine, self.segment, end, self.class);
                    }
                    (bytes, from_disk)
                }
                None => {
                    let written = self.segment.written_bytes.get();
                    if end > written {
                        let reason = format!("bytes up to {end} are wanted, the segment ends at {written}");
                        return Err(self.corrupt(self.end, reason));
                    }
                    let may_wait = self.pieces.is_empty() || self.turn.is_some();
                    match self.load_next(must && may_wait).await? {
                        Some(bytes) => (bytes, true),
                        None if !must => return Ok(false),
                        None => {
                            self.start_over_in_turn().await;
                            continue;
                        }
                    }
                }
            };
            let start = self.end;
            self.end += bytes.len() as u64;
            self.pieces.push(Piece { start, bytes, from_disk });
        }
        Ok(true)
    }

    async fn load_next(&self, must: bool) -> Result<Option<DmaSlice>, ReadError> {
        let loaded = load(self.engine, self.segment, self.end, must, self.class).await;
        let loaded = loaded.map_err(|error| {
            let path = self.segment.path.clone();
            ReadError::Disk { path, reason: error.to_string() }
        })?;
        if loaded.is_some() {
            read_ahead(self.engine, self.segment, self.segment.cold_end.get(), self.class);
        }
        Ok(loaded)
    }

    /// Memory is short: gives back what is held, and collects it again once nobody else waits with some in hand. Many
    /// readers of large batches would otherwise hold all memory together, and each wait for more.
    async fn start_over_in_turn(&mut self) {
        self.pieces.clear();
        self.end = self.start;
        self.turn = Some(self.engine.enter_memory_turnstile().await);
    }

    fn forget_before(&mut self, position: u64) {
        self.pieces.retain(|p| p.start + p.bytes.len() as u64 > position);
        if self.pieces.is_empty() {
            self.end = self.end.max(position);
        }
        self.start = position;
    }

    /// The bytes of `[start, end)` that the run holds.
    fn parts(&self, start: u64, end: u64) -> impl Iterator<Item = &[u8]> {
        self.pieces.iter().filter_map(move |piece| {
            let range = overlap(piece, start, end);
            (!range.is_empty()).then(|| &piece.bytes[range])
        })
    }

    fn check_crc(&self, header: &BatchHeader, position: u64) -> Result<(), ReadError> {
        let end = position + u64::from(header.size_bytes);
        if !self.pieces.iter().any(|p| p.from_disk && !overlap(p, position, end).is_empty()) {
            return Ok(());
        }
        let mut crc = CrcCheck::new(header);
        for part in self.parts(position, end) {
            crc.feed(part);
        }
        crc.finish().map_err(|error| self.corrupt(position, error.to_string()))
    }

    /// Says that the batch at `position`, which should begin with the run's offset, is damaged. What came from the
    /// device is forgotten: the next reader asks it again, the range may have been repaired meanwhile.
    fn corrupt(&self, position: u64, reason: String) -> ReadError {
        for piece in self.pieces.iter().filter(|piece| piece.from_disk) {
            self.segment.evict_at(piece.start);
        }
        let offset = self.offset.unwrap_or(self.segment.base);
        ReadError::Corrupt { path: self.segment.path.clone(), position, offset, reason }
    }

    fn cut(self, start: u64, end: u64) -> Vec<DmaSlice> {
        let cut = |piece: Piece| {
            let range = overlap(&piece, start, end);
            (!range.is_empty()).then(|| piece.bytes.slice(range))
        };
        self.pieces.into_iter().filter_map(cut).collect()
    }
}

fn overlap(piece: &Piece, start: u64, end: u64) -> std::ops::Range<usize> {
    let length = piece.bytes.len() as u64;
    let from = start.saturating_sub(piece.start).min(length);
    let to = end.saturating_sub(piece.start).min(length);
    from as usize..(to as usize).max(from as usize)
}

/// Marks a position as being read from disk, until dropped.
struct Loading<D: Disk> {
    segment: Rc<Segment<D>>,
    start: u64,
}

impl<D: Disk> Drop for Loading<D> {
    fn drop(&mut self) {
        self.segment.loading.borrow_mut().retain(|start| *start != self.start);
        self.segment.loaded.notify_all();
    }
}

/// Reads the chunk that holds `position` from the device into memory; returns it from that byte on. `None` if
/// there is no memory for it and it is not a `must`.
async fn load<D: Disk>(
    engine: &Engine<D>,
    segment: &Rc<Segment<D>>,
    position: u64,
    must: bool,
    class: IoClass,
) -> io::Result<Option<DmaSlice>> {
    let start = position / BLOCK * BLOCK;
    loop {
        if let Some((bytes, _)) = segment.chunk_at(position) {
            return Ok(Some(bytes));
        }
        let loaded = segment.loading.borrow().contains(&start).then(|| segment.loaded.notified());
        match loaded {
            Some(loaded) => loaded.await,
            None => break,
        }
    }
    segment.loading.borrow_mut().push(start);
    let life = segment.life.get();
    let loading = Loading { segment: segment.clone(), start };
    let sequential = segment.cold_end.get() == start;
    let size = if sequential { engine.options().cold_read_bytes } else { SEEK_READ_BYTES };
    let buffer = match engine.try_allocate(size) {
        Some(buffer) => buffer,
        None if must => engine.allocate(size).await,
        None => return Ok(None),
    };
    let was_open = segment.open_file().is_some();
    let file = segment.file(engine).await?;
    if !was_open && segment.sealed.get() {
        engine.opened_sealed(segment);
    }
    let written = segment.written_bytes.get();
    if written <= start {
        return Err(cut_short());
    }
    let end = segment.next_chunk_start(start).unwrap_or(u64::MAX).min(written.next_multiple_of(BLOCK));
    let length = size.min((end - start) as usize);
    let (buffer, read) = file.read_at(buffer, length, start, class).await;
    let usable = read?.min((written - start) as usize);
    engine.count(|s| s.device_read_bytes += usable as u64);
    let skip = (position - start) as usize;
    if usable <= skip {
        return Err(cut_short());
    }
    let bytes = buffer.slice(0..usable);
    let is_current = !segment.gone.get() && segment.life.get() == life;
    if is_current && segment.insert_loaded(start, bytes.clone()) {
        engine.cache(segment, start);
    }
    drop(loading);
    segment.cold_end.set(start + length as u64);
    Ok(Some(bytes.slice(skip..usable)))
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the segment is shorter than its batches")
}

/// Lets the background read the next chunk of a sequential cold reader.
fn read_ahead<D: Disk>(engine: &Engine<D>, segment: &Rc<Segment<D>>, position: u64, class: IoClass) {
    if position >= segment.written_bytes.get() || segment.chunk_at(position).is_some() {
        return;
    }
    let (engine, segment) = (engine.clone(), segment.clone());
    engine.clone().queue_background(async move {
        // Whoever needs the chunk meets the error again and reports it.
        let _ = load_ahead(&engine, &segment, position, class).await;
    });
}

async fn load_ahead<D: Disk>(
    engine: &Engine<D>,
    segment: &Rc<Segment<D>>,
    position: u64,
    class: IoClass,
) -> io::Result<()> {
    if segment.gone.get() || segment.chunk_at(position).is_some() {
        return Ok(());
    }
    load(engine, segment, position, false, class).await.map(drop)
}
