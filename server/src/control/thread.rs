//! The control thread's loop: the picture of the cluster in, snapshots out; reports in, answers out.
//!
//! Owns: the order of things. A change is stored, comes back in the picture, is shown to the shards, then answered.
//! Invariant: the control thread never waits for a shard. A shard that does not take a snapshot now gets the newest
//! one later; a client that waits for it is told when its time is up.
//! Crash story: killed between the store's commit and the answer, the topic exists and the client does not know:
//! it asks again and is told that the name is taken. Killed between commit and publication, the next start finds it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use corelog_engine::notify::Notified;
use corelog_engine::{TimestampMs, TopicPartition};
use corelog_replication::agent::{Agent, AgentOptions};
use corelog_replication::cluster::keys::RemovalId;
use corelog_replication::controller::ControllerOptions;
use corelog_replication::coordination::{Coordination, Version};
use corelog_schemas::Failure;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::agent_ends::{ControlClock, Listener};
use super::cleanup::Removing;
use super::local::Local;
use super::messages::{ControlLink, MadeLog, PartitionFailure, ShardCommand, ShardReport};
use super::picture::Picture;
use super::requests::{Made, random};
use super::snapshot::{DataDirIndex, DataDirState, ShardId, Snapshot, SnapshotVersion};
use super::view::{DataDirSizes, Observer, View, ViewCluster};
use super::waiting::Waiting;
use crate::config::Config;

/// How often free space is measured: often enough to stop before the last byte, rare enough to cost nothing.
const SPACE_INTERVAL: Duration = Duration::from_secs(5);
/// How soon a snapshot that a shard had no room for is offered again.
const RESEND_INTERVAL: Duration = Duration::from_millis(20);
/// Snapshots are at least so far apart, so that a thousand changes make a few of them.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(1);
/// At most this part of the thread's time goes into making snapshots.
const PUBLISH_SHARE: u32 = 4;
/// A node that runs with some partitions without a leader calls itself ready after this.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// How a run of the node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Every log was synced and closed; the next start skips its scans.
    Clean,
    /// Something was not: the next start scans the tails of the logs.
    Unclean,
}

/// What happened beside the loop.
pub(super) enum Note {
    /// A change that somebody asked for was made or refused.
    Made(Made),
    /// Directories of logs were removed.
    Removed { id: RemovalId, gone: Vec<Removing> },
    /// A leader's wish was not stored.
    IsrRefused { partition: TopicPartition, version: Version },
    /// Another process has registered under this node's number.
    Replaced { started: TimestampMs },
}

/// The control thread's state machine and its ends of the channels.
pub struct Control<C: Coordination> {
    pub(super) config: Arc<Config>,
    pub(super) agent: Agent<C, ControlClock>,
    pub(super) local: Local,
    pub(super) picture: Picture,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) failures: FxHashMap<TopicPartition, (ShardId, Failure)>,
    pub(super) waiting: Vec<Waiting>,
    pub(super) notes: mpsc::UnboundedSender<Note>,
    pub(super) link: ControlLink,
    pub(super) applied: Vec<SnapshotVersion>,
    /// Changes under way that somebody has asked for.
    pub(super) changes: Rc<Cell<usize>>,
    noted: mpsc::UnboundedReceiver<Note>,
    /// Comes when the agent's picture has changed.
    changed: Option<Pin<Box<Notified>>>,
    sent: Vec<SnapshotVersion>,
    /// Refusals that a shard had no room for.
    refused: Vec<VecDeque<(TopicPartition, Version)>>,
    pub(super) made: Vec<MadeLog>,
    /// Removals under way or done, so that each is begun once a run.
    pub(super) removing: FxHashSet<RemovalId>,
    pub(super) orphans: Option<usize>,
    pub(super) is_dirty: bool,
    publish_at: Instant,
    settle_by: Instant,
    /// The first snapshot in which every replica here had something to do; ready when it is applied.
    settled: Option<SnapshotVersion>,
    pub(super) is_replaced: bool,
    /// The first snapshot with a picture of the cluster in it.
    first_picture: Option<SnapshotVersion>,
    /// The node may register.
    is_announced: bool,
    view: watch::Sender<Arc<View>>,
}

