//! One partition as one replica has it: its log, its role, what it carries beside its records, and everybody who waits.
//!
//! Owns: the state and the change of roles. What each role does is in the files beside: `clients` (a leader towards
//! producers and consumers), `followers` (a leader towards its followers), `following` (a follower), `derive` (state
//! beside the records).
//! Invariants: R6 to R9 and R14 to R18 of `lib.rs`.
//! Invariant: between the last check of the role and a change of the log nothing awaits, or the change is counted
//! ([`Partition::change`]) and a leadership waits for its end.
//! Not here: request formats, time-outs and who is asking (`net`, `server`), connections (`stream`).
//! Crash story: the process dies in any role. The log and its epochs are all that is needed to take the next one: the
//! epoch comes from the assignment, the high watermark from what replicas report, the rest from the records.

mod clients;
mod derive;
mod followers;
mod following;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use corelog_engine::disk::Disk;
use corelog_engine::log::{FlushPolicy, LogFailure, LogListener, LogStats, Stage};
use corelog_engine::notify::Notify;
use corelog_engine::{LeaderEpoch, Log, LogEnds, LogOptions, Offset, TopicPartition};

use derive::SnapshotState;

pub use clients::{Ack, Fetched, ProduceChecks, Produced};
pub use followers::Marks;

use crate::assignment::Assignment;
use crate::coordination::Version;
use crate::derived::{Derived, ProducerTable};
use crate::errors::RoleError;
use crate::follower::Follower;
use crate::isr::{Isr, IsrOptions, IsrStart};
use crate::leader::{Event, Leader, LeaderStart, ReplicaEnds};
use crate::progress::{Leading, Progress, RoleState};
use crate::replica::ReplicaId;
use crate::watch::{Watcher, Watching};

/// A replica of a partition. Cheap to clone; all clones are the same replica.
pub struct Partition<D: Disk>(Rc<Inner<D>>);

struct Inner<D: Disk> {
    id: TopicPartition,
    me: ReplicaId,
    log: Log<D>,
    progress: Rc<Progress>,
    isr_options: Cell<IsrOptions>,
    producers: RefCell<Derived<ProducerTable>>,
    snapshot: SnapshotState,
    /// Changes of the log as a follower that are under way (R18).
    changes: Cell<usize>,
    changed: Notify,
    counters: Cell<Counters>,
    /// What followers have reported in other leaderships too.
    #[cfg(feature = "canary")]
    remembered: RefCell<Vec<(ReplicaId, ReplicaEnds)>>,
}

#[derive(Clone, Copy, Default)]
struct Counters {
    produce_bytes: u64,
    produce_records: u64,
    fetch_bytes: u64,
}

/// What a leadership begins with, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderTerm {
    /// Its epoch.
    pub epoch: LeaderEpoch,
    /// All replicas.
    pub replicas: Vec<ReplicaId>,
    /// Those in sync; the leader is one of them.
    pub isr: Vec<ReplicaId>,
    /// Version under which this is stored.
    pub version: Version,
    /// Fewer in sync: `acks = all` is refused.
    pub min_insync_replicas: usize,
}

impl LeaderTerm {
    /// The leadership that an assignment gives.
    pub fn of(assignment: &Assignment) -> Self {
        Self {
            epoch: assignment.leader_epoch,
            replicas: assignment.replicas.clone(),
            isr: assignment.isr.clone(),
            version: assignment.version,
            min_insync_replicas: assignment.min_insync_replicas,
        }
    }
}

/// What a replica is to its partition now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CurrentRole {
    /// Nobody leads, as far as it knows; or it is to lead once a cut of its log has ended.
    Idle,
    /// It leads.
    Leading,
    /// It copies from this leader.
    Following(ReplicaId),
}

/// Sizes and counters of a partition; counters count since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionStats {
    /// Bounds of the log.
    pub ends: LogEnds,
    /// End of what is known to be committed.
    pub high_watermark: Offset,
    /// Sizes of the log.
    pub log: LogStats,
    /// Record bytes appended by producers.
    pub produce_bytes: u64,
    /// Records appended by producers.
    pub produce_records: u64,
    /// Record bytes fetched by consumers.
    pub fetch_bytes: u64,
    /// Futures that wait for an end to move.
    pub waiting: usize,
}

