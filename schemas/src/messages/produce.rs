//! Produce.

use super::{
    Builder, DecodeError, Failure, Message, PartitionRef, failure_fields, failure_of, read_tables, root,
    tables, topic_fields, topic_of, wire,
};
use crate::api::Api;
use crate::codec::Request;

/// When a produce is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Acks {
    /// Not at all: there is no response.
    None,
    /// When the leader has the records, as safe as the topic's flush policy says.
    Leader,
    /// When all in-sync replicas have them, as safe as the topic's flush policy says.
    All,
}

impl Acks {
    /// The number on the wire.
    pub const fn number(self) -> i8 {
        match self {
            Self::None => 0,
            Self::Leader => 1,
            Self::All => -1,
        }
    }

    /// The meaning of a number on the wire.
    pub const fn from_number(number: i8) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::Leader),
            -1 => Some(Self::All),
            _ => None,
        }
    }
}

/// Batches of one partition; their bytes are in the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducePartition {
    /// Where they go.
    pub to: PartitionRef,
    /// Length of its batches in the payload.
    pub records_bytes: u32,
    /// Refuse unless the leader has this epoch; `None`: no check.
    pub leader_epoch: Option<u32>,
}

/// Appends record batches. Payload: the batches of all partitions, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProduceRequest {
    /// When to answer.
    pub acks: Acks,
    /// How long to wait for replicas.
    pub timeout_ms: u32,
    /// Where to.
    pub partitions: Vec<ProducePartition>,
}

/// Where the batches of a partition went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Produced {
    /// Offset of the first record; the others follow without gap.
    pub base_offset: u64,
    /// What was stamped as LogAppendTime; `None` if the topic keeps the producer's timestamps.
    pub append_time_ms: Option<i64>,
    /// First offset that can be read.
    pub log_start_offset: u64,
}

/// One result for each partition of the request, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProduceResponse {
    /// The client should wait so long before its next produce.
    pub throttle_ms: u32,
    /// Results.
    pub partitions: Vec<Result<Produced, Failure>>,
}

impl Request for ProduceRequest {
    const API: Api = Api::Produce;
    type Response = ProduceResponse;
}

impl Message for ProduceRequest {
    fn build(&self, b: &mut Builder) {
        let partitions = tables(b, &self.partitions, |b, p| {
            let (topic_id, topic_name) = topic_fields(b, &p.to.topic);
            let args = wire::ProducePartitionArgs {
                topic_id: topic_id.as_ref(),
                topic_name,
                partition: p.to.partition,
                records_bytes: p.records_bytes,
                leader_epoch: p.leader_epoch,
            };
            wire::ProducePartition::create(b, &args)
        });
        let args = wire::ProduceRequestArgs {
            acks: self.acks.number(),
            timeout_ms: self.timeout_ms,
            partitions: Some(partitions),
        };
        let root = wire::ProduceRequest::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::ProduceRequest<'_>>(head)?;
        let acks = Acks::from_number(t.acks())
            .ok_or(DecodeError::OutOfRange { field: "acks", value: i64::from(t.acks()) })?;
        let partitions = read_tables(t.partitions(), |p| {
            Ok(ProducePartition {
                to: PartitionRef { topic: topic_of(p.topic_id(), p.topic_name())?, partition: p.partition() },
                records_bytes: p.records_bytes(),
                leader_epoch: p.leader_epoch(),
            })
        })?;
        Ok(Self { acks, timeout_ms: t.timeout_ms(), partitions })
    }

    fn payload_bytes(&self) -> u64 {
        self.partitions.iter().map(|p| u64::from(p.records_bytes)).sum()
    }
}

impl Message for ProduceResponse {
    fn build(&self, b: &mut Builder) {
        let partitions = tables(b, &self.partitions, |b, outcome| {
            let (error, message) = failure_fields(b, outcome);
            let produced = outcome.as_ref().ok();
            let args = wire::ProducePartitionResultArgs {
                error,
                message,
                base_offset: produced.map(|p| p.base_offset),
                append_time_ms: produced.and_then(|p| p.append_time_ms),
                log_start_offset: produced.map(|p| p.log_start_offset),
            };
            wire::ProducePartitionResult::create(b, &args)
        });
        let args = wire::ProduceResponseArgs { throttle_ms: self.throttle_ms, partitions: Some(partitions) };
        let root = wire::ProduceResponse::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::ProduceResponse<'_>>(head)?;
        let partitions = read_tables(t.partitions(), |p| {
            if let Some(failure) = failure_of(p.error(), p.message()) {
                return Ok(Err(failure));
            }
            let base_offset = p.base_offset().ok_or(DecodeError::Missing("where the records went"))?;
            let log_start_offset = p.log_start_offset().unwrap_or(0);
            Ok(Ok(Produced { base_offset, append_time_ms: p.append_time_ms(), log_start_offset }))
        })?;
        Ok(Self { throttle_ms: t.throttle_ms(), partitions })
    }
}
