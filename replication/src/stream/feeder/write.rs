//! The leader's writer: from places with something to say to messages.
//!
//! Owns: what goes into one message. Each turn visits the places that changed, in their order, each for at most a
//! turn's bytes while others wait, until the bundle is full or the credit used up. Everything in a turn is
//! synchronous: what is at the tail is in memory; what is not makes the stream one that catches up.
//! Cost: one message, one system call and one wake-up for a burst, however many partitions it touches.

use std::rc::Rc;

use corelog_engine::buffer::DmaSlice;
use corelog_engine::disk::Disk;
use corelog_engine::log::{ReadBatches, ReadLimits};
use corelog_engine::{LeaderEpoch, Offset};
use corelog_schemas::ErrorCode;
use corelog_schemas::messages::{STREAM_ENTRIES_MAX, StreamBatch, StreamMark, StreamMessage};
use futures_util::FutureExt;

use super::{Fed, Feeder, Phase};
use crate::errors::FetchError;
use crate::follower::FollowVerdict;
use crate::partition::{CurrentRole, Marks, Partition};
use crate::stream::convert::{answer_message, follow_refusal, read_refusal};
use crate::stream::link::{Host, LinkError};
use crate::watch::Watcher;

/// Places that one turn visits at most, so that the task gives way to others.
const VISITS_MAX: usize = STREAM_ENTRIES_MAX;

/// Batches that leave together.
#[derive(Default)]
struct Bundle {
    batches: Vec<StreamBatch>,
    slices: Vec<DmaSlice>,
    bytes: usize,
}

impl Bundle {
    fn push(&mut self, fed: &Sending, marks: Marks, read: ReadBatches) {
        self.batches.push(StreamBatch {
            stream: fed.stream,
            leader_epoch: fed.epoch.0,
            base_offset: fed.next.0,
            high_watermark: marks.high_watermark.0,
            log_start_offset: marks.log_start.0,
            records_bytes: u32::try_from(read.bytes).expect("one read returns less than 4 GiB"),
        });
        self.bytes += read.bytes;
        self.slices.extend(read.slices);
    }
}

/// What is needed of a stream to send.
struct Sending {
    stream: u32,
    epoch: LeaderEpoch,
    next: Offset,
}

impl<D: Disk, H: Host> Feeder<D, H> {
    /// Sends until the connection ends.
    pub(super) async fn write(self: Rc<Self>) {
        let mut bundle = Bundle::default();
        while !self.session.is_closed() {
            let woken = self.session.dirty.woken();
            match self.write_once(&mut bundle).await {
                Ok(true) => {}
                Ok(false) => woken.await,
                Err(_) => break,
            }
        }
        self.close();
    }

    /// One turn; says whether there was anything to send.
    async fn write_once(&self, bundle: &mut Bundle) -> Result<bool, LinkError> {
        self.visit_all(bundle);
        let mut has_sent = self.send_answers().await?;
        if !bundle.batches.is_empty() {
            self.send_bundle(bundle).await?;
            has_sent = true;
        }
        if let Some(chunk) = self.take_chunk() {
            bundle.push(
                &Sending { stream: chunk.stream, epoch: chunk.epoch, next: chunk.from },
                chunk.marks,
                chunk.read,
            );
            self.caught_up_bytes.set(self.caught_up_bytes.get() + bundle.bytes as u64);
            self.send_bundle(bundle).await?;
            self.chunk_sent(chunk.place, chunk.stream, chunk.is_last);
            has_sent = true;
        }
        while let Some((message, slices)) = self.session.ranges.pop_outgoing() {
            self.session.send(&message, &slices).await?;
            has_sent = true;
        }
        if self.marks_are_due.get() || (!has_sent && self.session.heartbeat_is_due()) {
            self.send_marks().await?;
            has_sent = true;
        }
        Ok(has_sent || self.session.dirty.len() > 0)
    }

