//! Three nodes and a ZooKeeper, each in a namespace of its own, and everything that can be done to them.
//!
//! Owns: the processes. Runs on a thread of its own, which may block; what others must know is in [`Shared`].
//! Invariant: [`Cluster::heal`] undoes every fault, so that faults can be laid over each other.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::clock::{self, Clock};
use super::disk::{self, NodeDisk};
use super::network::{HostId, Network};
use super::view::View;
use super::zookeeper::{Ensemble, EnsembleOptions};

/// How many nodes.
pub(crate) const NODES: u32 = 3;
/// Where ZooKeeper runs.
pub(crate) const ZOOKEEPER: HostId = HostId(100);
/// Port of a node's first shard.
const PORT: u16 = 9700;
/// How long a clean stop may take on a busy machine.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// Of the nodes; silence shorter than this is no failure.
pub(crate) const SESSION: Duration = Duration::from_secs(2);

/// What other threads see of the cluster.
pub(crate) struct Shared {
    /// How often each node was started: a connection made after a start is to that process or a later one.
    starts: [AtomicU64; NODES as usize],
    /// What the nodes say, looked up all the time.
    pub(crate) view: Mutex<View>,
}

impl Shared {
    pub(crate) fn starts(&self, node: u32) -> u64 {
        self.starts[index(node)].load(Ordering::SeqCst)
    }

    pub(crate) fn view(&self) -> View {
        self.view.lock().expect("nobody panics").clone()
    }
}

/// Address of a node's shard, for clients.
pub(crate) fn address(node: u32, shard: u16) -> SocketAddr {
    let address = format!("{}:{}", host(node).address(), PORT + shard);
    address.parse().expect("an address")
}

/// Addresses of the first shards of all nodes.
pub(crate) fn addresses() -> Vec<String> {
    (1..=NODES).map(|node| address(node, 0).to_string()).collect()
}

pub(crate) fn host(node: u32) -> HostId {
    HostId(u8::try_from(node).expect("few nodes"))
}

fn index(node: u32) -> usize {
    node as usize - 1
}

struct Node {
    number: u32,
    child: Option<Child>,
    is_paused: bool,
    log: PathBuf,
    disk: NodeDisk,
    clock: Option<Clock>,
}

/// All of it. Dropping it ends the processes.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    zookeeper: Ensemble,
    zookeeper_runs: bool,
    network: Network,
    cores: [&'static str; NODES as usize],
    pub(crate) shared: Arc<Shared>,
    /// What went wrong with processes: one line each.
    pub(crate) problems: Vec<String>,
    /// Worst of what the nodes took.
    pub(crate) resources: Resources,
}

/// The most that any node had at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resources {
    pub(crate) memory_bytes: u64,
    pub(crate) descriptors: usize,
}

