//! A log on the real disk, driven without an executor: what is appended is read back, from memory and from the
//! device, across rolls, clean stops and stops without warning. What must never happen: a different byte, a
//! different offset, a hole.

use std::path::Path;

use corelog_engine::batch::{BatchBuilder, BatchFields, BatchWalk, NewRecord};
use corelog_engine::buffer::BufferPool;
use corelog_engine::disk::uring::{UringDisk, UringOptions};
use corelog_engine::log::{EngineOptions, FlushPolicy, ReadLimits, Stage};
use corelog_engine::{Engine, LeaderEpoch, Log, LogId, LogOptions, Offset, TimestampMs};
use futures_util::future::{join, select};

const NOW: TimestampMs = TimestampMs(1_700_000_000_000);
const ID: LogId = LogId(7);

type DiskLog = Log<UringDisk>;

/// A batch of `records` records with values of `value_bytes`, told apart by `seed`.
fn batch(seed: u64, records: u64, value_bytes: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new(8 << 20);
    for i in 0..records {
        let mut value = vec![(seed + i) as u8; value_bytes];
        value[..8].copy_from_slice(&(seed * 1000 + i).to_be_bytes());
        let record = NewRecord { key: None, value: Some(&value), timestamp: NOW, headers: &[] };
        builder.push(&record).expect("the record fits");
    }
    builder.finish(&BatchFields::default()).expect("the batch has records")
}

fn run<T>(pool_bytes: usize, options: EngineOptions, body: impl AsyncFnOnce(Engine<UringDisk>) -> T) -> T {
    let disk = UringDisk::new(&UringOptions::default()).expect("io_uring is there");
    let engine = Engine::new(disk.clone(), BufferPool::new(pool_bytes), options);
    let drivers = join(engine.drive_commits(), engine.drive_background());
    let stopping = engine.clone();
    let body = async move {
        let result = body(engine).await;
        stopping.shutdown();
        result
    };
    disk.block_on(async {
        match select(Box::pin(body), Box::pin(drivers)).await {
            futures_util::future::Either::Left((result, drivers)) => {
                drivers.await;
                result
            }
            futures_util::future::Either::Right(_) => unreachable!("drivers end only after shutdown"),
        }
    })
}

async fn append(log: &DiskLog, bytes: &[u8], records: u64) -> Offset {
    let admission = log.admit(bytes.len(), records, NOW).await.expect("admitted");
    admission.append(bytes, NOW).expect("appended").end_offset
}

/// Reads everything and returns it as one vector of (base offset, first value bytes).
async fn read_all(log: &DiskLog) -> Vec<(u64, Vec<u8>)> {
    let mut found = Vec::new();
    let mut from = log.ends().start;
    let end = log.ends().end;
    while from < end {
        let read = log.read(from, end, ReadLimits::bytes(1 << 20)).await.expect("readable");
        assert!(read.next_offset > from, "a read moves forward");
        for span in BatchWalk::new(&read.slices) {
            let span = span.expect("whole batches");
            let bytes: Vec<u8> = span.pieces(&read.slices).flatten().copied().collect();
            found.push((span.header.base_offset.0, bytes[61..].to_vec()));
        }
        from = read.next_offset;
    }
    found
}

fn check_contents(found: &[(u64, Vec<u8>)], batches: u64, records: u64, value_bytes: usize) {
    assert_eq!(found.len() as u64, batches);
    for (i, (base, records_bytes)) in found.iter().enumerate() {
        assert_eq!(*base, i as u64 * records);
        assert_eq!(records_bytes, &batch(i as u64, records, value_bytes)[61..], "batch {i}");
    }
}

fn on_disk<T>(dir: &Path, body: impl AsyncFnOnce(Engine<UringDisk>, &Path) -> T) -> T {
    run(32 << 20, EngineOptions::default(), async |engine| body(engine, dir).await)
}

fn small_segments() -> LogOptions {
    LogOptions { segment_bytes_max: 1 << 20, ..LogOptions::default() }
}

