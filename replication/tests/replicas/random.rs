//! Three replicas under random elections, crashes, cuts and lost messages, from a seed.
//!
//! Setup: the test is coordination service, controller, network and clients at once, and takes one small step after
//! the other: somebody is told, asks, copies a batch, reports late, dies. Then everything heals.
//! What must never happen: an acked record is missing at its offset in the end, a record that was read is another one
//! later, the logs differ after healing. With a bug planted (feature `canary`), one of these must happen soon.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use corelog_engine::log::FlushPolicy::Commit;
use corelog_engine::log::ReadLimits;
use corelog_engine::{LeaderEpoch, Offset};
use corelog_replication::coordination::Version;
use corelog_replication::{
    Ack, Assignment, ConnectionId, CurrentRole, FollowAnswer, FollowRequest, IsrOptions, LeaderTerm,
    ReplicaEnds, Role,
};
use corelog_sim::{Crash, Executor, Handle};
use futures_util::future::{Either, select};

use crate::by_hand::{ID, NOW, Node, replica, replicas};

/// Steps of one run: some thirty elections and fifteen crashes.
const STEPS: u64 = 1_500;

/// Runs of the ordinary test.
const SEEDS: u64 = 60;

const NODES: [u32; 3] = [1, 2, 3];

/// What the coordination service has stored.
struct Stored {
    leader: u32,
    /// Start of the leader's process.
    incarnation: u64,
    epoch: u32,
    isr: Vec<u32>,
    version: i64,
}

/// Where a follower stands with its leader.
enum Stream {
    Idle,
    Asked(FollowRequest),
    Answered(FollowAnswer),
    Copying,
}

/// A report on its way: late, or twice.
#[derive(Clone, Copy)]
struct LateReport {
    to: u32,
    incarnation: u64,
    connection: ConnectionId,
    from: u32,
    epoch: LeaderEpoch,
    ends: ReplicaEnds,
}

struct Process {
    node: Node,
    is_up: bool,
    incarnation: u64,
    stream: Stream,
    connection: ConnectionId,
}

struct World {
    random: Handle,
    now_ms: u64,
    processes: BTreeMap<u32, Process>,
    stored: Stored,
    late: Vec<LateReport>,
    connection_next: u64,
    records: u64,
    /// Offset and text of every record that was acked.
    acked: Rc<RefCell<Vec<(u64, String)>>>,
    /// What was read, by offset.
    seen: BTreeMap<u64, String>,
    executor: Rc<Executor>,
}

/// What went wrong.
type Finding = String;

impl World {
    async fn new(executor: Rc<Executor>) -> Self {
        let mut processes = BTreeMap::new();
        for number in NODES {
            let node = Node::new(&executor, number, Commit).await;
            let (stream, connection) = (Stream::Idle, ConnectionId(0));
            processes.insert(number, Process { node, is_up: true, incarnation: 1, stream, connection });
        }
        let stored = Stored { leader: 1, incarnation: 1, epoch: 1, isr: NODES.to_vec(), version: 1 };
        let random = executor.handle();
        Self {
            random,
            now_ms: 0,
            processes,
            stored,
            late: Vec::new(),
            connection_next: 1,
            records: 0,
            acked: Rc::default(),
            seen: BTreeMap::new(),
            executor,
        }
    }

    fn any(&self) -> u32 {
        1 + u32::try_from(self.random.random(0..3)).unwrap()
    }

    fn process(&mut self, number: u32) -> &mut Process {
        self.processes.get_mut(&number).unwrap()
    }

    fn next_connection(&mut self) -> ConnectionId {
        self.connection_next += 1;
        ConnectionId(self.connection_next)
    }

    async fn step(&mut self) -> Result<(), Finding> {
        self.now_ms += self.random.random(0..60);
        let number = self.any();
        match self.random.random(0..100) {
            0..12 => self.produce(number).await,
            12..64 => self.follow(number).await,
            64..78 => self.deliver_late(),
            78..86 => self.tell(number),
            86..90 => self.tick(number),
            90..92 => self.elect(),
            92..93 => self.die(number),
            93..95 => self.start(number).await,
            95..97 => self.read(number).await?,
            _ => self.random.sleep(Duration::from_micros(self.random.random(0..400))).await,
        }
        Ok(())
    }

