//! The leader's reads for followers far behind.
//!
//! Owns: the queue of such streams, the pieces that were read for them and not sent, the pace. One piece after the
//! other in turn, at most [`CHUNKS_MAX`] in memory, so that a thousand partitions that catch up cost what one does.
//! Why beside the writer: a cold read takes as long as the disk likes, and what is at the tail must not wait for it.
//! A stream is live again once what is left is little: then it is in memory, or nearly.

use std::rc::Rc;

use corelog_engine::disk::{Disk, IoClass};
use corelog_engine::log::{ReadBatches, ReadLimits};
use corelog_engine::{LeaderEpoch, Offset};

use super::{Feeder, Phase};
use crate::partition::Marks;
use crate::stream::link::Host;
use crate::watch::Watcher;

/// Pieces read and not sent: one that is being sent, one that is ready.
const CHUNKS_MAX: usize = 2;

/// What was read from the disk for one stream.
pub(super) struct Chunk {
    pub(super) place: u32,
    pub(super) stream: u32,
    pub(super) epoch: LeaderEpoch,
    pub(super) from: Offset,
    pub(super) marks: Marks,
    pub(super) read: ReadBatches,
    /// What follows is sent from the tail.
    pub(super) is_last: bool,
}

impl<D: Disk, H: Host> Feeder<D, H> {
    /// What a live stream needs next is not in memory.
    pub(super) fn falls_behind(&self, place: u32) {
        if let Some(fed) = self.streams.borrow_mut().get_mut(place) {
            fed.phase = Phase::CatchingUp;
        }
        self.far_behind.borrow_mut().push_back(place);
        self.catch_up_changed.notify_all();
    }

    /// Reads until the connection ends.
    pub(super) async fn catch_up(self: Rc<Self>) {
        while !self.session.is_closed() {
            let changed = self.catch_up_changed.notified();
            if self.chunks.borrow().len() >= CHUNKS_MAX {
                changed.await;
                continue;
            }
            let Some(place) = self.far_behind.borrow_mut().pop_front() else {
                changed.await;
                continue;
            };
            let pause_ms = self.read_chunk(place).await;
            if pause_ms > 0 {
                self.shared.host.sleep(pause_ms).await;
            }
        }
    }

    /// Reads a piece of one stream; returns how long to wait before the next one.
    async fn read_chunk(&self, place: u32) -> u64 {
        let Some(partition) = self.still_leads(place) else {
            self.session.dirty.wake();
            return 0;
        };
        let Some((stream, epoch, from)) = self.catching_up(place) else { return 0 };
        let bytes_max = self.shared.options.bundle_bytes_max;
        let limits = ReadLimits { bytes_max, class: IoClass::CatchUp };
        let read = partition.read_for_follower(epoch, from, limits).await;
        if self.catching_up(place) != Some((stream, epoch, from)) {
            return 0;
        }
        let read = match read {
            Ok(read) => read,
            Err(error) => {
                self.read_failed(place, &partition, &error);
                self.session.dirty.wake();
                return 0;
            }
        };
        let bytes = read.bytes as u64;
        // A few such pieces are left: they are in memory, or the stream comes back here.
        let left = partition.log().ends().end.records_since(read.next_offset);
        let is_last = left <= 4 * read.next_offset.records_since(from);
        if let Some(fed) = self.streams.borrow_mut().get_mut(place) {
            fed.next = read.next_offset;
            if is_last {
                fed.phase = Phase::LastPiece;
            }
        }
        let marks = partition.marks();
        let chunk = Chunk { place, stream, epoch, from, marks, read, is_last };
        self.chunks.borrow_mut().push_back(chunk);
        if !is_last {
            self.far_behind.borrow_mut().push_back(place);
        }
        self.session.dirty.wake();
        self.shared.catch_up.used(bytes, self.shared.host.now_ms())
    }

    fn catching_up(&self, place: u32) -> Option<(u32, LeaderEpoch, Offset)> {
        let streams = self.streams.borrow();
        let fed = streams.get(place).filter(|fed| fed.phase == Phase::CatchingUp)?;
        Some((fed.stream, fed.asked.epoch, fed.next))
    }

    /// The piece to send now. Live streams go first: they have half of the credit for themselves.
    pub(super) fn take_chunk(&self) -> Option<Chunk> {
        if self.credit.get() <= self.credit_max / 2 {
            return None;
        }
        loop {
            let chunk = self.chunks.borrow_mut().pop_front()?;
            self.catch_up_changed.notify_all();
            let is_current = self.streams.borrow().get(chunk.place).is_some_and(|f| f.stream == chunk.stream);
            if is_current && chunk.read.bytes > 0 && self.still_leads(chunk.place).is_some() {
                return Some(chunk);
            }
            if is_current {
                self.chunk_sent(chunk.place, chunk.stream, chunk.is_last);
            }
        }
    }

    /// A piece has left; after the last one the stream is live.
    pub(super) fn chunk_sent(&self, place: u32, stream: u32, is_last: bool) {
        if !is_last {
            return;
        }
        let mut streams = self.streams.borrow_mut();
        if let Some(fed) = streams.get_mut(place).filter(|fed| fed.stream == stream) {
            fed.phase = Phase::Live;
            drop(streams);
            self.session.dirty.changed(place);
        }
    }
}