#[test]
fn appends_are_durable_readable_and_survive_a_clean_stop() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("log");
    on_disk(&path, async |engine, path| {
        let log = engine.create_log(path, ID, small_segments()).await.unwrap();
        log.begin_epoch(LeaderEpoch(1)).unwrap();
        for i in 0..60 {
            let end = append(&log, &batch(i, 50, 1000), 50).await;
            log.wait(Stage::Durable, end).await.unwrap();
        }
        check_contents(&read_all(&log).await, 60, 50, 1000);
        assert!(log.stats().segments >= 3, "it rolled");
        log.close().await.unwrap();
    });
    on_disk(&path, async |engine, path| {
        let (log, report) = engine.open_log(path, ID, small_segments(), true).await.unwrap();
        assert!(report.was_clean);
        assert_eq!(log.ends().durable, Offset(3000));
        check_contents(&read_all(&log).await, 60, 50, 1000);
        assert!(engine.stats().device_read_bytes > 3_000_000, "it came from the device");
        log.begin_epoch(LeaderEpoch(2)).unwrap();
        assert_eq!(append(&log, &batch(60, 50, 1000), 50).await, Offset(3050));
        check_contents(&read_all(&log).await, 61, 50, 1000);
    });
}

#[test]
fn a_stop_without_warning_keeps_what_was_written() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("log");
    let options = LogOptions {
        flush: FlushPolicy::Interval { bytes_max: 1 << 30, ms_max: 1 << 30 },
        ..small_segments()
    };
    on_disk(&path, async |engine, path| {
        let log = engine.create_log(path, ID, options).await.unwrap();
        log.begin_epoch(LeaderEpoch(1)).unwrap();
        for i in 0..40 {
            append(&log, &batch(i, 3, 10_000), 3).await;
        }
        log.wait(Stage::Written, Offset(120)).await.unwrap();
        assert_eq!(log.ends().durable, Offset(0), "nothing asked for a sync");
    });
    on_disk(&path, async |engine, path| {
        let (log, report) = engine.open_log(path, ID, options, false).await.unwrap();
        assert_eq!(report.recovered_batches, 40);
        assert_eq!(report.cut, None);
        check_contents(&read_all(&log).await, 40, 3, 10_000);
    });
}

#[test]
fn small_memory_makes_producers_wait_and_readers_go_to_the_device() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("log");
    run(4 << 20, EngineOptions::default(), async |engine| {
        let log = engine.create_log(&path, ID, small_segments()).await.unwrap();
        log.begin_epoch(LeaderEpoch(1)).unwrap();
        for i in 0..200 {
            append(&log, &batch(i, 10, 10_000), 10).await;
        }
        log.flush().await.unwrap();
        check_contents(&read_all(&log).await, 200, 10, 10_000);
        assert!(engine.stats().evictions > 0);
    });
}

#[test]
fn expired_segments_are_used_again_and_their_old_batches_never_show() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("log");
    let options = LogOptions {
        segment_bytes_max: 4 << 20,
        retention_bytes: Some(8 << 20),
        retention_ms: None,
        ..LogOptions::default()
    };
    let start = on_disk(&path, async |engine, path| {
        let log = engine.create_log(path, ID, options).await.unwrap();
        log.begin_epoch(LeaderEpoch(1)).unwrap();
        for i in 0..400 {
            let end = append(&log, &batch(i, 10, 10_000), 10).await;
            if i % 8 == 0 {
                log.wait(Stage::Durable, end).await.unwrap();
            }
        }
        log.flush().await.unwrap();
        assert!(engine.stats().recycled_segments >= 3, "{:?}", engine.stats());
        log.ends().start
    });
    assert!(start > Offset(0));
    // The process is gone without a word; the active segment has batches of an earlier life behind its end.
    on_disk(&path, async |engine, path| {
        let (log, report) = engine.open_log(path, ID, options, false).await.unwrap();
        assert_eq!(report.cut, None, "old batches are not a damaged tail");
        assert_eq!(log.ends().end, Offset(4000));
        assert_eq!(log.ends().start, start);
        let found = read_all(&log).await;
        for (base, records) in &found {
            assert_eq!(records, &batch(base / 10, 10, 10_000)[61..]);
        }
        assert_eq!(found.len() as u64 * 10, 4000 - start.0);
    });
}

#[test]
fn large_batches_are_copied_once_on_their_way_to_the_device() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    on_disk(&dir.path().join("log"), async |engine, path| {
        let log = engine.create_log(path, ID, LogOptions::default()).await.unwrap();
        log.begin_epoch(LeaderEpoch(1)).unwrap();
        let bytes = batch(0, 100, 10_000);
        for _ in 0..20 {
            let end = append(&log, &bytes, 100).await;
            log.wait(Stage::Durable, end).await.unwrap();
        }
        let stats = engine.stats();
        let tail_copies = stats.copied_bytes - stats.appended_bytes;
        assert!(tail_copies <= 20 * 4096, "at most a block each: {stats:?}");
        assert!(stats.device_written_bytes <= stats.appended_bytes + 20 * 2 * 4096, "{stats:?}");
    });
}
