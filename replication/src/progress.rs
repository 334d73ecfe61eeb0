//! What a partition's log reports, turned into the high watermark and into answers.
//!
//! Owns: the role with its machines, the count of committed bytes, and the queues of waiters. It hears of every move
//! of the log synchronously ([`LogListener`]), steps, and wakes whom the step satisfies: no task per request.
//! Invariants: R1, R7, R9 and R17 of `lib.rs`. No borrow is held while a waker runs.
//! Not here: the log itself (it holds this as its listener, so this must not hold the log).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use corelog_engine::log::{LogFailure, LogListener};
use corelog_engine::{LeaderEpoch, LogEnds, Offset};

use crate::errors::WaitError;
use crate::follower::Follower;
use crate::isr::Isr;
use crate::leader::{Action, Event, Leader};
use crate::partition::LeaderTerm;
use crate::waiters::{Place, Waiters};
use crate::watch::Watchers;

/// Most appends above the high watermark that are told apart; beyond, the last ones count as one. Ten thousand small
/// batches in flight are usual, a follower that is silent for a minute is not to cost more than a MiB.
const UNCOMMITTED_MAX: usize = 1 << 16;

/// What this replica is to its partition.
pub(crate) enum RoleState {
    /// Nobody leads, as far as it knows.
    Idle,
    /// It is to lead, once a change of its log as a follower has reached its end.
    Pending(LeaderTerm, u64),
    /// It leads.
    Leading(Box<Leading>),
    /// It copies.
    Following(Follower),
}

/// A leadership.
pub(crate) struct Leading {
    pub(crate) leader: Leader,
    pub(crate) isr: Isr,
    pub(crate) min_insync_replicas: usize,
}

impl Leading {
    /// How many replicas are in sync, and must be, if these are too few for `acks = all`.
    pub(crate) fn lacks_replicas(&self) -> Option<(usize, usize)> {
        let isr = self.isr.stored().len();
        (isr < self.min_insync_replicas).then_some((isr, self.min_insync_replicas))
    }
}

/// State that the log's listener and the waiting futures share.
pub(crate) struct Progress {
    role: RefCell<RoleState>,
    /// The highest epoch seen (R17).
    epoch: Cell<LeaderEpoch>,
    /// Grows when a leadership begins or ends, but not when the leader goes on in a later epoch.
    term: Cell<u64>,
    is_isolated: Cell<bool>,
    high_watermark: Cell<Offset>,
    /// What the leader has said is committed, which may be beyond this log's end.
    high_watermark_of_leader: Cell<Offset>,
    ends: Cell<LogEnds>,
    /// End offset of each append above the high watermark, and the bytes appended up to there.
    uncommitted: RefCell<VecDeque<(Offset, u64)>>,
    appended_bytes: Cell<u64>,
    committed_bytes: Cell<u64>,
    failure: RefCell<Option<LogFailure>>,
    local: Waiters,
    committed: Waiters,
    readers: Waiters,
    bytes: Waiters,
    watchers: Watchers,
}

