//! Requests of clients on the control thread: decided on the newest picture, committed, answered when it shows.
//!
//! Owns: what each request becomes. Changes run as tasks of their own, because the store may take its time; what they come
//! to is put down as a note for the loop. At most [`CHANGES_MAX`] run at a time.
//! Crash story: a task ends with the process. What it had committed is stored, and the same request made again goes on
//! from there, or is told that it is done.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use corelog_engine::{TopicId, TopicPartition};
use corelog_replication::agent::{Agent, ChangeError};
use corelog_replication::cluster::ClusterState;
use corelog_replication::controller::admin as decide;
use corelog_replication::coordination::{Coordination, Op};
use corelog_schemas::messages::{
    AlterTopicOptionsRequest, CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest,
    DescribeTopicsRequest, DescribeTopicsResponse, NewTopic, TopicRef, TopicResult, TopicResultsResponse,
};
use corelog_schemas::{ErrorCode, Failure};
use rustc_hash::FxHashMap;

use super::admin::{self, Rules};
use super::agent_ends::ControlClock;
use super::describe;
use super::messages::{AdminRequest, Answer};
use super::options::TopicOptions;
use super::thread::{Control, Note};
use super::waiting::Until;
use super::wire::WireError;
use crate::config::Config;

/// Changes under way at a time: more than any sane number of admin clients; beyond, they are told to come back.
const CHANGES_MAX: usize = 256;

/// How long a change waits for this node's own registration, which the start brings about.
const REGISTRATION_TIMEOUT: Duration = Duration::from_secs(2);

/// A change of topics that has been made or refused.
pub(super) struct Made {
    results: Vec<TopicResult>,
    until: Until,
    timeout_ms: u32,
    answer: Answer<TopicResultsResponse>,
}

/// What a task needs to change things.
pub(super) struct Changer<C: Coordination> {
    pub(super) agent: Agent<C, ControlClock>,
    config: std::sync::Arc<Config>,
    defaults: TopicOptions,
    /// Counts the changes under way.
    permit: Rc<Cell<usize>>,
}

impl<C: Coordination> Drop for Changer<C> {
    fn drop(&mut self) {
        self.permit.set(self.permit.get() - 1);
    }
}

pub(super) fn random() -> u128 {
    uuid::Uuid::new_v4().as_u128()
}

impl<C: Coordination> Control<C> {
    /// Does what is asked.
    pub(super) fn on_admin(&mut self, request: AdminRequest) {
        // Whoever asks sees all that has been reported before.
        self.catch_up();
        match request {
            AdminRequest::CreateTopics(request, answer) => self.create_topics(request, answer),
            AdminRequest::DeleteTopics(request, answer) => self.delete_topics(request, answer),
            AdminRequest::AlterTopicOptions(request, answer) => self.alter_options(request, answer),
            AdminRequest::CreatePartitions(request, answer) => self.create_partitions(request, answer),
            AdminRequest::ListTopics(request, answer) => {
                answer.send(describe::list_topics(&self.snapshot, &request));
            }
            AdminRequest::DescribeTopics(request, answer) => self.describe_topics(request, answer),
            AdminRequest::DescribeCluster(request, answer) => self.describe_cluster(&request, answer),
            AdminRequest::ChangeCluster(change, answer) => self.change_cluster(change, answer),
            AdminRequest::ElectLeaders(request, answer) => self.elect_leaders(request, answer),
            AdminRequest::DescribeNode(answer) => {
                let observer = self.observer();
                tokio::spawn(async move {
                    let stats = observer.stats().await;
                    answer.send(describe::describe_node(&observer.view(), &stats));
                });
            }
        }
    }

    /// Room for one more change; `None` at the limit.
    pub(super) fn changer(&self) -> Option<Changer<C>> {
        let count = self.changes.get();
        if count >= CHANGES_MAX {
            return None;
        }
        self.changes.set(count + 1);
        Some(Changer {
            agent: self.agent.clone(),
            config: self.config.clone(),
            defaults: self.picture.defaults().clone(),
            permit: self.changes.clone(),
        })
    }

    fn create_topics(&mut self, request: CreateTopicsRequest, answer: Answer<TopicResultsResponse>) {
        let Some(changer) = self.changer() else {
            let names = request.topics.iter().map(|new| new.name.clone());
            return answer.send(overloaded(names.collect()));
        };
        let (notes, created) = (self.notes.clone(), Self::now());
        tokio::task::spawn_local(async move {
            let mut results = Vec::with_capacity(request.topics.len());
            for new in &request.topics {
                results.push(changer.create(new, created, request.validate_only).await);
            }
            let timeout_ms = if request.validate_only { 0 } else { request.timeout_ms };
            // A loop that has ended has told the client already.
            let _ = notes.send(Note::Made(Made { results, until: Until::Served, timeout_ms, answer }));
        });
    }

