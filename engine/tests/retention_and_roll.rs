//! Segments: when they roll, what their files look like once sealed, when they go.
//!
//! What must never happen: a sealed file with a tail of zeroes, the active segment deleted, a segment deleted
//! before a newer record in it is old, a gap between two segments.

mod support;

use corelog_engine::log::LogOptions;
use corelog_engine::{LeaderEpoch, Offset, TimestampMs};
use corelog_sim::{Crash, SimDisk};
use support::*;

type Log = corelog_engine::log::Log<SimDisk>;

fn leading(node: &Node, options: LogOptions) -> Log {
    let log = node.run(node.engine.create_log(&dir(), LOG_ID, options)).expect("a new log");
    log.begin_epoch(LeaderEpoch(1)).expect("a first term");
    log
}

fn append_at(node: &Node, log: &Log, tag: u64, value_bytes: usize, now: TimestampMs) {
    let batch = batch_at(tag, 1, value_bytes, now);
    node.run(append(log, &batch, now)).expect("an append");
}

/// Base offsets of the segment files.
fn bases(node: &Node) -> Vec<u64> {
    let number = |path: &std::path::Path| path.file_stem()?.to_str()?.parse().ok();
    node.files(".log").iter().filter_map(|(path, _)| number(path)).collect()
}

#[test]
fn segments_roll_by_size_and_hold_an_oversized_batch_alone() {
    let node = Node::new(1);
    let log = leading(&node, log_options());
    for (tag, bytes) in [(0, 9000), (1, 9000), (2, 9000), (3, 60_000), (4, 10), (5, 10)] {
        append_at(&node, &log, tag, bytes, NOW);
    }
    node.run(log.flush()).expect("a flush");
    node.executor.run_until_stalled();
    assert_eq!(bases(&node), [0, 2, 3, 4]);
    let read = node.read_all(&log);
    for (i, (path, bytes)) in node.files(".log").iter().enumerate().take(3) {
        let base = bases(&node)[i];
        let end = bases(&node)[i + 1];
        let expected: Vec<u8> = read
            .iter()
            .filter(|batch| (base..end).contains(&batch.base))
            .flat_map(|batch| batch.bytes.clone())
            .collect();
        assert_eq!(*bytes, expected, "{path:?} is its batches and nothing else");
        assert!(exists(&node, &index_path(base)));
        assert!(exists(&node, &index_path(base).with_extension("timeindex")));
    }
}

#[test]
fn segments_roll_by_age_and_not_when_the_clock_steps_back() {
    let node = Node::new(2);
    let log = leading(&node, LogOptions { segment_age_max_ms: 1000, ..log_options() });
    for (tag, ms) in [(0, 0), (1, 900), (2, 1000), (3, 1001), (4, -3_600_000), (5, 1500), (6, 2002)] {
        append_at(&node, &log, tag, 10, TimestampMs(NOW.0 + ms));
    }
    node.run(log.flush()).expect("a flush");
    assert_eq!(bases(&node), [0, 3, 6]);
}

#[test]
fn a_clean_stop_trims_the_active_segment() {
    let node = Node::new(3);
    let log = leading(&node, log_options());
    append_at(&node, &log, 1, 5000, NOW);
    let expected = node.read_all(&log).remove(0).bytes;
    node.run(log.close()).expect("a clean close");
    assert_eq!(node.disk.peek(&segment_path(0)), expected);
}

