//! The leader's end of a stream: one task that reads what the follower says, one that writes what it needs.
//!
//! Owns: the partitions that one follower's shard copies from this shard, and how far each was sent. `write` makes
//! messages, `catch_up` reads for those far behind.
//! Invariant: what is sent of a partition is contiguous from where its handshake said, in one epoch; when the epoch or
//! the role ends, the stream is refused and nothing more is sent.
//! Invariant: no more batches are unanswered than the follower has given credit for, and one bundle.
//! Invariant: no borrow of the streams is held while a partition is called: it tells its watchers at once.
//! Not here: who may follow, what a report means (`Partition`).

mod catch_up;
mod write;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use corelog_engine::disk::Disk;
use corelog_engine::notify::Notify;
use corelog_engine::{LeaderEpoch, Offset, TopicPartition};
use corelog_schemas::messages::{
    STREAM_VERSION, STREAM_VERSION_MIN, StreamAnswer, StreamFollow, StreamHello, StreamHelloAnswer,
    StreamMessage, StreamReport,
};
use corelog_schemas::{ErrorCode, Failure};

use super::convert::{partition_of, request_of};
use super::dirty::DirtyList;
use super::link::{Host, LinkError, Priority};
use super::ranges;
use super::session::Session;
use super::slab::Slab;
use super::stats::{FeederStats, FollowerLag};
use crate::cluster::Incarnation;
use crate::follower::FollowRequest;
use crate::isr::ConnectionId;
use crate::leader::ReplicaEnds;
use crate::partition::{Marks, Partition};
use crate::replica::{NodeId, ReplicaId};
use crate::replicas::Shared;
use crate::watch::{Watcher, Watching};
use catch_up::Chunk;

/// Smallest credit that is believed: with less, a stream would crawl.
const CREDIT_BYTES_MIN: u64 = 64 << 10;

/// Largest credit that is believed: what is sent lies in the kernel's buffers, and in the follower's memory.
const CREDIT_BYTES_MAX: u64 = 1 << 30;

/// A shard that copies from this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PeerShard {
    pub(crate) node: NodeId,
    pub(crate) shard: u16,
}

/// The leader's end of one connection.
pub(crate) struct Feeder<D: Disk, H: Host> {
    shared: Rc<Shared<D, H>>,
    session: Rc<Session<H>>,
    peer: PeerShard,
    incarnation: Incarnation,
    connection: ConnectionId,
    streams: RefCell<Slab<Fed<D>>>,
    by_partition: RefCell<BTreeMap<TopicPartition, u32>>,
    by_stream: RefCell<rustc_hash::FxHashMap<u32, u32>>,
    answers: RefCell<Vec<StreamAnswer>>,
    credit_max: i64,
    credit: Cell<i64>,
    /// Places that have batches and no credit.
    starved: DirtyList,
    /// Places whose marks moved without batches: sent with the next tick.
    lazy: DirtyList,
    marks_are_due: Cell<bool>,
    far_behind: RefCell<VecDeque<u32>>,
    chunks: RefCell<VecDeque<Chunk>>,
    catch_up_changed: Notify,
    sent_bytes: Cell<u64>,
    caught_up_bytes: Cell<u64>,
}

/// One partition on the connection.
struct Fed<D: Disk> {
    stream: u32,
    id: TopicPartition,
    asked: FollowRequest,
    phase: Phase,
    partition: Option<Partition<D>>,
    /// The next offset to send, or to read while it catches up.
    next: Offset,
    /// What the follower was last told.
    marks: Option<Marks>,
    _watching: Option<Watching>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Has asked and waits for an answer: until this replica leads in that epoch, perhaps.
    Asked,
    /// Was told to cut; asks again.
    Cutting,
    /// Gets what is appended.
    Live,
    /// Gets what is read from disk.
    CatchingUp,
    /// The last piece from disk is read and not sent: live after it.
    LastPiece,
}

impl<D: Disk, H: Host> Feeder<D, H> {
    /// Waits for the greeting on a new connection. `None`: it is no follower's, or it was turned away.
    pub(crate) async fn greet(shared: Rc<Shared<D, H>>, session: Rc<Session<H>>) -> Option<Rc<Self>> {
        match greeted(&shared, &session).await {
            Ok(hello) => Some(Rc::new(Self::new(shared, session, &hello))),
            Err(_) => {
                session.close();
                None
            }
        }
    }