impl Cluster {
    /// Moves the calling thread into namespaces of its own and starts everything there, files below `dir`.
    ///
    /// Errors: no namespaces (not root).
    pub(crate) fn start(dir: &Path, cores: [&'static str; NODES as usize]) -> io::Result<Self> {
        disk::separate_mounts()?;
        let hosts: Vec<HostId> = (1..=NODES).map(host).chain([ZOOKEEPER]).collect();
        let network = Network::new(&hosts)?;
        let place = (ZOOKEEPER.address().parse().expect("an address"), network.launcher(ZOOKEEPER));
        let options = EnsembleOptions { place: Some(place), ..EnsembleOptions::default() };
        let zookeeper = Ensemble::start_with(1, &options);
        let library = clock::library(dir);
        let nodes = (1..=NODES).map(|number| Node {
            number,
            child: None,
            is_paused: false,
            log: dir.join(format!("node-{number}.log")),
            disk: NodeDisk::new(dir, &format!("node-{number}")),
            clock: library.clone().map(|library| Clock::new(library, dir.join(format!("clock-{number}")))),
        });
        let mut cluster = Self {
            nodes: nodes.collect(),
            zookeeper,
            zookeeper_runs: true,
            network,
            cores,
            shared: Arc::new(Shared { starts: Default::default(), view: Mutex::default() }),
            problems: Vec::new(),
            resources: Resources::default(),
        };
        for node in 1..=NODES {
            cluster.start_node(node);
        }
        Ok(cluster)
    }

    /// Whether disks can be filled and slowed down.
    pub(crate) fn has_disks(&self) -> bool {
        self.nodes.iter().all(|node| node.disk.is_own())
    }

    /// Whether clocks can be set.
    pub(crate) fn has_clocks(&self) -> bool {
        self.nodes.iter().all(|node| node.clock.is_some())
    }

    pub(crate) fn is_running(&self, node: u32) -> bool {
        self.nodes[index(node)].child.is_some()
    }

    pub(crate) fn data(&self, node: u32) -> PathBuf {
        self.nodes[index(node)].disk.data()
    }

    /// Starts a node that is down; does not wait until it is ready, which it is only with ZooKeeper.
    pub(crate) fn start_node(&mut self, number: u32) {
        let node = &mut self.nodes[index(number)];
        assert!(node.child.is_none(), "node {number} runs");
        let log = std::fs::File::options().create(true).append(true).open(&node.log).expect("a log file");
        let mut command = self.network.command(host(number), env!("CARGO_BIN_EXE_corelog"));
        command.arg("serve");
        let ip = host(number).address();
        let settings = [
            ("NODE_ID", number.to_string()),
            ("LISTEN_ADDRESS", format!("{ip}:{PORT}")),
            ("LISTEN_INSECURE", "true".to_owned()),
            ("REPLICATION_ADDRESS", format!("{ip}:9800")),
            ("REPLICATION_INSECURE", "true".to_owned()),
            ("REPLICATION_LAG_MAX", "3s".to_owned()),
            ("HTTP_ENABLED", "false".to_owned()),
            ("DATA_DIRS", node.disk.data().display().to_string()),
            ("DATA_FREE_BYTES_MIN", "64MiB".to_owned()),
            ("CORES_DATA", self.cores[index(number)].to_owned()),
            ("MEMORY_PER_SHARD", "64MiB".to_owned()),
            ("ZOOKEEPER_CONNECT", self.zookeeper.connect()),
            ("ZOOKEEPER_SESSION_TIMEOUT", format!("{}ms", SESSION.as_millis())),
            ("CONTROLLER_BALANCE_DELAY", "4s".to_owned()),
            ("LOG_LEVEL", std::env::var("CORELOG_LOG_LEVEL").unwrap_or_else(|_| "info".to_owned())),
        ];
        for (name, value) in settings {
            command.env(format!("CORELOG_{name}"), value);
        }
        command.env("RUST_BACKTRACE", "1");
        if let Some(clock) = &node.clock {
            clock.give(&mut command);
        }
        self.shared.starts[index(number)].fetch_add(1, Ordering::SeqCst);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("cloned")).stderr(log);
        node.child = Some(command.spawn().expect("it starts"));
    }