    fn delete_topics(&mut self, request: DeleteTopicsRequest, answer: Answer<TopicResultsResponse>) {
        let Some(changer) = self.changer() else {
            return answer.send(overloaded(request.topics.iter().map(name_of).collect()));
        };
        let notes = self.notes.clone();
        tokio::task::spawn_local(async move {
            let mut results = Vec::with_capacity(request.topics.len());
            for topic in &request.topics {
                results.push(changer.delete(topic).await);
            }
            let timeout_ms = request.timeout_ms;
            let _ = notes.send(Note::Made(Made { results, until: Until::Gone, timeout_ms, answer }));
        });
    }

    fn alter_options(&mut self, request: AlterTopicOptionsRequest, answer: Answer<TopicResultsResponse>) {
        let Some(changer) = self.changer() else {
            return answer.send(overloaded(vec![name_of(&request.topic)]));
        };
        let notes = self.notes.clone();
        tokio::task::spawn_local(async move {
            let results = vec![changer.alter(&request).await];
            let timeout_ms = if request.validate_only { 0 } else { request.timeout_ms };
            let _ = notes.send(Note::Made(Made { results, until: Until::Shown, timeout_ms, answer }));
        });
    }

    fn create_partitions(&mut self, request: CreatePartitionsRequest, answer: Answer<TopicResultsResponse>) {
        let Some(changer) = self.changer() else {
            return answer.send(overloaded(vec![name_of(&request.topic)]));
        };
        let notes = self.notes.clone();
        tokio::task::spawn_local(async move {
            let results = vec![changer.add_partitions(&request).await];
            let timeout_ms = if request.validate_only { 0 } else { request.timeout_ms };
            let _ = notes.send(Note::Made(Made { results, until: Until::Served, timeout_ms, answer }));
        });
    }

    pub(super) fn on_made(&mut self, made: Made) {
        let Made { results, until, timeout_ms, answer } = made;
        self.answer_later(results, until, timeout_ms, answer);
    }

    fn describe_topics(&mut self, request: DescribeTopicsRequest, answer: Answer<DescribeTopicsResponse>) {
        let failures: FxHashMap<TopicPartition, Failure> =
            self.failures.iter().map(|(of, (_, failure))| (*of, failure.clone())).collect();
        let (snapshot, observer) = (self.snapshot.clone(), self.observer());
        // A clone shares the records.
        let cluster = self.agent.cluster(ClusterState::clone);
        tokio::task::spawn_local(async move {
            let stats = observer.stats().await;
            answer.send(describe::describe_topics(&snapshot, &cluster, &request, &failures, &stats));
        });
    }
}

/// Why a decision was refused, or that it was only tried.
enum Refusal {
    Failure(Failure),
    OnlyTried,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl<C: Coordination> Changer<C> {
    fn rules(&self) -> Rules<'_> {
        Rules {
            limits: &self.config.limits,
            partitions_default: self.config.topic.partitions,
            replicas_default: self.config.topic.replicas,
            defaults: &self.defaults,
        }
    }

    /// Makes a change, or only finds out whether it could be made.
    pub(super) async fn change(
        &self,
        is_trial: bool,
        mut decide: impl FnMut(&ClusterState) -> Result<Vec<Vec<Op>>, Failure>,
    ) -> Result<(), Failure> {
        let decide = |cluster: &ClusterState| match decide(cluster) {
            Ok(_) if is_trial => Err(Refusal::OnlyTried),
            other => other.map_err(Refusal::from),
        };
        // Right after the start nobody is there to hold a replica.
        let registered = async {
            loop {
                let changed = self.agent.changed();
                if self.agent.is_registered() {
                    break;
                }
                changed.await;
            }
        };
        // Refused by the change itself if the coordination service does not answer.
        let _ = tokio::time::timeout(REGISTRATION_TIMEOUT, registered).await;
        match self.agent.change(decide).await {
            Ok(()) | Err(ChangeError::Refused(Refusal::OnlyTried)) => Ok(()),
            Err(ChangeError::Refused(Refusal::Failure(failure))) => Err(failure),
            Err(error @ (ChangeError::NoSession | ChangeError::Contended | ChangeError::Store(_))) => {
                let message = match error {
                    ChangeError::Store(reason) => format!("the coordination service refused: {reason}"),
                    ChangeError::Contended => {
                        "others changed the same things again and again; try again".to_owned()
                    }
                    _ => "the coordination service does not answer; try again when it does".to_owned(),
                };
                Err(Failure::new(ErrorCode::MetadataUnavailable, message))
            }
        }
    }

