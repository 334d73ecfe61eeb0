//! Why an operation on a log failed: one enum per operation, each variant saying what the caller does.

use std::path::PathBuf;

use crate::batch::StampedError;
use crate::types::{LeaderEpoch, LogId, Offset};

/// Why a log takes no more appends until it is opened again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFailure {
    /// A write or sync failed: what is on the device since the last good sync is unknown. The log is poisoned;
    /// reads below the high watermark go on. Move leadership, or reopen the log after the disk is mended.
    #[error("log {path} is poisoned: {operation} failed: {reason}")]
    Poisoned {
        /// The segment file.
        path: PathBuf,
        /// Which operation failed.
        operation: &'static str,
        /// What the system said.
        reason: String,
    },
    /// The log was closed or deleted.
    #[error("log is closed")]
    Closed,
}

/// Why an append was refused. Nothing was assigned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The log takes no appends.
    #[error(transparent)]
    Failed(#[from] LogFailure),
    /// No space on the disk: retry later, after retention or deletion has made room.
    #[error("no space left for log {path}")]
    StorageFull {
        /// The segment file.
        path: PathBuf,
    },
    /// The append is larger than the log takes at once: send smaller batches.
    #[error("append of {bytes} bytes is above the limit of {bytes_max}")]
    TooLarge {
        /// Bytes of all batches of the append.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// No leadership term has begun: only a leader appends.
    #[error("log has no leader epoch")]
    NoEpoch,
    /// A term must be higher than any in the log.
    #[error("leader epoch {requested} is not above {newest}, the newest in the log")]
    StaleEpoch {
        /// The term asked for.
        requested: LeaderEpoch,
        /// The newest in the log.
        newest: LeaderEpoch,
    },
    /// The next segment could not be created: retry, and look at the disk.
    #[error("cannot roll to segment {path}: {reason}")]
    CannotRoll {
        /// The new segment file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

/// Why a leader's batches were refused. Nothing was appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplicatedError {
    /// As for any append.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// This log is in a term of its own: end that first, or stop following.
    #[error("the log leads in epoch {epoch}")]
    Leads {
        /// Its own term.
        epoch: LeaderEpoch,
    },
    /// The batches do not begin where the log ends: ask the leader from there.
    #[error("batches begin at offset {found}, the log ends at {expected}")]
    NotNext {
        /// Where they begin.
        found: Offset,
        /// Where the log ends.
        expected: Offset,
    },
    /// The batches are of an older term than the newest in the log: ask the leader where that one ended, and cut.
    #[error("batches of leader epoch {found} behind one of {newest}")]
    StaleEpoch {
        /// The term of the first batch.
        found: LeaderEpoch,
        /// The newest in the log.
        newest: LeaderEpoch,
    },
    /// The empty log could not be made to begin with the first batch.
    #[error(transparent)]
    Reset(#[from] TrimError),
}

impl From<LogFailure> for ReplicatedError {
    fn from(failure: LogFailure) -> Self {
        Self::Append(failure.into())
    }
}

/// Why a read could not be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The caller asked outside the readable range; it should reset its position.
    #[error("offset {requested} is outside [{start}, {end}]")]
    OffsetOutOfRange {
        /// The offset asked for.
        requested: Offset,
        /// Log start offset.
        start: Offset,
        /// Log end offset.
        end: Offset,
    },
    /// Bytes on disk failed a check: fetch this range from another replica.
    #[error("{path} is damaged at byte {position} (offset {offset}): {reason}")]
    Corrupt {
        /// The segment file.
        path: PathBuf,
        /// Byte position of the bad batch.
        position: u64,
        /// The offset wanted there.
        offset: Offset,
        /// What is wrong with the batch.
        reason: String,
    },
    /// The log was deleted meanwhile: ask where the partition is now.
    #[error("the log was deleted")]
    Closed,
    /// The disk failed.
    #[error("cannot read {path}: {reason}")]
    Disk {
        /// The segment file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

/// Why a damaged range was not mended. Unless it says otherwise nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RepairError {
    /// The log takes no changes.
    #[error(transparent)]
    Failed(#[from] LogFailure),
    /// The bytes are no sound batches: ask another replica.
    #[error(transparent)]
    Batches(#[from] StampedError),
    /// No sealed segment has that range (any more): retention or a cut was faster, or it is the active one, which a
    /// follower mends by cutting it and a leader by giving up its leadership.
    #[error("no sealed segment of {dir} has offsets [{from}, {to})")]
    NotSealed {
        /// The log directory.
        dir: PathBuf,
        /// First offset of the range.
        from: Offset,
        /// Exclusive end of the range.
        to: Offset,
    },
    /// Sound batches that do not fit the gap: the replicas do not hold the same bytes. Fill this replica anew.
    #[error(
        "a gap of {length_bytes} bytes for offsets [{from}, {to}) cannot take {found_bytes} bytes of [{found_from}, \
         {found_to})"
    )]
    DoesNotFit {
        /// Bytes of the range.
        length_bytes: u64,
        /// First offset of the range.
        from: Offset,
        /// Exclusive end of the range.
        to: Offset,
        /// Bytes of the batches.
        found_bytes: u64,
        /// Their first offset.
        found_from: Offset,
        /// Their exclusive end.
        found_to: Offset,
    },
    /// Batches of other terms than the log has there: the replicas diverge. Fill this replica anew.
    #[error("the batch at offset {offset} is of leader epoch {found}, the log has {expected} there")]
    OtherEpoch {
        /// First offset of the batch.
        offset: Offset,
        /// The term of the batch.
        found: LeaderEpoch,
        /// The term of the log.
        expected: LeaderEpoch,
    },
    /// The disk failed; the range may hold anything now.
    #[error("cannot mend {path}: {reason}")]
    Disk {
        /// The segment file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// What was written does not read back: the medium is bad there. Fill this replica anew on another disk.
    #[error("{path} still reads back damaged at byte {position} after a repair: {reason}")]
    StillDamaged {
        /// The segment file.
        path: PathBuf,
        /// Where, in bytes.
        position: u64,
        /// What is wrong there.
        reason: String,
    },
}

/// Why a log could not be opened. Other logs are not concerned.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The disk failed: look at the device, then open again.
    #[error("cannot {operation} {path}: {source}")]
    Disk {
        /// What was tried.
        operation: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A checkpoint is damaged in a way that recovery cannot work around, or was written by a newer version.
    #[error("{path}: {reason}")]
    Checkpoint {
        /// The checkpoint file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The directory holds another log than the metadata says: a disk was swapped.
    #[error("{path} holds log {found}, but log {expected} was expected: was a disk swapped?")]
    WrongLog {
        /// The log directory.
        path: PathBuf,
        /// The log that the caller wanted.
        expected: LogId,
        /// The log that is there.
        found: LogId,
    },
    /// A sealed segment misses in the middle: restore it, or let the replica be filled anew.
    #[error("{path}: offsets [{gap_start}, {gap_end}) are missing: no segment holds them")]
    MissingSegment {
        /// The log directory.
        path: PathBuf,
        /// First missing offset.
        gap_start: Offset,
        /// First offset that is there again.
        gap_end: Offset,
    },
    /// A sealed segment, whose bytes were known durable, is damaged.
    #[error(transparent)]
    Damaged(#[from] ReadError),
}

/// Why records were not deleted or a log not cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrimError {
    /// The offset lies outside the log: ask for its bounds first.
    #[error("offset {requested} is outside [{start}, {end}]")]
    OutOfRange {
        /// The offset asked for.
        requested: Offset,
        /// Log start offset.
        start: Offset,
        /// Exclusive end of what may be cut here.
        end: Offset,
    },
    /// The log takes no changes.
    #[error(transparent)]
    Failed(#[from] LogFailure),
    /// No space to store the change: try again. What was cut is not readable now, and no append is taken before
    /// the cut is stored; a start before that brings it back.
    #[error("cannot store the change: {0}")]
    Disk(String),
    /// What is around the cut could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}
