//! One suite for every implementation of the disk contract (`engine/src/disk/mod.rs`).
//!
//! Setup: each case gets an empty directory and runs to its end on the disk's own way of running futures. The
//! real disk works in the target directory, which must lie on a file system with direct I/O.
//! What must never happen: a difference between the disks that a log could see.

use std::future::Future;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use corelog_engine::buffer::{BufferPool, DmaBuffer, DmaSlice};
use corelog_engine::disk::uring::{UringDisk, UringOptions};
use corelog_engine::disk::{BLOCK_BYTES, Disk, DiskFile, IoClass, OpenMode};
use corelog_sim::{Executor, SimDisk, SimDiskOptions};
use proptest::prelude::*;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// A disk with a way to run what uses it.
trait Runner {
    type Disk: Disk;
    fn disk(&self) -> Self::Disk;
    fn dir(&self) -> PathBuf;
    fn run<F: Future>(&self, future: F) -> F::Output;
}

struct Real {
    disk: UringDisk,
    dir: tempfile::TempDir,
}

impl Real {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
        Self { disk: UringDisk::new(&UringOptions::default()).expect("a ring"), dir }
    }
}

impl Runner for Real {
    type Disk = UringDisk;

    fn disk(&self) -> UringDisk {
        self.disk.clone()
    }

    fn dir(&self) -> PathBuf {
        self.dir.path().to_path_buf()
    }

    fn run<F: Future>(&self, future: F) -> F::Output {
        self.disk.block_on(future)
    }
}

struct Simulated {
    executor: Executor,
    disk: SimDisk,
}

impl Simulated {
    fn new(seed: u64) -> Self {
        let executor = Executor::new(seed);
        let options = SimDiskOptions { capacity_bytes: Some(1 << 30), ..SimDiskOptions::default() };
        let disk = SimDisk::new(executor.handle(), options);
        Self { executor, disk }
    }
}

impl Runner for Simulated {
    type Disk = SimDisk;

    fn disk(&self) -> SimDisk {
        self.disk.clone()
    }

    fn dir(&self) -> PathBuf {
        PathBuf::from("/")
    }

    fn run<F: Future>(&self, future: F) -> F::Output {
        self.executor.run_until(future)
    }
}

fn pool() -> BufferPool {
    BufferPool::new(8 << 20)
}

/// Blocks filled with `byte`.
fn blocks(pool: &BufferPool, byte: u8, count: usize) -> DmaSlice {
    let bytes = count * BLOCK_BYTES;
    let mut buffer = pool.try_allocate(bytes).expect("the pool of a test is large enough");
    buffer.append(&vec![byte; bytes]);
    buffer.slice(0..bytes)
}

fn empty(pool: &BufferPool, bytes: usize) -> DmaBuffer {
    pool.try_allocate(bytes).expect("the pool of a test is large enough")
}

async fn contents<F: DiskFile>(file: &F, position: u64, bytes: usize) -> Vec<u8> {
    let buffer = empty(&pool(), bytes);
    let (buffer, result) = file.read_at(buffer, bytes, position, IoClass::ColdRead).await;
    let count = result.expect("a readable range");
    assert_eq!(count, buffer.filled(), "what was read counts as filled");
    buffer.bytes().to_vec()
}

async fn create<D: Disk>(disk: &D, path: &Path) -> D::File {
    disk.open(path, OpenMode::CreateNew).await.expect("a new file")
}

fn opens_as_asked(runner: &impl Runner) {
    let (disk, path) = (runner.disk(), runner.dir().join("a"));
    runner.run(async {
        let missing = disk.open(&path, OpenMode::Existing).await.err().expect("not there yet");
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        let file = create(&disk, &path).await;
        assert_eq!(file.path(), path);
        assert_eq!(file.length().await.unwrap(), 0);
        let twice = disk.open(&path, OpenMode::CreateNew).await.err().expect("there by now");
        assert_eq!(twice.kind(), ErrorKind::AlreadyExists);
        disk.open(&path, OpenMode::Existing).await.expect("there by now");
        let nowhere = runner.dir().join("no/such/file");
        let nowhere = disk.open(&nowhere, OpenMode::CreateNew).await.err().expect("no such directory");
        assert_eq!(nowhere.kind(), ErrorKind::NotFound);
    });
}

