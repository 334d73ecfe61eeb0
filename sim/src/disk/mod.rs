//! A disk in memory that behaves as badly as the contract allows, from the executor's seed.
//!
//! Owns: what is in flight, when it completes (virtual time, random order), injected faults, the sync count.
//! Invariant: an operation has its effect at its completion, whoever still waits for it.
//! Not here: effects on names and bytes (`state.rs`), what a crash keeps (`crash.rs`).
//!
//! A crash test: run the engine until `is_stopped()`, take `after_crash(..)` as often as wanted (each time the
//! seed decides anew), and recover from each.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use corelog_engine::buffer::{DmaBuffer, DmaSlice};
use corelog_engine::disk::{
    DirEntry, Disk, DiskFile, IoClass, OpenMode, assert_aligned, assert_write_aligned,
};

use self::state::{Answer, Effect, NodeId, State};
use crate::executor::Handle;

mod content;
mod crash;
mod fault;
mod state;

pub use self::crash::Crash;
pub use self::fault::{EIO, ENOSPC, Fault, FaultEffect, FaultKind};

/// How a simulated disk behaves.
#[derive(Clone, Debug)]
pub struct SimDiskOptions {
    /// Each operation takes 1 to this many virtual microseconds.
    pub latency_us_max: u64,
    /// Bytes that files may take; `None` is no limit.
    pub capacity_bytes: Option<u64>,
}

impl Default for SimDiskOptions {
    fn default() -> Self {
        Self { latency_us_max: 200, capacity_bytes: None }
    }
}

/// A simulated disk. Cheap to clone; all clones are one disk.
#[derive(Clone)]
pub struct SimDisk(Rc<Shared>);

struct Shared {
    handle: Handle,
    options: SimDiskOptions,
    state: RefCell<State>,
    in_flight: RefCell<BTreeMap<u64, InFlight>>,
    next_op: Cell<u64>,
    faults: RefCell<Vec<Fault>>,
    syncs: Cell<u64>,
    stop_at_sync: Cell<u64>,
    stopped: Cell<bool>,
}

struct InFlight {
    effect: Effect,
    fault: Option<FaultEffect>,
    slot: Rc<Slot>,
}

/// Where an operation leaves its answer.
#[derive(Default)]
struct Slot {
    answer: RefCell<Option<io::Result<Answer>>>,
    /// The buffer of a read, lent until it completes.
    buffer: RefCell<Option<DmaBuffer>>,
    waker: RefCell<Option<Waker>>,
}

impl SimDisk {
    /// An empty disk whose chance and time come from `handle`.
    pub fn new(handle: Handle, options: SimDiskOptions) -> Self {
        let state = State::new(options.capacity_bytes);
        Self::with_state(handle, options, state)
    }

    fn with_state(handle: Handle, options: SimDiskOptions, state: State) -> Self {
        assert!(options.latency_us_max > 0, "an operation takes time, or nothing would ever be in flight");
        Self(Rc::new(Shared {
            handle,
            options,
            state: RefCell::new(state),
            in_flight: RefCell::default(),
            next_op: Cell::new(0),
            faults: RefCell::default(),
            syncs: Cell::new(0),
            stop_at_sync: Cell::new(u64::MAX),
            stopped: Cell::new(false),
        }))
    }

    /// What a new process finds after this disk crashed now, as a disk of its own on `handle`'s executor. This
    /// one stays as it is, so that many ends of one run can be tried.
    pub fn after_crash(&self, crash: Crash, handle: &Handle) -> Self {
        let in_flight = self.0.in_flight.borrow();
        let effects = in_flight.values().filter(|op| op.fault.is_none()).map(|op| &op.effect).collect();
        let state = crash::aftermath(&self.0.state.borrow(), effects, crash, handle);
        handle.note(format_args!("crash {crash:?} with {} in flight", in_flight.len()));
        Self::with_state(handle.clone(), self.0.options.clone(), state)
    }