    /// Feeds the follower. Ready when the connection has ended.
    pub(crate) async fn run(self: Rc<Self>) {
        self.shared.spawn(self.clone().write(), Priority::Stream);
        self.shared.spawn(self.clone().catch_up(), Priority::Background);
        // Whatever ended it, the follower connects again; a stranger's garbage ends its own connection alone.
        let _ended = self.read().await;
        self.end();
    }

    fn new(shared: Rc<Shared<D, H>>, session: Rc<Session<H>>, hello: &StreamHello) -> Self {
        let credit = hello.credit_bytes.clamp(CREDIT_BYTES_MIN, CREDIT_BYTES_MAX) as i64;
        Self {
            connection: shared.next_connection(),
            shared,
            session,
            peer: PeerShard { node: NodeId(hello.node), shard: hello.shard },
            incarnation: Incarnation(hello.incarnation),
            streams: RefCell::default(),
            by_partition: RefCell::default(),
            by_stream: RefCell::default(),
            answers: RefCell::default(),
            credit_max: credit,
            credit: Cell::new(credit),
            starved: DirtyList::default(),
            lazy: DirtyList::default(),
            marks_are_due: Cell::new(false),
            far_behind: RefCell::default(),
            chunks: RefCell::default(),
            catch_up_changed: Notify::default(),
            sent_bytes: Cell::new(0),
            caught_up_bytes: Cell::new(0),
        }
    }

    /// Who copies.
    pub(crate) fn peer(&self) -> PeerShard {
        self.peer
    }

    /// Ends the connection.
    pub(crate) fn close(&self) {
        self.session.close();
        self.catch_up_changed.notify_all();
    }

    /// Looks at the time, and lets marks go that no batch has taken along.
    pub(crate) fn tick(&self, now_ms: u64) {
        let options = &self.shared.options;
        self.session.tick(now_ms, options.heartbeat_ms, options.silence_ms_max);
        if self.lazy.len() > 0 {
            self.marks_are_due.set(true);
            self.session.dirty.wake();
        }
    }

    /// A partition is here now, or its replicas are others: whoever waits for that is looked at again.
    pub(crate) fn partition_changed(&self, id: TopicPartition) {
        let place = self.by_partition.borrow().get(&id).copied();
        if let Some(place) = place {
            self.session.dirty.changed(place);
        }
    }

    /// The partition is not here any more.
    pub(crate) fn partition_dropped(&self, id: TopicPartition) {
        let Some(place) = self.by_partition.borrow().get(&id).copied() else { return };
        self.refuse(place, ErrorCode::UnknownTopicOrPartition);
        self.session.dirty.wake();
    }

    /// Asks the follower for batches of a partition that it copies from here.
    pub(crate) async fn ask_range(
        &self,
        id: TopicPartition,
        from: Offset,
        end: Offset,
    ) -> ranges::RangeOutcome {
        let follows = self.by_partition.borrow().contains_key(&id);
        if !follows {
            return Err(ErrorCode::UnknownTopicOrPartition);
        }
        ranges::ask(&self.session, id, from, end, self.shared.options.bundle_bytes_max).await
    }

    /// How far each partition is that this follower copies.
    pub(crate) fn stats(&self) -> FeederStats {
        let streams = self.streams.borrow();
        let lags = streams.iter().filter_map(|(_, fed)| {
            let partition = fed.partition.as_ref()?;
            let ends = partition.follower_ends(fed.asked.replica);
            Some(FollowerLag {
                partition: fed.id,
                replica: fed.asked.replica,
                lag_records: partition.log().ends().end.records_since(ends.map_or(fed.next, |e| e.durable)),
                is_catching_up: matches!(fed.phase, Phase::CatchingUp | Phase::LastPiece),
            })
        });
        FeederStats {
            node: self.peer.node,
            shard: self.peer.shard,
            incarnation: self.incarnation,
            streams: lags.collect(),
            sent_bytes: self.sent_bytes.get(),
            caught_up_bytes: self.caught_up_bytes.get(),
            credit_bytes: self.credit.get(),
        }
    }