    async fn create(
        &self,
        new: &NewTopic,
        created: corelog_engine::TimestampMs,
        is_trial: bool,
    ) -> TopicResult {
        let id = self.agent.cluster(|cluster| {
            std::iter::repeat_with(|| TopicId(random()))
                .find(|id| !admin::is_id_taken(cluster, &new.name, *id))
                .expect("most ids are free")
        });
        let mut partitions = 0;
        let made = self.change(is_trial, |cluster| {
            if cluster.topics.contains_key(&id) {
                return Ok(Vec::new());
            }
            let is_begun = cluster.names.get(&new.name).is_some_and(|name| name.0 == id);
            let plan = admin::check_new(cluster, new, is_begun, &self.rules())?;
            partitions = plan.partitions;
            let topic = decide::NewTopic {
                id,
                name: new.name.clone(),
                partitions,
                replicas: plan.replicas,
                is_internal: false,
                options: plan.options,
                created,
            };
            decide::create_topic(cluster, &topic, &mut random).map_err(|error| error.failure())
        });
        match made.await {
            Ok(()) => {
                if !is_trial {
                    tracing::info!(topic = new.name, %id, partitions, "topic created");
                }
                let topic_id = (!is_trial).then_some(id.0);
                TopicResult { failure: None, name: new.name.clone(), topic_id, partitions }
            }
            Err(failure) => refused(new.name.clone(), failure),
        }
    }

    async fn delete(&self, wanted: &TopicRef) -> TopicResult {
        let mut found = None;
        let deleted = self.change(false, |cluster| match &found {
            None => {
                let topic = admin::find(cluster, wanted)?;
                found = Some(done(topic));
                decide::delete_topic(cluster, topic.id).map_err(|error| error.failure())
            }
            // Once more after a lost race or answer: gone is done.
            Some(result) => {
                let id = result.topic_id.map(TopicId).filter(|id| cluster.topics.contains_key(id));
                let delete = |id| decide::delete_topic(cluster, id).map_err(|error| error.failure());
                id.map_or(Ok(Vec::new()), delete)
            }
        });
        match (deleted.await, found) {
            (Ok(()), Some(result)) => {
                tracing::info!(topic = result.name, "topic deleted");
                result
            }
            (Err(failure), _) => refused(name_of(wanted), failure),
            (Ok(()), None) => unreachable!("a decision was made"),
        }
    }

    async fn alter(&self, request: &AlterTopicOptionsRequest) -> TopicResult {
        let mut found = None;
        let altered = self.change(request.validate_only, |cluster| {
            let topic = admin::find(cluster, &request.topic)?;
            found = Some(done(topic));
            let options = admin::changed_options(topic, &request.options, &self.rules())?;
            decide::alter_options(cluster, topic.id, &options).map_err(|error| error.failure())
        });
        of(altered.await, found, &request.topic)
    }

    async fn add_partitions(&self, request: &CreatePartitionsRequest) -> TopicResult {
        let mut found: Option<TopicResult> = None;
        let added = self.change(request.validate_only, |cluster| {
            let topic = admin::find(cluster, &request.topic)?;
            let is_again = found.is_some();
            found = Some(TopicResult { partitions: request.partitions_total, ..done(topic) });
            if !(is_again && topic.partitions == request.partitions_total) {
                admin::check_more_partitions(cluster, topic, request.partitions_total, &self.rules())?;
            }
            decide::create_partitions(cluster, topic.id, request.partitions_total, &mut random)
                .map_err(|error| error.failure())
        });
        of(added.await, found, &request.topic)
    }
}

fn done(topic: &corelog_replication::cluster::TopicRecord) -> TopicResult {
    TopicResult {
        failure: None,
        name: topic.name.clone(),
        topic_id: Some(topic.id.0),
        partitions: topic.partitions,
    }
}

fn of(made: Result<(), Failure>, found: Option<TopicResult>, wanted: &TopicRef) -> TopicResult {
    match (made, found) {
        (Ok(()), Some(result)) => result,
        (Err(failure), _) => refused(name_of(wanted), failure),
        (Ok(()), None) => unreachable!("a decision was made"),
    }
}

fn refused(name: String, failure: Failure) -> TopicResult {
    TopicResult { failure: Some(failure), name, topic_id: None, partitions: 0 }
}

fn name_of(topic: &TopicRef) -> String {
    match topic {
        TopicRef::Name(name) => name.to_string(),
        TopicRef::Id(_) => String::new(),
    }
}

fn overloaded(names: Vec<String>) -> TopicResultsResponse {
    let failure = Failure::new(ErrorCode::Overloaded, "too many changes are under way; try again soon");
    let results = names.into_iter().map(|name| refused(name, failure.clone()));
    TopicResultsResponse { results: results.collect() }
}