#[test]
fn retention_by_age_looks_at_the_newest_record() {
    let node = Node::new(4);
    let log = leading(&node, LogOptions { retention_ms: Some(10_000), ..log_options() });
    // Two batches a segment; in the first segment the older one is appended last.
    for (tag, ms) in [(0, 5000), (1, 0), (2, 1000), (3, 2000), (4, 9000), (5, 9000), (6, 9000)] {
        append_at(&node, &log, tag, 9000, TimestampMs(NOW.0 + ms));
    }
    node.run(log.flush()).expect("a flush");
    node.executor.run_until_stalled();
    assert_eq!(bases(&node), [0, 2, 4, 6]);
    let retain = |ms: i64| node.run(log.apply_retention(TimestampMs(NOW.0 + ms))).expect("retention");
    assert_eq!(retain(15_000).segments, 0, "the newest record of the first is not older than 10 s");
    assert_eq!(retain(-9_000_000).segments, 0, "a clock that steps back makes nothing old");
    let trimmed = retain(15_001);
    assert_eq!(
        (trimmed.segments, trimmed.start),
        (2, Offset(4)),
        "in order: the second waited for the first"
    );
    assert_eq!(bases(&node), [4, 6]);
    let trimmed = retain(1_000_000_000);
    assert_eq!((trimmed.segments, trimmed.start), (1, Offset(6)), "the active one stays");
    assert_eq!(log.ends().start, Offset(6));
    assert_eq!(node.read_all(&log).len(), 1);
}

#[test]
fn age_is_known_after_a_crash_too() {
    let node = Node::new(5);
    let log = leading(&node, LogOptions { retention_ms: None, ..log_options() });
    for (tag, ms) in [(0, 0), (1, 50_000), (2, 0), (3, 0)] {
        append_at(&node, &log, tag, 9000, TimestampMs(NOW.0 + ms));
    }
    node.run(log.flush()).expect("a flush");
    drop(log);
    let node = node.crash(Crash::PowerLoss);
    let (log, _) = node.open();
    log.set_options(LogOptions { retention_ms: Some(1000), ..log_options() });
    let retain = |ms: i64| node.run(log.apply_retention(TimestampMs(NOW.0 + ms))).expect("retention");
    assert_eq!(retain(51_000).segments, 0);
    assert_eq!(retain(51_001).segments, 1);
}

#[test]
fn retention_by_bytes_keeps_at_least_the_limit() {
    let node = Node::new(6);
    let log = leading(&node, LogOptions { retention_bytes: Some(30_000), ..log_options() });
    for tag in 0..11 {
        append_at(&node, &log, tag, 9000, NOW);
    }
    node.run(log.flush()).expect("a flush");
    node.executor.run_until_stalled();
    let trimmed = node.run(log.apply_retention(NOW)).expect("retention");
    assert!(trimmed.segments > 0);
    let bytes = log.stats().bytes;
    assert!((30_000..30_000 + 18_200).contains(&bytes), "{bytes} bytes are left");
    assert_eq!(bases(&node).first(), Some(&trimmed.start.0));
}

#[test]
fn deleted_records_stay_deleted() {
    for crash in [Crash::Kill, Crash::PowerLoss] {
        let node = Node::new(7);
        let log = leading(&node, log_options());
        for tag in 0..9 {
            append_at(&node, &log, tag, 9000, NOW);
        }
        node.run(log.flush()).expect("a flush");
        node.executor.run_until_stalled();
        let model = node.read_all(&log);
        let trimmed = node.run(log.delete_records_before(Offset(5), NOW)).expect("a deletion");
        assert_eq!((trimmed.start, trimmed.segments), (Offset(5), 2));
        drop(log);
        let node = node.crash(crash);
        let (log, _) = node.open();
        assert_eq!(log.ends().start, Offset(5));
        assert_eq!(node.read_all(&log), model[5..]);
        assert_eq!(bases(&node)[0], 4, "files below the start do not come back");
    }
}

#[test]
fn a_deleted_log_leaves_nothing_and_can_be_made_again() {
    let node = Node::new(8);
    let log = leading(&node, log_options());
    for tag in 0..9 {
        append_at(&node, &log, tag, 9000, NOW);
    }
    node.run(log.delete()).expect("a deletion");
    let refused = node.run(append(&log, &batch(1, 1, 10), NOW));
    assert!(refused.is_err());
    assert!(!exists(&node, &dir()));
    let log = leading(&node, log_options());
    assert_eq!(node.read_all(&log), []);
    append_at(&node, &log, 50, 10, NOW);
    node.run(log.flush()).expect("a flush");
    drop(log);
    let node = node.crash(Crash::PowerLoss);
    let (log, _) = node.open();
    assert_eq!(node.read_all(&log), stored(&batch(50, 1, 10), 0, 1));
}
