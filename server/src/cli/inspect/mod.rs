//! `corelog inspect`: looks at segment files, logs and data directories without a server.
//!
//! Owns: finding the files, checking them against each other, printing what was found. Reads only, except for the
//! file that `--export` names. A running node is not disturbed; what it appends meanwhile may look torn.

mod records;
mod scan;

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use corelog_engine::Offset;
use corelog_engine::batch::BatchHeader;
use corelog_engine::checkpoint::{self, DecodeError, LogCheckpoint};
use corelog_engine::index::{OffsetIndex, SegmentBounds, TimeIndex};
use serde_json::{Value, json};

use self::scan::{Expected, SegmentScan, Tail, scan_segment};
use super::output::{Output, Progress, bytes_text, count_text};
use super::{CliError, CliResult, Exit};
use crate::control::data_dir::{self, TOPICS_DIR};

/// Largest index or checkpoint file that is read; a segment of 4 GiB has an index of some MB.
const SIDE_FILE_BYTES_MAX: u64 = 256 << 20;

/// `corelog inspect ...`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  corelog inspect /var/lib/corelog                                  every log, every checksum
  corelog inspect /var/lib/corelog/topics/orders-1f2e3d4c/0         one log
  corelog inspect 00000000000000000000.log --batches                one segment, batch by batch
  corelog inspect 00000000000000000000.log --records | head
  corelog inspect 00000000000000000000.log --export trimmed.log     for Kafka's dump tool

Exit code 6 if there is damage; a torn end of an active segment is none (it was never acked as durable).")]
pub struct InspectArgs {
    /// A segment file, a log directory, or a data directory.
    path: PathBuf,
    /// List every batch.
    #[arg(long)]
    batches: bool,
    /// Print every record as a JSON line.
    #[arg(long, conflicts_with = "batches")]
    records: bool,
    /// Copy the sound bytes of one segment file, without what was written ahead, to this file (which must not exist).
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// Print JSON.
    #[arg(long, conflicts_with_all = ["batches", "records"])]
    json: bool,
    /// Only damage and the summary.
    #[arg(long, short)]
    quiet: bool,
}

/// Runs the inspection.
pub fn run(args: InspectArgs) -> CliResult {
    let kind = what_is(&args.path)?;
    if args.export.is_some() && !matches!(kind, Kind::Segment(_)) {
        return Err(CliError::usage("--export copies one segment file: name one, not a directory"));
    }
    let data_dir = match &kind {
        Kind::Segment(_) => args.path.parent().and_then(data_dir_of),
        Kind::Log => data_dir_of(&args.path),
        Kind::Data => Some(args.path.clone()),
    };
    if let Some(dir) = &data_dir {
        data_dir::refuse_newer(dir).map_err(CliError::usage)?;
    }
    let mut inspection = Inspection {
        may_be_closed: data_dir.is_none_or(|dir| data_dir::is_clean(&dir)),
        out: Output::stdout(),
        progress: Progress::new(!args.quiet && !args.records && !args.batches),
        logs: Vec::new(),
        total: Total::default(),
        args,
    };
    match kind {
        Kind::Segment(base) => {
            let path = inspection.args.path.clone();
            let dir = path.parent().unwrap_or(Path::new(".")).to_owned();
            inspection.log(&dir, &[(base, path)], None)?;
        }
        Kind::Log => {
            let dir = inspection.args.path.clone();
            inspection.log_directory(&dir)?;
        }
        Kind::Data => {
            let topics = inspection.args.path.join(TOPICS_DIR);
            for topic in directories(&topics)? {
                for log in directories(&topic)? {
                    inspection.log_directory(&log)?;
                }
            }
        }
    }
    inspection.finish()
}

enum Kind {
    Segment(Offset),
    Log,
    Data,
}

