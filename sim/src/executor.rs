//! A single-threaded executor with virtual time, whose every choice comes from one seed.
//!
//! Owns: the tasks, the ready list, the events of virtual time, the random stream, the trace.
//! Invariant: time passes only when no task is ready; then the earliest event fires (equal times: first made,
//! first fired). Which ready task runs next is drawn from the seed.
//! Groups: the tasks of one simulated process. A group can be killed (its tasks are dropped) and paused (they are
//! not polled, whoever wakes them, as after SIGSTOP); tasks outside go on.
//! A failing run prints its seed; the same seed gives the same trace (`trace_hash`).

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;

/// Polls and events after which a run counts as a livelock.
const STEPS_MAX: u64 = 50_000_000;

/// Number of the future that `run_until` drives.
const MAIN: u64 = 0;

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

/// Runs tasks. Dropping it drops all of them.
pub struct Executor(Handle);

/// The tasks of one simulated process. Number 0 is everything outside of such.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(pub u64);

/// What tasks may use of their executor: spawning, time, chance. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    core: Rc<Core>,
    /// Where it spawns.
    group: Group,
}

struct RunningTask {
    future: LocalFuture,
    waker: Arc<TaskWaker>,
}

struct Core {
    seed: u64,
    random: RefCell<Pcg64>,
    now_us: Cell<u64>,
    tasks: RefCell<BTreeMap<u64, RunningTask>>,
    next_task: Cell<u64>,
    next_group: Cell<u64>,
    /// Groups that are paused, and their tasks that asked to be polled meanwhile.
    paused: RefCell<BTreeMap<Group, Vec<Arc<TaskWaker>>>>,
    /// Groups that were killed while one of their tasks ran.
    killed: RefCell<BTreeSet<Group>>,
    ready: Arc<Ready>,
    events: RefCell<BinaryHeap<Reverse<Event>>>,
    next_event: Cell<u64>,
    steps: Cell<u64>,
    trace: RefCell<Trace>,
}

/// Tasks that asked to be polled. Behind a lock only because wakers must be `Send`.
#[derive(Default)]
struct Ready(Mutex<Vec<Arc<TaskWaker>>>);

impl Ready {
    fn add(&self, task: &Arc<TaskWaker>) {
        if !task.queued.swap(true, Ordering::Relaxed) {
            self.0.lock().expect("nobody panics while holding it").push(task.clone());
        }
    }

    fn len(&self) -> usize {
        self.0.lock().expect("nobody panics while holding it").len()
    }

    fn take(&self, at: usize) -> Arc<TaskWaker> {
        let task = self.0.lock().expect("nobody panics while holding it").remove(at);
        task.queued.store(false, Ordering::Relaxed);
        task
    }

    fn clear(&self) {
        for task in self.0.lock().expect("nobody panics while holding it").drain(..) {
            task.queued.store(false, Ordering::Relaxed);
        }
    }
}

struct TaskWaker {
    task: u64,
    group: Group,
    /// Stands in the ready list.
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.add(&self);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.add(self);
    }
}

struct Event {
    at_us: u64,
    number: u64,
    action: Box<dyn FnOnce()>,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        (self.at_us, self.number) == (other.at_us, other.number)
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_us, self.number).cmp(&(other.at_us, other.number))
    }
}

/// FNV-1a over all that was noted, and the lines themselves if they are wanted.
struct Trace {
    hash: u64,
    lines: Option<Vec<String>>,
    /// Who gets each line as it is noted.
    listener: Option<fn(&str)>,
}

impl fmt::Write for Trace {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

impl Executor {
    /// An executor whose choices follow from `seed`.
    pub fn new(seed: u64) -> Self {
        let core = Rc::new(Core {
            seed,
            random: RefCell::new(Pcg64::seed_from_u64(seed)),
            now_us: Cell::new(0),
            tasks: RefCell::default(),
            next_task: Cell::new(MAIN + 1),
            next_group: Cell::new(1),
            paused: RefCell::default(),
            killed: RefCell::default(),
            ready: Arc::default(),
            events: RefCell::default(),
            next_event: Cell::new(0),
            steps: Cell::new(0),
            trace: RefCell::new(Trace { hash: 0xcbf2_9ce4_8422_2325, lines: None, listener: None }),
        });
        Self(Handle { core, group: Group::default() })
    }

    /// For the tasks and devices that run here.
    pub fn handle(&self) -> Handle {
        self.0.clone()
    }

    /// Starts a task; it runs on when the [`Task`] is dropped.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        self.0.spawn(future)
    }

