//! Who is in sync with the leader of one partition, as a machine: what followers do in, sets to store out.
//!
//! Owns: what the leader knows of each follower in its epoch (on which connection it copies, how far it is, when it
//! had last caught up), the set that is stored, the set that counts, and the one change that is under way.
//! Invariants: R5 and R10 to R13 of `lib.rs`. No I/O, no clock: every call that needs the time is told it.
//! Not here: the high watermark (`leader.rs` steps on what this accepts), storing a set (the node's agent).
//! Crash story: the leader dies while a change is being stored. Whichever set is found stored, all its members have
//! what was committed: a member that was to come counted before, one that was to go counted still.

use std::collections::VecDeque;

use corelog_engine::Offset;
use corelog_engine::log::Stage;

use crate::coordination::Version;
use crate::leader::ReplicaEnds;
use crate::replica::ReplicaId;

/// When a follower is in sync. Times in ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IsrOptions {
    /// A follower that has not had all that the leader had at some moment of this past is out of sync. Longer than
    /// the pause of a busy disk, shorter than what producers put up with.
    pub lag_max_ms: u64,
    /// A follower whose connection broke is out of sync after this: a reconnection takes far less, and producers wait
    /// meanwhile.
    pub disconnect_max_ms: u64,
    /// A refused or unanswered proposal is made again after this.
    pub retry_ms: u64,
}

impl Default for IsrOptions {
    fn default() -> Self {
        Self { lag_max_ms: 10_000, disconnect_max_ms: 1_000, retry_ms: 500 }
    }
}

/// How many moments of the past the leader's end is remembered at, within the lag allowed: a lag is known to a
/// sixteenth.
const SAMPLES_PER_LAG: u64 = 16;

/// An unanswered proposal is waited for so many times longer than a refused one is not repeated.
const UNANSWERED_RETRIES: u64 = 20;

/// Number of a connection at the leader: a later one has a higher number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// What became of a follower's wish to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Followed {
    /// Its first on this connection.
    First,
    /// It had asked on this connection before: after a cut, or because it lost its place.
    Again,
    /// Not a replica of this partition.
    Stranger,
    /// It has come back on a later connection: nothing was changed.
    OldConnection,
}

/// What the leader is at, when somebody asks who is in sync.
#[derive(Clone, Copy, Debug)]
pub struct LeaderView {
    /// Its log end.
    pub log_end: Offset,
    /// Its high watermark.
    pub high_watermark: Offset,
    /// The end of a follower that counts.
    pub stage: Stage,
}

/// One connection on which a follower copies, or asks how to begin.
#[derive(Clone, Copy, Debug)]
struct Session {
    connection: ConnectionId,
    is_copying: bool,
    ends: Option<ReplicaEnds>,
}

/// What is known of one follower.
#[derive(Clone, Copy, Debug)]
struct Follower {
    replica: ReplicaId,
    session: Option<Session>,
    /// The latest moment of which it is known to have all that the leader had then.
    caught_up_ms: u64,
    /// When its connection broke.
    broken_ms: Option<u64>,
    /// It has said that it stops.
    has_left: bool,
}

/// A change that is being stored.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pending {
    isr: Vec<ReplicaId>,
    since_ms: u64,
    /// It was not stored; not repeated before this.
    retry_ms: Option<u64>,
}

/// Who is in sync with one leader in one epoch.
#[derive(Clone, Debug)]
pub struct Isr {
    me: ReplicaId,
    epoch_start: Offset,
    options: IsrOptions,
    followers: Vec<Follower>,
    stored: Vec<ReplicaId>,
    version: Version,
    counted: Vec<ReplicaId>,
    pending: Option<Pending>,
    refused: bool,
    /// Moments of the past and the leader's end then, oldest first.
    samples: VecDeque<(u64, Offset)>,
    ticked_ms: u64,
}

/// What an epoch begins with.
#[derive(Clone, Debug)]
pub struct IsrStart {
    /// The leader.
    pub me: ReplicaId,
    /// Its log end when the epoch began.
    pub epoch_start: Offset,
    /// All replicas.
    pub replicas: Vec<ReplicaId>,
    /// The set that is stored; `me` is one of them.
    pub isr: Vec<ReplicaId>,
    /// Version under which it is.
    pub version: Version,
}

