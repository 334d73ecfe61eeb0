//! A node of the simulated cluster, across its processes: disks, clock, power.
//!
//! Owns: what survives a process, and the ways in which one ends.
//! Invariant: at most one process of a node runs at a time.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use corelog_replication::stream::StreamOptions;
use corelog_replication::{IsrOptions, NodeId};

use super::SimClusterOptions;
use super::host::MachineClock;
use super::packet::Packet;
use super::process::Process;
use super::recorder::Recorder;
use crate::coordination::SimCoordinationService;
use crate::disk::{Crash, SimDisk, SimDiskOptions};
use crate::executor::Handle;
use crate::network::{Machine, SimNetwork};

/// What all nodes share.
pub struct World {
    /// Outside of all processes.
    pub handle: Handle,
    /// Between them.
    pub network: SimNetwork<Packet>,
    /// Beside them.
    pub coordination: SimCoordinationService,
    /// How they are set up.
    pub options: SimClusterOptions,
    /// What clients see.
    pub recorder: Recorder,
    /// The cluster's name.
    pub cluster_id: Rc<str>,
    /// How often a reader met damage.
    pub damage_met: Cell<u64>,
}

impl World {
    pub(super) fn stream_options(&self) -> StreamOptions {
        StreamOptions {
            credit_bytes: 64 << 10,
            bundle_bytes_max: 16 << 10,
            turn_bytes_max: 4 << 10,
            scrub_bytes_per_second: Some(256 << 10),
            scrub_pause_ms: 5_000,
            catch_up_bytes_per_second: None,
            ..StreamOptions::default()
        }
    }

    pub(super) fn isr_options(&self) -> IsrOptions {
        IsrOptions { lag_max_ms: 3_000, ..IsrOptions::default() }
    }
}

/// A node of the cluster.
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// Where it is in the network.
    pub machine: Machine,
    /// Its clocks.
    pub clock: Rc<MachineClock>,
    /// Shards of its next start.
    pub shards: Cell<u16>,
    /// Number of the present boot of its machine.
    pub boot: Cell<u64>,
    /// Since when the coordination service is out of its reach.
    pub cut_off_since_us: Cell<Option<u64>>,
    disks: RefCell<Vec<SimDisk>>,
    running: RefCell<Option<Running>>,
    is_paused: Cell<bool>,
}

struct Running {
    handle: Handle,
    process: Rc<RefCell<Option<Rc<Process>>>>,
}

impl Node {
    pub(super) fn new(id: NodeId, disks: Vec<SimDisk>, clock: MachineClock, shards: u16) -> Self {
        Self {
            id,
            machine: Machine(id.0),
            clock: Rc::new(clock),
            shards: Cell::new(shards),
            boot: Cell::new(u64::from(id.0) << 32),
            cut_off_since_us: Cell::new(None),
            disks: RefCell::new(disks),
            running: RefCell::new(None),
            is_paused: Cell::new(false),
        }
    }

    /// Its disks, one for each data directory.
    pub fn disks(&self) -> Vec<SimDisk> {
        self.disks.borrow().clone()
    }

    /// Whether a process of it runs, or stands still.
    pub fn is_up(&self) -> bool {
        self.running.borrow().is_some()
    }

    /// Whether its process stands still.
    pub fn is_paused(&self) -> bool {
        self.is_paused.get()
    }

    /// Its process, once that accepts clients.
    pub fn process(&self) -> Option<Rc<Process>> {
        self.running.borrow().as_ref().and_then(|running| running.process.borrow().clone())
    }

    /// Starts a process, if none runs.
    pub fn start(self: &Rc<Self>, world: &Rc<World>) {
        if self.is_up() {
            return;
        }
        let handle = world.handle.new_group();
        world.handle.note(format_args!("node {} starts", self.id));
        let process = Rc::new(RefCell::new(None));
        *self.running.borrow_mut() = Some(Running { handle: handle.clone(), process: process.clone() });
        let (node, world) = (self.clone(), world.clone());
        handle.clone().spawn(async move {
            match Process::start(world.clone(), node.clone(), handle.clone()).await {
                Ok(started) => *process.borrow_mut() = Some(started),
                Err(why) => world.handle.note(format_args!("node {} does not start: {why}", node.id)),
            }
        });
    }

    /// Kill -9, or the end of a clean stop: the kernel goes on, closes its connections, and writes what it was given.
    pub fn kill(&self, world: &World) {
        self.end(world, Crash::Kill);
    }

    /// The machine loses its power, with all that was not synced. It is dark until [`Node::power_on`].
    pub fn lose_power(&self, world: &World) {
        world.network.power_off(self.machine);
        self.end(world, Crash::PowerLoss);
        self.boot.set(self.boot.get() + 1);
    }

    /// The machine has power again; start a process then.
    pub fn power_on(&self, world: &World) {
        world.network.power_on(self.machine);
    }

    fn end(&self, world: &World, crash: Crash) {
        world.handle.note(format_args!("node {} ends: {crash:?}", self.id));
        let running = self.running.borrow_mut().take();
        self.is_paused.set(false);
        let after: Vec<SimDisk> = self.disks.borrow().iter().map(|disk| disk.crash(crash)).collect();
        if let Some(running) = running {
            world.handle.kill_group(running.handle.group());
            running.process.borrow_mut().take();
        }
        // Whatever still holds an end of a connection in memory: the process is gone.
        world.network.end_process(self.machine);
        *self.disks.borrow_mut() = after;
    }

    /// SIGSTOP.
    pub fn pause(&self, world: &World) {
        if let Some(running) = &*self.running.borrow() {
            self.is_paused.set(true);
            world.handle.pause_group(running.handle.group());
        }
    }

    /// SIGCONT.
    pub fn resume(&self, world: &World) {
        if let Some(running) = &*self.running.borrow() {
            self.is_paused.set(false);
            world.handle.resume_group(running.handle.group());
        }
    }

    /// Puts an empty disk in the place of one, while no process runs.
    ///
    /// # Panics
    /// If a process runs.
    pub fn replace_disk(&self, world: &World, dir: usize, options: SimDiskOptions) {
        assert!(!self.is_up(), "disks are replaced while the node is down");
        self.disks.borrow_mut()[dir] = SimDisk::new(world.handle.clone(), options);
    }

    /// Stops the process cleanly; it is gone when this is ready.
    pub async fn stop(&self, world: &World) {
        if self.is_paused() {
            self.resume(world);
        }
        if let Some(process) = self.process() {
            let handle = process.handle.clone();
            handle.spawn(async move { process.stop().await }).await;
        }
        self.kill(world);
    }
}