    /// Crashes now: this disk is dead (its operations never end), and what is left is on the one returned.
    #[must_use]
    pub fn crash(&self, crash: Crash) -> Self {
        let next = self.after_crash(crash, &self.0.handle);
        self.stop();
        next
    }

    /// No operation ends any more.
    pub fn stop(&self) {
        self.0.stopped.set(true);
    }

    /// Whether it has been stopped, by hand or at a sync.
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.get()
    }

    /// Syncs of files and directories started so far.
    pub fn syncs(&self) -> u64 {
        self.0.syncs.get()
    }

    /// Stops when the `count`-th sync has been started (1 is the first of the disk), with that sync in flight.
    pub fn stop_at_sync(&self, count: u64) {
        self.0.stop_at_sync.set(count);
    }

    /// Operations that have been started and not completed.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.borrow().len()
    }

    /// Makes operations fail or lie.
    pub fn inject(&self, fault: Fault) {
        self.0.faults.borrow_mut().push(fault);
    }

    /// Takes all injected faults away.
    pub fn heal(&self) {
        self.0.faults.borrow_mut().clear();
    }

    /// Changes how many bytes files may take.
    pub fn set_capacity_bytes(&self, capacity_bytes: Option<u64>) {
        self.0.state.borrow_mut().capacity_bytes = capacity_bytes;
    }

    /// Flips the bits of `mask` in one byte, on the medium and as read from now on.
    ///
    /// # Panics
    /// If there is no such byte.
    pub fn rot(&self, path: &Path, position: u64, mask: u8) {
        let mut state = self.0.state.borrow_mut();
        let node = state.look_up(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let file = state.file_mut(node);
        assert!(file.now.flip(position, mask), "{path:?} ends before {position}");
        file.durable.flip(position, mask);
    }

    /// The bytes of a file as a read would see them now, without an operation.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn peek(&self, path: &Path) -> Vec<u8> {
        let state = self.0.state.borrow();
        let node = state.look_up(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let file = state.file(node);
        file.now.read(0, file.now.length())
    }

    /// All files that have a name now, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        self.0.state.borrow().files()
    }

    /// Cuts a file off, on the medium and as read from now on.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn cut(&self, path: &Path, length: u64) {
        let mut state = self.0.state.borrow_mut();
        let node = state.look_up(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let file = state.file_mut(node);
        file.now.set_length(length.min(file.now.length()));
        file.durable.set_length(length.min(file.durable.length()));
    }

    /// Puts bytes into a file, on the medium and as read from now on: garbage, a foreign batch.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn poke(&self, path: &Path, position: u64, bytes: &[u8]) {
        let mut state = self.0.state.borrow_mut();
        let node = state.look_up(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let file = state.file_mut(node);
        file.now.write(position, bytes);
        file.durable.write(position, bytes);
    }

    fn start(&self, kind: FaultKind, path: &Path, effect: Effect) -> Started {
        self.start_with(kind, path, effect, None)
    }

    fn start_with(&self, kind: FaultKind, path: &Path, effect: Effect, buffer: Option<DmaBuffer>) -> Started {
        let shared = &self.0;
        let slot = Rc::new(Slot { buffer: RefCell::new(buffer), ..Slot::default() });
        let fault = fault::strike(&mut shared.faults.borrow_mut(), kind, path);
        let op = shared.next_op.get();
        shared.next_op.set(op + 1);
        if let Some(node) = effect.node() {
            // Open until the operation has ended, whoever else closes it.
            shared.state.borrow_mut().file_mut(node).open += 1;
        }
        let mut latency_us = shared.handle.random(1..shared.options.latency_us_max + 1);
        if let Some(FaultEffect::Delay { us }) = fault {
            latency_us += us;
        }
        shared.handle.note(format_args!("disk {op} {kind:?} {path:?} {fault:?}"));
        let fault = fault.filter(|fault| !matches!(fault, FaultEffect::Delay { .. }));
        shared.in_flight.borrow_mut().insert(op, InFlight { effect, fault, slot: slot.clone() });
        if kind == FaultKind::Sync {
            shared.syncs.set(shared.syncs.get() + 1);
            if shared.syncs.get() == shared.stop_at_sync.get() {
                shared.stopped.set(true);
            }
        }
        let disk = self.clone();
        shared.handle.at(shared.handle.now_us() + latency_us, move || disk.complete(op));
        Started { slot, disk: self.clone() }
    }

    fn complete(&self, op: u64) {
        if self.0.stopped.get() {
            return;
        }
        let Some(InFlight { effect, fault, slot }) = self.0.in_flight.borrow_mut().remove(&op) else {
            return;
        };
        let handle = &self.0.handle;
        let answer = {
            let mut state = self.0.state.borrow_mut();
            let node = effect.node();
            let answer = match fault {
                Some(fault) => fault::apply(&mut state, effect, fault, handle),
                None => state.apply(&effect),
            };
            if let Some(node) = node {
                state.close(node);
            }
            answer
        };
        handle.note(format_args!("disk {op} done {:?}", answer.as_ref().err()));
        if let (Ok(Answer::Bytes(bytes)), Some(buffer)) = (&answer, slot.buffer.borrow_mut().as_mut()) {
            buffer.append(bytes);
        }
        if let (Ok(Answer::Node(node)), 1) = (&answer, Rc::strong_count(&slot)) {
            // Opened for nobody: the future was dropped.
            self.0.state.borrow_mut().close(*node);
        }
        *slot.answer.borrow_mut() = Some(answer);
        let waker = slot.waker.borrow_mut().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    async fn run(&self, kind: FaultKind, path: &Path, effect: Effect) -> io::Result<Answer> {
        self.start(kind, path, effect).await.0
    }

    fn number(&self) -> u64 {
        self.0.state.borrow_mut().number()
    }

    async fn open_node(&self, path: &Path, mode: OpenMode, truncate: bool) -> io::Result<SimFile> {
        let effect = Effect::Open { path: path.to_path_buf(), mode, truncate };
        match self.run(FaultKind::Open, path, effect).await? {
            Answer::Node(node) => {
                Ok(SimFile(Rc::new(OpenFile { disk: self.clone(), node, path: path.to_path_buf() })))
            }
            _ => unreachable!("an open answers with a node"),
        }
    }
}