    async fn produce(&mut self, number: u32) {
        self.records += 1;
        let text = format!("r{}", self.records);
        let acked = self.acked.clone();
        let executor = self.executor.clone();
        let process = self.process(number);
        if !process.is_up || process.node.partition.role() != CurrentRole::Leading {
            return;
        }
        let Ok(produced) = process.node.produce(&text).await else { return };
        let wait = process.node.partition.acked(Ack::All, produced.end_offset).unwrap();
        executor.spawn(async move {
            if wait.await.is_ok() {
                acked.borrow_mut().push((produced.base_offset.0, text));
            }
        });
    }

    /// One step of a follower's stream.
    async fn follow(&mut self, number: u32) {
        let CurrentRole::Following(leader) = self.process(number).node.partition.role() else { return };
        if !self.process(number).is_up {
            return;
        }
        let leader = leader.node.0;
        let epoch = self.process(number).node.partition.leader_epoch();
        let is_cut_off = self.random.one_in(40) || !self.process(leader).is_up;
        if is_cut_off {
            self.disconnect(number, leader, epoch);
            return;
        }
        let patience = self.random.sleep(Duration::from_micros(self.random.random(1..3_000)));
        let stream = std::mem::replace(&mut self.process(number).stream, Stream::Idle);
        let partition = self.process(number).node.partition.clone();
        let next = match stream {
            Stream::Idle => partition.ask(epoch).await.map_or(Stream::Idle, Stream::Asked),
            Stream::Asked(request) => {
                let connection = self.process(number).connection;
                let answer = self.process(leader).node.partition.follow(connection, &request);
                answer.map_or(Stream::Idle, Stream::Answered)
            }
            Stream::Answered(answer) => {
                let answering = Box::pin(partition.answered(epoch, &answer));
                match select(answering, Box::pin(patience)).await {
                    Either::Left((Ok(true), _)) => Stream::Copying,
                    // A cut, an error, or the fetcher gave up in the middle.
                    _ => Stream::Idle,
                }
            }
            Stream::Copying => self.copy(number, leader, epoch).await,
        };
        self.process(number).stream = next;
    }

    fn disconnect(&mut self, number: u32, leader: u32, epoch: LeaderEpoch) {
        let (now_ms, connection) = (self.now_ms, self.process(number).connection);
        if self.process(leader).is_up {
            let leader = &self.process(leader).node.partition;
            leader.follower_disconnected(connection, replica(number), now_ms);
        }
        let connection = self.next_connection();
        let process = self.process(number);
        process.node.partition.leader_lost(epoch);
        process.connection = connection;
        process.stream = Stream::Idle;
    }

    async fn copy(&mut self, number: u32, leader: u32, epoch: LeaderEpoch) -> Stream {
        let from_leader = self.process(leader).node.partition.clone();
        let follower = self.process(number).node.partition.clone();
        let end = follower.log().ends().end;
        let marks = from_leader.marks();
        let Ok(read) = from_leader.read_for_follower(epoch, end, ReadLimits::bytes(1)).await else {
            return Stream::Idle;
        };
        let bytes: Vec<u8> = read.slices.iter().flat_map(|slice| slice.to_vec()).collect();
        let taken = if bytes.is_empty() {
            follower.marks_from_leader(epoch, marks, NOW).await
        } else {
            follower.append_from_leader(epoch, &bytes, marks, NOW).await.map(drop)
        };
        if taken.is_err() {
            return Stream::Idle;
        }
        let process = self.process(number);
        let report = LateReport {
            to: leader,
            incarnation: 0,
            connection: process.connection,
            from: number,
            epoch,
            ends: process.node.partition.replica_ends(),
        };
        let incarnation = self.process(leader).incarnation;
        self.late.push(LateReport { incarnation, ..report });
        Stream::Copying
    }