impl Isr {
    /// The state at the beginning of an epoch: members have the whole lag allowed to connect and catch up.
    ///
    /// # Panics
    /// If the leader is outside its own ISR.
    pub fn new(start: IsrStart, options: IsrOptions, now_ms: u64) -> Self {
        assert!(start.isr.contains(&start.me), "leader {} is outside its own ISR", start.me);
        let mut isr = Self {
            me: start.me,
            epoch_start: start.epoch_start,
            options,
            followers: Vec::new(),
            counted: start.isr.clone(),
            stored: start.isr,
            version: start.version,
            pending: None,
            refused: false,
            samples: VecDeque::new(),
            ticked_ms: now_ms,
        };
        isr.set_replicas(&start.replicas, now_ms);
        isr
    }

    /// The set that counts: what the high watermark waits for (R5).
    pub fn counted(&self) -> &[ReplicaId] {
        &self.counted
    }

    /// The set that is stored.
    pub fn stored(&self) -> &[ReplicaId] {
        &self.stored
    }

    /// The version of what is stored, as far as known.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether a replica may follow: one of the assignment.
    pub fn is_follower(&self, replica: ReplicaId) -> bool {
        self.followers.iter().any(|follower| follower.replica == replica)
    }

    /// What a follower has said on the connection on which it copies now.
    pub fn ends_of(&self, replica: ReplicaId) -> Option<ReplicaEnds> {
        self.followers.iter().find(|follower| follower.replica == replica)?.session?.ends
    }

    /// A follower has asked how to begin, or how to go on after a cut: what it said before counts no more (R10).
    /// `is_copying`: it was told to copy.
    pub fn followed(&mut self, replica: ReplicaId, connection: ConnectionId, is_copying: bool) -> Followed {
        let Some(follower) = self.follower_mut(replica) else { return Followed::Stranger };
        let known = follower.session.map(|session| session.connection);
        if known > Some(connection) {
            return Followed::OldConnection;
        }
        follower.session = Some(Session { connection, is_copying, ends: None });
        follower.broken_ms = None;
        follower.has_left = false;
        if known == Some(connection) { Followed::Again } else { Followed::First }
    }

    /// A follower has said how far it is. Returns whether that counts: only on the connection on which it last asked
    /// to follow, once it was told to copy (R10).
    pub fn reported(&mut self, replica: ReplicaId, connection: ConnectionId, ends: ReplicaEnds) -> bool {
        let Some(follower) = self.follower_mut(replica) else { return false };
        let Some(session) = &mut follower.session else { return false };
        if session.connection != connection || !session.is_copying {
            return false;
        }
        let known = session.ends.unwrap_or_default();
        session.ends = Some(ReplicaEnds {
            written: known.written.max(ends.written),
            durable: known.durable.max(ends.durable),
        });
        true
    }

    /// A connection broke: the follower has a little time to come back.
    pub fn disconnected(&mut self, replica: ReplicaId, connection: ConnectionId, now_ms: u64) {
        if let Some(follower) = self.follower_mut(replica)
            && follower.session.is_some_and(|session| session.connection == connection)
        {
            follower.session = None;
            follower.broken_ms = Some(now_ms);
        }
    }

    /// A follower has said that it stops: it is waited for no more.
    pub fn left(&mut self, replica: ReplicaId, connection: ConnectionId) {
        if let Some(follower) = self.follower_mut(replica)
            && follower.session.is_some_and(|session| session.connection == connection)
        {
            follower.session = None;
            follower.has_left = true;
        }
    }