/// What is waited for. The end of the leadership ends every wait.
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
    /// Of a replica that has no role yet. `bytes` of batches lie in the log: none of them is known to be committed.
    pub(crate) fn new(epoch: LeaderEpoch, ends: LogEnds, bytes: u64) -> Self {
        let uncommitted = if ends.end > ends.start { [(ends.end, bytes)].into() } else { VecDeque::new() };
        Self {
            role: RefCell::new(RoleState::Idle),
            epoch: Cell::new(epoch),
            term: Cell::new(0),
            is_isolated: Cell::new(false),
            high_watermark: Cell::new(ends.start),
            high_watermark_of_leader: Cell::new(Offset::ZERO),
            ends: Cell::new(ends),
            uncommitted: RefCell::new(uncommitted),
            appended_bytes: Cell::new(bytes),
            committed_bytes: Cell::new(0),
            failure: RefCell::default(),
            local: Waiters::default(),
            committed: Waiters::default(),
            readers: Waiters::default(),
            bytes: Waiters::default(),
            watchers: Watchers::default(),
        }
    }

    /// Looks at the role.
    pub(crate) fn role<R>(&self, look: impl FnOnce(&RoleState) -> R) -> R {
        look(&self.role.borrow())
    }

    /// Looks at the leadership, if there is one.
    pub(crate) fn leading<R>(&self, look: impl FnOnce(&mut Leading) -> R) -> Option<R> {
        match &mut *self.role.borrow_mut() {
            RoleState::Leading(leading) => Some(look(leading)),
            RoleState::Idle | RoleState::Pending(..) | RoleState::Following(_) => None,
        }
    }

    /// Looks at the follower's machine, if this replica follows.
    pub(crate) fn following<R>(&self, look: impl FnOnce(&mut Follower) -> R) -> Option<R> {
        match &mut *self.role.borrow_mut() {
            RoleState::Following(follower) => Some(look(follower)),
            RoleState::Idle | RoleState::Pending(..) | RoleState::Leading(_) => None,
        }
    }

    /// Changes the terms of a leadership that has not begun yet.
    pub(crate) fn pending<R>(&self, look: impl FnOnce(&mut LeaderTerm) -> R) -> Option<R> {
        match &mut *self.role.borrow_mut() {
            RoleState::Pending(term, _) => Some(look(term)),
            RoleState::Idle | RoleState::Leading(_) | RoleState::Following(_) => None,
        }
    }

    /// Takes the leadership that waited for the log, if one does.
    pub(crate) fn take_pending(&self) -> Option<(LeaderTerm, u64)> {
        let mut role = self.role.borrow_mut();
        match &*role {
            RoleState::Pending(term, now_ms) => {
                let pending = (term.clone(), *now_ms);
                *role = RoleState::Idle;
                Some(pending)
            }
            RoleState::Idle | RoleState::Leading(_) | RoleState::Following(_) => None,
        }
    }

    /// Takes another role. A leader that goes on to lead keeps its waiters; else everybody who waits is told.
    pub(crate) fn set_role(&self, epoch: LeaderEpoch, role: RoleState) {
        assert!(epoch >= self.epoch.get(), "epoch {epoch} after {}", self.epoch.get());
        self.epoch.set(epoch);
        let goes_on = {
            let mut current = self.role.borrow_mut();
            let goes_on = matches!((&*current, &role), (RoleState::Leading(_), RoleState::Leading(_)));
            *current = role;
            goes_on
        };
        if !goes_on {
            self.term.set(self.term.get() + 1);
            self.wake_all();
        }
        self.watchers.tell();
    }

    /// The highest epoch seen.
    pub(crate) fn epoch(&self) -> LeaderEpoch {
        self.epoch.get()
    }

    /// Changes when a leadership begins or ends, and when a follower begins to follow.
    pub(crate) fn term(&self) -> u64 {
        self.term.get()
    }

    /// Exclusive end of what is known to be committed.
    pub(crate) fn high_watermark(&self) -> Offset {
        self.high_watermark.get()
    }

    /// Whether the node is cut off from the coordination service.
    pub(crate) fn is_isolated(&self) -> bool {
        self.is_isolated.get()
    }

    /// Says that the node is cut off from the coordination service, or not any more.
    pub(crate) fn set_isolated(&self, is_isolated: bool) {
        if self.is_isolated.replace(is_isolated) != is_isolated {
            self.wake_readers();
        }
    }

    /// Bytes committed since the partition was opened.
    pub(crate) fn committed_bytes(&self) -> u64 {
        self.committed_bytes.get()
    }

    /// Bytes that lay in the log when the partition was opened, and that were appended since.
    pub(crate) fn appended_bytes(&self) -> u64 {
        self.appended_bytes.get()
    }

    /// Why the log takes no appends, if it does not.
    pub(crate) fn failure(&self) -> Option<LogFailure> {
        self.failure.borrow().clone()
    }

    /// How many futures wait for an ack or for records.
    pub(crate) fn waiting(&self) -> usize {
        self.local.len() + self.committed.len() + self.readers.len() + self.bytes.len()
    }

    /// Counts an append, so that readers can wait for a number of bytes, and wakes who copies.
    pub(crate) fn appended(&self, end: Offset, bytes: u64) {
        let total = self.appended_bytes.get() + bytes;
        self.appended_bytes.set(total);
        {
            let mut uncommitted = self.uncommitted.borrow_mut();
            if uncommitted.len() >= UNCOMMITTED_MAX {
                uncommitted.pop_back();
            }
            uncommitted.push_back((end, total));
        }
        self.ends.set(LogEnds { end: end.max(self.ends.get().end), ..self.ends.get() });
        self.watchers.tell();
    }

    /// The log of a follower was cut, or begun anew: nothing above `ends` is there any more.
    pub(crate) fn cut(&self, ends: LogEnds) {
        self.ends.set(ends);
        self.high_watermark.set(self.high_watermark.get().clamp(ends.start, ends.end));
        {
            let mut uncommitted = self.uncommitted.borrow_mut();
            let keep = uncommitted.partition_point(|(end, _)| *end < ends.end);
            if let Some((end, _)) = uncommitted.get_mut(keep) {
                *end = ends.end;
                uncommitted.truncate(keep + 1);
            }
        }
        self.watchers.tell();
    }

    /// The leader has said what is committed. A follower believes it as far as its own log goes.
    pub(crate) fn leader_committed(&self, high_watermark: Offset) {
        self.high_watermark_of_leader.set(high_watermark);
        if self.learn_high_watermark() {
            self.watchers.tell();
        }
    }

    fn learn_high_watermark(&self) -> bool {
        let to = self.high_watermark_of_leader.get().min(self.ends.get().end);
        let has_moved = to > self.high_watermark.get();
        if has_moved {
            self.commit(to);
        }
        has_moved
    }

    /// Forgets what another leader has said.
    pub(crate) fn forget_leader(&self) {
        self.high_watermark_of_leader.set(Offset::ZERO);
    }

    /// Steps the leader's machine, if this replica leads, and wakes whom it satisfies.
    pub(crate) fn step(&self, event: Event) {
        if self.step_untold(event) {
            self.watchers.tell();
        }
    }

    /// Returns whether the high watermark moved.
    fn step_untold(&self, event: Event) -> bool {
        let stepped = self.leading(|leading| (leading.leader.step(event), leading.leader.local_end()));
        let Some((action, local_end)) = stepped else { return false };
        self.local.reached(local_end.0);
        let Some(Action::AdvanceHighWatermark { to }) = action else { return false };
        self.commit(to);
        true
    }

    fn commit(&self, to: Offset) {
        self.high_watermark.set(to);
        {
            let mut uncommitted = self.uncommitted.borrow_mut();
            while let Some(&(end, total)) = uncommitted.front()
                && end <= to
            {
                self.committed_bytes.set(total);
                uncommitted.pop_front();
            }
        }
        self.committed.reached(to.0);
        self.readers.reached(to.0);
        self.bytes.reached(self.committed_bytes.get());
    }

    /// Lets who waits for an ack look again: at its time-out.
    pub(crate) fn wake_producers(&self) {
        self.local.wake_all();
        self.committed.wake_all();
    }

    /// Lets who waits for records look again: whether the shard is stopping.
    pub(crate) fn wake_readers(&self) {
        self.readers.wake_all();
        self.bytes.wake_all();
    }

    fn wake_all(&self) {
        self.wake_producers();
        self.wake_readers();
    }

    /// Waits for a goal, within the leadership of now.
    pub(crate) fn wait(self: &Rc<Self>, goal: Goal) -> Advanced {
        Advanced { progress: self.clone(), goal, term: self.term.get(), place: None }
    }

    /// Who is told of every change.
    pub(crate) fn watchers(&self) -> &Watchers {
        &self.watchers
    }

    /// How a wait ends, if it does now.
    fn outcome(&self, goal: Goal, term: u64) -> Option<Result<(), WaitError>> {
        if self.term.get() != term {
            return Some(Err(WaitError::NotLeader));
        }
        let is_read = matches!(goal, Goal::Readable(_) | Goal::CommittedBytes(_));
        let leading = self.leading(|leading| (leading.leader.local_end(), leading.lacks_replicas()));
        let Some((local_end, lacks)) = leading else { return Some(Err(WaitError::NotLeader)) };
        if is_read && self.is_isolated.get() {
            return Some(Err(WaitError::NotLeader));
        }
        let reached = match goal {
            Goal::Local(end) => local_end >= end,
            Goal::HighWatermark(end) => self.high_watermark.get() >= end,
            Goal::Readable(have) => self.high_watermark.get() > have,
            Goal::CommittedBytes(total) => self.committed_bytes.get() >= total,
        };
        if reached {
            return Some(match (goal, lacks) {
                (Goal::HighWatermark(_), Some((isr, min_insync_replicas))) => {
                    Err(WaitError::NotEnoughReplicas { isr, min_insync_replicas })
                }
                _ => Ok(()),
            });
        }
        let failure = self.failure()?;
        match (goal, &failure) {
            (Goal::Local(_) | Goal::HighWatermark(_), _) | (_, LogFailure::Closed) => {
                Some(Err(failure.into()))
            }
            (_, LogFailure::Poisoned { .. }) => None,
        }
    }

    /// Where who has this goal queues, and the number at which it is woken.
    fn queue(&self, goal: Goal) -> (&Waiters, u64) {
        match goal {
            Goal::Local(end) => (&self.local, end.0),
            Goal::HighWatermark(end) => (&self.committed, end.0),
            Goal::Readable(have) => (&self.readers, have.0 + 1),
            Goal::CommittedBytes(total) => (&self.bytes, total),
        }
    }
}

impl LogListener for Progress {
    fn retention_end(&self) -> Offset {
        self.high_watermark.get()
    }

    fn ends_advanced(&self, ends: LogEnds) {
        self.ends.set(ends);
        self.step_untold(Event::LocallyWritten { end: ends.written });
        self.step_untold(Event::LocallyDurable { end: ends.durable });
        if self.following(|_| ()).is_some() {
            self.learn_high_watermark();
        }
        self.watchers.tell();
    }

    fn failed(&self, failure: &LogFailure) {
        *self.failure.borrow_mut() = Some(failure.clone());
        self.wake_all();
        self.watchers.tell();
    }
}

/// Ready when an end of a partition has come far enough, or never will.
///
/// Errors: see each variant of [`WaitError`].
/// Cancel: dropping it gives up the place in the queue, nothing else.
pub struct Advanced {
    progress: Rc<Progress>,
    goal: Goal,
    term: u64,
    place: Option<Place>,
}

impl Future for Advanced {
    type Output = Result<(), WaitError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(outcome) = self.progress.outcome(self.goal, self.term) {
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