fn names_come_and_go(runner: &impl Runner) {
    let (disk, dir) = (runner.disk(), runner.dir());
    runner.run(async {
        let deep = dir.join("x/y/z");
        disk.create_dir_all(&deep).await.unwrap();
        disk.create_dir_all(&deep).await.expect("a directory that is there is no error");
        create(&disk, &deep.join("b")).await;
        create(&disk, &deep.join("a")).await;
        disk.sync_dir(&deep).await.unwrap();
        let names = |entries: Vec<corelog_engine::disk::DirEntry>| {
            entries.into_iter().map(|entry| (entry.name, entry.is_dir)).collect::<Vec<_>>()
        };
        let seen = names(disk.list(&deep).await.unwrap());
        assert_eq!(seen, [("a".to_owned(), false), ("b".to_owned(), false)]);
        assert_eq!(names(disk.list(&dir).await.unwrap()), [("x".to_owned(), true)]);

        disk.rename(&deep.join("a"), &deep.join("b")).await.expect("a file may be replaced");
        assert_eq!(names(disk.list(&deep).await.unwrap()), [("b".to_owned(), false)]);
        disk.rename(&dir.join("x"), &dir.join("w")).await.expect("a directory may be renamed");
        disk.open(&dir.join("w/y/z/b"), OpenMode::Existing).await.expect("moved with its directory");

        let missing = disk.remove_file(&dir.join("w/none")).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        disk.remove_file(&dir.join("w/y/z/b")).await.unwrap();
        create(&disk, &dir.join("w/y/c")).await;
        disk.remove_dir_all(&dir.join("w")).await.unwrap();
        assert_eq!(names(disk.list(&dir).await.unwrap()), []);
        disk.remove_dir_all(&dir.join("w")).await.expect("what is not there is no error");
        let missing = disk.list(&dir.join("w")).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    });
}

fn reads_what_was_written(runner: &impl Runner) {
    let (disk, path, pool) = (runner.disk(), runner.dir().join("a"), pool());
    runner.run(async {
        let file = create(&disk, &path).await;
        let slices = vec![blocks(&pool, 1, 1), blocks(&pool, 2, 3), blocks(&pool, 3, 2)];
        file.write_at(slices, BLOCK, IoClass::Commit).await.unwrap();
        file.sync().await.unwrap();
        assert_eq!(file.length().await.unwrap(), 7 * BLOCK);
        let bytes = contents(&file, 0, 8 * BLOCK_BYTES).await;
        assert_eq!(bytes.len(), 7 * BLOCK_BYTES, "a read ends at the end of the file");
        let firsts: Vec<u8> = bytes.chunks(BLOCK_BYTES).map(|block| block[0]).collect();
        assert_eq!(firsts, [0, 1, 2, 2, 2, 3, 3], "a hole reads as zeroes");
        assert_eq!(contents(&file, 9 * BLOCK, BLOCK_BYTES).await, [0_u8; 0], "nothing is behind the end");

        // A part of a buffer, at a place in the middle.
        let wide = blocks(&pool, 9, 4);
        let part = wide.slice(BLOCK_BYTES..2 * BLOCK_BYTES);
        file.write_at(vec![part], 3 * BLOCK, IoClass::Background).await.unwrap();
        let bytes = contents(&file, 2 * BLOCK, 3 * BLOCK_BYTES).await;
        let firsts: Vec<u8> = bytes.chunks(BLOCK_BYTES).map(|block| block[0]).collect();
        assert_eq!(firsts, [2, 9, 2]);
        file.write_at(Vec::new(), 0, IoClass::Commit).await.expect("nothing to write is no error");
    });
}

fn writes_vectors_of_many_buffers(runner: &impl Runner) {
    let (disk, path) = (runner.disk(), runner.dir().join("a"));
    let pool = BufferPool::new(16 << 20);
    runner.run(async {
        // More slices than one kernel call takes (1,024).
        let slices: Vec<_> = (0..2500).map(|i| blocks(&pool, (i % 251) as u8, 1)).collect();
        let file = create(&disk, &path).await;
        file.write_at(slices, 0, IoClass::Commit).await.unwrap();
        for i in [0, 1, 1023, 1024, 1025, 2047, 2048, 2499] {
            assert_eq!(contents(&file, i * BLOCK, BLOCK_BYTES).await[0], (i % 251) as u8, "block {i}");
        }
        assert_eq!(file.length().await.unwrap(), 2500 * BLOCK);
    });
}