fn what_is(path: &Path) -> CliResult<Kind> {
    let metadata = fs::metadata(path).map_err(|error| read_error(path, &error))?;
    if metadata.is_file() {
        let base = path.file_name().and_then(|name| name.to_str()).and_then(base_offset_of);
        return base.map(Kind::Segment).ok_or_else(|| {
            CliError::usage(format!("{} is no segment file", path.display()))
                .advise("segment files are named by 20 digits and .log; rename a copy to its base offset")
        });
    }
    if path.join(TOPICS_DIR).is_dir() || path.join("corelog.json").exists() {
        return Ok(Kind::Data);
    }
    if !segments_of(path)?.is_empty() || path.join("log.checkpoint").exists() {
        return Ok(Kind::Log);
    }
    Err(CliError::usage(format!("{} holds neither segments nor topics", path.display()))
        .advise("name a data directory (with corelog.json), a log directory, or a .log file"))
}

/// The data directory that a log directory lies in; none for a copy of a log elsewhere.
fn data_dir_of(log: &Path) -> Option<PathBuf> {
    let log = log.canonicalize().ok()?;
    let topics = log.ancestors().nth(2).filter(|dir| dir.ends_with(TOPICS_DIR))?;
    topics.parent().map(Path::to_owned)
}

/// Whether a checkpoint and the last segment agree that the log was closed, as recovery asks before it skips its
/// scan. The checkpoint alone may be that of an earlier stop: a node that runs again writes behind it.
fn is_closed(checkpoint: &LogCheckpoint, segments: &[(Offset, PathBuf)]) -> CliResult<bool> {
    let Some((base, path)) = segments.last() else { return Ok(false) };
    let file_bytes = fs::metadata(path).map_err(|error| read_error(path, &error))?.len();
    let ends_there = *base == checkpoint.segment_base_offset && file_bytes == checkpoint.segment_position;
    Ok(checkpoint.clean && ends_there)
}

fn read_error(path: &Path, error: &io::Error) -> CliError {
    let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::Failure };
    CliError::new(exit, format!("cannot read {}: {error}", path.display()))
}

fn base_offset_of(name: &str) -> Option<Offset> {
    let digits = name.strip_suffix(".log")?;
    let plain = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain { digits.parse().ok().map(Offset) } else { None }
}

/// The directories in `path`, sorted, numbers by value.
fn directories(path: &Path) -> CliResult<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries.map_err(|error| read_error(path, &error))?,
    };
    for entry in entries {
        let entry = entry.map_err(|error| read_error(path, &error))?.path();
        if entry.is_dir() {
            found.push(entry);
        }
    }
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u64>().ok();
    found.sort_by(|a, b| (number(a), a).cmp(&(number(b), b)));
    Ok(found)
}

/// The segments of a log directory, in order.
fn segments_of(dir: &Path) -> CliResult<Vec<(Offset, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| read_error(dir, &error))? {
        let path = entry.map_err(|error| read_error(dir, &error))?.path();
        if let Some(base) = path.file_name().and_then(|name| name.to_str()).and_then(base_offset_of) {
            found.push((base, path));
        }
    }
    found.sort();
    Ok(found)
}

#[derive(Debug, Default)]
struct Total {
    logs: u64,
    segments: u64,
    batches: u64,
    records: u64,
    bytes: u64,
    damages: u64,
}

struct Inspection {
    args: InspectArgs,
    /// The data directory has its clean marker, or is not known.
    may_be_closed: bool,
    out: Output,
    progress: Progress,
    logs: Vec<Value>,
    total: Total,
}

impl Inspection {
    fn log_directory(&mut self, dir: &Path) -> CliResult {
        let segments = segments_of(dir)?;
        let checkpoint = self.checkpoint(dir)?;
        self.log(dir, &segments, checkpoint.as_ref())
    }

