//! Processes and machines that end, stand still, or come back otherwise.

use std::rc::Rc;

use corelog_replication::NodeId;

use super::Faults;
use crate::cluster::{Admin, Node};
use crate::disk::{Fault, FaultEffect, FaultKind};

impl Faults {
    pub(super) async fn kill(&self, node: &Rc<Node>) -> bool {
        if !node.is_up() {
            return false;
        }
        node.kill(&self.cluster.world);
        self.pause(20, 4_000).await;
        node.start(&self.cluster.world);
        true
    }

    pub(super) async fn kill_leader(&self) -> bool {
        match self.any_leader() {
            Some(node) => self.kill(&node).await,
            None => false,
        }
    }

    pub(super) async fn kill_controller(&self) -> bool {
        let Some(controller) = self.cluster.state().controller.map(|stored| stored.record.node) else {
            return false;
        };
        self.kill(&self.cluster.node(controller).clone()).await
    }

    pub(super) async fn rolling_restart(&self) -> bool {
        for node in self.cluster.nodes.clone() {
            if !node.is_up() || node.is_paused() {
                continue;
            }
            node.stop(&self.cluster.world).await;
            self.pause(10, 500).await;
            node.start(&self.cluster.world);
            self.pause(500, 2_000).await;
        }
        true
    }

    pub(super) async fn kill_all(&self) -> bool {
        let mut nodes = self.cluster.nodes.clone();
        for node in &nodes {
            node.kill(&self.cluster.world);
            self.pause(0, 30).await;
        }
        self.pause(100, 2_000).await;
        let turn = self.handle.random(0..nodes.len() as u64) as usize;
        nodes.rotate_left(turn);
        for node in &nodes {
            node.start(&self.cluster.world);
            self.pause(0, 1_500).await;
        }
        true
    }

    pub(super) async fn power_loss(&self, node: &Rc<Node>) -> bool {
        node.lose_power(&self.cluster.world);
        self.pause(50, 5_000).await;
        node.power_on(&self.cluster.world);
        self.pause(0, 500).await;
        node.start(&self.cluster.world);
        true
    }

    /// All at once; their disks were slow to sync for a moment before, so that much was under way.
    pub(super) async fn power_loss_of_all(&self) -> bool {
        let world = &self.cluster.world;
        let us = self.handle.random(1_000..300_000);
        for disk in self.cluster.nodes.iter().flat_map(|node| node.disks()) {
            disk.inject(Fault::eio(FaultKind::Sync, "").times(u64::MAX).with(FaultEffect::Delay { us }));
        }
        self.pause(100, 1_500).await;
        for node in &self.cluster.nodes {
            node.lose_power(world);
        }
        self.pause(100, 3_000).await;
        for node in &self.cluster.nodes {
            node.power_on(world);
            node.start(world);
            self.pause(0, 1_000).await;
        }
        true
    }

    pub(super) async fn pause_node(&self) -> bool {
        let node = if self.handle.one_in(3) {
            self.any_node()
        } else {
            self.any_leader().unwrap_or_else(|| self.any_node())
        };
        if !node.is_up() || node.is_paused() {
            return false;
        }
        node.pause(&self.cluster.world);
        self.hold().await;
        node.resume(&self.cluster.world);
        true
    }

    /// Leaders die one after the other, each soon after it was elected.
    pub(super) async fn many_elections(&self) -> bool {
        for _ in 0..self.handle.random(2..5) {
            let Some(node) = self.any_leader() else { continue };
            if self.handle.one_in(3) {
                self.operator.ask(Admin::Rebalance, 1).await;
            } else if node.is_up() {
                node.kill(&self.cluster.world);
                self.pause(10, 200).await;
                node.start(&self.cluster.world);
            }
            self.pause(50, 900).await;
        }
        true
    }

    pub(super) async fn other_shards(&self) -> bool {
        let node = self.any_node();
        node.stop(&self.cluster.world).await;
        node.shards.set(self.handle.random(1..4) as u16);
        self.pause(10, 500).await;
        node.start(&self.cluster.world);
        true
    }

    pub(super) async fn clock_step(&self) -> bool {
        let node = self.any_node();
        let hour_ms = 3_600_000;
        node.clock.step_wall(if self.handle.one_in(2) { hour_ms } else { -hour_ms });
        self.pause(500, 5_000).await;
        true
    }

    /// Whether every partition with a replica on this node has another member in its ISR.
    pub(super) fn others_have_all(&self, node: NodeId) -> bool {
        let state = self.cluster.state();
        state.partitions.values().filter(|stored| stored.record.on_node(node).is_some()).all(|stored| {
            let sound = |member: &&corelog_replication::ReplicaId| {
                member.node != node && !state.faults.contains_key(*member)
            };
            stored.record.isr.iter().any(|member| sound(&member))
        })
    }
}