    fn deliver_late(&mut self) {
        if self.late.is_empty() {
            return;
        }
        let at = usize::try_from(self.random.random(0..self.late.len() as u64)).unwrap();
        let report = if self.random.one_in(2) { self.late[at] } else { self.late.swap_remove(at) };
        let leader = self.process(report.to);
        if leader.is_up && leader.incarnation == report.incarnation {
            let from = replica(report.from);
            leader.node.partition.follower_reported(report.connection, from, report.epoch, report.ends);
        }
    }

    /// A node hears what is stored.
    fn tell(&mut self, number: u32) {
        let Stored { leader, incarnation, epoch, isr, version } = &self.stored;
        let assignment = Assignment {
            partition: ID,
            me: replica(number),
            role: Role::Wait,
            leader_epoch: LeaderEpoch(*epoch),
            replicas: replicas(&NODES),
            isr: replicas(isr),
            version: Version(*version),
            min_insync_replicas: 1,
        };
        let (leader, incarnation, now_ms) = (*leader, *incarnation, self.now_ms);
        let process = self.process(number);
        if !process.is_up {
            return;
        }
        let partition = &process.node.partition;
        let before = partition.leader_epoch();
        if leader != number {
            let _ = partition.become_follower(assignment.leader_epoch, replica(leader));
        } else if incarnation == process.incarnation {
            let options = IsrOptions { lag_max_ms: 3_000, disconnect_max_ms: 500, retry_ms: 100 };
            partition.set_isr_options(options);
            let _ = partition.become_leader(LeaderTerm::of(&assignment), now_ms);
        } else {
            partition.become_idle(assignment.leader_epoch);
        }
        if assignment.leader_epoch > before {
            process.stream = Stream::Idle;
            let connection = self.next_connection();
            self.process(number).connection = connection;
        }
    }

    /// A leader looks at its ISR, and what it proposes is stored, refused, or stored without an answer.
    fn tick(&mut self, number: u32) {
        let now_ms = self.now_ms;
        if !self.process(number).is_up {
            return;
        }
        let Some(proposal) = self.process(number).node.partition.tick_isr(now_ms) else { return };
        let stored = &mut self.stored;
        let is_newest = proposal.version.0 == stored.version && proposal.leader_epoch.0 == stored.epoch;
        if is_newest && !self.random.one_in(5) {
            stored.version += 1;
            stored.isr = proposal.isr.iter().map(|member| member.node.0).collect();
            if !self.random.one_in(4) {
                return;
            }
        }
        self.process(number).node.partition.isr_refused(proposal.version);
    }

    /// The controller elects: somebody in sync that runs; those that do not run leave the ISR.
    fn elect(&mut self) {
        let up = |number: &u32| self.processes[number].is_up;
        let isr: Vec<u32> = self.stored.isr.iter().copied().filter(up).collect();
        if isr.is_empty() {
            return;
        }
        let at = usize::try_from(self.random.random(0..isr.len() as u64)).unwrap();
        let leader = isr[at];
        let incarnation = self.processes[&leader].incarnation;
        let Stored { epoch, version, .. } = self.stored;
        self.stored = Stored { leader, incarnation, epoch: epoch + 1, isr, version: version + 1 };
    }

    fn die(&mut self, number: u32) {
        let crash = if self.random.one_in(2) { Crash::Kill } else { Crash::PowerLoss };
        let process = self.process(number);
        if process.is_up {
            process.is_up = false;
            process.node.die(crash);
        }
    }

    async fn start(&mut self, number: u32) {
        let connection = self.next_connection();
        let process = self.process(number);
        if !process.is_up {
            process.node.start().await;
            process.is_up = true;
            process.incarnation += 1;
            process.stream = Stream::Idle;
            process.connection = connection;
        }
    }