    /// The checkpoint of a log; a damaged one is told (recovery reads the whole log instead).
    fn checkpoint(&mut self, dir: &Path) -> CliResult<Option<LogCheckpoint>> {
        let mut found = None;
        if let Some(bytes) = read_side_file(&dir.join("log.checkpoint"))? {
            match checkpoint::decode::<LogCheckpoint>(&bytes) {
                Ok(checkpoint) => found = Some(checkpoint),
                Err(error @ DecodeError::Newer { .. }) => {
                    let path = dir.join("log.checkpoint");
                    return Err(CliError::usage(format!("{}: {error}", path.display()))
                        .advise("run the newer version that wrote it"));
                }
                Err(error) => self.note(&format!("{}: {error}", dir.join("log.checkpoint").display()))?,
            }
        }
        Ok(found)
    }

    /// Something that repairs itself at the next start.
    fn note(&mut self, text: &str) -> CliResult {
        if self.args.json || self.args.records {
            eprintln!("corelog: {text} (made anew when the log is opened)");
            return Ok(());
        }
        self.out.line(format!("  note: {text} (made anew when the log is opened)"))
    }

    fn log(
        &mut self,
        dir: &Path,
        segments: &[(Offset, PathBuf)],
        checkpoint: Option<&LogCheckpoint>,
    ) -> CliResult {
        self.total.logs += 1;
        let text = !self.args.json && !self.args.records;
        let closed = match checkpoint {
            Some(checkpoint) => self.may_be_closed && is_closed(checkpoint, segments)?,
            None => false,
        };
        if text && !self.args.quiet {
            self.out.line(dir.display().to_string())?;
            if let Some(c) = checkpoint {
                let state = if closed { "closed" } else { "not closed" };
                self.out.line(format!(
                    "  log {}  {state}  starts at {}  recovery point {}",
                    c.log_id, c.log_start_offset, c.recovery_point
                ))?;
            }
        }
        let mut rows = Vec::new();
        let mut epoch = None;
        for (index, (base, path)) in segments.iter().enumerate() {
            let next_base = segments.get(index + 1).map(|(base, _)| *base);
            let expected = Expected {
                base_offset: *base,
                epoch_min: epoch,
                is_last: next_base.is_none(),
                durable_end: checkpoint.map_or(Offset::ZERO, |c| c.recovery_point),
            };
            let scan = self.segment(path, expected)?;
            epoch = scan.epoch;
            let gap = next_base.filter(|next| *next != scan.next_offset);
            self.add(&scan, gap.is_some());
            if text {
                self.print_segment(path, &scan, gap)?;
                self.indexes(path, &scan)?;
            } else if self.args.json {
                rows.push(segment_json(path, &scan, gap));
            } else {
                report_damage(path, &scan, gap);
            }
        }
        if self.args.json {
            let checkpoint = checkpoint.map(|c| {
                json!({
                    "log_id": c.log_id.to_string(), "clean": c.clean,
                    "log_start_offset": c.log_start_offset.0, "recovery_point": c.recovery_point.0,
                })
            });
            let dir = dir.display().to_string();
            self.logs.push(json!({
                "path": dir, "closed": closed, "checkpoint": checkpoint, "segments": rows,
            }));
        }
        Ok(())
    }

    fn segment(&mut self, path: &Path, expected: Expected) -> CliResult<SegmentScan> {
        let mut seen: Vec<(BatchHeader, u64)> = Vec::new();
        let listed = self.args.batches || self.args.records;
        let total = &self.total;
        let progress = &mut self.progress;
        let scan = scan_segment(path, expected, |header, position| {
            if listed {
                seen.push((*header, position));
            }
            progress.tick(|| format!("{} checked, {}", bytes_text(total.bytes + position), path.display()));
        });
        let scan = scan.map_err(|error| read_error(path, &error))?;
        self.progress.clear();
        if self.args.batches {
            self.list_batches(&seen)?;
        }
        if self.args.records {
            let unread = records::print(path, &seen, &mut self.out)?;
            self.total.damages += unread;
        }
        if let Some(target) = &self.args.export {
            export(path, target, scan.exportable_bytes)?;
        }
        Ok(scan)
    }