    /// SIGKILL. A node that is down already stays so.
    pub(crate) fn kill(&mut self, number: u32) {
        self.thaw(number);
        let node = &mut self.nodes[index(number)];
        if let Some(mut child) = node.child.take() {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        node.is_paused = false;
    }

    /// SIGTERM, and how long it took; a node that does not stop is killed, and that is a problem.
    pub(crate) fn stop(&mut self, number: u32) -> Duration {
        let began = Instant::now();
        self.resume(number);
        self.signal(number, libc::SIGTERM);
        match self.wait_for(number, STOP_PATIENCE) {
            Some(status) if status.success() => {}
            Some(status) => self.problems.push(format!("node {number} stopped with {status}")),
            None if self.is_running(number) => {
                self.problems.push(format!("node {number} did not stop within {STOP_PATIENCE:?}"));
                self.kill(number);
            }
            None => {}
        }
        began.elapsed()
    }

    fn wait_for(&mut self, number: u32, patience: Duration) -> Option<ExitStatus> {
        let began = Instant::now();
        let child = &mut self.nodes[index(number)].child;
        while began.elapsed() < patience {
            if let Some(status) = child.as_mut()?.try_wait().expect("waited for") {
                *child = None;
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// SIGSTOP: its connections stay open, and nobody answers.
    pub(crate) fn pause(&mut self, number: u32) {
        self.signal(number, libc::SIGSTOP);
        self.nodes[index(number)].is_paused = true;
    }

    /// SIGCONT.
    pub(crate) fn resume(&mut self, number: u32) {
        if std::mem::take(&mut self.nodes[index(number)].is_paused) {
            self.signal(number, libc::SIGCONT);
        }
    }

    fn signal(&self, number: u32, signal: libc::c_int) {
        let Some(child) = &self.nodes[index(number)].child else { return };
        let pid = libc::pid_t::try_from(child.id()).expect("a process id");
        // SAFETY: no memory is involved; the child has not been waited for, so the id is still its own.
        unsafe { libc::kill(pid, signal) };
    }

    /// What `from` sends does not arrive at `to`.
    pub(crate) fn cut(&self, from: HostId, to: HostId) {
        self.network.cut(from, to);
    }

    pub(crate) fn kill_zookeeper(&mut self) {
        self.zookeeper.kill(0);
        self.zookeeper_runs = false;
    }

    pub(crate) fn restore_zookeeper(&mut self) {
        if !std::mem::replace(&mut self.zookeeper_runs, true) {
            self.zookeeper.restart(0);
        }
    }

    pub(crate) fn fill_disk(&self, node: u32) {
        self.nodes[index(node)].disk.fill();
    }

    pub(crate) fn slow_disk(&mut self, node: u32) {
        self.nodes[index(node)].disk.slow_down();
    }

    fn thaw(&mut self, node: u32) {
        self.nodes[index(node)].disk.speed_up();
    }

    pub(crate) fn step_clock(&self, node: u32, ahead_s: i64) {
        if let Some(clock) = &self.nodes[index(node)].clock {
            clock.step_to(ahead_s);
        }
    }

    /// Undoes every fault: all run, reach each other, and have working disks and right clocks.
    pub(crate) fn heal(&mut self) {
        self.network.heal();
        for node in 1..=NODES {
            self.thaw(node);
            self.nodes[index(node)].disk.empty();
            self.step_clock(node, 0);
            self.resume(node);
        }
        self.restore_zookeeper();
        for node in 1..=NODES {
            if !self.is_running(node) {
                self.start_node(node);
            }
        }
    }

    /// Looks after the processes: what has ended by itself is a problem (and stays down until the next heal), unless
    /// it `may_end`.
    pub(crate) fn look_after(&mut self, may_end: bool) {
        for node in &mut self.nodes {
            let Some(child) = &mut node.child else { continue };
            if let Some(status) = child.try_wait().expect("waited for") {
                node.child = None;
                if !may_end || status.code().is_none() {
                    self.problems.push(format!("node {} ended by itself: {status}", node.number));
                }
                continue;
            }
            let pid = child.id();
            self.resources.memory_bytes = self.resources.memory_bytes.max(memory_bytes(pid));
            self.resources.descriptors = self.resources.descriptors.max(descriptors(pid));
        }
    }

    /// Lines of the nodes' logs that say that something is wrong with the program itself.
    pub(crate) fn alarms(&self) -> Vec<String> {
        let mut found = Vec::new();
        for node in &self.nodes {
            let log = std::fs::read_to_string(&node.log).unwrap_or_default();
            let lines = log.lines().filter(|line| line.contains("panicked at") || line.contains("assertion"));
            found.extend(lines.take(3).map(|line| format!("node {}: {line}", node.number)));
        }
        found
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in 1..=NODES {
            self.kill(node);
        }
    }
}

fn memory_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
