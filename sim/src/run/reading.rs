//! The end of a run: one more produce to each partition, then everything is read, from leaders and from each replica.

use std::rc::Rc;
use std::time::Duration;

use corelog_engine::log::{ReadError, ReadLimits};
use corelog_engine::{Offset, TopicPartition};
use corelog_replication::{Ack, Partition};

use crate::checker::{
    Event, FinalPartition, FinalReplica, Produce, ProduceOutcome, Promise, RecordTag, Stored,
};
use crate::cluster::{Process, Refusal, Request, Response, SimCluster, batches, key};
use crate::disk::SimDisk;
use crate::workload::{Client, Operator, Workload};

/// Of the producer whose last record each partition must take.
const LAST_PRODUCER: u32 = 999;

/// How often an operation on a healthy cluster is tried.
const ATTEMPTS_MAX: u32 = 30;

/// Completes the history of a cluster that is well.
pub(super) async fn complete(
    cluster: &Rc<SimCluster>,
    workload: &Workload,
    operator: &Operator,
    problems: &mut Vec<String>,
) {
    let state = cluster.state();
    let client = operator.client();
    for (sequence, (id, _)) in
        state.partitions.iter().filter(|(id, _)| state.topics.contains_key(&id.topic)).enumerate()
    {
        if let Err(why) = produce_last(client, *id, sequence as u64).await {
            problems.push(format!("{id:?} takes no record in a healthy cluster: {why}"));
        }
        let topic = &state.topics[&id.topic].record;
        let has_retention = crate::cluster::log_options(topic).retention_bytes.is_some();
        match read_all(client, *id).await {
            Ok((log_start, high_watermark, records)) => {
                let replicas = replicas(cluster, *id, high_watermark, problems).await;
                let log_start_max = (!has_retention).then(|| workload.deleted(*id));
                let partition = FinalPartition {
                    partition: key(*id),
                    log_start,
                    log_start_max,
                    high_watermark,
                    records,
                    replicas,
                };
                cluster.world.recorder.with(|history| history.partitions.push(partition));
            }
            Err(why) => problems.push(format!("{id:?} cannot be read in a healthy cluster: {why}")),
        }
    }
}

async fn produce_last(client: &Rc<Client>, partition: TopicPartition, sequence: u64) -> Result<(), String> {
    let recorder = client.world.recorder.clone();
    let mut last = String::new();
    for attempt in 0..ATTEMPTS_MAX {
        client.refresh().await;
        let Some((node, shard)) = client.leader(partition).and_then(|leader| leader.at) else {
            client.pause(100, 200).await;
            continue;
        };
        let asked_us = recorder.now_us();
        let sequence = sequence * u64::from(ATTEMPTS_MAX) + u64::from(attempt);
        let tag = RecordTag { producer: LAST_PRODUCER, sequence };
        let batch = batches::build([tag], 64, corelog_engine::TimestampMs(1_800_000_000_000));
        let request = Request::Produce { partition, batch, ack: Ack::All, leader_epoch: None };
        let response = client.call(node, shard, request).await;
        let mut produce = Produce {
            partition: key(partition),
            producer: LAST_PRODUCER,
            connection: u64::from(attempt),
            sequence,
            records: 1,
            promise: Promise::Committed,
            asked_us,
            answered_us: recorder.now_us(),
            outcome: ProduceOutcome::Unknown,
            leader_epoch: None,
        };
        let is_done = match response {
            Some(Response::Produced { base_offset, leader_epoch }) => {
                produce.outcome = ProduceOutcome::Acked { base_offset: base_offset.0 };
                produce.leader_epoch = Some(leader_epoch.0);
                true
            }
            Some(Response::Refused(why)) => {
                produce.outcome = ProduceOutcome::Refused;
                last = format!("{why:?}");
                false
            }
            Some(Response::Unknown(why)) => {
                last = why;
                false
            }
            _ => {
                "no answer".clone_into(&mut last);
                false
            }
        };
        recorder.note(Event::Produce(produce));
        if is_done {
            return Ok(());
        }
        client.pause(100, 300).await;
    }
    Err(last)
}