    /// Runs everything until `future` is ready.
    ///
    /// # Panics
    /// If nothing is left to run before, with the seed.
    pub fn run_until<F: Future>(&self, future: F) -> F::Output {
        match self.run_until_or(future, || false) {
            Some(output) => output,
            None => panic!("seed {}: stalled at {} us: nothing is left to run", self.seed(), self.now_us()),
        }
    }

    /// Runs everything until `future` is ready, or `stop` says so (looked at after every step), or nothing is
    /// left to run. In the last two cases: `None`, and the future is dropped.
    pub fn run_until_or<F: Future>(&self, future: F, stop: impl Fn() -> bool) -> Option<F::Output> {
        let core = &self.0.core;
        let main = core.waker(MAIN, Group::default());
        let waker = Waker::from(main.clone());
        let mut context = Context::from_waker(&waker);
        let mut future = pin!(future);
        core.ready.add(&main);
        loop {
            if stop() {
                return None;
            }
            match core.next_step() {
                Step::Task(task) if task.task == MAIN => {
                    if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                        return Some(output);
                    }
                }
                Step::Task(task) => core.poll(&task),
                Step::Event => {}
                Step::Nothing => return None,
            }
        }
    }

    /// Runs everything until no task is ready and no event is to come.
    pub fn run_until_stalled(&self) {
        self.run_until_or(std::future::pending::<()>(), || false);
    }

    /// Drops all tasks and events, as a kill of the process does. Time and chance go on.
    pub fn kill(&self) {
        self.0.core.clear();
    }

    /// The seed that it was made with.
    pub fn seed(&self) -> u64 {
        self.0.core.seed
    }

    /// Virtual time since the start, in microseconds.
    pub fn now_us(&self) -> u64 {
        self.0.now_us()
    }

    /// Tasks that have not ended.
    pub fn tasks(&self) -> usize {
        self.0.core.tasks.borrow().len()
    }

    /// Hash over the whole trace so far: equal seeds give equal hashes.
    pub fn trace_hash(&self) -> u64 {
        self.0.core.trace.borrow().hash
    }

    /// Keeps the lines of the trace from now on, for looking at one seed.
    pub fn keep_trace(&self) {
        self.0.core.trace.borrow_mut().lines.get_or_insert_default();
    }

    /// Gives each line of the trace to `listener` as it is noted: also those of a run that comes to no end.
    pub fn listen(&self, listener: fn(&str)) {
        self.0.core.trace.borrow_mut().listener = Some(listener);
    }

    /// The lines since [`Executor::keep_trace`].
    pub fn trace(&self) -> Vec<String> {
        self.0.core.trace.borrow().lines.clone().unwrap_or_default()
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // Tasks and events hold handles, which hold the core: break the circle.
        self.0.core.clear();
    }
}

enum Step {
    Task(Arc<TaskWaker>),
    Event,
    Nothing,
}

impl Core {
    fn waker(&self, task: u64, group: Group) -> Arc<TaskWaker> {
        Arc::new(TaskWaker { task, group, queued: AtomicBool::new(false), ready: self.ready.clone() })
    }

    fn next_step(&self) -> Step {
        loop {
            self.steps.set(self.steps.get() + 1);
            assert!(self.steps.get() < STEPS_MAX, "seed {}: no end after {STEPS_MAX} steps", self.seed);
            let ready = self.ready.len();
            if ready > 0 {
                let at = self.random.borrow_mut().random_range(0..ready);
                let task = self.ready.take(at);
                match self.paused.borrow_mut().get_mut(&task.group) {
                    Some(parked) => parked.push(task),
                    None => return Step::Task(task),
                }
                continue;
            }
            let Some(Reverse(event)) = self.events.borrow_mut().pop() else { return Step::Nothing };
            self.now_us.set(event.at_us.max(self.now_us.get()));
            (event.action)();
            return Step::Event;
        }
    }

    fn poll(&self, task: &Arc<TaskWaker>) {
        // Taken out, so that a task may spawn and kill while it runs.
        let Some(mut running) = self.tasks.borrow_mut().remove(&task.task) else { return };
        let waker = Waker::from(running.waker.clone());
        let is_pending = running.future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending();
        let is_killed = !self.killed.borrow().is_empty() && self.killed.borrow().contains(&task.group);
        if is_pending && !is_killed {
            self.tasks.borrow_mut().insert(task.task, running);
        }
    }

