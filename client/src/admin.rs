//! Admin client: topics, partitions, offsets, nodes.
//!
//! Owns: nothing but its share of the client's metadata connections. Every method is one request, except those
//! that must reach the leader of each partition (`list_offsets`, `delete_records`).
//! Results of a request about several topics come one for each, in the order given: one may fail alone.

use std::sync::Arc;

use corelog_engine::{Offset, TopicId};
use corelog_schemas::messages::{
    AlterTopicOptionsRequest, CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest,
    DescribeNodeRequest, DescribeNodeResponse, DescribeTopicsRequest, FoundOffset, ListTopicsRequest,
    MetadataResponse, NewTopic, OffsetSpec, TopicDescription, TopicListing, TopicOption, TopicRef,
    TopicResult, TopicResultsResponse,
};
use corelog_schemas::{ErrorCode, Failure};

use crate::cluster::Cluster;
use crate::error::RequestError;
use crate::offsets;

/// How long the server may take until a topic can be used (or is gone) everywhere.
const CHANGE_TIMEOUT_MS: u32 = 20_000;
/// How long we look for the leaders of partitions: above a failover, below a person's patience.
const LEADER_TIMEOUT_MS: u64 = 5_000;

/// A topic after a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedTopic {
    /// Its name.
    pub name: String,
    /// Its identity, if the server tells.
    pub id: Option<TopicId>,
    /// How many partitions it has now.
    pub partitions: u32,
}

/// Admin operations; see [`crate::Client::admin`].
#[derive(Clone)]
pub struct Admin {
    pub(crate) cluster: Arc<Cluster>,
}

impl Admin {
    /// Creates topics; returns once each can be used.
    pub async fn create_topics(
        &self,
        topics: Vec<NewTopic>,
        validate_only: bool,
    ) -> Result<Vec<Result<ChangedTopic, Failure>>, RequestError> {
        let request = CreateTopicsRequest { topics, validate_only, timeout_ms: CHANGE_TIMEOUT_MS };
        Ok(changed(self.cluster.ask_for(&request).await?))
    }

    /// Deletes topics with all their records.
    pub async fn delete_topics(
        &self,
        names: &[&str],
    ) -> Result<Vec<Result<ChangedTopic, Failure>>, RequestError> {
        let topics = names.iter().map(|name| TopicRef::from(*name)).collect();
        let request = DeleteTopicsRequest { topics, timeout_ms: CHANGE_TIMEOUT_MS };
        Ok(changed(self.cluster.ask_for(&request).await?))
    }

    /// Changes options of a topic; a value of `None` goes back to the default.
    pub async fn alter_topic(
        &self,
        name: &str,
        options: Vec<TopicOption>,
        validate_only: bool,
    ) -> Result<ChangedTopic, RequestError> {
        let request = AlterTopicOptionsRequest {
            topic: TopicRef::from(name),
            options,
            validate_only,
            timeout_ms: CHANGE_TIMEOUT_MS,
        };
        only(changed(self.cluster.ask_for(&request).await?))
    }

    /// Adds partitions, up to `partitions_total`. Keys then go to other partitions than before.
    pub async fn create_partitions(
        &self,
        name: &str,
        partitions_total: u32,
        validate_only: bool,
    ) -> Result<ChangedTopic, RequestError> {
        let request = CreatePartitionsRequest {
            topic: TopicRef::from(name),
            partitions_total,
            validate_only,
            timeout_ms: CHANGE_TIMEOUT_MS,
        };
        let changed = only(changed(self.cluster.ask_for(&request).await?))?;
        if let Some(known) = self.cluster.cached(name) {
            // Producers of this client see the new partitions at once.
            self.cluster.topic_newer_than(name, known.generation).await?;
        }
        Ok(changed)
    }

    /// All topics whose names begin with `prefix`, sorted by name.
    pub async fn list_topics(&self, prefix: &str) -> Result<Vec<TopicListing>, RequestError> {
        let request = ListTopicsRequest { name_prefix: prefix.to_owned() };
        Ok(self.cluster.ask(&request).await?.topics)
    }

    /// All about topics: options, and for each partition its leader, offsets and size.
    pub async fn describe_topics(
        &self,
        names: &[&str],
    ) -> Result<Vec<Result<TopicDescription, Failure>>, RequestError> {
        let topics = names.iter().map(|name| TopicRef::from(*name)).collect();
        let response = self.cluster.ask(&DescribeTopicsRequest { topics }).await?;
        let each = response.topics.into_iter().map(|topic| match &topic.failure {
            Some(failure) => Err(failure.clone()),
            None => Ok(topic),
        });
        Ok(each.collect())
    }

    /// Looks up one offset per partition, at its leader.
    pub async fn list_offsets(
        &self,
        topic: &str,
        wanted: &[(u32, OffsetSpec)],
    ) -> Vec<Result<FoundOffset, RequestError>> {
        let topic: Arc<str> = topic.into();
        let wanted: Vec<_> =
            wanted.iter().map(|&(partition, spec)| ((Arc::clone(&topic), partition), spec)).collect();
        offsets::list_offsets(&self.cluster, &wanted, LEADER_TIMEOUT_MS).await
    }

    /// Deletes the records before an offset (`None`: all that can be read now); yields each new log start offset.
    pub async fn delete_records(
        &self,
        topic: &str,
        wanted: &[(u32, Option<Offset>)],
    ) -> Vec<Result<Offset, RequestError>> {
        let topic: Arc<str> = topic.into();
        let wanted: Vec<_> =
            wanted.iter().map(|&(partition, before)| ((Arc::clone(&topic), partition), before)).collect();
        offsets::delete_records(&self.cluster, &wanted, LEADER_TIMEOUT_MS).await
    }

    /// How many partitions a topic has now.
    pub async fn partition_count(&self, topic: &str) -> Result<u32, RequestError> {
        let known = self.cluster.cached(topic).map_or(0, |topic| topic.generation);
        Ok(self.cluster.topic_newer_than(topic, known).await?.partition_count())
    }

    /// The shards, load and disks of the node that answers: the first of the client's servers that is there.
    pub async fn describe_node(&self) -> Result<DescribeNodeResponse, RequestError> {
        self.cluster.ask_given(&DescribeNodeRequest {}).await
    }

    /// All shards and all topics with their leaders.
    pub async fn metadata(&self) -> Result<MetadataResponse, RequestError> {
        self.cluster.all().await
    }
}

fn changed(response: TopicResultsResponse) -> Vec<Result<ChangedTopic, Failure>> {
    let each = response.results.into_iter().map(|result: TopicResult| match result.failure {
        Some(failure) => Err(failure),
        None => Ok(ChangedTopic {
            name: result.name,
            id: result.topic_id.map(TopicId),
            partitions: result.partitions,
        }),
    });
    each.collect()
}

fn only(mut results: Vec<Result<ChangedTopic, Failure>>) -> Result<ChangedTopic, RequestError> {
    match results.pop() {
        Some(result) => result.map_err(RequestError::Refused),
        None => Err(Failure::new(ErrorCode::Unknown, "the server's answer holds no result").into()),
    }
}