/// A started operation: ready with its answer and the buffer that it was lent.
struct Started {
    slot: Rc<Slot>,
    disk: SimDisk,
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(Ok(Answer::Node(node))) = self.slot.answer.borrow_mut().take() {
            // Opened, but nobody came to take it.
            self.disk.0.state.borrow_mut().close(node);
        }
    }
}

impl Future for Started {
    type Output = (io::Result<Answer>, Option<DmaBuffer>);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(answer) = self.slot.answer.borrow_mut().take() {
            return Poll::Ready((answer, self.slot.buffer.borrow_mut().take()));
        }
        *self.slot.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// A file of a [`SimDisk`].
#[derive(Clone)]
pub struct SimFile(Rc<OpenFile>);

struct OpenFile {
    disk: SimDisk,
    node: NodeId,
    path: PathBuf,
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.disk.0.state.borrow_mut().close(self.node);
    }
}

impl SimFile {
    fn start(&self, kind: FaultKind, effect: Effect) -> impl Future<Output = io::Result<()>> + 'static {
        let started = self.0.disk.start(kind, &self.0.path, effect);
        async move { started.await.0.map(drop) }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<SimFile> {
        self.open_node(path, mode, false).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let effect = Effect::Rename { from: from.to_path_buf(), to: to.to_path_buf() };
        self.run(FaultKind::Name, from, effect).await.map(drop)
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.run(FaultKind::Name, path, Effect::RemoveFile { path: path.to_path_buf() }).await.map(drop)
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.run(FaultKind::Name, path, Effect::RemoveDir { path: path.to_path_buf() }).await.map(drop)
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let ancestors: Vec<&Path> = path.ancestors().filter(|dir| dir.file_name().is_some()).collect();
        for dir in ancestors.into_iter().rev() {
            self.run(FaultKind::Name, dir, Effect::MakeDir { path: dir.to_path_buf() }).await?;
        }
        Ok(())
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let effect = Effect::SyncDir { path: path.to_path_buf(), before: self.number() };
        self.run(FaultKind::Sync, path, effect).await.map(drop)
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        match self.run(FaultKind::Name, path, Effect::List { path: path.to_path_buf() }).await? {
            Answer::Entries(entries) => Ok(entries),
            _ => unreachable!("a listing answers with entries"),
        }
    }

