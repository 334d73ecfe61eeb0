//! Making a shard what the newest snapshot says: logs are opened, given roles, closed and deleted.
//!
//! Owns: which work is under way, and when the control thread hears that a snapshot was acted on. What to do is in
//! `plan.rs`, how in `work.rs`.
//! Invariant: at most one piece of work is under way for a partition; when it is done, the partition is looked at
//! again, by the newest snapshot. So no snapshot waits for another one's work.
//! Invariant: a snapshot counts as acted on when nothing is under way any more. An opening that takes longer than
//! [`OPENING_PATIENCE_MS`] (a disk that hangs) is not waited for: its partition is reported as not served.
//! Limits: [`OPENINGS_MAX`] pieces of work at a time for each data directory, so that one disk that hangs does not
//! hold up the others; roles are changed with a yield every [`TURN_ROLES`], so that a thousand elections at a time
//! hold nobody up.
//! Crash story: see `work.rs`.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corelog_engine::TopicPartition;
use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use glommio::timer::sleep;
use rustc_hash::FxHashMap;

use super::plan::{Step, plan, plan_one};
use super::registry::{Entries, Entry, State};
use super::state::{Shard, SharedShard};
use super::work::{self, Done};
use crate::control::{DataDirIndex, MadeLog, PartitionFailure, ShardReport, Snapshot, SnapshotVersion};

/// Logs that are opened, closed or deleted at a time in one data directory: each opening reads in pieces of a buffer,
/// so more would only wait for memory and disk.
const OPENINGS_MAX: usize = 32;

/// How long a snapshot waits for an opening that has begun, or for one that is queued behind others of which none gets
/// done. A log of a sound disk opens in far less, even after a crash.
const OPENING_PATIENCE_MS: u64 = 10_000;

/// How often overdue openings and logs that could not be made are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Roles changed in one go; each is some microseconds.
const TURN_ROLES: usize = 32;

/// How often a long opening is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Acts on snapshots as they come, until the channel closes; then finishes what is under way.
pub(super) async fn run(shard: SharedShard, snapshots: flume::Receiver<Arc<Snapshot>>) {
    let Ok(first) = snapshots.recv_async().await else { return };
    let mut reconciler = Reconciler::new(shard, first);
    reconciler.look_at_all().await;
    loop {
        reconciler.tell().await;
        match reconciler.next(&snapshots).await {
            Woken::Snapshot(snapshot) => {
                reconciler.newest = snapshots.try_iter().last().unwrap_or(snapshot);
                reconciler.look_at_all().await;
            }
            Woken::Done(done) => reconciler.finished(done),
            Woken::Look => reconciler.try_again(),
            Woken::End => return reconciler.finish().await,
        }
    }
}

enum Woken {
    Snapshot(Arc<Snapshot>),
    Done(Finished),
    Look,
    End,
}

/// A piece of work that is done.
struct Finished {
    of: Piece,
    done: Done,
}

/// What a piece of work is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Piece {
    /// A partition, whose log is in that directory.
    Partition(TopicPartition, DataDirIndex),
    /// The names of new logs in a directory.
    Names(DataDirIndex),
}

type Work = Pin<Box<dyn Future<Output = Finished>>>;

/// Work of one data directory.
#[derive(Default)]
struct Lane {
    queued: VecDeque<Step>,
    active: usize,
    /// Logs that were made and whose names are not durable yet.
    made: Vec<MadeLog>,
    /// Since when names are being made durable, if they are.
    syncing_since_ms: Option<u64>,
    /// When something was done last, or was begun while nothing was under way.
    progress_ms: u64,
}

struct Reconciler {
    shard: SharedShard,
    newest: Arc<Snapshot>,
    /// The one that all partitions were looked at by; those with work under way are looked at again when it is done.
    planned: Option<Arc<Snapshot>>,
    work: FuturesUnordered<Work>,
    /// Partitions with work under way or queued, and since when.
    busy: FxHashMap<TopicPartition, Busy>,
    lanes: FxHashMap<DataDirIndex, Lane>,
    told: Option<(SnapshotVersion, Vec<PartitionFailure>)>,
    progress: Progress,
}

struct Busy {
    is_opening: bool,
    data_dir: DataDirIndex,
    /// When it was begun, if it is not queued.
    began_ms: Option<u64>,
}

impl Reconciler {
    fn new(shard: SharedShard, newest: Arc<Snapshot>) -> Self {
        Self {
            shard,
            newest,
            planned: None,
            work: FuturesUnordered::new(),
            busy: FxHashMap::default(),
            lanes: FxHashMap::default(),
            told: None,
            progress: Progress::default(),
        }
    }

