//! All replicas of one shard: what each is assigned to do, and the streams that this takes.
//!
//! Owns: the partitions that the shard has, the newest assignment of each, one fetcher for each shard that leads some
//! of them, one feeder for each shard that follows some of them.
//! Invariant: of two assignments of a partition the one with the higher version counts; an older one changes nothing
//! (row 12 of the faults to survive).
//! Invariant: there is at most one connection of each follower's shard; a newer one ends the older.
//! Not here: how a stream works (`stream/`), what a role means (`partition/`), who assigns (whoever knows the cluster).
//! Crash story: nothing here is stored. After a start each partition comes with its log and waits for an assignment.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::{Rc, Weak};

use corelog_engine::disk::Disk;
use corelog_engine::log::ReadError;
use corelog_engine::notify::Notify;
use corelog_engine::{LeaderEpoch, Offset, TopicPartition};

use crate::assignment::{Assignment, Report, Role};
use crate::cluster::Endpoint;
use crate::coordination::Version;
use crate::errors::RoleError;
use crate::isr::ConnectionId;
use crate::partition::{CurrentRole, LeaderTerm, Partition};
use crate::stream::feeder::{Feeder, PeerShard};
use crate::stream::fetcher::Fetcher;
use crate::stream::mending::{self, Mending};
use crate::stream::session::Session;
use crate::stream::throttle::Throttle;
use crate::stream::{Host, Identity, Priority, StreamOptions, StreamStats};

/// The replicas of one shard. Cheap to clone; all clones are the same.
pub struct Replicas<D: Disk, H: Host>(Rc<Streams<D, H>>);

impl<D: Disk, H: Host> Clone for Replicas<D, H> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Streams<D: Disk, H: Host> {
    shared: Rc<Shared<D, H>>,
    fetchers: RefCell<BTreeMap<PeerShard, Rc<Fetcher<D, H>>>>,
    feeders: RefCell<BTreeMap<PeerShard, Rc<Feeder<D, H>>>>,
    /// Connections on which nobody has said yet who he is.
    strangers: RefCell<Vec<Weak<Session<H>>>>,
}

/// What all streams of a shard have in common.
pub(crate) struct Shared<D: Disk, H: Host> {
    pub(crate) host: H,
    pub(crate) me: Identity,
    pub(crate) options: StreamOptions,
    hosted: RefCell<BTreeMap<TopicPartition, Hosted<D>>>,
    /// The pace of cold reads for followers.
    pub(crate) catch_up: Throttle,
    pub(crate) mending: Mending,
    connection_next: Cell<u64>,
    is_isolated: Cell<bool>,
    is_stopped: Cell<bool>,
    tasks: Cell<usize>,
    tasks_ended: Notify,
}

/// A partition and what it is to do.
struct Hosted<D: Disk> {
    partition: Partition<D>,
    assignment: Option<Assignment>,
    /// Whom it is copied from.
    fetched_from: Option<PeerShard>,
    /// The epoch in which it was said to be verified.
    verified: Option<LeaderEpoch>,
}

impl<D: Disk, H: Host> Shared<D, H> {
    pub(crate) fn partition(&self, id: TopicPartition) -> Option<Partition<D>> {
        self.hosted.borrow().get(&id).map(|hosted| hosted.partition.clone())
    }

    /// The partition at or behind `id`, and its number.
    pub(crate) fn partition_from(&self, id: Option<TopicPartition>) -> Option<Partition<D>> {
        use std::ops::Bound;
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        let hosted = self.hosted.borrow();
        hosted.range((from, Bound::Unbounded)).next().map(|(_, hosted)| hosted.partition.clone())
    }

    /// A number for a connection, higher than all before.
    pub(crate) fn next_connection(&self) -> ConnectionId {
        let number = self.connection_next.get();
        self.connection_next.set(number + 1);
        ConnectionId(number)
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.is_stopped.get()
    }

    /// Runs a task that [`Replicas::stopped`] waits for.
    pub(crate) fn spawn(self: &Rc<Self>, task: impl Future<Output = ()> + 'static, priority: Priority) {
        self.tasks.set(self.tasks.get() + 1);
        let running = Running(self.clone());
        let counted = async move {
            task.await;
            drop(running);
        };
        self.host.spawn(counted, priority);
    }

    /// Proposes another ISR if it is time for it.
    pub(crate) fn propose(&self, partition: &Partition<D>) {
        if let Some(proposal) = partition.tick_isr(self.host.now_ms()) {
            self.host.report(Report::Isr(proposal));
        }
    }

