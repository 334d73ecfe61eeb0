//! The follower's reader: from messages to the logs.
//!
//! Owns: the fast way. A partition at which nothing waits takes its batches straight from the receive buffer, without
//! a task or an allocation of its own; one whose log has to wait (a slow disk, no memory) gets a queue, so that it does
//! not hold up the others. What a queue holds is bounded by the credit, and keeps only its own credit from the leader:
//! out of a message with several partitions' batches it takes a copy.

use std::rc::Rc;

use corelog_engine::Offset;
use corelog_engine::disk::Disk;
use corelog_schemas::messages::{StreamAnswer, StreamBatch, StreamMark, StreamMessage, StreamVerdict};
use futures_util::FutureExt;

use super::work::Work;
use super::{Credit, Fetcher, Live, Phase};
use crate::partition::Marks;
use crate::stream::link::{Host, Link, LinkError, Priority};
use crate::stream::ranges;

/// Batches that wait for their log; their credit goes back when they are dropped.
pub(super) struct Waiting<H: Host> {
    bytes: WaitingBytes<H>,
    credit: Rc<Credit>,
}

enum WaitingBytes<H: Host> {
    /// All of a message.
    Whole(<H::Link as Link>::Payload),
    /// A part of one, copied, so that the rest does not wait with it.
    Part(Vec<u8>),
}

impl<H: Host> Waiting<H> {
    /// The batches.
    pub(super) fn bytes(&self) -> &[u8] {
        match &self.bytes {
            WaitingBytes::Whole(payload) => payload,
            WaitingBytes::Part(bytes) => bytes,
        }
    }
}

impl<H: Host> Drop for Waiting<H> {
    fn drop(&mut self) {
        self.credit.give_back(self.bytes().len() as u64);
    }
}

impl<D: Disk, H: Host> Fetcher<D, H> {
    /// Takes messages until the connection ends.
    pub(super) async fn read(self: &Rc<Self>, live: &Live<H>) -> Result<(), LinkError> {
        loop {
            let (message, payload) = live.session.recv().await?;
            match message {
                StreamMessage::Batches(batches) => {
                    self.received_bytes.set(self.received_bytes.get() + payload.len() as u64);
                    self.batches(&live.credit, &batches, payload);
                }
                StreamMessage::Marks(marks) => {
                    for mark in &marks {
                        self.mark(mark);
                    }
                }
                StreamMessage::Answer(answers) => {
                    for answer in &answers {
                        self.answer(answer);
                    }
                }
                StreamMessage::ReadRange(asked) => {
                    match ranges::admit(&live.session, &asked, self.shared.options.ranges_max) {
                        Some(id) => {
                            let partition = self.shared.partition(id);
                            let bytes_max = self.shared.options.bundle_bytes_max;
                            let work = ranges::serve(live.session.clone(), partition, asked, bytes_max);
                            self.shared.spawn(work, Priority::Background);
                        }
                        None => live.session.ranges.push(StreamMessage::Range(ranges::overloaded(&asked))),
                    }
                    self.dirty.wake();
                }
                StreamMessage::Range(range) => live.session.ranges.answered(&range, &payload),
                StreamMessage::Hello(_)
                | StreamMessage::HelloAnswer(_)
                | StreamMessage::Follow(_)
                | StreamMessage::Reports { .. }
                | StreamMessage::Unfollow(_)
                | StreamMessage::Leave => {
                    return Err(LinkError::Broken("the leader sent what is not its to send".to_owned()));
                }
            }
        }
    }

    fn place_of(&self, stream: u32) -> Option<u32> {
        self.by_stream.borrow().get(&stream).copied()
    }

    /// Batches of several partitions: each to its log, or into its queue.
    fn batches(
        self: &Rc<Self>,
        credit: &Rc<Credit>,
        batches: &[StreamBatch],
        payload: <H::Link as Link>::Payload,
    ) {
        let mut at = 0;
        for batch in batches {
            let range = at..at + batch.records_bytes as usize;
            at = range.end;
            let place = self.place_of(batch.stream);
            let bytes = &payload[range];
            match place.filter(|&place| !self.append_now(place, batch, bytes)) {
                None => credit.give_back(bytes.len() as u64),
                Some(place) if batches.len() == 1 => {
                    let waiting = Waiting { bytes: WaitingBytes::Whole(payload), credit: credit.clone() };
                    self.queue(place, Work::Batches { waiting, batch: *batch });
                    return;
                }
                Some(place) => {
                    let bytes = WaitingBytes::Part(bytes.to_vec());
                    let waiting = Waiting { bytes, credit: credit.clone() };
                    self.queue(place, Work::Batches { waiting, batch: *batch });
                }
            }
        }
    }

    /// Appends if nothing has to be waited for. Says whether the batches are dealt with.
    fn append_now(self: &Rc<Self>, place: u32, batch: &StreamBatch, bytes: &[u8]) -> bool {
        let Some((partition, epoch)) = self.idle(place) else { return false };
        let marks = marks_of(batch.high_watermark, batch.log_start_offset);
        if batch.leader_epoch != epoch.0 {
            return true;
        }
        if marks.log_start > partition.log_start() {
            return false;
        }
        let now = self.shared.host.wall();
        // Dropped if it has to wait: then nothing was appended, and the queue does it again.
        match partition.append_from_leader(epoch, bytes, marks, now).now_or_never() {
            None => false,
            Some(outcome) => {
                if let Err(error) = outcome {
                    self.failed(place, &error);
                }
                true
            }
        }
    }

    fn mark(self: &Rc<Self>, mark: &StreamMark) {
        let Some(place) = self.place_of(mark.stream) else { return };
        let marks = marks_of(mark.high_watermark, mark.log_start_offset);
        if let Some((partition, epoch)) = self.idle(place)
            && marks.log_start <= partition.log_start()
        {
            if mark.leader_epoch == epoch.0 {
                let now = self.shared.host.wall();
                // An error here is one of a stream that has ended meanwhile.
                let _ = partition.marks_from_leader(epoch, marks, now).now_or_never();
            }
            return;
        }
        self.queue(place, Work::Marks(*mark));
    }

    fn answer(self: &Rc<Self>, answer: &StreamAnswer) {
        let Some(place) = self.place_of(answer.stream) else { return };
        let is_refused = matches!(answer.verdict, StreamVerdict::Refuse { .. });
        if is_refused {
            // What came before it in the queue is of no use any more either.
            self.refused(place, answer);
        } else {
            self.queue(place, Work::Answer(*answer));
        }
    }

    /// The partition at a place that copies, if nothing waits there.
    fn idle(&self, place: u32) -> Option<(crate::partition::Partition<D>, corelog_engine::LeaderEpoch)> {
        let followed = self.followed.borrow();
        let followed = followed.get(place)?;
        let is_idle = followed.phase == Phase::Copying && !followed.is_working && followed.work.is_empty();
        is_idle.then(|| (followed.partition.clone(), followed.epoch))
    }
}

/// The marks of a message.
pub(super) fn marks_of(high_watermark: u64, log_start_offset: u64) -> Marks {
    Marks { high_watermark: Offset(high_watermark), log_start: Offset(log_start_offset) }
}