    /// Another set is stored, or other replicas are assigned. Returns whether the version was newer: then exactly the
    /// stored set counts, and nothing is under way any more.
    pub fn assigned(
        &mut self,
        replicas: &[ReplicaId],
        isr: &[ReplicaId],
        version: Version,
        now_ms: u64,
    ) -> bool {
        if version <= self.version || !isr.contains(&self.me) {
            return false;
        }
        for replica in isr.iter().filter(|replica| !self.counted.contains(replica)) {
            if let Some(follower) = self.followers.iter_mut().find(|f| f.replica == *replica) {
                follower.caught_up_ms = now_ms;
            }
        }
        self.version = version;
        self.stored = isr.to_vec();
        self.counted = isr.to_vec();
        self.pending = None;
        self.refused = false;
        self.set_replicas(replicas, now_ms);
        true
    }

    /// The change under way was not stored, or nobody knows: all that may be stored goes on to count (R5), and it is
    /// proposed again a little later.
    pub fn refused(&mut self, version: Version) {
        if version == self.version && self.pending.is_some() {
            self.refused = true;
        }
    }

    /// Looks who is in sync. Returns the set to store, if it is another one than is stored and nothing is under way;
    /// who is new in it counts from now on (R5).
    pub fn tick(&mut self, now_ms: u64, leader: LeaderView) -> Option<Vec<ReplicaId>> {
        self.observe(now_ms, leader);
        if !self.may_propose(now_ms) {
            return None;
        }
        let isr = self.wanted(now_ms, leader);
        if same_set(&isr, &self.stored) && same_set(&self.counted, &self.stored) {
            self.pending = None;
            return None;
        }
        let new = isr.iter().filter(|replica| !self.counted.contains(replica)).copied().collect::<Vec<_>>();
        self.counted.extend(new);
        self.pending = Some(Pending { isr: isr.clone(), since_ms: now_ms, retry_ms: None });
        Some(isr)
    }

    /// Notes where the leader is, and who has all that it had at some moment.
    fn observe(&mut self, now_ms: u64, leader: LeaderView) {
        let interval_ms = self.options.lag_max_ms / SAMPLES_PER_LAG;
        let pause_ms = now_ms.saturating_sub(self.ticked_ms);
        self.ticked_ms = self.ticked_ms.max(now_ms);
        if pause_ms > self.options.lag_max_ms / 2 {
            // The leader itself stood still: what followers said meanwhile is still unread, and nobody lags by it.
            self.forgive(pause_ms);
        }
        for follower in &mut self.followers {
            let Some(ends) = follower.session.and_then(|session| session.ends) else { continue };
            let end = ends.at(leader.stage);
            if end >= leader.log_end {
                follower.caught_up_ms = now_ms;
                continue;
            }
            if let Some((at_ms, _)) = self.samples.iter().rev().find(|(_, sample)| *sample <= end) {
                follower.caught_up_ms = follower.caught_up_ms.max(*at_ms);
            }
        }
        let is_due = self.samples.back().is_none_or(|(last, _)| now_ms >= last + interval_ms);
        if is_due {
            self.samples.push_back((now_ms, leader.log_end));
            while self.samples.len() as u64 > SAMPLES_PER_LAG + 1 {
                self.samples.pop_front();
            }
        }
    }

    fn forgive(&mut self, pause_ms: u64) {
        for follower in &mut self.followers {
            follower.caught_up_ms += pause_ms;
            follower.broken_ms = follower.broken_ms.map(|at| at + pause_ms);
        }
        for (at_ms, _) in &mut self.samples {
            *at_ms += pause_ms;
        }
    }

    fn may_propose(&mut self, now_ms: u64) -> bool {
        let Some(pending) = &mut self.pending else { return true };
        if std::mem::take(&mut self.refused) {
            pending.retry_ms = Some(now_ms + self.options.retry_ms);
        }
        let unanswered_ms = pending.since_ms + self.options.retry_ms * UNANSWERED_RETRIES;
        now_ms >= pending.retry_ms.unwrap_or(unanswered_ms)
    }

    /// The leader, members that are in sync still, and others that have come to be.
    fn wanted(&self, now_ms: u64, leader: LeaderView) -> Vec<ReplicaId> {
        let followers = self.followers.iter().filter(|follower| {
            if self.counted.contains(&follower.replica) {
                self.is_in_sync(follower, now_ms)
            } else {
                self.has_caught_up(follower, leader) && self.is_in_sync(follower, now_ms)
            }
        });
        std::iter::once(self.me).chain(followers.map(|follower| follower.replica)).collect()
    }

