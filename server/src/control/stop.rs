//! The end of a node: leadership goes first, then the shards, then the registration.
//!
//! Owns: the order, and how long each part may take. Clients of a partition that another node can lead are sent there
//! before this one stops serving it.
//! Crash story: killed anywhere in here, nothing is marked clean that was not closed; the cluster finds the node gone.

use std::collections::BTreeMap;
use std::time::Duration;

use corelog_replication::coordination::Coordination;
use tokio::time::Instant;

use super::messages::{ShardCommand, ShardReport};
use super::snapshot::{DataDirIndex, DataDirState, ShardId};
use super::thread::{Control, Stopped};

/// How long the coordination service may take to forget a node that has stopped; else its session does it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the shards have to apply the last change of leadership.
const APPLY_TIMEOUT: Duration = Duration::from_millis(500);

impl<C: Coordination> Control<C> {
    fn stop_timeout(&self) -> Duration {
        Duration::from_millis(self.config.limits.stop_timeout_ms)
    }

    /// Waits until this node leads nothing that another one could, for at most half of the time.
    pub(super) async fn hand_over(&mut self) {
        self.refuse_waiting();
        self.show(true);
        self.agent.begin_stop();
        let deadline = Instant::now() + self.stop_timeout() / 2;
        while self.agent.is_connected() && self.agent.leads_what_others_could() {
            if Instant::now() >= deadline {
                tracing::warn!("not every partition has found another leader in time");
                break;
            }
            let wake_at = self.next_wake(deadline);
            if !self.step(wake_at).await {
                return;
            }
        }
        // The shards have to know who leads now, so that they send clients there.
        let deadline = deadline.min(Instant::now() + APPLY_TIMEOUT);
        self.publish();
        let last = self.snapshot.version;
        while self.applied_by_all() < last && Instant::now() < deadline {
            let wake_at = self.next_wake(deadline);
            if !self.step(wake_at).await {
                return;
            }
        }
        for commands in &self.link.commands {
            // One that has no room is stuck: its followers leave the ISR by their silence.
            let _ = commands.try_send(ShardCommand::Leave);
        }
    }

    /// Asks every shard to stop and waits for their last words, or for the time to run out.
    pub(super) async fn stop_shards(mut self) -> Stopped {
        self.show(true);
        let timeout = self.stop_timeout();
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
                // Logs that were made on the way are on no list: the next start opens them as new ones.
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
        let (agent, is_replaced) = (self.agent.clone(), self.is_replaced);
        let stopped = self.finish(&answers);
        // What is registered then is another process: nothing of it may be taken away.
        if !is_replaced && tokio::time::timeout(LEAVE_TIMEOUT, agent.leave()).await.is_err() {
            tracing::warn!("the coordination service does not answer; it forgets this node with its session");
        }
        stopped
    }

    /// Marks the data directories that all shards left clean.
    pub(super) fn finish(self, answers: &[Vec<DataDirIndex>]) -> Stopped {
        let is_complete = answers.len() == self.link.commands.len();
        let mut stopped = if is_complete { Stopped::Clean } else { Stopped::Unclean };
        for (entry, index) in self.local.data_dirs.iter().zip(0..) {
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
}
