//! A cluster in one process: nodes of the real engine and replication code on simulated machines.
//!
//! Owns: the assembly. `node.rs`: what outlives a process; `process.rs`: one start of a node; `keeper.rs`: opening and
//! closing logs; `serve.rs`, `admin.rs`: clients and operators; `host.rs`: clocks and links; `storage.rs`: data
//! directories.
//! Not here: what goes wrong (`crate::faults`), who uses it (`crate::workload`), whether it was right (`crate::checker`).

mod admin;
pub mod batches;
mod host;
mod ids;
mod keeper;
mod node;
mod packet;
mod process;
mod recorder;
mod serve;
mod storage;

use std::cell::Cell;
use std::rc::Rc;

use corelog_replication::NodeId;
use corelog_replication::cluster::ClusterState;
use corelog_replication::controller::ControllerOptions;
use corelog_replication::coordination::Event;

pub use host::MachineClock;
pub use keeper::log_options;
pub use node::{Node, World};
pub use packet::{Admin, Packet, PartitionPlace, Refusal, Request, Response, TopicPlace};
pub use process::Process;
pub use recorder::{Recorder, key};
pub use storage::log_directory;

use crate::coordination::{SimCoordinationOptions, SimCoordinationService};
use crate::disk::{SimDisk, SimDiskOptions};
use crate::executor::Handle;
use crate::network::{SimNetwork, SimNetworkOptions};

/// First port for clients; shard `n` listens at `CLIENT_PORT + n`.
pub const CLIENT_PORT: u16 = 100;

/// First port for replication streams.
pub const REPLICATION_PORT: u16 = 200;

/// How a cluster is set up.
#[derive(Clone, Debug)]
pub struct SimClusterOptions {
    /// Number of nodes, from 1.
    pub nodes: u32,
    /// Data directories of each, each on a disk of its own.
    pub dirs: usize,
    /// How often shards look at the time.
    pub tick_ms: u64,
    /// Of the coordination service.
    pub coordination: SimCoordinationOptions,
    /// Of the network.
    pub network: SimNetworkOptions,
    /// Of the disks.
    pub disk: SimDiskOptions,
    /// Of the controller.
    pub controller: ControllerOptions,
}

/// A cluster whose nodes have not been started.
pub struct SimCluster {
    /// What all share.
    pub world: Rc<World>,
    /// The nodes.
    pub nodes: Vec<Rc<Node>>,
}

impl SimCluster {
    /// A cluster with empty disks.
    pub fn new(handle: &Handle, options: SimClusterOptions) -> Self {
        let world = Rc::new(World {
            handle: handle.clone(),
            network: SimNetwork::new(handle.clone(), options.network.clone()),
            coordination: SimCoordinationService::new(handle.clone(), options.coordination.clone()),
            recorder: Recorder::new(handle.clone()),
            cluster_id: "sim".into(),
            damage_met: Cell::new(0),
            options: options.clone(),
        });
        let node = |number: u32| {
            let disks = (0..options.dirs).map(|_| SimDisk::new(handle.clone(), options.disk.clone()));
            let clock = MachineClock::new(handle.random(990..1_011));
            let shards = handle.random(1..4) as u16;
            Rc::new(Node::new(NodeId(number), disks.collect(), clock, shards))
        };
        let nodes = (1..=options.nodes).map(node).collect();
        Self { world, nodes }
    }

    /// Starts all nodes that do not run.
    pub fn start_all(&self) {
        for node in &self.nodes {
            node.start(&self.world);
        }
    }

    /// What is stored about the cluster now.
    pub fn state(&self) -> ClusterState {
        let mut state = ClusterState::default();
        state.apply(&Event::State { session: 0, entries: self.world.coordination.entries() });
        state
    }

    /// The node with this number.
    ///
    /// # Panics
    /// If there is none.
    pub fn node(&self, id: NodeId) -> &Rc<Node> {
        self.nodes.iter().find(|node| node.id == id).expect("a node of this cluster")
    }

    /// Waits until every node that runs accepts clients and is registered. False: it did not come to that in time.
    pub async fn registered(&self, within_ms: u64) -> bool {
        let until_us = self.world.handle.now_us() + within_ms * 1000;
        while self.world.handle.now_us() < until_us {
            let state = self.state();
            if self.nodes.iter().all(|node| state.nodes.contains_key(&node.id)) {
                return true;
            }
            self.world.handle.sleep(std::time::Duration::from_millis(50)).await;
        }
        false
    }
}
