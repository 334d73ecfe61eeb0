//! One file of a log: its bounds, its handle, its indexes and the parts of it that are in memory.
//!
//! Owns: the chunks in memory (appended ones and ones read from disk look the same to readers), the lazily
//! opened file, the lazily loaded indexes.
//! Invariant: a chunk marked dirty holds bytes that the device has not taken; it is never evicted.
//! Not here: when to write (`plan.rs`, `commit.rs`), who evicts (`cache.rs`), what is visible (`read.rs`).

use std::cell::{Cell, Ref, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::errors::ReadError;
use super::scan;
use crate::batch::{BatchHeader, Continuity, HeaderCheck, StoredScan};
use crate::buffer::{DmaBuffer, DmaSlice};
use crate::disk::{Disk, IoClass, OpenMode};
use crate::engine::Engine;
use crate::index::{SegmentBounds, SegmentIndex};
use crate::notify::Notify;
use crate::types::{Offset, TimestampMs};

/// Suffix of a segment file; its name is its base offset in 20 digits, as Kafka's.
pub(crate) const SEGMENT_SUFFIX: &str = ".log";
const OFFSET_INDEX_SUFFIX: &str = ".index";
const TIME_INDEX_SUFFIX: &str = ".timeindex";

/// Largest index file read back: beyond it the file is damaged.
const INDEX_FILE_BYTES_MAX: usize = 64 << 20;

/// Bytes of a segment in memory.
pub(crate) struct Chunk {
    pub(crate) bytes: DmaSlice,
    /// Not yet written: may not be evicted.
    pub(crate) dirty: bool,
    /// Came from the device: its batches are checked on every read.
    pub(crate) from_disk: bool,
}

/// The chunk that appends go to.
pub(crate) struct OpenChunk {
    /// Position of its first byte, at a block boundary.
    pub(crate) start: u64,
    pub(crate) buffer: DmaBuffer,
}

impl OpenChunk {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.buffer.filled() as u64
    }
}

/// See the module.
pub(crate) struct Segment<D: Disk> {
    pub(crate) base: Offset,
    pub(crate) path: PathBuf,
    file: RefCell<Option<D::File>>,
    /// Exclusive end of its offsets.
    pub(crate) end_offset: Cell<Offset>,
    /// Bytes of batches in it.
    pub(crate) bytes: Cell<u64>,
    /// How much of `bytes` the device has.
    pub(crate) written_bytes: Cell<u64>,
    pub(crate) max_timestamp: Cell<Option<TimestampMs>>,
    pub(crate) first_append: Cell<Option<TimestampMs>>,
    pub(crate) index: RefCell<Option<SegmentIndex>>,
    /// It has been built again once because an entry was wrong.
    index_rebuilt: Cell<bool>,
    pub(crate) open_chunk: RefCell<Option<OpenChunk>>,
    chunks: RefCell<BTreeMap<u64, Chunk>>,
    /// Positions being read from disk, so that two readers do not read the same.
    pub(crate) loading: RefCell<Vec<u64>>,
    pub(crate) loaded: Notify,
    /// End of the last cold read: one that starts here is sequential.
    pub(crate) cold_end: Cell<u64>,
    /// Deleted or truncated away: readers start over.
    pub(crate) gone: Cell<bool>,
    /// Grows when its end is cut: what was read from the device before is not what stands there now.
    pub(crate) life: Cell<u64>,
    /// Nothing is appended any more.
    pub(crate) sealed: Cell<bool>,
    /// An admission is using the tail chunk: it stays in memory.
    pub(crate) pinned: Cell<bool>,
    /// The engine knows that its tail chunk is in memory.
    pub(crate) tail_listed: Cell<bool>,
}

impl<D: Disk> Segment<D> {
    pub(crate) fn new(dir: &Path, base: Offset, end_offset: Offset, bytes: u64) -> Self {
        Self {
            base,
            path: segment_path(dir, base),
            file: RefCell::new(None),
            end_offset: Cell::new(end_offset),
            bytes: Cell::new(bytes),
            written_bytes: Cell::new(bytes),
            max_timestamp: Cell::new(None),
            first_append: Cell::new(None),
            index: RefCell::new(None),
            index_rebuilt: Cell::new(false),
            open_chunk: RefCell::new(None),
            chunks: RefCell::default(),
            loading: RefCell::default(),
            loaded: Notify::default(),
            cold_end: Cell::new(u64::MAX),
            gone: Cell::new(false),
            life: Cell::new(0),
            sealed: Cell::new(false),
            pinned: Cell::new(false),
            tail_listed: Cell::new(false),
        }
    }

    /// The file, opened on first use.
    pub(crate) async fn file(&self, engine: &Engine<D>) -> io::Result<D::File> {
        if let Some(file) = self.file.borrow().as_ref() {
            return Ok(file.clone());
        }
        let file = engine.disk().open(&self.path, OpenMode::Existing).await?;
        Ok(self.file.borrow_mut().get_or_insert(file).clone())
    }

