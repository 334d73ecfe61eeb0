//! What clients are told: the one place where errors of the engine and of replication become codes.
//!
//! Owns: the mapping, without a catch-all, so that a new error has to find its code. The message is the error's own.

use corelog_engine::batch::{BatchError, HeaderError};
use corelog_engine::log::{AppendError, LogFailure, OpenError, ReadError, TrimError};
use corelog_replication::derived::SequenceError;
use corelog_replication::{
    DeleteRecordsError, FetchError, LeaderError, ListOffsetsError, ProduceError, WaitError,
};
use corelog_schemas::{ErrorCode, Failure};

fn failure(code: ErrorCode, error: &impl std::fmt::Display) -> Failure {
    Failure::new(code, error.to_string())
}

pub(super) fn of_produce(error: &ProduceError) -> Failure {
    match error {
        ProduceError::Leader(error) => of_leader(error),
        ProduceError::NotEnoughReplicas { .. } => failure(ErrorCode::NotEnoughReplicas, error),
        ProduceError::Invalid(error) => of_batch(error),
        ProduceError::Read(error) => of_read(error),
        ProduceError::Sequence(error) => of_sequence(error),
        ProduceError::Append(error) => of_append(error),
    }
}

pub(super) fn of_leader(error: &LeaderError) -> Failure {
    let code = match error {
        LeaderError::NotLeader { .. } | LeaderError::Isolated => ErrorCode::NotLeader,
        LeaderError::Fenced { .. } => ErrorCode::FencedLeaderEpoch,
        LeaderError::Unknown { .. } => ErrorCode::UnknownLeaderEpoch,
    };
    failure(code, error)
}

fn of_sequence(error: &SequenceError) -> Failure {
    let code = match error {
        SequenceError::OutOfOrder { .. } | SequenceError::PartlyTaken { .. } => ErrorCode::OutOfOrderSequence,
        SequenceError::Fenced { .. } => ErrorCode::FencedProducer,
    };
    failure(code, error)
}

/// What somebody is told who waited for an ack: whatever the reason, his records have been appended, and a code that says
/// "refused" would have him believe that they are not there.
pub(super) fn of_wait(error: &WaitError) -> Failure {
    match error {
        WaitError::NotLeader | WaitError::NotEnoughReplicas { .. } | WaitError::Failed(_) => {
            failure(ErrorCode::Unacked, error)
        }
    }
}

fn of_batch(error: &BatchError) -> Failure {
    let code = match error {
        BatchError::Checksum { .. } => ErrorCode::CorruptBatch,
        BatchError::TooLarge { .. } => ErrorCode::BatchTooLarge,
        BatchError::Compression { .. } => ErrorCode::UnsupportedCompression,
        BatchError::Timestamp { .. } => ErrorCode::InvalidTimestamp,
        BatchError::Empty
        | BatchError::Incomplete { .. }
        | BatchError::Header { error: HeaderError::Short { .. }, .. }
        | BatchError::Header { .. }
        | BatchError::RecordCount { .. }
        | BatchError::Control { .. }
        | BatchError::Transactional { .. }
        | BatchError::BrokerAttributes { .. } => ErrorCode::InvalidBatch,
    };
    failure(code, error)
}

pub(super) fn of_append(error: &AppendError) -> Failure {
    let code = match error {
        AppendError::Failed(error) => return of_log(error),
        AppendError::StorageFull { .. } => ErrorCode::DiskFull,
        AppendError::TooLarge { .. } => ErrorCode::BatchTooLarge,
        AppendError::NoEpoch => ErrorCode::NotLeader,
        AppendError::StaleEpoch { .. } => ErrorCode::FencedLeaderEpoch,
        AppendError::CannotRoll { .. } => ErrorCode::StorageFailed,
    };
    failure(code, error)
}

/// A closed log was deleted, or the node is stopping: in both cases somebody else answers soon, or nobody.
pub(super) fn of_log(error: &LogFailure) -> Failure {
    let code = match error {
        LogFailure::Poisoned { .. } => ErrorCode::StorageFailed,
        LogFailure::Closed => ErrorCode::NotLeader,
    };
    failure(code, error)
}

pub(super) fn of_fetch(error: &FetchError) -> Failure {
    match error {
        FetchError::Leader(error) => of_leader(error),
        FetchError::Read(error) => of_read(error),
    }
}

fn of_read(error: &ReadError) -> Failure {
    let code = match error {
        ReadError::OffsetOutOfRange { .. } => ErrorCode::OffsetOutOfRange,
        ReadError::Corrupt { .. } => ErrorCode::CorruptData,
        ReadError::Disk { .. } => ErrorCode::StorageFailed,
        ReadError::Closed => ErrorCode::NotLeader,
    };
    failure(code, error)
}

pub(super) fn of_list_offsets(error: &ListOffsetsError) -> Failure {
    match error {
        ListOffsetsError::Leader(error) => of_leader(error),
        ListOffsetsError::NotCaughtUp { .. } => failure(ErrorCode::NotLeader, error),
        ListOffsetsError::Read(error) => of_read(error),
    }
}

pub(super) fn of_delete_records(error: &DeleteRecordsError) -> Failure {
    match error {
        DeleteRecordsError::Leader(error) => of_leader(error),
        DeleteRecordsError::AboveHighWatermark { .. } => failure(ErrorCode::OffsetOutOfRange, error),
        DeleteRecordsError::Trim(TrimError::OutOfRange { .. }) => failure(ErrorCode::OffsetOutOfRange, error),
        DeleteRecordsError::Trim(TrimError::Failed(error)) => of_log(error),
        DeleteRecordsError::Trim(TrimError::Disk(_)) => failure(ErrorCode::StorageFailed, error),
        DeleteRecordsError::Trim(TrimError::Read(error)) => of_read(error),
    }
}

pub(super) fn of_open(error: &OpenError) -> Failure {
    let code = match error {
        OpenError::Disk { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            ErrorCode::DiskFull
        }
        OpenError::Disk { .. } => ErrorCode::StorageFailed,
        OpenError::Checkpoint { .. } | OpenError::WrongLog { .. } => ErrorCode::PartitionOffline,
        OpenError::MissingSegment { .. } | OpenError::Damaged(_) => ErrorCode::CorruptData,
    };
    failure(code, error)
}
