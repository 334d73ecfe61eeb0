//! The raw device through io_uring and direct I/O, at a fixed size and depth.
//!
//! Owns: one unnamed file (it vanishes with the process, whatever happens to it), written once before it is
//! measured, since the first write to a block costs the file system an allocation that no later one pays.
//! Invariant: free space is checked before the first byte is written.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode};
use serde::Serialize;

use crate::error::{BenchError, BenchResult};
use crate::latency::{Latencies, Percentiles};

/// Alignment of direct I/O.
const BLOCK_BYTES: u64 = 4096;
/// Largest operation, so that the memory for all of a depth stays bounded.
const OPERATION_BYTES_MAX: u64 = 64 << 20;
/// Deepest queue.
const DEPTH_MAX: u32 = 1024;
/// Memory for all operations in flight.
const BUFFERS_BYTES_MAX: u64 = 1 << 30;
/// Free space that a run leaves to others.
const RESERVE_BYTES: u64 = 1 << 30;

/// What is done to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskOperation {
    /// A direct write.
    Write,
    /// A direct write, then fdatasync, linked: done when both are.
    SyncedWrite,
    /// A direct read.
    Read,
    /// A synced write on each of several files at the same time: done when the slowest is.
    SlowestOf,
}

impl DiskOperation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::SyncedWrite => "synced write",
            Self::Read => "read",
            Self::SlowestOf => "slowest of sync",
        }
    }
}

/// What one combination reached.
#[derive(Clone, Debug, Serialize)]
pub struct DiskFloor {
    /// The operation.
    pub operation: DiskOperation,
    /// Bytes of each.
    pub block_bytes: u64,
    /// How many were in flight.
    pub depth: u32,
    /// Operations a second asked for; `None` means as many as go.
    pub rate: Option<f64>,
    /// How many were done.
    pub operations: u64,
    /// How many a second.
    pub operations_per_second: f64,
    /// Millions of bytes a second.
    pub megabytes_per_second: f64,
    /// From submission (or the intended time, at a rate) to completion.
    pub latency: Percentiles,
}

/// A file to measure on.
#[derive(Debug)]
pub struct DiskTarget {
    file: File,
    file_bytes: u64,
}

impl DiskTarget {
    /// Creates an unnamed file of `file_bytes` in `dir` and writes all of it once.
    pub fn create(dir: &Path, file_bytes: u64) -> BenchResult<Self> {
        let file_bytes = file_bytes / BLOCK_BYTES * BLOCK_BYTES;
        let disk = corelog_tuning::disk::detect(dir).map_err(BenchError::io(dir.display().to_string()))?;
        if file_bytes.saturating_add(RESERVE_BYTES) > disk.free_bytes {
            return Err(BenchError::NotEnoughSpace {
                dir: dir.display().to_string(),
                free_bytes: disk.free_bytes,
                needed_bytes: file_bytes,
                reserve_bytes: RESERVE_BYTES,
            });
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_TMPFILE | libc::O_DIRECT)
            .mode(0o600)
            .open(dir)
            .map_err(BenchError::io(format!("no file for direct I/O in {}", dir.display())))?;
        let target = Self { file, file_bytes };
        target.write_once()?;
        Ok(target)
    }

    fn write_once(&self) -> BenchResult<()> {
        let piece_bytes = self.file_bytes.min(1 << 20);
        if piece_bytes == 0 {
            return Err(BenchError::Usage(format!("the file is smaller than {BLOCK_BYTES} bytes")));
        }
        let buffer = Buffers::new(1, piece_bytes);
        let mut position = 0;
        while position < self.file_bytes {
            let length = piece_bytes.min(self.file_bytes - position) as usize;
            // SAFETY: the buffer is alive and at least `length` bytes long for the whole call.
            let written = unsafe {
                libc::pwrite(self.file.as_raw_fd(), buffer.at(0).cast(), length, position as libc::off_t)
            };
            if written != length as isize {
                return Err(BenchError::io("writing the file once")(std::io::Error::last_os_error()));
            }
            position += length as u64;
        }
        self.file.sync_all().map_err(BenchError::io("syncing the file"))
    }

    /// Measures one combination for `duration`. Positions run through the file and wrap, as a log's do.
    pub fn measure(
        &self,
        operation: DiskOperation,
        block_bytes: u64,
        depth: u32,
        rate: Option<f64>,
        duration: Duration,
    ) -> BenchResult<DiskFloor> {
        self.check(block_bytes, depth)?;
        let targets = [self];
        let mut run = Run::new(&targets, operation, block_bytes, depth)?;
        let start = Instant::now();
        match rate {
            Some(rate) => run.paced(start, rate, duration)?,
            None => run.flat_out(depth, start + duration)?,
        }
        Ok(run.floor(depth, rate, start))
    }

