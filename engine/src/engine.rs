//! What the logs of one shard on one data directory share: disk, memory, and the two drivers.
//!
//! Owns: the queue of logs with something to write or sync, the queue of background work, the order in which
//! cached chunks are evicted, the blocks kept aside for tail writes.
//! Invariant: at most `commit_depth_max` writes and syncs are in flight; a log with something to do is queued once.
//! Invariant: dirty bytes can always be written without asking the pool for memory, because the private copies
//! of tail blocks come from blocks kept aside. So memory held by dirty chunks always comes back.
//! Not here: what a log does next (`log/commit.rs`).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::Poll;

use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::buffer::{BUFFER_BYTES_MAX, BufferPool, DmaBuffer};
use crate::disk::{BLOCK_BYTES, Disk};
use crate::log::{AHEAD_BYTES_MIN, EngineOptions, Log, Segment};
use crate::notify::{Notify, Pass, Turnstile};

/// A piece of work that a driver runs to its end.
pub(crate) type Job = Pin<Box<dyn Future<Output = ()>>>;

/// Background jobs at a time: they share the device with commits.
const BACKGROUND_JOBS_MAX: usize = 4;

/// Places in the queue of cached chunks that are worth clearing.
const CACHED_STALE_MIN: usize = 256;

/// The engine of one shard on one data directory. Cheap to clone.
pub struct Engine<D: Disk>(Rc<EngineState<D>>);

struct EngineState<D: Disk> {
    disk: D,
    pool: BufferPool,
    options: EngineOptions,
    ready: RefCell<VecDeque<Log<D>>>,
    ready_changed: Notify,
    /// Work for the commit driver that must reach its end.
    detached: RefCell<Vec<Job>>,
    background: RefCell<VecDeque<Job>>,
    background_changed: Notify,
    /// Clean chunks in memory, oldest first.
    cached: RefCell<VecDeque<CachedChunk<D>>>,
    /// How many of them are known to be gone.
    cached_stale: Cell<usize>,
    /// Active segments with a tail chunk in memory.
    open_tails: RefCell<VecDeque<Weak<Segment<D>>>>,
    tail_blocks: RefCell<Vec<DmaBuffer>>,
    memory_turnstile: Turnstile,
    recovery_turnstile: Turnstile,
    /// How far all logs together are to be written ahead.
    ahead_bytes: Cell<u64>,
    stopping: Cell<bool>,
    open_files: RefCell<VecDeque<Weak<Segment<D>>>>,
    counters: Counters,
}

struct CachedChunk<D: Disk> {
    segment: Weak<Segment<D>>,
    start: u64,
}

/// Counters of one engine, since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Bytes appended to logs.
    pub appended_bytes: u64,
    /// Records appended to logs.
    pub appended_records: u64,
    /// Bytes given to the device by commits, padding and rewritten tail blocks included.
    pub device_written_bytes: u64,
    /// Bytes zeroed ahead of appends.
    pub device_zeroed_bytes: u64,
    /// Bytes of cold reads.
    pub device_read_bytes: u64,
    /// Device writes of commits.
    pub writes: u64,
    /// Device syncs of commits.
    pub syncs: u64,
    /// Bytes copied in user space between the receive buffer and the device: each appended byte once, and the
    /// private copies of partial tail blocks.
    pub copied_bytes: u64,
    /// Segments made from expired ones.
    pub recycled_segments: u64,
    /// Chunks evicted because memory was short.
    pub evictions: u64,
}

impl EngineStats {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: &Self) -> Self {
        Self {
            appended_bytes: self.appended_bytes + other.appended_bytes,
            appended_records: self.appended_records + other.appended_records,
            device_written_bytes: self.device_written_bytes + other.device_written_bytes,
            device_zeroed_bytes: self.device_zeroed_bytes + other.device_zeroed_bytes,
            device_read_bytes: self.device_read_bytes + other.device_read_bytes,
            writes: self.writes + other.writes,
            syncs: self.syncs + other.syncs,
            copied_bytes: self.copied_bytes + other.copied_bytes,
            recycled_segments: self.recycled_segments + other.recycled_segments,
            evictions: self.evictions + other.evictions,
        }
    }
}

