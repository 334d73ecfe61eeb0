//! ListOffsets and DeleteRecords.

use super::{
    Builder, DecodeError, Failure, Message, PartitionRef, failure_fields, failure_of, read_tables, root,
    tables, topic_fields, topic_of, wire,
};
use crate::api::Api;
use crate::codec::Request;

/// Which offset is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The high watermark: where the next record will be readable.
    Latest,
    /// The log start offset.
    Earliest,
    /// Of the first record with this timestamp (ms since the Unix epoch) or a later one.
    Timestamp(i64),
}

/// One lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListOffsetsPartition {
    /// Where.
    pub of: PartitionRef,
    /// Which offset.
    pub spec: OffsetSpec,
    /// The epoch the client believes in; `None`: no check.
    pub leader_epoch: Option<u32>,
}

/// Looks up offsets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListOffsetsRequest {
    /// The lookups.
    pub partitions: Vec<ListOffsetsPartition>,
}

/// What a lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundOffset {
    /// The offset; `None`: no record is that young.
    pub offset: Option<u64>,
    /// Timestamp of that record, if the lookup was by time.
    pub timestamp_ms: Option<i64>,
    /// Epoch of the leader that answered.
    pub leader_epoch: Option<u32>,
}

/// One result for each partition of the request, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListOffsetsResponse {
    /// Results.
    pub partitions: Vec<Result<FoundOffset, Failure>>,
}

/// How far to delete one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteRecordsPartition {
    /// Where.
    pub of: PartitionRef,
    /// The log start offset wanted; `None`: the high watermark.
    pub before_offset: Option<u64>,
}

/// Moves log start offsets up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteRecordsRequest {
    /// How long to wait.
    pub timeout_ms: u32,
    /// Where.
    pub partitions: Vec<DeleteRecordsPartition>,
}

/// One result for each partition of the request, in its order: its log start offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteRecordsResponse {
    /// Results.
    pub partitions: Vec<Result<u64, Failure>>,
}

impl Request for ListOffsetsRequest {
    const API: Api = Api::ListOffsets;
    type Response = ListOffsetsResponse;
}

impl Request for DeleteRecordsRequest {
    const API: Api = Api::DeleteRecords;
    type Response = DeleteRecordsResponse;
}

impl Message for ListOffsetsRequest {
    fn build(&self, b: &mut Builder) {
        let partitions = tables(b, &self.partitions, |b, p| {
            let (topic_id, topic_name) = topic_fields(b, &p.of.topic);
            let (spec, timestamp_ms) = match p.spec {
                OffsetSpec::Latest => (wire::OffsetSpec::Latest, 0),
                OffsetSpec::Earliest => (wire::OffsetSpec::Earliest, 0),
                OffsetSpec::Timestamp(at) => (wire::OffsetSpec::Timestamp, at),
            };
            let args = wire::ListOffsetsPartitionArgs {
                topic_id: topic_id.as_ref(),
                topic_name,
                partition: p.of.partition,
                spec,
                timestamp_ms,
                leader_epoch: p.leader_epoch,
            };
            wire::ListOffsetsPartition::create(b, &args)
        });
        let root = wire::ListOffsetsRequest::create(
            b,
            &wire::ListOffsetsRequestArgs { partitions: Some(partitions) },
        );
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::ListOffsetsRequest<'_>>(head)?;
        let partitions = read_tables(t.partitions(), |p| {
            let spec = match p.spec() {
                wire::OffsetSpec::Latest => OffsetSpec::Latest,
                wire::OffsetSpec::Earliest => OffsetSpec::Earliest,
                wire::OffsetSpec::Timestamp => OffsetSpec::Timestamp(p.timestamp_ms()),
                wire::OffsetSpec(other) => {
                    return Err(DecodeError::OutOfRange { field: "spec", value: i64::from(other) });
                }
            };
            Ok(ListOffsetsPartition {
                of: PartitionRef { topic: topic_of(p.topic_id(), p.topic_name())?, partition: p.partition() },
                spec,
                leader_epoch: p.leader_epoch(),
            })
        })?;
        Ok(Self { partitions })
    }
}

impl Message for ListOffsetsResponse {
    fn build(&self, b: &mut Builder) {
        let partitions = tables(b, &self.partitions, |b, outcome| {
            let (error, message) = failure_fields(b, outcome);
            let found = outcome.as_ref().ok();
            let args = wire::ListOffsetsPartitionResultArgs {
                error,
                message,
                offset: found.and_then(|f| f.offset),
                timestamp_ms: found.and_then(|f| f.timestamp_ms),
                leader_epoch: found.and_then(|f| f.leader_epoch),
            };
            wire::ListOffsetsPartitionResult::create(b, &args)
        });
        let root = wire::ListOffsetsResponse::create(
            b,
            &wire::ListOffsetsResponseArgs { partitions: Some(partitions) },
        );
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::ListOffsetsResponse<'_>>(head)?;
        let partitions = read_tables(t.partitions(), |p| {
            Ok(failure_of(p.error(), p.message()).map_or_else(
                || {
                    Ok(FoundOffset {
                        offset: p.offset(),
                        timestamp_ms: p.timestamp_ms(),
                        leader_epoch: p.leader_epoch(),
                    })
                },
                Err,
            ))
        })?;
        Ok(Self { partitions })
    }
}

impl Message for DeleteRecordsRequest {
    fn build(&self, b: &mut Builder) {
        let partitions = tables(b, &self.partitions, |b, p| {
            let (topic_id, topic_name) = topic_fields(b, &p.of.topic);
            let args = wire::DeleteRecordsPartitionArgs {
                topic_id: topic_id.as_ref(),
                topic_name,
                partition: p.of.partition,
                before_offset: p.before_offset,
            };
            wire::DeleteRecordsPartition::create(b, &args)
        });
        let args =
            wire::DeleteRecordsRequestArgs { timeout_ms: self.timeout_ms, partitions: Some(partitions) };
        let root = wire::DeleteRecordsRequest::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::DeleteRecordsRequest<'_>>(head)?;
        let partitions = read_tables(t.partitions(), |p| {
            Ok(DeleteRecordsPartition {
                of: PartitionRef { topic: topic_of(p.topic_id(), p.topic_name())?, partition: p.partition() },
                before_offset: p.before_offset(),
            })
        })?;
        Ok(Self { timeout_ms: t.timeout_ms(), partitions })
    }
}

impl Message for DeleteRecordsResponse {
    fn build(&self, b: &mut Builder) {
        let partitions = tables(b, &self.partitions, |b, outcome| {
            let (error, message) = failure_fields(b, outcome);
            let args = wire::DeleteRecordsPartitionResultArgs {
                error,
                message,
                log_start_offset: outcome.as_ref().ok().copied(),
            };
            wire::DeleteRecordsPartitionResult::create(b, &args)
        });
        let root = wire::DeleteRecordsResponse::create(
            b,
            &wire::DeleteRecordsResponseArgs { partitions: Some(partitions) },
        );
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::DeleteRecordsResponse<'_>>(head)?;
        let partitions = read_tables(t.partitions(), |p| {
            if let Some(failure) = failure_of(p.error(), p.message()) {
                return Ok(Err(failure));
            }
            Ok(Ok(p.log_start_offset().ok_or(DecodeError::Missing("the log start offset"))?))
        })?;
        Ok(Self { partitions })
    }
}
