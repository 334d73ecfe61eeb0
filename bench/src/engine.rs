//! `corelog bench engine`: the log engine alone, in this process, on the real disk: no sockets, no sessions.
//!
//! Owns: one engine, its partitions in a temporary directory, and as many producers as are to be in flight.
//! The raw device is measured first in the same run, with the same number of bytes, so that the engine's figures
//! stand beside their floor.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use corelog_engine::batch::{BatchLimits, validate};
use corelog_engine::buffer::BufferPool;
use corelog_engine::disk::uring::{UringDisk, UringOptions};
use corelog_engine::log::{EngineOptions, FlushPolicy, Stage};
use corelog_engine::{Engine, EngineStats, LeaderEpoch, Log, LogId, LogOptions, TimestampMs};
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde::Serialize;

use crate::affinity::pin_to;
use crate::cpu::thread_cpu_seconds;
use crate::error::{BenchError, BenchResult};
use crate::floor::{DiskFloor, DiskOperation, DiskTarget};
use crate::latency::{Latencies, Percentiles};
use crate::load::Window;
use crate::produce::build_batch;

/// What to append, and how.
#[derive(Clone, Debug)]
pub(crate) struct EngineBenchOptions {
    /// Directory on the disk to measure.
    pub(crate) dir: PathBuf,
    /// Bytes of a record's value.
    pub(crate) record_bytes: usize,
    /// Records of a batch.
    pub(crate) batch_records: u32,
    /// Logs.
    pub(crate) partitions: usize,
    /// Appends waiting for their stage, over all logs.
    pub(crate) in_flight: usize,
    /// Wait until durable, or until written.
    pub(crate) is_synced: bool,
    /// Time before the window that counts.
    pub(crate) warmup: Duration,
    /// The window that counts.
    pub(crate) duration: Duration,
    /// The run ends when the logs hold so much.
    pub(crate) bytes_max: u64,
    /// Buffer memory.
    pub(crate) memory_bytes: usize,
    /// Core to run on.
    pub(crate) core: usize,
}

/// What the engine reached.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct EngineFigures {
    /// Length of the window that counts (shorter than asked for if the logs were full before).
    pub(crate) seconds: f64,
    /// Appends whose stage was reached in it.
    pub(crate) appends: u64,
    /// Appends a second.
    pub(crate) appends_per_second: f64,
    /// Millions of bytes of batches a second.
    pub(crate) megabytes_per_second: f64,
    /// The same for each second of the engine's thread.
    pub(crate) megabytes_per_cpu_second: f64,
    /// CPU of the engine's thread.
    pub(crate) cpu_seconds: f64,
    /// From before admission to the stage waited for.
    pub(crate) latency: Percentiles,
    /// Bytes that commits gave to the device for each byte appended, padding and rewritten blocks included.
    pub(crate) written_per_appended: f64,
    /// Bytes zeroed ahead for each byte appended.
    pub(crate) zeroed_per_appended: f64,
    /// Bytes copied in user space for each byte appended.
    pub(crate) copied_per_appended: f64,
    /// Appends for each device write.
    pub(crate) appends_per_write: f64,
    /// Appends for each device sync.
    pub(crate) appends_per_sync: f64,
    /// The raw device with the same bytes, one at a time and with the same number in flight.
    pub(crate) floor: Vec<DiskFloor>,
}

/// Space of the floor's file.
const FLOOR_FILE_BYTES: u64 = 256 << 20;
/// Deepest floor: beyond it a device does not gain.
const FLOOR_DEPTH_MAX: usize = 16;
/// Largest operation of the floor: what the engine writes at once.
const FLOOR_BLOCK_BYTES_MAX: u64 = 1 << 20;
/// Space left to others.
const RESERVE_BYTES: u64 = 2 << 30;

/// Measures the floor, then the engine.
pub(crate) fn measure(options: &EngineBenchOptions) -> BenchResult<EngineFigures> {
    let disk = corelog_tuning::disk::detect(&options.dir)
        .map_err(BenchError::io(options.dir.display().to_string()))?;
    if options.bytes_max.saturating_add(RESERVE_BYTES) > disk.free_bytes {
        return Err(BenchError::NotEnoughSpace {
            dir: options.dir.display().to_string(),
            free_bytes: disk.free_bytes,
            needed_bytes: options.bytes_max,
            reserve_bytes: RESERVE_BYTES,
        });
    }
    std::thread::scope(|scope| {
        let run = scope.spawn(|| {
            pin_to(options.core)?;
            let floor = measure_floor(options)?;
            let mut figures = measure_engine(options)?;
            figures.floor = floor;
            Ok(figures)
        });
        run.join().expect("a thread of ours does not panic")
    })
}

fn measure_floor(options: &EngineBenchOptions) -> BenchResult<Vec<DiskFloor>> {
    let batch_bytes = options.record_bytes as u64 * u64::from(options.batch_records);
    let block_bytes = batch_bytes.next_multiple_of(4096).clamp(4096, FLOOR_BLOCK_BYTES_MAX);
    let operation = if options.is_synced { DiskOperation::SyncedWrite } else { DiskOperation::Write };
    let target = DiskTarget::create(&options.dir, FLOOR_FILE_BYTES)?;
    let deep = options.in_flight.min(FLOOR_DEPTH_MAX) as u32;
    let depths = if deep > 1 { vec![1, deep] } else { vec![1] };
    let time = Duration::from_secs(1).min(options.duration);
    depths.into_iter().map(|depth| target.measure(operation, block_bytes, depth, None, time)).collect()
}

