//! The control thread's loop: reports in, snapshots out, answers when the shards have caught up.
//!
//! Owns: the order of things. A change is stored, then shown to the shards, then confirmed, then answered.
//! Invariant: the control thread never waits for a shard. A shard that does not take a snapshot now gets the newest
//! one later; a client that waits for it is told when its time is up.
//! Crash story: killed between the store's commit and the answer, the topic exists and the client does not know:
//! it asks again and is told that the name is taken. Killed between commit and publication, the next start finds it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use corelog_engine::{TimestampMs, TopicId, TopicPartition};
use corelog_schemas::Failure;
use rustc_hash::FxHashMap;
use tokio::sync::watch;
use tokio::time::Instant;

use super::cleanup;
use super::messages::{ControlLink, MadeLog, PartitionFailure, ShardCommand, ShardReport};
use super::snapshot::{
    DataDirIndex, DataDirState, PartitionMetadata, ShardAddress, ShardId, Snapshot, SnapshotVersion,
};
use super::start::{Opened, measure_space};
use super::state::State;
use super::store::{Change, Coordination, EmbeddedStore};
use super::view::{DataDirSizes, Observer, STATS_TIMEOUT, View};
use super::waiting::Waiting;
use crate::config::Config;

/// How often free space is measured: often enough to stop before the last byte, rare enough to cost nothing.
const SPACE_INTERVAL: Duration = Duration::from_secs(5);
/// How soon a snapshot that a shard had no room for is offered again.
const RESEND_INTERVAL: Duration = Duration::from_millis(20);

/// How a run of the node ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Every log was synced and closed; the next start skips its scans.
    Clean,
    /// Something was not: the next start scans the tails of the logs.
    Unclean,
}

/// The control thread's state machine and its ends of the channels.
pub struct Control {
    pub(super) config: Arc<Config>,
    pub(super) state: State,
    pub(super) store: EmbeddedStore,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) failures: FxHashMap<TopicPartition, (ShardId, Failure)>,
    pub(super) waiting: Vec<Waiting>,
    rack: Arc<str>,
    orphans: usize,
    link: ControlLink,
    sent: Vec<SnapshotVersion>,
    applied: Vec<SnapshotVersion>,
    /// Logs that a shard has yet to make, with the first snapshot that names them.
    unconfirmed: BTreeMap<TopicPartition, SnapshotVersion>,
    /// Deleted topics whose directories go once every shard has applied this.
    removals: Vec<(SnapshotVersion, TopicId)>,
    view: watch::Sender<Arc<View>>,
}

impl Control {
    /// Takes over an opened node: publishes the first snapshot to its shards.
    ///
    /// Panics unless there is one address and one channel per shard.
    pub fn new(config: Arc<Config>, opened: Opened, shards: Vec<ShardAddress>, link: ControlLink) -> Self {
        assert_eq!(shards.len(), link.commands.len(), "one address and one channel per shard");
        let Opened { mut state, store, orphans } = opened;
        for orphan in &orphans {
            tracing::warn!(
                directory = %orphan.display(),
                "belongs to no topic of this node; nothing is done to it: move it away, or remove it, if you do not need it"
            );
        }
        let count = shards.len();
        state.shards = shards;
        let snapshot = state.next_snapshot();
        let rack: Arc<str> = config.node.rack.as_str().into();
        let view = watch::Sender::new(Arc::new(View {
            snapshot: snapshot.clone(),
            rack: rack.clone(),
            applied: vec![SnapshotVersion(0); count],
            failed_partitions: 0,
            data_dirs: Vec::new(),
            orphans: orphans.len(),
            deletions_pending: state.deleted.len(),
            is_stopping: false,
        }));
        let mut control = Self {
            config,
            state,
            store,
            snapshot,
            failures: FxHashMap::default(),
            waiting: Vec::new(),
            rack,
            orphans: orphans.len(),
            link,
            sent: vec![SnapshotVersion(0); count],
            applied: vec![SnapshotVersion(0); count],
            unconfirmed: BTreeMap::new(),
            removals: Vec::new(),
            view,
        };
        control.expect_new_logs();
        control.send_snapshot();
        control.show(false);
        control
    }

    /// A handle for HTTP.
    pub fn observer(&self) -> Observer {
        let (view, commands) = (self.view.subscribe(), self.link.commands.clone());
        Observer { view, commands, stats_timeout: STATS_TIMEOUT }
    }