impl<D: Disk> Clone for Partition<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D: Disk> Partition<D> {
    /// A replica with this log, without a role.
    ///
    /// # Panics
    /// If the log is not that of the replica.
    pub fn open(id: TopicPartition, me: ReplicaId, log: Log<D>) -> Self {
        assert!(me.log == log.id(), "replica {me} on log {}", log.id());
        let ends = log.ends();
        let epoch = log.newest_epoch().unwrap_or_default();
        let progress = Rc::new(Progress::new(epoch, ends, log.stats().bytes));
        log.set_listener(progress.clone());
        let mut producers = Derived::default();
        if ends.start == ends.end {
            producers.begin(ends.end);
        }
        Self(Rc::new(Inner {
            id,
            me,
            log,
            progress,
            isr_options: Cell::new(IsrOptions::default()),
            producers: RefCell::new(producers),
            snapshot: SnapshotState::default(),
            changes: Cell::new(0),
            changed: Notify::default(),
            counters: Cell::default(),
            #[cfg(feature = "canary")]
            remembered: RefCell::default(),
        }))
    }

    /// Changes when followers count as in sync, from the next leadership on.
    pub fn set_isr_options(&self, options: IsrOptions) {
        self.0.isr_options.set(options);
    }

    /// Which partition it is.
    pub fn id(&self) -> TopicPartition {
        self.0.id
    }

    /// Which replica it is.
    pub fn me(&self) -> ReplicaId {
        self.0.me
    }

    /// Its log.
    pub fn log(&self) -> &Log<D> {
        &self.0.log
    }

    /// What it is now.
    pub fn role(&self) -> CurrentRole {
        self.0.progress.role(|role| match role {
            RoleState::Idle | RoleState::Pending(..) => CurrentRole::Idle,
            RoleState::Leading(_) => CurrentRole::Leading,
            RoleState::Following(follower) => CurrentRole::Following(follower.leader()),
        })
    }

