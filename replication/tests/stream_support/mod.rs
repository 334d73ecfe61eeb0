//! Several shards of real replication code in one process: simulated disks and clock, connections in memory.
//!
//! Every message goes through the real frames: encoded by the sender, verified by the receiver. A link can be made to
//! break at the nth message of all.

#![allow(dead_code, unreachable_pub)]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use corelog_engine::batch::{BatchBuilder, BatchFields, NewRecord};
use corelog_engine::buffer::{BufferPool, DmaSlice};
use corelog_engine::log::EngineOptions;
use corelog_engine::notify::Notify;
use corelog_engine::{
    Engine, LeaderEpoch, LogId, LogOptions, Offset, PartitionId, TimestampMs, TopicId, TopicPartition,
};
use corelog_replication::cluster::{Endpoint, Incarnation};
use corelog_replication::coordination::Version;
use corelog_replication::stream::{
    ConnectError, Host, Identity, Link, LinkError, Priority, STREAM_FRAME_LIMITS, StreamMessage,
    StreamOptions,
};
use corelog_replication::{
    Ack, Assignment, NodeId, Partition, ProduceChecks, ReplicaId, Replicas, Report, Role,
};
use corelog_schemas::{Encoder, FRAME_PREFIX_BYTES, FramePrefix, parse_frame};
use corelog_sim::{Executor, Handle, SimDisk, SimDiskOptions};

pub const NOW: TimestampMs = TimestampMs(1_700_000_000_000);

/// All that connects shards.
#[derive(Default)]
pub struct Net {
    listeners: RefCell<BTreeMap<String, Listener>>,
    /// Messages sent, over all links.
    pub messages: Cell<u64>,
    /// Those with batches among them.
    pub bundles: Cell<u64>,
    /// The link that sends this message breaks instead.
    pub break_at: Cell<u64>,
    /// Links that were made.
    pub links: RefCell<Vec<Wire>>,
}

type Listener = Rc<dyn Fn(Wire)>;

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    frames: RefCell<VecDeque<Vec<u8>>>,
    is_closed: Cell<bool>,
    changed: Notify,
}

impl Pipe {
    fn close(&self) {
        self.is_closed.set(true);
        self.changed.notify_all();
    }
}

/// One end of a connection.
#[derive(Clone)]
pub struct Wire {
    net: Rc<Net>,
    into: Rc<Pipe>,
    from: Rc<Pipe>,
    encoder: Rc<RefCell<Encoder>>,
}

impl Wire {
    /// Both ends of a new connection.
    pub fn pair(net: &Rc<Net>) -> (Self, Self) {
        let (a, b) = (Rc::<Pipe>::default(), Rc::<Pipe>::default());
        let end = |into: &Rc<Pipe>, from: &Rc<Pipe>| Self {
            net: net.clone(),
            into: into.clone(),
            from: from.clone(),
            encoder: Rc::default(),
        };
        (end(&a, &b), end(&b, &a))
    }

    /// Sends bytes that need not be a frame.
    pub fn send_raw(&self, bytes: &[u8]) {
        self.into.frames.borrow_mut().push_back(bytes.to_vec());
        self.into.changed.notify_all();
    }

    /// Whether the peer or the network has ended it.
    pub fn is_closed(&self) -> bool {
        self.from.is_closed.get()
    }

    pub fn cut(&self) {
        self.into.close();
        self.from.close();
    }
}

impl Link for Wire {
    type Payload = Vec<u8>;

    async fn send(&self, message: &StreamMessage, payload: &[DmaSlice]) -> Result<(), LinkError> {
        let count = self.net.messages.get() + 1;
        self.net.messages.set(count);
        if matches!(message, StreamMessage::Batches(_)) {
            self.net.bundles.set(self.net.bundles.get() + 1);
        }
        if count == self.net.break_at.get() {
            self.cut();
        }
        if self.into.is_closed.get() {
            return Err(LinkError::Closed);
        }
        let mut frame = Vec::new();
        message.encode(&mut self.encoder.borrow_mut(), &mut frame);
        for slice in payload {
            frame.extend_from_slice(slice);
        }
        let prefix =
            FramePrefix::parse(frame.first_chunk::<FRAME_PREFIX_BYTES>().unwrap(), &STREAM_FRAME_LIMITS);
        assert_eq!(prefix.unwrap().frame_bytes, frame.len() as u64, "the payload is what the head says");
        self.send_raw(&frame);
        Ok(())
    }