    /// A consumer reads all that it may.
    async fn read(&mut self, number: u32) -> Result<(), Finding> {
        if !self.process(number).is_up {
            return Ok(());
        }
        let partition = self.process(number).node.partition.clone();
        let from = self.random.random(0..partition.high_watermark().0 + 1);
        let Ok(fetched) = partition.fetch(Offset(from), 1 << 16, None).await else { return Ok(()) };
        let bytes: Vec<u8> = fetched.batches.slices.iter().flat_map(|slice| slice.to_vec()).collect();
        for (offset, text) in crate::by_hand::texts(&bytes) {
            self.note(offset, &text, "read")?;
        }
        Ok(())
    }

    fn note(&mut self, offset: u64, text: &str, what: &str) -> Result<(), Finding> {
        match self.seen.get(&offset) {
            Some(known) if known != text => {
                Err(format!("{what} at offset {offset}: {text}, but {known} was read there"))
            }
            _ => {
                self.seen.insert(offset, text.to_owned());
                Ok(())
            }
        }
    }

    /// Everything runs again; then the logs agree and nothing acked or read is missing.
    async fn heal(&mut self) -> Result<(), Finding> {
        for number in NODES {
            self.start(number).await;
        }
        self.elect();
        self.late.clear();
        let leader = self.stored.leader;
        for _ in 0..4_000 {
            for number in NODES {
                self.tell(number);
                self.follow(number).await;
            }
            while !self.late.is_empty() {
                self.deliver_late();
            }
            self.now_ms += 20;
            self.tick(leader);
            self.random.sleep(Duration::from_micros(50)).await;
            let partition = &self.processes[&leader].node.partition;
            let (end, isr) = (partition.log().ends().end, partition.isr().0);
            if partition.high_watermark() == end && isr.len() == NODES.len() {
                return self.check(leader).await;
            }
        }
        Err("it does not heal".to_owned())
    }

    async fn check(&mut self, leader: u32) -> Result<(), Finding> {
        let log = self.processes[&leader].node.records().await;
        for number in NODES {
            if self.processes[&number].node.records().await != log {
                return Err(format!("the logs of {leader} and {number} differ"));
            }
        }
        for (offset, (text, _)) in log.iter().enumerate() {
            self.note(offset as u64, text, "in the end")?;
        }
        if self.seen.len() > log.len() {
            return Err("what was read is gone".to_owned());
        }
        let acked = self.acked.borrow();
        let lost = acked.iter().find(|(offset, text)| self.seen.get(offset) != Some(text));
        lost.map_or(Ok(()), |(offset, text)| Err(format!("acked at offset {offset} and lost: {text}")))
    }
}

/// One run; what it found, and how many records were acked.
fn run(seed: u64) -> (Result<(), Finding>, usize) {
    let executor = Rc::new(Executor::new(seed));
    let running = executor.clone();
    executor.run_until(async move {
        let mut world = World::new(running).await;
        for number in NODES {
            world.tell(number);
        }
        for _ in 0..STEPS {
            if let Err(finding) = world.step().await {
                return (Err(finding), 0);
            }
        }
        let healed = world.heal().await;
        let acked = world.acked.borrow().len();
        (healed, acked)
    })
}

#[test]
fn nothing_acked_is_lost_whatever_happens_in_whatever_order() {
    let mut acked = 0;
    for seed in 0..SEEDS {
        let (outcome, count) = run(seed);
        assert_eq!(outcome, Ok(()), "seed {seed}");
        acked += count;
    }
    assert!(acked > 600, "only {acked} records were acked: the runs prove nothing");
}

#[cfg(feature = "canary")]
#[test]
fn every_planted_bug_is_found() {
    use corelog_replication::canary::{Canary, plant};
    for canary in [
        Canary::AnyEpochMovesTheMark,
        Canary::TruncateToHighWatermark,
        Canary::AckBeforeSync,
        Canary::OldEpochAfterRestart,
        Canary::CopyAfterFirstCut,
    ] {
        plant(Some(canary));
        let found = (0..200).find(|seed| run(*seed).0.is_err());
        plant(None);
        assert!(found.is_some(), "{canary:?} was not found");
    }
}
