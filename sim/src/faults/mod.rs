//! What goes wrong in a run: some twenty faults of the fault table, drawn from the seed, each with its end.
//!
//! Owns: which fault strikes when and whom, how long it lasts, and how often each row of the table was struck.
//! Invariant: what destroys stored bytes for good (a wiped disk, bit rot, garbage) strikes one node alone in a run, and
//! only while every partition there has another member in its ISR: no system keeps what every copy has lost.
//! Invariant: every fault ends by itself; afterwards [`Faults::end_all`] leaves nothing behind.

mod disks;
mod nodes;
mod wires;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use corelog_engine::TopicPartition;
use corelog_replication::NodeId;
use corelog_replication::cluster::PartitionRecord;

use crate::cluster::{Admin, Node, SimCluster};
use crate::executor::Handle;
use crate::network::Machine;
use crate::workload::{Operator, TopicPlan};

/// What can go wrong, by the rows of the fault table in "What must hold".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// 1. Kill -9 a leader.
    KillLeader,
    /// 1. Kill -9 any node.
    KillAny,
    /// 2. Clean stops of all nodes in turn.
    RollingRestart,
    /// 3. Kill the controller.
    KillController,
    /// 4. A node is cut off from the others.
    CutOff,
    /// 5. A node is cut off from the coordination service.
    CutFromCoordination,
    /// 6. A cut in one direction.
    OneWayCut,
    /// 7. SIGSTOP and SIGCONT.
    Pause,
    /// 8. Kill all, restart.
    KillAll,
    /// 9 and 15. Power loss of one machine.
    PowerLoss,
    /// 9 and 10. Power loss of all machines.
    PowerLossOfAll,
    /// 11. Elections in quick succession.
    ManyElections,
    /// 11 and 13. Leadership goes back and forth between in-sync replicas that cannot reach each other.
    Flapping,
    /// 12. Answers of the coordination service are lost, sessions end although the node lives.
    SessionLost,
    /// 15. Power loss with garbage behind the tail.
    GarbageBehindTail,
    /// 16. A bit flips in a closed segment.
    BitRot,
    /// 17. Indexes are lost or damaged.
    IndexDamage,
    /// 19. EIO on a write or sync.
    DiskError,
    /// 20. A disk is full.
    DiskFull,
    /// 21 and 22. A disk is slow.
    SlowDisk,
    /// 23. Records are deleted while a replica may be away.
    DeleteRecords,
    /// 27. A topic is deleted and made again.
    RecreateTopic,
    /// 28. A replica moves to another node.
    MoveReplica,
    /// 29. A clock steps by an hour.
    ClockStep,
    /// 30. The coordination service has no quorum.
    QuorumLost,
    /// 31. Connections break, or are half open.
    Resets,
    /// 4. Links are slow.
    SlowLinks,
    /// 2. A node is drained, and taken back.
    Drain,
    /// Replacing a dead disk.
    WipeDisk,
    /// 33. A node restarts with another number of shards.
    OtherShards,
}

/// Every kind, with how often it is drawn.
const WEIGHTS: [(Trouble, u64); 30] = [
    (Trouble::KillLeader, 12),
    (Trouble::KillAny, 6),
    (Trouble::RollingRestart, 3),
    (Trouble::KillController, 5),
    (Trouble::CutOff, 7),
    (Trouble::CutFromCoordination, 7),
    (Trouble::OneWayCut, 8),
    (Trouble::Pause, 8),
    (Trouble::KillAll, 2),
    (Trouble::PowerLoss, 8),
    (Trouble::PowerLossOfAll, 5),
    (Trouble::ManyElections, 5),
    (Trouble::Flapping, 9),
    (Trouble::SessionLost, 6),
    (Trouble::GarbageBehindTail, 2),
    (Trouble::BitRot, 3),
    (Trouble::IndexDamage, 2),
    (Trouble::DiskError, 4),
    (Trouble::DiskFull, 3),
    (Trouble::SlowDisk, 6),
    (Trouble::DeleteRecords, 5),
    (Trouble::RecreateTopic, 2),
    (Trouble::MoveReplica, 4),
    (Trouble::ClockStep, 3),
    (Trouble::QuorumLost, 3),
    (Trouble::Resets, 6),
    (Trouble::SlowLinks, 4),
    (Trouble::Drain, 3),
    (Trouble::WipeDisk, 2),
    (Trouble::OtherShards, 2),
];

