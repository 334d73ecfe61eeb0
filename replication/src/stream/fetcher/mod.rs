//! The follower's end of a stream: copies all partitions that one leader's shard leads and this shard follows.
//!
//! Owns: the connection (made again when it breaks), and for each partition what was asked and what comes next.
//! `read` takes messages, `work` does what takes time, `write` asks and reports.
//! Invariant: each question has a stream number of its own, so that nothing of an older answer is taken for a newer
//! one; a connection that ends takes all its numbers with it.
//! Invariant: what is done to one partition is done in the order in which the leader said it.
//! Invariant: no borrow of the partitions' list is held while a partition is called.
//! Crash story: the connection breaks in the middle of anything. Each partition asks again on the next one, from what
//! its log has by then; the leader takes back all that was reported before (R10).

mod read;
mod work;
mod write;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use corelog_engine::disk::Disk;
use corelog_engine::notify::Notify;
use corelog_engine::{LeaderEpoch, Offset, TopicPartition};
use corelog_schemas::ErrorCode;
use corelog_schemas::messages::{
    STREAM_VERSION, STREAM_VERSION_MIN, StreamFollow, StreamHello, StreamMessage,
};

use super::dirty::DirtyList;
use super::feeder::PeerShard;
use super::link::{ConnectError, Host, LinkError, Priority};
use super::ranges;
use super::session::Session;
use super::slab::Slab;
use super::stats::FetcherStats;
use crate::assignment::{Report, Sighting};
use crate::cluster::{Endpoint, Incarnation};
use crate::leader::ReplicaEnds;
use crate::partition::Partition;
use crate::replicas::Shared;
use crate::watch::{Watcher, Watching};
use work::Work;

/// The follower's end of the streams from one leader's shard.
pub(crate) struct Fetcher<D: Disk, H: Host> {
    shared: Rc<Shared<D, H>>,
    leader: PeerShard,
    endpoint: RefCell<Endpoint>,
    /// Partitions that have something to ask or to report.
    dirty: Rc<DirtyList>,
    /// Partitions of which an end moved that nobody waits for: reported with the next tick.
    lazy: DirtyList,
    live: RefCell<Option<Rc<Live<H>>>>,
    followed: RefCell<Slab<Followed<D, H>>>,
    by_partition: RefCell<BTreeMap<TopicPartition, u32>>,
    by_stream: RefCell<rustc_hash::FxHashMap<u32, u32>>,
    stream_next: Cell<u32>,
    serial_next: Cell<u64>,
    questions: RefCell<Vec<StreamFollow>>,
    unfollows: RefCell<Vec<u32>>,
    /// When a partition asks again that could not go on.
    retries: RefCell<VecDeque<(u64, u32)>>,
    /// Places at which something waits for the log.
    working: RefCell<BTreeSet<u32>>,
    leaving: Cell<Leaving>,
    left: Notify,
    /// Which start of the leader's node was last connected to.
    incarnation: Cell<Option<Incarnation>>,
    is_stopped: Cell<bool>,
    received_bytes: Cell<u64>,
    connections: Cell<u64>,
}

/// A connection and the credit of it.
struct Live<H: Host> {
    session: Rc<Session<H>>,
    credit: Rc<Credit>,
    is_greeted: Cell<bool>,
}

/// Bytes taken in that the leader may send again.
struct Credit {
    due: Cell<u64>,
    /// From here on it is worth a message of its own.
    worth_bytes: u64,
    dirty: Rc<DirtyList>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    Asked,
    Said,
}

/// One partition.
struct Followed<D: Disk, H: Host> {
    id: TopicPartition,
    partition: Partition<D>,
    epoch: LeaderEpoch,
    /// Tells it from what was at its place before.
    serial: u64,
    stream: Option<u32>,
    phase: Phase,
    /// What the leader was last told on this stream.
    reported: Option<ReplicaEnds>,
    /// What waits for its turn.
    work: VecDeque<Work<H>>,
    is_working: bool,
    /// Since when the log is asked to take the batches that it is asked to take.
    appending_since_ms: Option<u64>,
    /// Why it could not go on, for `cluster status`.
    problem: Option<String>,
    _watching: Watching,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Has to ask.
    ToAsk,
    /// Has asked, or does what was answered.
    Asked,
    /// Takes batches.
    Copying,
    /// Could not go on: asks again after a while.
    Paused,
    /// Its log takes nothing: asks again when it does.
    Stalled,
    /// Cannot go on: its log failed, or it does not follow any more.
    Stopped,
}

