//! The end of a run: everything heals, every partition takes one more record, all is read, from the leaders, through a
//! consumer and from the files of each replica; then the checker speaks.

use std::path::PathBuf;
use std::time::Duration;

use corelog_client::{Client, ErrorCode, ProducerConfig, ProducerRecord, StartAt};
use corelog_schemas::messages::{
    FetchPartition, FetchRequest, ListOffsetsPartition, ListOffsetsRequest, OffsetSpec, PartitionRef,
    ShardAddress,
};
use corelog_sim::checker::{Event, FinalPartition, Produce, ProduceOutcome, Promise, RecordTag, Stored};

use super::cluster::address;
use super::direct::Direct;
use super::recorder::Recorder;
use super::records;
use super::workload::{self, Reader, SHORT, TOPICS};

const LAST_PRODUCER: u32 = 999;
const LAST_CONSUMER: u32 = 999;
const PATIENCE: Duration = Duration::from_secs(10);
const ATTEMPTS_MAX: u32 = 50;

/// One more record for each partition.
///
/// Errors: a healthy cluster that does not take it.
pub(crate) async fn produce_last(recorder: &Recorder) -> Result<(), String> {
    let client = workload::connect("last").await;
    let config = ProducerConfig { delivery_timeout_ms: 20_000, ..ProducerConfig::default() };
    let producer = client.producer(config).expect("a sound configuration");
    for (sequence, (topic, partition, key)) in workload::partitions(recorder).iter().enumerate() {
        let asked_us = recorder.now_us();
        let tag = RecordTag { producer: LAST_PRODUCER, sequence: sequence as u64 };
        let value = tag.value(64);
        let record =
            ProducerRecord { value: Some(&value), partition: Some(*partition), ..ProducerRecord::default() };
        let delivery = producer.send(topic, record).await.map_err(|error| error.to_string())?;
        let metadata = delivery
            .wait()
            .await
            .map_err(|error| format!("{topic}/{partition} takes no record in a healthy cluster: {error}"))?;
        let base_offset = metadata.offset.expect("acks = all tells it").0;
        recorder.note(Event::Produce(Produce {
            partition: key.clone(),
            producer: LAST_PRODUCER,
            connection: u64::from(LAST_PRODUCER) << 32 | sequence as u64,
            sequence: tag.sequence,
            records: 1,
            promise: Promise::Committed,
            asked_us,
            answered_us: recorder.now_us(),
            outcome: ProduceOutcome::Acked { base_offset },
            leader_epoch: None,
        }));
    }
    producer.close().await;
    Ok(())
}

/// Reads every partition from its leader, and once more through a consumer. The replicas are added later.
///
/// Errors: a partition that cannot be read, or whose reader fails.
pub(crate) async fn read_all(recorder: &Recorder) -> Result<Vec<FinalPartition>, String> {
    let client = workload::connect("final").await;
    let mut finals = Vec::new();
    for (topic, partition, key) in workload::partitions(recorder).iter() {
        let (log_start, high_watermark, records) = read_partition(&client, topic, *partition).await?;
        finals.push(FinalPartition {
            partition: key.clone(),
            log_start,
            log_start_max: (*topic != SHORT).then_some(0),
            high_watermark,
            records,
            replicas: Vec::new(),
        });
    }
    let wanted: usize = finals.iter().map(|partition| partition.records.len()).sum();
    let mut reader = Reader::new(recorder.clone(), &client, LAST_CONSUMER);
    for &(topic, ..) in TOPICS {
        reader.consumer.assign_all(topic, StartAt::Earliest).await.map_err(|error| error.to_string())?;
    }
    let (mut read, mut idle) = (0, 0);
    while read < wanted && idle < 10 {
        let came = reader.turn(1_000).await;
        read += came;
        idle = if came == 0 { idle + 1 } else { 0 };
    }
    match reader.failures.first() {
        Some(failure) => Err(format!("a consumer fails in a healthy cluster: {failure}")),
        None if read < wanted => Err(format!("a consumer gets {read} of {wanted} records")),
        None => Ok(finals),
    }
}

