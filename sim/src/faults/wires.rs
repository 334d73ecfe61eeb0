//! Cuts, slowness and resets, between nodes and towards the coordination service.

use std::rc::Rc;

use super::Faults;
use crate::cluster::Node;
use crate::network::{Machine, Told};

impl Faults {
    fn two_nodes(&self) -> Option<(Machine, Machine)> {
        let count = self.cluster.nodes.len() as u64;
        if count < 2 {
            return None;
        }
        let first = self.handle.random(0..count);
        let second = (first + self.handle.random(1..count)) % count;
        let machine = |index: u64| self.cluster.nodes[index as usize].machine;
        Some((machine(first), machine(second)))
    }

    /// A node is cut off from all others, both ways; clients still reach it.
    pub(super) async fn cut_off(&self) -> bool {
        let node = self.any_node();
        let others: Vec<Machine> = self
            .cluster
            .nodes
            .iter()
            .map(|other| other.machine)
            .filter(|other| *other != node.machine)
            .collect();
        let network = &self.cluster.world.network;
        let with_coordination = self.handle.one_in(2);
        for other in &others {
            network.cut(node.machine, *other);
            network.cut(*other, node.machine);
        }
        if with_coordination {
            self.cut_coordination(&node, false);
        }
        self.hold().await;
        if with_coordination {
            self.heal_coordination(&node);
        }
        for other in &others {
            network.heal(node.machine, *other);
            network.heal(*other, node.machine);
        }
        true
    }

    pub(super) async fn one_way_cut(&self) -> bool {
        let Some((from, to)) = self.two_nodes() else { return false };
        self.cluster.world.network.cut(from, to);
        self.hold().await;
        self.cluster.world.network.heal(from, to);
        true
    }

    pub(super) async fn cut_from_coordination(&self) -> bool {
        let node = if self.handle.one_in(3) {
            self.any_node()
        } else {
            self.any_leader().unwrap_or_else(|| self.any_node())
        };
        self.cut_coordination(&node, self.handle.one_in(3));
        self.hold().await;
        self.heal_coordination(&node);
        true
    }

    fn cut_coordination(&self, node: &Rc<Node>, answers_alone: bool) {
        let coordination = &self.cluster.world.coordination;
        if answers_alone {
            coordination.cut_answers(node.machine);
        } else {
            coordination.cut(node.machine);
        }
        if node.cut_off_since_us.get().is_none() {
            node.cut_off_since_us.set(Some(self.handle.now_us()));
        }
    }

    fn heal_coordination(&self, node: &Rc<Node>) {
        self.cluster.world.coordination.heal(node.machine);
        node.cut_off_since_us.set(None);
    }

    pub(super) async fn session_lost(&self) -> bool {
        let node = self.any_node();
        self.cluster.world.coordination.expire(node.machine);
        self.pause(100, 1_000).await;
        true
    }

    pub(super) async fn quorum_lost(&self) -> bool {
        let coordination = &self.cluster.world.coordination;
        coordination.lose_quorum();
        self.hold().await;
        coordination.restore_quorum();
        true
    }

    pub(super) async fn resets(&self) -> bool {
        for _ in 0..self.handle.random(1..6) {
            let Some((from, to)) = self.two_nodes() else { return false };
            let told = if self.handle.one_in(2) { Told::Both } else { Told::First };
            self.cluster.world.network.reset(from, to, told);
            self.pause(10, 500).await;
        }
        true
    }

    pub(super) async fn slow_links(&self) -> bool {
        let Some((from, to)) = self.two_nodes() else { return false };
        let us = self.handle.random(1_000..400_000);
        self.cluster.world.network.slow(from, to, us);
        self.hold().await;
        self.cluster.world.network.slow(from, to, 0);
        true
    }
}