    /// Measures one synced write on each file at the same time, again and again: the latency is that of the slowest,
    /// which is what a record waits for whose replicas all sync it in parallel.
    pub fn measure_together(
        targets: &[&DiskTarget],
        block_bytes: u64,
        rate: Option<f64>,
        duration: Duration,
    ) -> BenchResult<DiskFloor> {
        let files = targets.len() as u32;
        targets.iter().try_for_each(|target| target.check(block_bytes, 1))?;
        let mut run = Run::new(targets, DiskOperation::SyncedWrite, block_bytes, files)?;
        let start = Instant::now();
        run.together(files, start, rate, duration)?;
        let floor = run.floor(files, rate, start);
        Ok(DiskFloor { operation: DiskOperation::SlowestOf, ..floor })
    }

    fn check(&self, block_bytes: u64, depth: u32) -> BenchResult<()> {
        let fault = if block_bytes == 0
            || !block_bytes.is_multiple_of(BLOCK_BYTES)
            || block_bytes > OPERATION_BYTES_MAX
        {
            format!("{block_bytes} bytes is no multiple of {BLOCK_BYTES} up to {OPERATION_BYTES_MAX}")
        } else if !(1..=DEPTH_MAX).contains(&depth) {
            format!("depth {depth} is not between 1 and {DEPTH_MAX}")
        } else if block_bytes * u64::from(depth) > self.file_bytes.min(BUFFERS_BYTES_MAX) {
            format!(
                "{depth} operations of {block_bytes} bytes are more than the file or {BUFFERS_BYTES_MAX} bytes"
            )
        } else {
            return Ok(());
        };
        Err(BenchError::Usage(fault))
    }
}

/// One combination being measured. Each slot has one buffer and at most one operation in flight.
struct Run<'a> {
    ring: IoUring,
    buffers: Buffers,
    started: Vec<Instant>,
    /// Slot i works on the file i modulo their number.
    targets: &'a [&'a DiskTarget],
    operation: DiskOperation,
    block_bytes: u64,
    next: u64,
    /// Completions that the kernel still owes.
    pending: usize,
    latencies: Latencies,
}

impl Drop for Run<'_> {
    /// After an error others are still in flight, and the kernel may write to their buffers until they complete.
    fn drop(&mut self) {
        while self.pending > 0 && self.ring.submit_and_wait(1).is_ok() {
            self.pending -= self.ring.completion().count();
        }
    }
}

/// Marks the completion of a write that a sync follows.
const FIRST_OF_TWO: u64 = 1 << 63;

