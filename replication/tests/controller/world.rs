//! The world of these tests: nodes that come and go, pictures that lag, controllers that overlap, and a judge who looks
//! at every commit.

use std::collections::{BTreeMap, BTreeSet};

use corelog_engine::{LeaderEpoch, LogId, TimestampMs, TopicPartition};
use corelog_replication::cluster::keys::{CONTROLLER, CONTROLLER_EPOCH, Subject};
use corelog_replication::cluster::{
    ClusterState, ControllerEpoch, ControllerRecord, DataDirId, DataDirRecord, Endpoint, FaultKind,
    Incarnation, NodeRecord, PartitionLeader, PartitionRecord, ReplicaFault, ShardRecord, Stored, Suspicion,
};
use corelog_replication::controller::{Controller, ControllerOptions};
use corelog_replication::coordination::{CommitError, Op};
use corelog_replication::{NodeId, ReplicaId};

use super::store::Store;

/// Times short enough for a test's clock.
pub(crate) const OPTIONS: ControllerOptions = ControllerOptions {
    balance_delay_ms: 1_000,
    balance_moves_max: 5,
    balance_round_ms: 100,
    unmade_topic_ms: 5_000,
};

/// Who commits: the judge allows each of them something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Controller,
    Leader,
    Operator,
    /// An operator who gives records up.
    Unclean,
    Node,
}

/// One node as it is, whatever is stored about it.
pub(crate) struct Node {
    pub(crate) incarnation: Option<Incarnation>,
    pub(crate) dir: DataDirId,
    pub(crate) is_stopping: bool,
    /// Logs that were deleted from its disk.
    pub(crate) lost: BTreeSet<LogId>,
}

/// One who may be controller, with its own picture.
pub(crate) struct Candidate {
    pub(crate) picture: ClusterState,
    pub(crate) seen: usize,
    pub(crate) term: Option<Controller>,
}

/// Everything.
pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) now_ms: u64,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) candidates: Vec<Candidate>,
    /// The newest picture.
    pub(crate) newest: ClusterState,
    seen: usize,
    next_id: u128,
    leaders: BTreeMap<(TopicPartition, LeaderEpoch), PartitionLeader>,
    pub(crate) elections: usize,
}

impl World {
    /// A cluster of `nodes` nodes that run, without topics.
    pub(crate) fn new(nodes: u32, candidates: usize) -> Self {
        let candidate = || Candidate { picture: ClusterState::default(), seen: 0, term: None };
        let mut world = Self {
            store: Store::default(),
            now_ms: 0,
            nodes: BTreeMap::new(),
            candidates: (0..candidates).map(|_| candidate()).collect(),
            newest: ClusterState::default(),
            seen: 0,
            next_id: 1_000,
            leaders: BTreeMap::new(),
            elections: 0,
        };
        for number in 1..=nodes {
            let dir = DataDirId(world.id());
            let node = Node { incarnation: None, dir, is_stopping: false, lost: BTreeSet::new() };
            world.nodes.insert(NodeId(number), node);
            world.start(NodeId(number));
        }
        world
    }

    /// A new id.
    pub(crate) fn id(&mut self) -> u128 {
        self.next_id += 1;
        self.next_id
    }