    /// Batches could not be read: damage is mended if another replica has them.
    pub(crate) fn read_failed(&self, partition: &Partition<D>, error: &ReadError) {
        if let ReadError::Corrupt { offset, .. } = error {
            self.mending.damaged(partition.id(), *offset);
        }
    }
}

/// A task that has not ended.
struct Running<D: Disk, H: Host>(Rc<Shared<D, H>>);

impl<D: Disk, H: Host> Drop for Running<D, H> {
    fn drop(&mut self) {
        self.0.tasks.set(self.0.tasks.get() - 1);
        if self.0.tasks.get() == 0 {
            self.0.tasks_ended.notify_all();
        }
    }
}

impl<D: Disk, H: Host> Replicas<D, H> {
    /// No replicas yet. Call [`Replicas::tick`] every hundred ms or so.
    pub fn new(host: H, me: Identity, options: StreamOptions) -> Self {
        let shared = Rc::new(Shared {
            host,
            me,
            hosted: RefCell::default(),
            catch_up: Throttle::new(options.catch_up_bytes_per_second),
            mending: Mending::default(),
            connection_next: Cell::new(0),
            is_isolated: Cell::new(false),
            is_stopped: Cell::new(false),
            tasks: Cell::new(0),
            tasks_ended: Notify::default(),
            options,
        });
        let replicas = Self(Rc::new(Streams {
            shared: shared.clone(),
            fetchers: RefCell::default(),
            feeders: RefCell::default(),
            strangers: RefCell::default(),
        }));
        replicas.start_mending();
        replicas
    }

    /// A partition is here. It does nothing before [`Replicas::assign`].
    pub fn host_partition(&self, partition: Partition<D>) {
        let id = partition.id();
        partition.set_isolated(self.0.shared.is_isolated.get());
        let hosted = Hosted { partition, assignment: None, fetched_from: None, verified: None };
        let before = self.0.shared.hosted.borrow_mut().insert(id, hosted);
        match before {
            Some(before) => self.end_streams(id, before.fetched_from),
            None => self.tell_feeders(id),
        }
    }

    /// A partition is here no more; its streams end. The caller closes or deletes the log.
    pub fn drop_partition(&self, id: TopicPartition) {
        let dropped = self.0.shared.hosted.borrow_mut().remove(&id);
        if let Some(dropped) = dropped {
            self.end_streams(id, dropped.fetched_from);
        }
    }

    /// Ends all streams of a partition that is not here, or not the same, any more.
    fn end_streams(&self, id: TopicPartition, fetched_from: Option<PeerShard>) {
        self.unfollow(id, fetched_from);
        let feeders = self.0.feeders.borrow().values().cloned().collect::<Vec<_>>();
        for feeder in feeders {
            feeder.partition_dropped(id);
        }
    }

    /// The partition with this number, if it is here.
    pub fn partition(&self, id: TopicPartition) -> Option<Partition<D>> {
        self.0.shared.partition(id)
    }

    /// What a partition has to do from now on. `leader`: where the leader's shard listens, if it is followed.
    ///
    /// One that is older than what was assigned before changes nothing; the same one again is harmless, and the way to
    /// say that the leader's shard listens elsewhere now.
    /// Errors: it cannot be done by this replica; see each variant. A replica whose log takes no new epoch has no role.
    ///
    /// # Panics
    /// If the partition is not here.
    pub fn assign(&self, assignment: Assignment, leader: Option<&Endpoint>) -> Result<(), RoleError> {
        let id = assignment.partition;
        let (partition, before) = {
            let hosted = self.0.shared.hosted.borrow();
            let hosted = hosted.get(&id).expect("a partition is hosted before it is assigned");
            let newest = hosted.assignment.as_ref().map(|a| (a.leader_epoch, a.version));
            if newest.is_some_and(|newest| newest > (assignment.leader_epoch, assignment.version)) {
                return Ok(());
            }
            (hosted.partition.clone(), hosted.fetched_from)
        };
        let peer = match (&assignment.role, leader) {
            // A stream that began now would end with the process alone.
            _ if self.0.shared.is_stopped() => None,
            (Role::Follow { leader, shard }, Some(_)) => Some(PeerShard { node: leader.node, shard: *shard }),
            _ => None,
        };
        if before.is_some() && before != peer {
            self.unfollow(id, before);
        }
        let outcome = self.take_role(&partition, &assignment);
        if let (Ok(()), Some(peer), Some(endpoint)) = (&outcome, peer, leader) {
            self.fetcher(peer, endpoint).follow(&partition, assignment.leader_epoch);
        }
        if let Some(hosted) = self.0.shared.hosted.borrow_mut().get_mut(&id) {
            hosted.assignment = Some(assignment);
            hosted.fetched_from = peer.filter(|_| outcome.is_ok());
        }
        self.tell_feeders(id);
        self.verify(&partition);
        outcome
    }