    fn list_batches(&mut self, batches: &[(BatchHeader, u64)]) -> CliResult {
        let rows: Vec<Vec<String>> = batches
            .iter()
            .map(|(header, position)| {
                let codec = header.attributes.compression().map_or("unknown", |codec| codec.name());
                vec![
                    position.to_string(),
                    header.base_offset.to_string(),
                    header.last_offset().to_string(),
                    header.record_count.to_string(),
                    header.size_bytes.to_string(),
                    header.leader_epoch.map_or_else(|| "-".to_owned(), |epoch| epoch.to_string()),
                    codec.to_owned(),
                    header.max_timestamp.0.to_string(),
                ]
            })
            .collect();
        let heads = ["POSITION", "FIRST", "LAST", "RECORDS", "BYTES", "EPOCH", "CODEC", "NEWEST MS"];
        self.out.table(&heads, &rows)
    }

    fn add(&mut self, scan: &SegmentScan, gap: bool) {
        self.total.segments += 1;
        self.total.batches += scan.batches;
        self.total.records += scan.records;
        self.total.bytes += scan.file_bytes;
        self.total.damages += scan.damages.len() as u64 + u64::from(gap);
    }

    fn print_segment(&mut self, path: &Path, scan: &SegmentScan, gap: Option<Offset>) -> CliResult {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !self.args.quiet {
            let state = if scan.damages.is_empty() && gap.is_none() { "sound" } else { "DAMAGED" };
            self.out.line(format!(
                "  {name}  [{}, {})  {} records  {} batches  {}  {state}{}",
                scan.base_offset,
                scan.next_offset,
                count_text(scan.records),
                count_text(scan.batches),
                bytes_text(scan.sound_end),
                tail_text(&scan.tail)
            ))?;
        }
        for line in damage_lines(path, scan, gap) {
            self.out.line(line)?;
        }
        Ok(())
    }

    /// Checks the index files beside a segment.
    fn indexes(&mut self, path: &Path, scan: &SegmentScan) -> CliResult {
        let bounds = SegmentBounds {
            base_offset: scan.base_offset,
            end_offset: scan.next_offset,
            length_bytes: scan.sound_end,
        };
        let offsets = path.with_extension("index");
        if let Some(bytes) = read_side_file(&offsets)?
            && let Err(error) = OffsetIndex::decode(&bytes, bounds)
        {
            self.note(&format!("{}: {error}", offsets.display()))?;
        }
        let times = path.with_extension("timeindex");
        if let Some(bytes) = read_side_file(&times)?
            && let Err(error) = TimeIndex::decode(&bytes, bounds)
        {
            self.note(&format!("{}: {error}", times.display()))?;
        }
        Ok(())
    }

    fn finish(mut self) -> CliResult {
        let total = &self.total;
        if self.args.json {
            self.out.json(&json!({
                "logs": self.logs,
                "total": {
                    "logs": total.logs, "segments": total.segments, "batches": total.batches,
                    "records": total.records, "bytes": total.bytes, "damages": total.damages,
                },
            }))?;
        } else {
            let summary = format!(
                "{} logs, {} segments, {} records in {} batches, {} read: {}",
                count_text(total.logs),
                count_text(total.segments),
                count_text(total.records),
                count_text(total.batches),
                bytes_text(total.bytes),
                if total.damages == 0 {
                    "all sound".to_owned()
                } else {
                    format!("{} DAMAGES", total.damages)
                }
            );
            if self.args.records { eprintln!("{summary}") } else { self.out.line(summary)? }
        }
        self.out.flush()?;
        if self.total.damages == 0 {
            return Ok(());
        }
        let error = CliError::new(Exit::Damaged, format!("{} damages found", self.total.damages));
        Err(error.advise(
            "keep a copy of the files; what lies behind the damage can still be read from its offset on",
        ))
    }
}