#[derive(Default)]
struct Counters(Cell<EngineStats>);

impl<D: Disk> Clone for Engine<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: Disk> Engine<D> {
    /// An engine without logs. Its drivers have to run before anything becomes written or durable.
    ///
    /// # Panics
    /// If the pool cannot give one block per write in flight.
    pub fn new(disk: D, pool: BufferPool, options: EngineOptions) -> Self {
        let tail_blocks = (0..options.commit_depth_max)
            .map(|_| pool.try_allocate(BLOCK_BYTES).expect("the pool holds the tail blocks"))
            .collect();
        Self(Rc::new(EngineState {
            disk,
            pool,
            options,
            ready: RefCell::default(),
            ready_changed: Notify::default(),
            detached: RefCell::default(),
            background: RefCell::default(),
            background_changed: Notify::default(),
            cached: RefCell::default(),
            cached_stale: Cell::new(0),
            open_tails: RefCell::default(),
            tail_blocks: RefCell::new(tail_blocks),
            memory_turnstile: Turnstile::default(),
            recovery_turnstile: Turnstile::default(),
            ahead_bytes: Cell::new(0),
            stopping: Cell::new(false),
            open_files: RefCell::default(),
            counters: Counters::default(),
        }))
    }

    /// The disk.
    pub fn disk(&self) -> &D {
        &self.0.disk
    }

    /// The shard's memory.
    pub fn pool(&self) -> &BufferPool {
        &self.0.pool
    }

    /// The options it was made with.
    pub fn options(&self) -> &EngineOptions {
        &self.0.options
    }

    /// Counters since the start.
    pub fn stats(&self) -> EngineStats {
        self.0.counters.0.get()
    }

    pub(crate) fn count(&self, add: impl FnOnce(&mut EngineStats)) {
        let mut stats = self.0.counters.0.get();
        add(&mut stats);
        self.0.counters.0.set(stats);
    }

