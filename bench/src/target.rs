//! Where a run goes: a topic, the shards that lead its partitions, and the process behind them.
//!
//! Owns: a topic that was made for the run; it is deleted after it.

use std::time::{Duration, Instant};

use crate::error::{BenchError, BenchResult};
use crate::kafka::{Kafka, NewKafkaTopic};
use crate::load::connection::Protocol;
use crate::load::server_process::{find_listener, find_listeners};
use crate::wire::Wire;

/// A topic and where its partitions are.
pub(crate) struct Target {
    server: String,
    /// Its name.
    pub(crate) topic: String,
    /// Its id.
    pub(crate) topic_id: u128,
    /// Address of the shard that leads each partition.
    pub(crate) leaders: Vec<(u32, String)>,
    /// Cores that the server's shards are pinned to, if it runs on this machine.
    pub(crate) server_cores: Vec<usize>,
    /// The processes of the servers that run on this machine.
    pub(crate) server_pids: Vec<u32>,
    /// What they speak.
    pub(crate) protocol: Protocol,
    is_ours: bool,
}

/// A topic made for a run.
pub(crate) struct NewTarget {
    /// Partitions.
    pub(crate) partitions: u32,
    /// Replicas of each; 0: as many as the server gives by default.
    pub(crate) replicas: u16,
    /// Options of the topic; for Kafka its own settings.
    pub(crate) options: Vec<(String, String)>,
    /// Leave it there after the run.
    pub(crate) keep: bool,
}

/// Longest wait for leaders of a new topic.
const LEADERS_PATIENCE: Duration = Duration::from_secs(10);

impl Target {
    /// Finds a topic, or makes it as `new` says.
    pub(crate) fn open(server: &str, topic: &str, new: Option<&NewTarget>) -> BenchResult<Self> {
        let mut wire = Wire::connect(server)?;
        let is_there = wire.metadata(topic)?.is_some();
        match (is_there, new) {
            (true, Some(_)) => {
                return Err(BenchError::Usage(format!(
                    "topic {topic:?} is there already; add --existing to produce to it as it is"
                )));
            }
            (false, None) => return Err(BenchError::Usage(format!("there is no topic {topic:?}"))),
            (false, Some(new)) => wire.create_topic(topic, new.partitions, new.replicas, &new.options)?,
            (true, None) => {}
        }
        let node = wire.describe_node()?;
        let mut target = Self {
            server: server.to_owned(),
            topic: topic.to_owned(),
            topic_id: 0,
            leaders: Vec::new(),
            server_cores: match find_listener(server) {
                Some(_) => node.shards.iter().map(|shard| usize::from(shard.core)).collect(),
                None => Vec::new(),
            },
            server_pids: Vec::new(),
            protocol: Protocol::Native,
            is_ours: new.is_some_and(|new| !new.keep),
        };
        let shards = target.find_leaders(&mut wire)?;
        target.server_pids = find_listeners(shards.iter().map(String::as_str).chain([server]));
        Ok(target)
    }

    /// Makes a topic on a Kafka broker.
    pub(crate) fn open_kafka(server: &str, topic: &str, new: &NewTarget) -> BenchResult<Self> {
        let mut kafka = Kafka::connect(server)?;
        kafka.create_topic(&NewKafkaTopic {
            name: topic,
            partitions: new.partitions,
            replicas: new.replicas.max(1),
            settings: new.options.clone(),
        })?;
        let leaders = kafka.leaders(topic, new.partitions)?;
        Ok(Self {
            server: server.to_owned(),
            topic: topic.to_owned(),
            topic_id: 0,
            server_cores: Vec::new(),
            server_pids: find_listeners(leaders.iter().map(|(_, address)| address.as_str()).chain([server])),
            leaders,
            protocol: Protocol::Kafka,
            is_ours: !new.keep,
        })
    }

    /// Asks for metadata until every partition has a leader; returns the addresses of all shards.
    fn find_leaders(&mut self, wire: &mut Wire) -> BenchResult<Vec<String>> {
        let deadline = Instant::now() + LEADERS_PATIENCE;
        loop {
            let response = wire.metadata(&self.topic)?;
            let found = response.as_ref().and_then(|response| Some((response, response.topics.first()?)));
            if let Some((response, topic)) = found {
                let leaders: Option<Vec<(u32, String)>> = topic
                    .partitions
                    .iter()
                    .filter(|partition| partition.error.is_none())
                    .map(|partition| {
                        let shard = response.shards.iter().find(|shard| {
                            shard.node == partition.leader_node && shard.shard == partition.leader_shard
                        })?;
                        Some((partition.partition, format!("{}:{}", shard.host, shard.port)))
                    })
                    .collect();
                if let (Some(leaders), Some(id)) = (leaders, topic.topic_id)
                    && !leaders.is_empty()
                    && leaders.len() == topic.partitions.len()
                {
                    (self.leaders, self.topic_id) = (leaders, id);
                    return Ok(response
                        .shards
                        .iter()
                        .map(|shard| format!("{}:{}", shard.host, shard.port))
                        .collect());
                }
            }
            if Instant::now() >= deadline {
                return Err(BenchError::Usage(format!(
                    "topic {:?} has partitions without a leader",
                    self.topic
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Target {
    /// A topic made for the run goes with it, also when the run has failed.
    fn drop(&mut self) {
        if !self.is_ours {
            return;
        }
        let deleted = match self.protocol {
            Protocol::Native => {
                Wire::connect(&self.server).and_then(|mut wire| wire.delete_topic(&self.topic))
            }
            Protocol::Kafka => {
                Kafka::connect(&self.server).and_then(|mut kafka| kafka.delete_topic(&self.topic))
            }
        };
        if let Err(e) = deleted {
            eprintln!("bench: topic {:?} stays: {e}", self.topic);
        }
    }
}