/// Log start, high watermark and all records, as the leader serves them.
async fn read_all(client: &Rc<Client>, partition: TopicPartition) -> Result<(u64, u64, Vec<Stored>), String> {
    let mut log_start = 0;
    let mut records: Vec<Stored> = Vec::new();
    let mut last = "no leader".to_owned();
    let mut failures = 0;
    while failures < ATTEMPTS_MAX {
        let Some((node, shard)) = client.leader(partition).and_then(|leader| leader.at) else {
            failures += 1;
            client.pause(100, 200).await;
            client.refresh().await;
            continue;
        };
        let from = Offset(records.last().map_or(log_start, |stored| stored.offset + 1));
        let request = Request::Fetch { partition, from, bytes_max: 60_000, leader_epoch: None };
        match client.call(node, shard, request).await {
            Some(Response::Fetched { records: more, high_watermark, .. }) => {
                let is_end = more.is_empty();
                records.extend(more);
                if is_end || records.last().is_some_and(|stored| stored.offset + 1 >= high_watermark.0) {
                    return Ok((log_start, high_watermark.0, records));
                }
            }
            Some(Response::Refused(Refusal::OutOfRange { start, .. })) if start.0 > from.0 => {
                // Deleted while it was read, at the latest.
                log_start = start.0;
                records.clear();
            }
            other => {
                last = match other {
                    Some(Response::Refused(why)) => format!("{why:?}"),
                    Some(Response::Unknown(why)) => why,
                    _ => "no answer".to_owned(),
                };
                failures += 1;
                client.pause(300, 600).await;
                client.refresh().await;
            }
        }
    }
    Err(last)
}

/// What each replica holds below the high watermark.
async fn replicas(
    cluster: &SimCluster,
    id: TopicPartition,
    high_watermark: u64,
    problems: &mut Vec<String>,
) -> Vec<FinalReplica> {
    let mut found = Vec::new();
    for node in &cluster.nodes {
        let Some(process) = node.process() else { continue };
        let here = process.partitions_with_disks().into_iter().find(|(partition, _)| partition.id() == id);
        let Some((partition, _)) = here else { continue };
        match read_replica(cluster, &process, &partition, high_watermark).await {
            Ok((log_start, records)) => {
                found.push(FinalReplica { name: partition.me().to_string(), log_start, records });
            }
            Err(why) => problems.push(format!("{id:?}: replica {} cannot be read: {why}", partition.me())),
        }
    }
    found
}

async fn read_replica(
    cluster: &SimCluster,
    process: &Process,
    partition: &Partition<SimDisk>,
    high_watermark: u64,
) -> Result<(u64, Vec<Stored>), String> {
    let log = partition.log();
    let mut records: Vec<Stored> = Vec::new();
    let mut failures = 0;
    loop {
        let start = log.ends().start;
        let from = Offset(records.last().map_or(start.0, |stored| stored.offset + 1));
        if from.0 >= high_watermark {
            return Ok((records.first().map_or(start.0, |stored| stored.offset), records));
        }
        let why = match log.read(from, Offset(high_watermark), ReadLimits::bytes(60_000)).await {
            Ok(batches) if batches.bytes == 0 => "its log ends early".to_owned(),
            Ok(read) => {
                records.extend(batches::read(&read.slices, from)?);
                continue;
            }
            Err(ReadError::Corrupt { offset, reason, .. }) => {
                process.mend(partition.id(), offset);
                format!("damage at {offset} is not mended: {reason}")
            }
            Err(error) => error.to_string(),
        };
        failures += 1;
        if failures > ATTEMPTS_MAX {
            return Err(why);
        }
        cluster.world.handle.sleep(Duration::from_millis(300)).await;
    }
}
