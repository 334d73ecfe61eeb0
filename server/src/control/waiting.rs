//! Admin requests on the control thread: done at once, answered when the shards have caught up.
//!
//! Owns: what each request does to store, state and snapshot, and the list of answers that wait.
//! Invariant: an answer names what is stored. If its time runs out before every shard has applied the change, it
//! says so with a code that a client may retry on; the change stands.

use std::collections::BTreeMap;
use std::time::Duration;

use corelog_engine::{TopicId, TopicPartition};
use corelog_schemas::messages::{
    AlterTopicOptionsRequest, CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest,
    DescribeTopicsRequest, DescribeTopicsResponse, TopicRef, TopicResult, TopicResultsResponse,
};
use corelog_schemas::{ErrorCode, Failure};
use rustc_hash::FxHashMap;
use tokio::time::Instant;

use super::admin::{self, Rules};
use super::describe;
use super::messages::{AdminRequest, Answer};
use super::snapshot::SnapshotVersion;
use super::store::{Change, Coordination, StoredTopic};
use super::thread::Control;

/// Answers that may wait: more than any sane number of admin clients; beyond, they are told to come back.
const WAITING_MAX: usize = 4096;
/// A client that asks for more waits this long.
const TIMEOUT_MAX: Duration = Duration::from_secs(600);

/// An answer that is due when every shard has applied a snapshot.
pub struct Waiting {
    /// Which snapshot.
    pub(super) version: SnapshotVersion,
    /// When it is due in any case.
    pub(super) deadline: Instant,
    results: Vec<TopicResult>,
    answer: Answer<TopicResultsResponse>,
}

impl Control {
    /// Does what is asked.
    pub(super) fn on_admin(&mut self, request: AdminRequest) {
        match request {
            AdminRequest::CreateTopics(request, answer) => {
                let results = self.create_topics(&request);
                self.answer_later(results, request.validate_only, request.timeout_ms, answer);
            }
            AdminRequest::DeleteTopics(request, answer) => {
                let results = self.delete_topics(&request);
                self.answer_later(results, false, request.timeout_ms, answer);
            }
            AdminRequest::AlterTopicOptions(request, answer) => {
                let result = self.alter_options(&request);
                self.answer_later(vec![result], request.validate_only, request.timeout_ms, answer);
            }
            AdminRequest::CreatePartitions(request, answer) => {
                let result = self.create_partitions(&request);
                self.answer_later(vec![result], request.validate_only, request.timeout_ms, answer);
            }
            AdminRequest::ListTopics(request, answer) => {
                answer.send(describe::list_topics(&self.snapshot, &request));
            }
            AdminRequest::DescribeTopics(request, answer) => self.describe_topics(request, answer),
            AdminRequest::DescribeNode(answer) => {
                let observer = self.observer();
                tokio::spawn(async move {
                    let stats = observer.stats().await;
                    answer.send(describe::describe_node(&observer.view(), &stats));
                });
            }
        }
    }

    fn create_topics(&mut self, request: &CreateTopicsRequest) -> Vec<TopicResult> {
        let mut results = Vec::with_capacity(request.topics.len());
        let mut has_changed = false;
        for new in &request.topics {
            let mut random_id = || uuid::Uuid::new_v4().as_u128();
            let config = self.config.clone();
            let mut rules = Rules {
                limits: &config.limits,
                partitions_default: config.topic.partitions,
                random_id: &mut random_id,
            };
            let planned = admin::plan_topic(&self.state, new, &mut rules, Self::now());
            let stored = match planned {
                Ok(topic) if request.validate_only => Ok(topic),
                Ok(topic) => self.put(topic, true),
                Err(error) => Err(error.into()),
            };
            has_changed |= stored.is_ok() && !request.validate_only;
            let mut result = result_of(stored, &new.name);
            if request.validate_only {
                // The id was only tried out.
                result.topic_id = None;
            }
            results.push(result);
        }
        if has_changed {
            self.publish();
        }
        results
    }

    fn delete_topics(&mut self, request: &DeleteTopicsRequest) -> Vec<TopicResult> {
        let mut results = Vec::with_capacity(request.topics.len());
        let mut deleted = Vec::new();
        for wanted in &request.topics {
            let found = admin::find(&self.state, wanted).cloned().map_err(Failure::from);
            let stored = found.and_then(|topic| {
                let change = Change::DeleteTopic { id: topic.id, expected: topic.version };
                self.store.write(&[change])?;
                tracing::info!(topic = topic.name, id = %topic.id, "topic deleted");
                self.state.delete_topic(topic.id);
                deleted.push(topic.id);
                Ok(topic)
            });
            results.push(result_of(stored, name_of(wanted)));
        }
        if !deleted.is_empty() {
            self.publish();
            for id in deleted {
                self.remove_later(id);
            }
        }
        results
    }