    /// The newest epoch that it has seen: that of its role, if it has one.
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.0.progress.epoch()
    }

    /// Exclusive end of what is known to be committed: what consumers may read, if it leads.
    pub fn high_watermark(&self) -> Offset {
        self.0.progress.high_watermark()
    }

    /// First offset that can be read.
    pub fn log_start(&self) -> Offset {
        self.0.log.ends().start
    }

    /// How far its own log is.
    pub fn replica_ends(&self) -> ReplicaEnds {
        let ends = self.0.log.ends();
        ReplicaEnds { written: ends.written, durable: ends.durable }
    }

    /// Bytes committed since it was opened: with [`Partition::committed_bytes_reached`], how a reader waits for a
    /// number of bytes.
    pub fn committed_bytes(&self) -> u64 {
        self.0.progress.committed_bytes()
    }

    /// Why it takes no appends, if it does not.
    pub fn failure(&self) -> Option<LogFailure> {
        self.0.progress.failure()
    }

    /// Sizes and counters now.
    pub fn stats(&self) -> PartitionStats {
        let counters = self.0.counters.get();
        PartitionStats {
            ends: self.0.log.ends(),
            high_watermark: self.high_watermark(),
            log: self.0.log.stats(),
            produce_bytes: counters.produce_bytes,
            produce_records: counters.produce_records,
            fetch_bytes: counters.fetch_bytes,
            waiting: self.0.progress.waiting(),
        }
    }

    /// Changes the options of the log, and what its acks mean.
    pub fn set_options(&self, options: LogOptions) {
        self.0.log.set_options(options);
        self.0.progress.step(Event::StageChanged { stage: stage_of(options.flush) });
    }

    /// Tells `watcher`, with `token`, of every change of an end, a mark, or the role, until the guard is dropped.
    pub fn watch(&self, watcher: &Rc<dyn Watcher>, token: u32) -> Watching {
        self.0.progress.watchers().add(watcher, token)
    }

    /// Says that the node is cut off from the coordination service, or not any more. Cut off, it refuses what does not
    /// need all in-sync replicas: `acks = 1`, `acks = 0` and reads; another replica may lead.
    pub fn set_isolated(&self, is_isolated: bool) {
        self.0.progress.set_isolated(is_isolated);
    }

    /// Begins to lead. What is in this order is stored.
    ///
    /// If a change of the log as a follower is under way, the leadership begins when that has ended; until then it
    /// answers as one that does not lead. A leader that goes on in a later epoch keeps who waits.
    /// Errors: the order is old or contradicts itself: nothing was changed. Or the log takes no new epoch: then it
    /// has no role.
    pub fn become_leader(&self, term: LeaderTerm, now_ms: u64) -> Result<(), RoleError> {
        let progress = &self.0.progress;
        if !term.isr.contains(&self.0.me) {
            return Err(RoleError::OutsideIsr { me: self.0.me });
        }
        self.check_order(term.epoch)?;
        if term.epoch == progress.epoch() {
            match self.role() {
                CurrentRole::Leading => {
                    self.reassign(&term, now_ms);
                    return Ok(());
                }
                CurrentRole::Following(_) => return Err(self.stale(term.epoch)),
                CurrentRole::Idle => {}
            }
        }
        if self.0.changes.get() > 0 {
            progress.set_role(term.epoch, RoleState::Pending(term, now_ms));
            return Ok(());
        }
        self.lead(term, now_ms)
    }

    fn lead(&self, term: LeaderTerm, now_ms: u64) -> Result<(), RoleError> {
        let Inner { log, progress, .. } = &*self.0;
        if let Err(error) = self.begin_epoch(term.epoch) {
            progress.set_role(term.epoch, RoleState::Idle);
            return Err(error.into());
        }
        let ends = log.ends();
        let leader = Leader::new(LeaderStart {
            me: self.0.me,
            epoch: term.epoch,
            isr: term.isr.clone(),
            epoch_start: ends.end,
            high_watermark: self.high_watermark().clamp(ends.start, ends.end),
            stage: stage_of(log.options().flush),
        });
        let start = IsrStart {
            me: self.0.me,
            epoch_start: ends.end,
            replicas: term.replicas,
            isr: term.isr,
            version: term.version,
        };
        let isr = Isr::new(start, self.0.isr_options.get(), now_ms);
        let min_insync_replicas = term.min_insync_replicas;
        let leading = Leading { leader, isr, min_insync_replicas };
        progress.set_role(term.epoch, RoleState::Leading(Box::new(leading)));
        progress.ends_advanced(ends);
        #[cfg(feature = "canary")]
        self.believe_what_was_reported();
        Ok(())
    }

    fn begin_epoch(&self, epoch: LeaderEpoch) -> Result<(), corelog_engine::log::AppendError> {
        #[cfg(feature = "canary")]
        if crate::canary::is_planted(crate::canary::Canary::OldEpochAfterRestart)
            && let Some(newest) = self.0.log.newest_epoch()
        {
            self.0.log.resume_epoch(newest);
            return Ok(());
        }
        self.0.log.begin_epoch(epoch)
    }

    /// Begins to copy from a leader. Who waits for a leadership of this replica is told that it has ended.
    ///
    /// Errors: the order is old, or contradicts what this replica does in the same epoch: nothing was changed.
    pub fn become_follower(&self, epoch: LeaderEpoch, leader: ReplicaId) -> Result<(), RoleError> {
        self.check_order(epoch)?;
        if epoch == self.leader_epoch() {
            match self.role() {
                CurrentRole::Following(current) if current == leader => return Ok(()),
                CurrentRole::Leading | CurrentRole::Following(_) => return Err(self.stale(epoch)),
                CurrentRole::Idle => {}
            }
        }
        self.0.log.end_epoch();
        self.0.progress.forget_leader();
        self.0.progress.set_role(epoch, RoleState::Following(Follower::new(leader, epoch)));
        Ok(())
    }

    /// Nobody leads, or not anybody that can be reached. An order older than what was seen changes nothing.
    pub fn become_idle(&self, epoch: LeaderEpoch) {
        if epoch >= self.leader_epoch() {
            self.0.log.end_epoch();
            self.0.progress.set_role(epoch, RoleState::Idle);
        }
    }

    /// The newest order, for a replica whose role it does not change: another ISR was stored, other replicas, or the
    /// topic asks for another number of them.
    /// One of another epoch, or an older version, changes nothing.
    pub fn update(&self, assignment: &Assignment, now_ms: u64) {
        if assignment.leader_epoch == self.leader_epoch() {
            self.reassign(&LeaderTerm::of(assignment), now_ms);
        }
    }

    fn reassign(&self, term: &LeaderTerm, now_ms: u64) {
        let progress = &self.0.progress;
        progress.pending(|pending| {
            if term.version >= pending.version && term.isr.contains(&self.0.me) {
                *pending = term.clone();
            }
        });
        let changed = progress.leading(|leading| {
            // An option of the topic: it changes without the partition's version.
            if term.version >= leading.isr.version() {
                leading.min_insync_replicas = term.min_insync_replicas;
            }
            leading.isr.assigned(&term.replicas, &term.isr, term.version, now_ms)
        });
        if changed == Some(true) {
            self.isr_changed();
        }
    }

    /// Whether it is known to have all that was committed, although it was not electable: it copies in the epoch of
    /// this assignment, had caught up, and is in the ISR.
    pub fn is_verified_by(&self, assignment: &Assignment) -> bool {
        let durable = self.0.log.ends().durable;
        let has_caught_up = self.0.progress.following(|f| f.has_caught_up(durable)) == Some(true);
        let same_epoch = assignment.leader_epoch == self.leader_epoch();
        has_caught_up && same_epoch && assignment.isr.contains(&self.0.me)
    }

    fn check_order(&self, epoch: LeaderEpoch) -> Result<(), RoleError> {
        if epoch < self.leader_epoch() { Err(self.stale(epoch)) } else { Ok(()) }
    }

    fn stale(&self, given: LeaderEpoch) -> RoleError {
        RoleError::Stale { given, seen: self.leader_epoch() }
    }

    /// Runs a change of the log to its end, whoever still waits: a leadership does not begin before (R18).
    async fn change<T: 'static>(&self, work: impl Future<Output = T> + 'static) -> T {
        let changing = Changing::new(self);
        let work = async move {
            let outcome = work.await;
            drop(changing);
            outcome
        };
        self.0.log.engine().detach(work).await
    }

    /// Waits until no change of the log is under way.
    async fn unchanging(&self) {
        while self.0.changes.get() > 0 {
            self.0.changed.notified().await;
        }
    }
}

/// A change of the log as a follower that is under way.
struct Changing<D: Disk>(Partition<D>);

impl<D: Disk> Changing<D> {
    fn new(partition: &Partition<D>) -> Self {
        partition.0.changes.set(partition.0.changes.get() + 1);
        Self(partition.clone())
    }
}

impl<D: Disk> Drop for Changing<D> {
    fn drop(&mut self) {
        let partition = &self.0;
        partition.0.changes.set(partition.0.changes.get() - 1);
        if partition.0.changes.get() > 0 {
            return;
        }
        if let Some((term, now_ms)) = partition.0.progress.take_pending()
            && let Err(error) = partition.lead(term, now_ms)
        {
            let dir = partition.0.log.dir().display();
            tracing::error!(%dir, %error, "cannot begin to lead");
        }
        partition.0.changed.notify_all();
    }
}

fn stage_of(flush: FlushPolicy) -> Stage {
    #[cfg(feature = "canary")]
    if crate::canary::is_planted(crate::canary::Canary::AckBeforeSync) {
        return Stage::Written;
    }
    match flush {
        FlushPolicy::Commit => Stage::Durable,
        FlushPolicy::Interval { .. } => Stage::Written,
    }
}
