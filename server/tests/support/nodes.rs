//! Several nodes of one cluster as real processes, on one ZooKeeper.

use std::path::Path;
use std::time::{Duration, Instant};

use corelog_client::{Client, ClientConfig};
use corelog_schemas::messages::{MetadataRequest, MetadataResponse, MetadataTopics, NewTopic, TopicOption};

use super::zookeeper::Ensemble;
use super::{Node, PATIENCE, Setup};

/// Nodes 1, 2, 3 and so on; some of them may be down.
pub(crate) struct Nodes {
    setups: Vec<Setup>,
    running: Vec<Option<Node>>,
}

impl Nodes {
    /// Starts one node for each list of cores, with data directories below `dir`.
    pub(crate) fn start(ensemble: &Ensemble, dir: &Path, cores: &[&'static str]) -> Self {
        Self::start_with(ensemble, dir, cores, |setup| setup)
    }

    /// As [`Nodes::start`], with settings of one's own.
    pub(crate) fn start_with(
        ensemble: &Ensemble,
        dir: &Path,
        cores: &[&'static str],
        set: impl Fn(Setup) -> Setup,
    ) -> Self {
        let setups = (1..).zip(cores).map(|(number, cores)| {
            let setup = Setup::new(&dir.join(format!("node-{number}")), cores)
                .set("CORELOG_NODE_ID", &number.to_string())
                .set("CORELOG_ZOOKEEPER_CONNECT", &ensemble.connect())
                .set("CORELOG_ZOOKEEPER_SESSION_TIMEOUT", "2s")
                .set("CORELOG_REPLICATION_ADDRESS", "127.0.0.1:0")
                .set("CORELOG_LOG_LEVEL", "info");
            set(setup)
        });
        let mut nodes = Self { setups: Vec::new(), running: Vec::new() };
        for setup in setups {
            let node = setup.start();
            // Where it listens once it does so again: clients remember addresses.
            nodes.setups.push(setup.listen(node.address));
            nodes.running.push(Some(node));
        }
        nodes
    }

    /// The node of that number, which runs.
    pub(crate) fn node(&self, number: u32) -> &Node {
        self.running[number as usize - 1].as_ref().expect("it runs")
    }

    /// Every node that runs.
    pub(crate) fn running(&self) -> impl Iterator<Item = &Node> {
        self.running.iter().flatten()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, number: u32) {
        self.running[number as usize - 1].take().expect("it runs").kill();
    }

    /// SIGTERM; how long it took.
    pub(crate) fn stop(&mut self, number: u32) -> Duration {
        let (status, took) = self.running[number as usize - 1].take().expect("it runs").stop();
        assert!(status.success(), "node {number} ended with {status}");
        took
    }

    /// Starts a node that is down, on the same directories.
    pub(crate) fn restart(&mut self, number: u32) {
        let index = number as usize - 1;
        assert!(self.running[index].is_none(), "it runs");
        self.running[index] = Some(self.setups[index].start());
    }

    /// A client that knows every node that runs.
    pub(crate) async fn client(&self) -> Client {
        let addresses = self.running().map(|node| node.address.to_string());
        Client::connect(ClientConfig::new(addresses)).await.expect("one of them answers")
    }

    /// Creates a topic, and waits until each partition has a leader and all replicas in sync.
    pub(crate) async fn create_topic(&self, name: &str, partitions: u32, replicas: u16) {
        self.create_topic_with(name, partitions, replicas, &[]).await;
    }

    /// As [`Nodes::create_topic`], with options.
    pub(crate) async fn create_topic_with(
        &self,
        name: &str,
        partitions: u32,
        replicas: u16,
        options: &[(&str, &str)],
    ) {
        let option = |(key, value): &(&str, &str)| TopicOption {
            key: (*key).to_owned(),
            value: Some((*value).to_owned()),
            is_default: false,
        };
        let topic = NewTopic {
            name: name.to_owned(),
            partitions,
            replication_factor: replicas,
            options: options.iter().map(option).collect(),
        };
        let created = self.client().await.admin().create_topics(vec![topic], false).await.expect("answered");
        created.into_iter().next().expect("one result").expect("created");
        self.await_in_sync(name, usize::from(replicas));
    }

    /// What a node says of a topic now.
    pub(crate) fn metadata(&self, number: u32, topic: &str) -> MetadataResponse {
        let request = MetadataRequest { topics: MetadataTopics::These(vec![topic.into()]) };
        self.node(number).shard(0).ask(&request, &[]).0
    }

    /// Leader and epoch of a partition, once every node that runs says the same and the leader runs.
    pub(crate) fn leader(&self, topic: &str, partition: u32) -> (u32, u32) {
        self.await_that("a leader that all agree on", || {
            let mut seen = Vec::new();
            for number in self.numbers() {
                let metadata = self.metadata(number, topic);
                let found = metadata.topics[0].partitions.get(partition as usize)?;
                if found.error.is_some() || self.running[found.leader_node as usize - 1].is_none() {
                    return None;
                }
                seen.push((found.leader_node, found.leader_epoch));
            }
            let first = *seen.first()?;
            seen.iter().all(|other| *other == first).then_some(first)
        })
    }

    /// Waits until every partition of a topic has a leader and so many replicas in sync.
    pub(crate) fn await_in_sync(&self, topic: &str, replicas: usize) {
        let number = self.numbers().next().expect("a node runs");
        self.await_that("replicas in sync", || {
            let metadata = self.metadata(number, topic);
            let partitions = &metadata.topics.first()?.partitions;
            let is_well = !partitions.is_empty()
                && partitions.iter().all(|p| p.error.is_none() && p.in_sync.len() >= replicas);
            is_well.then_some(())
        });
    }

    /// Waits for something; panics with all logs if it does not come.
    pub(crate) fn await_that<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            if began.elapsed() > PATIENCE {
                let logs: Vec<String> = self.running().map(Node::log).collect();
                panic!("no {what} after {PATIENCE:?}; logs:\n{}", logs.join("\n--- next node\n"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn numbers(&self) -> impl Iterator<Item = u32> {
        (1..).zip(&self.running).filter(|(_, node)| node.is_some()).map(|(number, _)| number)
    }
}