impl<D: Disk, H: Host> Fetcher<D, H> {
    /// Begins to copy from a shard; the first partition is to be added at once.
    pub(crate) fn start(shared: &Rc<Shared<D, H>>, leader: PeerShard, endpoint: Endpoint) -> Rc<Self> {
        let fetcher = Rc::new(Self {
            shared: shared.clone(),
            leader,
            endpoint: RefCell::new(endpoint),
            dirty: Rc::default(),
            lazy: DirtyList::default(),
            live: RefCell::default(),
            followed: RefCell::default(),
            by_partition: RefCell::default(),
            by_stream: RefCell::default(),
            stream_next: Cell::new(0),
            serial_next: Cell::new(0),
            questions: RefCell::default(),
            unfollows: RefCell::default(),
            retries: RefCell::default(),
            working: RefCell::default(),
            leaving: Cell::new(Leaving::No),
            left: Notify::default(),
            incarnation: Cell::new(None),
            is_stopped: Cell::new(false),
            received_bytes: Cell::new(0),
            connections: Cell::new(0),
        });
        shared.spawn(fetcher.clone().run(), Priority::Stream);
        fetcher
    }

    /// Where the leader's shard listens now.
    pub(crate) fn set_endpoint(&self, endpoint: &Endpoint) {
        if *self.endpoint.borrow() != *endpoint {
            *self.endpoint.borrow_mut() = endpoint.clone();
        }
    }

    /// Copies a partition, in this epoch. One that is copied in it already goes on.
    pub(crate) fn follow(&self, partition: &Partition<D>, epoch: LeaderEpoch) {
        let id = partition.id();
        let known = self.by_partition.borrow().get(&id).copied();
        if let Some(place) = known {
            let is_same = self.followed.borrow().get(place).is_some_and(|f| f.epoch == epoch);
            if is_same {
                return;
            }
            self.forget(place);
        }
        let serial = self.serial_next.get();
        self.serial_next.set(serial + 1);
        let watcher: Rc<dyn Watcher> = self.dirty.clone();
        let mut followed = self.followed.borrow_mut();
        let place = followed.next();
        let watching = partition.watch(&watcher, place);
        followed.insert(Followed {
            id,
            partition: partition.clone(),
            epoch,
            serial,
            stream: None,
            phase: Phase::ToAsk,
            reported: None,
            work: VecDeque::new(),
            is_working: false,
            appending_since_ms: None,
            problem: None,
            _watching: watching,
        });
        drop(followed);
        self.by_partition.borrow_mut().insert(id, place);
        self.dirty.changed(place);
    }

    /// Copies a partition no more. Returns whether none is left.
    pub(crate) fn unfollow(&self, id: TopicPartition) -> bool {
        let known = self.by_partition.borrow().get(&id).copied();
        if let Some(followed) = known.and_then(|place| self.forget(place))
            && let Some(stream) = followed.stream
        {
            self.unfollows.borrow_mut().push(stream);
            self.dirty.wake();
        }
        self.followed.borrow().len() == 0
    }

    fn forget(&self, place: u32) -> Option<Followed<D, H>> {
        let followed = self.followed.borrow_mut().remove(place)?;
        self.by_partition.borrow_mut().remove(&followed.id);
        if let Some(stream) = followed.stream {
            self.by_stream.borrow_mut().remove(&stream);
        }
        Some(followed)
    }

    /// Tells the leader that this node stops. Ready when that was sent, or the connection has ended.
    pub(crate) async fn leave(&self) {
        self.leaving.set(Leaving::Asked);
        self.dirty.wake();
        while self.leaving.get() == Leaving::Asked {
            let left = self.left.notified();
            if !self.is_connected() {
                return;
            }
            left.await;
        }
    }