/// The faults of one run.
pub struct Faults {
    pub(crate) cluster: Rc<SimCluster>,
    pub(crate) operator: Rc<Operator>,
    pub(crate) handle: Handle,
    /// The node that loses stored bytes, if any does.
    pub(crate) victim: NodeId,
    topics: Vec<TopicPlan>,
    under_way: Cell<usize>,
    has_ended: Cell<bool>,
    counts: RefCell<BTreeMap<Trouble, u64>>,
}

impl Faults {
    /// Faults for a cluster under load.
    pub fn new(cluster: &Rc<SimCluster>, operator: &Rc<Operator>, topics: Vec<TopicPlan>) -> Rc<Self> {
        let handle = cluster.world.handle.clone();
        let victim = cluster.nodes[handle.random(0..cluster.nodes.len() as u64) as usize].id;
        Rc::new(Self {
            cluster: cluster.clone(),
            operator: operator.clone(),
            handle,
            victim,
            topics,
            under_way: Cell::new(0),
            has_ended: Cell::new(false),
            counts: RefCell::default(),
        })
    }

    /// How often each fault has struck.
    pub fn counts(&self) -> BTreeMap<Trouble, u64> {
        self.counts.borrow().clone()
    }

    /// Lets `count` faults strike within `ms`.
    pub async fn strike(self: &Rc<Self>, count: u64, ms: u64) {
        let every_ms = (ms / count.max(1)).max(2);
        for _ in 0..count {
            self.pause(every_ms / 4, every_ms * 7 / 4).await;
            let trouble = self.draw();
            self.begin(trouble);
        }
    }

    /// Begins one fault; it goes on beside others.
    pub fn begin(self: &Rc<Self>, trouble: Trouble) {
        self.under_way.set(self.under_way.get() + 1);
        let faults = self.clone();
        self.handle.spawn(async move {
            faults.handle.note(format_args!("FAULT {trouble:?}"));
            if faults.strike_one(trouble).await {
                *faults.counts.borrow_mut().entry(trouble).or_insert(0) += 1;
            }
            faults.handle.note(format_args!("FAULT {trouble:?} is over"));
            faults.under_way.set(faults.under_way.get() - 1);
        });
    }

    fn draw(&self) -> Trouble {
        let total: u64 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut at = self.handle.random(0..total);
        for (trouble, weight) in WEIGHTS {
            if at < weight {
                return trouble;
            }
            at -= weight;
        }
        Trouble::KillLeader
    }

