//! Reads one segment file without an engine: what is sound, what is damaged, what its end holds.
//!
//! Owns: the verdict on every byte of a file. Sound batches are those that recovery would accept: continuous
//! offsets, epochs that never fall, good checksums. Behind damage the scan goes on at the next sound batch of the
//! same log, so that all damage is told at once.
//! Not here: printing, and the files beside the segment (`super`).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use corelog_engine::batch::{
    BatchHeader, CrcCheck, HeaderCheck, StoredScan, TailState, find_plausible_header,
};
use corelog_engine::{LeaderEpoch, Offset, TimestampMs};

/// What is read at a time.
const READ_BYTES: usize = 1 << 20;
/// No batch is larger, so a header that says more is not one. 128 MiB: as the engine's recovery has it.
const BATCH_BYTES_MAX: usize = 128 << 20;
/// How far behind damage the next sound batch is looked for.
const SEARCH_BYTES_MAX: u64 = 256 << 20;
/// Damages listed of one file; a file with more is rotten as a whole.
const DAMAGES_MAX: usize = 100;

/// A place that is not sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Damage {
    /// Byte in the file.
    pub position: u64,
    /// The offset that the batch there should begin with.
    pub offset: Offset,
    /// What is wrong.
    pub reason: String,
    /// Where sound batches go on: byte and offset; `None` if nowhere.
    pub resumes: Option<(u64, Offset)>,
}

/// What stands behind the last sound batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Nothing: the file ends there.
    None,
    /// Zeroes: space written ahead.
    Zeroes {
        /// How many bytes.
        bytes: u64,
    },
    /// Batches of lower offsets: space of an older segment, to be written over.
    Recycled {
        /// How many bytes.
        bytes: u64,
    },
    /// Something that is no sound batch, with none behind it: a torn write, cut off when the log is opened.
    Torn {
        /// How many bytes until only zeroes follow.
        bytes: u64,
        /// What is wrong with it.
        reason: String,
    },
}

/// What a scan found.
#[derive(Clone, Debug)]
pub(super) struct SegmentScan {
    /// Its name.
    pub base_offset: Offset,
    /// Length of the file.
    pub file_bytes: u64,
    /// End of the last sound batch, in bytes.
    pub sound_end: u64,
    /// End of the sound batches before the first damage, in bytes.
    pub exportable_bytes: u64,
    /// Offset behind the last sound batch.
    pub next_offset: Offset,
    /// Sound batches and records.
    pub batches: u64,
    /// Records in them.
    pub records: u64,
    /// Earliest and latest timestamp.
    pub timestamps: Option<(TimestampMs, TimestampMs)>,
    /// Last epoch.
    pub epoch: Option<LeaderEpoch>,
    /// What is not sound.
    pub damages: Vec<Damage>,
    /// What stands at the end.
    pub tail: Tail,
}

/// What is known of a segment before it is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    /// Offset of its first batch: its name.
    pub base_offset: Offset,
    /// Epoch of the last batch of the segment before.
    pub epoch_min: Option<LeaderEpoch>,
    /// Whether it is the last segment of its log: only there a torn end is no damage.
    pub is_last: bool,
    /// The log was durable up to here: of the last segment, nothing below may be torn.
    pub durable_end: Offset,
}

/// Scans a file; `each` gets every sound batch: header and position.
pub(super) fn scan_segment(
    path: &Path,
    expected: Expected,
    each: impl FnMut(&BatchHeader, u64),
) -> io::Result<SegmentScan> {
    let mut scan = scan_batches(path, expected, each)?;
    if expected.is_last && scan.next_offset < expected.durable_end {
        // Also the one end that looks like none: a file cut, or zeroed, behind a whole batch.
        let mut reason =
            format!("the log ends here, but it was durable up to offset {}", expected.durable_end);
        if let Tail::Torn { reason: torn, .. } = &scan.tail {
            reason = format!("{reason}: {torn}");
        }
        let (position, offset) = (scan.sound_end, scan.next_offset);
        if scan.damages.last().is_none_or(|damage| damage.position != position) {
            scan.damages.push(Damage { position, offset, reason, resumes: None });
        }
    }
    Ok(scan)
}

