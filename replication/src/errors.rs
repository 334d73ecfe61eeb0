//! Why an operation on a partition failed: one enum per operation, each variant saying what the caller does.

use corelog_engine::batch::BatchError;
use corelog_engine::log::{AppendError, LogFailure, ReadError, TrimError};
use corelog_engine::{LeaderEpoch, Offset};

use crate::derived::SequenceError;
use crate::follower::HandshakeError;
use crate::replica::ReplicaId;

/// Why this replica does not serve a request: it is not the leader that the caller means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaderError {
    /// It does not lead: the caller refreshes its metadata.
    #[error("this replica does not lead; the newest leader epoch that it knows is {epoch}")]
    NotLeader {
        /// The newest epoch that it has seen.
        epoch: LeaderEpoch,
    },
    /// It leads, as far as it knows, but has not heard from the coordination service for longer than its session
    /// lasts: another one may lead. What needs all in-sync replicas goes on; for the rest the caller refreshes its
    /// metadata.
    #[error("this replica is cut off from the coordination service: another one may lead")]
    Isolated,
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
    /// See [`LeaderError`].
    #[error(transparent)]
    Leader(#[from] LeaderError),
    /// `acks = all` would be kept by fewer replicas than the topic asks for: try again when they are back.
    #[error("{isr} replicas are in sync, acks = all needs {min_insync_replicas}")]
    NotEnoughReplicas {
        /// How many are.
        isr: usize,
        /// How many must be.
        min_insync_replicas: usize,
    },
    /// The bytes are not what may be appended.
    #[error(transparent)]
    Invalid(#[from] BatchError),
    /// What the log says of an idempotent producer could not be read: as for a fetch.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The batch of an idempotent producer is not the next one, and none that is remembered.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// The log did not take them.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Why a wait ended without what was waited for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// The leadership in which it began has ended. A record that waited may be kept or not: the producer sends it
    /// again to the new leader.
    #[error("this replica does not lead any more")]
    NotLeader,
    /// The record is kept, but by fewer replicas than the topic asks for.
    #[error("only {isr} replicas are in sync, acks = all needs {min_insync_replicas}")]
    NotEnoughReplicas {
        /// How many are.
        isr: usize,
        /// How many must be.
        min_insync_replicas: usize,
    },
    /// The log failed: what was appended may or may not be there after the next start.
    #[error(transparent)]
    Failed(#[from] LogFailure),
}

/// Why a replica does not take a role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RoleError {
    /// The order is older than what this replica has seen, or contradicts it within an epoch: forget it.
    #[error("leader epoch {given} is not new: epoch {seen} has been seen")]
    Stale {
        /// Of the order.
        given: LeaderEpoch,
        /// The newest seen.
        seen: LeaderEpoch,
    },
    /// A leader must be one of its ISR: the order contradicts itself.
    #[error("{me} is to lead, but is not in the ISR")]
    OutsideIsr {
        /// This replica.
        me: ReplicaId,
    },
    /// The log takes no new epoch: this replica cannot lead.
    #[error(transparent)]
    Log(#[from] AppendError),
}

/// Why a leader does not let a replica follow, or refuses it batches.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FollowError {
    /// See [`LeaderError`]. The follower waits for the assignment that it has not seen, or tries again.
    #[error(transparent)]
    Leader(#[from] LeaderError),
    /// It is none of the replicas assigned.
    #[error("{replica} is not a replica of this partition")]
    NotReplica {
        /// Who asked.
        replica: ReplicaId,
    },
    /// It has come back on a later connection.
    #[error("{replica} follows on a later connection")]
    OldConnection {
        /// Who asked.
        replica: ReplicaId,
    },
}

/// Why a follower does not do what its leader says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FollowerError {
    /// This replica does not follow (any more): the stream ends.
    #[error("this replica does not follow; the newest leader epoch that it knows is {epoch}")]
    NotFollower {
        /// The newest epoch that it has seen.
        epoch: LeaderEpoch,
    },
    /// See [`HandshakeError`].
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The bytes are damaged, or are not the next of this log: ask again.
    #[error("the leader's batches cannot be appended: {0}")]
    Batches(String),
    /// The log could not be changed.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The log could not be cut.
    #[error(transparent)]
    Trim(#[from] TrimError),
}

/// Why nothing was read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// See [`LeaderError`].
    #[error(transparent)]
    Leader(#[from] LeaderError),
    /// The log could not serve it.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Why an offset was not found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListOffsetsError {
    /// See [`LeaderError`].
    #[error(transparent)]
    Leader(#[from] LeaderError),
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
    /// See [`LeaderError`].
    #[error(transparent)]
    Leader(#[from] LeaderError),
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