    fn is_in_sync(&self, follower: &Follower, now_ms: u64) -> bool {
        let is_broken = follower.broken_ms.is_some_and(|at| now_ms >= at + self.options.disconnect_max_ms);
        let lag_ms = now_ms.saturating_sub(follower.caught_up_ms);
        !follower.has_left && !is_broken && lag_ms <= self.options.lag_max_ms
    }

    /// Whether a follower may join (R11).
    fn has_caught_up(&self, follower: &Follower, leader: LeaderView) -> bool {
        let ends = follower.session.and_then(|session| session.ends);
        let needed = leader.high_watermark.max(self.epoch_start);
        ends.is_some_and(|ends| ends.at(leader.stage) >= needed)
    }

    fn set_replicas(&mut self, replicas: &[ReplicaId], now_ms: u64) {
        self.followers.retain(|follower| replicas.contains(&follower.replica));
        for &replica in replicas {
            if replica != self.me && !self.is_follower(replica) {
                let follower = Follower {
                    replica,
                    session: None,
                    caught_up_ms: now_ms,
                    broken_ms: None,
                    has_left: false,
                };
                self.followers.push(follower);
            }
        }
    }

    fn follower_mut(&mut self, replica: ReplicaId) -> Option<&mut Follower> {
        self.followers.iter_mut().find(|follower| follower.replica == replica)
    }
}

fn same_set(a: &[ReplicaId], b: &[ReplicaId]) -> bool {
    a.len() == b.len() && a.iter().all(|replica| b.contains(replica))
}

#[cfg(test)]
mod tests {
    use corelog_engine::LogId;

    use super::*;
    use crate::replica::NodeId;

    const COMMIT: Stage = Stage::Durable;

    fn replica(node: u32) -> ReplicaId {
        ReplicaId { node: NodeId(node), log: LogId(u128::from(node)) }
    }

    fn replicas(nodes: &[u32]) -> Vec<ReplicaId> {
        nodes.iter().map(|&node| replica(node)).collect()
    }

    /// Replica 1 leads 1, 2 and 3 from offset 100 on, at time 0.
    struct Story {
        isr: Isr,
        log_end: u64,
        high_watermark: u64,
        version: i64,
    }

    impl Story {
        fn new(isr: &[u32]) -> Self {
            let start = IsrStart {
                me: replica(1),
                epoch_start: Offset(100),
                replicas: replicas(&[1, 2, 3]),
                isr: replicas(isr),
                version: Version(7),
            };
            let isr = Isr::new(start, IsrOptions::default(), 0);
            Self { isr, log_end: 100, high_watermark: 60, version: 7 }
        }

        fn follow(&mut self, node: u32, connection: u64) {
            let followed = self.isr.followed(replica(node), ConnectionId(connection), true);
            assert_eq!(followed, Followed::First);
        }

        fn report(&mut self, node: u32, connection: u64, end: u64) -> bool {
            let ends = ReplicaEnds { written: Offset(end + 5), durable: Offset(end) };
            self.isr.reported(replica(node), ConnectionId(connection), ends)
        }

        /// The nodes of the set that is proposed.
        fn tick(&mut self, now_ms: u64) -> Option<Vec<u32>> {
            let view = LeaderView {
                log_end: Offset(self.log_end),
                high_watermark: Offset(self.high_watermark),
                stage: COMMIT,
            };
            self.isr.tick(now_ms, view).map(|isr| nodes(&isr))
        }

        /// A newer version with this set is stored.
        fn stored(&mut self, isr: &[u32], now_ms: u64) {
            self.version += 1;
            let version = Version(self.version);
            assert!(self.isr.assigned(&replicas(&[1, 2, 3]), &replicas(isr), version, now_ms));
        }

        fn counted(&self) -> Vec<u32> {
            nodes(self.isr.counted())
        }
    }

    fn nodes(replicas: &[ReplicaId]) -> Vec<u32> {
        let mut nodes: Vec<_> = replicas.iter().map(|replica| replica.node.0).collect();
        nodes.sort_unstable();
        nodes
    }

