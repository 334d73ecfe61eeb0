//! A leader towards its followers: the handshake, the batches they copy, what they report, and the ISR.
//!
//! Owns: the way from what the feeder of a stream is told to the machines of the leader and of the ISR.
//! Invariants: R2, R3, R5, R10 to R14 of `lib.rs`. Everything names the epoch that it belongs to.
//! Not here: the connection (`stream`), storing an ISR (the node's agent).
//! Crash story: the follower dies and comes back without a part of its log. Its first question on the new connection
//! takes back all that it had reported, before it can be counted on again.

use corelog_engine::disk::Disk;
use corelog_engine::log::{ReadBatches, ReadLimits};
use corelog_engine::{LeaderEpoch, Offset};

use super::{Partition, stage_of};
use crate::assignment::IsrProposal;
use crate::coordination::Version;
use crate::errors::{FetchError, FollowError, LeaderError};
use crate::follower::{FollowAnswer, FollowRequest, FollowVerdict, LogView, answer};
use crate::isr::{ConnectionId, Followed, LeaderView};
use crate::leader::{Event, ReplicaEnds};
use crate::replica::ReplicaId;

/// What rides along with the batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Exclusive end of what is committed.
    pub high_watermark: Offset,
    /// First offset that is still there.
    pub log_start: Offset,
}

impl<D: Disk> Partition<D> {
    /// Decides how a follower begins, or goes on after a cut; what it reported before counts no more.
    ///
    /// After `Start` and `Reset` it may be sent batches from there on; it reports its ends at once, even if they have
    /// not moved.
    /// Errors: it is not let in; see each variant.
    pub fn follow(
        &self,
        connection: ConnectionId,
        request: &FollowRequest,
    ) -> Result<FollowAnswer, FollowError> {
        self.check_epoch(Some(request.epoch))?;
        if let Some(newest) = request.newest_epoch.filter(|newest| *newest > request.epoch) {
            let unknown = LeaderError::Unknown { requested: newest, current: request.epoch };
            return Err(unknown.into());
        }
        let (ends, epochs) = (self.0.log.ends(), self.0.log.epochs());
        let view = LogView { epochs: &epochs, start: ends.start, end: ends.end };
        let verdict = answer(view, request);
        let is_copying = !matches!(verdict, FollowVerdict::EpochEnd(_));
        let replica = request.replica;
        let followed = self.0.progress.leading(|l| l.isr.followed(replica, connection, is_copying));
        match followed.expect("checked above") {
            Followed::Stranger => return Err(FollowError::NotReplica { replica }),
            Followed::OldConnection => return Err(FollowError::OldConnection { replica }),
            Followed::First | Followed::Again => {}
        }
        #[cfg(feature = "canary")]
        let verdict = self.spoiled(verdict, followed == Some(Followed::Again), connection, request);
        self.0.progress.step(Event::FollowerBegan { replica });
        #[cfg(feature = "canary")]
        self.believe_what_was_reported();
        let high_watermark = self.high_watermark();
        Ok(FollowAnswer { verdict, high_watermark, log_start: ends.start, log_end: ends.end })
    }

    /// Lets a follower copy after its first cut, if that bug is planted.
    #[cfg(feature = "canary")]
    fn spoiled(
        &self,
        verdict: FollowVerdict,
        is_second: bool,
        connection: ConnectionId,
        request: &FollowRequest,
    ) -> FollowVerdict {
        let ends = self.0.log.ends();
        let is_within = request.log_end >= ends.start && request.log_end <= ends.end;
        if is_second && is_within && crate::canary::is_planted(crate::canary::Canary::CopyAfterFirstCut) {
            self.0.progress.leading(|l| l.isr.followed(request.replica, connection, true));
            return FollowVerdict::Start { from: request.log_end };
        }
        verdict
    }

    /// A follower has said how far it is. What belongs to another epoch, or to a connection that it has left, is
    /// ignored.
    pub fn follower_reported(
        &self,
        connection: ConnectionId,
        replica: ReplicaId,
        epoch: LeaderEpoch,
        ends: ReplicaEnds,
    ) {
        let is_current = epoch == self.leader_epoch()
            && self.0.progress.leading(|l| l.isr.reported(replica, connection, ends)) == Some(true);
        #[cfg(feature = "canary")]
        if crate::canary::is_planted(crate::canary::Canary::AnyEpochMovesTheMark) {
            self.0.remembered.borrow_mut().push((replica, ends));
            self.believe_what_was_reported();
        }
        if is_current {
            self.0.progress.step(Event::FollowerReported { replica, epoch, ends });
        }
    }

