//! One start of a node: the real engine, replicas, streams and agent, wired as the server wires them.
//!
//! Owns: the start (directories, registration, shards), the loops on timers, the clean stop.
//! Invariant: all its tasks are in one group of the executor: killing the group is kill -9.
//! Not here: opening and closing logs (`keeper.rs`), clients (`serve.rs`), what outlives a process (`node.rs`).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use corelog_engine::buffer::BufferPool;
use corelog_engine::checkpoint::BootId;
use corelog_engine::log::{EngineOptions, LogFailure};
use corelog_engine::{Engine, LogOptions, TopicPartition};
use corelog_replication::agent::{Agent, AgentListener, AgentOptions, Clock};
use corelog_replication::cluster::{
    DataDirId, DataDirRecord, Endpoint, FaultKind, Incarnation, NodeRecord, ReplicaFault, ReplicaRecord,
    ShardRecord,
};
use corelog_replication::coordination::Version;
use corelog_replication::stream::{Host, Identity};
use corelog_replication::{Assignment, Partition, Replicas, Report};

use super::host::{MachineClock, SimHost, SimLink, host_name};
use super::ids::random_id;
use super::node::{Node, World};
use super::packet::Packet;
use super::storage::DataDir;
use super::{CLIENT_PORT, REPLICATION_PORT, keeper, serve};
use crate::coordination::SimCoordination;
use crate::disk::SimDisk;
use crate::executor::Handle;
use crate::network::{Address, Listener};

/// Memory of one shard on one directory.
const POOL_BYTES: usize = 2 << 20;

/// The agent of a simulated node.
pub(super) type SimAgent = Agent<SimCoordination, AgentClock>;

/// The replicas of a simulated shard.
pub(super) type SimReplicas = Replicas<SimDisk, SimHost>;

/// One start of a node.
pub struct Process {
    pub(super) world: Rc<World>,
    pub(super) node: Rc<Node>,
    /// Of the process's group.
    pub(super) handle: Handle,
    pub(super) incarnation: Incarnation,
    pub(super) dirs: Vec<DataDir>,
    pub(super) agent: SimAgent,
    pub(super) shards: Vec<Rc<Shard>>,
    pub(super) is_stopping: Cell<bool>,
    pub(super) removing: RefCell<std::collections::BTreeSet<corelog_replication::cluster::keys::RemovalId>>,
}

/// One shard of it.
pub(super) struct Shard {
    pub(super) number: u16,
    pub(super) host: SimHost,
    pub(super) replicas: SimReplicas,
    pub(super) engines: Vec<(DataDirId, Engine<SimDisk>)>,
    pub(super) slots: RefCell<BTreeMap<TopicPartition, Slot>>,
}

/// A replica that this shard has, or is about to have.
pub(super) struct Slot {
    pub(super) replica: ReplicaRecord,
    pub(super) options: LogOptions,
    pub(super) state: SlotState,
    /// What was last told to the replica.
    pub(super) told: Option<(Assignment, Option<Endpoint>)>,
}

/// How far it is.
#[derive(Clone)]
pub(super) enum SlotState {
    Opening,
    Open(Partition<SimDisk>),
    /// It is tried again then; `None`: never.
    Failed(Option<u64>),
    Leaving,
}

/// The clock of an agent.
#[derive(Clone)]
pub(super) struct AgentClock {
    handle: Handle,
    clock: Rc<MachineClock>,
}

impl Clock for AgentClock {
    fn now_ms(&self) -> u64 {
        self.clock.now_ms(&self.handle)
    }

    async fn sleep(&self, ms: u64) {
        self.clock.sleep(&self.handle, ms).await;
    }
}

/// Takes to the shards what the agent has to say.
struct Listening {
    shards: RefCell<Vec<Rc<Shard>>>,
    world: Rc<World>,
}

impl AgentListener for Listening {
    fn isr_refused(&self, partition: TopicPartition, version: Version) {
        for shard in self.shards.borrow().iter() {
            shard.replicas.isr_refused(partition, version);
        }
    }

    fn store_refused(&self, key: &str, reason: &str) {
        self.world.recorder.complain(format!("the store refused {key}: {reason}"));
    }

    fn replaced(&self, by: &NodeRecord) {
        self.world.recorder.complain(format!("node {} was replaced while it ran", by.node));
    }
}