impl<C: Coordination> Control<C> {
    /// Takes over an opened node. Nothing is shown to its shards before [`Control::run`].
    ///
    /// Panics unless there is one address and one channel per shard.
    pub fn new(
        config: Arc<Config>,
        local: Local,
        store: C,
        link: ControlLink,
        view: watch::Sender<Arc<View>>,
    ) -> Self {
        assert_eq!(local.shards.len(), link.commands.len(), "one address and one channel per shard");
        let count = local.shards.len();
        let (notes, noted) = mpsc::unbounded_channel();
        let clock = ControlClock::new();
        let defaults = AgentOptions::default();
        let options = AgentOptions {
            session_timeout_ms: config
                .zookeeper
                .as_ref()
                .map_or(defaults.session_timeout_ms, |zookeeper| zookeeper.session_timeout_ms),
            controller: ControllerOptions {
                // Never by itself: as good as.
                balance_delay_ms: config.controller.balance_delay_ms.unwrap_or(u64::MAX / 4),
                ..defaults.controller
            },
            ..defaults
        };
        let listener = Rc::new(Listener { notes: notes.clone() });
        let agent = Agent::new(store, clock, local.registration(), Box::new(random), listener, options);
        let picture = Picture::new(config.topic.options.clone());
        let snapshot = view.borrow().snapshot.clone();
        Self {
            config,
            agent,
            local,
            picture,
            snapshot,
            failures: FxHashMap::default(),
            waiting: Vec::new(),
            notes,
            link,
            applied: vec![SnapshotVersion(0); count],
            changes: Rc::default(),
            noted,
            changed: None,
            sent: vec![SnapshotVersion(0); count],
            refused: vec![VecDeque::new(); count],
            made: Vec::new(),
            removing: FxHashSet::default(),
            orphans: None,
            is_dirty: false,
            publish_at: Instant::now(),
            settle_by: Instant::now() + SETTLE_TIMEOUT,
            settled: None,
            is_replaced: false,
            first_picture: None,
            is_announced: false,
            view,
        }
    }

    /// A handle for HTTP.
    pub fn observer(&self) -> Observer {
        Observer::new(self.view.subscribe(), self.link.commands.clone())
    }

