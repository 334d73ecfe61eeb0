//! Replicas of one partition on simulated disks, wired by hand: the test says who leads, who copies and who dies.
//!
//! Owns: the nodes, and the few steps of a stream that the stories take one by one.

use std::path::Path;

use corelog_engine::batch::{BatchBuilder, BatchFields, BatchHeader, NewRecord};
use corelog_engine::buffer::BufferPool;
use corelog_engine::log::{EngineOptions, FlushPolicy, ReadLimits, Stage};
use corelog_engine::{
    Engine, LeaderEpoch, LogId, LogOptions, Offset, PartitionId, TimestampMs, TopicId, TopicPartition,
};
use corelog_replication::coordination::Version;
use corelog_replication::{
    Ack, Assignment, ConnectionId, FollowerError, LeaderTerm, NodeId, Partition, ProduceChecks, ProduceError,
    Produced, ReplicaId, Role,
};
use corelog_sim::{Crash, Executor, Handle, SimDisk, SimDiskOptions};

pub(crate) const NOW: TimestampMs = TimestampMs(1_700_000_000_000);
pub(crate) const INTERVAL: FlushPolicy = FlushPolicy::Interval { bytes_max: u64::MAX, ms_max: u64::MAX };
pub(crate) const ID: TopicPartition = TopicPartition { topic: TopicId(1), partition: PartitionId(0) };

/// Which replicas there are, by number from 1.
pub(crate) fn replica(node: u32) -> ReplicaId {
    ReplicaId { node: NodeId(node), log: LogId(u128::from(node)) }
}

pub(crate) fn replicas(nodes: &[u32]) -> Vec<ReplicaId> {
    nodes.iter().map(|&node| replica(node)).collect()
}

/// One process with one replica.
pub(crate) struct Node {
    number: u32,
    options: LogOptions,
    handle: Handle,
    pub(crate) disk: SimDisk,
    pub(crate) partition: Partition<SimDisk>,
}

fn engine(handle: &Handle, disk: &SimDisk) -> Engine<SimDisk> {
    let engine = Engine::new(disk.clone(), BufferPool::new(8 << 20), EngineOptions::default());
    handle.spawn(engine.drive_commits());
    handle.spawn(engine.drive_background());
    engine
}

impl Node {
    pub(crate) async fn new(executor: &Executor, number: u32, flush: FlushPolicy) -> Self {
        let handle = executor.handle().new_group();
        let disk = SimDisk::new(handle.clone(), SimDiskOptions::default());
        let options = LogOptions { flush, ..LogOptions::default() };
        let me = replica(number);
        let log = engine(&handle, &disk).create_log(Path::new("/d/p"), me.log, options).await.unwrap();
        let partition = Partition::open(ID, me, log);
        Self { number, options, handle, disk, partition }
    }

    /// Dies, and is started again with what its disk has kept.
    pub(crate) async fn restart(&mut self, crash: Crash) {
        self.die(crash);
        self.start().await;
    }

    /// Dies; its disk keeps what it keeps.
    pub(crate) fn die(&mut self, crash: Crash) {
        self.handle.kill_group(self.handle.group());
        self.handle = self.handle.new_group();
        self.disk = self.disk.after_crash(crash, &self.handle);
    }

    /// Is started again.
    pub(crate) async fn start(&mut self) {
        let me = replica(self.number);
        let engine = engine(&self.handle, &self.disk);
        let (log, _) = engine.open_log(Path::new("/d/p"), me.log, self.options, false).await.unwrap();
        self.partition = Partition::open(ID, me, log);
    }

    pub(crate) fn lead(&self, epoch: u32, isr: &[u32]) {
        self.partition.become_leader(term(epoch, isr, 1), 0).unwrap();
    }

    pub(crate) fn end(&self) -> Offset {
        self.partition.log().ends().end
    }

    pub(crate) async fn produce(&self, text: &str) -> Result<Produced, ProduceError> {
        self.produce_batch(&batch(text, &BatchFields::default()), Ack::All).await
    }

    pub(crate) async fn produce_batch(&self, batch: &[u8], ack: Ack) -> Result<Produced, ProduceError> {
        let checks = ProduceChecks { ack, ..ProduceChecks::default() };
        self.partition.produce(batch, checks, || NOW).await
    }

    /// Makes all that it has durable.
    pub(crate) async fn flush(&self) {
        self.partition.log().flush().await.unwrap();
    }

    /// The first bytes of the values of all records, and the epochs of their batches: the log as a story tells it.
    pub(crate) async fn records(&self) -> Vec<(String, u32)> {
        let ends = self.partition.log().ends();
        let mut from = ends.start;
        let mut found = Vec::new();
        while from < ends.end {
            let read = self.partition.log().read(from, ends.end, ReadLimits::bytes(1)).await.unwrap();
            let bytes: Vec<u8> = read.slices.iter().flat_map(|slice| slice.to_vec()).collect();
            let header = BatchHeader::parse(&bytes).unwrap();
            let (_, text) = texts(&bytes).pop().unwrap();
            found.push((text, header.leader_epoch.unwrap().0));
            from = read.next_offset;
        }
        found
    }
}

