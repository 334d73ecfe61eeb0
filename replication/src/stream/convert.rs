//! From the numbers on the wire to the types of this crate and back.

use corelog_engine::log::ReadError;
use corelog_engine::{LeaderEpoch, LogId, Offset, PartitionId, TopicId, TopicPartition};
use corelog_schemas::ErrorCode;
use corelog_schemas::messages::{StreamAnswer, StreamFollow, StreamVerdict};

use crate::errors::{FollowError, LeaderError};
use crate::follower::{EpochEnd, FollowAnswer, FollowRequest, FollowVerdict};
use crate::replica::{NodeId, ReplicaId};

/// The partition that a message names.
pub(super) fn partition_of(topic_id: u128, partition: u32) -> TopicPartition {
    TopicPartition { topic: TopicId(topic_id), partition: PartitionId(partition) }
}

/// What a follower on `node` asks.
pub(super) fn request_of(node: NodeId, follow: &StreamFollow) -> FollowRequest {
    FollowRequest {
        replica: ReplicaId { node, log: LogId(follow.log_id) },
        epoch: LeaderEpoch(follow.leader_epoch),
        newest_epoch: follow.newest_epoch.map(LeaderEpoch),
        log_start: Offset(follow.log_start_offset),
        log_end: Offset(follow.log_end_offset),
    }
}

/// A request as a message.
pub(super) fn follow_message(stream: u32, id: TopicPartition, asked: &FollowRequest) -> StreamFollow {
    StreamFollow {
        stream,
        topic_id: id.topic.0,
        partition: id.partition.0,
        leader_epoch: asked.epoch.0,
        log_id: asked.replica.log.0,
        newest_epoch: asked.newest_epoch.map(|epoch| epoch.0),
        log_start_offset: asked.log_start.0,
        log_end_offset: asked.log_end.0,
    }
}

/// A leader's answer as a message.
pub(super) fn answer_message(stream: u32, epoch: LeaderEpoch, answer: &FollowAnswer) -> StreamAnswer {
    let verdict = match answer.verdict {
        FollowVerdict::Start { from } => StreamVerdict::Start { from_offset: from.0 },
        FollowVerdict::EpochEnd(EpochEnd { epoch, end }) => {
            StreamVerdict::EpochEnd { epoch: epoch.0, end_offset: end.0 }
        }
        FollowVerdict::Reset { to } => StreamVerdict::Reset { from_offset: to.0 },
    };
    StreamAnswer {
        stream,
        leader_epoch: epoch.0,
        high_watermark: answer.high_watermark.0,
        log_start_offset: answer.log_start.0,
        log_end_offset: answer.log_end.0,
        verdict,
    }
}

/// A refusal as a message.
pub(super) fn refusal(stream: u32, epoch: LeaderEpoch, error: ErrorCode) -> StreamAnswer {
    StreamAnswer {
        stream,
        leader_epoch: epoch.0,
        high_watermark: 0,
        log_start_offset: 0,
        log_end_offset: 0,
        verdict: StreamVerdict::Refuse { error },
    }
}

/// What a leader has answered, or why it has refused.
pub(super) fn answer_of(message: &StreamAnswer) -> Result<FollowAnswer, ErrorCode> {
    let verdict = match message.verdict {
        StreamVerdict::Start { from_offset } => FollowVerdict::Start { from: Offset(from_offset) },
        StreamVerdict::EpochEnd { epoch, end_offset } => {
            FollowVerdict::EpochEnd(EpochEnd { epoch: LeaderEpoch(epoch), end: Offset(end_offset) })
        }
        StreamVerdict::Reset { from_offset } => FollowVerdict::Reset { to: Offset(from_offset) },
        StreamVerdict::Refuse { error } => return Err(error),
    };
    Ok(FollowAnswer {
        verdict,
        high_watermark: Offset(message.high_watermark),
        log_start: Offset(message.log_start_offset),
        log_end: Offset(message.log_end_offset),
    })
}

/// What to tell a follower that may not follow; `None`: nothing yet, this replica may come to lead in that epoch.
pub(super) fn follow_refusal(asked: LeaderEpoch, error: &FollowError) -> Option<ErrorCode> {
    match error {
        FollowError::Leader(LeaderError::Fenced { .. }) => Some(ErrorCode::FencedLeaderEpoch),
        FollowError::Leader(LeaderError::NotLeader { epoch }) => {
            (*epoch > asked).then_some(ErrorCode::FencedLeaderEpoch)
        }
        FollowError::Leader(LeaderError::Unknown { .. } | LeaderError::Isolated) => None,
        FollowError::NotReplica { .. } => None,
        FollowError::OldConnection { .. } => Some(ErrorCode::NotLeader),
    }
}

/// What to tell a follower whose batches could not be read.
pub(super) fn read_refusal(error: &ReadError) -> ErrorCode {
    match error {
        ReadError::OffsetOutOfRange { .. } => ErrorCode::OffsetOutOfRange,
        ReadError::Corrupt { .. } => ErrorCode::CorruptData,
        ReadError::Closed => ErrorCode::UnknownTopicOrPartition,
        ReadError::Disk { .. } => ErrorCode::StorageFailed,
    }
}
