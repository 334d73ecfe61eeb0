//! Appending: admission, then order and the one copy.
//!
//! Owns: the way from validated bytes to a place in the tail of the active segment.
//! Invariant: an admission holds memory and prepared space for its bytes, so that `append` cannot fail halfway:
//! space comes before offsets, and a full disk is found before anything is assigned.
//! Invariant: one admission is out at a time (the turnstile), so appends of one log are in one order.
//! Not here: validation (`batch::validate`), when bytes are written (`commit.rs`).

use super::place::{ActiveSegment, Placement, place};
use std::rc::Rc;

use super::recovery::first_append_after_open;
use super::segment::{Chunk, OpenChunk};
use super::{AppendError, FlushPolicy, Log, LogFailure, Segment, TrimError, Writer};
use crate::batch::{BatchHeader, HEADER_BYTES, Stamp, TimestampType, stamp};
use crate::buffer::BUFFER_BYTES_MAX;
use crate::disk::{BLOCK_BYTES, Disk};
use crate::notify::Pass;
use crate::types::{LeaderEpoch, Offset, TimestampMs};

/// First chunk of a log that wakes up: a few small batches, and what an idle one of many costs.
pub(super) const CHUNK_BYTES_MIN: usize = BLOCK_BYTES;

/// Leave to append. Memory and disk space are there. Dropping it gives the turn back.
pub struct Admission<D: Disk> {
    pub(super) log: Log<D>,
    bytes: usize,
    _pin: Pin<D>,
    _pass: Pass,
}

/// Keeps the tail chunk of a segment in memory.
struct Pin<D: Disk>(Rc<Segment<D>>);

impl<D: Disk> Pin<D> {
    fn new(segment: Rc<Segment<D>>) -> Self {
        segment.pinned.set(true);
        Self(segment)
    }
}

impl<D: Disk> Drop for Pin<D> {
    fn drop(&mut self) {
        self.0.pinned.set(false);
    }
}

/// Where an append went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Offset of its first record.
    pub base_offset: Offset,
    /// Exclusive end of its offsets.
    pub end_offset: Offset,
    /// The time stamped into the records, if the log's timestamp type is log append time.
    pub append_time: Option<TimestampMs>,
}

impl<D: Disk> Log<D> {
    /// Waits for the turn, for memory and for prepared disk space for `bytes` of batches holding `records`
    /// records; rolls if they do not fit the active segment.
    ///
    /// Errors: nothing was changed; see each variant.
    /// Cancel: dropping the future gives the turn back.
    pub async fn admit(
        &self,
        bytes: usize,
        records: u64,
        now: TimestampMs,
    ) -> Result<Admission<D>, AppendError> {
        self.check_size(bytes)?;
        let pass = self.0.turnstile.enter().await;
        self.state_mut().last_admit = now;
        self.wait_for_room(bytes).await?;
        if self.state().epoch.is_none() {
            return Err(AppendError::NoEpoch);
        }
        self.admit_holding(bytes, records, now, pass).await
    }

    pub(super) fn check_size(&self, bytes: usize) -> Result<(), AppendError> {
        let bytes_max = self.append_bytes_max();
        if bytes > bytes_max { Err(AppendError::TooLarge { bytes, bytes_max }) } else { Ok(()) }
    }

    /// The rest of an admission: the place, the disk space and the memory.
    pub(super) async fn admit_holding(
        &self,
        bytes: usize,
        records: u64,
        now: TimestampMs,
        mut pass: Pass,
    ) -> Result<Admission<D>, AppendError> {
        if self.state().owed_cut.is_some() {
            pass = self.store_cut_holding(pass).await?;
        }
        self.ensure_index(now).await?;
        if self.placement(bytes, records, now) == Placement::Roll {
            pass = self.roll_holding(pass).await?;
        }
        if !self.is_prepared(bytes as u64)? {
            pass = self.prepare_holding(bytes as u64, pass).await?;
        }
        let pin = self.ensure_memory(bytes).await?;
        Ok(Admission { log: self.clone(), bytes, _pin: pin, _pass: pass })
    }

    /// Rolls. The turn goes with the work: if the producer gives up, nobody else begins before the file is there.
    async fn roll_holding(&self, pass: Pass) -> Result<Pass, AppendError> {
        let log = self.clone();
        self.engine().detach(async move { log.roll().await.map(|()| pass) }).await
    }

    /// Stores a cut that an earlier truncation could not. The turn goes with the work.
    async fn store_cut_holding(&self, pass: Pass) -> Result<Pass, AppendError> {
        let log = self.clone();
        let stored = self.engine().detach(async move { log.store_cut_if_owed().await.map(|()| pass) }).await;
        stored.map_err(|error| match error {
            TrimError::Failed(failure) => failure.into(),
            _ => AppendError::StorageFull { path: self.state().active().segment.path.clone() },
        })
    }

    /// Writes ahead. The turn goes with the work: zeroes that a producer who gave up had asked for must not fall on
    /// what the next one appends.
    async fn prepare_holding(&self, bytes: u64, pass: Pass) -> Result<Pass, AppendError> {
        let log = self.clone();
        self.engine().detach(async move { log.ensure_prepared(bytes).await.map(|()| pass) }).await
    }

