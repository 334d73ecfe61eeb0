//! How a follower and its leader agree where their logs part, before anything is copied.
//!
//! Owns: both sides of the epoch handshake as pure decisions ([`answer`], [`cut_for`]), and the follower's machine,
//! which knows what it has asked and what may come next.
//! Invariants: R14 to R16 of `lib.rs`.
//! Not here: doing it (`partition/`), the connection (`stream/`).
//! Crash story: a follower restarts with a tail that its leader does not have, or comes back after two other
//! leaderships. It never cuts at a high watermark, which may lag behind what it has acked, and never copies on what
//! it only believes to be common: each cut is followed by another question (KIP-101, KIP-279).
//! Source: KIP-101, KIP-279, KIP-320.

use corelog_engine::checkpoint::EpochTable;
use corelog_engine::{LeaderEpoch, Offset};

use crate::replica::ReplicaId;

/// What a follower says of its log when it wants to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowRequest {
    /// Who asks.
    pub replica: ReplicaId,
    /// The leadership that it follows.
    pub epoch: LeaderEpoch,
    /// The newest leadership that has a batch in its log.
    pub newest_epoch: Option<LeaderEpoch>,
    /// Its log start.
    pub log_start: Offset,
    /// Its log end.
    pub log_end: Offset,
}

/// Where a leadership ended in the leader's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochEnd {
    /// The newest leadership in the leader's log that is not above the one asked for.
    pub epoch: LeaderEpoch,
    /// Exclusive end of its records.
    pub end: Offset,
}

/// What a follower has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowVerdict {
    /// Append what comes, from its log end on.
    Start {
        /// That log end.
        from: Offset,
    },
    /// Cut the log accordingly, and ask again.
    EpochEnd(EpochEnd),
    /// Begin a new log there; batches come from there on.
    Reset {
        /// The leader's log start.
        to: Offset,
    },
}

/// A leader's answer, with its marks at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowAnswer {
    /// What to do.
    pub verdict: FollowVerdict,
    /// The leader's high watermark.
    pub high_watermark: Offset,
    /// The leader's log start.
    pub log_start: Offset,
    /// The leader's log end: who has all below it has all that was committed before.
    pub log_end: Offset,
}

/// What is to be known of a log.
#[derive(Clone, Copy, Debug)]
pub struct LogView<'a> {
    /// Its leaderships.
    pub epochs: &'a EpochTable,
    /// Its start.
    pub start: Offset,
    /// Its end.
    pub end: Offset,
}

/// The leader's side: decides how a follower has to begin.
///
/// A leader without a record of the follower's newest leadership, or of a later one, says where the newest one that
/// it shares ended; so does one in whose log that leadership ended earlier. Otherwise the follower's log is a prefix.
pub fn answer(leader: LogView<'_>, asked: &FollowRequest) -> FollowVerdict {
    let reset = FollowVerdict::Reset { to: leader.start };
    let Some(newest) = asked.newest_epoch else {
        // An empty log says nothing of the past: it may begin at the leader's start alone, or it would lack records.
        let is_at_start = asked.log_start == asked.log_end && asked.log_end == leader.start;
        return if is_at_start { FollowVerdict::Start { from: asked.log_end } } else { reset };
    };
    if asked.log_end < leader.start {
        return reset;
    }
    let Some(latest) = leader.epochs.latest() else { return reset };
    // Later than any in the leader's log: nothing has been appended in its own term yet, so its latest one ended here.
    let (epoch, end) = leader.epochs.end_offset_for(newest, leader.end).unwrap_or((latest.epoch, leader.end));
    if epoch == newest && asked.log_end <= end {
        return FollowVerdict::Start { from: asked.log_end };
    }
    FollowVerdict::EpochEnd(EpochEnd { epoch, end })
}

/// Where a follower cuts its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All from there on goes.
    At(Offset),
    /// All goes: nothing in the log is known to be the leader's.
    All,
}

/// The follower's side: where it cuts for this answer.
///
/// What it has of later leaderships than the one named goes, and what it has of that one beyond the leader's end.
pub fn cut_for(own: LogView<'_>, said: EpochEnd) -> Cut {
    let own_end = own.epochs.end_offset_for(said.epoch, own.end).map_or(own.end, |(_, end)| end);
    let to = own_end.min(said.end);
    if to < own.start { Cut::All } else { Cut::At(to) }
}

/// Where a follower stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowPhase {
    /// Has not asked, or has to ask again.
    Idle,
    /// Waits for an answer.
    Asked,
    /// Cuts its log, or begins a new one.
    Cutting,
    /// Copies.
    Copying,
}

