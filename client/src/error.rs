//! Every way in which the client can fail: one type per operation, each saying what the caller can do.
//!
//! Owns: which failures are worth another try (`is_retriable`) and which mean that the metadata is old
//! (`is_stale_metadata`). Not here: when to try again (`retry`).

use std::sync::Arc;

use corelog_engine::Offset;
use corelog_schemas::{ErrorCode, Failure};

/// Why there is no connection. All of them may pass by themselves, except `Handshake` of an incompatible server.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name does not resolve, nobody listens, or the network is down.
    #[error("cannot connect to {address}: {reason}")]
    Unreachable {
        /// Where we tried.
        address: Arc<str>,
        /// What the system said.
        reason: Arc<str>,
    },
    /// Something listens, but did not speak in time.
    #[error("{address} did not finish the handshake within {timeout_ms} ms")]
    TimedOut {
        /// Where we tried.
        address: Arc<str>,
        /// The limit.
        timeout_ms: u64,
    },
    /// Something listens that is no Corelog server, or the connection broke.
    #[error("{address} does not speak the native protocol of Corelog: {reason}")]
    NotCorelog {
        /// Where we tried.
        address: Arc<str>,
        /// What was wrong.
        reason: Arc<str>,
    },
    /// The server refused the handshake, for example for want of a common protocol version.
    #[error("{address} refused the handshake: {failure}")]
    Refused {
        /// Where we tried.
        address: Arc<str>,
        /// What it said.
        failure: Failure,
    },
}

/// Why a request has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RequestError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The connection broke before the answer; the server may have done what was asked.
    #[error("the connection to {address} broke: {reason}")]
    Disconnected {
        /// The peer.
        address: Arc<str>,
        /// Why.
        reason: Arc<str>,
    },
    /// No answer in time; the server may still do what was asked.
    #[error("{address} did not answer within {timeout_ms} ms")]
    TimedOut {
        /// The peer.
        address: Arc<str>,
        /// The limit.
        timeout_ms: u64,
    },
    /// The server refused.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// The answer makes no sense: a fault of the server, or of this client.
    #[error("{address} answered nonsense: {reason}")]
    BadAnswer {
        /// The peer.
        address: Arc<str>,
        /// What was wrong.
        reason: Arc<str>,
    },
}

impl RequestError {
    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::Connect(ConnectError::Refused { failure, .. }) => failure.code.is_retriable(),
            Self::Connect(ConnectError::NotCorelog { .. }) | Self::BadAnswer { .. } => false,
            Self::Connect(_) | Self::Disconnected { .. } | Self::TimedOut { .. } => true,
            Self::Refused(failure) => failure.code.is_retriable(),
        }
    }

    /// Whether nobody could be reached at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connect(_))
    }

    /// The server's code, if it was the server that refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Refused(failure) | Self::Connect(ConnectError::Refused { failure, .. }) => {
                Some(failure.code)
            }
            _ => None,
        }
    }
}

/// Whether this code says that the partition is elsewhere now: look it up again before the next try.
pub(crate) fn is_stale_metadata(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::NotLeader
            | ErrorCode::FencedLeaderEpoch
            | ErrorCode::UnknownTopicOrPartition
            | ErrorCode::UnknownTopicId
            | ErrorCode::PartitionOffline
            | ErrorCode::ShuttingDown
            | ErrorCode::Unacked
    )
}

/// Why a record was not taken. It was not sent: the caller may try again or drop it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SendError {
    /// The record alone is larger than the producer's memory, or than a record batch can be.
    #[error("a record of {bytes} bytes is larger than the limit of {bytes_max}")]
    RecordTooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The topic has no partition of that number.
    #[error("topic {topic} has no partition {partition} (partitions: {partitions})")]
    NoSuchPartition {
        /// The topic.
        topic: Arc<str>,
        /// What was asked for.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
    /// The topic cannot be looked up.
    #[error("cannot look up topic {topic}: {source}")]
    Metadata {
        /// The topic.
        topic: Arc<str>,
        /// Why.
        source: RequestError,
    },
    /// The producer is closed.
    #[error("the producer is closed")]
    Closed,
}

/// Why a record that was taken is not known to be in the log.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeliveryError {
    /// The server refused the batch for good; it is not in the log.
    #[error(transparent)]
    Refused(Failure),
    /// `delivery_timeout_ms` or the retries are used up. With an earlier attempt that got no answer
    /// (`maybe_appended`), the records may be in the log nevertheless.
    #[error("not acked after {attempts} attempts; the last said: {last}")]
    GaveUp {
        /// Attempts made, perhaps 0.
        attempts: u32,
        /// Whether an attempt reached the server and its answer was lost.
        maybe_appended: bool,
        /// What the last attempt failed with.
        last: Arc<str>,
    },
    /// The producer was closed or dropped before the batch was sent.
    #[error("the producer was closed before the record was sent")]
    Closed,
}

/// Why a consumer cannot go on with a partition. The others are not affected: `poll` may be called again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConsumeError {
    /// The position is outside the log (retention has passed it, or it was never written) and the reset rule says
    /// to fail: seek.
    #[error("offset {offset} of {topic}/{partition} is outside the log: {message}")]
    OffsetOutOfRange {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// The position.
        offset: Offset,
        /// What the server said; it names the range.
        message: Arc<str>,
    },
    /// Records that were read are gone: an operator has let a replica lead that lacked them (an unclean election). Reading
    /// goes on at `reset_to` by itself; what was made of the records from there on has to be undone.
    #[error(
        "records of {topic}/{partition} were truncated by an unclean election: the position {position} was reset to \
         {reset_to}, and what was read from there on is gone"
    )]
    Truncated {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// Where the consumer was.
        position: Offset,
        /// Where it goes on.
        reset_to: Offset,
    },
    /// A batch arrived damaged twice, or cannot be unpacked: seek behind it to skip it.
    #[error("the batch at offset {offset} of {topic}/{partition} cannot be read: {reason}")]
    BadBatch {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// Its base offset, or the position if its header cannot be read.
        offset: Offset,
        /// The offset to seek to in order to skip it, if its header can be read.
        next_offset: Option<Offset>,
        /// What is wrong.
        reason: Arc<str>,
    },
    /// The server refused for good.
    #[error("{topic}/{partition} cannot be read: {failure}")]
    Refused {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
        /// What it said.
        failure: Failure,
    },
    /// The topic has no partition of that number.
    #[error("topic {topic} has no partition {partition} (partitions: {partitions})")]
    NoSuchPartition {
        /// The topic.
        topic: Arc<str>,
        /// What was asked for.
        partition: u32,
        /// How many there are.
        partitions: u32,
    },
    /// The partition is not assigned to this consumer.
    #[error("{topic}/{partition} is not assigned to this consumer")]
    NotAssigned {
        /// The topic.
        topic: Arc<str>,
        /// The partition.
        partition: u32,
    },
    /// No server could be asked, or it failed.
    #[error(transparent)]
    Request(#[from] RequestError),
}