    /// One fault from its beginning to its end. False: it found nothing to strike.
    async fn strike_one(self: &Rc<Self>, trouble: Trouble) -> bool {
        match trouble {
            Trouble::KillLeader => self.kill_leader().await,
            Trouble::KillAny => self.kill(&self.any_node()).await,
            Trouble::RollingRestart => self.rolling_restart().await,
            Trouble::KillController => self.kill_controller().await,
            Trouble::CutOff => self.cut_off().await,
            Trouble::CutFromCoordination => self.cut_from_coordination().await,
            Trouble::OneWayCut => self.one_way_cut().await,
            Trouble::Pause => self.pause_node().await,
            Trouble::KillAll => self.kill_all().await,
            Trouble::PowerLoss => self.power_loss(&self.any_node()).await,
            Trouble::PowerLossOfAll => self.power_loss_of_all().await,
            Trouble::ManyElections => self.many_elections().await,
            Trouble::Flapping => self.flapping().await,
            Trouble::SessionLost => self.session_lost().await,
            Trouble::GarbageBehindTail => self.garbage_behind_tail().await,
            Trouble::BitRot => self.bit_rot().await,
            Trouble::IndexDamage => self.index_damage().await,
            Trouble::DiskError => self.disk_error().await,
            Trouble::DiskFull => self.disk_full().await,
            Trouble::SlowDisk => self.slow_disk().await,
            Trouble::DeleteRecords => self.delete_records().await,
            Trouble::RecreateTopic => self.recreate_topic().await,
            Trouble::MoveReplica => self.move_replica().await,
            Trouble::ClockStep => self.clock_step().await,
            Trouble::QuorumLost => self.quorum_lost().await,
            Trouble::Resets => self.resets().await,
            Trouble::SlowLinks => self.slow_links().await,
            Trouble::Drain => self.drain().await,
            Trouble::WipeDisk => self.wipe_disk().await,
            Trouble::OtherShards => self.other_shards().await,
        }
    }

    /// Waits until all faults are over, then heals what may be left, and starts all nodes.
    pub async fn end_all(&self) {
        self.has_ended.set(true);
        let until_us = self.handle.now_us() + 30_000_000;
        while self.under_way.get() > 0 && self.handle.now_us() < until_us {
            self.pause(50, 51).await;
        }
        let world = &self.cluster.world;
        world.network.heal_all();
        world.coordination.heal_all();
        for node in &self.cluster.nodes {
            node.cut_off_since_us.set(None);
            node.resume(world);
            node.power_on(world);
            for disk in node.disks() {
                disk.heal();
                disk.set_capacity_bytes(None);
            }
            node.start(world);
        }
    }

    pub(crate) async fn pause(&self, min_ms: u64, max_ms: u64) {
        let ms = self.handle.random(min_ms..max_ms.max(min_ms + 1));
        self.handle.sleep(Duration::from_millis(ms)).await;
    }

    /// A pause of up to twice a session's length.
    pub(crate) async fn hold(&self) {
        let session_ms = self.cluster.world.coordination.options().session_timeout_ms;
        self.pause(100, session_ms * 2 + 500).await;
    }

    pub(crate) fn any_node(&self) -> Rc<Node> {
        let nodes = &self.cluster.nodes;
        nodes[self.handle.random(0..nodes.len() as u64) as usize].clone()
    }

    pub(crate) fn any_partition(&self) -> Option<TopicPartition> {
        let state = self.cluster.state();
        let ids: Vec<TopicPartition> =
            state.partitions.keys().filter(|id| state.topics.contains_key(&id.topic)).copied().collect();
        (!ids.is_empty()).then(|| ids[self.handle.random(0..ids.len() as u64) as usize])
    }

    /// The node that leads some partition.
    pub(crate) fn any_leader(&self) -> Option<Rc<Node>> {
        let state = self.cluster.state();
        let leader = state.partitions.get(&self.any_partition()?)?.record.leader?;
        Some(self.cluster.node(leader.replica.node).clone())
    }

    async fn delete_records(&self) -> bool {
        match self.any_partition() {
            Some(partition) => self.operator.delete_records(partition).await,
            None => false,
        }
    }

    async fn recreate_topic(&self) -> bool {
        let plan = self.topics[self.handle.random(0..self.topics.len() as u64) as usize].clone();
        if !self.operator.ask(Admin::DeleteTopic { name: plan.name.to_owned() }, 5).await {
            return false;
        }
        self.pause(0, 2_000).await;
        // The name may be taken until the old topic is gone.
        self.operator.create(&plan, 20).await
    }