impl Process {
    /// Starts a process on a machine. Runs in `handle`'s group; ready when it accepts clients.
    ///
    /// Errors: no data directory can be used.
    pub(super) async fn start(world: Rc<World>, node: Rc<Node>, handle: Handle) -> Result<Rc<Self>, String> {
        let incarnation = Incarnation(handle.random(1..u64::MAX));
        let mut dirs = Vec::new();
        for disk in node.disks() {
            match DataDir::open(disk, &handle).await {
                Ok(dir) => dirs.push(dir),
                Err(error) => handle.note(format_args!("node {}: a directory is out: {error}", node.id)),
            }
        }
        if dirs.is_empty() {
            return Err("no data directory can be used".to_owned());
        }
        let listening = Rc::new(Listening { shards: RefCell::default(), world: world.clone() });
        let store = SimCoordination::new(&world.coordination, &handle, node.machine);
        let clock = AgentClock { handle: handle.clone(), clock: node.clock.clone() };
        let registration = registration(&node, incarnation, &dirs, &handle);
        let options = AgentOptions {
            controller: world.options.controller,
            session_timeout_ms: world.coordination.options().session_timeout_ms,
            ..AgentOptions::default()
        };
        let ids = handle.clone();
        let random = Box::new(move || random_id(&ids));
        let agent = Agent::new(store, clock, registration, random, listening.clone(), options);
        let shards: Vec<Rc<Shard>> = (0..node.shards.get())
            .map(|number| start_shard(&world, &node, &handle, number, &dirs, &agent, incarnation))
            .collect();
        listening.shards.borrow_mut().clone_from(&shards);
        let process = Rc::new(Self {
            world,
            node,
            handle: handle.clone(),
            incarnation,
            dirs,
            agent,
            shards,
            is_stopping: Cell::new(false),
            removing: RefCell::default(),
        });
        process.spawn_loops();
        Ok(process)
    }

    /// Which start of its node it is.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The open partitions of all shards, with the disk of each.
    pub fn partitions_with_disks(&self) -> Vec<(Partition<SimDisk>, SimDisk)> {
        let mut found = Vec::new();
        for shard in &self.shards {
            for partition in shard.open_partitions() {
                let disk = partition.log().engine().disk().clone();
                found.push((partition, disk));
            }
        }
        found
    }

    /// Has damage at an offset mended from another replica.
    pub fn mend(&self, id: TopicPartition, offset: corelog_engine::Offset) {
        for shard in self.shards.iter().filter(|shard| shard.partition(id).is_some()) {
            shard.replicas.damaged(id, offset);
        }
    }

    fn spawn_loops(self: &Rc<Self>) {
        let agent = self.agent.clone();
        self.handle.spawn(async move { agent.run().await });
        let keeping = self.clone();
        self.handle.spawn(async move { keeper::keep(keeping).await });
        for shard in &self.shards {
            let listen = |base: u16| {
                let address = Address { machine: self.node.machine, port: base + shard.number };
                self.world.network.listen(address)
            };
            let (peers, clients) = (listen(REPLICATION_PORT), listen(CLIENT_PORT));
            self.handle.spawn(accept_peers(shard.clone(), peers));
            self.handle.spawn(serve::accept_clients(self.clone(), shard.clone(), clients));
            let (process, ticking) = (self.clone(), shard.clone());
            self.handle.spawn(async move { process.tick(ticking).await });
        }
    }

    /// What a shard does on a timer.
    async fn tick(self: Rc<Self>, shard: Rc<Shard>) {
        let every_ms = self.world.options.tick_ms;
        let mut round = 0;
        loop {
            shard.host.sleep(every_ms).await;
            shard.replicas.tick();
            round += 1;
            let now = shard.host.wall();
            for partition in shard.open_partitions() {
                partition.log().flush_if_due(now);
                if let Some(LogFailure::Poisoned { reason, .. }) = partition.failure() {
                    let replica = partition.me();
                    self.agent.fault(&ReplicaFault { replica, kind: FaultKind::Failed, reason });
                }
                if round % 16 == 0 {
                    // A failed device is found by the next write.
                    let _ = partition.log().apply_retention(now).await;
                }
            }
        }
    }

    fn note_stop(&self, what: &str) {
        self.handle.note(format_args!("node {} stops: {what}", self.node.id));
    }