    // ---- Reading ----

    async fn read(self: &Rc<Self>) -> Result<(), LinkError> {
        loop {
            let (message, payload) = self.session.recv().await?;
            match message {
                StreamMessage::Follow(follows) => {
                    for follow in &follows {
                        self.followed(follow);
                    }
                    self.session.dirty.wake();
                }
                StreamMessage::Reports { reports, credit_bytes } => self.reported(&reports, credit_bytes),
                StreamMessage::Unfollow(streams) => {
                    for stream in streams {
                        self.unfollowed(stream);
                    }
                }
                StreamMessage::Leave => self.left(),
                StreamMessage::ReadRange(asked) => {
                    let refused = StreamMessage::Range(ranges::overloaded(&asked));
                    match ranges::admit(&self.session, &asked, self.shared.options.ranges_max) {
                        Some(id) => {
                            let partition = self.shared.partition(id);
                            let bytes_max = self.shared.options.bundle_bytes_max;
                            let work = ranges::serve(self.session.clone(), partition, asked, bytes_max);
                            self.shared.spawn(work, Priority::Background);
                        }
                        None => self.session.ranges.push(refused),
                    }
                    self.session.dirty.wake();
                }
                StreamMessage::Range(range) => self.session.ranges.answered(&range, &payload),
                StreamMessage::Hello(_)
                | StreamMessage::HelloAnswer(_)
                | StreamMessage::Answer(_)
                | StreamMessage::Batches(_)
                | StreamMessage::Marks(_) => return Err(LinkError::Broken(OUT_OF_TURN.to_owned())),
            }
        }
    }

    /// Notes what a follower asks; the writer answers.
    fn followed(&self, follow: &StreamFollow) {
        let id = partition_of(follow.topic_id, follow.partition);
        let known = self.by_partition.borrow().get(&id).copied();
        if let Some(place) = known {
            self.forget(place);
        }
        let asked = request_of(self.peer.node, follow);
        if self.streams.borrow().len() >= self.shared.options.streams_max {
            let refused = super::convert::refusal(follow.stream, asked.epoch, ErrorCode::Overloaded);
            self.answers.borrow_mut().push(refused);
            return;
        }
        let fed = Fed {
            stream: follow.stream,
            id,
            asked,
            phase: Phase::Asked,
            partition: None,
            next: asked.log_end,
            marks: None,
            _watching: None,
        };
        let place = self.streams.borrow_mut().insert(fed);
        self.by_partition.borrow_mut().insert(id, place);
        let stale = self.by_stream.borrow_mut().insert(follow.stream, place);
        if let Some(stale) = stale {
            // A stream number that is used twice: the follower has forgotten the older one.
            self.forget(stale);
            self.by_stream.borrow_mut().insert(follow.stream, place);
        }
        self.session.dirty.add(place);
    }

    /// Takes reports and credit.
    fn reported(&self, reports: &[StreamReport], credit_bytes: u64) {
        if credit_bytes > 0 {
            let credit = self.credit.get().saturating_add(i64::try_from(credit_bytes).unwrap_or(i64::MAX));
            self.credit.set(credit.min(self.credit_max));
            let has_work = self.starved.len() > 0 || !self.chunks.borrow().is_empty();
            while let Some(place) = self.starved.pop() {
                self.session.dirty.add(place);
            }
            if has_work {
                self.session.dirty.wake();
            }
        }
        for report in reports {
            let Some((partition, replica, epoch)) = self.copying(report.stream) else { continue };
            if epoch != LeaderEpoch(report.leader_epoch) {
                continue;
            }
            let ends = ReplicaEnds { written: Offset(report.written), durable: Offset(report.durable) };
            partition.follower_reported(self.connection, replica, epoch, ends);
        }
    }

    fn copying(&self, stream: u32) -> Option<(Partition<D>, ReplicaId, LeaderEpoch)> {
        let place = *self.by_stream.borrow().get(&stream)?;
        let streams = self.streams.borrow();
        let fed = streams.get(place)?;
        match fed.phase {
            Phase::Live | Phase::CatchingUp | Phase::LastPiece => {
                Some((fed.partition.clone()?, fed.asked.replica, fed.asked.epoch))
            }
            Phase::Asked | Phase::Cutting => None,
        }
    }