    #[test]
    fn a_follower_joins_once_it_has_reached_the_epochs_start_and_the_high_watermark() {
        // (the leader's high watermark, the follower's durable end, whether it may join): R11.
        for (high_watermark, end, joins) in [
            (60, 60, false),
            (60, 99, false),
            (60, 100, true),
            (130, 100, false),
            (130, 129, false),
            (130, 130, true),
        ] {
            let mut story = Story { log_end: 140, high_watermark, ..Story::new(&[1, 2]) };
            for node in [2, 3] {
                story.follow(node, 1);
            }
            story.report(2, 1, 140);
            story.report(3, 1, end);
            let expected = joins.then_some(vec![1, 2, 3]);
            assert_eq!(story.tick(100), expected, "high watermark {high_watermark}, end {end}");
        }
    }

    #[test]
    fn a_growth_counts_before_it_is_stored_and_a_shrinkage_after() {
        let mut story = Story::new(&[1, 2]);
        story.follow(3, 1);
        story.report(3, 1, 100);
        assert_eq!(story.tick(100), Some(vec![1, 2, 3]));
        assert_eq!(story.counted(), [1, 2, 3], "R5: it counts while it is being stored");
        story.stored(&[1, 2, 3], 150);
        story.follow(2, 2);
        story.report(2, 2, 100);
        story.isr.left(replica(3), ConnectionId(1));
        assert_eq!(story.tick(200), Some(vec![1, 2]));
        assert_eq!(story.counted(), [1, 2, 3], "R5: it counts until the smaller set is stored");
        story.stored(&[1, 2], 250);
        assert_eq!(story.counted(), [1, 2]);
        assert_eq!(story.tick(300), None);
    }

    #[test]
    fn one_change_is_under_way_at_a_time() {
        let mut story = Story::new(&[1, 2]);
        story.follow(2, 1);
        story.report(2, 1, 100);
        story.follow(3, 2);
        story.report(3, 2, 100);
        assert_eq!(story.tick(100), Some(vec![1, 2, 3]));
        story.isr.left(replica(2), ConnectionId(1));
        assert_eq!(story.tick(200), None);
        story.stored(&[1, 2, 3], 300);
        assert_eq!(story.tick(300), Some(vec![1, 3]));
    }

    #[test]
    fn a_refused_change_takes_nobody_away_and_is_tried_again() {
        let mut story = Story::new(&[1, 2]);
        story.follow(2, 1);
        story.report(2, 1, 100);
        story.follow(3, 2);
        story.report(3, 2, 100);
        assert_eq!(story.tick(100), Some(vec![1, 2, 3]));
        story.isr.refused(Version(6));
        assert_eq!(story.tick(400), None, "the refusal of another version means nothing");
        story.isr.refused(Version(7));
        story.isr.left(replica(3), ConnectionId(2));
        assert_eq!(story.tick(500), None);
        assert_eq!(story.counted(), [1, 2, 3], "R13: the growth may be stored all the same");
        // It stores what is stored already, to learn that the growth is not.
        assert_eq!(story.tick(1_000), Some(vec![1, 2]));
        assert_eq!(story.counted(), [1, 2, 3]);
        story.stored(&[1, 2], 1_100);
        assert_eq!(story.counted(), [1, 2]);
    }

    #[test]
    fn an_unanswered_change_is_tried_again_much_later() {
        let mut story = Story::new(&[1, 2, 3]);
        story.follow(2, 1);
        story.report(2, 1, 100);
        story.follow(3, 1);
        story.isr.left(replica(3), ConnectionId(1));
        assert_eq!(story.tick(100), Some(vec![1, 2]));
        for at_ms in [1_000, 5_000, 10_000] {
            assert_eq!(story.tick(at_ms), None);
        }
        assert_eq!(story.tick(10_100), Some(vec![1, 2]));
    }

    #[test]
    fn a_member_that_follows_a_busy_leader_closely_stays_although_it_never_has_all() {
        let mut story = Story::new(&[1, 2]);
        story.follow(2, 1);
        for step in 0..300u64 {
            story.log_end = 100 + step * 10;
            story.report(2, 1, story.log_end - 10);
            assert_eq!(story.tick(step * 100), None, "after {step} steps");
        }
    }

