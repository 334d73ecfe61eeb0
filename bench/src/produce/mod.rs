//! `corelog bench produce`: appends prebuilt batches as fast as they are taken, or at a set rate.
//!
//! Owns: the topic that it makes for a run and deletes after it, and the one batch that it sends again and again.

mod worker;

use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use corelog_engine::TimestampMs;
use corelog_engine::batch::{BatchBuilder, BatchFields, HEADER_BYTES, NewRecord};
use corelog_schemas::Encoder;
use corelog_schemas::messages::{Acks, PartitionRef, ProducePartition, ProduceRequest, TopicRef};

use crate::error::{BenchError, BenchResult};
use crate::kafka::{self, Kafka};
use crate::load::connection::{Connection, Protocol, Template};
use crate::load::{ConnectionPlan, LoadFigures, LoadOptions, drive, plan_connections};
use crate::target::Target;
use crate::wire::Wire;
use worker::{ProduceConnection, ProduceWorker};

/// What to produce.
#[derive(Clone, Debug)]
pub(crate) struct ProduceOptions {
    /// Bytes of a record's value.
    pub(crate) record_bytes: usize,
    /// Records of a batch.
    pub(crate) batch_records: u32,
    /// Connections in all.
    pub(crate) connections: usize,
    /// Unanswered requests of a connection.
    pub(crate) in_flight: usize,
    /// Records a second in all; `None` means as many as go.
    pub(crate) rate: Option<f64>,
    /// When the server answers.
    pub(crate) acks: Acks,
}

/// How long the server may wait for replicas.
const TIMEOUT_MS: u32 = 30_000;

/// Largest batch: the length field of a produce request has 32 bits, and the server's limit is lower.
const BATCH_BYTES_MAX: usize = 256 << 20;

/// Produces to a topic that is there.
pub(crate) fn produce(
    target: &Target,
    options: &ProduceOptions,
    load: &LoadOptions,
) -> BenchResult<(LoadFigures, f64)> {
    let batch: Arc<[u8]> = build_batch(options.record_bytes, options.batch_records)?.into();
    let plans = plan_connections(options.connections, &target.leaders);
    let connections =
        plans.iter().map(|plan| connect(plan, target, &batch, options)).collect::<BenchResult<Vec<_>>>()?;
    let threads = load.cores.len().min(connections.len()).max(1);
    let requests_per_second = options.rate.map(|rate| rate / f64::from(options.batch_records));
    let count = connections.len();
    let mut workers: Vec<ProduceWorker> = (0..threads).map(|_| ProduceWorker::new(options)).collect();
    for (i, connection) in connections.into_iter().enumerate() {
        workers[i % threads].add(connection, i, count, requests_per_second);
    }
    drive(workers, load)
}

fn connect(
    plan: &ConnectionPlan,
    target: &Target,
    batch: &Arc<[u8]>,
    options: &ProduceOptions,
) -> BenchResult<ProduceConnection> {
    let protocol = target.protocol;
    let (stream, heads) = match protocol {
        Protocol::Native => native_heads(plan, target.topic_id, batch.len(), options)?,
        Protocol::Kafka => {
            let head = |p: &u32| kafka::produce_head(&target.topic, *p, options.acks, batch.len());
            (Kafka::connect(&plan.address)?.into_stream(), plan.partitions.iter().map(head).collect())
        }
    };
    let templates = heads.into_iter().map(|head| Template { head, payload: batch.clone() }).collect();
    Ok(ProduceConnection::new(Connection::new(stream, &plan.address, protocol)?, templates))
}

/// A connection of our protocol, and the head of a produce to each partition.
fn native_heads(
    plan: &ConnectionPlan,
    topic_id: u128,
    batch_bytes: usize,
    options: &ProduceOptions,
) -> BenchResult<(TcpStream, Vec<Vec<u8>>)> {
    let wire = Wire::connect(&plan.address)?;
    let limit = wire.handshake.frame_bytes_max;
    let mut encoder = Encoder::default();
    let mut head_of = |partition: &u32| {
        let to = PartitionRef { topic: TopicRef::Id(topic_id), partition: *partition };
        let request = ProduceRequest {
            acks: options.acks,
            timeout_ms: TIMEOUT_MS,
            partitions: vec![ProducePartition { to, records_bytes: batch_bytes as u32, leader_epoch: None }],
        };
        let mut head = Vec::new();
        encoder.request(&mut head, 0, &request);
        head
    };
    let heads: Vec<Vec<u8>> = plan.partitions.iter().map(&mut head_of).collect();
    let frame_bytes = heads.first().map_or(0, Vec::len) + batch_bytes;
    if frame_bytes > limit as usize {
        return Err(BenchError::Usage(format!(
            "a batch makes a frame of {frame_bytes} bytes, and the server takes {limit}; send fewer or smaller records"
        )));
    }
    Ok((wire.into_stream(), heads))
}

/// A size that the batch of a run does not pass: values, and generous room for the framing of each record.
pub(crate) fn batch_bytes_max(record_bytes: u64, batch_records: u32) -> u64 {
    record_bytes
        .saturating_add(32)
        .saturating_mul(u64::from(batch_records))
        .saturating_add(HEADER_BYTES as u64)
}

/// One batch of records without keys, with values that no disk can compress.
pub(crate) fn build_batch(record_bytes: usize, batch_records: u32) -> BenchResult<Vec<u8>> {
    if batch_records == 0 || record_bytes.saturating_mul(batch_records as usize) > BATCH_BYTES_MAX {
        return Err(BenchError::Usage(format!(
            "a batch of {batch_records} records of {record_bytes} bytes is not within 1 record and {BATCH_BYTES_MAX} bytes"
        )));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let timestamp = TimestampMs(now.as_millis() as i64);
    let mut builder = BatchBuilder::new(2 * BATCH_BYTES_MAX);
    let mut value = vec![0; record_bytes];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for _ in 0..batch_records {
        for byte in &mut value {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
        builder
            .push(&NewRecord { timestamp, key: None, value: Some(&value), headers: &[] })
            .map_err(|e| BenchError::Usage(e.to_string()))?;
    }
    Ok(builder.finish(&BatchFields::default()).expect("a record was pushed"))
}

#[cfg(test)]
mod tests {
    use corelog_engine::batch::BatchHeader;

    use super::*;

    #[test]
    fn the_batch_has_as_many_records_and_bytes_as_asked() {
        let batch = build_batch(1000, 7).expect("a small batch");
        let header = BatchHeader::parse(&batch).expect("a batch starts with its header");
        assert_eq!(header.record_count, 7);
        assert_eq!(header.size_bytes as usize, batch.len());
        assert!(batch.len() as u64 <= batch_bytes_max(1000, 7));
        assert!(batch.len() > 7000 && batch.len() < 7000 + 200);
        assert!(build_batch(1000, 0).is_err());
        assert!(build_batch(1 << 20, 1 << 20).is_err());
    }
}
