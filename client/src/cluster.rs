//! Where things are: shards, topics, and which shard leads each partition.
//!
//! Owns: the cached metadata, and the connections to look it up. A refresh happens when a topic is asked for the
//! first time, and whenever somebody shows that what he knew no longer holds (`newer_than`).
//! Invariant: what is known of a partition never goes back to an older leader epoch of the same topic: any node may
//! answer, and some are behind.
//! Invariant: however many callers find the same entry old, one request refreshes it for all.
//! Not here: connections that carry records; each producer and consumer has its own (`pool`), because answers
//! come in order and a long poll would hold up a produce behind it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use corelog_engine::TopicId;
use corelog_schemas::messages::{MetadataRequest, MetadataResponse, MetadataTopics, TopicMetadata, TopicRef};
use corelog_schemas::{ErrorCode, Failure, Request};

use crate::connection::{Answer, ConnectOptions};
use crate::error::RequestError;
use crate::pool::ConnectionPool;
use crate::servers::{Servers, first_answer};

/// A partition by the name of its topic.
pub(crate) type PartitionKey = (Arc<str>, u32);

/// A topic as the cluster knows it.
#[derive(Clone, Debug)]
pub struct Topic {
    /// Its identity: a topic that is deleted and created again is another one.
    pub id: TopicId,
    /// Its name.
    pub name: Arc<str>,
    /// Its partitions, in order of their numbers.
    pub partitions: Vec<Partition>,
    /// Grows with each look-up; shown to `topic_newer_than` to ask for a fresh one.
    pub(crate) generation: u64,
}

/// Who leads a partition.
#[derive(Clone, Debug)]
pub struct Partition {
    /// Node and shard of the leader, for people.
    pub leader: (u32, u16),
    /// Epoch of the leader.
    pub leader_epoch: u32,
    /// Where the leader listens; `None` if nobody leads now.
    pub address: Option<Arc<str>>,
    /// Why nobody leads it now, in the server's code.
    pub error: Option<ErrorCode>,
}

impl Topic {
    /// How many partitions it has.
    pub fn partition_count(&self) -> u32 {
        u32::try_from(self.partitions.len()).expect("partitions are counted in 32 bits")
    }

    /// Where the leader of a partition listens.
    pub(crate) fn leader(&self, partition: u32) -> Option<&Arc<str>> {
        self.partitions.get(partition as usize)?.address.as_ref()
    }

    /// Why nobody leads a partition: what the server says of it, such as a data directory that is offline.
    pub(crate) fn no_leader(&self, partition: u32) -> ErrorCode {
        let said = self.partitions.get(partition as usize).and_then(|partition| partition.error);
        said.unwrap_or(ErrorCode::NotLeader)
    }
}

#[derive(Default)]
struct Cache {
    topics: HashMap<Arc<str>, Arc<Topic>>,
    /// Every shard that was ever named: where to ask when the first addresses are gone.
    addresses: Vec<Arc<str>>,
    cluster_id: String,
    generation: u64,
}

/// The cluster as one client sees it.
pub(crate) struct Cluster {
    bootstrap: Vec<Arc<str>>,
    pool: ConnectionPool,
    servers: Servers,
    cache: Mutex<Cache>,
    refreshing: tokio::sync::Mutex<()>,
}

impl Cluster {
    pub(crate) fn new(bootstrap: Vec<Arc<str>>, options: ConnectOptions) -> Self {
        Self {
            bootstrap,
            pool: ConnectionPool::new(options),
            servers: Servers::default(),
            cache: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
        }
    }