    async fn recv(&self) -> Result<(StreamMessage, Vec<u8>), LinkError> {
        loop {
            let changed = self.from.changed.notified();
            if self.from.is_closed.get() {
                return Err(LinkError::Closed);
            }
            let frame = self.from.frames.borrow_mut().pop_front();
            let Some(bytes) = frame else {
                changed.await;
                continue;
            };
            let frame = parse_frame(&bytes, &STREAM_FRAME_LIMITS)?;
            let frame = frame.ok_or_else(|| LinkError::Broken("cut off".to_owned()))?;
            let payload_bytes = frame.payload.len() as u64;
            let message = StreamMessage::decode(frame.prefix.api, frame.head, payload_bytes)?;
            return Ok((message, frame.payload.to_vec()));
        }
    }

    fn close(&self) {
        self.cut();
    }
}

/// The world of one shard.
#[derive(Clone)]
pub struct TestHost {
    pub handle: Handle,
    pub net: Rc<Net>,
    pub reports: Rc<RefCell<Vec<Report>>>,
}

impl Host for TestHost {
    type Link = Wire;

    fn now_ms(&self) -> u64 {
        self.handle.now_us() / 1_000
    }

    fn wall(&self) -> TimestampMs {
        TimestampMs(NOW.0 + self.now_ms() as i64)
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static, _priority: Priority) {
        self.handle.spawn(task);
    }

    async fn sleep(&self, ms: u64) {
        self.handle.sleep(Duration::from_millis(ms)).await;
    }

    async fn connect(&self, to: &Endpoint) -> Result<Wire, ConnectError> {
        self.handle.sleep(Duration::from_micros(50)).await;
        let listener = self.net.listeners.borrow().get(&to.host).cloned();
        let Some(listener) = listener else { return Err(ConnectError::Refused) };
        let (ours, theirs) = Wire::pair(&self.net);
        self.net.links.borrow_mut().push(ours.clone());
        listener(theirs);
        Ok(ours)
    }

    fn report(&self, report: Report) {
        self.reports.borrow_mut().push(report);
    }
}

/// One node with one shard.
#[derive(Clone)]
pub struct Node {
    pub number: u32,
    pub disk: SimDisk,
    pub engine: Engine<SimDisk>,
    pub replicas: Replicas<SimDisk, TestHost>,
    pub reports: Rc<RefCell<Vec<Report>>>,
}

/// What a world is made of.
#[derive(Clone)]
pub struct Setup {
    pub nodes: u32,
    pub streams: StreamOptions,
    pub log: LogOptions,
    pub disk: SimDiskOptions,
    pub pool_bytes: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            nodes: 2,
            streams: StreamOptions { scrub_bytes_per_second: None, ..StreamOptions::default() },
            log: LogOptions::default(),
            disk: SimDiskOptions::default(),
            pool_bytes: 32 << 20,
        }
    }
}

pub struct World {
    pub executor: Executor,
    pub net: Rc<Net>,
    pub setup: Setup,
    pub nodes: Vec<Node>,
    versions: Cell<i64>,
    /// Further disks of a node, each for a number of partitions: a simulated disk is slow with many files.
    engines: RefCell<BTreeMap<(u32, u32), Engine<SimDisk>>>,
}

/// Partitions on one disk.
const PARTITIONS_PER_DISK: u32 = 32;