    async fn next(&mut self, snapshots: &flume::Receiver<Arc<Snapshot>>) -> Woken {
        let snapshot = std::pin::pin!(snapshots.recv_async());
        let work = &mut self.work;
        let done = std::pin::pin!(async move {
            match work.next().await {
                Some(done) => Woken::Done(done),
                None => std::future::pending().await,
            }
        });
        let look = std::pin::pin!(sleep(LOOK_INTERVAL));
        let other = select(done, look);
        match select(snapshot, other).await {
            Either::Left((Ok(snapshot), _)) => Woken::Snapshot(snapshot),
            Either::Left((Err(_), _)) => Woken::End,
            Either::Right((Either::Left((done, _)), _)) => done,
            Either::Right((Either::Right(_), _)) => Woken::Look,
        }
    }

    /// Starts all steps that the newest snapshot asks for.
    async fn look_at_all(&mut self) {
        let now_ms = self.shard.clock.elapsed_ms();
        let (before, shard) = (self.planned.replace(self.newest.clone()), self.shard.id);
        let plan = |known: &Entries| plan(known, before.as_deref(), &self.newest, shard, now_ms);
        let steps = self.shard.registry.with_all(plan);
        for (count, step) in (1usize..).zip(steps) {
            let id = step.id();
            self.start(step);
            // What was done at once may be the first step of several.
            self.look_at(id);
            if count.is_multiple_of(TURN_ROLES) {
                glommio::yield_if_needed().await;
            }
        }
    }

    /// Looks at the partitions whose log could not be opened or made, when their time has come.
    fn try_again(&mut self) {
        for id in self.shard.registry.due(self.shard.clock.elapsed_ms()) {
            self.look_at(id);
        }
    }

    fn look_at(&mut self, id: TopicPartition) {
        let now_ms = self.shard.clock.elapsed_ms();
        // Each step brings the partition nearer to what the snapshot says; those done at once are a few.
        while !self.busy.contains_key(&id) {
            let registry = &self.shard.registry;
            let step = registry.with(id, |entry| plan_one(id, entry, &self.newest, self.shard.id, now_ms));
            let Some(step) = step else { return };
            self.start(step);
        }
    }

    /// Does what can be done at once, and queues what takes the disk.
    fn start(&mut self, step: Step) {
        let id = step.id();
        if self.busy.contains_key(&id) {
            return;
        }
        let data_dir = match &step {
            Step::SetOptions(..) | Step::Assign(..) | Step::Confirm(_) | Step::TakeOffline { .. } => {
                return work::do_now(&self.shard, &self.newest, step);
            }
            Step::Open(opening) => {
                self.progress.wanted += 1;
                work::begin_opening(&self.shard, &self.newest, opening);
                opening.data_dir
            }
            Step::Close(_) | Step::Delete(_) => {
                let data_dir = self.shard.registry.with(id, |entry| entry.map(|entry| entry.data_dir));
                data_dir.unwrap_or(DataDirIndex(0))
            }
        };
        let is_opening = matches!(step, Step::Open(_));
        self.busy.insert(id, Busy { is_opening, data_dir, began_ms: None });
        let lane = self.lanes.entry(data_dir).or_default();
        if lane.active == 0 {
            lane.progress_ms = self.shard.clock.elapsed_ms();
        }
        lane.queued.push_back(step);
        self.fill(data_dir);
    }

    /// Begins queued work while there is room.
    fn fill(&mut self, data_dir: DataDirIndex) {
        let lane = self.lanes.entry(data_dir).or_default();
        while lane.active < OPENINGS_MAX
            && let Some(step) = lane.queued.pop_front()
        {
            lane.active += 1;
            if let Some(busy) = self.busy.get_mut(&step.id()) {
                busy.began_ms = Some(self.shard.clock.elapsed_ms());
            }
            let (shard, snapshot) = (self.shard.clone(), self.newest.clone());
            let of = Piece::Partition(step.id(), data_dir);
            self.work.push(Box::pin(async move {
                Finished { of, done: work::do_on_disk(&shard, &snapshot, step).await }
            }));
        }
        if !lane.made.is_empty() && lane.syncing_since_ms.is_none() {
            lane.syncing_since_ms = Some(self.shard.clock.elapsed_ms());
            let made = std::mem::take(&mut lane.made);
            let (shard, snapshot) = (self.shard.clone(), self.newest.clone());
            let of = Piece::Names(data_dir);
            self.work.push(Box::pin(async move {
                work::confirm_names(&shard, &snapshot, data_dir, made).await;
                Finished { of, done: Done::Other }
            }));
        }
    }