async fn read_partition(
    client: &Client,
    topic: &str,
    partition: u32,
) -> Result<(u64, u64, Vec<Stored>), String> {
    let (mut from, mut records): (u64, Vec<Stored>) = (0, Vec::new());
    let mut last = "no leader".to_owned();
    for _ in 0..ATTEMPTS_MAX {
        let mut direct = match leader(client, topic, partition).await {
            Ok(direct) => direct,
            Err(why) => {
                last = why;
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        loop {
            match fetch(&mut direct, topic, partition, from).await? {
                Fetched::Records(more, high_watermark) => {
                    let is_end = more.is_empty();
                    records.extend(more);
                    from = records::end(&records).map_or(from, |end| end.0);
                    if is_end || from >= high_watermark {
                        let log_start = records.first().map_or(from, |stored| stored.offset);
                        return Ok((log_start, high_watermark, records));
                    }
                }
                Fetched::Below(log_start) => {
                    from = log_start;
                    records.clear();
                }
                Fetched::Failed(why) => {
                    last = why;
                    break;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(format!("{topic}/{partition} cannot be read in a healthy cluster: {last}"))
}

/// A connection to the shard that leads a partition.
async fn leader(client: &Client, topic: &str, partition: u32) -> Result<Direct, String> {
    let metadata = client.admin().metadata().await.map_err(|error| error.to_string())?;
    let found = metadata.topics.iter().find(|found| found.name == topic);
    let found = found.and_then(|found| found.partitions.get(partition as usize)).ok_or("no partition")?;
    let is_leader =
        |shard: &&ShardAddress| (shard.node, shard.shard) == (found.leader_node, found.leader_shard);
    let shard = metadata.shards.iter().find(is_leader).ok_or("its leader does not run")?;
    Direct::connect(address(shard.node, shard.shard)).await.map_err(|error| error.to_string())
}

enum Fetched {
    Records(Vec<Stored>, u64),
    /// The log starts above.
    Below(u64),
    Failed(String),
}

async fn fetch(direct: &mut Direct, topic: &str, partition: u32, from: u64) -> Result<Fetched, String> {
    let wanted = FetchPartition {
        from: PartitionRef::by_name(topic, partition),
        fetch_offset: from,
        max_bytes: 1 << 20,
        leader_epoch: None,
        last_epoch: None,
    };
    let request = FetchRequest { min_bytes: 0, max_wait_ms: 0, max_bytes: 2 << 20, partitions: vec![wanted] };
    let (response, payload) = match direct.ask(&request, &[], PATIENCE).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(failure)) => return Ok(Fetched::Failed(failure.to_string())),
        Err(error) => return Ok(Fetched::Failed(error.to_string())),
    };
    let result = response.partitions.first().ok_or("no result")?;
    match &result.failure {
        Some(failure) if failure.code == ErrorCode::OffsetOutOfRange => {
            let start = earliest(direct, topic, partition).await.filter(|start| *start > from);
            Ok(start.map_or_else(|| Fetched::Failed(failure.to_string()), Fetched::Below))
        }
        Some(failure) => Ok(Fetched::Failed(failure.to_string())),
        None => {
            let records = records::fetched(&payload, from)?;
            Ok(Fetched::Records(records, result.high_watermark.unwrap_or(0)))
        }
    }
}

/// Where a partition begins.
async fn earliest(direct: &mut Direct, topic: &str, partition: u32) -> Option<u64> {
    let of = PartitionRef::by_name(topic, partition);
    let lookup = ListOffsetsPartition { of, spec: OffsetSpec::Earliest, leader_epoch: None };
    let request = ListOffsetsRequest { partitions: vec![lookup] };
    let (response, _) = direct.ask(&request, &[], PATIENCE).await.ok()?.ok()?;
    response.partitions.first()?.as_ref().ok()?.offset
}

/// Adds what the files of each node, which has stopped, hold.
///
/// Errors: a replica that is not there.
pub(crate) fn read_replicas(finals: &mut [FinalPartition], data: &[PathBuf]) -> Result<(), String> {
    for partition in finals {
        for (node, data) in (1..).zip(data) {
            let topic = partition.partition.topic.to_string();
            let replica = records::replica(data, node, &topic, partition.partition.partition)?;
            partition.replicas.push(replica);
        }
    }
    Ok(())
}
