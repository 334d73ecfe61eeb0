//! Ranges of a log that a peer is asked for, to mend one's own; and those that a peer asks for.
//!
//! Owns: requests and answers of one connection, in both directions. Either end may ask: a follower its leader, a
//! leader whose own bytes are damaged one of its followers.
//! Limits: so many requests of a peer are being read as `ranges_max` says, each of at most one bundle.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use corelog_engine::buffer::DmaSlice;
use corelog_engine::disk::{Disk, IoClass};
use corelog_engine::log::ReadLimits;
use corelog_engine::notify::Notify;
use corelog_engine::{Offset, TopicPartition};
use corelog_schemas::ErrorCode;
use corelog_schemas::messages::{StreamMessage, StreamRange, StreamReadRange};

use super::convert::{partition_of, read_refusal};
use super::link::Host;
use super::session::Session;
use crate::partition::Partition;

/// Ranges of one connection.
#[derive(Default)]
pub(super) struct Ranges {
    /// What the writer has to send.
    outgoing: RefCell<VecDeque<(StreamMessage, Vec<DmaSlice>)>>,
    serving: Cell<usize>,
    request_next: Cell<u32>,
    /// Requests of this side; the answer, once it is there.
    waiting: RefCell<BTreeMap<u32, Option<RangeOutcome>>>,
    changed: Notify,
    is_closed: Cell<bool>,
}

/// Batches of a range and the offset to ask on from, or why there are none.
pub(crate) type RangeOutcome = Result<(Offset, Vec<u8>), ErrorCode>;

impl Ranges {
    /// What is to be sent next.
    pub(super) fn pop_outgoing(&self) -> Option<(StreamMessage, Vec<DmaSlice>)> {
        self.outgoing.borrow_mut().pop_front()
    }

    /// Queues what is to be sent.
    pub(super) fn push(&self, message: StreamMessage) {
        self.outgoing.borrow_mut().push_back((message, Vec::new()));
    }

    /// A peer has answered. What was not asked for is forgotten.
    pub(super) fn answered(&self, range: &StreamRange, payload: &[u8]) {
        if let Some(answer) = self.waiting.borrow_mut().get_mut(&range.request) {
            *answer = Some(range.outcome.map(|(next, _)| (Offset(next), payload.to_vec())));
        }
        self.changed.notify_all();
    }

    /// Nobody is going to answer any more.
    pub(super) fn close(&self) {
        self.is_closed.set(true);
        self.changed.notify_all();
    }

    async fn answer_to(&self, request: u32) -> RangeOutcome {
        loop {
            let changed = self.changed.notified();
            let answer = self.waiting.borrow_mut().get_mut(&request).and_then(Option::take);
            match answer {
                Some(answer) => return answer,
                None if self.is_closed.get() => return Err(ErrorCode::ShuttingDown),
                None => changed.await,
            }
        }
    }
}

/// Forgets a request when nobody waits for it any more.
struct Asking<'a>(&'a Ranges, u32);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.waiting.borrow_mut().remove(&self.1);
    }
}

/// Asks the peer for batches of `[from, end)`.
pub(super) async fn ask<H: Host>(
    session: &Session<H>,
    id: TopicPartition,
    from: Offset,
    end: Offset,
    bytes_max: usize,
) -> RangeOutcome {
    let ranges = &session.ranges;
    let request = ranges.request_next.get();
    ranges.request_next.set(request.wrapping_add(1));
    ranges.waiting.borrow_mut().insert(request, None);
    let _asking = Asking(ranges, request);
    let message = StreamMessage::ReadRange(StreamReadRange {
        request,
        topic_id: id.topic.0,
        partition: id.partition.0,
        from_offset: from.0,
        end_offset: end.0,
        bytes_max: u32::try_from(bytes_max).unwrap_or(u32::MAX),
    });
    ranges.outgoing.borrow_mut().push_back((message, Vec::new()));
    session.dirty.wake();
    ranges.answer_to(request).await
}

/// Answers a peer's request, from what is known to be committed here.
pub(super) async fn serve<D: Disk, H: Host>(
    session: Rc<Session<H>>,
    partition: Option<Partition<D>>,
    asked: StreamReadRange,
    bytes_max: usize,
) {
    let (outcome, slices) = match partition {
        None => (Err(ErrorCode::UnknownTopicOrPartition), Vec::new()),
        Some(partition) => {
            let end = Offset(asked.end_offset).min(partition.high_watermark());
            let bytes_max = bytes_max.min(asked.bytes_max as usize);
            let limits = ReadLimits { bytes_max, class: IoClass::CatchUp };
            match partition.log().read(Offset(asked.from_offset), end, limits).await {
                Ok(read) if read.bytes == 0 => (Err(ErrorCode::OffsetOutOfRange), Vec::new()),
                Ok(read) => (Ok((read.next_offset.0, read.bytes as u32)), read.slices),
                Err(error) => (Err(read_refusal(&error)), Vec::new()),
            }
        }
    };
    let ranges = &session.ranges;
    ranges.serving.set(ranges.serving.get() - 1);
    let message = StreamMessage::Range(StreamRange { request: asked.request, outcome });
    ranges.outgoing.borrow_mut().push_back((message, slices));
    session.dirty.wake();
}

/// What a peer is told that has asked for too many at a time.
pub(super) fn overloaded(asked: &StreamReadRange) -> StreamRange {
    StreamRange { request: asked.request, outcome: Err(ErrorCode::Overloaded) }
}

/// Takes a peer's request; `None`: it has too many under way and is refused.
pub(super) fn admit<H: Host>(
    session: &Session<H>,
    asked: &StreamReadRange,
    ranges_max: usize,
) -> Option<TopicPartition> {
    let ranges = &session.ranges;
    if ranges.serving.get() + ranges.outgoing.borrow().len() >= ranges_max {
        return None;
    }
    ranges.serving.set(ranges.serving.get() + 1);
    Some(partition_of(asked.topic_id, asked.partition))
}
