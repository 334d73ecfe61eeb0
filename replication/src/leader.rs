//! The leader of one partition as a step machine: reports in, high watermark out.
//!
//! Owns: the ISR as the leader counts it, what each member has reported in this epoch, the high watermark.
//! Invariants: R1 to R5, R8 and R10 of `lib.rs`. No I/O, no clock, no waiting: [`Leader::step`] runs to its end.
//! Crash story: the leader dies and a member of the ISR takes over. All below the high watermark was on every
//! member, at the stage that the topic's flush names, so the new leader has it, whichever member it is.

use corelog_engine::log::Stage;
use corelog_engine::{LeaderEpoch, Offset};

use crate::replica::ReplicaId;

/// How far a replica's log has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaEnds {
    /// Exclusive end of what its device has taken.
    pub written: Offset,
    /// Exclusive end of what survives its power loss.
    pub durable: Offset,
}

impl ReplicaEnds {
    /// The end of one stage.
    pub fn at(self, stage: Stage) -> Offset {
        match stage {
            Stage::Written => self.written,
            Stage::Durable => self.durable,
        }
    }
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The leader's own device has taken its log up to `end`.
    LocallyWritten {
        /// Exclusive end.
        end: Offset,
    },
    /// A sync on the leader has covered its log up to `end`.
    LocallyDurable {
        /// Exclusive end.
        end: Offset,
    },
    /// A follower has said how far it is.
    FollowerReported {
        /// Which.
        replica: ReplicaId,
        /// The epoch in which it copies.
        epoch: LeaderEpoch,
        /// Its ends.
        ends: ReplicaEnds,
    },
    /// A follower has asked to follow, again perhaps: all that counts is what it reports from now on (R10).
    FollowerBegan {
        /// Which.
        replica: ReplicaId,
    },
    /// Another set counts as in sync (see R5 for when to say so).
    IsrChanged {
        /// All members; the leader is one of them.
        isr: Vec<ReplicaId>,
    },
    /// The topic's flush names another stage.
    StageChanged {
        /// The stage that counts from now on.
        stage: Stage,
    },
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Show readers all below `to`, and answer whom it satisfies.
    AdvanceHighWatermark {
        /// The new high watermark, above the old one.
        to: Offset,
    },
}

/// What a leadership begins with.
#[derive(Clone, Debug)]
pub struct LeaderStart {
    /// The leader itself.
    pub me: ReplicaId,
    /// Its epoch, stored durably before.
    pub epoch: LeaderEpoch,
    /// Members that count as in sync; `me` is one of them.
    pub isr: Vec<ReplicaId>,
    /// The leader's log end when the epoch began.
    pub epoch_start: Offset,
    /// A high watermark known from before, or the log start.
    pub high_watermark: Offset,
    /// What the topic's flush counts.
    pub stage: Stage,
}

/// A member of the ISR and what it has said in this epoch.
#[derive(Clone, Copy, Debug)]
struct Member {
    replica: ReplicaId,
    reported: Option<ReplicaEnds>,
}

/// The leader of one partition in one epoch.
#[derive(Clone, Debug)]
pub struct Leader {
    me: ReplicaId,
    epoch: LeaderEpoch,
    epoch_start: Offset,
    stage: Stage,
    isr: Vec<Member>,
    local: ReplicaEnds,
    high_watermark: Offset,
}

impl Leader {
    /// A leader of which nobody, itself included, has reported anything yet.
    ///
    /// # Panics
    /// If it is not in its own ISR, or its high watermark lies beyond its log.
    pub fn new(start: LeaderStart) -> Self {
        assert!(start.isr.contains(&start.me), "leader {} is outside its own ISR", start.me);
        assert!(
            start.high_watermark <= start.epoch_start,
            "high watermark {} beyond the log end {}",
            start.high_watermark,
            start.epoch_start
        );
        let isr = start.isr.into_iter().map(|replica| Member { replica, reported: None }).collect();
        Self {
            me: start.me,
            epoch: start.epoch,
            epoch_start: start.epoch_start,
            stage: start.stage,
            isr,
            local: ReplicaEnds::default(),
            high_watermark: start.high_watermark,
        }
    }

    /// The epoch of this leadership.
    pub fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    /// Exclusive end of what readers may see.
    pub fn high_watermark(&self) -> Offset {
        self.high_watermark
    }

    /// What the topic's flush counts.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The leader's own end of the stage that counts: what `acks = 1` waits for.
    pub fn local_end(&self) -> Offset {
        self.local.at(self.stage)
    }

