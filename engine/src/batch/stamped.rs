//! Batches as their leader stamped them: what a follower appends, and what mends a damaged range.
//!
//! Owns: the one pass over a peer's bytes, and the facts of them that an append needs. Unlike `validate` it lets
//! through what brokers write (control batches, log append time), and it demands what a leader stamps.
//! Invariant: a [`StampedBatches`] is one run of whole, sound batches without a gap, whose epochs never fall.
//! Not here: whether they go on where the log ends (`log/replicated.rs`).

use crate::batch::header::{BatchHeader, HeaderError};
use crate::batch::stored::{HeaderCheck, StoredError, StoredScan, TailState};
use crate::types::{LeaderEpoch, Offset, TimestampMs};

/// What a peer may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StampedLimits {
    /// Largest batch, header included. Not the topic's limit, which may have been lowered since: what the link lets
    /// through.
    pub batch_bytes_max: usize,
    /// The leader's epoch: no batch of its log carries a later one.
    pub epoch_max: Option<LeaderEpoch>,
}

impl Default for StampedLimits {
    fn default() -> Self {
        Self { batch_bytes_max: i32::MAX as usize, epoch_max: None }
    }
}

/// Why bytes of a peer are not taken. Nothing was appended: break the link, and ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StampedError {
    /// No bytes.
    #[error("no record batch")]
    Empty,
    /// A batch that no leader stamped.
    #[error("batch at byte {position} has no leader epoch")]
    NoEpoch {
        /// Where the batch begins.
        position: usize,
    },
    /// Damaged on the way, or not what a leader sends.
    #[error("batch at byte {position}: {error}")]
    Batch {
        /// Where the batch begins.
        position: usize,
        /// What is wrong with it.
        error: StoredError,
    },
}

/// Checked batches. The bytes are borrowed and can only have been checked.
#[derive(Clone, Copy, Debug)]
pub struct StampedBatches<'a> {
    bytes: &'a [u8],
    base_offset: Offset,
    first_end_offset: Offset,
    end_offset: Offset,
    epoch_first: LeaderEpoch,
    epoch_last: LeaderEpoch,
    max_timestamp: TimestampMs,
}

impl<'a> StampedBatches<'a> {
    /// Checks one or more whole batches back to back: lengths, checksums, offsets without a gap, epochs that do
    /// not fall.
    ///
    /// Errors: [`StampedError`]; bytes behind the last whole batch are one too.
    /// Cost: one checksum pass, no allocation.
    pub fn check(bytes: &'a [u8], limits: &StampedLimits) -> Result<Self, StampedError> {
        if bytes.is_empty() {
            return Err(StampedError::Empty);
        }
        let at = |position| move |error| StampedError::Batch { position, error };
        let header_error = |error: HeaderError| match error {
            HeaderError::Short { have } => StoredError::Incomplete { need: super::HEADER_BYTES, have },
            other => other.into(),
        };
        let first = BatchHeader::parse(bytes).map_err(header_error).map_err(at(0))?;
        let epoch_first = first.leader_epoch.ok_or(StampedError::NoEpoch { position: 0 })?;
        let mut check = HeaderCheck::exact(first.base_offset, limits.batch_bytes_max);
        check.epoch_min = Some(epoch_first);
        check.epoch_max = limits.epoch_max;
        let mut scan = StoredScan::new(check);
        let fed = scan.feed(bytes, |_, _| {});
        let summary = scan.summary();
        fed.map_err(at(summary.bytes as usize))?;
        if let TailState::Partial { need, have } = scan.tail() {
            return Err(at(summary.bytes as usize)(StoredError::Incomplete { need, have }));
        }
        Ok(Self {
            bytes,
            base_offset: first.base_offset,
            first_end_offset: first.next_offset(),
            end_offset: summary.next_offset,
            epoch_first,
            epoch_last: scan.check().epoch_min.unwrap_or(epoch_first),
            max_timestamp: summary.max_timestamp.expect("there is at least one batch"),
        })
    }

    /// The bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Offset of the first record.
    pub fn base_offset(&self) -> Offset {
        self.base_offset
    }

    /// The offset after the last record of the first batch.
    pub fn first_end_offset(&self) -> Offset {
        self.first_end_offset
    }

    /// The offset after the last record.
    pub fn end_offset(&self) -> Offset {
        self.end_offset
    }

    /// Epoch of the first batch.
    pub fn epoch_first(&self) -> LeaderEpoch {
        self.epoch_first
    }

    /// Epoch of the last batch.
    pub fn epoch_last(&self) -> LeaderEpoch {
        self.epoch_last
    }

    /// Latest timestamp of a record.
    pub fn max_timestamp(&self) -> TimestampMs {
        self.max_timestamp
    }
}
