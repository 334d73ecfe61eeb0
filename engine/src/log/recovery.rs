//! Opening a log: from what is on disk to a log that appends.
//!
//! Owns: what is believed without a look (all below the recovery point), what is scanned, what is cut.
//! Invariant: after opening, every byte below the log end is sound and durable, and nothing behind it can come
//! back: a cut is made durable (the file ends there, synced) before the first append.
//! Invariant: a clean checkpoint is believed only if the caller says that the stop was clean and the file ends
//! exactly where it says; a log that was poisoned before a clean stop of the others fails that test.
//! Crash story, torn tail: the last batches are half written. The scan stops at the first that is not sound;
//! zeroes behind it are space written ahead. The file is cut there.
//! Crash story, the rot that looks like a tear: a sound batch follows the bad one. Then the bad one was not the
//! last write: all from it on is saved aside, cut, and reported, and the caller must not let this replica lead
//! before it has caught up from another one.
//! Crash story, twice torn: batch X is torn, X+1 behind it is whole. The cut removes both. Had it not been made
//! durable, a new X of the same size would make the old X+1 the next batch after another crash; besides, the new
//! X carries a higher leader epoch, and a batch whose epoch falls is not believed.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::doubt;
use super::prepare::{AHEAD_BYTES_MIN, NEXT_SEGMENT_NAME, align_up};
use super::repair::repaired_segment;
use super::reset::{RESET_NAME, make_empty};
use super::scan::{STORED_BATCH_BYTES_MAX, ScanEnd, read_from, scan_file};
use super::segment::{Segment, base_offset_of, segment_path};
use super::{FlushPolicy, Log, LogEnds, LogInner, LogOptions, Mark, NextSegment, OpenError, State, Writer};
use crate::batch::{BatchHeader, CrcCheck, HeaderCheck, StoredScan, find_plausible_header};
use crate::checkpoint::{
    self, Checkpoint, DecodeError, EpochTable, LoadError, LogCheckpoint, RepairMarker, ResetMarker,
};
use crate::disk::{BLOCK_BYTES, Disk, DiskFile, IoClass, OpenMode};
use crate::engine::Engine;
use crate::types::{LogId, Offset, TimestampMs};

/// Name of the file with the recovery point and the leader epochs.
pub(super) const CHECKPOINT_NAME: &str = "log.checkpoint";

/// Scanned bytes from which on a new recovery point is worth its syncs.
const STORE_AFTER_BYTES: u64 = 1 << 20;

/// Rest of a segment behind its last batch that any number of logs may hold at a time while they are opened.
const REST_BYTES_SMALL: u64 = 1 << 20;

/// How much of a damaged tail is searched for sound batches and saved aside.
const SAVED_BYTES_MAX: u64 = 128 << 20;

/// What opening a log found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Nothing was scanned: the log had been closed.
    pub was_clean: bool,
    /// Bytes that were read because they were not known durable.
    pub scanned_bytes: u64,
    /// Sound batches among them.
    pub recovered_batches: u64,
    /// The log had not been closed, and the kernel has started again since: bytes that were written but not
    /// synced may be gone. With `flush = interval` the replica may not lead before that has been ruled out.
    pub power_loss_possible: bool,
    /// What was cut off the end.
    pub cut: Option<CutTail>,
    /// Why the replica may lack what it has acked, found now or at an earlier opening: it may not lead before
    /// [`Log::note_verified`].
    pub unverified: Option<String>,
}

/// The end of a log that was not sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutTail {
    /// The segment that was cut.
    pub path: PathBuf,
    /// Where, in bytes.
    pub position: u64,
    /// The log end offset now.
    pub offset: Offset,
    /// Bytes that were cut off, zeroes behind them not counted.
    pub bytes: u64,
    /// What is wrong with the batch there.
    pub reason: String,
    /// A sound batch stood behind it: not a torn write but damage; the replica may not lead.
    pub sound_batch_behind: bool,
    /// Where the cut bytes were saved, if a sound batch stood behind.
    pub saved_aside: Vec<PathBuf>,
}