fn scan_batches(
    path: &Path,
    expected: Expected,
    mut each: impl FnMut(&BatchHeader, u64),
) -> io::Result<SegmentScan> {
    let Expected { base_offset, epoch_min, is_last: may_tear, .. } = expected;
    let mut file = File::open(path)?;
    let file_bytes = file.metadata()?.len();
    let mut check = HeaderCheck::exact(base_offset, BATCH_BYTES_MAX);
    check.epoch_min = epoch_min;
    let mut scan = SegmentScan {
        base_offset,
        file_bytes,
        sound_end: 0,
        exportable_bytes: 0,
        next_offset: base_offset,
        batches: 0,
        records: 0,
        timestamps: None,
        epoch: epoch_min,
        damages: Vec::new(),
        tail: Tail::None,
    };
    loop {
        let from = scan.sound_end.max(scan.damages.last().and_then(|d| d.resumes).map_or(0, |(at, _)| at));
        let failed = scan_run(&mut file, from, check, &mut scan, &mut each)?;
        if scan.damages.is_empty() {
            scan.exportable_bytes = scan.sound_end;
        }
        let Some(reason) = failed else { return Ok(scan) };
        check = HeaderCheck { next_offset: scan.next_offset, epoch_min: scan.epoch, ..check };
        let rest = read_from(&mut file, scan.sound_end, SEARCH_BYTES_MAX)?;
        match judge(&rest, &check, may_tear, file_bytes - scan.sound_end, reason) {
            Verdict::Tail(tail) => {
                scan.tail = tail;
                return Ok(scan);
            }
            Verdict::Damage { reason, resumes } => {
                let resumes = resumes.map(|(at, offset)| (scan.sound_end + at as u64, offset));
                let damage = Damage { position: scan.sound_end, offset: scan.next_offset, reason, resumes };
                scan.damages.push(damage);
                let Some((_, offset)) = resumes.filter(|_| scan.damages.len() < DAMAGES_MAX) else {
                    return Ok(scan);
                };
                check.next_offset = offset;
            }
        }
    }
}

/// Scans sound batches from `from` to the first that is not; yields what is wrong with it, or `None` at the end.
fn scan_run(
    file: &mut File,
    from: u64,
    check: HeaderCheck,
    scan: &mut SegmentScan,
    each: &mut impl FnMut(&BatchHeader, u64),
) -> io::Result<Option<String>> {
    file.seek(SeekFrom::Start(from))?;
    let mut run = StoredScan::new(check);
    let mut buffer = vec![0; READ_BYTES];
    let (mut records, mut timestamps) = (0, scan.timestamps);
    let failed = loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break match run.tail() {
                TailState::Whole => None,
                TailState::Partial { need, have } => {
                    Some(format!("the file ends within a batch: it needs {need} bytes, {have} are there"))
                }
            };
        }
        let fed = run.feed(&buffer[..read], |header, position| {
            records += u64::from(header.record_count);
            let (first, last) = (header.base_timestamp, header.max_timestamp);
            timestamps = Some(
                timestamps
                    .map_or((first, last), |(a, b): (TimestampMs, TimestampMs)| (a.min(first), b.max(last))),
            );
            each(header, from + position);
        });
        if let Err(error) = fed {
            break Some(error.to_string());
        }
    };
    let summary = run.summary();
    scan.records += records;
    scan.timestamps = timestamps;
    scan.batches += summary.batches;
    scan.sound_end = from + summary.bytes;
    scan.next_offset = summary.next_offset;
    scan.epoch = run.check().epoch_min;
    Ok(failed)
}

enum Verdict {
    Tail(Tail),
    Damage { reason: String, resumes: Option<(usize, Offset)> },
}

/// Decides what unsound bytes are: the end of the log, or damage.
fn judge(rest: &[u8], check: &HeaderCheck, may_tear: bool, file_rest: u64, reason: String) -> Verdict {
    let bytes = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
    if bytes == 0 {
        return Verdict::Tail(Tail::Zeroes { bytes: file_rest });
    }
    if let Some((at, header)) = next_sound_batch(rest, check, 0) {
        // A base offset is not under the checksum: one bit of it flipped looks like a jump ahead. A jump is believed
        // where the batch stands if the next batch continues it.
        if at > 0 || is_continued(rest, &header) {
            return Verdict::Damage { reason, resumes: Some((at, header.base_offset)) };
        }
        let resumes = next_sound_batch(rest, check, 1).map(|(at, header)| (at, header.base_offset));
        return Verdict::Damage { reason, resumes };
    }
    let any = HeaderCheck { next_offset: Offset::ZERO, epoch_min: None, ..*check };
    if next_sound_batch(rest, &any, 0).is_some() {
        // Sound, but nothing that may follow here: lower offsets or epochs.
        return Verdict::Tail(Tail::Recycled { bytes: file_rest });
    }
    if may_tear {
        return Verdict::Tail(Tail::Torn { bytes, reason });
    }
    Verdict::Damage { reason, resumes: None }
}

/// Whether the batch behind the first one in `bytes` begins where that one ends.
fn is_continued(bytes: &[u8], first: &BatchHeader) -> bool {
    let next = bytes.get(first.size()..).and_then(|behind| BatchHeader::parse(behind).ok());
    next.is_some_and(|next| next.base_offset == first.next_offset())
}

/// The first batch in `bytes` at `from` or behind that could follow in this log, its checksum tried.
fn next_sound_batch(bytes: &[u8], check: &HeaderCheck, mut from: usize) -> Option<(usize, BatchHeader)> {
    while let Some(at) = find_plausible_header(bytes, from, check) {
        let header = BatchHeader::parse(&bytes[at..]).ok()?;
        if let Some(batch) = bytes.get(at..at + header.size()) {
            let mut crc = CrcCheck::new(&header);
            crc.feed(batch);
            if crc.finish().is_ok() {
                return Some((at, header));
            }
        }
        from = at + 1;
    }
    None
}