    async fn send_answers(&self) -> Result<bool, LinkError> {
        let mut answers = std::mem::take(&mut *self.answers.borrow_mut());
        let has_any = !answers.is_empty();
        while !answers.is_empty() {
            let rest = answers.split_off(answers.len().min(STREAM_ENTRIES_MAX));
            self.session.send(&StreamMessage::Answer(answers), &[]).await?;
            answers = rest;
        }
        Ok(has_any)
    }

    async fn send_bundle(&self, bundle: &mut Bundle) -> Result<(), LinkError> {
        self.credit.set(self.credit.get() - bundle.bytes as i64);
        self.sent_bytes.set(self.sent_bytes.get() + bundle.bytes as u64);
        bundle.bytes = 0;
        let message = StreamMessage::Batches(std::mem::take(&mut bundle.batches));
        self.session.send(&message, &bundle.slices).await?;
        bundle.slices.clear();
        // The memory of the list is used again.
        if let StreamMessage::Batches(mut batches) = message {
            batches.clear();
            bundle.batches = batches;
        }
        Ok(())
    }

    /// Marks that no batch took along; without any, a sign of life.
    async fn send_marks(&self) -> Result<(), LinkError> {
        let mut marks = Vec::new();
        while marks.len() < STREAM_ENTRIES_MAX
            && let Some(place) = self.lazy.pop()
        {
            marks.extend(self.mark_of(place));
        }
        self.marks_are_due.set(self.lazy.len() > 0);
        self.session.send(&StreamMessage::Marks(marks), &[]).await
    }

    fn mark_of(&self, place: u32) -> Option<StreamMark> {
        let mut streams = self.streams.borrow_mut();
        let fed = streams.get_mut(place)?;
        if matches!(fed.phase, Phase::Asked | Phase::Cutting) {
            return None;
        }
        let marks = fed.partition.as_ref()?.marks();
        if fed.marks.replace(marks) == Some(marks) {
            return None;
        }
        Some(StreamMark {
            stream: fed.stream,
            leader_epoch: fed.asked.epoch.0,
            high_watermark: marks.high_watermark.0,
            log_start_offset: marks.log_start.0,
        })
    }

    fn visit_all(&self, bundle: &mut Bundle) {
        let options = &self.shared.options;
        for _ in 0..VISITS_MAX {
            if bundle.bytes >= options.bundle_bytes_max || bundle.batches.len() >= STREAM_ENTRIES_MAX {
                // What is left is done in the next turn, which comes at once.
                return;
            }
            let Some(place) = self.session.dirty.pop() else { return };
            self.visit(place, bundle);
        }
    }

    fn visit(&self, place: u32, bundle: &mut Bundle) {
        let phase = self.streams.borrow().get(place).map(|fed| fed.phase);
        match phase {
            None => {}
            Some(Phase::Asked) => self.answer(place),
            Some(Phase::Live) => self.send_tail(place, bundle),
            Some(Phase::CatchingUp | Phase::LastPiece | Phase::Cutting) => {
                let still_leads = self.still_leads(place).is_some();
                let _queued = still_leads && self.lazy.add(place);
            }
        }
    }

    /// Answers a follower that has asked, or leaves it waiting.
    fn answer(&self, place: u32) {
        let Some((id, asked)) = self.streams.borrow().get(place).map(|fed| (fed.id, fed.asked)) else {
            return;
        };
        let Some(partition) = self.shared.partition(id) else { return };
        let outcome = partition.follow(self.connection, &asked);
        let mut streams = self.streams.borrow_mut();
        let Some(fed) = streams.get_mut(place) else { return };
        fed.watch(&partition, &self.session.dirty, place);
        let answer = match outcome {
            Ok(answer) => answer,
            Err(error) => {
                drop(streams);
                // Nothing else to say yet: the partition wakes this stream when it changes.
                if let Some(code) = follow_refusal(asked.epoch, &error) {
                    self.refuse(place, code);
                }
                return;
            }
        };
        match answer.verdict {
            FollowVerdict::Start { from } | FollowVerdict::Reset { to: from } => {
                fed.next = from;
                fed.phase = Phase::Live;
            }
            FollowVerdict::EpochEnd(_) => fed.phase = Phase::Cutting,
        }
        fed.marks = Some(Marks { high_watermark: answer.high_watermark, log_start: answer.log_start });
        let message = answer_message(fed.stream, asked.epoch, &answer);
        drop(streams);
        self.answers.borrow_mut().push(message);
        self.session.dirty.add(place);
    }

