//! What takes time at one partition: cutting its log, waiting for its disk.
//!
//! Owns: the queue of each partition and the task that works it off, one at a time, in order. A task lives only while
//! there is something to do.

use std::rc::Rc;

use corelog_engine::LeaderEpoch;
use corelog_engine::disk::Disk;
use corelog_engine::log::{AppendError, TrimError};
use corelog_schemas::ErrorCode;
use corelog_schemas::messages::{StreamAnswer, StreamBatch, StreamMark, StreamVerdict};

use super::read::{Waiting, marks_of};
use super::{Fetcher, Phase};
use crate::errors::FollowerError;
use crate::follower::HandshakeError;
use crate::partition::Partition;
use crate::stream::convert::{answer_of, follow_message};
use crate::stream::link::{Host, Priority};

/// One thing to do.
pub(super) enum Work<H: Host> {
    /// Ask the leader, once the log is not being changed any more.
    Ask,
    /// Do what the leader has answered.
    Answer(StreamAnswer),
    /// Append.
    Batches {
        /// Their bytes.
        waiting: Waiting<H>,
        /// Whose they are.
        batch: StreamBatch,
    },
    /// Take marks over.
    Marks(StreamMark),
}

impl<H: Host> Work<H> {
    /// The stream that it belongs to.
    fn stream(&self) -> Option<u32> {
        match self {
            Self::Ask => None,
            Self::Answer(answer) => Some(answer.stream),
            Self::Batches { batch, .. } => Some(batch.stream),
            Self::Marks(mark) => Some(mark.stream),
        }
    }
}

impl<D: Disk, H: Host> Fetcher<D, H> {
    /// Queues something to do, and begins if nothing is being done.
    pub(super) fn queue(self: &Rc<Self>, place: u32, work: Work<H>) {
        let serial = {
            let mut followed = self.followed.borrow_mut();
            let Some(followed) = followed.get_mut(place) else { return };
            followed.work.push_back(work);
            if std::mem::replace(&mut followed.is_working, true) {
                return;
            }
            followed.serial
        };
        self.working.borrow_mut().insert(place);
        self.shared.spawn(self.clone().work(place, serial), Priority::Stream);
    }

    /// Works a queue off.
    async fn work(self: Rc<Self>, place: u32, serial: u64) {
        while let Some((work, partition, epoch)) = self.next_work(place, serial) {
            let outcome = self.do_work(place, serial, &partition, epoch, &work).await;
            // Before the next one: it may hold bytes that the leader waits to send again.
            drop(work);
            if let Err(error) = outcome
                && self.is_current(place, serial)
            {
                self.failed(place, &error);
            }
        }
        self.dirty.add(place);
        self.dirty.wake();
    }

    fn is_current(&self, place: u32, serial: u64) -> bool {
        self.followed.borrow().get(place).is_some_and(|followed| followed.serial == serial)
    }

    /// The next thing to do that still counts.
    fn next_work(&self, place: u32, serial: u64) -> Option<(Work<H>, Partition<D>, LeaderEpoch)> {
        let mut followed = self.followed.borrow_mut();
        let followed = followed.get_mut(place).filter(|followed| followed.serial == serial)?;
        while let Some(work) = followed.work.pop_front() {
            if work.stream().is_none() || work.stream() == followed.stream {
                let is_append = matches!(work, Work::Batches { .. });
                followed.appending_since_ms = is_append.then(|| self.shared.host.now_ms());
                return Some((work, followed.partition.clone(), followed.epoch));
            }
        }
        followed.is_working = false;
        followed.appending_since_ms = None;
        if followed.phase != Phase::Stalled {
            self.working.borrow_mut().remove(&place);
        }
        None
    }

    async fn do_work(
        &self,
        place: u32,
        serial: u64,
        partition: &Partition<D>,
        epoch: LeaderEpoch,
        work: &Work<H>,
    ) -> Result<(), FollowerError> {
        match work {
            Work::Ask => {
                let asked = partition.ask(epoch).await?;
                self.asked(place, serial, &asked);
            }
            Work::Answer(message) => {
                let Ok(answer) = answer_of(message) else { return Ok(()) };
                let is_copying = partition.answered(LeaderEpoch(message.leader_epoch), &answer).await?;
                self.answered(place, serial, message.stream, is_copying);
            }
            Work::Batches { waiting, batch } => {
                let marks = marks_of(batch.high_watermark, batch.log_start_offset);
                let epoch = LeaderEpoch(batch.leader_epoch);
                let now = self.shared.host.wall();
                partition.append_from_leader(epoch, waiting.bytes(), marks, now).await?;
            }
            Work::Marks(mark) => {
                let marks = marks_of(mark.high_watermark, mark.log_start_offset);
                let now = self.shared.host.wall();
                partition.marks_from_leader(LeaderEpoch(mark.leader_epoch), marks, now).await?;
            }
        }
        Ok(())
    }

