//! Admin client: topics, partitions, offsets, nodes.
//!
//! Owns: nothing but its share of the client's metadata connections. Every method is one request, except those
//! that must reach the leader of each partition (`list_offsets`, `delete_records`).
//! Results of a request about several topics come one for each, in the order given: one may fail alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use corelog_engine::{Offset, TopicId};
use corelog_schemas::messages::{
    AddReplicaRequest, AlterTopicOptionsRequest, ClusterChangeResponse, CreatePartitionsRequest,
    CreateTopicsRequest, DeleteTopicsRequest, DescribeClusterRequest, DescribeClusterResponse,
    DescribeNodeRequest, DescribeNodeResponse, DescribeTopicsRequest, DrainNodeRequest, ElectLeader,
    ElectLeadersRequest, ElectionKind, ElectionResult, ForgetNodeRequest, FoundOffset, ListTopicsRequest,
    MetadataResponse, NewTopic, OffsetSpec, RemoveReplicaRequest, SetReplicasRequest, TopicDescription,
    TopicListing, TopicOption, TopicRef, TopicResult, TopicResultsResponse,
};
use corelog_schemas::{ErrorCode, Failure, Request};
use futures_util::future::join_all;

use crate::cluster::{Cluster, join};
use crate::error::RequestError;
use crate::offsets;

/// How long the server may take until a topic can be used (or is gone) everywhere.
const CHANGE_TIMEOUT_MS: u32 = 20_000;
/// How long one node may take to describe what it leads.
const DESCRIBE_TIMEOUT_MS: u64 = 2_000;
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

/// What a change of the cluster came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterChange {
    /// It was so already.
    pub is_unchanged: bool,
    /// Where a replica was placed.
    pub node: Option<u32>,
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

    /// All about topics: options, and for each partition its leader, replicas, offsets and size. What only leaders know is
    /// missing where they do not answer.
    pub async fn describe_topics(
        &self,
        names: &[&str],
    ) -> Result<Vec<Result<TopicDescription, Failure>>, RequestError> {
        let topics: Vec<TopicRef> = names.iter().map(|name| TopicRef::from(*name)).collect();
        let mut response = self.cluster.ask(&DescribeTopicsRequest { topics }).await?;
        self.ask_leaders(&mut response.topics).await?;
        let each = response.topics.into_iter().map(|topic| match &topic.failure {
            Some(failure) => Err(failure.clone()),
            None => Ok(topic),
        });
        Ok(each.collect())
    }

    /// The nodes, and what is not well; of the partitions that are not, at most `partitions_max`.
    pub async fn describe_cluster(
        &self,
        partitions_max: u32,
    ) -> Result<DescribeClusterResponse, RequestError> {
        self.cluster.ask(&DescribeClusterRequest { partitions_max }).await
    }

    /// Takes leadership off a node, or lets it lead again; the work goes on after the answer.
    pub async fn drain_node(&self, node: u32, is_drained: bool) -> Result<ClusterChange, RequestError> {
        self.change(DrainNodeRequest { node, is_drained }).await
    }

    /// Forgets a node that does not come back and has no replicas.
    pub async fn forget_node(&self, node: u32) -> Result<ClusterChange, RequestError> {
        self.change(ForgetNodeRequest { node }).await
    }

    /// Gives a partition another replica, on `node` or where there are fewest; it is filled after the answer.
    pub async fn add_replica(
        &self,
        topic: &str,
        partition: u32,
        node: Option<u32>,
    ) -> Result<ClusterChange, RequestError> {
        self.change(AddReplicaRequest { topic: TopicRef::from(topic), partition, node }).await
    }

    /// Takes the replica that a node has of a partition away.
    pub async fn remove_replica(
        &self,
        topic: &str,
        partition: u32,
        node: u32,
    ) -> Result<ClusterChange, RequestError> {
        self.change(RemoveReplicaRequest { topic: TopicRef::from(topic), partition, node }).await
    }

    /// Changes the number of replicas of all partitions of a topic.
    pub async fn set_replicas(&self, topic: &str, replicas: u16) -> Result<ClusterChange, RequestError> {
        self.change(SetReplicasRequest { topic: TopicRef::from(topic), replicas }).await
    }

    /// Lets the preferred leaders lead (of all partitions if none is named), or one that lacks records.
    pub async fn elect_leaders(
        &self,
        kind: ElectionKind,
        partitions: Vec<ElectLeader>,
    ) -> Result<Vec<ElectionResult>, RequestError> {
        Ok(self.cluster.ask_for(&ElectLeadersRequest { kind, partitions }).await?.results)
    }

    async fn change<R>(&self, request: R) -> Result<ClusterChange, RequestError>
    where
        R: Request<Response = ClusterChangeResponse>,
    {
        let response = self.cluster.ask_for(&request).await?;
        match response.failure {
            Some(failure) => Err(failure.into()),
            None => Ok(ClusterChange { is_unchanged: response.is_unchanged, node: response.node }),
        }
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

impl Admin {
    /// Offsets, sizes and lags are known where a partition is led: asks those nodes, and takes over what they say.
    async fn ask_leaders(&self, topics: &mut [TopicDescription]) -> Result<(), RequestError> {
        let shards = self.cluster.shards().await?.shards;
        let is_alone = shards.iter().all(|shard| shard.node == shards[0].node);
        if is_alone {
            return Ok(());
        }
        let mut by_leader: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (index, topic) in topics.iter().enumerate() {
            for partition in &topic.partitions {
                let wanted = by_leader.entry(partition.leader_node).or_default();
                if wanted.last() != Some(&index) {
                    wanted.push(index);
                }
            }
        }
        let known = &*topics;
        let asked = by_leader.into_iter().filter_map(|(node, wanted)| {
            let shard = shards.iter().find(|shard| shard.node == node)?;
            let address = join(&shard.host, shard.port);
            let ids = wanted.iter().filter_map(|&index| known[index].topic_id.map(TopicRef::Id)).collect();
            let request = DescribeTopicsRequest { topics: ids };
            Some(async move {
                let answer = self.cluster.ask_at_within(&address, &request, DESCRIBE_TIMEOUT_MS).await;
                (node, answer)
            })
        });
        for (node, answer) in join_all(asked).await {
            // Who does not answer leaves a gap that can be seen.
            for told in answer.into_iter().flat_map(|answer| answer.topics) {
                if let Some(topic) = topics.iter_mut().find(|topic| topic.topic_id == told.topic_id) {
                    take_over(topic, told, node);
                }
            }
        }
        Ok(())
    }
}

/// Puts what `node` says of the partitions that it leads in place of what somebody else said.
fn take_over(topic: &mut TopicDescription, told: TopicDescription, node: u32) {
    for found in told.partitions {
        let known = topic.partitions.iter_mut().find(|known| known.partition == found.partition);
        if let Some(known) = known
            && found.leader_node == node
            && found.leader_epoch >= known.leader_epoch
        {
            *known = found;
        }
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