    /// Counts what followers have ever reported, if that bug is planted.
    #[cfg(feature = "canary")]
    pub(super) fn believe_what_was_reported(&self) {
        if crate::canary::is_planted(crate::canary::Canary::AnyEpochMovesTheMark) {
            let epoch = self.leader_epoch();
            for (replica, ends) in self.0.remembered.borrow().clone() {
                self.0.progress.step(Event::FollowerReported { replica, epoch, ends });
            }
        }
    }

    /// A connection broke. The follower has a little time to come back ([`IsrOptions`](crate::IsrOptions)).
    pub fn follower_disconnected(&self, connection: ConnectionId, replica: ReplicaId, now_ms: u64) {
        self.0.progress.leading(|l| l.isr.disconnected(replica, connection, now_ms));
    }

    /// A follower stops: the next [`Partition::tick_isr`] leaves it out.
    pub fn follower_left(&self, connection: ConnectionId, replica: ReplicaId) {
        self.0.progress.leading(|l| l.isr.left(replica, connection));
    }

    /// Reads batches for a follower, up to the log end: what is appended is sent before it is written.
    ///
    /// Errors: `OffsetOutOfRange` below the log start: the follower has to ask again. See each variant.
    pub async fn read_for_follower(
        &self,
        epoch: LeaderEpoch,
        from: Offset,
        limits: ReadLimits,
    ) -> Result<ReadBatches, FetchError> {
        self.check_epoch(Some(epoch))?;
        let end = self.0.log.ends().end;
        let batches = self.0.log.read(from, end, limits).await?;
        // It may have been cut since, and other records stand there now, which are not this epoch's.
        self.check_epoch(Some(epoch))?;
        Ok(batches)
    }

    /// Where the marks are.
    pub fn marks(&self) -> Marks {
        Marks { high_watermark: self.high_watermark(), log_start: self.log_start() }
    }

    /// The members of the ISR that is stored, and of the one that counts; empty if this replica does not lead.
    pub fn isr(&self) -> (Vec<ReplicaId>, Vec<ReplicaId>) {
        let sets = self.0.progress.leading(|l| (l.isr.stored().to_vec(), l.isr.counted().to_vec()));
        sets.unwrap_or_default()
    }

    /// What a follower has reported on the connection on which it copies.
    pub fn follower_ends(&self, replica: ReplicaId) -> Option<ReplicaEnds> {
        self.0.progress.leading(|l| l.isr.ends_of(replica)).flatten()
    }

    /// Looks who is in sync; call it every hundred ms or so, and after a follower has left. Returns the set to store,
    /// by compare-and-set on its version; it is answered by [`Partition::update`] with a newer version, or by
    /// [`Partition::isr_refused`].
    pub fn tick_isr(&self, now_ms: u64) -> Option<IsrProposal> {
        if self.failure().is_some() {
            return None;
        }
        let view = LeaderView {
            log_end: self.0.log.ends().end,
            high_watermark: self.high_watermark(),
            stage: stage_of(self.0.log.options().flush),
        };
        let proposed = self.0.progress.leading(|l| (l.isr.tick(now_ms, view), l.isr.version()));
        let (Some(isr), version) = proposed? else { return None };
        self.isr_changed();
        Some(IsrProposal {
            partition: self.0.id,
            leader: self.0.me,
            leader_epoch: self.leader_epoch(),
            version,
            isr,
        })
    }

    /// The proposal with this version was not stored, or nobody knows.
    pub fn isr_refused(&self, version: Version) {
        self.0.progress.leading(|l| l.isr.refused(version));
    }

    /// Lets the high watermark wait for the set that counts now, with what its members have said.
    pub(super) fn isr_changed(&self) {
        let members = self.0.progress.leading(|l| {
            let counted = l.isr.counted().to_vec();
            counted.into_iter().map(|replica| (replica, l.isr.ends_of(replica))).collect::<Vec<_>>()
        });
        let Some(members) = members else { return };
        let epoch = self.leader_epoch();
        // A new member holds the mark until it is heard in this epoch; what it has said on its connection counts.
        let isr = members.iter().map(|(replica, _)| *replica).collect();
        self.0.progress.step(Event::IsrChanged { isr });
        for (replica, ends) in members {
            if let Some(ends) = ends {
                self.0.progress.step(Event::FollowerReported { replica, epoch, ends });
            }
        }
    }
}
