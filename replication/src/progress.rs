//! What a partition's log reports, turned into the high watermark and into answers.
//!
//! Owns: the leader's machine, the count of committed bytes, and the three queues of waiters. It hears of every
//! move of the log synchronously ([`LogListener`]), steps, and wakes whom the step satisfies: no task per request.
//! Invariants: R1, R7, R9 of `lib.rs`. No borrow is held while a waker runs.
//! Not here: the log itself (it holds this as its listener, so this must not hold the log).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use corelog_engine::log::{LogFailure, LogListener};
use corelog_engine::{LogEnds, Offset};

use crate::leader::{Action, Event, Leader};
use crate::waiters::{Place, Waiters};

/// State that the log's listener and the waiting futures share.
pub(crate) struct Progress {
    leader: RefCell<Leader>,
    /// End offset of each append above the high watermark, and the bytes appended up to there.
    uncommitted: RefCell<VecDeque<(Offset, u64)>>,
    appended_bytes: Cell<u64>,
    committed_bytes: Cell<u64>,
    failure: RefCell<Option<LogFailure>>,
    local: Waiters,
    high_watermark: Waiters,
    readers: Waiters,
    bytes: Waiters,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// The leader's own end, of the stage that the flush names, reaches this offset.
    Local(Offset),
    /// The high watermark reaches this offset.
    HighWatermark(Offset),
    /// The high watermark passes an offset that a reader has; a poisoned log may still be read, so only a closed
    /// one ends the wait.
    Readable(Offset),
    /// So many bytes have been committed since the partition was opened; ends like `Readable`.
    CommittedBytes(u64),
}

impl Progress {
    pub(crate) fn new(leader: Leader) -> Self {
        Self {
            leader: RefCell::new(leader),
            uncommitted: RefCell::default(),
            appended_bytes: Cell::new(0),
            committed_bytes: Cell::new(0),
            failure: RefCell::default(),
            local: Waiters::default(),
            high_watermark: Waiters::default(),
            readers: Waiters::default(),
            bytes: Waiters::default(),
        }
    }

    /// Looks at the leader.
    pub(crate) fn leader<R>(&self, look: impl FnOnce(&Leader) -> R) -> R {
        look(&self.leader.borrow())
    }

    /// Bytes committed since the partition was opened.
    pub(crate) fn committed_bytes(&self) -> u64 {
        self.committed_bytes.get()
    }

    /// Why the log takes no appends, if it does not.
    pub(crate) fn failure(&self) -> Option<LogFailure> {
        self.failure.borrow().clone()
    }

    /// How many futures wait.
    pub(crate) fn waiting(&self) -> usize {
        self.local.len() + self.high_watermark.len() + self.readers.len() + self.bytes.len()
    }

    /// Counts an append, so that readers can wait for a number of bytes.
    pub(crate) fn appended(&self, end: Offset, bytes: u64) {
        let total = self.appended_bytes.get() + bytes;
        self.appended_bytes.set(total);
        self.uncommitted.borrow_mut().push_back((end, total));
    }

    /// Steps the leader's machine, and wakes whom it satisfies.
    pub(crate) fn step(&self, event: Event) {
        let (action, local_end) = {
            let mut leader = self.leader.borrow_mut();
            let action = leader.step(event);
            (action, leader.local_end())
        };
        self.local.reached(local_end.0);
        if let Some(Action::AdvanceHighWatermark { to }) = action {
            self.commit(to);
        }
    }

    fn commit(&self, to: Offset) {
        {
            let mut uncommitted = self.uncommitted.borrow_mut();
            while let Some(&(end, total)) = uncommitted.front()
                && end <= to
            {
                self.committed_bytes.set(total);
                uncommitted.pop_front();
            }
        }
        self.high_watermark.reached(to.0);
        self.readers.reached(to.0);
        self.bytes.reached(self.committed_bytes.get());
    }

    /// Lets who waits for an ack look again: at its time-out.
    pub(crate) fn wake_producers(&self) {
        self.local.wake_all();
        self.high_watermark.wake_all();
    }

    /// Lets who waits for records look again: whether the shard is stopping.
    pub(crate) fn wake_readers(&self) {
        self.readers.wake_all();
        self.bytes.wake_all();
    }

    /// Waits for a goal.
    pub(crate) fn wait(self: &Rc<Self>, goal: Goal) -> Advanced {
        Advanced { progress: self.clone(), goal, place: None }
    }

    /// How a wait ends, if it does now.
    fn outcome(&self, goal: Goal) -> Option<Result<(), LogFailure>> {
        let reached = match goal {
            Goal::Local(end) => self.leader(Leader::local_end) >= end,
            Goal::HighWatermark(end) => self.leader(Leader::high_watermark) >= end,
            Goal::Readable(have) => self.leader(Leader::high_watermark) > have,
            Goal::CommittedBytes(total) => self.committed_bytes.get() >= total,
        };
        if reached {
            return Some(Ok(()));
        }
        let failure = self.failure()?;
        match (goal, &failure) {
            (Goal::Readable(_) | Goal::CommittedBytes(_), LogFailure::Poisoned { .. }) => None,
            _ => Some(Err(failure)),
        }
    }

    /// Where who has this goal queues, and the number at which it is woken.
    fn queue(&self, goal: Goal) -> (&Waiters, u64) {
        match goal {
            Goal::Local(end) => (&self.local, end.0),
            Goal::HighWatermark(end) => (&self.high_watermark, end.0),
            Goal::Readable(have) => (&self.readers, have.0 + 1),
            Goal::CommittedBytes(total) => (&self.bytes, total),
        }
    }
}

impl LogListener for Progress {
    fn ends_advanced(&self, ends: LogEnds) {
        self.step(Event::LocallyWritten { end: ends.written });
        self.step(Event::LocallyDurable { end: ends.durable });
    }

    fn failed(&self, failure: &LogFailure) {
        *self.failure.borrow_mut() = Some(failure.clone());
        self.wake_producers();
        self.wake_readers();
    }
}

/// Ready when an end of a partition has come far enough, or never will.
///
/// Errors: the log failed before; what was appended may or may not be there after the next start.
/// Cancel: dropping it gives up the place in the queue, nothing else.
pub struct Advanced {
    progress: Rc<Progress>,
    goal: Goal,
    place: Option<Place>,
}

impl Future for Advanced {
    type Output = Result<(), LogFailure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(outcome) = self.progress.outcome(self.goal) {
            return Poll::Ready(outcome);
        }
        let (waiters, number) = self.progress.queue(self.goal);
        let place = waiters.put(self.place, number, cx.waker());
        self.place = Some(place);
        Poll::Pending
    }
}

impl Drop for Advanced {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.progress.queue(self.goal).0.remove(place);
        }
    }
}
