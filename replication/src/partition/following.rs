//! A follower: what the fetcher of a stream does to the log.
//!
//! Owns: the order of handshake, cut and copy. Invariants: R14 to R18 of `lib.rs`.
//! Invariant: a change of the log that takes time is carried to its end and counted, so that nobody leads on a log
//! that is just being cut; an append looks at the role after its last wait.
//! Not here: the connection (`stream`), where to cut (`follower.rs`).
//! Crash story: the process dies during a cut. The engine's cut is durable or has not happened; either way the next
//! start asks again from what the log has.

use corelog_engine::batch::{BatchHeader, StampedBatches, StampedLimits};
use corelog_engine::disk::Disk;
use corelog_engine::log::{ReplicatedError, TrimError};
use corelog_engine::{LeaderEpoch, Offset, TimestampMs};

use super::Partition;
use super::followers::Marks;
use crate::errors::FollowerError;
use crate::follower::{FollowAction, FollowAnswer, FollowPhase, FollowRequest, Follower, LogView};

impl<D: Disk> Partition<D> {
    /// What to ask the leader of this epoch. Waits until no change of the log is under way.
    ///
    /// Errors: this replica does not follow in this epoch.
    pub async fn ask(&self, epoch: LeaderEpoch) -> Result<FollowRequest, FollowerError> {
        self.unchanging().await;
        self.with_follower(epoch, |_| Ok(()))?;
        #[cfg(feature = "canary")]
        if crate::canary::is_planted(crate::canary::Canary::TruncateToHighWatermark) {
            self.do_now(FollowAction::Cut(self.high_watermark())).await?;
        }
        let ends = self.0.log.ends();
        self.with_follower(epoch, |follower| {
            follower.asked();
            Ok(())
        })?;
        Ok(FollowRequest {
            replica: self.0.me,
            epoch,
            newest_epoch: self.0.log.newest_epoch(),
            log_start: ends.start,
            log_end: ends.end,
        })
    }

    /// Does what the leader has answered. Returns whether batches come now; if not, ask again.
    ///
    /// Errors: [`FollowerError::Handshake`] of another epoch: forget the answer. Others: ask again, or give up.
    /// Cancel: a cut goes on to its end, and has to be followed by another question.
    pub async fn answered(&self, epoch: LeaderEpoch, answer: &FollowAnswer) -> Result<bool, FollowerError> {
        let (ends, epochs) = (self.0.log.ends(), self.0.log.epochs());
        let own = LogView { epochs: &epochs, start: ends.start, end: ends.end };
        let action = self.with_follower(epoch, |follower| Ok(follower.answered(epoch, answer, own)?))?;
        if action != FollowAction::Copy {
            self.do_now(action).await.map_err(|error| self.lost(epoch, error.into()))?;
            self.with_follower(epoch, |follower| {
                if follower.phase() == FollowPhase::Cutting {
                    follower.done(action);
                }
                Ok(())
            })?;
        }
        let marks = Marks { high_watermark: answer.high_watermark, log_start: answer.log_start };
        let is_copying = self.with_follower(epoch, |f| Ok(f.phase() == FollowPhase::Copying))?;
        if is_copying {
            self.0.progress.leader_committed(marks.high_watermark);
        }
        Ok(is_copying)
    }

    /// Cuts the log or begins it anew, to the end.
    async fn do_now(&self, action: FollowAction) -> Result<(), TrimError> {
        let partition = self.clone();
        let work = async move {
            let log = &partition.0.log;
            let changed = match action {
                FollowAction::Copy => return Ok(()),
                FollowAction::Cut(to) => log.truncate(to).await.map(|_| ()),
                FollowAction::Reset { to, .. } => log.reset_to(to).await,
            };
            // Also after an error: what the log says of itself is what it is.
            let ends = log.ends();
            let mut producers = partition.0.producers.borrow_mut();
            match action {
                FollowAction::Reset { .. } if ends.start == ends.end => producers.begin(ends.start),
                _ => producers.truncate_to(ends.end),
            }
            drop(producers);
            partition.0.progress.cut(ends);
            changed
        };
        self.change(work).await
    }