    /// Runs until `stop` completes, then hands leadership over, stops the shards and marks what was clean. Must be polled
    /// within a `LocalSet`.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Stopped {
        let agent = self.agent.clone();
        let running = tokio::task::spawn_local(async move { agent.run().await });
        let mut stop = std::pin::pin!(stop);
        let mut space_at = Instant::now() + SPACE_INTERVAL;
        let stopped = loop {
            if self.is_replaced {
                // Its logs are this process's alone; what they hold is safe, and others decide who leads.
                break self.stop_shards().await;
            }
            let wake_at = self.next_wake(space_at);
            tokio::select! {
                is_there = self.step(wake_at) => if !is_there {
                    break self.finish(&[]);
                },
                () = &mut stop => {
                    self.is_dirty = true;
                    self.hand_over().await;
                    break self.stop_shards().await;
                }
            }
            if Instant::now() >= space_at {
                space_at = Instant::now() + SPACE_INTERVAL;
                self.measure_space();
            }
        };
        running.abort();
        stopped
    }

    /// Waits for one thing to happen, or for the time, and acts on it; `false` if every shard is gone.
    pub(super) async fn step(&mut self, wake_at: Instant) -> bool {
        // Kept until it has come: one that comes together with something else must not be lost.
        let mut changed = self.changed.take().unwrap_or_else(|| Box::pin(self.agent.changed()));
        let mut has_changed = false;
        tokio::select! {
            report = self.link.reports.recv_async() => match report {
                Ok(report) => {
                    self.handle(report);
                    while let Ok(report) = self.link.reports.try_recv() {
                        self.handle(report);
                    }
                }
                // Every shard is gone without a word: nothing is left to control.
                Err(flume::RecvError::Disconnected) => return false,
            },
            Some(note) = self.noted.recv() => self.on_note(note),
            () = &mut changed => has_changed = true,
            () = tokio::time::sleep_until(wake_at) => {}
        }
        self.is_dirty |= has_changed;
        self.changed = (!has_changed).then_some(changed);
        self.turn();
        true
    }

    /// What is due after anything has happened.
    fn turn(&mut self) {
        self.announce();
        self.record_made();
        if self.is_dirty && Instant::now() >= self.publish_at && self.agent.has_state() {
            self.publish();
        }
        self.send_snapshot();
        self.send_refused();
        self.answer_waiting();
        if self.settled.is_none() {
            self.settle();
        }
    }

    /// Lets the node register once its shards have opened the logs of the first picture, or said why they cannot.
    fn announce(&mut self) {
        let Some(first) = self.first_picture else { return };
        if !self.is_announced && self.applied_by_all() >= first {
            self.is_announced = true;
            self.agent.announce();
        }
    }

    /// Shows what has changed since the newest snapshot.
    pub(super) fn catch_up(&mut self) {
        if self.is_dirty && self.agent.has_state() {
            self.publish();
        }
    }

    pub(super) fn next_wake(&self, latest: Instant) -> Instant {
        let is_behind = self.sent.iter().any(|version| *version < self.snapshot.version);
        let is_behind = is_behind || self.refused.iter().any(|refused| !refused.is_empty());
        let resend = is_behind.then(|| Instant::now() + RESEND_INTERVAL);
        let publish = self.is_dirty.then_some(self.publish_at);
        let deadline = self.waiting.iter().map(|waiting| waiting.deadline).min();
        let settle = self.settled.is_none().then_some(self.settle_by.max(Instant::now() + RESEND_INTERVAL));
        [Some(latest), resend, publish, deadline, settle].into_iter().flatten().min().unwrap_or(latest)
    }

    pub(super) fn handle(&mut self, report: ShardReport) {
        match report {
            ShardReport::Applied { shard, version, failures } => self.on_applied(shard, version, failures),
            ShardReport::Admin(request) => self.on_admin(request),
            ShardReport::LogsMade(made) => self.made.extend(made),
            ShardReport::Replication(report) => self.agent.report(report),
            ShardReport::Fault(fault) => {
                tracing::warn!(replica = %fault.replica, kind = ?fault.kind, reason = fault.reason, "replica must not lead");
                self.agent.fault(&fault);
            }
            ShardReport::PartitionFailed(PartitionFailure { partition, failure }) => {
                tracing::error!(topic = %partition.topic, partition = %partition.partition, %failure, "partition failed");
                let local = self.snapshot.partition(partition).and_then(|p| p.local.as_ref());
                if let Some(local) = local {
                    self.failures.insert(partition, (local.shard, failure));
                }
                self.show(false);
            }
            ShardReport::DataDirFailed { data_dir, reason } => self.on_data_dir_failed(data_dir, reason),
            // Not asked to stop: a shard that has given up. Its partitions are not served any more.
            ShardReport::Stopped { shard, .. } => tracing::error!(%shard, "shard has stopped by itself"),
        }
    }

    fn on_note(&mut self, note: Note) {
        match note {
            Note::Made(made) => self.on_made(made),
            Note::Removed { id, gone } => self.on_removed(id, gone),
            Note::IsrRefused { partition, version } => {
                let local = self.snapshot.partition(partition).and_then(|p| p.local.as_ref());
                if let Some(queue) = local.and_then(|local| self.refused.get_mut(local.shard.index())) {
                    queue.push_back((partition, version));
                }
            }
            Note::Replaced { started } => {
                tracing::error!(
                    node = %self.local.node, other_started_ms = started.0,
                    "another process has registered as this node; this one stops: give each node its own node.id"
                );
                self.is_replaced = true;
            }
        }
    }

    pub(super) fn on_applied(
        &mut self,
        shard: ShardId,
        version: SnapshotVersion,
        failures: Vec<PartitionFailure>,
    ) {
        let Some(applied) = self.applied.get_mut(shard.index()) else { return };
        *applied = version.max(*applied);
        let before = std::mem::take(&mut self.failures);
        let (old, others): (FxHashMap<_, _>, FxHashMap<_, _>) =
            before.into_iter().partition(|(_, (of, _))| *of == shard);
        self.failures = others;
        for PartitionFailure { partition, failure } in failures {
            if old.get(&partition).is_none_or(|(_, known)| *known != failure) {
                tracing::error!(
                    topic = %partition.topic, partition = %partition.partition, %shard, %failure,
                    "partition cannot be served"
                );
            }
            self.failures.insert(partition, (shard, failure));
        }
        self.begin_removals();
        self.show(false);
    }

    pub(super) fn on_data_dir_failed(&mut self, data_dir: DataDirIndex, reason: String) {
        let Some(entry) = self.local.data_dirs.get_mut(data_dir.index()) else { return };
        if matches!(entry.state, DataDirState::Offline { .. }) {
            return;
        }
        tracing::error!(
            dir = %entry.path.display(), reason,
            "data directory has failed: its partitions are offline until the node is restarted with the disk mended"
        );
        entry.state = DataDirState::Offline { reason };
        self.register_dirs();
        self.is_dirty = true;
    }

    fn measure_space(&mut self) {
        self.is_dirty |= self.local.measure_space(self.config.data.free_bytes_min);
        self.register_dirs();
        self.show(false);
    }

    /// Tells the cluster what the data directories have to offer, if that has changed enough to matter.
    fn register_dirs(&self) {
        let now = self.local.usable_dirs();
        let differs = self.agent.cluster(|cluster| {
            cluster.nodes.get(&self.local.node).is_none_or(|node| {
                let is_near = |a: u64, b: u64| a.abs_diff(b) <= a / 8 && (a == 0) == (b == 0);
                node.data_dirs.len() != now.len()
                    || node
                        .data_dirs
                        .iter()
                        .zip(&now)
                        .any(|(a, b)| a.id != b.id || !is_near(a.free_bytes, b.free_bytes))
            })
        });
        if differs {
            self.agent.update_registration(|record| record.data_dirs = now);
        }
    }

    /// Makes the next snapshot and offers it to every shard.
    pub(super) fn publish(&mut self) {
        let began = Instant::now();
        self.is_dirty = false;
        let is_isolated = self.agent.is_isolated();
        if is_isolated != self.snapshot.is_isolated {
            if is_isolated {
                tracing::error!(
                    "cut off from the coordination service: acks=1 and reads are refused until it answers"
                );
            } else {
                tracing::info!("the coordination service answers again");
            }
        }
        let (picture, local) = (&mut self.picture, &mut self.local);
        self.snapshot = self.agent.cluster(|cluster| picture.next(cluster, local, is_isolated));
        self.first_picture.get_or_insert(self.snapshot.version);
        if self.orphans.is_none() {
            self.find_orphans();
        }
        self.send_snapshot();
        self.show(false);
        self.publish_at = Instant::now() + PUBLISH_INTERVAL.max(began.elapsed() * PUBLISH_SHARE);
    }

    /// A node is ready when all that it can serve is served for the first time, or when it has waited for the others.
    fn settle(&mut self) {
        if self.snapshot.version == SnapshotVersion(0) || !self.agent.is_registered() {
            return;
        }
        let has_work = |local: &super::snapshot::LocalReplica| {
            !matches!(self.snapshot.data_dir(local.data_dir).state, DataDirState::Offline { .. })
        };
        let is_settled = self.snapshot.local_partitions().all(|(topic, partition, local)| {
            let of = TopicPartition { topic: topic.id, partition: partition.id };
            let is_served = partition.leader.is_some() && !local.is_new;
            is_served || self.failures.contains_key(&of) || !has_work(local)
        });
        if is_settled || Instant::now() >= self.settle_by {
            self.settled = Some(self.snapshot.version);
            self.show(false);
        }
    }

    pub(super) fn send_snapshot(&mut self) {
        for (commands, sent) in self.link.commands.iter().zip(&mut self.sent) {
            if *sent < self.snapshot.version
                && commands.try_send(ShardCommand::Apply(self.snapshot.clone())).is_ok()
            {
                *sent = self.snapshot.version;
            }
        }
    }

    fn send_refused(&mut self) {
        for (commands, refused) in self.link.commands.iter().zip(&mut self.refused) {
            while let Some((partition, version)) = refused.front().copied() {
                if commands.try_send(ShardCommand::IsrRefused { partition, version }).is_err() {
                    break;
                }
                refused.pop_front();
            }
        }
    }

    pub(super) fn applied_by_all(&self) -> SnapshotVersion {
        self.applied.iter().copied().min().unwrap_or_default()
    }

    pub(super) fn show(&self, is_stopping: bool) {
        let sizes = self.local.data_dirs.iter();
        let sizes =
            sizes.map(|dir| DataDirSizes { total_bytes: dir.total_bytes, free_bytes: dir.free_bytes });
        let is_settled = self.settled.is_some_and(|version| version <= self.applied_by_all());
        let node = self.local.node;
        let cluster = self.agent.cluster(|cluster| ViewCluster {
            is_single: self.config.zookeeper.is_none(),
            is_connected: self.agent.is_connected(),
            controller: cluster.controller.as_ref().map(|controller| controller.node),
            isr_changes: self.picture.isr_changes(),
            removals: cluster.removals_of(node).count(),
        });
        self.view.send_replace(Arc::new(View {
            snapshot: self.snapshot.clone(),
            rack: self.local.rack.as_str().into(),
            applied: self.applied.clone(),
            failed_partitions: self.failures.len(),
            data_dirs: sizes.collect(),
            orphans: self.orphans.unwrap_or(0),
            cluster,
            is_settled,
            is_stopping,
        }));
    }

    /// The wall clock, read once per change.
    pub(super) fn now() -> TimestampMs {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        TimestampMs(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}
