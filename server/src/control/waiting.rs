//! Answers that are due when what was asked for can be seen: stored, shown to the shards, and taken up by them.
//!
//! Owns: the list of answers that wait, and when each is due.
//! Invariant: an answer names what is stored. If its time runs out before every shard has taken the change up, it says so
//! with a code that a client may retry on; the change stands.

use std::time::Duration;

use corelog_engine::{TopicId, TopicPartition};
use corelog_replication::coordination::Coordination;
use corelog_schemas::messages::{TopicResult, TopicResultsResponse};
use corelog_schemas::{ErrorCode, Failure};
use tokio::time::Instant;

use super::messages::Answer;
use super::snapshot::{DataDirState, LocalReplica, SnapshotVersion, TopicMetadata};
use super::thread::Control;

/// Answers that may wait: more than any sane number of admin clients; beyond, they are told to come back.
const WAITING_MAX: usize = 4096;
/// A client that asks for more waits this long.
const TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// When an answer is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Each partition of the topics has a leader, and what is of them here can be used.
    Served,
    /// The topics are gone, here from the disks as well.
    Gone,
    /// The shards have seen it.
    Shown,
}

/// An answer that waits.
pub(super) struct Waiting {
    until: Until,
    /// The first snapshot that shows what was asked for; due when every shard has applied it.
    shown: Option<SnapshotVersion>,
    /// When it is due in any case.
    pub(super) deadline: Instant,
    results: Vec<TopicResult>,
    answer: Answer<TopicResultsResponse>,
}

impl<C: Coordination> Control<C> {
    /// Answers when it is time: at once if nothing has changed or nobody wants to wait. Call it when the change is in the
    /// agent's picture.
    pub(super) fn answer_later(
        &mut self,
        results: Vec<TopicResult>,
        until: Until,
        timeout_ms: u32,
        answer: Answer<TopicResultsResponse>,
    ) {
        if results.iter().all(|result| result.failure.is_some()) {
            answer.send(TopicResultsResponse { results });
            return;
        }
        // The change is to be in the snapshot that the answer is measured by, and in whatever is asked next.
        self.publish();
        if timeout_ms == 0 {
            answer.send(TopicResultsResponse { results });
            return;
        }
        if self.waiting.len() >= WAITING_MAX {
            let failure = Failure::new(
                ErrorCode::Overloaded,
                "done, but too many requests wait for the shards already; describe the topic to see when it is served",
            );
            answer.send(TopicResultsResponse { results: failed(results, &failure) });
            return;
        }
        let timeout = Duration::from_millis(timeout_ms.into()).min(TIMEOUT_MAX);
        let deadline = Instant::now() + timeout;
        self.waiting.push(Waiting { until, shown: None, deadline, results, answer });
        self.answer_waiting();
    }

    /// Sends every answer that is due.
    pub(super) fn answer_waiting(&mut self) {
        let (applied, now) = (self.applied_by_all(), Instant::now());
        for mut waiting in std::mem::take(&mut self.waiting) {
            if waiting.shown.is_none() && self.shows(&waiting) {
                waiting.shown = Some(self.snapshot.version);
            }
            if waiting.shown.is_some_and(|shown| shown <= applied) {
                let results = waiting.results.into_iter().map(|result| self.with_failures(result)).collect();
                waiting.answer.send(TopicResultsResponse { results });
            } else if waiting.deadline <= now {
                let failure = Failure::new(
                    ErrorCode::RequestTimedOut,
                    "the change is stored, but not everybody has taken it up yet; describe the topic to see when",
                );
                waiting.answer.send(TopicResultsResponse { results: failed(waiting.results, &failure) });
            } else {
                self.waiting.push(waiting);
            }
        }
    }

    /// Whether the newest snapshot shows all that an answer waits for.
    fn shows(&self, waiting: &Waiting) -> bool {
        let wanted = waiting.results.iter().filter(|result| result.failure.is_none());
        let mut wanted = wanted.filter_map(|result| result.topic_id).map(TopicId);
        match waiting.until {
            Until::Shown => true,
            Until::Served => wanted.all(|id| {
                // Deleted meanwhile: there is nothing to wait for.
                self.snapshot.topic_by_id(id).is_none_or(|topic| self.is_served(topic))
            }),
            Until::Gone => wanted.all(|id| self.snapshot.topic_by_id(id).is_none() && !self.is_on_disk(id)),
        }
    }

    /// Whether a deleted topic has logs on disks of this node that can be removed.
    fn is_on_disk(&self, id: TopicId) -> bool {
        self.agent.cluster(|cluster| {
            let is_online =
                |dir| self.local.data_dirs.iter().any(|entry| entry.id == Some(dir) && entry.is_online());
            let is_ordered = cluster
                .removals_of(self.local.node)
                .any(|(of, removal)| of.topic == id && removal.logs.iter().any(|log| is_online(log.dir)));
            is_ordered
                || cluster
                    .partitions_of(id)
                    .any(|(_, partition)| partition.on_node(self.local.node).is_some())
        })
    }

    fn is_served(&self, topic: &TopicMetadata) -> bool {
        let is_usable = |of: TopicPartition, local: &LocalReplica| {
            let dir = &self.snapshot.data_dir(local.data_dir).state;
            !local.is_new || self.failures.contains_key(&of) || matches!(dir, DataDirState::Offline { .. })
        };
        topic.partitions.iter().all(|partition| {
            let of = TopicPartition { topic: topic.id, partition: partition.id };
            let has_failed = self.failures.contains_key(&of);
            let here = partition.local.as_ref().is_none_or(|local| is_usable(of, local));
            here && (partition.leader.is_some() || has_failed)
        })
    }

    /// Tells all who wait that the node is stopping.
    pub(super) fn refuse_waiting(&mut self) {
        let failure = Failure::new(
            ErrorCode::ShuttingDown,
            "the change is stored; the node is stopping and takes it up at its next start",
        );
        for waiting in std::mem::take(&mut self.waiting) {
            waiting.answer.send(TopicResultsResponse { results: failed(waiting.results, &failure) });
        }
    }

    /// A topic whose shards could not make or open every partition was not a success.
    fn with_failures(&self, result: TopicResult) -> TopicResult {
        let Some(id) = result.topic_id.filter(|_| result.failure.is_none()) else { return result };
        let mut of_topic: Vec<_> = self.failures.iter().filter(|(of, _)| of.topic == TopicId(id)).collect();
        of_topic.sort_by_key(|(of, _)| **of);
        let Some((of, (_, failure))) = of_topic.first() else { return result };
        let message = format!(
            "the change is stored, but {} of the topic's partitions cannot be served; partition {}: {}",
            of_topic.len(),
            of.partition,
            failure.message
        );
        TopicResult { failure: Some(Failure::new(failure.code, message)), ..result }
    }
}

/// Marks as failed what had not failed already.
fn failed(results: Vec<TopicResult>, failure: &Failure) -> Vec<TopicResult> {
    results
        .into_iter()
        .map(|result| TopicResult { failure: result.failure.or_else(|| Some(failure.clone())), ..result })
        .collect()
}