    /// Runs until `stop` completes, then stops the shards and marks what was clean.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Stopped {
        let mut stop = std::pin::pin!(stop);
        let mut space_at = Instant::now() + SPACE_INTERVAL;
        loop {
            let wake_at = self.next_wake(space_at);
            tokio::select! {
                report = self.link.reports.recv_async() => match report {
                    Ok(report) => self.handle(report),
                    // Every shard is gone without a word: nothing is left to control.
                    Err(flume::RecvError::Disconnected) => return self.finish(&[]),
                },
                () = tokio::time::sleep_until(wake_at) => {}
                () = &mut stop => break,
            }
            self.send_snapshot();
            self.answer_waiting();
            if Instant::now() >= space_at {
                space_at = Instant::now() + SPACE_INTERVAL;
                if measure_space(&mut self.state, self.config.data.free_bytes_min) {
                    self.publish();
                }
                self.show(false);
            }
        }
        self.stop_shards().await
    }

    fn next_wake(&self, space_at: Instant) -> Instant {
        let is_behind = self.sent.iter().any(|version| *version < self.snapshot.version);
        let resend = is_behind.then(|| Instant::now() + RESEND_INTERVAL);
        let deadline = self.waiting.iter().map(|waiting| waiting.deadline).min();
        [Some(space_at), resend, deadline].into_iter().flatten().min().unwrap_or(space_at)
    }

    fn handle(&mut self, report: ShardReport) {
        match report {
            ShardReport::Applied { shard, version, failures } => self.on_applied(shard, version, failures),
            ShardReport::Admin(request) => self.on_admin(request),
            ShardReport::PartitionFailed(PartitionFailure { partition, failure }) => {
                tracing::error!(topic = %partition.topic, partition = %partition.partition, %failure, "partition failed");
                let local = self.snapshot.partition(partition).and_then(|p| p.local.as_ref());
                let shard = local.map(|local| local.shard);
                if let Some(shard) = shard {
                    self.failures.insert(partition, (shard, failure));
                }
                self.show(false);
            }
            ShardReport::DataDirFailed { data_dir, reason } => self.on_data_dir_failed(data_dir, reason),
            ShardReport::LogsMade(made) => self.on_logs_made(&made),
            // A node alone has no other replicas: nothing is proposed, and nobody else could lead.
            ShardReport::Replication(_) | ShardReport::Fault(_) => {}
            // Not asked to stop: a shard that has given up. Its partitions are not served any more.
            ShardReport::Stopped { shard, .. } => tracing::error!(%shard, "shard has stopped by itself"),
        }
    }

    fn on_applied(&mut self, shard: ShardId, version: SnapshotVersion, failures: Vec<PartitionFailure>) {
        let Some(applied) = self.applied.get_mut(shard.index()) else { return };
        *applied = version.max(*applied);
        self.failures.retain(|_, (of, _)| *of != shard);
        for PartitionFailure { partition, failure } in failures {
            tracing::error!(
                topic = %partition.topic, partition = %partition.partition, %shard, %failure,
                "partition cannot be served"
            );
            self.failures.insert(partition, (shard, failure));
        }
        self.confirm_logs(shard, version);
        self.remove_deleted();
        self.show(false);
    }

    fn on_data_dir_failed(&mut self, data_dir: DataDirIndex, reason: String) {
        let Some(entry) = self.state.data_dirs.get_mut(data_dir.index()) else { return };
        if matches!(entry.state, DataDirState::Offline { .. }) {
            return;
        }
        tracing::error!(
            dir = %entry.path.display(), reason,
            "data directory has failed: its partitions are offline until the node is restarted with the disk mended"
        );
        entry.state = DataDirState::Offline { reason };
        self.publish();
    }

    /// Makes the next snapshot and offers it to every shard.
    pub(super) fn publish(&mut self) {
        self.snapshot = self.state.next_snapshot();
        self.expect_new_logs();
        self.send_snapshot();
        self.show(false);
    }

    fn expect_new_logs(&mut self) {
        let version = self.snapshot.version;
        for topic in self.snapshot.topics() {
            let is_new = |p: &&PartitionMetadata| p.local.as_ref().is_some_and(|local| local.is_new);
            for partition in topic.partitions.iter().filter(is_new) {
                let of = TopicPartition { topic: topic.id, partition: partition.id };
                self.unconfirmed.entry(of).or_insert(version);
            }
        }
    }

    fn send_snapshot(&mut self) {
        for (commands, sent) in self.link.commands.iter().zip(&mut self.sent) {
            if *sent < self.snapshot.version
                && commands.try_send(ShardCommand::Apply(self.snapshot.clone())).is_ok()
            {
                *sent = self.snapshot.version;
            }
        }
    }

    /// Stores that logs exist now: from here on a missing directory is a loss and not a beginning.
    fn confirm_logs(&mut self, shard: ShardId, version: SnapshotVersion) {
        let is_of = |p: &PartitionMetadata| p.local.as_ref().is_none_or(|local| local.shard == shard);
        let made = self.unconfirmed.iter().filter(|(of, since)| {
            let is_here = self.snapshot.partition(**of).is_none_or(is_of);
            is_here && **since <= version && !self.failures.contains_key(of)
        });
        let made = made.map(|(of, _)| *of).collect();
        self.confirm(made);
    }

    /// Stores that logs exist, and tells the shards, so that they may be used.
    fn on_logs_made(&mut self, made: &[MadeLog]) {
        self.confirm(made.iter().map(|made| made.partition).collect());
        self.publish();
        for waiting in &mut self.waiting {
            waiting.version = self.snapshot.version;
        }
    }

    fn confirm(&mut self, made: Vec<TopicPartition>) {
        let mut by_topic: BTreeMap<TopicId, Vec<usize>> = BTreeMap::new();
        for of in &made {
            by_topic.entry(of.topic).or_default().push(of.partition.0 as usize);
        }
        let changes: Vec<Change> = by_topic
            .into_iter()
            .filter_map(|(id, numbers)| {
                let mut topic = self.state.topic(id)?.clone();
                for number in numbers {
                    topic.partitions.get_mut(number)?.is_confirmed = true;
                }
                let expected = Some(topic.version);
                Some(Change::PutTopic { topic, expected })
            })
            .collect();
        match self.store.write(&changes) {
            Ok(topics) => {
                for topic in topics {
                    self.state.put_topic(topic);
                }
                for of in made {
                    self.unconfirmed.remove(&of);
                }
            }
            // Stays unconfirmed: the next start would make the log if it were missing. Nothing is wrong with it now.
            Err(error) => tracing::error!(%error, "cannot store that new logs exist"),
        }
    }

    /// Removes what shards have left of deleted topics, once none of them has it open.
    fn remove_deleted(&mut self) {
        let applied = self.applied_by_all();
        let ids: Vec<TopicId> =
            self.removals.iter().filter(|(since, _)| *since <= applied).map(|(_, id)| *id).collect();
        if ids.is_empty() {
            return;
        }
        self.removals.retain(|(since, _)| *since > applied);
        self.unconfirmed.retain(|of, _| !ids.contains(&of.topic));
        if let Err(error) = cleanup::finish_deletions_of(&mut self.state, &mut self.store, &ids) {
            tracing::error!(%error, "cannot store that deleted topics are gone; the next start will look again");
        }
    }

    /// Removes a deleted topic's directories when every shard has let go of it. Call after publishing.
    pub(super) fn remove_later(&mut self, id: TopicId) {
        self.removals.push((self.snapshot.version, id));
    }

    pub(super) fn applied_by_all(&self) -> SnapshotVersion {
        self.applied.iter().copied().min().unwrap_or_default()
    }

    fn show(&self, is_stopping: bool) {
        let sizes = self.state.data_dirs.iter();
        let sizes =
            sizes.map(|dir| DataDirSizes { total_bytes: dir.total_bytes, free_bytes: dir.free_bytes });
        self.view.send_replace(Arc::new(View {
            snapshot: self.snapshot.clone(),
            rack: self.rack.clone(),
            applied: self.applied.clone(),
            failed_partitions: self.failures.len(),
            data_dirs: sizes.collect(),
            orphans: self.orphans,
            deletions_pending: self.state.deleted.len(),
            is_stopping,
        }));
    }

    /// Asks every shard to stop and waits for their last words, or for the time to run out.
    async fn stop_shards(mut self) -> Stopped {
        self.show(true);
        let timeout = Duration::from_millis(self.config.limits.stop_timeout_ms);
        let deadline = Instant::now() + timeout;
        self.refuse_waiting();
        for commands in &self.link.commands {
            // A shard that does not take the order is stuck; it counts as unclean below.
            let _ = tokio::time::timeout_at(deadline, commands.send_async(ShardCommand::Stop)).await;
        }
        let mut last_words: BTreeMap<ShardId, Vec<DataDirIndex>> = BTreeMap::new();
        while last_words.len() < self.link.commands.len() {
            match tokio::time::timeout_at(deadline, self.link.reports.recv_async()).await {
                Ok(Ok(ShardReport::Stopped { shard, unclean })) => {
                    last_words.insert(shard, unclean);
                }
                // Logs that were made on the way still count.
                Ok(Ok(ShardReport::Applied { shard, version, failures })) => {
                    self.on_applied(shard, version, failures);
                }
                // Admin requests die here; their answers are dropped, which tells the sessions.
                Ok(Ok(_)) => {}
                Ok(Err(flume::RecvError::Disconnected)) => break,
                Err(_) => {
                    tracing::error!(
                        stopped = last_words.len(),
                        shards = self.link.commands.len(),
                        timeout_ms = timeout.as_millis(),
                        "not every shard has stopped in time (limits.stop_timeout): the next start scans the tails"
                    );
                    break;
                }
            }
        }
        let answers: Vec<Vec<DataDirIndex>> = last_words.into_values().collect();
        self.finish(&answers)
    }

    /// Marks the data directories that all shards left clean.
    fn finish(self, answers: &[Vec<DataDirIndex>]) -> Stopped {
        let is_complete = answers.len() == self.link.commands.len();
        let mut stopped = if is_complete { Stopped::Clean } else { Stopped::Unclean };
        for (entry, index) in self.state.data_dirs.iter().zip(0..) {
            let Some(dir) = &entry.open else { continue };
            let is_offline = matches!(entry.state, DataDirState::Offline { .. });
            let is_unclean = answers.iter().any(|unclean| unclean.contains(&DataDirIndex(index)));
            if !is_complete || is_offline || is_unclean {
                stopped = Stopped::Unclean;
                continue;
            }
            if let Err(error) = dir.mark_clean() {
                tracing::error!(%error, "the next start will scan the tails of its logs");
                stopped = Stopped::Unclean;
            }
        }
        stopped
    }

    /// The wall clock, read once per change.
    pub(super) fn now() -> TimestampMs {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        TimestampMs(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}