impl<D: Disk> Engine<D> {
    /// Makes a new, empty log in `dir` (created if need be). Durable when it returns.
    pub async fn create_log(&self, dir: &Path, id: LogId, options: LogOptions) -> Result<Log<D>, OpenError> {
        let disk = self.disk();
        let parents = self.parents_to_sync(dir).await;
        disk.create_dir_all(dir).await.map_err(at(dir, "create"))?;
        let segment = Rc::new(Segment::new(dir, Offset::ZERO, Offset::ZERO, 0));
        let file =
            disk.open(&segment.path, OpenMode::CreateNew).await.map_err(at(&segment.path, "create"))?;
        segment.set_file(Some(file));
        segment.start_index(self);
        disk.sync_dir(dir).await.map_err(at(dir, "sync"))?;
        let found = Found {
            id,
            start: Offset::ZERO,
            epochs: EpochTable::default(),
            sealed: Vec::new(),
            active: segment,
            prepared_end: 0,
        };
        let log = found.into_log(self, dir, options);
        log.store_checkpoint(true).await.map_err(at(dir, "store the checkpoint of"))?;
        for parent in parents {
            disk.sync_dir(parent).await.map_err(at(parent, "sync"))?;
        }
        Ok(log)
    }

    /// The directories that hold the names by which `dir` is found and that may not be durable: its own, its parent's
    /// and its grandparent's (another log may have made both a moment ago), and above them those that are not there
    /// yet, up to one that is.
    async fn parents_to_sync<'a>(&self, dir: &'a Path) -> Vec<&'a Path> {
        let mut parents = Vec::new();
        for parent in dir.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            parents.push(parent);
            if parents.len() >= 3 && self.disk().list(parent).await.is_ok() {
                break;
            }
        }
        parents
    }

    /// Opens the log in `dir`. `was_clean`: the data directory says that the last stop was clean.
    ///
    /// Durability: all below the log end is durable, and a cut is, when it returns.
    /// Errors: see [`OpenError`]; nothing was changed but cuts already reported in the journal of the process.
    /// Cost: after a clean stop one small file; else the bytes behind the recovery point are read and checked.
    pub async fn open_log(
        &self,
        dir: &Path,
        id: LogId,
        options: LogOptions,
        was_clean: bool,
    ) -> Result<(Log<D>, RecoveryReport), OpenError> {
        let recovery = Recovery { engine: self, dir, id, flush: options.flush };
        let (found, report) = recovery.run(was_clean).await?;
        let log = found.into_log(self, dir, options);
        log.0.unverified.set(report.unverified.is_some());
        let worth_storing = report.scanned_bytes >= STORE_AFTER_BYTES || report.cut.is_some();
        if worth_storing {
            log.store_checkpoint(false).await.map_err(at(dir, "store the checkpoint of"))?;
        }
        Ok((log, report))
    }
}

/// What recovery ends with.
struct Found<D: Disk> {
    id: LogId,
    start: Offset,
    epochs: EpochTable,
    sealed: Vec<Rc<Segment<D>>>,
    active: Rc<Segment<D>>,
    prepared_end: u64,
}

impl<D: Disk> Found<D> {
    fn into_log(self, engine: &Engine<D>, dir: &Path, options: LogOptions) -> Log<D> {
        let end = self.active.end_offset.get();
        let start = self.start;
        for segment in &self.sealed {
            segment.sealed.set(true);
            // Kept closed: files open when somebody reads them.
            segment.set_file(None);
        }
        Log(Rc::new(LogInner {
            engine: engine.clone(),
            dir: dir.to_owned(),
            id: self.id,
            state: std::cell::RefCell::new(State {
                options,
                ends: LogEnds { start, durable: end, written: end, end },
                epoch: None,
                epochs: self.epochs,
                sealed: self.sealed.into(),
                writers: [Writer::at_end(self.active, self.prepared_end)].into(),
                next_segment: NextSegment::Absent,
                finishing: Default::default(),
                trimming: 0,
                syncing: false,
                sync_target: None,
                sync_wanted: false,
                unsynced_since: None,
                last_admit: TimestampMs(i64::MIN),
                ahead_bytes: AHEAD_BYTES_MIN,
                ahead_since: TimestampMs(i64::MIN),
                appended_since_checkpoint: 0,
                end_when_last_idle: end,
                checkpointing: false,
                checkpoint_queued: false,
                failure: None,
                generation: 0,
                repairing: None,
                owed_cut: None,
            }),
            turnstile: Default::default(),
            progress: Default::default(),
            appended: Default::default(),
            listener: Default::default(),
            queued: Default::default(),
            unverified: Default::default(),
        }))
    }
}