    /// The follower does not want a partition any more, so it is not waited for.
    fn unfollowed(&self, stream: u32) {
        let Some(place) = self.by_stream.borrow().get(&stream).copied() else { return };
        if let Some(fed) = self.forget(place) {
            self.leaves(&fed);
        }
    }

    /// The follower's node stops.
    fn left(&self) {
        let places = self.streams.borrow().iter().map(|(place, _)| place).collect::<Vec<_>>();
        for place in places {
            if let Some(fed) = self.forget(place) {
                self.leaves(&fed);
            }
        }
    }

    fn leaves(&self, fed: &Fed<D>) {
        if let Some(partition) = &fed.partition {
            partition.follower_left(self.connection, fed.asked.replica);
            self.shared.propose(partition);
        }
    }

    /// Takes a stream out.
    fn forget(&self, place: u32) -> Option<Fed<D>> {
        let fed = self.streams.borrow_mut().remove(place)?;
        self.by_stream.borrow_mut().remove(&fed.stream);
        let mut by_partition = self.by_partition.borrow_mut();
        if by_partition.get(&fed.id) == Some(&place) {
            by_partition.remove(&fed.id);
        }
        Some(fed)
    }

    /// Ends a stream and tells the follower why.
    fn refuse(&self, place: u32, error: ErrorCode) {
        if let Some(fed) = self.forget(place) {
            let refused = super::convert::refusal(fed.stream, fed.asked.epoch, error);
            self.answers.borrow_mut().push(refused);
        }
    }

    /// The connection has ended: followers have a little time to come back.
    fn end(&self) {
        self.close();
        let now_ms = self.shared.host.now_ms();
        let places = self.streams.borrow().iter().map(|(place, _)| place).collect::<Vec<_>>();
        for place in places {
            let Some(fed) = self.forget(place) else { continue };
            if let Some(partition) = &fed.partition {
                partition.follower_disconnected(self.connection, fed.asked.replica, now_ms);
            }
        }
        self.chunks.borrow_mut().clear();
    }
}

const OUT_OF_TURN: &str = "the peer sent a message that is not its to send";

/// Waits for the follower's greeting and answers it.
async fn greeted<D: Disk, H: Host>(
    shared: &Shared<D, H>,
    session: &Session<H>,
) -> Result<StreamHello, LinkError> {
    let (message, _) = session.recv().await?;
    let StreamMessage::Hello(hello) = message else {
        return Err(LinkError::Broken(OUT_OF_TURN.to_owned()));
    };
    let version = agree(shared, &hello);
    let is_refused = version.is_err();
    let incarnation = shared.me.incarnation.0;
    let answer = StreamMessage::HelloAnswer(StreamHelloAnswer { version, incarnation });
    session.send(&answer, &[]).await?;
    if is_refused { Err(LinkError::Closed) } else { Ok(hello) }
}

/// Decides whether a follower is let in, and which version both speak.
fn agree<D: Disk, H: Host>(shared: &Shared<D, H>, hello: &StreamHello) -> Result<u16, Failure> {
    let me = &shared.me;
    if hello.cluster_id != *me.cluster_id {
        let said = format!("this is cluster {}, not {}", me.cluster_id, hello.cluster_id);
        return Err(Failure::new(ErrorCode::NotAuthorized, said));
    }
    if (NodeId(hello.to_node), hello.to_shard) != (me.node, me.shard) {
        let said = format!(
            "this is shard {} of node {}, not shard {} of node {}",
            me.shard, me.node, hello.to_shard, hello.to_node
        );
        return Err(Failure::new(ErrorCode::InvalidRequest, said));
    }
    if hello.version_min > STREAM_VERSION || hello.version_max < STREAM_VERSION_MIN {
        let said = format!("this node speaks {STREAM_VERSION_MIN} to {STREAM_VERSION}");
        return Err(Failure::new(ErrorCode::UnsupportedVersion, said));
    }
    Ok(hello.version_max.min(STREAM_VERSION))
}
