//! A node of one engine on a simulated disk, for tests of logs: start, kill, lose power, start again.
//!
//! Owns: batches that say who they are, and reading a whole log back with its order checked.

#![allow(dead_code, unreachable_pub, reason = "each test crate uses a part of it")]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use corelog_engine::batch::{
    BatchBuilder, BatchFields, BatchHeader, BatchLimits, BatchWalk, NewRecord, Stamp, stamp, validate,
};
use corelog_engine::buffer::{BufferPool, DmaSlice};
use corelog_engine::checkpoint::BootId;
use corelog_engine::log::{
    AppendError, Appended, EngineOptions, Log, LogOptions, OpenError, ReadError, ReadLimits, RecoveryReport,
    Stage,
};
use corelog_engine::{Engine, LeaderEpoch, LogId, Offset, TimestampMs};
use corelog_sim::{Crash, Executor, SimDisk, SimDiskOptions};

/// Seeds to run a test under: the fixed ones below `fixed`, and some fresh ones each time. With
/// `CORELOG_SEEDS=FROM..TO` in the environment those instead, as many as you like.
///
/// When the test panics it prints a line to paste that runs the failing seed again.
pub fn seeds(test: &'static str, fixed: u64) -> Seeds {
    let seeds = match std::env::var("CORELOG_SEEDS") {
        Ok(range) => {
            let parsed =
                range.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
            let (from, to): (u64, u64) = parsed.expect("CORELOG_SEEDS is FROM..TO, two numbers");
            (from..to).collect()
        }
        Err(_) => {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
            let first_fresh = fixed + now.as_micros() as u64 % 1_000_000_000;
            (0..fixed).chain(first_fresh..first_fresh + FRESH_SEEDS).collect::<Vec<_>>()
        }
    };
    Seeds { test, left: seeds.into_iter(), current: None }
}

/// See [`seeds`].
pub struct Seeds {
    test: &'static str,
    left: std::vec::IntoIter<u64>,
    current: Option<u64>,
}

impl Iterator for Seeds {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.current = self.left.next();
        self.current
    }
}

impl Drop for Seeds {
    fn drop(&mut self) {
        if let Some(seed) = self.current.filter(|_| std::thread::panicking()) {
            let Self { test, .. } = self;
            eprintln!(
                "seed {seed} failed; again: CORELOG_SEEDS={seed}..{} cargo test -p corelog-engine --test {test}",
                seed + 1
            );
        }
    }
}

/// Fresh seeds of each ordinary run: enough that a year of runs covers what a long run does.
const FRESH_SEEDS: u64 = 5;

/// Memory of the engine: little, so that chunks are evicted.
const POOL_BYTES: usize = 4 << 20;

/// Identity of the log of most tests.
pub const LOG_ID: LogId = LogId(0xfeed);

/// Directory of the log of most tests.
pub fn dir() -> PathBuf {
    PathBuf::from("/data/topics/t-1/0")
}

pub const NOW: TimestampMs = TimestampMs(1_700_000_000_000);

/// An engine on a simulated disk, its drivers running.
pub struct Node {
    pub executor: Rc<Executor>,
    pub disk: SimDisk,
    pub engine: Engine<SimDisk>,
}

/// Small numbers, so that a short run meets every limit.
pub fn engine_options() -> EngineOptions {
    EngineOptions {
        commit_depth_max: 8,
        unwritten_bytes_max: 256 << 10,
        write_ahead_bytes_max: 256 << 10,
        write_ahead_total_bytes_max: 1 << 20,
        checkpoint_bytes: 16 << 10,
        index_interval_bytes: 1 << 10,
        cold_read_bytes: 16 << 10,
        open_files_max: 3,
        boot_id: Some(BootId(0)),
    }
}

/// Segments of a few batches.
pub fn log_options() -> LogOptions {
    LogOptions { segment_bytes_max: 20 << 10, retention_ms: None, ..LogOptions::default() }
}

impl Node {
    /// A new process on an empty disk.
    pub fn new(seed: u64) -> Self {
        let executor = Rc::new(Executor::new(seed));
        let disk = SimDisk::new(executor.handle(), SimDiskOptions::default());
        Self::start(executor, disk, engine_options())
    }

    /// A new process on `disk`.
    pub fn start(executor: Rc<Executor>, disk: SimDisk, options: EngineOptions) -> Self {
        let engine = Engine::new(disk.clone(), BufferPool::new(POOL_BYTES), options);
        executor.spawn(engine.drive_commits());
        executor.spawn(engine.drive_background());
        Self { executor, disk, engine }
    }

    /// Runs until the future is ready.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        self.executor.run_until(future)
    }

    /// Crashes now and starts anew on what is left.
    pub fn crash(&self, crash: Crash) -> Self {
        let disk = self.disk.crash(crash);
        self.executor.kill();
        Self::start(self.executor.clone(), disk, self.engine.options().clone())
    }

    pub fn create(&self) -> Log<SimDisk> {
        self.run(self.engine.create_log(&dir(), LOG_ID, log_options())).expect("a new log")
    }

    pub fn try_open(&self, was_clean: bool) -> Result<(Log<SimDisk>, RecoveryReport), OpenError> {
        self.run(self.engine.open_log(&dir(), LOG_ID, log_options(), was_clean))
    }

    /// Opens the log after a crash.
    pub fn open(&self) -> (Log<SimDisk>, RecoveryReport) {
        match self.try_open(false) {
            Ok(opened) => opened,
            Err(error) => panic!("seed {}: {error}", self.executor.seed()),
        }
    }

    /// Appends and waits until it is durable.
    pub fn append_durably(&self, log: &Log<SimDisk>, batches: &[u8]) -> Appended {
        self.run(async {
            let appended = append(log, batches, NOW).await.expect("an append");
            log.wait(Stage::Durable, appended.end_offset).await.expect("a sync");
            appended
        })
    }

    /// All batches of the log.
    pub fn read_all(&self, log: &Log<SimDisk>) -> Vec<Stored> {
        self.run(read_from(log, log.ends().start)).expect("a sound log")
    }

    /// Files of the log whose names end so, with their contents.
    pub fn files(&self, suffix: &str) -> Vec<(PathBuf, Vec<u8>)> {
        use corelog_engine::disk::Disk;
        let entries = self.run(self.disk.list(&dir())).expect("the log's directory");
        let names = entries.into_iter().filter(|entry| entry.name.ends_with(suffix));
        names.map(|entry| dir().join(entry.name)).map(|path| (path.clone(), self.disk.peek(&path))).collect()
    }
}