    /// The file, if it is open.
    pub(crate) fn open_file(&self) -> Option<D::File> {
        self.file.borrow().clone()
    }

    pub(crate) fn set_file(&self, file: Option<D::File>) {
        *self.file.borrow_mut() = file;
    }

    /// The chunk in memory that holds the byte at `position`, from that byte on, and whether it came from disk.
    pub(crate) fn chunk_at(&self, position: u64) -> Option<(DmaSlice, bool)> {
        if let Some(open) = self.open_chunk.borrow().as_ref()
            && position >= open.start
        {
            let from = (position - open.start) as usize;
            let filled = open.buffer.filled();
            return (from < filled).then(|| (open.buffer.slice(from..filled), false));
        }
        let chunks = self.chunks.borrow();
        let (start, chunk) = chunks.range(..=position).next_back()?;
        let from = (position - start) as usize;
        (from < chunk.bytes.len()).then(|| (chunk.bytes.slice(from..chunk.bytes.len()), chunk.from_disk))
    }

    /// Start of the first chunk in memory behind `position`.
    pub(crate) fn next_chunk_start(&self, position: u64) -> Option<u64> {
        let cached = self.chunks.borrow().range(position + 1..).next().map(|(start, _)| *start);
        let open = self.open_chunk.borrow().as_ref().map(|open| open.start).filter(|start| *start > position);
        cached.or(open)
    }

    pub(crate) fn insert_chunk(&self, start: u64, chunk: Chunk) {
        self.chunks.borrow_mut().insert(start, chunk);
    }

    /// Keeps bytes that were read from the device; returns whether it did. Appends may have come in while they were
    /// being read: what is in memory already is longer, and may not be on the device yet, so it stays.
    pub(crate) fn insert_loaded(&self, start: u64, bytes: DmaSlice) -> bool {
        if self.open_chunk.borrow().as_ref().is_some_and(|open| open.start <= start) {
            return false;
        }
        let mut chunks = self.chunks.borrow_mut();
        if chunks.get(&start).is_some_and(|known| known.dirty || known.bytes.len() >= bytes.len()) {
            return false;
        }
        chunks.insert(start, Chunk { bytes, dirty: false, from_disk: true });
        true
    }

    /// Marks all chunks that end at or below `written` as clean; returns the starts of those newly clean.
    pub(crate) fn clean_below(&self, written: u64) -> Vec<u64> {
        let mut cleaned = Vec::new();
        // Dirty chunks are the last ones: behind a clean one there is none.
        for (start, chunk) in self.chunks.borrow_mut().range_mut(..written).rev() {
            if !chunk.dirty {
                break;
            }
            if start + chunk.bytes.len() as u64 <= written {
                chunk.dirty = false;
                cleaned.push(*start);
            }
        }
        cleaned
    }

    /// Forgets a clean chunk; returns whether it was there.
    pub(crate) fn evict(&self, start: u64) -> bool {
        let mut chunks = self.chunks.borrow_mut();
        match chunks.get(&start) {
            Some(chunk) if !chunk.dirty => chunks.remove(&start).is_some(),
            _ => false,
        }
    }

    /// Forgets what was read from the device and ends at or below `position`; returns how many chunks that were.
    pub(crate) fn evict_loaded_below(&self, position: u64) -> usize {
        let mut chunks = self.chunks.borrow_mut();
        let before = chunks.len();
        chunks.retain(|start, chunk| !chunk.from_disk || start + chunk.bytes.len() as u64 > position);
        before - chunks.len()
    }

    /// Whether a chunk that begins at `start` is in memory.
    pub(crate) fn has_chunk(&self, start: u64) -> bool {
        self.chunks.borrow().contains_key(&start)
    }

    /// Forgets the clean chunk that holds `position`.
    pub(crate) fn evict_at(&self, position: u64) {
        let start = self.chunks.borrow().range(..=position).next_back().map(|(start, _)| *start);
        if let Some(start) = start {
            self.evict(start);
        }
    }

    /// Forgets all that is in memory.
    pub(crate) fn drop_chunks(&self) {
        self.chunks.borrow_mut().clear();
        *self.open_chunk.borrow_mut() = None;
    }

    /// Drops the tail chunk of an idle log whose bytes the device has; the next append reads its block again.
    pub(crate) fn release_tail(&self) -> bool {
        if self.pinned.get() || self.written_bytes.get() < self.bytes.get() {
            return false;
        }
        self.open_chunk.borrow_mut().take().is_some()
    }

