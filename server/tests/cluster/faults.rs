//! What happens to the cluster: faults drawn from a seed, laid over each other now and then, and undone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::Rng;
use rand_pcg::Pcg64Mcg;

use super::cluster::{Cluster, NODES, SESSION, ZOOKEEPER, host};
use super::network::HostId;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    KillLeader,
    KillFollower,
    KillController,
    /// Killed, and started again at once.
    Crash,
    /// SIGSTOP for longer than the session, then SIGCONT.
    PauseLeader,
    PauseAny,
    CutPair,
    CutOneWay,
    CutFromZookeeper,
    /// A node and ZooKeeper and the other nodes; clients reach it.
    CutFromCluster,
    /// A node's clients do not reach it.
    CutFromClients,
    ZookeeperKilled,
    /// For less than the session.
    ZookeeperBlip,
    DiskFull,
    DiskSlow,
    ClockStep,
    Restart,
    RollingRestart,
    KillAll,
}

use Fault::*;

/// All of them, each as often as it stands here.
const ALL: &[Fault] = &[
    KillLeader,
    KillLeader,
    KillFollower,
    KillController,
    Crash,
    PauseLeader,
    PauseAny,
    CutPair,
    CutOneWay,
    CutOneWay,
    CutFromZookeeper,
    CutFromCluster,
    CutFromClients,
    ZookeeperKilled,
    ZookeeperBlip,
    DiskFull,
    DiskSlow,
    ClockStep,
    Restart,
    RollingRestart,
    KillAll,
];

/// One in so many faults comes on top of another one.
const OVERLAID_ONE_IN: u32 = 4;
const TOPIC: &str = super::workload::COMMIT;

/// Does them.
pub(crate) struct Faults {
    random: Pcg64Mcg,
    /// Each kind once in random order, then anew: a short run has different ones.
    left: Vec<Fault>,
    counts: BTreeMap<Fault, u32>,
    is_quiet: bool,
    began: Instant,
}

impl Faults {
    pub(crate) fn new(random: Pcg64Mcg, began: Instant, is_quiet: bool) -> Self {
        Self { random, left: Vec::new(), counts: BTreeMap::new(), is_quiet, began }
    }

    /// How many of each kind there were.
    pub(crate) fn counts(&self) -> &BTreeMap<Fault, u32> {
        &self.counts
    }

    /// One fault, perhaps another one on top, and the healing.
    pub(crate) fn round(&mut self, cluster: &mut Cluster) {
        let first = self.draw(cluster);
        self.inject(first, cluster);
        if self.random.random_ratio(1, OVERLAID_ONE_IN) {
            self.rest(cluster, 100..1_500);
            let second = self.draw(cluster);
            self.inject(second, cluster);
        }
        let session_ms = SESSION.as_millis() as u64;
        if self.random.random_ratio(1, 4) {
            self.rest(cluster, 50..session_ms);
        } else {
            self.rest(cluster, session_ms..session_ms * 4);
        }
        cluster.look_after(true);
        cluster.heal();
        self.tell("healed");
        self.rest(cluster, 200..5_000);
    }

    fn draw(&mut self, cluster: &Cluster) -> Fault {
        loop {
            if self.left.is_empty() {
                self.left = ALL.to_vec();
            }
            let fault = self.left.swap_remove(self.random.random_range(0..self.left.len()));
            match fault {
                DiskFull | DiskSlow if !cluster.has_disks() => {}
                ClockStep if !cluster.has_clocks() => {}
                fault => return fault,
            }
        }
    }

    fn rest(&mut self, cluster: &mut Cluster, milliseconds: std::ops::Range<u64>) {
        let until = Instant::now() + Duration::from_millis(self.random.random_range(milliseconds));
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
            // A node whose disk is full, or that starts while ZooKeeper is down, may give up.
            cluster.look_after(true);
        }
    }

    fn any(&mut self) -> u32 {
        self.random.random_range(1..=NODES)
    }

    fn leader(&mut self, cluster: &Cluster) -> u32 {
        let partition = self.random.random_range(0..2);
        let known = cluster.shared.view().leader(TOPIC, partition);
        known.unwrap_or_else(|| self.any())
    }

    /// One that the node is not.
    fn other(&mut self, node: u32) -> u32 {
        (node + self.random.random_range(0..NODES - 1)) % NODES + 1
    }

    fn tell(&self, what: &str) {
        if !self.is_quiet {
            eprintln!("{:>7.1} s  {what}", self.began.elapsed().as_secs_f64());
        }
    }

    fn inject(&mut self, fault: Fault, cluster: &mut Cluster) {
        *self.counts.entry(fault).or_default() += 1;
        let leader = self.leader(cluster);
        let node = match fault {
            KillLeader | PauseLeader | CutFromZookeeper | CutFromCluster => leader,
            KillFollower => self.other(leader),
            KillController => cluster.shared.view().controller.unwrap_or(leader),
            _ => self.any(),
        };
        self.tell(&format!("{fault:?} node {node} (leader: {leader})"));
        match fault {
            KillLeader | KillFollower | KillController => cluster.kill(node),
            Crash => {
                cluster.kill(node);
                cluster.start_node(node);
            }
            PauseLeader | PauseAny => cluster.pause(node),
            CutPair => {
                let other = self.other(node);
                cluster.cut(host(node), host(other));
                cluster.cut(host(other), host(node));
            }
            CutOneWay => {
                let to = [host(self.other(node)), ZOOKEEPER][usize::from(self.random.random_ratio(1, 3))];
                if self.random.random_ratio(1, 2) {
                    cluster.cut(host(node), to);
                } else {
                    cluster.cut(to, host(node));
                }
            }
            CutFromZookeeper => isolate(cluster, node, &[ZOOKEEPER]),
            CutFromCluster => {
                let others: Vec<HostId> = (1..=NODES).filter(|other| *other != node).map(host).collect();
                isolate(cluster, node, &[&others[..], &[ZOOKEEPER]].concat());
            }
            CutFromClients => isolate(cluster, node, &[HostId::CLIENTS]),
            ZookeeperKilled => cluster.kill_zookeeper(),
            ZookeeperBlip => {
                cluster.kill_zookeeper();
                std::thread::sleep(Duration::from_millis(self.random.random_range(100..1_000)));
                cluster.restore_zookeeper();
            }
            DiskFull => cluster.fill_disk(node),
            DiskSlow => cluster.slow_disk(node),
            ClockStep => {
                let hours = self.random.random_range(1..3);
                let sign = if self.random.random_ratio(1, 2) { 1 } else { -1 };
                cluster.step_clock(node, sign * hours * 3_600);
            }
            Restart => restart(cluster, node),
            RollingRestart => (1..=NODES).for_each(|node| restart(cluster, node)),
            KillAll => (1..=NODES).for_each(|node| cluster.kill(node)),
        }
    }
}

fn isolate(cluster: &Cluster, node: u32, from: &[HostId]) {
    for other in from {
        cluster.cut(host(node), *other);
        cluster.cut(*other, host(node));
    }
}

fn restart(cluster: &mut Cluster, node: u32) {
    if cluster.is_running(node) {
        cluster.stop(node);
    }
    cluster.start_node(node);
}
