//! Consumer: reads assigned partitions from any position, in order, at the caller's pace.
//!
//! Owns: the assignment, and the fetches that run ahead of the caller. All work happens inside `poll`, except that
//! a fetch on its way goes on between two calls: its answer waits in the connection.
//! Invariant: records of one partition are handed out in offset order, none twice, none left out, unless the
//! caller seeks; a failure is handed out once and the partition then stands until a seek.
//! Limits: each shard has an equal share of `prefetch_bytes_max`, and fetches when half of its share is free; all its
//! partitions then travel in one fetch, so that a long poll for idle partitions never holds up one whose buffer
//! has just been emptied. A partition that joins while that fetch waits (a seek, a resume) takes the second of
//! `LANES` connections.
//! Not here: groups and committed offsets.

mod config;
mod decode;
mod fetch;
mod partition;

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use corelog_engine::Offset;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

pub use self::config::{ConsumerConfig, OutOfRange, PollLimits};
pub use self::decode::ConsumerRecord;
use self::fetch::Done;
use self::partition::AssignedPartition;
pub use self::partition::StartAt;
use crate::cluster::Cluster;
use crate::error::ConsumeError;
use crate::pool::ConnectionPool;

/// Connections to one shard, each with at most one fetch on its way.
const LANES: usize = 2;
/// How often to look again while every shard's share of the buffer is full.
const IDLE_TICK_MS: u64 = 100;

/// A consumer with manual assignment; see [`crate::Client::consumer`]. One caller at a time (`&mut self`).
pub struct Consumer {
    config: ConsumerConfig,
    cluster: Arc<Cluster>,
    pools: [Arc<ConnectionPool>; LANES],
    partitions: Vec<AssignedPartition>,
    /// Where the next round of handing out and of asking begins, so that no partition starves.
    turn: usize,
    in_flight: FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send>>>,
    /// Shards and lanes with a fetch on its way.
    busy: HashSet<(Arc<str>, usize)>,
    refreshing: HashSet<Arc<str>>,
    errors: VecDeque<ConsumeError>,
    started: Instant,
}

impl Consumer {
    pub(crate) fn new(cluster: Arc<Cluster>, config: ConsumerConfig) -> Self {
        Self {
            pools: std::array::from_fn(|_| Arc::new(cluster.new_pool())),
            config,
            cluster,
            partitions: Vec::new(),
            turn: 0,
            in_flight: FuturesUnordered::new(),
            busy: HashSet::new(),
            refreshing: HashSet::new(),
            errors: VecDeque::new(),
            started: Instant::now(),
        }
    }

    /// Adds partitions of a topic to the assignment, or moves those that are assigned already.
    ///
    /// Errors: the topic cannot be looked up, or has no such partition; the assignment is then unchanged.
    pub async fn assign(&mut self, topic: &str, partitions: &[(u32, StartAt)]) -> Result<(), ConsumeError> {
        let known = self.cluster.topic(topic).await?;
        let count = known.partition_count();
        if let Some(&(partition, _)) = partitions.iter().find(|(partition, _)| *partition >= count) {
            let topic = Arc::clone(&known.name);
            return Err(ConsumeError::NoSuchPartition { topic, partition, partitions: count });
        }
        for &(partition, start) in partitions {
            match self.find(topic, partition) {
                Ok(assigned) => assigned.seek(start),
                Err(_) => {
                    self.partitions.push(AssignedPartition::new(Arc::clone(&known.name), partition, start));
                }
            }
        }
        Ok(())
    }

    /// Adds all partitions of a topic that there are now; returns how many.
    pub async fn assign_all(&mut self, topic: &str, start: StartAt) -> Result<u32, ConsumeError> {
        let count = self.cluster.topic(topic).await?.partition_count();
        let all: Vec<(u32, StartAt)> = (0..count).map(|partition| (partition, start)).collect();
        self.assign(topic, &all).await?;
        Ok(count)
    }