    /// Stops as on SIGTERM: leadership leaves, logs are closed, the registration goes.
    pub(super) async fn stop(self: &Rc<Self>) {
        self.agent.begin_stop();
        let patience_us = self.handle.now_us() + 5_000_000;
        while self.agent.leads_what_others_could() && self.handle.now_us() < patience_us {
            self.handle.sleep(Duration::from_millis(20)).await;
        }
        self.is_stopping.set(true);
        for shard in &self.shards {
            self.note_stop("leaves its leaders");
            shard.replicas.leave().await;
            self.note_stop("ends its streams");
            shard.replicas.stop();
            shard.replicas.stopped().await;
        }
        self.note_stop("closes its logs");
        let mut all_closed = true;
        for shard in &self.shards {
            for partition in shard.open_partitions() {
                all_closed &= partition.log().close().await.is_ok();
            }
        }
        if all_closed {
            for dir in &self.dirs {
                // Without the sign the next start looks at all: nothing is lost.
                let _ = dir.note_clean().await;
            }
        }
        let leaving = self.agent.clone();
        let patience = self.handle.sleep(Duration::from_secs(5));
        futures_util::future::select(Box::pin(async move { leaving.leave().await }), Box::pin(patience))
            .await;
    }
}

impl Shard {
    pub(super) fn open_partitions(&self) -> Vec<Partition<SimDisk>> {
        let slots = self.slots.borrow();
        let open = slots.values().filter_map(|slot| match &slot.state {
            SlotState::Open(partition) => Some(partition.clone()),
            SlotState::Opening | SlotState::Failed(_) | SlotState::Leaving => None,
        });
        open.collect()
    }

    pub(super) fn partition(&self, id: TopicPartition) -> Option<Partition<SimDisk>> {
        match &self.slots.borrow().get(&id)?.state {
            SlotState::Open(partition) => Some(partition.clone()),
            SlotState::Opening | SlotState::Failed(_) | SlotState::Leaving => None,
        }
    }

    pub(super) fn engine(&self, dir: DataDirId) -> Option<&Engine<SimDisk>> {
        self.engines.iter().find(|(id, _)| *id == dir).map(|(_, engine)| engine)
    }
}

fn registration(node: &Node, incarnation: Incarnation, dirs: &[DataDir], handle: &Handle) -> NodeRecord {
    let endpoint = |base: u16, number: u16| Endpoint { host: host_name(node.machine), port: base + number };
    let shards = (0..node.shards.get()).map(|number| ShardRecord {
        core: number,
        client: endpoint(CLIENT_PORT, number),
        replication: endpoint(REPLICATION_PORT, number),
    });
    NodeRecord {
        node: node.id,
        incarnation,
        started: node.clock.wall(handle),
        program_version: "sim".to_owned(),
        rack: String::new(),
        shards: shards.collect(),
        data_dirs: dirs.iter().map(|dir| DataDirRecord { id: dir.id(), free_bytes: 1 << 30 }).collect(),
        is_stopping: false,
        http: None,
    }
}

fn start_shard(
    world: &Rc<World>,
    node: &Rc<Node>,
    handle: &Handle,
    number: u16,
    dirs: &[DataDir],
    agent: &SimAgent,
    incarnation: Incarnation,
) -> Rc<Shard> {
    let boot_id = Some(BootId(u128::from(node.boot.get())));
    let engines = dirs.iter().map(|dir| {
        let options = EngineOptions {
            commit_depth_max: 8,
            write_ahead_bytes_max: 256 << 10,
            write_ahead_total_bytes_max: 2 << 20,
            checkpoint_bytes: 32 << 10,
            index_interval_bytes: 4 << 10,
            cold_read_bytes: 16 << 10,
            boot_id,
            ..EngineOptions::default()
        };
        let engine = Engine::new(dir.disk().clone(), BufferPool::new(POOL_BYTES), options);
        handle.spawn(engine.drive_commits());
        handle.spawn(engine.drive_background());
        (dir.id(), engine)
    });
    let engines = engines.collect();
    let (reporting, trace) = (agent.clone(), handle.clone());
    let report = move |report: Report| {
        trace.note(format_args!("report {report:?}"));
        reporting.report(report);
    };
    let host = SimHost::new(handle.clone(), node.machine, node.clock.clone(), world.network.clone(), report);
    let me = Identity { cluster_id: world.cluster_id.clone(), node: node.id, shard: number, incarnation };
    let replicas = Replicas::new(host.clone(), me, world.stream_options());
    Rc::new(Shard { number, host, replicas, engines, slots: RefCell::default() })
}

async fn accept_peers(shard: Rc<Shard>, listener: Listener<Packet>) {
    loop {
        let connection = listener.accept().await;
        shard.replicas.accept(SimLink::new(connection));
    }
}
