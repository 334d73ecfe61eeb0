//! What others on the control thread may see and ask: HTTP, and answers that need the shards' numbers.
//!
//! Owns: the published view, and the round that asks every shard for its stats.
//! Invariant: nobody waits for a stuck shard longer than [`STATS_TIMEOUT`]; its stats are then missing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::messages::{Answer, ShardCommand};
use super::snapshot::{Snapshot, SnapshotVersion};
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
    /// Topics that could not be removed from disk yet.
    pub deletions_pending: usize,
    /// The node is stopping.
    pub is_stopping: bool,
}

impl View {
    /// Every shard has applied at least one snapshot, and the node is not about to stop.
    pub fn is_ready(&self) -> bool {
        !self.is_stopping && self.applied.iter().all(|version| *version > SnapshotVersion(0))
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