    /// Writes and syncs what the logs have queued, until [`Engine::shutdown`]. Run it once, in a queue of low
    /// latency.
    ///
    /// Cancel: dropping it leaves operations to the disk, and what is queued unwritten.
    pub fn drive_commits(&self) -> impl Future<Output = ()> + 'static {
        let engine = self.clone();
        async move {
            let mut running: FuturesUnordered<Job> = FuturesUnordered::new();
            let mut detached: FuturesUnordered<Job> = FuturesUnordered::new();
            loop {
                let mut changed = std::pin::pin!(engine.0.ready_changed.notified());
                detached.extend(engine.0.detached.take());
                while running.len() < engine.0.options.commit_depth_max {
                    let Some(log) = engine.0.ready.borrow_mut().pop_front() else { break };
                    log.leave_commit_queue();
                    let free = engine.0.options.commit_depth_max - running.len();
                    running.extend(log.next_commit_jobs(free));
                }
                if running.is_empty() && detached.is_empty() && engine.0.stopping.get() {
                    return;
                }
                std::future::poll_fn(|cx| {
                    let mut ended = false;
                    for jobs in [&mut running, &mut detached] {
                        ended |= matches!(jobs.poll_next_unpin(cx), Poll::Ready(Some(())));
                    }
                    let changed = changed.as_mut().poll(cx).is_ready();
                    if ended || changed { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
            }
        }
    }

    /// Writes ahead, reads ahead, stores indexes and checkpoints, until [`Engine::shutdown`]. Run it once, in a
    /// queue with fewer shares.
    pub fn drive_background(&self) -> impl Future<Output = ()> + 'static {
        let engine = self.clone();
        async move {
            let mut running: FuturesUnordered<Job> = FuturesUnordered::new();
            loop {
                let changed = engine.0.background_changed.notified();
                while running.len() < BACKGROUND_JOBS_MAX {
                    let Some(job) = engine.0.background.borrow_mut().pop_front() else { break };
                    running.push(job);
                }
                if running.is_empty() {
                    if engine.0.stopping.get() {
                        return;
                    }
                    changed.await;
                } else if let Either::Right(_) = select(running.next(), changed).await {
                    continue;
                }
            }
        }
    }

    /// Ends both drivers once nothing is queued or running. Close the logs first.
    pub fn shutdown(&self) {
        self.0.stopping.set(true);
        self.0.ready_changed.notify_all();
        self.0.background_changed.notify_all();
    }

    pub(crate) fn queue_commit(&self, log: Log<D>) {
        self.0.ready.borrow_mut().push_back(log);
        self.0.ready_changed.notify_all();
    }

    /// Runs `work` to its end beside the commits, whoever still waits for it: a device operation outlives the future
    /// that began it, and must not fall on what others do next. Dropping the future returned only stops waiting.
    pub fn detach<T: 'static>(
        &self,
        work: impl Future<Output = T> + 'static,
    ) -> impl Future<Output = T> + 'static {
        let outcome = Rc::new(RefCell::new(None));
        let ended = Notify::default();
        let (report, tell) = (outcome.clone(), ended.clone());
        self.0.detached.borrow_mut().push(Box::pin(async move {
            let value = work.await;
            *report.borrow_mut() = Some(value);
            tell.notify_all();
        }));
        self.0.ready_changed.notify_all();
        async move {
            loop {
                let value = outcome.borrow_mut().take();
                match value {
                    Some(value) => return value,
                    None => ended.notified().await,
                }
            }
        }
    }

    pub(crate) fn queue_background(&self, job: impl Future<Output = ()> + 'static) {
        self.0.background.borrow_mut().push_back(Box::pin(job));
        self.0.background_changed.notify_all();
    }

    /// A buffer of at least `bytes`, at the cost of cached chunks if memory is short. Waits while none is free.
    pub(crate) async fn allocate(&self, bytes: usize) -> DmaBuffer {
        match self.try_allocate(bytes) {
            Some(buffer) => buffer,
            None => self.0.pool.allocate(bytes).await,
        }
    }

    /// Like [`Engine::allocate`], but does not wait.
    pub(crate) fn try_allocate(&self, bytes: usize) -> Option<DmaBuffer> {
        loop {
            if let Some(buffer) = self.0.pool.try_allocate(bytes) {
                return Some(buffer);
            }
            // Others wait already: what is evicted now goes to them.
            if self.0.pool.waiters() > 0 || !self.evict_oldest() {
                return None;
            }
        }
    }

    /// Gives what can be evicted to those who wait for memory.
    pub(crate) fn relieve(&self) {
        while self.0.pool.waiters() > 0 && self.evict_oldest() {}
    }

    /// Largest chunk that a busy log may grow to, so that the tails of all logs that append leave most of the
    /// memory free.
    pub(crate) fn chunk_bytes_max(&self) -> usize {
        let logs = self.0.open_tails.borrow().len().max(1);
        let share = self.0.pool.bytes_max() / 4 / logs;
        (share.max(BLOCK_BYTES).next_power_of_two() / 2).clamp(BLOCK_BYTES, BUFFER_BYTES_MAX)
    }

    /// Counts a tail chunk as open: it may be released from now on while memory is short.
    pub(crate) fn opened_tail(&self, segment: &Rc<Segment<D>>) {
        if !segment.tail_listed.replace(true) {
            self.0.open_tails.borrow_mut().push_back(Rc::downgrade(segment));
        }
    }

    /// Waits until no other log that is being opened holds the rest of its last segment in memory.
    pub(crate) async fn enter_recovery_turnstile(&self) -> Pass {
        self.0.recovery_turnstile.enter().await
    }

    /// Waits until no other log waits for memory with some in hand.
    pub(crate) async fn enter_memory_turnstile(&self) -> Pass {
        self.0.memory_turnstile.enter().await
    }

    /// A block for the private copy of a tail block; `None` while all are in flight.
    pub(crate) fn take_tail_block(&self) -> Option<DmaBuffer> {
        self.0.tail_blocks.borrow_mut().pop()
    }

    pub(crate) fn give_back_tail_block(&self, mut block: DmaBuffer) {
        if !block.is_unshared() {
            // The disk still holds the slice: its memory comes back later, another block takes its place.
            drop(block);
            match self.0.pool.try_allocate(BLOCK_BYTES) {
                Some(other) => block = other,
                None => return,
            }
        }
        block.clear();
        self.0.tail_blocks.borrow_mut().push(block);
    }

    /// Counts a clean chunk as cached: it may be evicted from now on, at once if somebody waits for memory.
    pub(crate) fn cache(&self, segment: &Rc<Segment<D>>, start: u64) {
        self.0.cached.borrow_mut().push_back(CachedChunk { segment: Rc::downgrade(segment), start });
        self.relieve();
    }

    /// Counts cached chunks that went without being evicted, and clears their places in the queue once they are most
    /// of it.
    pub(crate) fn forgot_cached(&self, chunks: usize) {
        let stale = self.0.cached_stale.get() + chunks;
        self.0.cached_stale.set(stale);
        let mut cached = self.0.cached.borrow_mut();
        if stale >= CACHED_STALE_MIN && stale * 2 > cached.len() {
            cached.retain(|chunk| chunk.segment.upgrade().is_some_and(|s| s.has_chunk(chunk.start)));
            self.0.cached_stale.set(0);
        }
    }

    fn evict_oldest(&self) -> bool {
        loop {
            let Some(oldest) = self.0.cached.borrow_mut().pop_front() else {
                return self.release_oldest_tail();
            };
            let Some(segment) = oldest.segment.upgrade() else { continue };
            if segment.evict(oldest.start) {
                self.count(|s| s.evictions += 1);
                return true;
            }
        }
    }

    /// Changes how far one log is written ahead from `old` to `new`, or not at all if the budget of all does not
    /// allow it. Returns what it is now. The minimum, which every log has, does not count.
    pub(crate) fn share_ahead(&self, old: u64, new: u64) -> u64 {
        assert!(old.min(new) >= AHEAD_BYTES_MIN, "{old} or {new} is below the minimum");
        let total = self.0.ahead_bytes.get() - (old - AHEAD_BYTES_MIN) + (new - AHEAD_BYTES_MIN);
        if new > old && total > self.0.options.write_ahead_total_bytes_max {
            return old;
        }
        self.0.ahead_bytes.set(total);
        new
    }

    fn release_oldest_tail(&self) -> bool {
        let count = self.0.open_tails.borrow().len();
        for _ in 0..count {
            let Some(oldest) = self.0.open_tails.borrow_mut().pop_front() else { return false };
            let Some(segment) = oldest.upgrade() else { continue };
            if segment.release_tail() {
                segment.tail_listed.set(false);
                self.count(|s| s.evictions += 1);
                return true;
            }
            if segment.sealed.get() {
                segment.tail_listed.set(false);
            } else {
                self.0.open_tails.borrow_mut().push_back(oldest);
            }
        }
        false
    }

    /// Counts a sealed segment's file as open, and closes the one opened longest ago if there are too many.
    pub(crate) fn opened_sealed(&self, segment: &Rc<Segment<D>>) {
        let mut open = self.0.open_files.borrow_mut();
        open.push_back(Rc::downgrade(segment));
        while open.len() > self.0.options.open_files_max {
            if let Some(segment) = open.pop_front().and_then(|s| s.upgrade()) {
                segment.set_file(None);
            }
        }
    }
}