    fn kill(&self, group: Group) {
        // A killed group never lives again, so nothing of it is let in later.
        self.killed.borrow_mut().insert(group);
        self.paused.borrow_mut().remove(&group);
        let dead: Vec<RunningTask> = {
            let mut tasks = self.tasks.borrow_mut();
            let numbers: Vec<u64> = tasks
                .iter()
                .filter(|(_, task)| task.waker.group == group)
                .map(|(number, _)| *number)
                .collect();
            numbers.iter().filter_map(|number| tasks.remove(number)).collect()
        };
        drop(dead);
    }

    fn clear(&self) {
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        drop(tasks);
        let events = std::mem::take(&mut *self.events.borrow_mut());
        drop(events);
        self.ready.clear();
        self.paused.borrow_mut().clear();
    }
}

impl Handle {
    /// Starts a task in the group of this handle; it runs on when the [`Task`] is dropped.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        let outcome = Rc::new(Outcome { value: RefCell::new(None), waker: RefCell::new(None) });
        let report = outcome.clone();
        let body = Box::pin(async move {
            let value = future.await;
            *report.value.borrow_mut() = Some(value);
            if let Some(waker) = report.waker.borrow_mut().take() {
                waker.wake();
            }
        });
        let task = self.core.next_task.get();
        self.core.next_task.set(task + 1);
        if !self.core.killed.borrow().contains(&self.group) {
            let waker = self.core.waker(task, self.group);
            self.core.ready.add(&waker);
            self.core.tasks.borrow_mut().insert(task, RunningTask { future: body, waker });
        }
        Task { outcome, task, core: Rc::downgrade(&self.core) }
    }

    /// A handle that spawns into a new group.
    #[must_use]
    pub fn new_group(&self) -> Self {
        let group = self.core.next_group.get();
        self.core.next_group.set(group + 1);
        Self { core: self.core.clone(), group: Group(group) }
    }

    /// Where it spawns.
    pub fn group(&self) -> Group {
        self.group
    }

    /// Drops all tasks of a group, as a kill of its process does; it never runs anything again.
    ///
    /// # Panics
    /// If it is the group of everything outside.
    pub fn kill_group(&self, group: Group) {
        assert!(group != Group::default(), "what is outside of all processes cannot be killed");
        self.core.kill(group);
    }

    /// Stops polling a group's tasks, as SIGSTOP does.
    pub fn pause_group(&self, group: Group) {
        self.core.paused.borrow_mut().entry(group).or_default();
    }

    /// Polls them again.
    pub fn resume_group(&self, group: Group) {
        let parked = self.core.paused.borrow_mut().remove(&group);
        for task in parked.into_iter().flatten() {
            self.core.ready.add(&task);
        }
    }

    /// Virtual time since the start, in microseconds.
    pub fn now_us(&self) -> u64 {
        self.core.now_us.get()
    }

    /// Ready after `duration` of virtual time.
    pub fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        let at_us = self.now_us() + duration.as_micros() as u64;
        let handle = self.clone();
        let mut registered = false;
        std::future::poll_fn(move |cx| {
            if handle.now_us() >= at_us {
                return Poll::Ready(());
            }
            if !registered {
                registered = true;
                let waker = cx.waker().clone();
                handle.at(at_us, move || waker.wake());
            }
            Poll::Pending
        })
    }

    /// Lets others run first.
    pub fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        let mut yielded = false;
        std::future::poll_fn(move |cx| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    /// Calls `action` at a virtual time (now, if that is past).
    pub fn at(&self, at_us: u64, action: impl FnOnce() + 'static) {
        let number = self.core.next_event.get();
        self.core.next_event.set(number + 1);
        self.core.events.borrow_mut().push(Reverse(Event { at_us, number, action: Box::new(action) }));
    }

    /// A number of `[start, end)`, from the seed.
    ///
    /// # Panics
    /// If the range is empty.
    pub fn random(&self, range: std::ops::Range<u64>) -> u64 {
        self.core.random.borrow_mut().random_range(range)
    }

    /// True once in `times`, from the seed.
    pub fn one_in(&self, times: u64) -> bool {
        self.random(0..times) == 0
    }

    /// Adds a line to the trace, with the time.
    pub fn note(&self, line: fmt::Arguments<'_>) {
        use fmt::Write;
        let mut trace = self.core.trace.borrow_mut();
        let now_us = self.now_us();
        writeln!(trace, "{now_us} {line}").expect("hashing never fails");
        if let Some(listener) = trace.listener {
            listener(&format!("{now_us} {line}"));
        }
        if let Some(lines) = &mut trace.lines {
            lines.push(format!("{now_us} {line}"));
        }
    }
}