    fn take_role(&self, partition: &Partition<D>, assignment: &Assignment) -> Result<(), RoleError> {
        let now_ms = self.0.shared.host.now_ms();
        let epoch = assignment.leader_epoch;
        match assignment.role {
            Role::Lead => partition.become_leader(LeaderTerm::of(assignment), now_ms),
            Role::Follow { leader, .. } => partition.become_follower(epoch, leader),
            Role::Wait => {
                partition.become_idle(epoch);
                Ok(())
            }
        }
    }

    /// The fetcher of a leader's shard, made if there is none.
    fn fetcher(&self, peer: PeerShard, endpoint: &Endpoint) -> Rc<Fetcher<D, H>> {
        let mut fetchers = self.0.fetchers.borrow_mut();
        if let Some(fetcher) = fetchers.get(&peer) {
            fetcher.set_endpoint(endpoint);
            return fetcher.clone();
        }
        let fetcher = Fetcher::start(&self.0.shared, peer, endpoint.clone());
        fetchers.insert(peer, fetcher.clone());
        fetcher
    }

    /// Copies a partition no more; a fetcher that has nothing left to do ends.
    fn unfollow(&self, id: TopicPartition, from: Option<PeerShard>) {
        let Some(peer) = from else { return };
        let fetcher = self.0.fetchers.borrow().get(&peer).cloned();
        if let Some(fetcher) = fetcher
            && fetcher.unfollow(id)
        {
            fetcher.stop();
            self.0.fetchers.borrow_mut().remove(&peer);
        }
    }

    fn tell_feeders(&self, id: TopicPartition) {
        let feeders = self.0.feeders.borrow();
        for feeder in feeders.values() {
            feeder.partition_changed(id);
        }
    }

    /// Takes a connection of a follower's shard. A stranger is turned away.
    pub fn accept(&self, link: H::Link) {
        let shared = &self.0.shared;
        let session = Rc::new(Session::new(shared.host.clone(), link, Rc::default()));
        let mut strangers = self.0.strangers.borrow_mut();
        strangers.retain(|stranger| stranger.strong_count() > 0);
        let connections = strangers.len() + self.0.feeders.borrow().len();
        if shared.is_stopped() || connections >= shared.options.connections_max {
            session.close();
            return;
        }
        strangers.push(Rc::downgrade(&session));
        drop(strangers);
        let replicas = self.clone();
        let serve = async move {
            let Some(feeder) = Feeder::greet(replicas.0.shared.clone(), session).await else { return };
            let peer = feeder.peer();
            let before = replicas.0.feeders.borrow_mut().insert(peer, feeder.clone());
            if let Some(before) = before {
                before.close();
            }
            feeder.clone().run().await;
            let mut feeders = replicas.0.feeders.borrow_mut();
            if feeders.get(&peer).is_some_and(|current| Rc::ptr_eq(current, &feeder)) {
                feeders.remove(&peer);
            }
        };
        shared.spawn(serve, Priority::Stream);
    }

    /// Looks at the time: who is in sync, who is silent, who may try again. Every hundred ms or so.
    ///
    /// Cost: a look at each partition that has several replicas.
    pub fn tick(&self) {
        let shared = &self.0.shared;
        let now_ms = shared.host.now_ms();
        let has_others = |hosted: &&Hosted<D>| {
            hosted.assignment.as_ref().is_some_and(|a| a.replicas.len() > 1 || a.isr.len() > 1)
        };
        let partitions = shared
            .hosted
            .borrow()
            .values()
            .filter(has_others)
            .map(|h| h.partition.clone())
            .collect::<Vec<_>>();
        for partition in partitions {
            match partition.role() {
                CurrentRole::Leading => {
                    shared.propose(&partition);
                    self.verify(&partition);
                }
                CurrentRole::Following(_) => self.verify(&partition),
                CurrentRole::Idle => {}
            }
        }
        let options = &shared.options;
        let strangers = self.0.strangers.borrow().iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
        for stranger in strangers {
            stranger.tick(now_ms, u64::MAX, options.silence_ms_max);
        }
        let feeders = self.0.feeders.borrow().values().cloned().collect::<Vec<_>>();
        for feeder in feeders {
            feeder.tick(now_ms);
        }
        let fetchers = self.0.fetchers.borrow().values().cloned().collect::<Vec<_>>();
        for fetcher in fetchers {
            fetcher.tick(now_ms);
        }
    }