    /// Ends the connection and makes no other.
    pub(crate) fn stop(&self) {
        self.is_stopped.set(true);
        let live = self.live.borrow().clone();
        if let Some(live) = live {
            live.session.close();
        }
        self.left.notify_all();
    }

    /// Looks at the time.
    pub(crate) fn tick(&self, now_ms: u64) {
        let options = &self.shared.options;
        let live = self.live.borrow().clone();
        if let Some(live) = live {
            live.session.tick(now_ms, options.heartbeat_ms, options.silence_ms_max);
        }
        let mut has_work = false;
        let is_due = |(at_ms, _): &(u64, u32)| *at_ms <= now_ms;
        let due = {
            let mut retries = self.retries.borrow_mut();
            let count = retries.iter().take_while(|retry| is_due(retry)).count();
            retries.drain(..count).collect::<Vec<_>>()
        };
        for (_, place) in due {
            has_work |= self.asks_again(place, Phase::Paused);
        }
        has_work |= self.look_for_stalls(now_ms);
        while let Some(place) = self.lazy.pop() {
            if let Some(followed) = self.followed.borrow_mut().get_mut(place) {
                followed.reported = None;
                has_work |= self.dirty.add(place);
            }
        }
        if has_work {
            self.dirty.wake();
        }
    }

    /// Asks the leader for batches of a partition that is copied from it.
    pub(crate) async fn ask_range(
        &self,
        id: TopicPartition,
        from: Offset,
        end: Offset,
    ) -> ranges::RangeOutcome {
        let live = self.live.borrow().clone().filter(|live| live.is_greeted.get());
        let Some(live) = live.filter(|_| self.by_partition.borrow().contains_key(&id)) else {
            return Err(ErrorCode::UnknownTopicOrPartition);
        };
        ranges::ask(&live.session, id, from, end, self.shared.options.bundle_bytes_max).await
    }

    /// What it is doing.
    pub(crate) fn stats(&self) -> FetcherStats {
        let followed = self.followed.borrow();
        let problem = |f: &Followed<D, H>| Some((f.id, f.problem.clone()?));
        FetcherStats {
            node: self.leader.node,
            shard: self.leader.shard,
            is_connected: self.is_connected(),
            partitions: followed.len(),
            received_bytes: self.received_bytes.get(),
            connections: self.connections.get(),
            problems: followed.iter().filter_map(|(_, f)| problem(f)).collect(),
        }
    }

    fn is_connected(&self) -> bool {
        self.live.borrow().as_ref().is_some_and(|live| live.is_greeted.get() && !live.session.is_closed())
    }

    // ---- The connection ----

    /// Connects, serves, and connects again, until it is stopped.
    async fn run(self: Rc<Self>) {
        let options = &self.shared.options;
        let mut pause_ms = options.reconnect_ms_min;
        while !self.is_stopped.get() {
            let began_ms = self.shared.host.now_ms();
            // Why it ended is of no interest: the next attempt shows whether the leader is there.
            let _ended = self.connect_and_serve().await;
            let lasted_ms = self.shared.host.now_ms().saturating_sub(began_ms);
            if lasted_ms > options.reconnect_ms_max && self.connections.get() > 0 {
                // It had served for a while: what it breaks by is found out at once.
                pause_ms = options.reconnect_ms_min;
                continue;
            }
            self.shared.host.sleep(pause_ms).await;
            pause_ms = (pause_ms * 2).min(options.reconnect_ms_max);
        }
    }

    /// One connection, from its first byte to its last.
    async fn connect_and_serve(self: &Rc<Self>) -> Result<(), LinkError> {
        let endpoint = self.endpoint.borrow().clone();
        let link = match self.shared.host.connect(&endpoint).await {
            Ok(link) => link,
            Err(error) => {
                if error == ConnectError::Refused && !self.is_stopped.get() {
                    self.saw(Sighting::Refused);
                }
                return Err(LinkError::Broken(error.to_string()));
            }
        };
        let session = Rc::new(Session::new(self.shared.host.clone(), link, self.dirty.clone()));
        let credit = Credit {
            due: Cell::new(0),
            worth_bytes: self.shared.options.credit_bytes / 4,
            dirty: self.dirty.clone(),
        };
        let live = Rc::new(Live { session, credit: Rc::new(credit), is_greeted: Cell::new(false) });
        *self.live.borrow_mut() = Some(live.clone());
        let served = self.serve(&live).await;
        live.session.close();
        self.connection_ended();
        served
    }

