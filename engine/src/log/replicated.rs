//! Appending as a follower: batches come with the offsets and epochs that their leader gave them.
//!
//! Owns: what must hold between what the log ends with and what a leader sends, and the change from one role to
//! the other.
//! Invariant: an append goes on exactly at the log end: no gap (nothing here compacts, so a gap is a loss) and no
//! overlap; its epochs do not fall below the newest in the log.
//! Invariant: while a term of this log's own is on, nothing replicated is appended, and the other way round: a
//! leader that follows again calls [`Log::end_epoch`] first.
//! Not here: what is cut before (`trim.rs`, the caller asks its leader), checksums (`batch::stamped`).
//! Crash story: as of any append. What came back from the dead is told apart by the epoch handshake, not here.

use super::append::Admission;
use super::{Appended, Log, ReplicatedError, State, Writer};
use crate::batch::{BatchHeader, StampedBatches};
use crate::disk::Disk;
use crate::types::{Offset, TimestampMs};

impl<D: Disk> Log<D> {
    /// Ends this log's own term: [`Log::admit`] refuses from now on, and a leader's batches may come. An admission
    /// that is out is refused when it appends.
    pub fn end_epoch(&self) {
        self.state_mut().epoch = None;
    }

    /// Waits for the turn, for memory and for prepared disk space for a leader's batches.
    ///
    /// An empty log may lie within the first batch: the leader's log start was there when it was reset. Then it
    /// begins with that batch.
    /// Errors: nothing was changed; see each variant.
    /// Cancel: dropping the future gives the turn back.
    pub async fn admit_replicated(
        &self,
        batches: &StampedBatches<'_>,
        now: TimestampMs,
    ) -> Result<Admission<D>, ReplicatedError> {
        let bytes = batches.bytes().len();
        self.check_size(bytes)?;
        let mut pass = self.0.turnstile.enter().await;
        self.state_mut().last_admit = now;
        self.wait_for_room(bytes).await?;
        if self.lies_within_first(batches) {
            pass = self.reset_holding(batches.base_offset(), pass).await?;
        }
        self.check_continues(batches)?;
        let records = batches.end_offset().records_since(batches.base_offset());
        Ok(self.admit_holding(bytes, records, now, pass).await?)
    }

    /// Checks the turn, appends, and returns the new end: [`Log::admit_replicated`] and
    /// [`Admission::append_replicated`] for who need not look whether it still follows in between.
    pub async fn append_replicated(
        &self,
        batches: &StampedBatches<'_>,
        now: TimestampMs,
    ) -> Result<Appended, ReplicatedError> {
        self.admit_replicated(batches, now).await?.append_replicated(batches, now)
    }

    fn lies_within_first(&self, batches: &StampedBatches<'_>) -> bool {
        let state = self.state();
        let is_empty = state.bytes() == 0 && state.epoch.is_none();
        is_empty && batches.base_offset() < state.ends.end && state.ends.end < batches.first_end_offset()
    }

    fn check_continues(&self, batches: &StampedBatches<'_>) -> Result<(), ReplicatedError> {
        let state = self.state();
        state.check()?;
        if let Some(epoch) = state.epoch {
            return Err(ReplicatedError::Leads { epoch });
        }
        if batches.base_offset() != state.ends.end {
            return Err(ReplicatedError::NotNext { found: batches.base_offset(), expected: state.ends.end });
        }
        match state.epochs.latest() {
            Some(newest) if batches.epoch_first() < newest.epoch => {
                Err(ReplicatedError::StaleEpoch { found: batches.epoch_first(), newest: newest.epoch })
            }
            _ => Ok(()),
        }
    }
}

impl<D: Disk> Admission<D> {
    /// Appends a leader's batches, byte for byte. They are in memory now, neither written nor durable.
    ///
    /// Errors: the log failed or leads since the admission; nothing was appended.
    /// Cost: one copy of the bytes, no allocation beyond a queue entry.
    ///
    /// # Panics
    /// If the batches are not those admitted.
    pub fn append_replicated(
        self,
        batches: &StampedBatches<'_>,
        now: TimestampMs,
    ) -> Result<Appended, ReplicatedError> {
        let log = self.log.clone();
        log.check_continues(batches)?;
        log.state_mut().begin_terms(batches.bytes());
        let (base_offset, bytes) = (batches.base_offset(), batches.bytes());
        let end_offset = self.take(bytes.len(), now, |writer| writer.push_stamped(bytes));
        assert!(
            end_offset == batches.end_offset(),
            "{end_offset} after batches up to {}",
            batches.end_offset()
        );
        Ok(Appended { base_offset, end_offset, append_time: None })
    }
}

impl<D: Disk> State<D> {
    /// Takes the terms of checked batches into the table. The first batch may begin before the log start.
    fn begin_terms(&mut self, batches: &[u8]) {
        let mut position = 0;
        while position < batches.len() {
            let header = BatchHeader::parse(&batches[position..]).expect("only checked batches are appended");
            let epoch = header.leader_epoch.expect("checked batches are stamped");
            let begins = header.base_offset.max(self.ends.start);
            self.epochs.assign(epoch, begins).expect("epochs and offsets were checked to ascend");
            position += header.size();
        }
    }
}

impl<D: Disk> Writer<D> {
    /// Copies batches into the tail as they are, and indexes them; returns the offset after the last of them.
    fn push_stamped(&mut self, mut batches: &[u8]) -> Offset {
        let segment = self.segment.clone();
        while !batches.is_empty() {
            let header = BatchHeader::parse(batches).expect("only checked batches are appended");
            let (batch, rest) = batches.split_at(header.size());
            batches = rest;
            let position = segment.bytes.get();
            self.push_bytes(batch);
            segment.note_batch(&header, position);
        }
        segment.end_offset.get()
    }
}