    /// Largest append taken at once: what a log may hold unwritten, and at most half of the memory, so that what is
    /// waited for can come free.
    fn append_bytes_max(&self) -> usize {
        self.engine().options().unwritten_bytes_max.min(self.engine().pool().bytes_max() / 2)
    }

    /// Back-pressure of a slow disk: waits while too much of this log is unwritten.
    pub(super) async fn wait_for_room(&self, bytes: usize) -> Result<(), AppendError> {
        loop {
            let progress = {
                let state = self.state();
                state.check()?;
                let unwritten = state.unwritten_bytes();
                if unwritten == 0
                    || unwritten + bytes as u64 <= self.engine().options().unwritten_bytes_max as u64
                {
                    return Ok(());
                }
                self.0.progress.notified()
            };
            progress.await;
        }
    }

    /// Loads the index of the active segment after a start, and sets the segment's age.
    async fn ensure_index(&self, now: TimestampMs) -> Result<(), AppendError> {
        let segment = self.state().active().segment.clone();
        if segment.index.borrow().is_some() {
            return Ok(());
        }
        segment
            .load_index(self.engine())
            .await
            .map_err(|error| self.unusable(&segment, error.to_string()))?;
        if segment.bytes.get() > 0 {
            let since = first_append_after_open(segment.max_timestamp.get(), now);
            segment.first_append.set(Some(since));
        }
        Ok(())
    }

    fn placement(&self, bytes: usize, records: u64, now: TimestampMs) -> Placement {
        let state = self.state();
        let segment = &state.active().segment;
        let active = ActiveSegment {
            bytes: segment.bytes.get(),
            first_append: segment.first_append.get(),
            records: state.ends.end.records_since(segment.base),
        };
        place(active, bytes as u64, records, now, &state.options)
    }

    /// Makes sure that the tail chunk is in memory, pinned, and takes `bytes` more together with spare ones.
    ///
    /// While it waits for memory its tail may be released, and only one log of the engine waits with spare buffers
    /// in hand: so logs that need several buffers cannot starve each other.
    async fn ensure_memory(&self, bytes: usize) -> Result<Pin<D>, AppendError> {
        let mut turn = None;
        loop {
            let pin = Pin::new(self.state().active().segment.clone());
            self.ensure_tail_block().await?;
            let Some(size) = self.missing_memory(bytes) else { return Ok(pin) };
            let buffer = match self.engine().try_allocate(size) {
                Some(buffer) => buffer,
                None => {
                    drop(pin);
                    if turn.is_none() {
                        // Whoever has the turn may wait for just these.
                        self.state_mut().active_mut().spare.clear();
                        turn = Some(self.engine().enter_memory_turnstile().await);
                    }
                    self.engine().allocate(size).await
                }
            };
            self.engine().opened_tail(&self.state().active().segment);
            let grown = (buffer.capacity() * 2).min(self.engine().chunk_bytes_max());
            let mut state = self.state_mut();
            let writer = state.active_mut();
            writer.chunk_bytes_next = grown;
            writer.spare.push_back(buffer);
        }
    }

    /// Size of the next buffer that an append of `bytes` needs; `None` if there is room.
    fn missing_memory(&self, bytes: usize) -> Option<usize> {
        let state = self.state();
        let writer = state.active();
        let open = writer.segment.open_chunk.borrow();
        let room = open.as_ref().map_or(0, |c| c.buffer.spare())
            + writer.spare.iter().map(|b| b.capacity()).sum::<usize>();
        (room < bytes).then(|| (bytes - room).max(writer.chunk_bytes_next).min(BUFFER_BYTES_MAX))
    }

    /// Reads the partial block at the end of the active segment back, if its chunk was released.
    async fn ensure_tail_block(&self) -> Result<(), AppendError> {
        let (segment, end) = {
            let state = self.state();
            let segment = state.active().segment.clone();
            let end = segment.bytes.get();
            (segment, end)
        };
        let partial = (end % BLOCK_BYTES as u64) as usize;
        if partial == 0 || segment.open_chunk.borrow().is_some() {
            return Ok(());
        }
        let mut chunk = self.engine().allocate(CHUNK_BYTES_MIN).await;
        let start = end - partial as u64;
        match segment.chunk_at(start) {
            Some((bytes, _)) if bytes.len() >= partial => chunk.append(&bytes[..partial]),
            _ => {
                let block = super::scan::read_block(&segment, self.engine(), start, partial).await;
                chunk.append(&block.map_err(|error| self.unusable(&segment, error.to_string()))?);
            }
        }
        self.engine().opened_tail(&segment);
        *segment.open_chunk.borrow_mut() = Some(OpenChunk { start, buffer: chunk });
        Ok(())
    }

    fn unusable(&self, segment: &Segment<D>, reason: String) -> LogFailure {
        let operation = "reading the end of the log back";
        let failure = LogFailure::Poisoned { path: segment.path.clone(), operation, reason };
        self.fail(failure.clone());
        failure
    }
}