    /// The partition of a stream, if this replica leads it in the stream's epoch; else the stream is refused.
    pub(super) fn still_leads(&self, place: u32) -> Option<Partition<D>> {
        let (partition, epoch) = {
            let streams = self.streams.borrow();
            let fed = streams.get(place)?;
            (fed.partition.clone()?, fed.asked.epoch)
        };
        if partition.role() == CurrentRole::Leading && partition.leader_epoch() == epoch {
            return Some(partition);
        }
        self.refuse(place, ErrorCode::FencedLeaderEpoch);
        None
    }

    /// Puts what was appended into the bundle.
    fn send_tail(&self, place: u32, bundle: &mut Bundle) {
        let Some(partition) = self.still_leads(place) else { return };
        let Some(sending) = self.sending(place) else { return };
        let marks = partition.marks();
        if partition.log().ends().end <= sending.next {
            if self.streams.borrow().get(place).is_some_and(|fed| fed.marks != Some(marks)) {
                self.lazy.add(place);
            }
            return;
        }
        if self.credit.get() <= bundle.bytes as i64 {
            self.starved.add(place);
            return;
        }
        let room = self.shared.options.bundle_bytes_max - bundle.bytes;
        let is_alone = self.session.dirty.len() == 0;
        let bytes_max = if is_alone { room } else { room.min(self.shared.options.turn_bytes_max) };
        // The tail is in memory: the future is ready. If it is not, the bytes have to come from the disk.
        match partition
            .read_for_follower(sending.epoch, sending.next, ReadLimits::bytes(bytes_max))
            .now_or_never()
        {
            None => self.falls_behind(place),
            Some(Ok(read)) if read.bytes == 0 => {}
            Some(Ok(read)) => {
                let is_all = read.next_offset >= partition.log().ends().end;
                if let Some(fed) = self.streams.borrow_mut().get_mut(place) {
                    fed.next = read.next_offset;
                    fed.marks = Some(marks);
                }
                bundle.push(&sending, marks, read);
                if !is_all {
                    self.session.dirty.add(place);
                }
            }
            Some(Err(error)) => self.read_failed(place, &partition, &error),
        }
    }

    fn sending(&self, place: u32) -> Option<Sending> {
        let streams = self.streams.borrow();
        let fed = streams.get(place)?;
        Some(Sending { stream: fed.stream, epoch: fed.asked.epoch, next: fed.next })
    }

    /// Batches could not be read: the follower is told, and asks again after a while.
    pub(super) fn read_failed(&self, place: u32, partition: &Partition<D>, error: &FetchError) {
        match error {
            FetchError::Leader(_) => self.refuse(place, ErrorCode::FencedLeaderEpoch),
            FetchError::Read(error) => {
                self.shared.read_failed(partition, error);
                self.refuse(place, read_refusal(error));
            }
        }
    }
}

impl<D: Disk> Fed<D> {
    /// Lets the partition wake this stream.
    fn watch(&mut self, partition: &Partition<D>, dirty: &Rc<crate::stream::dirty::DirtyList>, place: u32) {
        if self.partition.is_none() {
            let watcher: Rc<dyn Watcher> = dirty.clone();
            self._watching = Some(partition.watch(&watcher, place));
            self.partition = Some(partition.clone());
        }
    }
}
