//! The messages of the replication streams (`replication.fbs`), as one enum.
//!
//! Owns: their meaning in Rust, their numbers in the frame, and how many entries one may carry.
//! Invariant: what a peer sends is bounded twice: by the limits of the frame, and by [`STREAM_ENTRIES_MAX`].
//! Not here: who sends what when (`corelog_replication::stream`).

use crate::codec::{DecodeError, Encoder};
use crate::error::{ErrorCode, Failure};
use crate::frame::FrameLimits;

mod bytes;

/// The stream protocol that this code speaks best.
pub const STREAM_VERSION: u16 = 1;

/// The oldest stream protocol that this code still speaks.
pub const STREAM_VERSION_MIN: u16 = 1;

/// Most entries of one message: a head of at most some 100 KiB.
pub const STREAM_ENTRIES_MAX: usize = 1024;

/// What a shard reads from another one: a bundle of batches of about 1 MiB, or one batch as large as a log takes.
pub const STREAM_FRAME_LIMITS: FrameLimits =
    FrameLimits { frame_bytes_max: 24 << 20, head_bytes_max: 512 << 10 };

/// First message of the follower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamHello {
    /// Oldest version that it speaks.
    pub version_min: u16,
    /// Newest version that it speaks.
    pub version_max: u16,
    /// Its cluster.
    pub cluster_id: String,
    /// Its node.
    pub node: u32,
    /// Its shard.
    pub shard: u16,
    /// Which start of its node this is.
    pub incarnation: u64,
    /// The node that it wants to reach.
    pub to_node: u32,
    /// The shard that it wants to reach.
    pub to_shard: u16,
    /// Bytes of batches that the leader may send before the follower gives some back.
    pub credit_bytes: u64,
}

/// First message of the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamHelloAnswer {
    /// What both speak from now on; an error closes the connection.
    pub version: Result<u16, Failure>,
    /// Which start of the leader's node this is.
    pub incarnation: u64,
}

/// A partition that the follower wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamFollow {
    /// Names it from now on.
    pub stream: u32,
    /// Its topic.
    pub topic_id: u128,
    /// Its number in the topic.
    pub partition: u32,
    /// The leadership that the follower knows.
    pub leader_epoch: u32,
    /// The follower's log.
    pub log_id: u128,
    /// The newest leadership that has a batch there.
    pub newest_epoch: Option<u32>,
    /// Its start.
    pub log_start_offset: u64,
    /// Its end.
    pub log_end_offset: u64,
}

/// What answers a [`StreamFollow`], or ends its stream later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamAnswer {
    /// Which stream.
    pub stream: u32,
    /// The leadership that was asked for.
    pub leader_epoch: u32,
    /// The leader's high watermark.
    pub high_watermark: u64,
    /// The leader's log start.
    pub log_start_offset: u64,
    /// The leader's log end: who has all below it has all that was committed before.
    pub log_end_offset: u64,
    /// What to do.
    pub verdict: StreamVerdict,
}

/// What a follower has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamVerdict {
    /// Append what comes, from there on.
    Start {
        /// The follower's log end.
        from_offset: u64,
    },
    /// Cut the log and ask again.
    EpochEnd {
        /// The newest leadership in the leader's log that is not above the follower's newest.
        epoch: u32,
        /// Where it ended in the leader's log.
        end_offset: u64,
    },
    /// Begin a new log; batches come from there on.
    Reset {
        /// The leader's log start.
        from_offset: u64,
    },
    /// The stream has ended.
    Refuse {
        /// Why.
        error: ErrorCode,
    },
}

/// Batches of one partition; their bytes are in the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamBatch {
    /// Which stream.
    pub stream: u32,
    /// In which leadership.
    pub leader_epoch: u32,
    /// Offset of the first record.
    pub base_offset: u64,
    /// The leader's high watermark.
    pub high_watermark: u64,
    /// The leader's log start.
    pub log_start_offset: u64,
    /// Length in the payload.
    pub records_bytes: u32,
}

