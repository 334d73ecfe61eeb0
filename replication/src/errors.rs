//! Why an operation on a partition failed: one enum per operation, each variant saying what the caller does.

use corelog_engine::batch::BatchError;
use corelog_engine::log::{AppendError, ReadError, TrimError};
use corelog_engine::{LeaderEpoch, Offset};

/// The request and the leader do not agree on the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EpochError {
    /// The caller believes in an older leader: it refreshes its metadata.
    #[error("the request names leader epoch {requested}, the leader is in epoch {current}")]
    Fenced {
        /// What the caller believes.
        requested: LeaderEpoch,
        /// What is.
        current: LeaderEpoch,
    },
    /// The caller knows of a newer leader than this one does: it tries again soon.
    #[error("the request names leader epoch {requested}, this replica knows only epoch {current}")]
    Unknown {
        /// What the caller believes.
        requested: LeaderEpoch,
        /// What this replica knows.
        current: LeaderEpoch,
    },
}

/// Why records were not appended. Nothing of this partition's batches was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProduceError {
    /// See [`EpochError`].
    #[error(transparent)]
    Epoch(#[from] EpochError),
    /// The bytes are not what may be appended.
    #[error(transparent)]
    Invalid(#[from] BatchError),
    /// The log did not take them.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Why nothing was read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// See [`EpochError`].
    #[error(transparent)]
    Epoch(#[from] EpochError),
    /// The log could not serve it.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Why an offset was not found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListOffsetsError {
    /// See [`EpochError`].
    #[error(transparent)]
    Epoch(#[from] EpochError),
    /// A new leader does not know yet what is committed: ask again.
    #[error("high watermark {high_watermark} has not reached the start of the leader's epoch")]
    NotCaughtUp {
        /// Where it is.
        high_watermark: Offset,
    },
    /// The log could not be searched.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Why records were not deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeleteRecordsError {
    /// Only what is committed can be deleted: ask for the bounds first.
    #[error("offset {requested} is above the high watermark {high_watermark}")]
    AboveHighWatermark {
        /// The log start asked for.
        requested: Offset,
        /// Where the committed records end.
        high_watermark: Offset,
    },
    /// The log could not store it.
    #[error(transparent)]
    Trim(#[from] TrimError),
}