fn zeroes_and_lengths(runner: &impl Runner) {
    let (disk, path, pool) = (runner.disk(), runner.dir().join("a"), pool());
    runner.run(async {
        let file = create(&disk, &path).await;
        file.write_at(vec![blocks(&pool, 7, 4)], 0, IoClass::Commit).await.unwrap();
        file.zero(BLOCK, 5 << 20, IoClass::Background).await.unwrap();
        assert_eq!(file.length().await.unwrap(), 5 << 20, "zeroing grows the file");
        assert_eq!(contents(&file, 0, BLOCK_BYTES).await, [7; BLOCK_BYTES], "nothing before is touched");
        for position in [BLOCK, 1 << 20, (5 << 20) - BLOCK] {
            assert_eq!(contents(&file, position, BLOCK_BYTES).await, [0; BLOCK_BYTES], "at {position}");
        }
        file.zero(0, 0, IoClass::Background).await.expect("an empty range is no error");
        assert_eq!(contents(&file, 0, BLOCK_BYTES).await[0], 7);

        file.set_length(5000).await.expect("any length, not only whole blocks");
        assert_eq!(file.length().await.unwrap(), 5000);
        assert_eq!(contents(&file, 0, 2 * BLOCK_BYTES).await.len(), 5000);
        file.set_length(3 * BLOCK).await.unwrap();
        let bytes = contents(&file, 0, 4 * BLOCK_BYTES).await;
        assert_eq!(bytes.len(), 3 * BLOCK_BYTES);
        assert!(bytes[5000..].iter().all(|&byte| byte == 0), "what was cut does not come back");
    });
}

fn small_files_are_replaced_whole(runner: &impl Runner) {
    let (disk, dir) = (runner.disk(), runner.dir());
    let path = dir.join("checkpoint");
    runner.run(async {
        disk.replace_file(&path, b"old".to_vec()).await.unwrap();
        disk.replace_file(&path, b"new and longer".to_vec()).await.unwrap();
        assert_eq!(disk.read_file(&path, 100).await.unwrap(), b"new and longer");
        let big = disk.read_file(&path, 13).await.unwrap_err();
        assert_eq!(big.kind(), ErrorKind::InvalidData);
        disk.replace_file(&path, Vec::new()).await.unwrap();
        assert_eq!(disk.read_file(&path, 0).await.unwrap(), b"");
        assert_eq!(disk.list(&dir).await.unwrap().len(), 1, "nothing is left beside it");
        let missing = disk.read_file(&dir.join("none"), 1).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        let big: Vec<u8> = (0..20 << 20).map(|i| (i / 4096) as u8).collect();
        disk.replace_file(&path, big.clone()).await.unwrap();
        assert!(disk.read_file(&path, 32 << 20).await.unwrap() == big);
        // Direct reads see what was replaced.
        let file = disk.open(&path, OpenMode::Existing).await.unwrap();
        assert_eq!(contents(&file, 4096 * 300, BLOCK_BYTES).await[0], (300 % 256) as u8);
    });
}

fn many_operations_at_once(runner: &impl Runner) {
    let (disk, path) = (runner.disk(), runner.dir().join("a"));
    let pool = BufferPool::new(16 << 20);
    runner.run(async {
        let file = create(&disk, &path).await;
        let classes = [IoClass::Commit, IoClass::ColdRead, IoClass::Background];
        let writes = (0..1000u64).map(|i| {
            let slice = blocks(&pool, (i % 253) as u8, 1);
            file.write_at(vec![slice], i * BLOCK, classes[i as usize % 3])
        });
        for result in futures_util::future::join_all(writes).await {
            result.unwrap();
        }
        assert_eq!(pool.used_bytes(), 0, "the memory of finished writes is free again");
        let reads = (0..1000u64).map(|i| {
            file.read_at(empty(&pool, BLOCK_BYTES), BLOCK_BYTES, i * BLOCK, classes[i as usize % 3])
        });
        for (i, (buffer, result)) in futures_util::future::join_all(reads).await.into_iter().enumerate() {
            assert_eq!(result.unwrap(), BLOCK_BYTES);
            assert_eq!(buffer.bytes(), [(i % 253) as u8; BLOCK_BYTES], "block {i}");
        }
    });
}