    /// Whether the high watermark has reached the start of the epoch (R8).
    pub fn is_caught_up(&self) -> bool {
        self.high_watermark >= self.epoch_start
    }

    /// How many members count as in sync.
    pub fn isr_size(&self) -> usize {
        self.isr.len()
    }

    /// Applies one event; returns what to do.
    ///
    /// # Panics
    /// If the leader's own ends go back, or the ISR is without the leader: both are bugs of the caller. Whatever
    /// followers say is input: what does not belong here is ignored.
    pub fn step(&mut self, event: Event) -> Option<Action> {
        match event {
            Event::LocallyWritten { end } => {
                assert!(end >= self.local.written, "written went back from {} to {end}", self.local.written);
                self.local.written = end;
                self.report(self.me, self.local);
            }
            Event::LocallyDurable { end } => {
                assert!(end >= self.local.durable, "durable went back from {} to {end}", self.local.durable);
                self.local.durable = end;
                self.report(self.me, self.local);
            }
            Event::FollowerReported { replica, epoch, ends } => {
                if epoch != self.epoch || replica == self.me {
                    return None;
                }
                self.report(replica, ends);
            }
            Event::FollowerBegan { replica } => {
                if let Some(member) = self.isr.iter_mut().find(|m| m.replica == replica && replica != self.me)
                {
                    member.reported = None;
                }
            }
            Event::IsrChanged { isr } => {
                assert!(isr.contains(&self.me), "leader {} would leave its own ISR", self.me);
                let known = std::mem::take(&mut self.isr);
                let reported = |r| known.iter().find(|m| m.replica == r).and_then(|m| m.reported);
                self.isr =
                    isr.into_iter().map(|replica| Member { replica, reported: reported(replica) }).collect();
            }
            Event::StageChanged { stage } => self.stage = stage,
        }
        self.advance()
    }

    /// Notes a report of a member; ends only grow within an epoch, so a late report changes nothing.
    fn report(&mut self, replica: ReplicaId, ends: ReplicaEnds) {
        if let Some(member) = self.isr.iter_mut().find(|member| member.replica == replica) {
            let known = member.reported.unwrap_or_default();
            member.reported = Some(ReplicaEnds {
                written: known.written.max(ends.written),
                durable: known.durable.max(ends.durable),
            });
        }
    }

    fn advance(&mut self) -> Option<Action> {
        let to = committed(self.isr.iter().map(|member| member.reported), self.stage)?;
        if to <= self.high_watermark {
            return None;
        }
        // The leader is a member, so what a follower claims to have beyond the leader's own end lifts nothing.
        self.high_watermark = to;
        Some(Action::AdvanceHighWatermark { to })
    }
}

/// What all members have, or `None` while one of them has said nothing.
fn committed(reports: impl Iterator<Item = Option<ReplicaEnds>>, stage: Stage) -> Option<Offset> {
    let mut least: Option<Offset> = None;
    for report in reports {
        let end = report?.at(stage);
        least = Some(least.map_or(end, |l| l.min(end)));
    }
    least
}

#[cfg(test)]
mod tests {
    use corelog_engine::LogId;

    use super::*;
    use crate::replica::NodeId;

    fn replica(node: u32) -> ReplicaId {
        ReplicaId { node: NodeId(node), log: LogId(u128::from(node)) }
    }

    fn leader(isr: &[u32], stage: Stage) -> Leader {
        Leader::new(LeaderStart {
            me: replica(1),
            epoch: LeaderEpoch(7),
            isr: isr.iter().map(|&n| replica(n)).collect(),
            epoch_start: Offset(100),
            high_watermark: Offset(40),
            stage,
        })
    }

    fn written(end: u64) -> Event {
        Event::LocallyWritten { end: Offset(end) }
    }

    fn durable(end: u64) -> Event {
        Event::LocallyDurable { end: Offset(end) }
    }

    fn follower(node: u32, epoch: u32, written: u64, durable: u64) -> Event {
        let ends = ReplicaEnds { written: Offset(written), durable: Offset(durable) };
        Event::FollowerReported { replica: replica(node), epoch: LeaderEpoch(epoch), ends }
    }

    fn isr(nodes: &[u32]) -> Event {
        Event::IsrChanged { isr: nodes.iter().map(|&n| replica(n)).collect() }
    }