/// Nodes 1 to n, listening.
pub fn world(seed: u64, setup: Setup) -> World {
    let executor = Executor::new(seed);
    let mut world = World {
        executor,
        net: Rc::default(),
        setup,
        nodes: Vec::new(),
        versions: Cell::new(0),
        engines: RefCell::default(),
    };
    for number in 1..=world.setup.nodes {
        let disk = SimDisk::new(world.executor.handle(), world.setup.disk.clone());
        let node = world.start(number, disk);
        world.nodes.push(node);
    }
    world
}

impl World {
    fn engine(&self, disk: &SimDisk) -> Engine<SimDisk> {
        let pool = BufferPool::new(self.setup.pool_bytes);
        let engine = Engine::new(disk.clone(), pool, EngineOptions::default());
        self.executor.spawn(engine.drive_commits());
        self.executor.spawn(engine.drive_background());
        engine
    }

    fn engine_for(&self, node: u32, partition: u32) -> Engine<SimDisk> {
        let disk = partition / PARTITIONS_PER_DISK;
        if disk == 0 {
            return self.node(node).engine.clone();
        }
        let mut engines = self.engines.borrow_mut();
        let engine = engines
            .entry((node, disk))
            .or_insert_with(|| self.engine(&SimDisk::new(self.executor.handle(), self.setup.disk.clone())));
        engine.clone()
    }

    fn start(&self, number: u32, disk: SimDisk) -> Node {
        let engine = self.engine(&disk);
        let host = TestHost { handle: self.executor.handle(), net: self.net.clone(), reports: Rc::default() };
        let reports = host.reports.clone();
        let me = Identity {
            cluster_id: "c1".into(),
            node: NodeId(number),
            shard: 0,
            incarnation: Incarnation(u64::from(number)),
        };
        let replicas = Replicas::new(host, me, self.setup.streams.clone());
        let (ticked, handle) = (replicas.clone(), self.executor.handle());
        self.executor.spawn(async move {
            loop {
                handle.sleep(Duration::from_millis(100)).await;
                ticked.tick();
            }
        });
        let node = Node { number, disk, engine, replicas, reports };
        self.listen(&node);
        node
    }

    /// Puts a node without partitions on another disk.
    pub fn replace(&mut self, number: u32, disk: SimDiskOptions) {
        self.node(number).replicas.stop();
        let disk = SimDisk::new(self.executor.handle(), disk);
        self.nodes[number as usize - 1] = self.start(number, disk);
    }

    /// The node takes connections.
    pub fn listen(&self, node: &Node) {
        let accepting = node.replicas.clone();
        let listener: Listener = Rc::new(move |wire| accepting.accept(wire));
        self.net.listeners.borrow_mut().insert(host_of(node.number), listener);
    }

    /// The node refuses connections.
    pub fn deafen(&self, node: u32) {
        self.net.listeners.borrow_mut().remove(&host_of(node));
    }

    pub fn node(&self, number: u32) -> &Node {
        &self.nodes[number as usize - 1]
    }

    /// Makes an empty partition on these nodes.
    pub fn create(&self, partition: u32, nodes: &[u32]) {
        self.executor.run_until(async {
            for &number in nodes {
                let node = self.node(number);
                let dir = PathBuf::from(format!("/d/p{partition}"));
                let log_id = replica(number, partition).log;
                let log = self
                    .engine_for(number, partition)
                    .create_log(&dir, log_id, self.setup.log)
                    .await
                    .unwrap();
                node.replicas.host_partition(Partition::open(id(partition), replica(number, partition), log));
            }
        });
    }

    /// Assigns a partition on all of `nodes`: the first of them leads.
    pub fn assign(&self, partition: u32, epoch: u32, nodes: &[u32], isr: &[u32]) {
        for &number in nodes {
            self.assign_one(number, partition, epoch, nodes, isr);
        }
    }