    /// Takes a partition out of the assignment.
    pub fn unassign(&mut self, topic: &str, partition: u32) -> Result<(), ConsumeError> {
        self.find(topic, partition)?;
        self.partitions.retain(|assigned| !(&*assigned.topic == topic && assigned.partition == partition));
        Ok(())
    }

    /// Goes elsewhere; the next `poll` reads from there.
    pub fn seek(&mut self, topic: &str, partition: u32, to: StartAt) -> Result<(), ConsumeError> {
        self.find(topic, partition)?.seek(to);
        Ok(())
    }

    /// Hands out no records of this partition, and fetches none, until `resume`. What was fetched ahead is dropped.
    pub fn pause(&mut self, topic: &str, partition: u32) -> Result<(), ConsumeError> {
        let assigned = self.find(topic, partition)?;
        assigned.paused = true;
        assigned.drop_buffer();
        Ok(())
    }

    /// Ends `pause`; reading goes on at the position.
    pub fn resume(&mut self, topic: &str, partition: u32) -> Result<(), ConsumeError> {
        self.find(topic, partition)?.paused = false;
        Ok(())
    }

    /// The offset of the next record that will be handed out; `None` while the start is looked up.
    pub fn position(&mut self, topic: &str, partition: u32) -> Result<Option<Offset>, ConsumeError> {
        let assigned = self.find(topic, partition)?;
        let known = !matches!(assigned.stage, partition::Stage::Unresolved(_));
        Ok(known.then_some(assigned.position))
    }

    /// The end of what could be read when the partition was last fetched.
    pub fn high_watermark(&mut self, topic: &str, partition: u32) -> Result<Option<Offset>, ConsumeError> {
        Ok(self.find(topic, partition)?.high_watermark)
    }

    fn find(&mut self, topic: &str, partition: u32) -> Result<&mut AssignedPartition, ConsumeError> {
        let found =
            self.partitions.iter_mut().find(|known| known.partition == partition && &*known.topic == topic);
        found.ok_or_else(|| ConsumeError::NotAssigned { topic: topic.into(), partition })
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).expect("a process does not run for so long")
    }

    /// The next records, at least one unless `wait_ms` passes; records of one partition are in order.
    ///
    /// Errors: of one partition (each once; the others go on with the next call), or of the cluster.
    /// Cancel: nothing is lost; records are taken from the buffer only when they are returned.
    pub async fn poll(&mut self, limits: PollLimits) -> Result<Vec<ConsumerRecord>, ConsumeError> {
        let deadline = Instant::now() + Duration::from_millis(limits.wait_ms);
        loop {
            while let Some(Some(done)) = futures_util::FutureExt::now_or_never(self.in_flight.next()) {
                self.done(done);
            }
            let records = self.hand_out(&limits);
            self.ask(self.now_ms());
            if !records.is_empty() {
                return Ok(records);
            }
            if let Some(error) = self.errors.pop_front() {
                return Err(error);
            }
            if Instant::now() >= deadline {
                return Ok(records);
            }
            let tick = Instant::now() + Duration::from_millis(IDLE_TICK_MS);
            tokio::select! {
                biased;
                Some(done) = self.in_flight.next() => self.done(done),
                () = tokio::time::sleep_until(deadline.min(tick)) => {}
            }
        }
    }

    /// Takes records from the buffers, one partition after the other, up to the limits.
    fn hand_out(&mut self, limits: &PollLimits) -> Vec<ConsumerRecord> {
        let mut records = Vec::new();
        let mut bytes = 0;
        let count = self.partitions.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            let assigned = &mut self.partitions[index];
            if !assigned.is_readable() {
                continue;
            }
            loop {
                if !records.is_empty() && (records.len() >= limits.records_max || bytes >= limits.bytes_max) {
                    self.turn = index;
                    return records;
                }
                match assigned.next_record(self.config.unpacked_bytes_max) {
                    Ok(Some(record)) => {
                        bytes += record.payload_bytes();
                        records.push(record);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        self.errors.push_back(error);
                        break;
                    }
                }
            }
        }
        self.turn = if count == 0 { 0 } else { (self.turn + 1) % count };
        records
    }
}