/// What the producers share.
struct Shared {
    logs: Vec<Log<UringDisk>>,
    batch: Vec<u8>,
    records: u64,
    stage: Stage,
    window: Window,
    bytes_left: Cell<u64>,
    latencies: RefCell<Latencies>,
    edge: Cell<Option<Edge>>,
}

/// Counters at the beginning of the window that counts.
#[derive(Clone, Copy)]
struct Edge {
    at: Instant,
    cpu_seconds: f64,
    stats: EngineStats,
}

fn measure_engine(options: &EngineBenchOptions) -> BenchResult<EngineFigures> {
    let disk = UringDisk::new(&UringOptions::default()).map_err(BenchError::io("opening an io_uring"))?;
    let dir = tempfile::Builder::new()
        .prefix("corelog-bench-")
        .tempdir_in(&options.dir)
        .map_err(BenchError::io(format!("a directory in {}", options.dir.display())))?;
    let engine = Engine::new(disk.clone(), BufferPool::new(options.memory_bytes), EngineOptions::default());
    let mut drivers: FuturesUnordered<Pin<Box<dyn Future<Output = ()>>>> = FuturesUnordered::new();
    drivers.push(Box::pin(engine.drive_commits()));
    drivers.push(Box::pin(engine.drive_background()));
    let body = async {
        let shared = prepare(&engine, options, dir.path()).await?;
        let end = produce(&engine, &shared, options.in_flight).await?;
        for log in &shared.logs {
            log.close().await.map_err(BenchError::engine("closing a log"))?;
        }
        engine.shutdown();
        Ok(figures(&shared, end))
    };
    disk.block_on(async {
        let mut body = std::pin::pin!(body);
        let result = loop {
            // The drivers end only after the shutdown that the body asks for at its end.
            match futures_util::future::select(body.as_mut(), drivers.next()).await {
                futures_util::future::Either::Left((result, _)) => break result,
                futures_util::future::Either::Right(_) => {}
            }
        };
        engine.shutdown();
        while drivers.next().await.is_some() {}
        result
    })
}

async fn prepare(
    engine: &Engine<UringDisk>,
    options: &EngineBenchOptions,
    dir: &std::path::Path,
) -> BenchResult<Shared> {
    let flush = if options.is_synced {
        FlushPolicy::Commit
    } else {
        FlushPolicy::Interval { bytes_max: 64 << 20, ms_max: 1000 }
    };
    let batch = build_batch(options.record_bytes, options.batch_records)?;
    let log_options = LogOptions { flush, batch_bytes_max: batch.len(), ..LogOptions::default() };
    let mut logs = Vec::new();
    for i in 0..options.partitions {
        let path = dir.join(i.to_string());
        let log = engine
            .create_log(&path, LogId(i as u128 + 1), log_options)
            .await
            .map_err(BenchError::engine("creating a log"))?;
        log.begin_epoch(LeaderEpoch(1)).map_err(BenchError::engine("beginning an epoch"))?;
        logs.push(log);
    }
    Ok(Shared {
        logs,
        records: u64::from(options.batch_records),
        stage: if options.is_synced { Stage::Durable } else { Stage::Written },
        window: Window::new(Instant::now(), options.warmup, options.duration),
        bytes_left: Cell::new(options.bytes_max / batch.len() as u64 * batch.len() as u64),
        batch,
        latencies: RefCell::default(),
        edge: Cell::new(None),
    })
}

/// Runs the producers to the end of the window; returns the counters there.
async fn produce(engine: &Engine<UringDisk>, shared: &Shared, in_flight: usize) -> BenchResult<Edge> {
    let mut producers: FuturesUnordered<_> =
        (0..in_flight).map(|i| producer(engine, shared, i % shared.logs.len())).collect();
    let mut result = Ok(());
    while let Some(ended) = producers.next().await {
        result = result.and(ended);
    }
    result?;
    Ok(Edge { at: Instant::now(), cpu_seconds: thread_cpu_seconds(), stats: engine.stats() })
}