    #[test]
    fn a_member_that_falls_behind_leaves_after_the_lag_allowed() {
        let mut story = Story::new(&[1, 2, 3]);
        story.follow(2, 1);
        story.follow(3, 1);
        let mut left_at = None;
        for at_ms in (0..20_000).step_by(100) {
            story.log_end = 100 + at_ms;
            story.report(2, 1, story.log_end);
            // It stops at what the leader had at 3 s.
            story.report(3, 1, story.log_end.min(3_100));
            if left_at.is_none() && story.tick(at_ms).is_some_and(|isr| isr == [1, 2]) {
                left_at = Some(at_ms);
            }
        }
        let left_at = left_at.expect("it left");
        assert!((12_300..=13_200).contains(&left_at), "it left at {left_at}");
    }

    #[test]
    fn a_member_that_never_comes_leaves_after_the_lag_allowed() {
        let mut story = Story::new(&[1, 2]);
        for at_ms in (0..=10_000).step_by(500) {
            assert_eq!(story.tick(at_ms), None);
        }
        assert_eq!(story.tick(10_500), Some(vec![1]));
    }

    #[test]
    fn a_broken_connection_is_waited_for_a_second() {
        let mut story = Story::new(&[1, 2]);
        story.follow(2, 1);
        story.report(2, 1, 100);
        assert_eq!(story.tick(0), None);
        story.isr.disconnected(replica(2), ConnectionId(1), 300);
        assert_eq!(story.tick(1_200), None);
        story.follow(2, 2);
        story.isr.disconnected(replica(2), ConnectionId(1), 1_250);
        assert_eq!(story.tick(2_400), None, "the old connection says nothing of the new one");
        story.isr.disconnected(replica(2), ConnectionId(2), 2_500);
        assert_eq!(story.tick(3_500), Some(vec![1]));
    }

    #[test]
    fn reports_count_on_the_connection_that_asked_last_alone() {
        let mut story = Story::new(&[1, 2]);
        assert!(!story.report(2, 1, 100), "it has not asked");
        story.isr.followed(replica(2), ConnectionId(1), false);
        assert!(!story.report(2, 1, 100), "it has to cut first");
        assert_eq!(story.isr.followed(replica(2), ConnectionId(1), true), Followed::Again);
        assert!(story.report(2, 1, 100));
        assert!(story.report(2, 1, 90), "late, but of this connection");
        assert_eq!(story.isr.ends_of(replica(2)).map(|ends| ends.durable), Some(Offset(100)));
        story.follow(2, 3);
        assert_eq!(story.isr.ends_of(replica(2)), None, "R10");
        assert!(!story.report(2, 1, 100));
        assert_eq!(story.isr.followed(replica(2), ConnectionId(2), true), Followed::OldConnection);
        assert_eq!(story.isr.followed(replica(9), ConnectionId(9), true), Followed::Stranger);
    }

    #[test]
    fn a_pause_of_the_leader_is_nobodys_lag() {
        let mut story = Story::new(&[1, 2]);
        story.follow(2, 1);
        story.report(2, 1, 100);
        story.tick(1_000);
        story.log_end = 200;
        assert_eq!(story.tick(60_000), None);
        assert_eq!(story.tick(65_000), None);
    }

    #[test]
    fn a_member_that_is_no_replica_any_more_is_left_out() {
        let mut story = Story::new(&[1, 2, 9]);
        story.follow(2, 1);
        story.report(2, 1, 100);
        assert_eq!(story.tick(100), Some(vec![1, 2]));
    }

    #[test]
    fn an_older_version_or_a_set_without_the_leader_is_ignored() {
        let mut story = Story::new(&[1, 2]);
        for (isr, version) in [(&[1][..], 7), (&[1], 6), (&[2], 8)] {
            assert!(!story.isr.assigned(&replicas(&[1, 2, 3]), &replicas(isr), Version(version), 100));
            assert_eq!(story.counted(), [1, 2]);
        }
    }
}
