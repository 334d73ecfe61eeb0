//! What others on the control thread may see and ask: HTTP, and answers that need the shards' numbers.
//!
//! Owns: the published view, and the round that asks every shard for its stats.
//! Invariant: nobody waits for a stuck shard longer than [`STATS_TIMEOUT`]; its stats are then missing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::messages::{Answer, ShardCommand};
use super::picture::IsrChanges;
use super::snapshot::{NodeId, Snapshot, SnapshotVersion};
use super::stats::ShardStats;

/// How long a shard may take to report: it does so between two turns of its loop, so this is ample.
pub const STATS_TIMEOUT: Duration = Duration::from_secs(2);

/// Size and free space of a data directory, by its index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataDirSizes {
    /// Size of the file system.
    pub total_bytes: u64,
    /// What is free of it.
    pub free_bytes: u64,
}

/// What a node knows of its cluster beside the snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViewCluster {
    /// It is alone, with an embedded store.
    pub is_single: bool,
    /// The coordination service answers.
    pub is_connected: bool,
    /// Who decides.
    pub controller: Option<NodeId>,
    /// How the in-sync replicas of what this node leads have changed.
    pub isr_changes: IsrChanges,
    /// Lists of logs of this node that are yet to be deleted.
    pub removals: usize,
}

/// The node at one moment.
#[derive(Clone, Debug)]
pub struct View {
    /// The newest snapshot.
    pub snapshot: Arc<Snapshot>,
    /// Rack or zone of the node; empty if nobody has said.
    pub rack: Arc<str>,
    /// What each shard has applied.
    pub applied: Vec<SnapshotVersion>,
    /// Partitions that their shards cannot serve.
    pub failed_partitions: usize,
    /// Space of each data directory.
    pub data_dirs: Vec<DataDirSizes>,
    /// Directories that belong to no topic, found at the start.
    pub orphans: usize,
    /// What it knows of the cluster.
    pub cluster: ViewCluster,
    /// All that this node can serve has been served once.
    pub is_settled: bool,
    /// The node is stopping.
    pub is_stopping: bool,
}

impl View {
    /// A node that knows nothing yet.
    pub fn starting(snapshot: Arc<Snapshot>, rack: &str) -> Self {
        let shards = snapshot.shards.len();
        Self {
            snapshot,
            rack: rack.into(),
            applied: vec![SnapshotVersion(0); shards],
            failed_partitions: 0,
            data_dirs: Vec::new(),
            orphans: 0,
            cluster: ViewCluster::default(),
            is_settled: false,
            is_stopping: false,
        }
    }

    /// It serves, is not about to stop, and is not cut off.
    pub fn is_ready(&self) -> bool {
        !self.is_stopping && self.is_settled && !self.snapshot.is_isolated
    }
}

/// A handle to look at the node from the control thread's tasks.
#[derive(Clone, Debug)]
pub struct Observer {
    pub(crate) view: watch::Receiver<Arc<View>>,
    pub(crate) commands: Vec<flume::Sender<ShardCommand>>,
    pub(crate) stats_timeout: Duration,
}

impl Observer {
    pub(crate) fn new(view: watch::Receiver<Arc<View>>, commands: Vec<flume::Sender<ShardCommand>>) -> Self {
        Self { view, commands, stats_timeout: STATS_TIMEOUT }
    }

    /// The node now.
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Waits until every shard serves; `false` if the node stops before.
    pub async fn wait_until_ready(&mut self) -> bool {
        let ready = self.view.wait_for(|view| view.is_ready() || view.is_stopping).await;
        ready.is_ok_and(|view| view.is_ready())
    }

    /// Asks every shard. `None` for one that does not answer in time.
    ///
    /// Cancel: a shard that answers later answers nobody.
    pub async fn stats(&self) -> Vec<Option<ShardStats>> {
        let asked: Vec<_> = self
            .commands
            .iter()
            .map(|commands| {
                let (answer, report) = Answer::new();
                commands.try_send(ShardCommand::Stats(answer)).ok().map(|()| report)
            })
            .collect();
        let deadline = tokio::time::Instant::now() + self.stats_timeout;
        let mut all = Vec::with_capacity(asked.len());
        for report in asked {
            all.push(match report {
                Some(report) => {
                    tokio::time::timeout_at(deadline, report.recv_async()).await.ok().and_then(Result::ok)
                }
                None => None,
            });
        }
        all
    }
}