    /// Source of ids for a decision; what it takes is never given again.
    pub(crate) fn ids(&mut self) -> impl FnMut() -> u128 + 'static {
        self.next_id += 100_000;
        let mut next = self.next_id - 100_000;
        move || {
            next += 1;
            next
        }
    }

    /// Commits, if what it does is allowed.
    pub(crate) fn commit(&mut self, by: By, ops: &[Op]) -> Result<(), CommitError> {
        let before = self.newest.clone();
        self.store.commit(ops)?;
        while let Some(event) = self.store.events.get(self.seen) {
            self.newest.apply(event);
            self.seen += 1;
        }
        assert!(self.newest.problems.is_empty(), "{by:?} stored {:?}", self.newest.problems);
        for op in ops {
            if let Some(Subject::Partition(id)) = Subject::parse(op.key()) {
                self.judge(by, id, &before);
            }
        }
        Ok(())
    }

    /// C1 to C3 for one change of one partition.
    fn judge(&mut self, by: By, id: TopicPartition, before: &ClusterState) {
        let Some(new) = self.newest.partitions.get(&id) else { return };
        new.check().expect("C2");
        if let Some(leader) = new.leader {
            let known = self.leaders.entry((id, new.leader_epoch)).or_insert(leader);
            assert_eq!(*known, leader, "C1: two leaders of {id:?} in epoch {}", new.leader_epoch);
        }
        let Some(old) = before.partitions.get(&id) else { return };
        assert!(new.leader_epoch >= old.leader_epoch, "C1: the epoch of {id:?} went back");
        let is_elected = new.leader.is_some() && new.leader != old.leader;
        if is_elected {
            self.elections += 1;
            assert!(new.leader_epoch > old.leader_epoch, "C1: another leader of {id:?} in the same epoch");
        }
        let is_unclean = new.unclean_epoch != old.unclean_epoch;
        assert!(!is_unclean || by == By::Unclean, "C3: {by:?} gave up records of {id:?}");
        if is_unclean {
            return;
        }
        if let Some(leader) = new.leader.filter(|_| is_elected) {
            assert!(old.isr.contains(&leader.replica), "C3: {by:?} elected outside the ISR of {id:?}");
        }
        let has_joined = new.isr.iter().any(|member| !old.isr.contains(member));
        assert!(!has_joined || by == By::Leader, "{by:?} let somebody into the ISR of {id:?}");
    }

    /// Registers a new start of a node, in the place of an older one.
    pub(crate) fn start(&mut self, node: NodeId) {
        let incarnation = Incarnation(u64::try_from(self.id()).expect("few ids"));
        self.stop(node);
        if let Some(node) = self.nodes.get_mut(&node) {
            node.incarnation = Some(incarnation);
            node.is_stopping = false;
        }
        self.register(node);
        self.declare_lost(node);
    }

    /// Stores what is so about a node that runs.
    fn register(&mut self, node: NodeId) {
        let Some((incarnation, state)) = self.nodes.get(&node).and_then(|n| Some((n.incarnation?, n))) else {
            return;
        };
        let endpoint = || Endpoint { host: "n".to_owned(), port: 1 };
        let record = NodeRecord {
            node,
            incarnation,
            started: TimestampMs(0),
            program_version: String::new(),
            rack: String::new(),
            shards: vec![ShardRecord { core: 0, client: endpoint(), replication: endpoint() }; 2],
            data_dirs: vec![DataDirRecord { id: state.dir, free_bytes: 1 << 40 }],
            is_stopping: state.is_stopping,
            http: None,
        };
        self.keep(Subject::Node(node), &record);
    }

    /// The session of a node ends: all that is its own goes.
    pub(crate) fn stop(&mut self, node: NodeId) {
        let mut gone = vec![Subject::Node(node)];
        gone.extend(
            self.newest.faults.keys().filter(|replica| replica.node == node).map(|r| Subject::Fault(*r)),
        );
        let said = self.newest.suspicions.keys().filter(|(by, _)| *by == node);
        gone.extend(said.map(|(by, node)| Subject::Suspicion { by: *by, node: *node }));
        gone.iter().for_each(|subject| self.forget(subject));
        if let Some(node) = self.nodes.get_mut(&node) {
            node.incarnation = None;
        }
    }

    /// A node says that it is about to stop.
    pub(crate) fn begin_stop(&mut self, node: NodeId) {
        if let Some(state) = self.nodes.get_mut(&node) {
            state.is_stopping = state.incarnation.is_some();
        }
        self.register(node);
    }

    /// A node's disk is replaced by an empty one (`is_dir_new`), or its logs are deleted from it, while it is down.
    pub(crate) fn wipe(&mut self, node: NodeId, is_dir_new: bool) {
        self.stop(node);
        let dir = DataDirId(self.id());
        let logs: Vec<LogId> = self.logs_of(node).collect();
        if let Some(state) = self.nodes.get_mut(&node) {
            if is_dir_new {
                state.dir = dir;
            } else {
                state.lost.extend(logs);
            }
        }
    }

    fn logs_of(&self, node: NodeId) -> impl Iterator<Item = LogId> {
        self.newest
            .partitions
            .values()
            .filter_map(move |record| record.on_node(node))
            .map(|replica| replica.log)
    }

    /// A node that runs finds out which logs are gone.
    fn declare_lost(&mut self, node: NodeId) {
        let Some(state) = self.nodes.get(&node).filter(|state| state.incarnation.is_some()) else { return };
        let lost: Vec<LogId> = self.logs_of(node).filter(|log| state.lost.contains(log)).collect();
        for log in lost {
            self.fault(ReplicaId { node, log }, FaultKind::Lost);
        }
    }

    /// A node says something of one of its replicas.
    pub(crate) fn fault(&mut self, replica: ReplicaId, kind: FaultKind) {
        if self.nodes.get(&replica.node).is_some_and(|node| node.incarnation.is_some()) {
            self.keep(Subject::Fault(replica), &ReplicaFault { replica, kind, reason: String::new() });
        }
    }

    /// One node says of another that nobody listens there, or takes it back.
    pub(crate) fn suspect(&mut self, by: NodeId, node: NodeId, is_suspected: bool) {
        let subject = Subject::Suspicion { by, node };
        let Some(incarnation) = self.newest.incarnation(node).filter(|_| is_suspected) else {
            return self.forget(&subject);
        };
        if self.newest.nodes.contains_key(&by) {
            self.keep(subject, &Suspicion { by, node, incarnation });
        }
    }

    /// Stores a key of a node, whatever is there.
    fn keep(&mut self, subject: Subject, record: &impl Stored) {
        self.forget(&subject);
        let op = Op::Create { key: subject.key(), value: record.encode(), is_ephemeral: true };
        self.commit(By::Node, &[op]).expect("the key was free");
    }

    /// Takes a key of a node away, if it is there.
    pub(crate) fn forget(&mut self, subject: &Subject) {
        let key = subject.key();
        if let Some(version) = self.store.version(&key) {
            self.commit(By::Node, &[Op::Delete { key, version }]).expect("it has that version");
        }
    }

    /// A candidate sees up to `events` more of what happened.
    pub(crate) fn see(&mut self, candidate: usize, events: usize) {
        let candidate = &mut self.candidates[candidate];
        for event in self.store.events.iter().skip(candidate.seen).take(events) {
            candidate.picture.apply(event);
            candidate.seen += 1;
        }
    }

    /// A candidate takes the seat, whoever has it.
    pub(crate) fn take_seat(&mut self, candidate: usize) {
        self.see(candidate, usize::MAX);
        let epoch = self.newest.controller_epoch.as_ref().map_or(1, |stored| stored.0 + 1);
        let term = ControllerRecord {
            node: NodeId(u32::try_from(candidate).expect("few candidates")),
            incarnation: Incarnation(1),
            epoch,
        };
        self.forget(&Subject::Controller);
        let key = CONTROLLER_EPOCH.to_owned();
        let value = ControllerEpoch(epoch).encode();
        let number = match &self.newest.controller_epoch {
            Some(stored) => Op::Put { key, value, version: stored.version },
            None => Op::Create { key, value, is_ephemeral: false },
        };
        let seat = Op::Create { key: CONTROLLER.to_owned(), value: term.encode(), is_ephemeral: true };
        self.commit(By::Node, &[seat, number]).expect("the picture is the newest");
        self.see(candidate, usize::MAX);
        let ids = self.ids();
        self.candidates[candidate].term = Some(Controller::new(OPTIONS, term, Box::new(ids)));
    }

    /// A candidate plans on its picture and commits; `lost` says which of the commits never arrive. Returns how many
    /// were planned.
    pub(crate) fn plan(&mut self, candidate: usize, lost: u8) -> usize {
        let now_ms = self.now_ms;
        let Candidate { picture, term, .. } = &mut self.candidates[candidate];
        let Some(term) = term else { return 0 };
        let plan = term.plan(picture, now_ms);
        let stored_epoch = self.newest.controller_epoch.as_ref().map(|stored| stored.version);
        for (at, ops) in plan.iter().enumerate() {
            let Some(Op::Check { key, version }) = ops.first() else { panic!("C4: no check in {ops:?}") };
            assert_eq!(key, CONTROLLER_EPOCH, "C4");
            if lost >> (at % 8) & 1 == 1 {
                continue;
            }
            let is_current = stored_epoch == Some(*version);
            let result = self.commit(By::Controller, ops);
            assert!(is_current || result.is_err(), "C4: a deposed controller has changed something");
        }
        plan.len()
    }

    /// The process that leads a partition by the newest picture, if it still runs.
    pub(crate) fn leader_of(&self, id: TopicPartition) -> Option<(PartitionLeader, PartitionRecord)> {
        let record = self.newest.partitions.get(&id)?;
        let leader = record.leader?;
        let runs = self.nodes.get(&leader.replica.node)?.incarnation == Some(leader.incarnation);
        runs.then(|| (leader, (*record.record).clone()))
    }

    /// Whether a replica could follow and catch up: its node runs and has, or may make, the log.
    pub(crate) fn can_follow(&self, replica: ReplicaId, dir: DataDirId) -> bool {
        let node = &self.nodes[&replica.node];
        node.incarnation.is_some() && node.dir == dir && !node.lost.contains(&replica.log)
    }
}