fn read_from(file: &mut File, position: u64, bytes_max: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(position))?;
    let mut rest = Vec::new();
    file.take(bytes_max).read_to_end(&mut rest)?;
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use corelog_engine::batch::{BatchBuilder, BatchFields, NewRecord, Stamp, stamp};

    use super::*;

    fn batch(base: u64, epoch: u32) -> Vec<u8> {
        let mut builder = BatchBuilder::new(1 << 20);
        for _ in 0..3 {
            let record =
                NewRecord { value: Some(b"value"), timestamp: TimestampMs(5), ..NewRecord::default() };
            builder.push(&record).expect("fits");
        }
        let mut bytes = builder.finish(&BatchFields::default()).expect("has records");
        let leader_epoch = LeaderEpoch(epoch);
        stamp(&mut bytes, Stamp { base_offset: Offset(base), leader_epoch, append_time: None });
        bytes
    }

    fn scan(contents: &[u8], is_last: bool) -> SegmentScan {
        scan_durable(contents, is_last, 0)
    }

    fn scan_durable(contents: &[u8], is_last: bool, durable_end: u64) -> SegmentScan {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), contents).expect("written");
        let (base_offset, durable_end) = (Offset(0), Offset(durable_end));
        let expected = Expected { base_offset, epoch_min: None, is_last, durable_end };
        scan_segment(file.path(), expected, |_, _| {}).expect("read")
    }

    #[test]
    fn a_sound_segment_is_counted() {
        let found = scan(&[batch(0, 1), batch(3, 1), batch(6, 2)].concat(), false);
        assert_eq!((found.batches, found.records, found.next_offset), (3, 9, Offset(9)));
        assert_eq!((found.sound_end, found.exportable_bytes), (found.file_bytes, found.file_bytes));
        assert_eq!((found.damages, found.tail, found.epoch), (vec![], Tail::None, Some(LeaderEpoch(2))));
        assert_eq!(scan(&[], true).batches, 0);
    }

    #[test]
    fn ends_are_told_apart() {
        let sound = [batch(0, 5), batch(3, 5)].concat();
        let with = |tail: &[u8]| scan(&[&sound[..], tail].concat(), true).tail;
        assert_eq!(with(&[0; 5000]), Tail::Zeroes { bytes: 5000 });
        let torn = batch(6, 5);
        let mut torn_tail = torn[..torn.len() - 4].to_vec();
        torn_tail.extend([0; 100]);
        // Zeroes at the end of what was torn cannot be told from those behind it.
        let torn_bytes = torn_tail.iter().rposition(|byte| *byte != 0).expect("not all zero") as u64 + 1;
        assert!(matches!(with(&torn_tail), Tail::Torn { bytes, .. } if bytes == torn_bytes));
        let old = [batch(1, 2), batch(4, 2)].concat();
        assert_eq!(with(&old), Tail::Recycled { bytes: old.len() as u64 });
        let lower_epoch = scan(&[&sound[..], &batch(6, 4)].concat(), true);
        assert_eq!(lower_epoch.batches, 2, "an epoch that falls is not believed");
    }

    #[test]
    fn damage_is_placed_and_the_scan_goes_on_behind_it() {
        let batches: Vec<Vec<u8>> = (0..6).map(|i| batch(i * 3, 1)).collect();
        let size = batches[0].len();
        let mut contents = batches.concat();
        contents[size + 70] ^= 4;
        contents[4 * size + 3] ^= 1;
        let found = scan(&contents, false);
        assert_eq!((found.batches, found.next_offset), (4, Offset(18)));
        assert_eq!(found.exportable_bytes, size as u64);
        let places: Vec<_> = found.damages.iter().map(|d| (d.position, d.offset, d.resumes)).collect();
        let at = |batch: usize| (batch * size) as u64;
        assert_eq!(
            places,
            [(at(1), Offset(3), Some((at(2), Offset(6)))), (at(4), Offset(12), Some((at(5), Offset(15))))]
        );
        assert!(found.damages[0].reason.contains("checksum"), "{}", found.damages[0].reason);
    }

    #[test]
    fn nothing_below_the_durable_end_may_be_missing() {
        let sound = [batch(0, 1), batch(3, 1)].concat();
        assert_eq!(scan_durable(&sound, true, 6).damages, []);
        let torn = &sound[..sound.len() - 4];
        let zeroed = [&batch(0, 1)[..], &[0; 4096]].concat();
        for contents in [torn, &zeroed, &batch(0, 1)] {
            let found = scan_durable(contents, true, 6);
            assert_eq!(found.damages.len(), 1);
            assert_eq!((found.damages[0].offset, found.next_offset), (Offset(3), Offset(3)));
            assert!(found.damages[0].reason.contains("durable up to offset 6"));
        }
    }

    #[test]
    fn a_torn_end_of_a_sealed_segment_is_damage() {
        let contents = batch(0, 1);
        let found = scan(&contents[..contents.len() - 1], false);
        assert_eq!((found.batches, found.damages.len()), (0, 1));
        assert_eq!(found.damages[0].resumes, None);
    }
}