/// Offset and text of each record in batches of one record.
pub(crate) fn texts(mut batches: &[u8]) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    while !batches.is_empty() {
        let header = BatchHeader::parse(batches).unwrap();
        let (batch, rest) = batches.split_at(header.size());
        batches = rest;
        // The value is the last word of the batch; what stands around it is not a letter or digit.
        let word = batch.rsplit(|byte| !byte.is_ascii_alphanumeric()).find(|word| !word.is_empty()).unwrap();
        found.push((header.base_offset.0, String::from_utf8(word.to_vec()).unwrap()));
    }
    found
}

pub(crate) fn term(epoch: u32, isr: &[u32], version: i64) -> LeaderTerm {
    LeaderTerm {
        epoch: LeaderEpoch(epoch),
        replicas: replicas(&[1, 2, 3]),
        isr: replicas(isr),
        version: Version(version),
        min_insync_replicas: 1,
    }
}

/// What a leader is told when another ISR is stored.
pub(crate) fn assignment(
    me: u32,
    epoch: u32,
    isr: &[u32],
    version: i64,
    min_insync_replicas: usize,
) -> Assignment {
    Assignment {
        partition: ID,
        me: replica(me),
        role: Role::Lead,
        leader_epoch: LeaderEpoch(epoch),
        replicas: replicas(&[1, 2, 3]),
        isr: replicas(isr),
        version: Version(version),
        min_insync_replicas,
    }
}

/// A batch of one record.
pub(crate) fn batch(text: &str, fields: &BatchFields) -> Vec<u8> {
    let mut builder = BatchBuilder::new(1 << 16);
    let record = NewRecord { key: None, value: Some(text.as_bytes()), timestamp: NOW, headers: &[] };
    builder.push(&record).unwrap();
    builder.finish(fields).unwrap()
}

/// A follower's stream to its leader, taken step by step.
pub(crate) struct Stream<'a> {
    pub(crate) leader: &'a Node,
    pub(crate) follower: &'a Node,
    pub(crate) epoch: LeaderEpoch,
    pub(crate) connection: ConnectionId,
    /// Cuts and resets that the handshake took.
    pub(crate) cuts: usize,
}

impl<'a> Stream<'a> {
    /// Begins to follow, with the whole handshake.
    pub(crate) async fn follow(follower: &'a Node, leader: &'a Node, epoch: u32, connection: u64) -> Self {
        let epoch = LeaderEpoch(epoch);
        follower.partition.become_follower(epoch, replica(leader.number)).unwrap();
        let mut stream = Self { leader, follower, epoch, connection: ConnectionId(connection), cuts: 0 };
        stream.shake_hands().await;
        stream
    }

    pub(crate) async fn shake_hands(&mut self) {
        loop {
            let request = self.follower.partition.ask(self.epoch).await.unwrap();
            let answer = self.leader.partition.follow(self.connection, &request).unwrap();
            if self.follower.partition.answered(self.epoch, &answer).await.unwrap() {
                return;
            }
            self.cuts += 1;
        }
    }

    /// Copies what the leader has, without waiting for the disk.
    pub(crate) async fn copy(&self) {
        while self.follower.end() < self.leader.end() {
            self.copy_one().await.unwrap();
        }
    }

    /// Copies one batch.
    pub(crate) async fn copy_one(&self) -> Result<Offset, FollowerError> {
        let from = self.follower.end();
        let read = self.leader.partition.read_for_follower(self.epoch, from, ReadLimits::bytes(1)).await;
        let bytes: Vec<u8> = read.unwrap().slices.iter().flat_map(|slice| slice.to_vec()).collect();
        let marks = self.leader.partition.marks();
        self.follower.partition.append_from_leader(self.epoch, &bytes, marks, NOW).await
    }

    /// Says how far the follower is.
    pub(crate) fn report(&self) {
        let ends = self.follower.partition.replica_ends();
        let (leader, me) = (&self.leader.partition, replica(self.follower.number));
        leader.follower_reported(self.connection, me, self.epoch, ends);
    }

    /// Brings the leader's marks to the follower.
    pub(crate) async fn send_marks(&self) {
        let marks = self.leader.partition.marks();
        self.follower.partition.marks_from_leader(self.epoch, marks, NOW).await.unwrap();
    }

    /// Copies all, makes it durable, and reports.
    pub(crate) async fn catch_up(&self) {
        self.copy().await;
        self.follower.flush().await;
        self.report();
    }
}

/// Waits until a node's own log is durable, so that what is left to wait for is the others.
pub(crate) async fn settled(node: &Node) {
    let end = node.end();
    node.partition.log().wait(Stage::Durable, end).await.unwrap();
}