    async fn read_file(&self, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
        let file = self.open_node(path, OpenMode::Existing, false).await?;
        let length = file.length().await?;
        if length > bytes_max as u64 {
            let message = format!("{path:?} has {length} bytes, more than {bytes_max}");
            return Err(io::Error::new(ErrorKind::InvalidData, message));
        }
        let effect = Effect::Read { node: file.0.node, position: 0, length };
        match self.run(FaultKind::Read, path, effect).await? {
            Answer::Bytes(bytes) => Ok(bytes),
            _ => unreachable!("a read answers with bytes"),
        }
    }

    async fn replace_file(&self, path: &Path, contents: Vec<u8>) -> io::Result<()> {
        let mut name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_os_string();
        name.push(format!(".{}.tmp", self.0.next_op.get()));
        let beside = path.with_file_name(name);
        let written = async {
            let file = self.open_node(&beside, OpenMode::CreateNew, true).await?;
            let effect = Effect::WriteBytes { node: file.0.node, bytes: contents };
            self.run(FaultKind::Write, &beside, effect).await?;
            file.sync().await
        };
        if let Err(error) = written.await {
            // Best effort, as on the real disk.
            let _ = self.remove_file(&beside).await;
            return Err(error);
        }
        self.rename(&beside, path).await?;
        self.sync_dir(path.parent().unwrap_or(Path::new(""))).await
    }

    async fn free_bytes(&self, _path: &Path) -> io::Result<u64> {
        Ok(self.0.state.borrow().free_bytes())
    }
}

impl DiskFile for SimFile {
    fn path(&self) -> PathBuf {
        self.0.path.clone()
    }

    fn write_at(
        &self,
        slices: Vec<DmaSlice>,
        position: u64,
        _class: IoClass,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        assert_write_aligned(&slices, position);
        self.start(FaultKind::Write, Effect::Write { node: self.0.node, position, slices })
    }

    fn read_at(
        &self,
        mut buffer: DmaBuffer,
        length: usize,
        position: u64,
        _class: IoClass,
    ) -> impl Future<Output = (DmaBuffer, io::Result<usize>)> + 'static {
        assert_aligned(position, "position");
        assert_aligned(length as u64, "length");
        assert!(length > 0 && length <= buffer.capacity(), "{length} bytes into {buffer:?}");
        buffer.clear();
        let effect = Effect::Read { node: self.0.node, position, length: length as u64 };
        let started = self.0.disk.start_with(FaultKind::Read, &self.0.path, effect, Some(buffer));
        async move {
            let (answer, buffer) = started.await;
            let buffer = buffer.expect("the buffer that was lent");
            let filled = buffer.filled();
            (buffer, answer.map(|_| filled))
        }
    }

    fn sync(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let before = self.0.disk.number();
        self.start(FaultKind::Sync, Effect::Sync { node: self.0.node, before })
    }

    fn zero(&self, start: u64, end: u64, _class: IoClass) -> impl Future<Output = io::Result<()>> + 'static {
        assert_aligned(start, "start");
        assert_aligned(end, "end");
        assert!(start <= end, "[{start}, {end}) is no range");
        self.start(FaultKind::Write, Effect::Zero { node: self.0.node, start, end })
    }

    fn set_length(&self, length: u64) -> impl Future<Output = io::Result<()>> + 'static {
        self.start(FaultKind::Name, Effect::SetLength { node: self.0.node, length })
    }

    fn length(&self) -> impl Future<Output = io::Result<u64>> + 'static {
        let length = self.0.disk.0.state.borrow().file(self.0.node).now.length();
        std::future::ready(Ok(length))
    }
}
