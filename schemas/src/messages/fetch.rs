//! Fetch.

use super::{
    Builder, DecodeError, Failure, Message, PartitionRef, failure_of, read_tables, root, tables, text,
    topic_fields, topic_of, wire,
};
use crate::api::Api;
use crate::codec::Request;

/// What to read of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchPartition {
    /// Where from.
    pub from: PartitionRef,
    /// The first offset wanted; its batch comes whole.
    pub fetch_offset: u64,
    /// Most bytes from this partition (the first batch of the response comes whole nevertheless).
    pub max_bytes: u32,
    /// The epoch the client believes in; `None`: no check.
    pub leader_epoch: Option<u32>,
    /// Leader epoch of the last batch that the client has read before `fetch_offset`; `None`: no check.
    pub last_epoch: Option<u32>,
}

/// What a client has read from `end_offset` on is not in the leader's log: records were given up in an unclean election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The newest epoch, not above the client's, that the leader's log has,
    pub epoch: u32,
    /// and where it ends.
    pub end_offset: u64,
}

/// Reads record batches, waiting for them if need be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// Answer when so many bytes are there,
    pub min_bytes: u32,
    /// or when this time has passed.
    pub max_wait_ms: u32,
    /// Most bytes in all.
    pub max_bytes: u32,
    /// What to read, most wanted first.
    pub partitions: Vec<FetchPartition>,
}

/// What was read of one partition; its bytes are in the payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchPartitionResult {
    /// Why there is nothing, if it failed.
    pub failure: Option<Failure>,
    /// Length of its batches in the payload.
    pub records_bytes: u32,
    /// End of what may be read; unknown on most failures.
    pub high_watermark: Option<u64>,
    /// First offset that can be read; unknown on most failures.
    pub log_start_offset: Option<u64>,
    /// Epoch of the leader that answered.
    pub leader_epoch: Option<u32>,
    /// Set, without records and without failure, if the client's position is not in the leader's log any more.
    pub diverged: Option<Divergence>,
}

/// One result for each partition of the request, in its order. Payload: their batches, in the same order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchResponse {
    /// The client should wait so long before its next fetch.
    pub throttle_ms: u32,
    /// Results.
    pub partitions: Vec<FetchPartitionResult>,
}

impl Request for FetchRequest {
    const API: Api = Api::Fetch;
    type Response = FetchResponse;
}

impl Message for FetchRequest {
    fn build(&self, b: &mut Builder) {
        let partitions = tables(b, &self.partitions, |b, p| {
            let (topic_id, topic_name) = topic_fields(b, &p.from.topic);
            let args = wire::FetchPartitionArgs {
                topic_id: topic_id.as_ref(),
                topic_name,
                partition: p.from.partition,
                fetch_offset: p.fetch_offset,
                max_bytes: p.max_bytes,
                leader_epoch: p.leader_epoch,
                last_epoch: p.last_epoch,
            };
            wire::FetchPartition::create(b, &args)
        });
        let args = wire::FetchRequestArgs {
            min_bytes: self.min_bytes,
            max_wait_ms: self.max_wait_ms,
            max_bytes: self.max_bytes,
            partitions: Some(partitions),
        };
        let root = wire::FetchRequest::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::FetchRequest<'_>>(head)?;
        let partitions = read_tables(t.partitions(), |p| {
            Ok(FetchPartition {
                from: PartitionRef {
                    topic: topic_of(p.topic_id(), p.topic_name())?,
                    partition: p.partition(),
                },
                fetch_offset: p.fetch_offset(),
                max_bytes: p.max_bytes(),
                leader_epoch: p.leader_epoch(),
                last_epoch: p.last_epoch(),
            })
        })?;
        Ok(Self {
            min_bytes: t.min_bytes(),
            max_wait_ms: t.max_wait_ms(),
            max_bytes: t.max_bytes(),
            partitions,
        })
    }
}

impl Message for FetchResponse {
    fn build(&self, b: &mut Builder) {
        let partitions = tables(b, &self.partitions, |b, p| {
            let message = p.failure.as_ref().and_then(|f| text(b, &f.message));
            let diverged = p.diverged.map(|d| {
                let args = wire::DivergenceArgs { epoch: d.epoch, end_offset: d.end_offset };
                wire::Divergence::create(b, &args)
            });
            let args = wire::FetchPartitionResultArgs {
                error: p.failure.as_ref().map_or(wire::ErrorCode::None, |f| wire::ErrorCode(f.code.number())),
                message,
                records_bytes: p.records_bytes,
                high_watermark: p.high_watermark,
                log_start_offset: p.log_start_offset,
                leader_epoch: p.leader_epoch,
                diverged,
            };
            wire::FetchPartitionResult::create(b, &args)
        });
        let args = wire::FetchResponseArgs { throttle_ms: self.throttle_ms, partitions: Some(partitions) };
        let root = wire::FetchResponse::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::FetchResponse<'_>>(head)?;
        let partitions = read_tables(t.partitions(), |p| {
            Ok(FetchPartitionResult {
                failure: failure_of(p.error(), p.message()),
                records_bytes: p.records_bytes(),
                high_watermark: p.high_watermark(),
                log_start_offset: p.log_start_offset(),
                leader_epoch: p.leader_epoch(),
                diverged: p.diverged().map(|d| Divergence { epoch: d.epoch(), end_offset: d.end_offset() }),
            })
        })?;
        Ok(Self { throttle_ms: t.throttle_ms(), partitions })
    }

    fn payload_bytes(&self) -> u64 {
        self.partitions.iter().map(|p| u64::from(p.records_bytes)).sum()
    }
}