fn tail_text(tail: &Tail) -> String {
    match tail {
        Tail::None => String::new(),
        Tail::Zeroes { bytes } => format!("  + {} written ahead", bytes_text(*bytes)),
        Tail::Recycled { bytes } => {
            format!("  + {} of an older segment, to be written over", bytes_text(*bytes))
        }
        Tail::Torn { bytes, reason } => {
            format!("  + {} torn, cut when the log is opened ({reason})", bytes_text(*bytes))
        }
    }
}

/// One line for each damage: file, position, offset, what is wrong, what is lost.
fn damage_lines(path: &Path, scan: &SegmentScan, gap: Option<Offset>) -> Vec<String> {
    let path = path.display();
    let mut lines: Vec<String> = scan
        .damages
        .iter()
        .map(|damage| {
            let lost = match damage.resumes {
                Some((position, offset)) => format!(
                    "; sound again at byte {position}, offset {offset}: {} offsets lost",
                    offset.records_since(damage.offset)
                ),
                None => "; nothing sound behind it".to_owned(),
            };
            format!(
                "DAMAGE {path} byte {} offset {}: {}{lost}",
                damage.position, damage.offset, damage.reason
            )
        })
        .collect();
    if let Some(next) = gap {
        lines.push(format!(
            "DAMAGE {path} byte {} offset {}: the next segment begins at offset {next}",
            scan.sound_end, scan.next_offset
        ));
    }
    lines
}

fn report_damage(path: &Path, scan: &SegmentScan, gap: Option<Offset>) {
    for line in damage_lines(path, scan, gap) {
        eprintln!("{line}");
    }
}

fn segment_json(path: &Path, scan: &SegmentScan, gap: Option<Offset>) -> Value {
    let damages: Vec<Value> = scan
        .damages
        .iter()
        .map(|d| {
            json!({
                "position": d.position, "offset": d.offset.0, "reason": d.reason,
                "resumes_position": d.resumes.map(|r| r.0), "resumes_offset": d.resumes.map(|r| r.1.0),
            })
        })
        .collect();
    let (tail, tail_bytes) = match &scan.tail {
        Tail::None => ("none", 0),
        Tail::Zeroes { bytes } => ("written_ahead", *bytes),
        Tail::Recycled { bytes } => ("recycled", *bytes),
        Tail::Torn { bytes, .. } => ("torn", *bytes),
    };
    json!({
        "path": path.display().to_string(),
        "base_offset": scan.base_offset.0,
        "next_offset": scan.next_offset.0,
        "records": scan.records,
        "batches": scan.batches,
        "file_bytes": scan.file_bytes,
        "sound_bytes": scan.sound_end,
        "oldest_ms": scan.timestamps.map(|t| t.0.0),
        "newest_ms": scan.timestamps.map(|t| t.1.0),
        "leader_epoch": scan.epoch.map(|epoch| epoch.0),
        "tail": tail,
        "tail_bytes": tail_bytes,
        "damages": damages,
        "next_segment_mismatch": gap.map(|offset| offset.0),
    })
}

/// A small file; `None` if it is not there.
fn read_side_file(path: &Path) -> CliResult<Option<Vec<u8>>> {
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(|error| read_error(path, &error))?,
    };
    let mut bytes = Vec::new();
    file.take(SIDE_FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| read_error(path, &error))?;
    Ok(Some(bytes))
}

/// Copies the first `bytes` of a segment to a new file.
fn export(path: &Path, target: &Path, bytes: u64) -> CliResult {
    let source = fs::File::open(path).map_err(|error| read_error(path, &error))?;
    let target_error = |error: io::Error| {
        let exit = if error.kind() == io::ErrorKind::AlreadyExists { Exit::Usage } else { Exit::Failure };
        CliError::new(exit, format!("cannot write {}: {error}", target.display()))
    };
    let mut copy = fs::File::create_new(target).map_err(target_error)?;
    io::copy(&mut source.take(bytes), &mut copy).map_err(target_error)?;
    copy.flush().map_err(target_error)?;
    eprintln!("{} copied to {}", bytes_text(bytes), target.display());
    Ok(())
}