fn dropped_futures_do_not_cancel(runner: &impl Runner) {
    let (disk, path, pool) = (runner.disk(), runner.dir().join("a"), pool());
    runner.run(async {
        let file = create(&disk, &path).await;
        for i in 0..64 {
            drop(file.write_at(vec![blocks(&pool, 5, 1)], i * BLOCK, IoClass::Commit));
        }
        // The buffers of dropped reads stay lent until the disk is done with them.
        for i in 0..64 {
            drop(file.read_at(empty(&pool, BLOCK_BYTES), BLOCK_BYTES, i * BLOCK, IoClass::ColdRead));
        }
        drop(disk.open(&path, OpenMode::Existing));
        let mut rounds = 0;
        while pool.used_bytes() > 0 {
            file.sync().await.unwrap();
            rounds += 1;
            assert!(rounds < 10_000, "{} bytes never come back", pool.used_bytes());
        }
        for i in 0..64 {
            assert_eq!(contents(&file, i * BLOCK, BLOCK_BYTES).await[0], 5, "block {i}");
        }
    });
}

fn removed_files_stay_readable(runner: &impl Runner) {
    let (disk, path, pool) = (runner.disk(), runner.dir().join("a"), pool());
    runner.run(async {
        let file = create(&disk, &path).await;
        file.write_at(vec![blocks(&pool, 4, 1)], 0, IoClass::Commit).await.unwrap();
        let other = file.clone();
        disk.remove_file(&path).await.unwrap();
        drop(file);
        assert_eq!(contents(&other, 0, BLOCK_BYTES).await[0], 4, "who holds it open can read it");
        let fresh = create(&disk, &path).await;
        assert_eq!(fresh.length().await.unwrap(), 0, "the name is free for another file");
    });
}

fn knows_its_free_space(runner: &impl Runner) {
    let (disk, dir) = (runner.disk(), runner.dir());
    runner.run(async {
        let free_bytes = disk.free_bytes(&dir).await.unwrap();
        assert!(free_bytes > 0);
        // Zeroing that cannot fit takes nothing, so that those who write still can.
        let (file, pool) = (create(&disk, &dir.join("a")).await, pool());
        let full = file.zero(0, 1 << 43, IoClass::Background).await.unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        assert_eq!(file.length().await.unwrap(), 0);
        file.write_at(vec![blocks(&pool, 1, 1)], 0, IoClass::Commit).await.unwrap();
    });
}

macro_rules! suite {
    ($name:ident, $make:expr) => {
        mod $name {
            use super::*;

            suite!(@each $make; opens_as_asked names_come_and_go reads_what_was_written
                writes_vectors_of_many_buffers zeroes_and_lengths small_files_are_replaced_whole
                many_operations_at_once dropped_futures_do_not_cancel removed_files_stay_readable
                knows_its_free_space);
        }
    };
    (@each $make:expr; $($case:ident)*) => {
        $(#[test]
        fn $case() {
            super::$case(&$make);
        })*
    };
}

suite!(real, Real::new());
suite!(simulated, Simulated::new(8123));

/// Flags in `/proc/self/fdinfo`, in octal as the kernel prints them.
fn descriptor_flags(fd: i32) -> i32 {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("fdinfo of an open file");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("a line with the flags");
    i32::from_str_radix(flags.trim(), 8).expect("octal")
}

#[test]
fn real_files_are_opened_for_direct_io() {
    let runner = Real::new();
    let file = runner.run(async { create(&runner.disk(), &runner.dir().join("a")).await });
    let flags = descriptor_flags(file.raw_fd());
    assert_ne!(flags & libc::O_DIRECT, 0, "flags {flags:o} have no O_DIRECT");
    assert_ne!(flags & libc::O_CLOEXEC, 0, "flags {flags:o} have no O_CLOEXEC");
}

#[test]
fn a_file_system_without_direct_io_is_named() {
    let runner = Real::new();
    // One of the few files that may be opened for writing and has no direct I/O.
    let path = Path::new("/proc/self/comm");
    let error = runner.run(async { runner.disk().open(path, OpenMode::Existing).await.err() });
    let error = error.expect("procfs has no direct I/O");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("/proc/self/comm"), "{error}");
}