impl<'a> Run<'a> {
    fn new(
        targets: &'a [&'a DiskTarget],
        operation: DiskOperation,
        block_bytes: u64,
        depth: u32,
    ) -> BenchResult<Self> {
        Ok(Self {
            ring: IoUring::new(depth * 2).map_err(BenchError::io("opening an io_uring"))?,
            buffers: Buffers::new(depth, block_bytes),
            started: vec![Instant::now(); depth as usize],
            targets,
            operation,
            block_bytes,
            next: 0,
            pending: 0,
            latencies: Latencies::default(),
        })
    }

    fn floor(&self, depth: u32, rate: Option<f64>, start: Instant) -> DiskFloor {
        let seconds = start.elapsed().as_secs_f64();
        let latency = self.latencies.percentiles();
        let operations_per_second = latency.count as f64 / seconds;
        DiskFloor {
            operation: self.operation,
            block_bytes: self.block_bytes,
            depth,
            rate,
            operations: latency.count,
            operations_per_second,
            megabytes_per_second: operations_per_second * self.block_bytes as f64 / 1e6,
            latency,
        }
    }

    /// Starts one operation on each file, waits for all of them, and begins again, as fast as that goes or at `rate`.
    fn together(
        &mut self,
        files: u32,
        start: Instant,
        rate: Option<f64>,
        duration: Duration,
    ) -> BenchResult<()> {
        let mut round = 0_u64;
        while start.elapsed() < duration {
            let intended = match rate {
                Some(rate) => start + Duration::from_secs_f64(round as f64 / rate),
                None => Instant::now(),
            };
            std::thread::sleep(intended.saturating_duration_since(Instant::now()));
            (0..files).try_for_each(|slot| self.submit(slot, intended))?;
            let mut left = files as usize;
            while left > 0 {
                left -= self.wait()?.len();
            }
            self.latencies.record(intended.elapsed());
            round += 1;
        }
        Ok(())
    }

    /// Keeps `depth` operations in flight until `deadline`, then waits for the last of them.
    fn flat_out(&mut self, depth: u32, deadline: Instant) -> BenchResult<()> {
        for slot in 0..depth {
            self.submit(slot, Instant::now())?;
        }
        let mut in_flight = depth;
        while in_flight > 0 {
            for slot in self.wait()? {
                let now = Instant::now();
                self.latencies.record(now - self.started[slot as usize]);
                if now < deadline {
                    self.submit(slot, now)?;
                } else {
                    in_flight -= 1;
                }
            }
        }
        Ok(())
    }

    /// Starts one operation after the other at `rate` a second; one that is late does not delay the intended time
    /// of the next.
    fn paced(&mut self, start: Instant, rate: f64, duration: Duration) -> BenchResult<()> {
        let count = (duration.as_secs_f64() * rate) as u64;
        for i in 0..count {
            let intended = start + Duration::from_secs_f64(i as f64 / rate);
            std::thread::sleep(intended.saturating_duration_since(Instant::now()));
            self.submit(0, intended)?;
            while self.wait()?.is_empty() {}
            self.latencies.record(intended.elapsed());
        }
        Ok(())
    }

    fn submit(&mut self, slot: u32, started: Instant) -> BenchResult<()> {
        let position = self.next * self.block_bytes;
        let after = position + self.block_bytes;
        self.next = if after + self.block_bytes > self.targets[0].file_bytes { 0 } else { self.next + 1 };
        self.started[slot as usize] = started;
        let target = self.targets[slot as usize % self.targets.len()];
        let fd = Fd(target.file.as_raw_fd());
        let (memory, length, slot) = (self.buffers.at(slot), self.block_bytes as u32, u64::from(slot));
        let write = opcode::Write::new(fd, memory, length).offset(position).build();
        match self.operation {
            DiskOperation::Write => self.push(&[write.user_data(slot)]),
            DiskOperation::Read => {
                let read = opcode::Read::new(fd, memory, length).offset(position).build();
                self.push(&[read.user_data(slot)])
            }
            DiskOperation::SyncedWrite | DiskOperation::SlowestOf => {
                let sync = opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build();
                self.push(&[write.flags(Flags::IO_LINK).user_data(slot | FIRST_OF_TWO), sync.user_data(slot)])
            }
        }
    }

    fn push(&mut self, entries: &[Entry]) -> BenchResult<()> {
        // SAFETY: the entries name the target's descriptor and a buffer of this run; both outlive the ring.
        unsafe { self.ring.submission().push_multiple(entries) }
            .map_err(|_| BenchError::Usage("the submission queue is full".into()))?;
        self.pending += entries.len();
        Ok(())
    }

    /// Submits what is queued, waits for at least one completion, and yields the slots that are done.
    fn wait(&mut self) -> BenchResult<Vec<u32>> {
        self.ring.submit_and_wait(1).map_err(BenchError::io("waiting for the device"))?;
        let mut done = Vec::new();
        for completion in self.ring.completion() {
            self.pending -= 1;
            let (result, data) = (completion.result(), completion.user_data());
            let is_sync = self.operation == DiskOperation::SyncedWrite && data & FIRST_OF_TWO == 0;
            let expected = if is_sync { 0 } else { self.block_bytes as i32 };
            if result < 0 {
                let error = std::io::Error::from_raw_os_error(-result);
                return Err(BenchError::io(self.operation.name())(error));
            }
            if result != expected {
                let error = std::io::Error::other(format!("{result} of {expected} bytes"));
                return Err(BenchError::io(self.operation.name())(error));
            }
            if data & FIRST_OF_TWO == 0 {
                done.push(data as u32);
            }
        }
        Ok(done)
    }
}

/// Aligned memory, one piece for each slot, filled with bytes that no device can shrink.
struct Buffers {
    memory: NonNull<u8>,
    layout: Layout,
    piece_bytes: usize,
}

impl Buffers {
    fn new(count: u32, piece_bytes: u64) -> Self {
        let piece_bytes = piece_bytes as usize;
        let layout = Layout::from_size_align(piece_bytes * count as usize, BLOCK_BYTES as usize)
            .expect("the sizes were checked and the alignment is a power of two");
        // SAFETY: the layout is not empty: sizes and counts were checked to be positive.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).expect("memory for the buffers");
        // SAFETY: the allocation is `layout.size()` bytes long, initialised, and nobody else knows it yet.
        let bytes = unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), layout.size()) };
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for word in bytes.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        Self { memory, layout, piece_bytes }
    }

    fn at(&self, slot: u32) -> *mut u8 {
        let position = slot as usize * self.piece_bytes;
        assert!(position < self.layout.size(), "slot {slot} has no buffer");
        // SAFETY: the position lies within the allocation.
        unsafe { self.memory.as_ptr().add(position) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) };
    }
}