    /// A replica whose log may have lacked something has caught up, or leads by an operator's will: its log says so no
    /// more, and then nobody else does.
    fn verify(&self, partition: &Partition<D>) {
        if !partition.log().is_unverified() {
            return;
        }
        let mut hosted = self.0.shared.hosted.borrow_mut();
        let Some(hosted) = hosted.get_mut(&partition.id()) else { return };
        let Some(assignment) = &hosted.assignment else { return };
        if hosted.verified == Some(assignment.leader_epoch) {
            return;
        }
        // Who was not electable and leads was elected by an operator: what it has is the truth now.
        let leads =
            partition.role() == CurrentRole::Leading && partition.leader_epoch() == assignment.leader_epoch;
        if !leads && !partition.is_verified_by(assignment) {
            return;
        }
        hosted.verified = Some(assignment.leader_epoch);
        let (partition, host) = (partition.clone(), self.0.shared.host.clone());
        let note = async move {
            match partition.log().note_verified().await {
                Ok(()) => host.report(Report::Verified { replica: partition.me() }),
                Err(error) => {
                    tracing::error!(dir = %partition.log().dir().display(), %error, "a replica stays unverified")
                }
            }
        };
        self.0.shared.spawn(note, Priority::Background);
    }

    /// The ISR that a leader proposed with this version was not stored, or nobody knows.
    pub fn isr_refused(&self, id: TopicPartition, version: Version) {
        if let Some(partition) = self.partition(id) {
            partition.isr_refused(version);
        }
    }

    /// The node is cut off from the coordination service for longer than its session lasts, or not any more.
    pub fn set_isolated(&self, is_isolated: bool) {
        self.0.shared.is_isolated.set(is_isolated);
        for hosted in self.0.shared.hosted.borrow().values() {
            hosted.partition.set_isolated(is_isolated);
        }
    }

    /// A reader has met damage at an offset: it is mended from another replica, if one can be reached.
    pub fn damaged(&self, id: TopicPartition, offset: Offset) {
        self.0.shared.mending.damaged(id, offset);
    }

    /// Before a clean stop: tells all leaders that this node stops, so that they do not wait for it. Ready when that
    /// was sent; call it once this node leads nothing any more.
    pub async fn leave(&self) {
        let fetchers = self.0.fetchers.borrow().values().cloned().collect::<Vec<_>>();
        for fetcher in fetchers {
            fetcher.leave().await;
        }
    }

    /// Ends all streams and tasks.
    pub fn stop(&self) {
        self.0.shared.is_stopped.set(true);
        self.0.shared.mending.wake();
        let fetchers = std::mem::take(&mut *self.0.fetchers.borrow_mut());
        for fetcher in fetchers.into_values() {
            fetcher.stop();
        }
        let feeders = self.0.feeders.borrow().values().cloned().collect::<Vec<_>>();
        for feeder in feeders {
            feeder.close();
        }
        let strangers = self.0.strangers.borrow().iter().filter_map(Weak::upgrade).collect::<Vec<_>>();
        for stranger in strangers {
            stranger.close();
        }
    }

    /// Ready when all tasks have ended, after [`Replicas::stop`].
    pub async fn stopped(&self) {
        while self.0.shared.tasks.get() > 0 {
            self.0.shared.tasks_ended.notified().await;
        }
    }

    /// What the streams are doing.
    pub fn stats(&self) -> StreamStats {
        let mut stats = self.0.shared.mending.stats();
        stats.feeders = self.0.feeders.borrow().values().map(|feeder| feeder.stats()).collect();
        stats.fetchers = self.0.fetchers.borrow().values().map(|fetcher| fetcher.stats()).collect();
        stats
    }

    /// All replicas of a partition that could have what is damaged here, and how to reach them.
    pub(crate) async fn ask_others(
        &self,
        id: TopicPartition,
        from: Offset,
        end: Offset,
    ) -> Option<(Offset, Vec<u8>)> {
        let fetchers = self.0.fetchers.borrow().values().cloned().collect::<Vec<_>>();
        for fetcher in fetchers {
            if let Ok(range) = fetcher.ask_range(id, from, end).await {
                return Some(range);
            }
        }
        let feeders = self.0.feeders.borrow().values().cloned().collect::<Vec<_>>();
        for feeder in feeders {
            if let Ok(range) = feeder.ask_range(id, from, end).await {
                return Some(range);
            }
        }
        None
    }

    fn start_mending(&self) {
        let shared = &self.0.shared;
        let replicas = self.clone();
        shared.spawn(async move { mending::mend(replicas).await }, Priority::Background);
        if shared.options.scrub_bytes_per_second.is_some() {
            shared.spawn(mending::scrub(shared.clone()), Priority::Background);
        }
    }

    pub(crate) fn shared(&self) -> &Rc<Shared<D, H>> {
        &self.0.shared
    }
}