#[test]
fn depth_limits_queue_and_everything_runs_in_the_end() {
    let options = UringOptions {
        commit_depth_max: 2,
        cold_read_depth_max: 1,
        background_depth_max: 1,
        ..Default::default()
    };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let disk = UringDisk::new(&options).expect("a ring");
    let pool = pool();
    let file = disk.block_on(async { create(&disk, &dir.path().join("a")).await });
    let writes: Vec<_> = disk.batched(|| {
        (0..50).map(|i| file.write_at(vec![blocks(&pool, 1, 1)], i * BLOCK, IoClass::Background)).collect()
    });
    let stats = disk.stats();
    assert_eq!((stats.background.in_flight, stats.background.queued), (1, 49));
    for result in disk.block_on(futures_util::future::join_all(writes)) {
        result.unwrap();
    }
    let stats = disk.stats();
    assert_eq!((stats.background.in_flight, stats.background.queued), (0, 0));
    assert_eq!(stats.background.ops, 50);
    assert_eq!(stats.background.bytes_written, 50 * BLOCK);
}

#[test]
fn a_batch_costs_one_system_call() {
    let runner = Real::new();
    let pool = pool();
    let file = runner.run(async { create(&runner.disk(), &runner.dir().join("a")).await });
    let before = runner.disk.stats().enters;
    let writes: Vec<_> = runner.disk.batched(|| {
        (0..32).map(|i| file.write_at(vec![blocks(&pool, 1, 1)], i * BLOCK, IoClass::Commit)).collect()
    });
    assert_eq!(runner.disk.stats().enters - before, 1);
    runner.run(futures_util::future::join_all(writes)).into_iter().for_each(|result| result.unwrap());
}

#[test]
fn the_eventfd_fires_when_something_can_be_reaped() {
    let runner = Real::new();
    let pool = pool();
    let file = runner.run(async { create(&runner.disk(), &runner.dir().join("a")).await });
    for round in 0..100 {
        let write = file.write_at(vec![blocks(&pool, 1, 1)], round * BLOCK, IoClass::Commit);
        let mut reaped = 0;
        while reaped == 0 {
            assert!(poll_readable(&runner.disk, 10_000), "no sign within ten seconds, round {round}");
            reaped = runner.disk.reap();
        }
        runner.run(write).unwrap();
    }
}

/// Waits for the eventfd to be readable, and takes its count.
fn poll_readable(disk: &UringDisk, timeout_ms: i32) -> bool {
    use std::os::fd::AsRawFd;
    let fd = disk.eventfd().as_raw_fd();
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, alive for the call.
    if unsafe { libc::poll(&mut poll, 1, timeout_ms) } != 1 {
        return false;
    }
    let mut count = [0u8; 8];
    // SAFETY: eight bytes, alive for the call.
    assert_eq!(unsafe { libc::read(fd, count.as_mut_ptr().cast(), 8) }, 8);
    true
}

#[test]
fn dropping_the_disk_waits_for_what_is_in_flight() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let pool = pool();
    let path = dir.path().join("a");
    {
        let disk = UringDisk::new(&UringOptions::default()).expect("a ring");
        let file = disk.block_on(async { create(&disk, &path).await });
        for i in 0..64 {
            drop(file.write_at(vec![blocks(&pool, 3, 1)], i * BLOCK, IoClass::Background));
        }
    }
    assert_eq!(pool.used_bytes(), 0, "nothing is lent any more");
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 64 * BLOCK_BYTES);
    assert!(bytes.iter().all(|&byte| byte == 3));
}

/// One operation of a random story on a few names.
#[derive(Clone, Debug)]
enum Step {
    Open { name: u8, mode: OpenMode },
    Close { name: u8 },
    Write { name: u8, block: u8, counts: Vec<u8>, byte: u8 },
    Read { name: u8, block: u8, count: u8 },
    Zero { name: u8, block: u8, count: u8 },
    SetLength { name: u8, length: u32 },
    Sync { name: u8 },
    Rename { from: u8, to: u8 },
    Remove { name: u8 },
    Replace { name: u8, bytes: u16, byte: u8 },
    ReadWhole { name: u8 },
    SyncDir,
    List,
}