    /// Appends what the leader has sent, byte for byte, and takes its marks over. Returns the log end.
    ///
    /// Shape: whole batches that begin at the log end.
    /// Durability: none yet; [`Partition::replica_ends`] moves when there is.
    /// Errors: nothing was appended. [`FollowerError::Handshake`] of another epoch: forget the batches. Others: ask
    /// again, or give up.
    /// Cancel: dropping it before it is ready appends nothing.
    /// Cost: one checksum pass, one copy.
    pub async fn append_from_leader(
        &self,
        epoch: LeaderEpoch,
        batches: &[u8],
        marks: Marks,
        now: TimestampMs,
    ) -> Result<Offset, FollowerError> {
        // First, so that nothing is waited for once the batches have their place.
        self.marks_from_leader(epoch, marks, now).await?;
        let limits = StampedLimits { epoch_max: Some(epoch), ..StampedLimits::default() };
        let checked = StampedBatches::check(batches, &limits)
            .map_err(|error| self.lost(epoch, FollowerError::Batches(error.to_string())))?;
        let term = self.0.progress.term();
        let admission = self.0.log.admit_replicated(&checked, now).await;
        // It may have led, or begun to follow anew, while it waited.
        self.check_copying(epoch)?;
        if self.0.progress.term() != term {
            return Err(FollowerError::NotFollower { epoch: self.leader_epoch() });
        }
        let appended = admission.and_then(|admission| admission.append_replicated(&checked, now));
        let end = appended.map_err(|error| self.lost(epoch, of_replicated(error)))?.end_offset;
        self.observe_copied(batches);
        self.0.progress.appended(end, batches.len() as u64);
        self.0.progress.leader_committed(marks.high_watermark);
        Ok(end)
    }

    fn observe_copied(&self, mut batches: &[u8]) {
        let mut producers = self.0.producers.borrow_mut();
        while !batches.is_empty() {
            let header = BatchHeader::parse(batches).expect("the batches were checked");
            producers.observe(&header);
            batches = &batches[header.size()..];
        }
    }

    /// Takes the leader's marks over: the high watermark as far as the own log goes, the log start as far as it is
    /// durable.
    ///
    /// Errors: they belong to another epoch: forget them. Or the new start could not be stored; it is tried again
    /// with the next marks.
    /// Cost: nothing unless the log start moved.
    pub async fn marks_from_leader(
        &self,
        epoch: LeaderEpoch,
        marks: Marks,
        now: TimestampMs,
    ) -> Result<(), FollowerError> {
        self.check_copying(epoch)?;
        self.0.progress.leader_committed(marks.high_watermark);
        let ends = self.0.log.ends();
        let start = marks.log_start.min(ends.durable);
        if start > ends.start {
            let log = self.0.log.clone();
            let trimmed = self.change(async move { log.delete_records_before(start, now).await }).await;
            trimmed.map_err(FollowerError::Trim)?;
        }
        Ok(())
    }

    /// The connection broke: what comes next is a question.
    pub fn leader_lost(&self, epoch: LeaderEpoch) {
        let _ = self.with_follower(epoch, |follower| {
            follower.lost();
            Ok(())
        });
    }

    /// Whether it copies, and has what its leader had when it began.
    pub fn has_caught_up(&self) -> bool {
        let end = self.0.log.ends().end;
        self.0.progress.following(|f| f.has_caught_up(end)) == Some(true)
    }

    fn check_copying(&self, epoch: LeaderEpoch) -> Result<(), FollowerError> {
        self.with_follower(epoch, |follower| Ok(follower.check_copying(epoch)?))
    }

    /// It cannot go on from here: what comes next is a question.
    fn lost(&self, epoch: LeaderEpoch, error: FollowerError) -> FollowerError {
        self.leader_lost(epoch);
        error
    }

    fn with_follower<R>(
        &self,
        epoch: LeaderEpoch,
        look: impl FnOnce(&mut Follower) -> Result<R, FollowerError>,
    ) -> Result<R, FollowerError> {
        let not_follower = FollowerError::NotFollower { epoch: self.leader_epoch() };
        let found = self
            .0
            .progress
            .following(|follower| if follower.epoch() == epoch { Some(look(follower)) } else { None });
        found.flatten().unwrap_or(Err(not_follower))
    }
}

fn of_replicated(error: ReplicatedError) -> FollowerError {
    match error {
        ReplicatedError::Append(error) => FollowerError::Append(error),
        ReplicatedError::Reset(error) => FollowerError::Trim(error),
        error @ (ReplicatedError::Leads { .. }
        | ReplicatedError::NotNext { .. }
        | ReplicatedError::StaleEpoch { .. }) => FollowerError::Batches(error.to_string()),
    }
}
