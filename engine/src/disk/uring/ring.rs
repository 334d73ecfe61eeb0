//! The ring of one shard: what is in flight, what waits its turn, who is to be woken.
//!
//! Owns: the io_uring, the slab of operations, the queue and the depth limit of each class.
//! Invariant: a slot is freed only after its last completion was reaped; so the kernel never writes into, or
//! reads from, memory that was given back.
//! Invariant: operations in flight never pass the sum of the depth limits, which is at most the size of the
//! completion queue; so it does not overflow (if it did, the kernel keeps the rest and `enter` fetches it).
//! Not here: what an operation is (`op.rs`), waiting for the eventfd (whoever runs the shard).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use io_uring::{IoUring, Probe, opcode};

use super::UringOptions;
use super::op::{EntrySetting, Op, OpKind, Progress};
use super::stats::{ClassStats, UringStats};
use crate::disk::IoClass;

/// How often an operation that the kernel answered with `EAGAIN` or `EINTR` is tried again before the error is
/// passed on: transient by nature, and a worker thread that may block has it from the second try on.
const RETRIES_MAX: u32 = 100;

/// The youngest operations among those that there is no other way for.
const NEEDED: [u8; 3] = [opcode::RenameAt::CODE, opcode::UnlinkAt::CODE, opcode::MkDirAt::CODE];

pub(super) struct Ring {
    state: RefCell<State>,
    eventfd: OwnedFd,
    /// Whether the kernel has the ftruncate operation (6.9).
    pub(super) has_ftruncate: bool,
    pub(super) read_bytes_max: usize,
}

struct State {
    uring: IoUring,
    slots: Vec<Slot>,
    free: Vec<usize>,
    queues: [VecDeque<usize>; CLASSES],
    depth_max: [usize; CLASSES],
    classes: [ClassStats; CLASSES],
    enters: u64,
    /// Completions being looked at; kept for its memory.
    results: Vec<(usize, i32)>,
    /// How many `batched` closures are running: entries are pushed but not submitted.
    holding: u32,
}

enum Slot {
    Free,
    Busy { op: Op, class: IoClass, retries: u32, waiter: Waiter },
    Done { op: Op, result: io::Result<usize> },
}

enum Waiter {
    /// Nobody has polled yet.
    None,
    Waker(Waker),
    /// The future was dropped: the operation runs on, and its result is thrown away.
    Gone,
}

/// What a look at the completions leaves to do once the state is no longer borrowed.
#[derive(Default)]
struct Reaped {
    count: usize,
    wakers: Vec<Waker>,
    /// Their drop may close files, which starts operations.
    orphans: Vec<Op>,
}

/// How many classes there are.
const CLASSES: usize = 5;

fn index(class: IoClass) -> usize {
    match class {
        IoClass::Commit => 0,
        IoClass::ColdRead => 1,
        IoClass::CatchUp => 2,
        IoClass::Background => 3,
        IoClass::Scrub => 4,
    }
}

impl Ring {
    pub(super) fn new(options: &UringOptions) -> io::Result<Self> {
        let depth_max = [
            options.commit_depth_max,
            options.cold_read_depth_max,
            options.catch_up_depth_max,
            options.background_depth_max,
            options.scrub_depth_max,
        ];
        assert!(depth_max.iter().all(|&depth| depth > 0), "each class has a depth of at least 1");
        let completions = depth_max.iter().sum::<usize>().next_power_of_two() as u32;
        let uring = build(completions).map_err(|error| explain(&error))?;
        // SAFETY: no pointers; a failure is -1.
        // Not EFD_NONBLOCK: an io_uring read of a non-blocking descriptor fails with EAGAIN instead of waiting.
        let eventfd = match unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) } {
            -1 => return Err(io::Error::last_os_error()),
            // SAFETY: a descriptor that was just made; nobody else owns it.
            fd => unsafe { OwnedFd::from_raw_fd(fd) },
        };
        uring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe)?;
        if !NEEDED.iter().all(|&code| probe.is_supported(code)) {
            let message = "io_uring lacks operations on names: Linux 5.15 or later is needed";
            return Err(io::Error::new(io::ErrorKind::Unsupported, message));
        }
        let state = State {
            uring,
            slots: Vec::new(),
            free: Vec::new(),
            queues: Default::default(),
            depth_max,
            classes: Default::default(),
            enters: 0,
            results: Vec::with_capacity(completions as usize),
            holding: 0,
        };
        Ok(Self {
            state: RefCell::new(state),
            eventfd,
            has_ftruncate: probe.is_supported(opcode::Ftruncate::CODE),
            read_bytes_max: options.read_bytes_max,
        })
    }

    /// Starts an operation, or queues it if its class is at its limit. Dropping what is returned does not
    /// cancel it.
    pub(super) fn start(self: &Rc<Self>, op: Op, class: IoClass) -> Started {
        let key = {
            let mut state = self.state.borrow_mut();
            let slot = Slot::Busy { op, class, retries: 0, waiter: Waiter::None };
            let key = state.insert(slot);
            state.queues[index(class)].push_back(key);
            state.classes[index(class)].queued += 1;
            state.fill();
            state.submit_unless_held(&self.eventfd);
            key
        };
        Started { ring: self.clone(), key }
    }

    /// Takes all completions that are there, starts what waited for their places, wakes who waited. Returns
    /// how many completions there were.
    pub(super) fn reap(&self) -> usize {
        let reaped = {
            let mut state = self.state.borrow_mut();
            // Deferred completions only come in by an `enter` that asks for them.
            if state.uring.submission().taskrun() || state.uring.submission().cq_overflow() {
                state.enter(0, &self.eventfd);
            }
            let reaped = state.take_completions();
            state.fill();
            state.submit_unless_held(&self.eventfd);
            reaped
        };
        reaped.wakers.into_iter().for_each(Waker::wake);
        reaped.count
    }

    /// Blocks until a completion is there (or a signal comes), then reaps.
    ///
    /// Returns false at once if nothing is in flight: nothing can come.
    pub(super) fn wait(&self) -> bool {
        {
            let mut state = self.state.borrow_mut();
            state.fill();
            if state.busy() == 0 {
                return false;
            }
            if state.uring.completion().is_empty() {
                state.enter(1, &self.eventfd);
            }
        }
        self.reap();
        true
    }

    /// Runs `body` with submission held back, then submits all that it started with one system call.
    pub(super) fn batched<R>(&self, body: impl FnOnce() -> R) -> R {
        self.state.borrow_mut().holding += 1;
        let result = body();
        let mut state = self.state.borrow_mut();
        state.holding -= 1;
        state.submit_unless_held(&self.eventfd);
        result
    }

    pub(super) fn eventfd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }

    pub(super) fn stats(&self) -> UringStats {
        let state = self.state.borrow();
        UringStats {
            commit: state.classes[0],
            cold_read: state.classes[1],
            catch_up: state.classes[2],
            background: state.classes[3],
            scrub: state.classes[4],
            enters: state.enters,
        }
    }
}