fn step() -> impl Strategy<Value = Step> {
    let name = || 0..4u8;
    prop_oneof![
        3 => (name(), any::<bool>()).prop_map(|(name, new)| {
            Step::Open { name, mode: if new { OpenMode::CreateNew } else { OpenMode::Existing } }
        }),
        1 => name().prop_map(|name| Step::Close { name }),
        4 => (name(), 0..20u8, prop::collection::vec(1..4u8, 0..4), 1..255u8)
            .prop_map(|(name, block, counts, byte)| Step::Write { name, block, counts, byte }),
        3 => (name(), 0..24u8, 1..8u8).prop_map(|(name, block, count)| Step::Read { name, block, count }),
        1 => (name(), 0..20u8, 0..8u8).prop_map(|(name, block, count)| Step::Zero { name, block, count }),
        1 => (name(), 0..100_000u32).prop_map(|(name, length)| Step::SetLength { name, length }),
        1 => name().prop_map(|name| Step::Sync { name }),
        1 => (name(), name()).prop_map(|(from, to)| Step::Rename { from, to }),
        1 => name().prop_map(|name| Step::Remove { name }),
        1 => (name(), 0..20_000u16, any::<u8>())
            .prop_map(|(name, bytes, byte)| Step::Replace { name, bytes, byte }),
        1 => name().prop_map(|name| Step::ReadWhole { name }),
        1 => Just(Step::SyncDir),
        1 => Just(Step::List),
    ]
}

/// Does the step; says what came of it, as far as it must be the same on all disks.
async fn take_step<D: Disk>(disk: &D, dir: &Path, files: &mut [Option<D::File>], step: &Step) -> String {
    let path = |name: &u8| dir.join(format!("f{name}"));
    let pool = pool();
    let outcome = |result: std::io::Result<()>| format!("{:?}", result.map_err(|error| error.kind()));
    match step {
        Step::Open { name, mode } => {
            let opened = disk.open(&path(name), *mode).await;
            let said = outcome(opened.as_ref().map(|_| ()).map_err(|error| error.kind().into()));
            files[*name as usize] = opened.ok().or(files[*name as usize].take());
            said
        }
        Step::Close { name } => {
            files[*name as usize] = None;
            String::new()
        }
        Step::Rename { from, to } => outcome(disk.rename(&path(from), &path(to)).await),
        Step::Remove { name } => outcome(disk.remove_file(&path(name)).await),
        Step::Replace { name, bytes, byte } => {
            outcome(disk.replace_file(&path(name), vec![*byte; *bytes as usize]).await)
        }
        Step::ReadWhole { name } => {
            let read = disk.read_file(&path(name), 30_000).await.map_err(|error| error.kind());
            format!("{:?}", read.map(|bytes| (bytes.len(), crc32c::crc32c(&bytes))))
        }
        Step::SyncDir => outcome(disk.sync_dir(dir).await),
        Step::List => format!("{:?}", disk.list(dir).await),
        Step::Write { name, .. }
        | Step::Read { name, .. }
        | Step::Zero { name, .. }
        | Step::SetLength { name, .. }
        | Step::Sync { name } => {
            let Some(file) = &files[*name as usize] else { return String::new() };
            let done = match step {
                Step::Write { block, counts, byte, .. } => {
                    let slices = counts.iter().map(|&count| blocks(&pool, *byte, count as usize)).collect();
                    file.write_at(slices, u64::from(*block) * BLOCK, IoClass::Commit).await
                }
                Step::Zero { block, count, .. } => {
                    let start = u64::from(*block) * BLOCK;
                    file.zero(start, start + u64::from(*count) * BLOCK, IoClass::Background).await
                }
                Step::SetLength { length, .. } => file.set_length(u64::from(*length)).await,
                Step::Sync { .. } => file.sync().await,
                Step::Read { block, count, .. } => {
                    let bytes =
                        contents(file, u64::from(*block) * BLOCK, *count as usize * BLOCK_BYTES).await;
                    return format!("{} {:x}", bytes.len(), crc32c::crc32c(&bytes));
                }
                _ => unreachable!("the outer match has taken the rest"),
            };
            format!("{} {}", outcome(done), file.length().await.expect("the length of an open file"))
        }
    }
}

fn story(runner: &impl Runner, steps: &[Step]) -> Vec<String> {
    let (disk, dir) = (runner.disk(), runner.dir());
    runner.run(async {
        let mut files = [const { None }; 4];
        let mut said = Vec::new();
        for step in steps {
            said.push(take_step(&disk, &dir, &mut files, step).await);
        }
        said
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_simulated_disk_says_what_the_real_one_says(steps in prop::collection::vec(step(), 1..60)) {
        let real = story(&Real::new(), &steps);
        let simulated = story(&Simulated::new(1), &steps);
        for (i, (real, simulated)) in real.iter().zip(&simulated).enumerate() {
            prop_assert_eq!(real, simulated, "step {} of {:?}", i, steps);
        }
    }
}