struct Outcome<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
}

/// A running task; as a future, ready with its output. Dropping it does not stop the task.
pub struct Task<T> {
    outcome: Rc<Outcome<T>>,
    task: u64,
    core: Weak<Core>,
}

impl<T> Task<T> {
    /// Whether the output is there.
    pub fn is_finished(&self) -> bool {
        self.outcome.value.borrow().is_some()
    }

    /// Stops the task by dropping its future.
    pub fn cancel(self) {
        if let Some(core) = self.core.upgrade() {
            let future = core.tasks.borrow_mut().remove(&self.task);
            drop(future);
        }
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if let Some(value) = self.outcome.value.borrow_mut().take() {
            return Poll::Ready(value);
        }
        *self.outcome.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace_of(seed: u64) -> (u64, Vec<String>) {
        let executor = Executor::new(seed);
        executor.keep_trace();
        for name in ["a", "b", "c"] {
            let handle = executor.handle();
            executor.spawn(async move {
                for round in 0..5 {
                    handle.sleep(Duration::from_micros(handle.random(0..3))).await;
                    handle.note(format_args!("{name}{round}"));
                }
            });
        }
        executor.run_until_stalled();
        assert_eq!(executor.tasks(), 0);
        (executor.trace_hash(), executor.trace())
    }

    #[test]
    fn the_same_seed_gives_the_same_trace() {
        assert_eq!(trace_of(7), trace_of(7));
        let orders: std::collections::BTreeSet<u64> = (0..20).map(|seed| trace_of(seed).0).collect();
        assert!(orders.len() > 10, "seeds give different orders");
    }

    #[test]
    fn time_passes_only_when_nobody_is_ready() {
        let executor = Executor::new(1);
        let handle = executor.handle();
        let task = executor.spawn({
            let handle = handle.clone();
            async move {
                handle.sleep(Duration::from_secs(3600)).await;
                handle.now_us()
            }
        });
        let seen = executor.run_until(async {
            for _ in 0..100 {
                handle.yield_now().await;
            }
            handle.now_us()
        });
        assert_eq!(seen, 0);
        assert_eq!(executor.run_until(task), 3_600_000_000);
    }

    #[test]
    fn stops_where_it_is_told_and_says_when_stalled() {
        let executor = Executor::new(1);
        let handle = executor.handle();
        let stopped = executor.run_until_or(handle.sleep(Duration::from_secs(9)), || handle.now_us() > 0);
        assert_eq!(stopped, None, "time has come, but the sleeper was not polled any more");
        assert_eq!(handle.now_us(), 9_000_000);
        assert_eq!(executor.run_until_or(std::future::pending::<()>(), || false), None);
    }

    #[test]
    fn a_cancelled_task_and_a_killed_one_are_dropped() {
        let executor = Executor::new(1);
        let alive = Rc::new(());
        let hold = |alive: Rc<()>| async move {
            std::future::pending::<()>().await;
            drop(alive);
        };
        let task = executor.spawn(hold(alive.clone()));
        let _other = executor.spawn(hold(alive.clone()));
        executor.run_until_stalled();
        assert_eq!(Rc::strong_count(&alive), 3);
        task.cancel();
        assert_eq!(Rc::strong_count(&alive), 2);
        executor.kill();
        assert_eq!(Rc::strong_count(&alive), 1);
    }

    #[test]
    fn a_paused_group_stands_still_and_catches_up_and_a_killed_one_never_comes_back() {
        let executor = Executor::new(3);
        let outside = executor.handle();
        let process = outside.new_group();
        let turns = Rc::new(Cell::new(0));
        let (counted, clock) = (turns.clone(), process.clone());
        process.spawn(async move {
            loop {
                clock.sleep(Duration::from_millis(1)).await;
                counted.set(counted.get() + 1);
            }
        });
        executor.run_until(outside.sleep(Duration::from_micros(3500)));
        assert_eq!(turns.get(), 3);
        outside.pause_group(process.group());
        executor.run_until(outside.sleep(Duration::from_millis(10)));
        assert_eq!(turns.get(), 3, "stopped");
        outside.resume_group(process.group());
        executor.run_until(outside.sleep(Duration::from_millis(2)));
        assert_eq!(turns.get(), 5, "the sleep that was due, and one more");
        outside.kill_group(process.group());
        let late = process.spawn(async {});
        executor.run_until(outside.sleep(Duration::from_millis(10)));
        assert_eq!((turns.get(), executor.tasks(), late.is_finished()), (5, 0, false));
    }
}