    /// Assigns it on one of them alone.
    pub fn assign_one(&self, number: u32, partition: u32, epoch: u32, nodes: &[u32], isr: &[u32]) {
        self.versions.set(self.versions.get() + 1);
        let leader = nodes[0];
        let role = match number == leader {
            true => Role::Lead,
            false => Role::Follow { leader: replica(leader, partition), shard: 0 },
        };
        let assignment = Assignment {
            partition: id(partition),
            me: replica(number, partition),
            role,
            leader_epoch: LeaderEpoch(epoch),
            replicas: nodes.iter().map(|&n| replica(n, partition)).collect(),
            isr: isr.iter().map(|&n| replica(n, partition)).collect(),
            version: Version(self.versions.get()),
            min_insync_replicas: 1,
        };
        let endpoint = Endpoint { host: host_of(leader), port: 1 };
        self.node(number).replicas.assign(assignment, Some(&endpoint)).expect("assigned");
    }

    pub fn partition(&self, node: u32, partition: u32) -> Partition<SimDisk> {
        self.node(node).replicas.partition(id(partition)).expect("hosted")
    }

    /// Virtual time passes.
    pub fn pass(&self, ms: u64) {
        self.executor.run_until(self.executor.handle().sleep(Duration::from_millis(ms)));
    }

    /// Runs until `done`, at most a minute of virtual time.
    pub fn until(&self, what: &str, done: impl Fn() -> bool) {
        for _ in 0..6_000 {
            if done() {
                return;
            }
            self.pass(10);
        }
        panic!("seed {}: not within a minute: {what}", self.executor.seed());
    }

    /// Appends at the leader, without waiting for replicas.
    pub fn append(&self, node: u32, partition: u32, records: u32, bytes: usize) -> Offset {
        let partition = self.partition(node, partition);
        self.executor.run_until(append(&partition, records, bytes))
    }

    /// Appends at the leader and waits for all replicas in sync.
    pub fn produce(&self, node: u32, partition: u32, records: u32, bytes: usize) -> Offset {
        let partition = self.partition(node, partition);
        self.executor.run_until(async {
            let end = append(&partition, records, bytes).await;
            partition.acked(Ack::All, end).expect("it waits").await.expect("acked");
            end
        })
    }

    /// All bytes of a partition's log at a node.
    pub fn bytes(&self, node: u32, partition: u32) -> Vec<u8> {
        let partition = self.partition(node, partition);
        self.executor.run_until(async {
            let ends = partition.log().ends();
            let (mut at, mut bytes) = (ends.start, Vec::new());
            while at < ends.end {
                let limits = corelog_engine::log::ReadLimits::bytes(1 << 20);
                let read = partition.log().read(at, ends.end, limits).await.expect("readable");
                read.slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
                at = read.next_offset;
            }
            bytes
        })
    }

    /// Waits until the followers have what the leader has, durably, and compares byte by byte.
    pub fn assert_equal(&self, partition: u32, nodes: &[u32]) {
        let ends = |node| self.partition(node, partition).log().ends();
        self.until("followers have caught up", || {
            let end = ends(nodes[0]).end;
            nodes.iter().all(|&node| ends(node).durable == end)
        });
        let expected = self.bytes(nodes[0], partition);
        for &node in &nodes[1..] {
            assert!(self.bytes(node, partition) == expected, "node {node} has other bytes");
        }
    }
}

pub fn host_of(node: u32) -> String {
    format!("n{node}")
}

pub fn id(partition: u32) -> TopicPartition {
    TopicPartition { topic: TopicId(1), partition: PartitionId(partition) }
}

pub fn replica(node: u32, partition: u32) -> ReplicaId {
    ReplicaId { node: NodeId(node), log: LogId(u128::from(node) << 32 | u128::from(partition)) }
}

pub fn batch(records: u32, bytes: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new(1 << 20);
    let value = vec![7; bytes];
    for _ in 0..records {
        let record = NewRecord { key: None, value: Some(&value), timestamp: NOW, headers: &[] };
        builder.push(&record).unwrap();
    }
    builder.finish(&BatchFields::default()).unwrap()
}

pub async fn append(partition: &Partition<SimDisk>, records: u32, bytes: usize) -> Offset {
    let produced = partition.produce(&batch(records, bytes), ProduceChecks::default(), || NOW).await;
    produced.expect("appended").end_offset
}