    fn finished(&mut self, Finished { of, done }: Finished) {
        match of {
            Piece::Names(data_dir) => {
                self.lanes.entry(data_dir).or_default().syncing_since_ms = None;
                self.fill(data_dir);
            }
            Piece::Partition(id, data_dir) => {
                self.busy.remove(&id);
                let lane = self.lanes.entry(data_dir).or_default();
                lane.active -= 1;
                lane.progress_ms = self.shard.clock.elapsed_ms();
                match done {
                    Done::Opened { scanned_bytes, made } => {
                        lane.made.extend(made);
                        self.progress.opened(self.shard.id.0, scanned_bytes);
                    }
                    Done::NotOpened => self.progress.wanted = self.progress.wanted.saturating_sub(1),
                    Done::Other => {}
                }
                self.look_at(id);
                self.fill(data_dir);
            }
        }
    }

    /// Tells the control thread how far this shard is, if that has changed.
    async fn tell(&mut self) {
        // Before the snapshot counts as acted on: a node registers after that, and must not be elected in vain.
        self.shard.report_faults().await;
        if self.is_any_waited_for() {
            return;
        }
        self.progress.all_open(self.shard.id.0);
        let version = self.newest.version;
        let failures = failures_of(&self.shard);
        if self.told.as_ref().is_some_and(|told| told.0 == version && told.1 == failures) {
            return;
        }
        self.shard.applied.set(version);
        self.told = Some((version, failures.clone()));
        self.shard.report(ShardReport::Applied { shard: self.shard.id, version, failures }).await;
    }

    /// Whether something is under way that the newest snapshot waits for.
    fn is_any_waited_for(&self) -> bool {
        let now_ms = self.shard.clock.elapsed_ms();
        let is_recent = |since_ms: u64| now_ms < since_ms + OPENING_PATIENCE_MS;
        let is_syncing = |lane: &Lane| lane.syncing_since_ms.is_some_and(is_recent);
        let is_waited_for = |busy: &Busy| {
            let lane_progress = || self.lanes.get(&busy.data_dir).map_or(0, |lane| lane.progress_ms);
            !busy.is_opening || is_recent(busy.began_ms.unwrap_or_else(lane_progress))
        };
        self.busy.values().any(is_waited_for) || self.lanes.values().any(is_syncing)
    }

    /// Waits for the work that is under way; what is queued is left.
    async fn finish(mut self) {
        self.lanes.values_mut().for_each(|lane| lane.queued.clear());
        while let Some(Finished { of, done }) = self.work.next().await {
            let Piece::Partition(_, data_dir) = of else { continue };
            if let Done::Opened { made: Some(made), .. } = done {
                work::confirm_names(&self.shard, &self.newest, data_dir, vec![made]).await;
            }
        }
    }
}

/// Everything of this shard that is not served, in order.
fn failures_of(shard: &Shard) -> Vec<PartitionFailure> {
    let failure_of = |entry: &Entry| match &entry.state {
        State::Failed(trouble) => Some(trouble.failure.clone()),
        State::Opening => Some(work::being_opened()),
        State::Open(_) | State::Leaving => None,
    };
    let of_one = |(id, entry): (&TopicPartition, &Entry)| {
        Some(PartitionFailure { partition: *id, failure: failure_of(entry)? })
    };
    let mut failures: Vec<_> = shard.registry.with_all(|entries| entries.iter().filter_map(of_one).collect());
    failures.sort_by_key(|failure| failure.partition);
    failures
}

/// What is said of many openings.
#[derive(Default)]
struct Progress {
    began: Option<Instant>,
    wanted: usize,
    opened: usize,
    scanned_bytes: u64,
    told: Option<Instant>,
}

impl Progress {
    fn opened(&mut self, shard: u16, scanned_bytes: u64) {
        self.opened += 1;
        self.scanned_bytes += scanned_bytes;
        let told = *self.told.get_or_insert_with(Instant::now);
        self.began.get_or_insert(told);
        if told.elapsed() >= PROGRESS_INTERVAL {
            self.told = Some(Instant::now());
            let Self { wanted: openings, opened, scanned_bytes, .. } = *self;
            tracing::info!(shard, opened, openings, scanned_bytes, "opening partitions");
        }
    }

    fn all_open(&mut self, shard: u16) {
        let Self { began, wanted: openings, opened, scanned_bytes, .. } = std::mem::take(self);
        if opened > 0 {
            let elapsed = began.map_or(Duration::ZERO, |began| began.elapsed());
            let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
            tracing::info!(shard, opened, openings, scanned_bytes, ms, "partitions are open");
        }
    }
}