    /// A pool for records, with the same options as the one for metadata.
    pub(crate) fn new_pool(&self) -> ConnectionPool {
        ConnectionPool::new(self.pool.options().clone())
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The topic as last seen, without asking anybody.
    pub(crate) fn cached(&self, name: &str) -> Option<Arc<Topic>> {
        self.cache().topics.get(name).cloned()
    }

    /// The topic, looked up if it is not known.
    pub(crate) async fn topic(&self, name: &str) -> Result<Arc<Topic>, RequestError> {
        match self.cached(name) {
            Some(topic) => Ok(topic),
            None => self.topic_newer_than(name, 0).await,
        }
    }

    /// The topic as looked up after `generation`: what the caller knew has proved old.
    pub(crate) async fn topic_newer_than(
        &self,
        name: &str,
        generation: u64,
    ) -> Result<Arc<Topic>, RequestError> {
        let newer = || self.cached(name).filter(|topic| topic.generation > generation);
        if let Some(topic) = newer() {
            return Ok(topic);
        }
        let _one_at_a_time = self.refreshing.lock().await;
        if let Some(topic) = newer() {
            return Ok(topic);
        }
        let topics = MetadataTopics::These(vec![TopicRef::from(name)]);
        let response = self.ask(&MetadataRequest { topics }).await?;
        let found = response.topics.iter().find(|topic| topic.name == name);
        let failure = found.and_then(|topic| topic.failure.clone());
        self.remember(&response);
        match (failure, newer()) {
            (Some(failure), _) => {
                self.cache().topics.remove(name);
                Err(RequestError::Refused(failure))
            }
            (None, Some(topic)) => Ok(topic),
            (None, None) => Err(RequestError::Refused(Failure::new(
                ErrorCode::UnknownTopicOrPartition,
                format!("the server does not list topic {name:?}"),
            ))),
        }
    }

    /// Looks up the shards, and proves that the cluster can be reached.
    pub(crate) async fn shards(&self) -> Result<MetadataResponse, RequestError> {
        let response = self.ask(&MetadataRequest { topics: MetadataTopics::These(Vec::new()) }).await?;
        self.remember(&response);
        Ok(response)
    }

    /// Looks up all topics.
    pub(crate) async fn all(&self) -> Result<MetadataResponse, RequestError> {
        let response = self.ask(&MetadataRequest { topics: MetadataTopics::All }).await?;
        self.remember(&response);
        Ok(response)
    }

    /// Asks any server something that changes nothing: one after the other, without waiting for a silent one. Who has
    /// failed lately comes last, and each question begins with another one, because one that is cut off from the
    /// others keeps saying what it knew.
    pub(crate) async fn ask<R: Request>(&self, request: &R) -> Result<R::Response, RequestError> {
        Ok(self.ask_around(request).await?.1)
    }

    /// Asks one server for a change: the first that proves to be alive, so that it is asked once.
    pub(crate) async fn ask_for<R: Request>(&self, request: &R) -> Result<R::Response, RequestError> {
        let alive = MetadataRequest { topics: MetadataTopics::These(Vec::new()) };
        let (address, response) = self.ask_around(&alive).await?;
        self.remember(&response);
        self.ask_at(&address, request).await
    }

    /// Asks the servers that were given first, in their order, and says what the first reachable one says.
    pub(crate) async fn ask_given<R: Request>(&self, request: &R) -> Result<R::Response, RequestError> {
        let mut last = None;
        for address in &self.bootstrap {
            match self.ask_at(address, request).await {
                Err(error @ (RequestError::Connect(_) | RequestError::Disconnected { .. })) => {
                    last.get_or_insert(error);
                }
                outcome => return outcome,
            }
        }
        Err(last.expect("a client has at least one address"))
    }

    async fn ask_around<R: Request>(&self, request: &R) -> Result<(Arc<str>, R::Response), RequestError> {
        let known = self.cache().addresses.clone();
        let candidates = self.servers.order(&self.bootstrap, &known);
        let ask = |address: Arc<str>| async move {
            let outcome = self.ask_at(&address, request).await;
            (address, outcome)
        };
        first_answer(&self.servers, candidates, ask).await
    }

    /// Asks the server at `address`, and gives up on it after `timeout_ms`; its connection is then made anew.
    pub(crate) async fn ask_at_within<R: Request>(
        &self,
        address: &Arc<str>,
        request: &R,
        timeout_ms: u64,
    ) -> Result<R::Response, RequestError> {
        let limit = std::time::Duration::from_millis(timeout_ms);
        match tokio::time::timeout(limit, self.ask_at(address, request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(RequestError::TimedOut { address: Arc::clone(address), timeout_ms }),
        }
    }

    /// Asks one server. A connection that had been idle and turns out broken is made anew once.
    pub(crate) async fn ask_at<R: Request>(
        &self,
        address: &Arc<str>,
        request: &R,
    ) -> Result<R::Response, RequestError> {
        let (connection, was_idle) = self.pool.get(address).await?;
        let outcome = match connection.call(request, Vec::new()).await {
            Err(RequestError::Disconnected { .. }) if was_idle => {
                let (fresh, _) = self.pool.get(address).await?;
                fresh.call(request, Vec::new()).await
            }
            outcome => outcome,
        };
        outcome.map(|Answer { message, .. }| message)
    }

    fn remember(&self, response: &MetadataResponse) {
        let mut cache = self.cache();
        if cache.cluster_id != response.cluster_id {
            cache.cluster_id.clone_from(&response.cluster_id);
            cache.topics.clear();
        }
        cache.generation += 1;
        let generation = cache.generation;
        let shards: HashMap<(u32, u16), Arc<str>> = response
            .shards
            .iter()
            .map(|shard| ((shard.node, shard.shard), join(&shard.host, shard.port)))
            .collect();
        for topic in &response.topics {
            if let Some(mut topic) = read_topic(topic, &shards, generation) {
                if let Some(known) = cache.topics.get(&topic.name) {
                    keep_newer(&mut topic, known);
                }
                cache.topics.insert(Arc::clone(&topic.name), Arc::new(topic));
            }
        }
        let mut addresses: Vec<Arc<str>> =
            shards.into_values().filter(|address| !self.bootstrap.contains(address)).collect();
        addresses.sort();
        cache.addresses = addresses;
    }
}

/// `host:port`, with brackets around an IPv6 address.
pub(crate) fn join(host: &str, port: u16) -> Arc<str> {
    if host.contains(':') { format!("[{host}]:{port}").into() } else { format!("{host}:{port}").into() }
}

fn read_topic(
    topic: &TopicMetadata,
    shards: &HashMap<(u32, u16), Arc<str>>,
    generation: u64,
) -> Option<Topic> {
    if topic.failure.is_some() || topic.partitions.is_empty() {
        return None;
    }
    let in_order = topic.partitions.iter().enumerate().all(|(i, p)| p.partition as usize == i);
    if !in_order {
        return None;
    }
    let partitions = topic.partitions.iter().map(|partition| {
        let leader = (partition.leader_node, partition.leader_shard);
        let address = if partition.error.is_none() { shards.get(&leader).cloned() } else { None };
        Partition { leader, leader_epoch: partition.leader_epoch, address, error: partition.error }
    });
    Some(Topic {
        id: TopicId(topic.topic_id?),
        name: topic.name.as_str().into(),
        partitions: partitions.collect(),
        generation,
    })
}

/// Keeps what is known of partitions of which `found` shows an older leadership.
fn keep_newer(found: &mut Topic, known: &Topic) {
    if found.id != known.id {
        return;
    }
    for (partition, known) in found.partitions.iter_mut().zip(&known.partitions) {
        if known.leader_epoch > partition.leader_epoch {
            partition.clone_from(known);
        }
    }
}

#[cfg(test)]
mod tests {
    use corelog_schemas::messages::PartitionMetadata;

    use super::*;

    #[test]
    fn a_partition_without_a_leader_keeps_the_reason() {
        let partition = |partition, error| PartitionMetadata {
            partition,
            error,
            leader_node: 1,
            leader_shard: 0,
            leader_epoch: 1,
            log_start_offset: None,
            replicas: vec![1],
            in_sync: vec![1],
        };
        let partitions = vec![partition(0, None), partition(1, Some(ErrorCode::PartitionOffline))];
        let metadata = TopicMetadata { failure: None, topic_id: Some(7), name: "t".into(), partitions };
        let shards = HashMap::from([((1, 0), Arc::from("127.0.0.1:9700"))]);
        let topic = read_topic(&metadata, &shards, 1).expect("a sound answer");
        assert_eq!(topic.leader(0).map(|address| &**address), Some("127.0.0.1:9700"));
        assert_eq!(topic.leader(1), None);
        assert_eq!(topic.no_leader(1), ErrorCode::PartitionOffline);
    }
    #[test]
    fn a_node_that_is_behind_does_not_bring_an_older_leader_back() {
        let topic = |id, epochs: [u32; 2]| Topic {
            id: TopicId(id),
            name: "t".into(),
            partitions: epochs
                .map(|leader_epoch| Partition { leader: (1, 0), leader_epoch, address: None, error: None })
                .into(),
            generation: 1,
        };
        let epochs = |topic: &Topic| topic.partitions.iter().map(|p| p.leader_epoch).collect::<Vec<_>>();
        let mut found = topic(7, [3, 5]);
        keep_newer(&mut found, &topic(7, [4, 4]));
        assert_eq!(epochs(&found), [4, 5]);
        let mut created_again = topic(8, [0, 0]);
        keep_newer(&mut created_again, &topic(7, [4, 4]));
        assert_eq!(epochs(&created_again), [0, 0]);
    }
}