    /// The question is known: the writer sends it, under a new number.
    pub(super) fn asked(&self, place: u32, serial: u64, asked: &crate::follower::FollowRequest) {
        let is_greeted = self.live.borrow().as_ref().is_some_and(|live| live.is_greeted.get());
        let mut followed = self.followed.borrow_mut();
        let Some(followed) = followed.get_mut(place).filter(|f| f.serial == serial) else { return };
        if !is_greeted {
            followed.phase = Phase::ToAsk;
            return;
        }
        let stream = self.stream_next.get();
        self.stream_next.set(stream.wrapping_add(1));
        let mut by_stream = self.by_stream.borrow_mut();
        if let Some(old) = followed.stream.replace(stream) {
            by_stream.remove(&old);
        }
        by_stream.insert(stream, place);
        followed.phase = Phase::Asked;
        followed.reported = None;
        self.questions.borrow_mut().push(follow_message(stream, followed.id, asked));
        self.dirty.wake();
    }

    fn answered(&self, place: u32, serial: u64, stream: u32, is_copying: bool) {
        let mut followed = self.followed.borrow_mut();
        let Some(followed) = followed.get_mut(place) else { return };
        if followed.serial == serial && followed.stream == Some(stream) {
            followed.phase = if is_copying { Phase::Copying } else { Phase::ToAsk };
            followed.problem = None;
        }
    }

    /// The leader does not let this replica copy, or not any more.
    pub(super) fn refused(&self, place: u32, answer: &StreamAnswer) {
        let StreamVerdict::Refuse { error } = answer.verdict else { return };
        let (partition, epoch) = {
            let mut followed = self.followed.borrow_mut();
            let Some(followed) = followed.get_mut(place) else { return };
            followed.work.clear();
            followed.problem = Some(format!("the leader refuses: {}", error.text()));
            (followed.partition.clone(), followed.epoch)
        };
        partition.leader_lost(epoch);
        // Below the leader's log start: the next answer says where to begin anew.
        let pause_ms = if error == ErrorCode::OffsetOutOfRange { 0 } else { self.shared.options.retry_ms };
        self.pause(place, pause_ms);
    }

    /// Something could not be done.
    pub(super) fn failed(&self, place: u32, error: &FollowerError) {
        if matches!(error, FollowerError::Handshake(HandshakeError::OtherEpoch { .. })) {
            return;
        }
        {
            let mut followed = self.followed.borrow_mut();
            let Some(followed) = followed.get_mut(place) else { return };
            followed.work.clear();
            followed.problem = Some(error.to_string());
        }
        let is_over = match error {
            FollowerError::NotFollower { .. }
            | FollowerError::Append(AppendError::Failed(_))
            | FollowerError::Trim(TrimError::Failed(_)) => true,
            FollowerError::Handshake(_)
            | FollowerError::Batches(_)
            | FollowerError::Append(_)
            | FollowerError::Trim(_) => false,
        };
        if is_over {
            self.stop_stream(place, Phase::Stopped)
        } else {
            self.pause(place, self.shared.options.retry_ms)
        }
    }

    /// Asks again after a while; what comes of the old stream is forgotten.
    fn pause(&self, place: u32, pause_ms: u64) {
        let mut followed = self.followed.borrow_mut();
        let Some(followed) = followed.get_mut(place) else { return };
        if let Some(stream) = followed.stream.take() {
            self.by_stream.borrow_mut().remove(&stream);
        }
        if pause_ms == 0 {
            followed.phase = Phase::ToAsk;
            self.dirty.add(place);
            self.dirty.wake();
        } else {
            followed.phase = Phase::Paused;
            let at_ms = self.shared.host.now_ms() + pause_ms;
            self.retries.borrow_mut().push_back((at_ms, place));
        }
    }

    /// Gives up, for a while, partitions whose log takes nothing. Returns whether one of them takes something again.
    pub(super) fn look_for_stalls(&self, now_ms: u64) -> bool {
        let places = self.working.borrow().iter().copied().collect::<Vec<_>>();
        let mut has_work = false;
        for place in places {
            let Some((phase, since_ms, partition)) = self.state_of(place) else {
                self.working.borrow_mut().remove(&place);
                continue;
            };
            let is_stuck = |since_ms: u64| now_ms.saturating_sub(since_ms) > self.shared.options.stall_ms_max;
            if phase == Phase::Stalled && since_ms.is_none() && partition.log().stats().unwritten_bytes == 0 {
                self.working.borrow_mut().remove(&place);
                has_work |= self.asks_again(place, Phase::Stalled);
            } else if phase != Phase::Stalled && since_ms.is_some_and(is_stuck) {
                self.stop_stream(place, Phase::Stalled);
            }
        }
        has_work
    }

    fn state_of(&self, place: u32) -> Option<(Phase, Option<u64>, Partition<D>)> {
        let followed = self.followed.borrow();
        let followed = followed.get(place)?;
        Some((followed.phase, followed.appending_since_ms, followed.partition.clone()))
    }

    /// The log has failed or takes nothing, or this replica has another role: the leader need not wait for it.
    fn stop_stream(&self, place: u32, phase: Phase) {
        let mut followed = self.followed.borrow_mut();
        let Some(followed) = followed.get_mut(place) else { return };
        followed.phase = phase;
        followed.work.clear();
        if phase == Phase::Stalled {
            followed.problem = Some("the log takes nothing: is its disk stuck?".to_owned());
        }
        if let Some(stream) = followed.stream.take() {
            self.by_stream.borrow_mut().remove(&stream);
            self.unfollows.borrow_mut().push(stream);
        }
        self.dirty.wake();
    }
}