    /// Steps through events; the number beside each is the high watermark expected after it.
    fn check(mut leader: Leader, story: &[(Event, u64)]) {
        for (event, expected) in story {
            let before = leader.high_watermark();
            let action = leader.step(event.clone());
            assert_eq!(leader.high_watermark(), Offset(*expected), "after {event:?}");
            let moved = leader.high_watermark() > before;
            let to = leader.high_watermark();
            assert_eq!(action, moved.then_some(Action::AdvanceHighWatermark { to }), "after {event:?}");
        }
    }

    #[test]
    fn alone_with_commit_the_durable_end_counts() {
        let story = [(written(120), 40), (durable(100), 100), (written(130), 100), (durable(130), 130)];
        check(leader(&[1], Stage::Durable), &story);
    }

    #[test]
    fn alone_with_interval_the_written_end_counts() {
        let story = [(durable(90), 40), (written(120), 120), (durable(100), 120), (written(130), 130)];
        check(leader(&[1], Stage::Written), &story);
    }

    #[test]
    fn a_member_that_is_silent_in_this_epoch_holds_the_high_watermark() {
        let story = [
            (durable(150), 40),
            (follower(2, 7, 150, 140), 40),
            (follower(3, 6, 150, 150), 40),
            (follower(3, 7, 120, 110), 110),
            (follower(3, 7, 150, 150), 140),
        ];
        check(leader(&[1, 2, 3], Stage::Durable), &story);
    }

    #[test]
    fn strangers_older_epochs_and_late_reports_move_nothing() {
        let story = [
            (durable(150), 40),
            (follower(9, 7, 150, 150), 40),
            (follower(2, 8, 150, 150), 40),
            (follower(2, 7, 120, 120), 120),
            (follower(2, 7, 60, 60), 120),
            (follower(1, 7, 900, 900), 120),
        ];
        check(leader(&[1, 2], Stage::Durable), &story);
    }

    #[test]
    fn a_follower_that_claims_more_than_the_leader_has_does_not_lift_the_mark_above_it() {
        let story = [(durable(110), 40), (follower(2, 7, 900, 900), 110)];
        check(leader(&[1, 2], Stage::Durable), &story);
    }

    #[test]
    fn a_member_that_begins_again_counts_only_with_what_it_reports_then() {
        let began = |node| Event::FollowerBegan { replica: replica(node) };
        let story = [
            (durable(150), 40),
            (follower(2, 7, 120, 120), 120),
            // It restarted, without all that it had written.
            (began(2), 120),
            (durable(160), 120),
            (follower(2, 7, 110, 110), 120),
            (follower(2, 7, 130, 130), 130),
            (began(9), 130),
            (began(1), 130),
            (follower(2, 7, 160, 160), 160),
        ];
        check(leader(&[1, 2], Stage::Durable), &story);
    }

    #[test]
    fn a_shrinking_isr_frees_the_mark_and_a_growing_one_holds_it_until_the_new_member_reports() {
        let story = [
            (durable(150), 40),
            (isr(&[1]), 150),
            (isr(&[1, 2]), 150),
            (durable(160), 150),
            (follower(2, 7, 155, 155), 155),
            // Gone and back: what it had reported before it left does not count any more.
            (isr(&[1]), 160),
            (isr(&[1, 2]), 160),
            (durable(170), 160),
            (follower(2, 7, 165, 165), 165),
        ];
        check(leader(&[1, 2], Stage::Durable), &story);
    }

    #[test]
    fn a_change_of_the_flush_never_moves_the_mark_back() {
        let story = [
            (written(150), 150),
            (Event::StageChanged { stage: Stage::Durable }, 150),
            (durable(140), 150),
            (written(160), 150),
            (durable(155), 155),
            (Event::StageChanged { stage: Stage::Written }, 160),
        ];
        check(leader(&[1], Stage::Written), &story);
    }

    #[test]
    fn latest_is_known_only_from_the_start_of_the_epoch_on() {
        let mut leader = leader(&[1, 2], Stage::Durable);
        leader.step(durable(120));
        leader.step(follower(2, 7, 99, 99));
        assert!(!leader.is_caught_up());
        leader.step(follower(2, 7, 100, 100));
        assert!(leader.is_caught_up());
    }

    #[test]
    #[should_panic(expected = "durable went back")]
    fn the_leaders_own_end_going_back_is_a_bug() {
        let mut leader = leader(&[1], Stage::Durable);
        leader.step(durable(120));
        leader.step(durable(119));
    }
}