    async fn serve(self: &Rc<Self>, live: &Rc<Live<H>>) -> Result<(), LinkError> {
        if self.is_stopped.get() {
            return Err(LinkError::Closed);
        }
        self.greet(live).await?;
        live.is_greeted.set(true);
        self.connections.set(self.connections.get() + 1);
        self.saw(Sighting::Connected);
        let places = self.followed.borrow().iter().map(|(place, _)| place).collect::<Vec<_>>();
        for place in places {
            self.dirty.add(place);
        }
        self.shared.spawn(self.clone().write(live.clone()), Priority::Stream);
        self.read(live).await
    }

    async fn greet(&self, live: &Live<H>) -> Result<(), LinkError> {
        let me = &self.shared.me;
        let hello = StreamMessage::Hello(StreamHello {
            version_min: STREAM_VERSION_MIN,
            version_max: STREAM_VERSION,
            cluster_id: me.cluster_id.to_string(),
            node: me.node.0,
            shard: me.shard,
            incarnation: me.incarnation.0,
            to_node: self.leader.node.0,
            to_shard: self.leader.shard,
            credit_bytes: self.shared.options.credit_bytes,
        });
        live.session.send(&hello, &[]).await?;
        match live.session.recv().await?.0 {
            StreamMessage::HelloAnswer(answer) => match answer.version {
                Ok(STREAM_VERSION_MIN..=STREAM_VERSION) => {
                    self.incarnation.set(Some(Incarnation(answer.incarnation)));
                    Ok(())
                }
                Ok(version) => Err(LinkError::Broken(format!("the leader chose version {version}"))),
                Err(failure) => Err(LinkError::Broken(failure.to_string())),
            },
            _ => Err(LinkError::Broken("the leader does not greet".to_owned())),
        }
    }

    /// Tells of the process that was last connected to.
    fn saw(&self, sighting: Sighting) {
        if let Some(incarnation) = self.incarnation.get() {
            self.shared.host.report(Report::Seen { node: self.leader.node, incarnation, sighting });
        }
    }

    /// Nothing of the connection counts any more.
    fn connection_ended(&self) {
        *self.live.borrow_mut() = None;
        self.by_stream.borrow_mut().clear();
        self.questions.borrow_mut().clear();
        self.unfollows.borrow_mut().clear();
        let places = self.followed.borrow().iter().map(|(place, _)| place).collect::<Vec<_>>();
        for place in places {
            let lost = {
                let mut followed = self.followed.borrow_mut();
                let Some(followed) = followed.get_mut(place) else { continue };
                followed.stream = None;
                followed.reported = None;
                followed.work.clear();
                if followed.phase != Phase::Stopped {
                    followed.phase = Phase::ToAsk;
                }
                (followed.partition.clone(), followed.epoch)
            };
            lost.0.leader_lost(lost.1);
        }
        self.left.notify_all();
    }

    /// A partition in `phase` has to ask again. Returns whether there is something new to do.
    fn asks_again(&self, place: u32, phase: Phase) -> bool {
        let mut followed = self.followed.borrow_mut();
        let Some(followed) = followed.get_mut(place).filter(|f| f.phase == phase) else { return false };
        followed.phase = Phase::ToAsk;
        self.dirty.add(place)
    }
}

impl Credit {
    /// Bytes were taken in.
    fn give_back(&self, bytes: u64) {
        self.due.set(self.due.get() + bytes);
        if self.is_worth_it() {
            self.dirty.wake();
        }
    }

    fn is_worth_it(&self) -> bool {
        self.due.get() >= self.worth_bytes
    }
}