    async fn move_replica(&self) -> bool {
        let Some(partition) = self.any_partition() else { return false };
        let state = self.cluster.state();
        let Some(stored) = state.partitions.get(&partition) else { return false };
        let from =
            stored.record.replicas[self.handle.random(0..stored.record.replicas.len() as u64) as usize].node;
        let elsewhere =
            self.cluster.nodes.iter().map(|node| node.id).find(|id| stored.record.on_node(*id).is_none());
        let change = |node| Admin::RemoveReplica { partition, node };
        match elsewhere {
            Some(to) => {
                self.operator.ask(Admin::AddReplica { partition, node: Some(to) }, 5).await;
                self.pause(100, 2_000).await;
                self.operator.ask(change(from), 5).await
            }
            None => {
                let removed = self.operator.ask(change(from), 3).await;
                self.pause(100, 2_000).await;
                self.operator.ask(Admin::AddReplica { partition, node: Some(from) }, 10).await && removed
            }
        }
    }

    /// Leadership goes back and forth, quickly, between members of one ISR, while links between them are cut or slow: each
    /// leader appends what others do not have, and none of them learns of it in time.
    async fn flapping(&self) -> bool {
        let Some(partition) = self.any_partition() else { return false };
        let mut struck = false;
        let one_alone = self.handle.one_in(2);
        self.operator.workload().focus(Some(partition));
        for _ in 0..self.handle.random(3..9) {
            let state = self.cluster.state();
            let Some(stored) = state.partitions.get(&partition) else { break };
            let Some(leader) = stored.record.leader.map(|leader| leader.replica.node) else { break };
            if stored.record.isr.len() < 2 {
                break;
            }
            let links =
                if one_alone { self.isolate_one(&stored.record) } else { self.spoil_links(&stored.record) };
            self.pause(50, 450).await;
            // Away from here for a moment, and nothing else.
            struck |= self.operator.ask(Admin::Drain { node: leader, is_drained: true }, 1).await;
            self.pause(0, 150).await;
            self.operator.ask(Admin::Drain { node: leader, is_drained: false }, 20).await;
            for (from, to) in links {
                self.cluster.world.network.heal(from, to);
                self.cluster.world.network.slow(from, to, 0);
            }
        }
        self.operator.workload().focus(None);
        struck
    }

    /// Cuts one member of an ISR off from the others, or none; the cut links, for healing.
    fn isolate_one(&self, record: &PartitionRecord) -> Vec<(Machine, Machine)> {
        let at = self.handle.random(0..record.isr.len() as u64 + 1) as usize;
        let Some(alone) = record.isr.get(at) else { return Vec::new() };
        let mut links = Vec::new();
        for other in record.isr.iter().filter(|other| *other != alone) {
            let (a, b) = (Machine(alone.node.0), Machine(other.node.0));
            links.extend([(a, b), (b, a)]);
        }
        for (from, to) in &links {
            self.cluster.world.network.cut(*from, *to);
        }
        links
    }

    /// Cuts or slows some links between the members of an ISR; which, for healing.
    fn spoil_links(&self, record: &PartitionRecord) -> Vec<(Machine, Machine)> {
        let network = &self.cluster.world.network;
        let cut_all = self.handle.one_in(3);
        let mut links = Vec::new();
        for from in &record.isr {
            for to in record.isr.iter().filter(|to| *to != from) {
                let link = (Machine(from.node.0), Machine(to.node.0));
                match self.handle.random(0..6) {
                    0..2 => network.cut(link.0, link.1),
                    2 => network.slow(link.0, link.1, self.handle.random(20_000..400_000)),
                    _ if cut_all => network.cut(link.0, link.1),
                    _ => continue,
                }
                links.push(link);
            }
        }
        links
    }

    async fn drain(&self) -> bool {
        let node = self.any_node().id;
        let is_drained = self.operator.ask(Admin::Drain { node, is_drained: true }, 3).await;
        self.pause(500, 4_000).await;
        self.operator.ask(Admin::Drain { node, is_drained: false }, 20).await;
        is_drained
    }
}