async fn producer(engine: &Engine<UringDisk>, shared: &Shared, log: usize) -> BenchResult<()> {
    let log = &shared.logs[log];
    let bytes = shared.batch.len();
    let limits = BatchLimits { batch_bytes_max: bytes, ..BatchLimits::default() };
    loop {
        let started = Instant::now();
        let left = shared.bytes_left.get();
        if started >= shared.window.end || left < bytes as u64 {
            return Ok(());
        }
        shared.bytes_left.set(left - bytes as u64);
        if started >= shared.window.measure && shared.edge.get().is_none() {
            let (cpu_seconds, stats) = (thread_cpu_seconds(), engine.stats());
            shared.edge.set(Some(Edge { at: started, cpu_seconds, stats }));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = TimestampMs(now.as_millis() as i64);
        // As the server does for every batch that arrives: its checksum is a part of what an append costs.
        validate(&shared.batch, &limits).map_err(BenchError::engine("validating the batch"))?;
        let admission =
            log.admit(bytes, shared.records, now).await.map_err(BenchError::engine("admitting an append"))?;
        let appended = admission.append(&shared.batch, now).map_err(BenchError::engine("appending"))?;
        log.wait(shared.stage, appended.end_offset)
            .await
            .map_err(BenchError::engine("waiting for the disk"))?;
        if shared.window.holds(started) {
            shared.latencies.borrow_mut().record(started.elapsed());
        }
    }
}

fn figures(shared: &Shared, end: Edge) -> EngineFigures {
    let start = shared.edge.get().unwrap_or(end);
    let seconds = (end.at - start.at).as_secs_f64().max(1e-9);
    let cpu_seconds = end.cpu_seconds - start.cpu_seconds;
    let latency = shared.latencies.borrow().percentiles();
    let since = |of: fn(&EngineStats) -> u64| (of(&end.stats) - of(&start.stats)) as f64;
    let appended_bytes = since(|stats| stats.appended_bytes);
    let appends = latency.count as f64;
    let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
    EngineFigures {
        seconds,
        appends: latency.count,
        appends_per_second: appends / seconds,
        megabytes_per_second: appended_bytes / 1e6 / seconds,
        megabytes_per_cpu_second: ratio(appended_bytes / 1e6, cpu_seconds),
        cpu_seconds,
        latency,
        written_per_appended: ratio(since(|stats| stats.device_written_bytes), appended_bytes),
        zeroed_per_appended: ratio(since(|stats| stats.device_zeroed_bytes), appended_bytes),
        copied_per_appended: ratio(since(|stats| stats.copied_bytes), appended_bytes),
        appends_per_write: ratio(appends, since(|stats| stats.writes)),
        appends_per_sync: ratio(appends, since(|stats| stats.syncs)),
        floor: Vec::new(),
    }
}

impl EngineFigures {
    /// Lines for people.
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![
            format!("{:<28} {:>9} {:>10} {} ms", "", "MB/s", "a second", Percentiles::HEAD),
            format!(
                "{:<28} {:>9.1} {:>10.0} {}",
                "engine, appends",
                self.megabytes_per_second,
                self.appends_per_second,
                self.latency.row()
            ),
        ];
        for floor in &self.floor {
            lines.push(format!(
                "{:<28} {:>9.1} {:>10.0} {}",
                format!("device, {}, depth {}", floor.operation.name(), floor.depth),
                floor.megabytes_per_second,
                floor.operations_per_second,
                floor.latency.row()
            ));
        }
        lines.push(format!(
            "CPU {:.2} s of {:.2} s, {:.0} MB per CPU-second",
            self.cpu_seconds, self.seconds, self.megabytes_per_cpu_second
        ));
        lines.push(format!(
            "for each byte appended {:.2} copied, {:.2} written and {:.2} zeroed ahead; {:.1} appends a write, {:.1} a \
             sync",
            self.copied_per_appended,
            self.written_per_appended,
            self.zeroed_per_appended,
            self.appends_per_write,
            self.appends_per_sync
        ));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dir: &std::path::Path) -> EngineBenchOptions {
        EngineBenchOptions {
            dir: dir.to_owned(),
            record_bytes: 100,
            batch_records: 10,
            partitions: 2,
            in_flight: 4,
            is_synced: true,
            warmup: Duration::from_millis(20),
            duration: Duration::from_millis(200),
            bytes_max: 64 << 20,
            memory_bytes: 16 << 20,
            core: corelog_tuning::Cores::detect().allowed[0],
        }
    }

    #[test]
    fn the_engine_is_measured_beside_its_floor_and_leaves_nothing() {
        let dir = crate::tests::dir_on_disk();
        for is_synced in [true, false] {
            let figures =
                measure(&EngineBenchOptions { is_synced, ..options(dir.path()) }).expect("the disk works");
            assert!(figures.appends > 0 && figures.megabytes_per_second > 0.0, "{figures:?}");
            assert_eq!(figures.floor.len(), 2);
            assert!(figures.written_per_appended >= 1.0 && figures.copied_per_appended >= 1.0, "{figures:?}");
            assert!(figures.table().contains("device"));
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("it is there").count(), 0);
    }

    #[test]
    fn a_run_ends_when_the_logs_are_full() {
        let dir = crate::tests::dir_on_disk();
        let started = Instant::now();
        let options = EngineBenchOptions {
            bytes_max: 100_000,
            duration: Duration::from_secs(600),
            warmup: Duration::ZERO,
            ..options(dir.path())
        };
        let figures = measure(&options).expect("the disk works");
        assert!(figures.appends > 10 && figures.appends < 100, "{figures:?}");
        assert!(started.elapsed() < Duration::from_secs(60));
        let error =
            measure(&EngineBenchOptions { bytes_max: 1 << 60, ..options }).expect_err("no disk has that");
        assert!(matches!(error, BenchError::NotEnoughSpace { .. }));
    }
}