impl Drop for Ring {
    /// Waits for all that is in flight or queued: the kernel must not write into memory that is given back.
    fn drop(&mut self) {
        while self.wait() {}
    }
}

/// The newest setup that the kernel takes.
///
/// Deferred task work: completions are worked on only when this thread asks (`reap`), in batches, instead of
/// interrupting it; the eventfd still fires when there is something to ask for. Needs Linux 6.1; before that
/// the plain ring does the same at a higher cost.
fn build(completions: u32) -> io::Result<IoUring> {
    let entries = completions.min(256);
    let deferred = IoUring::builder()
        .dontfork()
        .setup_cqsize(completions.max(entries * 2))
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    match deferred {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            IoUring::builder().dontfork().setup_cqsize(completions.max(entries * 2)).build(entries)
        }
        other => other,
    }
}

/// What an operator can do about a ring that cannot be set up.
fn explain(error: &io::Error) -> io::Error {
    let advice = match error.raw_os_error() {
        Some(libc::ENOSYS) => "the kernel has no io_uring: Linux 5.15 or later is needed",
        Some(libc::EPERM | libc::EACCES) => {
            "io_uring is forbidden here: set the sysctl kernel.io_uring_disabled to 0, or allow it in the container's seccomp profile"
        }
        Some(libc::ENOMEM) => "memory is short: raise the limit of locked memory (ulimit -l)",
        Some(libc::EMFILE | libc::ENFILE) => "no descriptors are left: raise the limit (ulimit -n)",
        _ => "this kernel may be too old: Linux 5.15 or later is needed",
    };
    io::Error::new(error.kind(), format!("no io_uring could be set up ({error}); {advice}"))
}