    fn alter_options(&mut self, request: &AlterTopicOptionsRequest) -> TopicResult {
        let limits = &self.config.limits;
        let planned = admin::plan_options(&self.state, &request.topic, &request.options, limits);
        self.put_changed(planned.map_err(Failure::from), request.validate_only, &request.topic)
    }

    fn create_partitions(&mut self, request: &CreatePartitionsRequest) -> TopicResult {
        let mut random_id = || uuid::Uuid::new_v4().as_u128();
        let config = self.config.clone();
        let mut rules = Rules {
            limits: &config.limits,
            partitions_default: config.topic.partitions,
            random_id: &mut random_id,
        };
        let planned =
            admin::plan_partitions(&self.state, &request.topic, request.partitions_total, &mut rules);
        self.put_changed(planned.map_err(Failure::from), request.validate_only, &request.topic)
    }

    fn put_changed(
        &mut self,
        planned: Result<StoredTopic, Failure>,
        validate_only: bool,
        wanted: &TopicRef,
    ) -> TopicResult {
        let stored = match planned {
            Ok(topic) if !validate_only => {
                let stored = self.put(topic, false);
                if stored.is_ok() {
                    self.publish();
                }
                stored
            }
            other => other,
        };
        result_of(stored, name_of(wanted))
    }

    /// Stores a topic, then takes it into the state.
    fn put(&mut self, topic: StoredTopic, is_new: bool) -> Result<StoredTopic, Failure> {
        let expected = (!is_new).then_some(topic.version);
        let mut put = self.store.write(&[Change::PutTopic { topic, expected }])?;
        let topic = put.pop().expect("one topic put, one returned");
        let (name, partitions) = (topic.name.as_str(), topic.partitions.len());
        tracing::info!(topic = name, id = %topic.id, partitions, is_new, "topic stored");
        self.state.put_topic(topic.clone());
        Ok(topic)
    }

    fn describe_topics(&mut self, request: DescribeTopicsRequest, answer: Answer<DescribeTopicsResponse>) {
        let wanted = request.topics.iter().filter_map(|topic| self.state.find(topic));
        let set: FxHashMap<TopicId, BTreeMap<String, String>> =
            wanted.map(|topic| (topic.id, topic.options.clone())).collect();
        let failures: FxHashMap<TopicPartition, Failure> =
            self.failures.iter().map(|(of, (_, failure))| (*of, failure.clone())).collect();
        let (snapshot, observer) = (self.snapshot.clone(), self.observer());
        tokio::spawn(async move {
            let stats = observer.stats().await;
            answer.send(describe::describe_topics(&snapshot, &request, &set, &failures, &stats));
        });
    }

    /// Answers when every shard has applied the newest snapshot: at once if nothing has changed.
    fn answer_later(
        &mut self,
        results: Vec<TopicResult>,
        validate_only: bool,
        timeout_ms: u32,
        answer: Answer<TopicResultsResponse>,
    ) {
        let is_done = validate_only || results.iter().all(|result| result.failure.is_some());
        if is_done || timeout_ms == 0 {
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
        let (version, deadline) = (self.snapshot.version, Instant::now() + timeout);
        self.waiting.push(Waiting { version, deadline, results, answer });
        self.answer_waiting();
    }

    /// Sends every answer that is due.
    pub(super) fn answer_waiting(&mut self) {
        let (applied, now) = (self.applied_by_all(), Instant::now());
        for waiting in std::mem::take(&mut self.waiting) {
            if waiting.version <= applied {
                let results = waiting.results.into_iter().map(|result| self.with_failures(result)).collect();
                waiting.answer.send(TopicResultsResponse { results });
            } else if waiting.deadline <= now {
                let failure = Failure::new(
                    ErrorCode::RequestTimedOut,
                    "the change is stored, but not every shard has taken it up yet; describe the topic to see when",
                );
                waiting.answer.send(TopicResultsResponse { results: failed(waiting.results, &failure) });
            } else {
                self.waiting.push(waiting);
            }
        }
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

fn name_of(topic: &TopicRef) -> &str {
    match topic {
        TopicRef::Name(name) => name,
        TopicRef::Id(_) => "",
    }
}

fn result_of(stored: Result<StoredTopic, Failure>, name: &str) -> TopicResult {
    match stored {
        Ok(topic) => TopicResult {
            failure: None,
            partitions: u32::try_from(topic.partitions.len()).expect("partitions are counted in 32 bits"),
            topic_id: Some(topic.id.0),
            name: topic.name,
        },
        Err(failure) => {
            TopicResult { failure: Some(failure), name: name.to_owned(), topic_id: None, partitions: 0 }
        }
    }
}

/// Marks as failed what had not failed already.
fn failed(results: Vec<TopicResult>, failure: &Failure) -> Vec<TopicResult> {
    results
        .into_iter()
        .map(|result| TopicResult { failure: result.failure.or_else(|| Some(failure.clone())), ..result })
        .collect()
}