/// A batch as it stands in the log.
#[derive(Clone, PartialEq, Eq)]
pub struct Stored {
    pub base: u64,
    pub end: u64,
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for Stored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let epoch = BatchHeader::parse(&self.bytes).ok().and_then(|header| header.leader_epoch);
        let crc = BatchHeader::parse(&self.bytes).map_or(0, |header| header.crc);
        let length = self.bytes.len();
        write!(f, "[{}, {}) epoch {epoch:?} {length} bytes crc {crc:08x}", self.base, self.end)
    }
}

/// A batch of `records` records, whose values are filled with `tag`.
pub fn batch(tag: u64, records: u32, value_bytes: usize) -> Vec<u8> {
    batch_at(tag, records, value_bytes, NOW)
}

/// The same with a timestamp.
pub fn batch_at(tag: u64, records: u32, value_bytes: usize, timestamp: TimestampMs) -> Vec<u8> {
    let mut builder = BatchBuilder::new(1 << 20);
    for i in 0..records {
        let value: Vec<u8> = (0..value_bytes as u64).map(|at| (tag * 31 + at * 7 + 1) as u8 | 1).collect();
        let key = (tag << 16 | u64::from(i)).to_be_bytes();
        let record = NewRecord { timestamp, key: Some(&key), value: Some(&value), headers: &[] };
        builder.push(&record).expect("room");
    }
    builder.finish(&BatchFields::default()).expect("records")
}

/// What `batches` look like once a leader of `epoch` has appended them at `base`.
pub fn stored(batches: &[u8], base: u64, epoch: u32) -> Vec<Stored> {
    let mut out = Vec::new();
    let (mut base, mut rest) = (base, batches);
    while !rest.is_empty() {
        let header = BatchHeader::parse_unstamped(rest).expect("own batches");
        let (one, behind) = rest.split_at(header.size());
        let mut bytes = one.to_vec();
        let leader_epoch = LeaderEpoch(epoch);
        stamp(&mut bytes, Stamp { base_offset: Offset(base), leader_epoch, append_time: None });
        let end = base + header.offset_count();
        out.push(Stored { base, end, bytes });
        (base, rest) = (end, behind);
    }
    out
}

/// Appends what a client sends.
pub async fn append(log: &Log<SimDisk>, batches: &[u8], now: TimestampMs) -> Result<Appended, AppendError> {
    let summary = validate(batches, &BatchLimits::default()).expect("own batches");
    let admission = log.admit(batches.len(), summary.records, now).await?;
    admission.append(batches, now)
}

/// All batches from `from` to the log end, in order; some at a time.
pub async fn read_from(log: &Log<SimDisk>, from: Offset) -> Result<Vec<Stored>, ReadError> {
    let mut out: Vec<Stored> = Vec::new();
    let mut from = from;
    let limits = ReadLimits::bytes(10_000);
    while from < log.ends().end {
        let read = log.read(from, log.ends().end, limits).await?;
        let batches = batches_of(&read.slices);
        assert!(!batches.is_empty(), "nothing at {from} of {:?}", log.ends());
        assert!(batches[0].base <= from.0, "the first batch holds {from}, or {batches:?} skips it");
        assert_eq!(batches.last().map(|b| b.end), Some(read.next_offset.0));
        assert_eq!(read.bytes, read.slices.iter().map(|s| s.len()).sum::<usize>());
        for batch in batches {
            if let Some(last) = out.last() {
                assert_eq!(last.end, batch.base, "no gap and no repeat");
            }
            out.push(batch);
        }
        from = read.next_offset;
    }
    Ok(out)
}

/// The batches in a read's answer.
pub fn batches_of(slices: &[DmaSlice]) -> Vec<Stored> {
    let stored = |span: corelog_engine::batch::BatchSpan| Stored {
        base: span.header.base_offset.0,
        end: span.header.next_offset().0,
        bytes: span.pieces(slices).flatten().copied().collect(),
    };
    BatchWalk::new(slices).map(|span| stored(span.expect("whole batches"))).collect()
}

/// Path of the segment with this base offset.
pub fn segment_path(base: u64) -> PathBuf {
    dir().join(format!("{base:020}.log"))
}

/// The same of its offset index.
pub fn index_path(base: u64) -> PathBuf {
    segment_path(base).with_extension("index")
}

/// Whether `path` is there.
pub fn exists(node: &Node, path: &Path) -> bool {
    use corelog_engine::disk::Disk;
    let dir = path.parent().expect("a path in a directory");
    let name = path.file_name().expect("a name").to_string_lossy();
    node.run(node.disk.list(dir)).is_ok_and(|entries| entries.iter().any(|entry| entry.name == name))
}