impl State {
    fn insert(&mut self, slot: Slot) -> usize {
        match self.free.pop() {
            Some(key) => {
                self.slots[key] = slot;
                key
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        }
    }

    /// Operations in flight, queued ones included.
    fn busy(&self) -> u64 {
        self.classes.iter().map(|class| class.in_flight + class.queued).sum()
    }

    /// Pushes queued operations as far as the limits allow, the most urgent class first.
    fn fill(&mut self) {
        for i in 0..self.queues.len() {
            while self.classes[i].in_flight < self.depth_max[i] as u64 {
                let Some(key) = self.queues[i].pop_front() else { break };
                self.classes[i].queued -= 1;
                self.classes[i].in_flight += 1;
                self.push(key, EntrySetting::Inline);
            }
        }
    }

    fn push(&mut self, key: usize, setting: EntrySetting) {
        let Slot::Busy { op, class, .. } = &self.slots[key] else {
            unreachable!("only a running operation is pushed")
        };
        let entry = op.entry(*class, setting).user_data(key as u64);
        loop {
            // SAFETY: all that the entry points to is owned by the slot until the completion is reaped.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
            // The submission queue is full: hand over what is in it.
            self.try_enter(0);
        }
    }

    fn submit_unless_held(&mut self, eventfd: &OwnedFd) {
        if self.holding == 0 && !self.uring.submission().is_empty() {
            self.enter(0, eventfd);
        }
    }

    /// Hands over all entries, waiting for `want` completions. If the kernel has no room now, what is left
    /// stays in the queue, and the eventfd is made ready so that somebody reaps and comes back here.
    fn enter(&mut self, want: usize, eventfd: &OwnedFd) {
        while !self.try_enter(want) {}
        if !self.uring.submission().is_empty() {
            let one = 1u64.to_ne_bytes();
            // SAFETY: the eight bytes are valid for the call. It can only fail by a counter at its maximum,
            // and then it is ready anyway.
            unsafe { libc::write(eventfd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        }
    }

    /// One `io_uring_enter`. Returns false if it should be repeated at once.
    fn try_enter(&mut self, want: usize) -> bool {
        self.enters += 1;
        let Err(error) = self.uring.submit_and_wait(want) else {
            // Fewer than all are taken when the kernel is short of memory in the middle.
            return true;
        };
        match error.raw_os_error() {
            Some(libc::EINTR) => want > 0,
            // No memory for requests, or completions that do not fit the queue: both go away as completions
            // are taken.
            Some(libc::EAGAIN | libc::EBUSY) => {
                std::thread::yield_now();
                true
            }
            _ => panic!("io_uring_enter: {error}; the ring was set up or used wrongly"),
        }
    }

    fn take_completions(&mut self) -> Reaped {
        let mut reaped = Reaped::default();
        let mut results = std::mem::take(&mut self.results);
        results.extend(self.uring.completion().map(|entry| (entry.user_data() as usize, entry.result())));
        for (key, result) in results.drain(..) {
            reaped.count += 1;
            self.complete(key, result, &mut reaped);
        }
        self.results = results;
        reaped
    }

    fn complete(&mut self, key: usize, result: i32, reaped: &mut Reaped) {
        let Slot::Busy { op, class, retries, .. } = &mut self.slots[key] else {
            unreachable!("a completion for a slot without operation")
        };
        let transient = matches!(-result, libc::EAGAIN | libc::EINTR);
        if transient && *retries < RETRIES_MAX {
            *retries += 1;
            return self.push(key, EntrySetting::Worker);
        }
        let stats = &mut self.classes[index(*class)];
        if result > 0 {
            match op.kind() {
                OpKind::Write => stats.bytes_written += result as u64,
                OpKind::Read => stats.bytes_read += result as u64,
                OpKind::Sync | OpKind::Other => {}
            }
        }
        let result = match op.advance(result) {
            Progress::Again => return self.push(key, EntrySetting::Inline),
            Progress::Done(result) => result,
        };
        stats.in_flight -= 1;
        stats.ops += 1;
        stats.syncs += u64::from(op.kind() == OpKind::Sync);
        stats.errors += u64::from(result.is_err());
        let Slot::Busy { op, waiter, .. } = std::mem::replace(&mut self.slots[key], Slot::Free) else {
            unreachable!("looked at above")
        };
        match waiter {
            Waiter::Gone => {
                self.free.push(key);
                reaped.orphans.push(op);
            }
            Waiter::None => self.slots[key] = Slot::Done { op, result },
            Waiter::Waker(waker) => {
                self.slots[key] = Slot::Done { op, result };
                reaped.wakers.push(waker);
            }
        }
    }
}

/// An operation that has been started. Ready with the operation, whose memory is the caller's again, and its
/// result. If dropped, the operation runs on and the memory stays with the ring until it is over.
pub(super) struct Started {
    ring: Rc<Ring>,
    key: usize,
}

/// Key of a [`Started`] whose result was taken.
const TAKEN: usize = usize::MAX;

impl Future for Started {
    type Output = (Op, io::Result<usize>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(self.key != TAKEN, "a future is not polled after it was ready");
        let key = self.key;
        let taken = {
            let mut state = self.ring.state.borrow_mut();
            if let Slot::Busy { waiter, .. } = &mut state.slots[key] {
                let old = std::mem::replace(waiter, Waiter::Waker(cx.waker().clone()));
                drop(state);
                // Outside the borrow: the last waker of a task drops it, with all that it waits for.
                drop(old);
                return Poll::Pending;
            }
            state.free.push(key);
            std::mem::replace(&mut state.slots[key], Slot::Free)
        };
        self.key = TAKEN;
        match taken {
            Slot::Done { op, result } => Poll::Ready((op, result)),
            Slot::Busy { .. } | Slot::Free => unreachable!("the slot of a future is busy or done"),
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if self.key == TAKEN {
            return;
        }
        let done = {
            let mut state = self.ring.state.borrow_mut();
            if let Slot::Busy { waiter, .. } = &mut state.slots[self.key] {
                let old = std::mem::replace(waiter, Waiter::Gone);
                drop(state);
                drop(old);
                return;
            }
            state.free.push(self.key);
            std::mem::replace(&mut state.slots[self.key], Slot::Free)
        };
        // Outside the borrow: it may hold the last reference to a file, whose close starts an operation.
        drop(done);
    }
}