    /// The loaded index.
    ///
    /// # Panics
    /// If it is not loaded: the caller awaited [`Segment::load_index`] before.
    pub(crate) fn index(&self) -> Ref<'_, SegmentIndex> {
        Ref::map(self.index.borrow(), |i| i.as_ref().expect("the index is loaded before use"))
    }

    /// Begins the index of a new segment.
    pub(crate) fn start_index(&self, engine: &Engine<D>) {
        *self.index.borrow_mut() = Some(SegmentIndex::new(self.base, engine.options().index_interval_bytes));
    }

    /// Takes note of a batch appended at `position`; its header carries its offsets.
    pub(crate) fn note_batch(&self, header: &BatchHeader, position: u64) {
        let mut index = self.index.borrow_mut();
        index.as_mut().expect("the index of an active segment is loaded").append(header, position);
        self.end_offset.set(header.next_offset());
        self.bytes.set(position + u64::from(header.size_bytes));
        self.max_timestamp.set(self.max_timestamp.get().max(Some(header.max_timestamp)));
    }

    /// Loads the index from its files, or builds it from the segment if they are lost or damaged.
    pub(crate) async fn load_index(&self, engine: &Engine<D>) -> Result<(), ReadError> {
        if self.index.borrow().is_some() {
            return Ok(());
        }
        loop {
            let life = self.life.get();
            let loaded = match self.read_index_files(engine).await {
                Some(index) => Ok(index),
                None => {
                    if self.bytes.get() > 0 {
                        tracing::info!(segment = %self.path.display(), "index lost or damaged, building it again");
                    }
                    let empty = SegmentIndex::new(self.base, engine.options().index_interval_bytes);
                    self.feed_index(engine, empty, 0, |_| {}).await
                }
            };
            if self.life.get() != life {
                // It was cut meanwhile: what was read may speak of what is gone.
                continue;
            }
            let mut index = self.index.borrow_mut();
            let index = index.get_or_insert(loaded?);
            self.max_timestamp.set(self.max_timestamp.get().max(index.max_timestamp()));
            return Ok(());
        }
    }

    async fn read_index_files(&self, engine: &Engine<D>) -> Option<SegmentIndex> {
        let disk = engine.disk();
        let offsets =
            disk.read_file(&self.index_path(OFFSET_INDEX_SUFFIX), INDEX_FILE_BYTES_MAX).await.ok()?;
        let times = disk.read_file(&self.index_path(TIME_INDEX_SUFFIX), INDEX_FILE_BYTES_MAX).await.ok()?;
        let bounds = SegmentBounds {
            base_offset: self.base,
            end_offset: self.end_offset.get(),
            length_bytes: self.bytes.get(),
        };
        let interval = engine.options().index_interval_bytes;
        let mut index = SegmentIndex::decode(&offsets, &times, bounds, interval).ok()?;
        if !self.knows_its_latest_time(engine, &index).await {
            return None;
        }
        if !self.sealed.get() {
            index.truncate(bounds.end_offset);
        }
        // The files of a segment that a crash caught before it was trimmed stop short, and nothing in them says so.
        let last = index.offsets().last();
        let resume_position = index.resume_position();
        let mut first_end = None;
        let fed = self.feed_index(engine, index, resume_position, |header| {
            first_end.get_or_insert(header.last_offset());
        });
        let index = fed.await.ok()?;
        (last.is_none() || first_end == last.map(|entry| entry.offset)).then_some(index)
    }

    /// Whether the last entry of a time index is true: by it a whole segment is skipped, or deleted by its age.
    /// Other entries are checked when they are used.
    async fn knows_its_latest_time(&self, engine: &Engine<D>, index: &SegmentIndex) -> bool {
        let Some(latest) = index.times().last() else { return true };
        let start = index.position_of(latest.offset);
        let end = index.offsets().iter().map(|entry| entry.position).find(|position| *position > start);
        let end = end.unwrap_or(self.written_bytes.get());
        let Ok(file) = self.file(engine).await else { return false };
        let mut scan = self.scan();
        let mut found = false;
        let scanned =
            scan::scan_file(engine, &file, (start, end), IoClass::ColdRead, &mut scan, |header, _| {
                found |= header.last_offset() == latest.offset && header.max_timestamp == latest.timestamp;
            });
        scanned.await.is_ok() && found
    }

    /// Builds the index again because an entry turned out to be wrong; once, and only of a sealed segment (the
    /// index of the active one goes on meanwhile). Returns whether there is a new one.
    pub(crate) async fn rebuild_index(&self, engine: &Engine<D>) -> bool {
        if !self.sealed.get() || self.index_rebuilt.replace(true) {
            return false;
        }
        tracing::warn!(segment = %self.path.display(), "the index is wrong, building it again");
        let empty = SegmentIndex::new(self.base, engine.options().index_interval_bytes);
        let life = self.life.get();
        match self.feed_index(engine, empty, 0, |_| {}).await {
            Ok(index) if self.life.get() == life => {
                self.max_timestamp.set(index.max_timestamp());
                *self.index.borrow_mut() = Some(index);
                true
            }
            _ => false,
        }
    }

    /// Its bytes were mended: what is in memory of `[start, end)` is read again, and so is what is being read now.
    pub(crate) fn mended(&self, start: u64, end: u64) {
        self.life.set(self.life.get() + 1);
        self.index_rebuilt.set(false);
        self.chunks.borrow_mut().retain(|at, chunk| {
            let overlaps = *at < end && at + chunk.bytes.len() as u64 > start;
            !chunk.from_disk || !overlaps
        });
    }

    fn scan(&self) -> StoredScan {
        let mut check = HeaderCheck::exact(self.base, scan::STORED_BATCH_BYTES_MAX);
        check.continuity = Continuity::GapsAllowed;
        StoredScan::new(check)
    }

    /// Feeds the batches from `start` to the end of the segment to an index.
    ///
    /// Errors: a batch on the way is damaged; nothing stands at its position that could be served.
    async fn feed_index(
        &self,
        engine: &Engine<D>,
        mut index: SegmentIndex,
        start: u64,
        mut each: impl FnMut(&BatchHeader),
    ) -> Result<SegmentIndex, ReadError> {
        let bytes = self.written_bytes.get();
        if start >= bytes {
            return Ok(index);
        }
        let disk_error =
            |error: io::Error| ReadError::Disk { path: self.path.clone(), reason: error.to_string() };
        let file = self.file(engine).await.map_err(disk_error)?;
        let mut scan = self.scan();
        let end =
            scan::scan_file(engine, &file, (start, bytes), IoClass::ColdRead, &mut scan, |header, at| {
                each(header);
                index.append(header, at);
            });
        let end = end.await.map_err(disk_error)?;
        match end.error {
            None => Ok(index),
            Some(error) => Err(ReadError::Corrupt {
                path: self.path.clone(),
                position: end.position,
                offset: scan.summary().next_offset,
                reason: error.to_string(),
            }),
        }
    }

    /// Writes both index files, for what lies below `end`. Cost: two small files, each synced.
    pub(crate) async fn store_index(&self, engine: &Engine<D>, end: Offset) -> io::Result<()> {
        let Some(mut index) = self.index.borrow().clone() else { return Ok(()) };
        if self.sealed.get() && end == self.end_offset.get() {
            index.seal();
        } else {
            index.truncate(end);
        }
        let (offsets, times) = (index.offsets().encode(), index.times().encode());
        engine.disk().replace_file(&self.index_path(OFFSET_INDEX_SUFFIX), offsets).await?;
        engine.disk().replace_file(&self.index_path(TIME_INDEX_SUFFIX), times).await
    }

    /// Removes the segment and its indexes. A file that is not there is not an error.
    pub(crate) async fn remove_files(&self, engine: &Engine<D>) -> io::Result<()> {
        self.gone.set(true);
        self.set_file(None);
        self.drop_chunks();
        self.remove_index_files(engine).await?;
        self.remove(engine, &self.path).await
    }

    /// Removes the index files: what they say is about to be wrong.
    pub(crate) async fn remove_index_files(&self, engine: &Engine<D>) -> io::Result<()> {
        self.remove(engine, &self.index_path(OFFSET_INDEX_SUFFIX)).await?;
        self.remove(engine, &self.index_path(TIME_INDEX_SUFFIX)).await
    }

    async fn remove(&self, engine: &Engine<D>, path: &Path) -> io::Result<()> {
        match engine.disk().remove_file(path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn index_path(&self, suffix: &str) -> PathBuf {
        self.path.with_extension(&suffix[1..])
    }
}

/// Path of the segment with this base offset.
pub(crate) fn segment_path(dir: &Path, base: Offset) -> PathBuf {
    dir.join(format!("{:020}{SEGMENT_SUFFIX}", base.0))
}

/// Whether a file of this name is a segment, one of its indexes, or the marker of its repair.
pub(crate) fn is_segment_file(name: &str) -> bool {
    let suffixes = [SEGMENT_SUFFIX, OFFSET_INDEX_SUFFIX, TIME_INDEX_SUFFIX, ".repair"];
    suffixes.iter().filter_map(|suffix| name.strip_suffix(suffix)).any(|name| base_offset_in(name).is_some())
}

/// Base offset in a segment's file name, or `None` if it is another file.
pub(crate) fn base_offset_of(name: &str) -> Option<Offset> {
    base_offset_in(name.strip_suffix(SEGMENT_SUFFIX)?)
}

/// Base offset in the 20 digits of a name.
pub(crate) fn base_offset_in(digits: &str) -> Option<Offset> {
    let is_base = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_base.then(|| digits.parse().ok().map(Offset)).flatten()
}
