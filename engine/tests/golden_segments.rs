//! Golden segments: the files of a log as released, for ever.
//!
//! What must never happen: a newer version writes other bytes for the same appends, or reads the released ones
//! differently. To make the files of a new format beside the old ones: `CORELOG_GOLDEN=write cargo test -p
//! corelog-engine --test golden_segments`, then look at the difference.
//! Checked once by others: the dump tool of Apache Kafka 4.3.0 (deep iteration, indexes verified) and kafka-python
//! 3.0.12 read these files without complaint (2026-11-24).

mod support;

use std::path::{Path, PathBuf};

use corelog_engine::batch::{BatchHeader, HEADER_BYTES, RecordIter};
use corelog_engine::disk::Disk;
use corelog_engine::log::{Log, LogOptions};
use corelog_engine::{LeaderEpoch, Offset, TimestampMs};
use corelog_sim::SimDisk;
use support::*;

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/log_v1")
}

fn options() -> LogOptions {
    LogOptions { segment_bytes_max: 4096, ..log_options() }
}

/// Two terms, two sealed segments and an active one, closed cleanly; the first record deleted.
fn write_log(node: &Node) -> Log<SimDisk> {
    let log = node.run(node.engine.create_log(&dir(), LOG_ID, options())).expect("a new log");
    for (epoch, tags) in [(1, 0..5), (4, 5..9)] {
        log.begin_epoch(LeaderEpoch(epoch)).expect("a later term");
        for tag in tags {
            // Timestamps go up and down.
            let timestamp = TimestampMs(NOW.0 + [0, 300, 200, 900, 100][tag as usize % 5]);
            node.append_durably(&log, &batch_at(tag, 2, 500, timestamp));
            node.executor.run_until_stalled();
        }
    }
    node.run(log.delete_records_before(Offset(1), NOW)).expect("a deletion");
    node.run(log.close()).expect("a clean close");
    log
}

#[test]
fn the_same_appends_give_the_released_files() {
    let node = Node::new(1);
    write_log(&node);
    let written = node.files("");
    if std::env::var("CORELOG_GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::create_dir_all(golden_dir()).expect("a directory");
        for (path, bytes) in &written {
            std::fs::write(golden_dir().join(path.file_name().expect("a name")), bytes).expect("a file");
        }
    }
    let golden = golden_files();
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let written: Vec<_> = written
        .into_iter()
        .map(|(path, bytes)| (path.file_name().expect("a name").to_string_lossy().into_owned(), bytes))
        .collect();
    assert_eq!(names(&written), names(&golden));
    for ((name, written), (_, golden)) in written.iter().zip(&golden) {
        assert_eq!(written, golden, "{name}");
    }
}

fn golden_files() -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(golden_dir()).expect("the golden directory");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry"))
        .map(|entry| {
            (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).expect("a file"))
        })
        .collect();
    files.sort();
    files
}

#[test]
fn the_released_files_open_and_hold_what_they_held() {
    let node = Node::new(2);
    node.run(node.disk.create_dir_all(&dir())).expect("a directory");
    for (name, bytes) in golden_files() {
        node.run(node.disk.replace_file(&dir().join(name), bytes)).expect("a file");
    }
    let (log, report) = node.run(node.engine.open_log(&dir(), LOG_ID, options(), true)).expect("a log");
    assert!(report.was_clean);
    assert_eq!((log.ends().start, log.ends().end), (Offset(1), Offset(18)));
    let read = node.read_all(&log);
    let expected: Vec<_> = (0..9)
        .flat_map(|tag: u64| {
            let timestamp = TimestampMs(NOW.0 + [0, 300, 200, 900, 100][tag as usize % 5]);
            stored(&batch_at(tag, 2, 500, timestamp), tag * 2, if tag < 5 { 1 } else { 4 })
        })
        .collect();
    assert_eq!(read, expected);
    for batch in &read {
        let header = BatchHeader::parse(&batch.bytes).expect("a header");
        assert_eq!(RecordIter::new(&header, &batch.bytes[HEADER_BYTES..]).flatten().count(), 2);
    }
    let found = node.run(log.offset_for_timestamp(TimestampMs(NOW.0 + 250), log.ends().end));
    assert_eq!(found, Ok(Some((Offset(2), TimestampMs(NOW.0 + 300)))));
    let epochs: Vec<_> = log.epochs().entries().iter().map(|e| (e.epoch.0, e.start_offset.0)).collect();
    assert_eq!(epochs, [(1, 1), (4, 10)]);
}