struct Recovery<'a, D: Disk> {
    engine: &'a Engine<D>,
    dir: &'a Path,
    id: LogId,
    flush: FlushPolicy,
}

impl<D: Disk> Recovery<'_, D> {
    async fn run(&self, was_clean: bool) -> Result<(Found<D>, RecoveryReport), OpenError> {
        self.finish_reset().await?;
        self.finish_repairs().await?;
        let checkpoint = self.load_checkpoint().await?;
        let bases = self.list_segments(checkpoint.as_ref()).await?;
        let boot_id = self.engine.options().boot_id;
        let unverified =
            doubt::load(self.engine.disk(), self.dir).await.map_err(at(self.dir, "look into"))?;
        let mut report = RecoveryReport { unverified, ..RecoveryReport::default() };
        let (Some(first), Some(last)) = (bases.first().copied(), bases.last().copied()) else {
            return Ok((self.without_segments(checkpoint).await?, report));
        };
        let start = checkpoint.as_ref().map_or(first, |c| c.log_start_offset).max(first);
        let mut point = checkpoint.as_ref().map_or((first, Mark { position: 0, offset: first }), |c| {
            (c.segment_base_offset, Mark { position: c.segment_position, offset: c.recovery_point })
        });
        if point.0 < first {
            // On a full disk, deletion removes files before there is room to store the new recovery point.
            tracing::warn!(dir = %self.dir.display(), "the recovery point is in a deleted segment; the whole log is read");
            point = (first, Mark { position: 0, offset: first });
        }
        if !bases.contains(&point.0) {
            let (path, gap_start, gap_end) = (self.dir.to_owned(), point.0, point.1.offset.max(first));
            return Err(OpenError::MissingSegment { path, gap_start, gap_end });
        }
        // Without a checkpoint its terms have to be found again: by reading everything.
        let mut epochs = checkpoint.as_ref().map_or_else(EpochTable::default, |c| c.epochs.clone());
        epochs.truncate_from_end(point.1.offset);
        let mut sealed = self.trusted_segments(&bases, point.0).await?;
        if was_clean && checkpoint.as_ref().is_some_and(|c| c.clean) && last == point.0 {
            let active = Segment::new(self.dir, last, point.1.offset, point.1.position);
            let file = self.open(&active).await?;
            let length = file.length().await.map_err(at(&active.path, "measure"))?;
            if length == point.1.position {
                report.was_clean = true;
                let active = Rc::new(active);
                let prepared_end = align_up(length);
                return Ok((Found { id: self.id, start, epochs, sealed, active, prepared_end }, report));
            }
        }
        report.power_loss_possible = checkpoint.is_some_and(|c| c.boot_id.is_some() && c.boot_id != boot_id);
        if report.power_loss_possible && matches!(self.flush, FlushPolicy::Interval { .. }) {
            self.doubt(&mut report, "its host has lost power or was reset, and flush = interval".to_owned())
                .await?;
        }
        let tail = bases[bases.partition_point(|base| *base < point.0)..].to_vec();
        let (scanned, prepared_end) = self.scan_tail(tail, point.1, &mut epochs, &mut report).await?;
        sealed.extend(scanned);
        let active = sealed.pop().expect("the scan ends in an active segment");
        // Damage may have taken what held the log start.
        let start = start.min(active.end_offset.get());
        epochs.truncate_from_start(start);
        Ok((Found { id: self.id, start, epochs, sealed, active, prepared_end }, report))
    }

    /// The directory of a log whose making was interrupted, or whose segments are gone.
    async fn without_segments(&self, checkpoint: Option<LogCheckpoint>) -> Result<Found<D>, OpenError> {
        if let Some(lost) = checkpoint.as_ref().filter(|c| c.recovery_point > c.log_start_offset) {
            let path = self.dir.to_owned();
            return Err(OpenError::MissingSegment {
                path,
                gap_start: lost.log_start_offset,
                gap_end: lost.recovery_point,
            });
        }
        let base = checkpoint.as_ref().map_or(Offset::ZERO, |c| c.recovery_point);
        let segment = Rc::new(Segment::new(self.dir, base, base, 0));
        let disk = self.engine.disk();
        let file =
            disk.open(&segment.path, OpenMode::CreateNew).await.map_err(at(&segment.path, "create"))?;
        segment.set_file(Some(file));
        disk.sync_dir(self.dir).await.map_err(at(self.dir, "sync"))?;
        let epochs = checkpoint.map_or_else(EpochTable::default, |c| c.epochs);
        Ok(Found { id: self.id, start: base, epochs, sealed: Vec::new(), active: segment, prepared_end: 0 })
    }

    /// Does the rest of a reset that a crash interrupted.
    async fn finish_reset(&self) -> Result<(), OpenError> {
        let path = self.dir.join(RESET_NAME);
        let marker = match checkpoint::load::<ResetMarker, D>(self.engine.disk(), &path).await {
            Ok(None) => return Ok(()),
            Ok(Some(marker)) => marker,
            Err(LoadError::Io(source)) => return Err(OpenError::Disk { operation: "read", path, source }),
            // Segments may be gone already, so without it nobody knows what the log is.
            Err(LoadError::Decode(error)) => {
                return Err(OpenError::Checkpoint { path, reason: error.to_string() });
            }
        };
        if marker.log_id != self.id {
            let (path, expected) = (self.dir.to_owned(), self.id);
            return Err(OpenError::WrongLog { path, expected, found: marker.log_id });
        }
        let made = make_empty(self.engine, self.dir, self.id, marker.offset).await;
        made.map(drop).map_err(at(self.dir, "begin anew"))
    }

    /// A repair writes whole blocks, so a crash may leave a segment longer than its batches; its marker says how long
    /// it is.
    async fn finish_repairs(&self) -> Result<(), OpenError> {
        let disk = self.engine.disk();
        for entry in disk.list(self.dir).await.map_err(at(self.dir, "list"))? {
            let Some(base) = repaired_segment(&entry.name) else { continue };
            let path = self.dir.join(&entry.name);
            if let Some(marker) = self.load::<RepairMarker>(&entry.name).await?
                && let Ok(file) = disk.open(&segment_path(self.dir, base), OpenMode::Existing).await
            {
                file.set_length(marker.segment_bytes).await.map_err(at(&path, "finish"))?;
                file.sync().await.map_err(at(&path, "sync"))?;
            }
            disk.remove_file(&path).await.map_err(at(&path, "remove"))?;
            disk.sync_dir(self.dir).await.map_err(at(self.dir, "sync"))?;
        }
        Ok(())
    }

    async fn load_checkpoint(&self) -> Result<Option<LogCheckpoint>, OpenError> {
        let checkpoint = self.load::<LogCheckpoint>(CHECKPOINT_NAME).await?;
        match checkpoint {
            Some(found) if found.log_id != self.id => {
                Err(OpenError::WrongLog { path: self.dir.to_owned(), expected: self.id, found: found.log_id })
            }
            other => Ok(other),
        }
    }

    /// A checkpoint file; `None` if it is not there or damaged, because a scan finds the same.
    async fn load<C: Checkpoint>(&self, name: &str) -> Result<Option<C>, OpenError> {
        let path = self.dir.join(name);
        match checkpoint::load::<C, D>(self.engine.disk(), &path).await {
            Ok(found) => Ok(found),
            Err(LoadError::Io(source)) => Err(OpenError::Disk { operation: "read", path, source }),
            Err(LoadError::Decode(error @ (DecodeError::Newer { .. } | DecodeError::WrongKind { .. }))) => {
                Err(OpenError::Checkpoint { path, reason: error.to_string() })
            }
            Err(LoadError::Decode(error)) => {
                tracing::warn!(path = %path.display(), %error, "the whole log is read instead");
                Ok(None)
            }
        }
    }

    /// Base offsets of the segments, ascending. Those wholly below the log start had been deleted, and came back.
    async fn list_segments(&self, checkpoint: Option<&LogCheckpoint>) -> Result<Vec<Offset>, OpenError> {
        let disk = self.engine.disk();
        let entries = disk.list(self.dir).await.map_err(at(self.dir, "list"))?;
        let mut bases: Vec<_> = entries.iter().filter_map(|entry| base_offset_of(&entry.name)).collect();
        bases.sort_unstable();
        if entries.iter().any(|entry| entry.name == NEXT_SEGMENT_NAME) {
            let path = self.dir.join(NEXT_SEGMENT_NAME);
            disk.remove_file(&path).await.map_err(at(&path, "remove"))?;
        }
        if let Some(checkpoint) = checkpoint {
            let holds_start = bases.iter().rfind(|base| **base <= checkpoint.log_start_offset).copied();
            let first = holds_start.map_or(Offset::ZERO, |base| base.min(checkpoint.segment_base_offset));
            self.remove_segments(&bases[..bases.partition_point(|base| *base < first)]).await?;
            bases.retain(|base| *base >= first);
        }
        Ok(bases)
    }

    async fn open(&self, segment: &Segment<D>) -> Result<D::File, OpenError> {
        segment.file(self.engine).await.map_err(at(&segment.path, "open"))
    }

    /// The segments below the recovery point: durable, trimmed, believed.
    async fn trusted_segments(
        &self,
        bases: &[Offset],
        point: Offset,
    ) -> Result<Vec<Rc<Segment<D>>>, OpenError> {
        let mut segments = Vec::new();
        for pair in bases.windows(2).take_while(|pair| pair[0] < point) {
            let segment = Segment::new(self.dir, pair[0], pair[1], 0);
            let file = self.open(&segment).await?;
            let length = file.length().await.map_err(at(&segment.path, "measure"))?;
            segment.bytes.set(length);
            segment.written_bytes.set(length);
            segment.set_file(None);
            segments.push(Rc::new(segment));
        }
        Ok(segments)
    }

    /// Scans the segments from the recovery point on; the last one returned is active.
    async fn scan_tail(
        &self,
        bases: Vec<Offset>,
        point: Mark,
        epochs: &mut EpochTable,
        report: &mut RecoveryReport,
    ) -> Result<(Vec<Rc<Segment<D>>>, u64), OpenError> {
        let mut segments = Vec::new();
        let mut from = point;
        for (at_index, base) in bases.iter().enumerate() {
            let segment = Rc::new(Segment::new(self.dir, *base, *base, 0));
            let file = self.open(&segment).await?;
            let length = file.length().await.map_err(at(&segment.path, "measure"))?;
            let mut check = HeaderCheck::exact(from.offset, STORED_BATCH_BYTES_MAX);
            check.epoch_min = epochs.latest().map(|latest| latest.epoch);
            let mut scan = StoredScan::new(check);
            let range = (from.position, length.max(from.position));
            let scanned = scan_file(self.engine, &file, range, IoClass::ColdRead, &mut scan, |header, _| {
                // Epochs never fall within a scan, so this cannot be refused.
                let _ = epochs.observe(header);
            });
            let end = scanned.await.map_err(at(&segment.path, "read"))?;
            let next_offset = scan.summary().next_offset;
            segment.bytes.set(end.position);
            segment.written_bytes.set(end.position);
            segment.end_offset.set(next_offset);
            report.scanned_bytes += end.position - from.position;
            report.recovered_batches += scan.summary().batches;
            segments.push(segment.clone());
            if bases.get(at_index + 1) == Some(&next_offset) {
                self.trim(&segment, &file, length).await?;
                from = Mark { position: 0, offset: next_offset };
                continue;
            }
            let behind = &bases[at_index + 1..];
            let prepared_end = self.end_log(&segment, &file, length, end, &scan, behind, report).await?;
            return Ok((segments, prepared_end));
        }
        unreachable!("the last segment has none behind it and ends the log")
    }

    /// A sealed segment that the crash caught before it was trimmed. Its indexes are made when needed.
    async fn trim(&self, segment: &Segment<D>, file: &D::File, length: u64) -> Result<(), OpenError> {
        if length != segment.bytes.get() {
            file.set_length(segment.bytes.get()).await.map_err(at(&segment.path, "trim"))?;
        }
        file.sync().await.map_err(at(&segment.path, "sync"))
    }

    /// Ends the log in `segment`: cuts what is not sound, durably. Returns up to where blocks are written.
    #[expect(clippy::too_many_arguments, reason = "the facts of one decision, each used once")]
    async fn end_log(
        &self,
        segment: &Segment<D>,
        file: &D::File,
        length: u64,
        end: ScanEnd,
        scan: &StoredScan,
        behind: &[Offset],
        report: &mut RecoveryReport,
    ) -> Result<u64, OpenError> {
        // Many logs are opened at a time; one of them holds a large rest.
        let is_large = length.saturating_sub(end.position) > REST_BYTES_SMALL;
        let _turn = if is_large { Some(self.engine.enter_recovery_turnstile().await) } else { None };
        let rest = self.read_rest(segment, file, end.position, length).await?;
        let rest_bytes = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let mut prepared_end = (length / BLOCK_BYTES as u64 * BLOCK_BYTES as u64).max(align_up(end.position));
        if rest_bytes > 0 || !behind.is_empty() || end.position > length {
            let sound_batch_behind =
                first_sound_batch(&rest, &scan.check()).is_some() || self.has_batches(behind).await?;
            let recycled = !sound_batch_behind && behind.is_empty() && has_older_life(&rest, scan);
            // A batch may end with zeroes.
            let rest = &rest[..rest_bytes.next_multiple_of(BLOCK_BYTES).min(rest.len())];
            let mut cut = CutTail {
                path: segment.path.clone(),
                position: end.position,
                offset: scan.summary().next_offset,
                bytes: rest_bytes as u64,
                reason: end.error.map_or("segments are missing behind it".to_owned(), |e| e.to_string()),
                sound_batch_behind,
                saved_aside: Vec::new(),
            };
            if sound_batch_behind {
                let reason =
                    format!("its end was damaged at offset {}, with sound batches behind", cut.offset);
                self.doubt(report, reason).await?;
                cut.saved_aside = self.save_aside(segment, end.position, rest, behind).await?;
            } else {
                self.remove_segments(behind).await?;
            }
            file.set_length(end.position).await.map_err(at(&segment.path, "cut"))?;
            prepared_end = align_up(end.position);
            // What an earlier life of a recycled file left behind the end is no loss.
            report.cut = (!recycled).then_some(cut);
        }
        file.sync().await.map_err(at(&segment.path, "sync"))?;
        self.engine.disk().sync_dir(self.dir).await.map_err(at(self.dir, "sync"))?;
        Ok(prepared_end)
    }

    /// Marks the log before anything that would hide the reason.
    async fn doubt(&self, report: &mut RecoveryReport, reason: String) -> Result<(), OpenError> {
        if report.unverified.is_none() {
            doubt::store(self.engine.disk(), self.dir, &reason).await.map_err(at(self.dir, "mark"))?;
            report.unverified = Some(reason);
        }
        Ok(())
    }

    async fn read_rest(
        &self,
        segment: &Segment<D>,
        file: &D::File,
        start: u64,
        end: u64,
    ) -> Result<Vec<u8>, OpenError> {
        let end = end.min(start + SAVED_BYTES_MAX);
        let mut rest = Vec::new();
        let mut buffer = self.engine.allocate(self.engine.options().cold_read_bytes).await;
        let mut position = start;
        while position < end {
            let range;
            (buffer, range) = read_from(file, buffer, position, end, IoClass::ColdRead)
                .await
                .map_err(at(&segment.path, "read"))?;
            if range.is_empty() {
                break;
            }
            position += range.len() as u64;
            rest.extend_from_slice(&buffer.bytes()[range]);
        }
        Ok(rest)
    }

    async fn has_batches(&self, behind: &[Offset]) -> Result<bool, OpenError> {
        for base in behind {
            let segment = Segment::<D>::new(self.dir, *base, *base, 0);
            let file = self.open(&segment).await?;
            let buffer = self.engine.allocate(BLOCK_BYTES).await;
            let (buffer, read) = file.read_at(buffer, BLOCK_BYTES, 0, IoClass::ColdRead).await;
            read.map_err(at(&segment.path, "read"))?;
            if BatchHeader::parse(buffer.bytes()).is_ok_and(|header| header.base_offset == *base) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Saves what is cut, under names that recovery does not read.
    async fn save_aside(
        &self,
        segment: &Segment<D>,
        position: u64,
        rest: &[u8],
        behind: &[Offset],
    ) -> Result<Vec<PathBuf>, OpenError> {
        let disk = self.engine.disk();
        let mut saved = Vec::new();
        if !rest.is_empty() {
            let path = segment.path.with_extension(format!("log.cut-at-{position}"));
            disk.replace_file(&path, rest.to_vec()).await.map_err(at(&path, "save what is cut in"))?;
            saved.push(path);
        }
        for base in behind {
            let from = segment_path(self.dir, *base);
            let to = from.with_extension("log.cut");
            disk.rename(&from, &to).await.map_err(at(&from, "set aside"))?;
            saved.push(to);
        }
        Ok(saved)
    }

    async fn remove_segments(&self, bases: &[Offset]) -> Result<(), OpenError> {
        for base in bases {
            let segment = Segment::<D>::new(self.dir, *base, *base, 0);
            segment.remove_files(self.engine).await.map_err(at(&segment.path, "remove"))?;
        }
        Ok(())
    }
}

/// The first whole batch in `rest`, with a good checksum, that passes `check` with gaps allowed.
fn first_sound_batch(rest: &[u8], check: &HeaderCheck) -> Option<BatchHeader> {
    let mut from = 0;
    while let Some(position) = find_plausible_header(rest, from, check) {
        let header = BatchHeader::parse(&rest[position..]).expect("a plausible header parses");
        if let Some(batch) = rest.get(position..position + header.size()) {
            let mut crc = CrcCheck::new(&header);
            crc.feed(batch);
            if crc.finish().is_ok() {
                return Some(header);
            }
        }
        from = position + 1;
    }
    None
}

/// Whether `rest` holds a batch of an earlier life of this space: sound, but of lower offsets than what comes next.
fn has_older_life(rest: &[u8], scan: &StoredScan) -> bool {
    let next_offset = scan.check().next_offset;
    let any = HeaderCheck { epoch_min: None, epoch_max: None, next_offset: Offset::ZERO, ..scan.check() };
    first_sound_batch(rest, &any).is_some_and(|header| header.base_offset < next_offset)
}

fn at(path: &Path, operation: &'static str) -> impl Fn(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Disk { operation, path: path.clone(), source }
}

/// When the first batch of a segment was appended is not stored; its age counts from its newest record, or from
/// the start of the process if that lies ahead.
pub(super) fn first_append_after_open(newest: Option<TimestampMs>, now: TimestampMs) -> TimestampMs {
    newest.map_or(now, |newest| newest.min(now))
}