/// Where a partition's marks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamMark {
    /// Which stream.
    pub stream: u32,
    /// In which leadership.
    pub leader_epoch: u32,
    /// The leader's high watermark.
    pub high_watermark: u64,
    /// The leader's log start.
    pub log_start_offset: u64,
}

/// How far a follower is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamReport {
    /// Which stream.
    pub stream: u32,
    /// In which leadership.
    pub leader_epoch: u32,
    /// End of what its device has taken.
    pub written: u64,
    /// End of what a sync has covered.
    pub durable: u64,
}

/// A range of a log that somebody needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamReadRange {
    /// Returned in the answer.
    pub request: u32,
    /// Its topic.
    pub topic_id: u128,
    /// Its number in the topic.
    pub partition: u32,
    /// First offset; the batch that holds it comes whole.
    pub from_offset: u64,
    /// Exclusive end.
    pub end_offset: u64,
    /// Later batches keep within this.
    pub bytes_max: u32,
}

/// What was asked for by a [`StreamReadRange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamRange {
    /// Of the request.
    pub request: u32,
    /// Where to ask on, and the length of the batches in the payload.
    pub outcome: Result<(u64, u32), ErrorCode>,
}

/// One message of a replication stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamMessage {
    /// Follower, first.
    Hello(StreamHello),
    /// Leader, first.
    HelloAnswer(StreamHelloAnswer),
    /// Follower: wants these partitions.
    Follow(Vec<StreamFollow>),
    /// Leader: what to do about them.
    Answer(Vec<StreamAnswer>),
    /// Leader: batches, with a payload.
    Batches(Vec<StreamBatch>),
    /// Leader: marks that moved without batches; without any a sign of life.
    Marks(Vec<StreamMark>),
    /// Follower: ends that moved, and credit; without either a sign of life.
    Reports {
        /// Ends.
        reports: Vec<StreamReport>,
        /// Bytes of batches that the leader may send more.
        credit_bytes: u64,
    },
    /// Follower: wants nothing more of these streams.
    Unfollow(Vec<u32>),
    /// Follower: its node stops.
    Leave,
    /// Either: wants a range.
    ReadRange(StreamReadRange),
    /// Either: a range, with a payload.
    Range(StreamRange),
}

impl StreamMessage {
    /// Its number in the frame. Numbers are never reused.
    pub fn kind(&self) -> u16 {
        match self {
            Self::Hello(_) => 1,
            Self::HelloAnswer(_) => 2,
            Self::Follow(_) => 3,
            Self::Answer(_) => 4,
            Self::Batches(_) => 5,
            Self::Marks(_) => 6,
            Self::Reports { .. } => 7,
            Self::Unfollow(_) => 8,
            Self::Leave => 9,
            Self::ReadRange(_) => 10,
            Self::Range(_) => 11,
        }
    }

    /// Bytes that follow the head.
    pub fn payload_bytes(&self) -> u64 {
        match self {
            Self::Batches(batches) => batches.iter().map(|b| u64::from(b.records_bytes)).sum(),
            Self::Range(range) => range.outcome.map_or(0, |(_, bytes)| u64::from(bytes)),
            _ => 0,
        }
    }

    /// Appends prefix and head to `out`; the caller sends the payload after it.
    ///
    /// Cost: one copy of the head; no allocation once `out` and the encoder are warm.
    ///
    /// # Panics
    /// If the frame would pass 4 GiB.
    pub fn encode(&self, encoder: &mut Encoder, out: &mut Vec<u8>) {
        encoder.frame(out, self.kind(), 0, self.payload_bytes(), |builder| bytes::build(self, builder));
    }

    /// Reads a message from the parts of a frame: `kind` is the frame's api number.
    ///
    /// Errors: all of them mean that the connection cannot go on.
    pub fn decode(kind: u16, head: &[u8], payload_bytes: u64) -> Result<Self, DecodeError> {
        let message = bytes::read(kind, head)?;
        let announced = message.payload_bytes();
        if announced != payload_bytes {
            return Err(DecodeError::PayloadLength { announced, present: payload_bytes });
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests;