/// A follower of one leader in one epoch.
#[derive(Clone, Copy, Debug)]
pub struct Follower {
    leader: ReplicaId,
    epoch: LeaderEpoch,
    phase: FollowPhase,
    /// The leader's log end when it said Start: who has all below it lacks nothing that was committed before.
    target: Option<Offset>,
}

/// Why an answer, or what a leader sends, is not acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// It belongs to another leadership than the one followed: forget it.
    #[error("it belongs to leader epoch {given}, this replica follows epoch {current}")]
    OtherEpoch {
        /// Of what came.
        given: LeaderEpoch,
        /// Of this replica.
        current: LeaderEpoch,
    },
    /// It was not asked for: ask again.
    #[error("it does not fit the state {phase:?} of the handshake")]
    OutOfTurn {
        /// Where the follower stands.
        phase: FollowPhase,
    },
    /// Batches would not begin at the log end: ask again.
    #[error("the leader would start at offset {from}, the log ends at {end}")]
    OtherEnd {
        /// Where the leader starts.
        from: Offset,
        /// The log end here.
        end: Offset,
    },
}

/// What a follower has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowAction {
    /// Cut the log there, then ask again.
    Cut(Offset),
    /// Begin a new log there; then ask again, or copy if `then_copy`.
    Reset {
        /// Its start.
        to: Offset,
        /// The leader sends from there on.
        then_copy: bool,
    },
    /// Append what comes.
    Copy,
}

impl Follower {
    /// A follower that has not asked yet.
    pub fn new(leader: ReplicaId, epoch: LeaderEpoch) -> Self {
        Self { leader, epoch, phase: FollowPhase::Idle, target: None }
    }

    /// Whom it follows.
    pub fn leader(&self) -> ReplicaId {
        self.leader
    }

    /// In which leadership.
    pub fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    /// Where it stands.
    pub fn phase(&self) -> FollowPhase {
        self.phase
    }

    /// Whether it copies and has, up to `end`, all that the leader had when it began.
    pub fn has_caught_up(&self, end: Offset) -> bool {
        self.phase == FollowPhase::Copying && self.target.is_some_and(|target| end >= target)
    }

    /// It asks, for the first time or again: on a new connection, after a cut, or because it lost its place.
    pub fn asked(&mut self) {
        self.phase = FollowPhase::Asked;
        self.target = None;
    }

    /// An answer has come. Says what to do; the caller does it and then says [`Follower::done`].
    pub fn answered(
        &mut self,
        epoch: LeaderEpoch,
        answer: &FollowAnswer,
        own: LogView<'_>,
    ) -> Result<FollowAction, HandshakeError> {
        self.check_epoch(epoch)?;
        if self.phase != FollowPhase::Asked {
            return Err(HandshakeError::OutOfTurn { phase: self.phase });
        }
        let action = match answer.verdict {
            FollowVerdict::Start { from } if from == own.end => FollowAction::Copy,
            FollowVerdict::Start { from } => {
                self.phase = FollowPhase::Idle;
                return Err(HandshakeError::OtherEnd { from, end: own.end });
            }
            FollowVerdict::EpochEnd(said) => match cut_for(own, said) {
                Cut::At(to) => FollowAction::Cut(to),
                Cut::All => FollowAction::Reset { to: answer.log_start, then_copy: false },
            },
            FollowVerdict::Reset { to } => FollowAction::Reset { to, then_copy: true },
        };
        self.phase = FollowPhase::Cutting;
        self.target = Some(answer.log_end);
        if action == FollowAction::Copy {
            self.done(action);
        }
        Ok(action)
    }

    /// What was to be done is done: it copies, or has to ask again.
    pub fn done(&mut self, action: FollowAction) {
        self.phase = match action {
            FollowAction::Copy | FollowAction::Reset { then_copy: true, .. } => FollowPhase::Copying,
            FollowAction::Cut(_) | FollowAction::Reset { then_copy: false, .. } => FollowPhase::Idle,
        };
    }

    /// Something went wrong, or a connection broke: it has to ask again.
    pub fn lost(&mut self) {
        self.phase = FollowPhase::Idle;
    }

    /// Whether batches or marks of this epoch may be taken now.
    pub fn check_copying(&self, epoch: LeaderEpoch) -> Result<(), HandshakeError> {
        self.check_epoch(epoch)?;
        match self.phase {
            FollowPhase::Copying => Ok(()),
            phase => Err(HandshakeError::OutOfTurn { phase }),
        }
    }

    fn check_epoch(&self, given: LeaderEpoch) -> Result<(), HandshakeError> {
        let current = self.epoch;
        if given == current { Ok(()) } else { Err(HandshakeError::OtherEpoch { given, current }) }
    }
}

#[cfg(test)]
mod tests;