impl<D: Disk> Admission<D> {
    /// Orders `batches` at the end of the log and copies them, stamped, into its tail. They are in memory now:
    /// readable below a visible end, neither written nor durable.
    ///
    /// Shape: one or more whole batches back to back, as `batch::validate` has accepted them, of exactly the
    /// bytes admitted.
    /// Errors: the log failed since the admission; nothing was assigned.
    /// Cost: one copy of the bytes, no allocation beyond a queue entry.
    ///
    /// # Panics
    /// If the bytes are not those admitted or not whole batches.
    pub fn append(self, batches: &[u8], now: TimestampMs) -> Result<Appended, AppendError> {
        let (epoch, append_time, base_offset) = {
            let mut state = self.log.state_mut();
            state.check()?;
            let epoch = state.epoch.ok_or(AppendError::NoEpoch)?;
            let append_time = (state.options.timestamp_type == TimestampType::LogAppendTime).then_some(now);
            let base_offset = state.ends.end;
            // Not refused: `begin_epoch` took only a term above all in the table, which ends at or before here.
            let _ = state.epochs.assign(epoch, base_offset);
            (epoch, append_time, base_offset)
        };
        let end_offset = self
            .take(batches.len(), now, |writer| writer.push_batches(batches, base_offset, epoch, append_time));
        Ok(Appended { base_offset, end_offset, append_time })
    }

    /// Lets `push` copy `bytes` into the tail, takes note of where they end, and tells who waits for them.
    pub(super) fn take(
        self,
        bytes: usize,
        now: TimestampMs,
        push: impl FnOnce(&mut Writer<D>) -> Offset,
    ) -> Offset {
        assert!(bytes == self.bytes, "{} bytes admitted, {bytes} appended", self.bytes);
        let (base_offset, end_offset) = {
            let mut state = self.log.state_mut();
            let base_offset = state.ends.end;
            let writer = state.active_mut();
            if writer.segment.first_append.get().is_none() {
                writer.segment.first_append.set(Some(now));
            }
            let end_offset = push(writer);
            let end_position = writer.segment.bytes.get();
            writer.plan.append(bytes as u64);
            writer.pending.push_back((end_position, end_offset));
            state.ends.end = end_offset;
            state.appended_since_checkpoint += bytes as u64;
            state.unsynced_since.get_or_insert(now);
            if let FlushPolicy::Interval { bytes_max, .. } = state.options.flush {
                let mark = state.active().durable_mark.position;
                state.sync_wanted |= end_position.saturating_sub(mark) >= bytes_max;
            }
            (base_offset, end_offset)
        };
        let log = &self.log;
        log.engine().count(|s| {
            s.appended_bytes += bytes as u64;
            s.copied_bytes += bytes as u64;
            s.appended_records += end_offset.records_since(base_offset);
        });
        log.wake_commits();
        log.prepare_ahead();
        log.tell_appended();
        end_offset
    }
}

impl<D: Disk> Writer<D> {
    /// Copies batches into the tail and indexes them; returns the offset after the last of them.
    fn push_batches(
        &mut self,
        mut batches: &[u8],
        base_offset: Offset,
        epoch: LeaderEpoch,
        append_time: Option<TimestampMs>,
    ) -> Offset {
        let segment = self.segment.clone();
        let mut next = base_offset;
        while !batches.is_empty() {
            let header = BatchHeader::parse_unstamped(batches).expect("only validated batches are appended");
            let (batch, rest) = batches.split_at(header.size());
            batches = rest;
            let mut stamped: [u8; HEADER_BYTES] = *batch.first_chunk().expect("a batch has a header");
            stamp(&mut stamped, Stamp { base_offset: next, leader_epoch: epoch, append_time });
            let position = segment.bytes.get();
            self.push_bytes(&stamped);
            self.push_bytes(&batch[HEADER_BYTES..]);
            let max_timestamp = append_time.unwrap_or(header.max_timestamp);
            let stamped =
                BatchHeader { base_offset: next, leader_epoch: Some(epoch), max_timestamp, ..header };
            segment.note_batch(&stamped, position);
            next = stamped.next_offset();
        }
        next
    }

    /// Copies bytes into the open chunk, going on in spare ones.
    pub(super) fn push_bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let mut open = self.segment.open_chunk.borrow_mut();
            if open.as_ref().is_none_or(|chunk| chunk.buffer.spare() == 0) {
                let buffer = self.spare.pop_front().expect("admission set memory aside");
                let start = match open.take() {
                    Some(full) => {
                        let end = full.end();
                        let bytes = full.buffer.slice(0..full.buffer.filled());
                        self.segment.insert_chunk(full.start, Chunk { bytes, dirty: true, from_disk: false });
                        end
                    }
                    None => self.plan.appended(),
                };
                *open = Some(OpenChunk { start, buffer });
            }
            let chunk = open.as_mut().expect("a chunk was opened");
            let count = bytes.len().min(chunk.buffer.spare());
            chunk.buffer.append(&bytes[..count]);
            bytes = &bytes[count..];
        }
    }
}
