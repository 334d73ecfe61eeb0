//! A client that asks one node, whether it leads or not: produces, fetches, asks for the latest offset.
//!
//! It keeps its connection through pauses and cuts, so a leader that was deposed in its sleep is asked at once when it
//! wakes up. Whatever such a node acks or serves is noted with its epoch and start, and the checker knows the rest.

use std::sync::Arc;
use std::time::Duration;

use corelog_client::{Acks, ErrorCode, Failure};
use corelog_schemas::messages::{
    FetchPartition, FetchRequest, ListOffsetsPartition, ListOffsetsRequest, OffsetSpec, PartitionRef,
    ProducePartition, ProduceRequest,
};
use corelog_sim::checker::{
    Event, Latest, LeaderSeen, Move, MoveReason, PartitionKey, Produce, ProduceOutcome, Promise, Read,
    RecordTag, Stored,
};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::cluster::{Shared, address};
use super::direct::Direct;
use super::recorder::Recorder;
use super::records;
use super::workload::{self, PROBE_PRODUCER};

/// Longer than the pauses that a node is put into, so that its first words after one are heard.
const PATIENCE: Duration = Duration::from_secs(12);
const TIMEOUT_MS: u32 = 3_000;
/// How far behind the last known end a probe reads.
const BEHIND_MAX: u64 = 40;

struct Probe {
    recorder: Recorder,
    shared: Arc<Shared>,
    node: u32,
    random: Pcg64Mcg,
    next_sequence: u64,
    connection: u64,
}

/// Where a probe is at.
struct Target<'a> {
    topic: &'a str,
    key: PartitionKey,
    /// Last known end.
    end: &'a mut u64,
}

/// One connection's life, as long as the node answers.
struct Session {
    direct: Direct,
    /// Which start of the node it was made to.
    start: u64,
}

/// Goes on until the load is over.
pub(crate) async fn run(recorder: Recorder, shared: Arc<Shared>, node: u32, seed: u64) {
    let targets = workload::partitions(&recorder);
    let mut ends = vec![0; targets.len()];
    let random = Pcg64Mcg::seed_from_u64(seed ^ u64::from(node) << 48);
    let connection = u64::from(PROBE_PRODUCER + node) << 32;
    let mut probe = Probe { recorder, shared, node, random, next_sequence: 0, connection };
    while !probe.recorder.is_over() {
        let start = probe.shared.starts(node);
        let shard = 0;
        let Ok(direct) = Direct::connect(address(node, shard)).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        probe.connection += 1;
        let mut session = Session { direct, start };
        while !probe.recorder.is_over() {
            let at = probe.random.random_range(0..targets.len());
            let (topic, _, key) = &targets[at];
            let target = Target { topic, key: key.clone(), end: &mut ends[at] };
            if probe.ask(&mut session, target).await.is_err() {
                break;
            }
            let pause_ms = probe.random.random_range(10..80);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
    }
}

impl Probe {
    async fn ask(&mut self, session: &mut Session, mut target: Target<'_>) -> std::io::Result<()> {
        match self.random.random_range(0..3) {
            0 => self.produce(session, &mut target).await,
            1 => self.fetch(session, &mut target).await,
            _ => self.latest(session, &mut target).await,
        }
    }

    fn led(&self, session: &Session, partition: &PartitionKey, epoch: u32) {
        let replica = format!("node {}", self.node).into();
        let partition = partition.clone();
        self.recorder.note(Event::Leader(LeaderSeen {
            partition,
            epoch,
            replica,
            incarnation: session.start,
        }));
    }

    fn count_refusal(&self, failure: &Failure) {
        if failure.code == ErrorCode::NotLeader {
            self.recorder.tally.borrow_mut().turned_away += 1;
        }
    }

    async fn produce(&mut self, session: &mut Session, target: &mut Target<'_>) -> std::io::Result<()> {
        let records = self.random.random_range(1..4u32);
        let mut produce = Produce {
            partition: target.key.clone(),
            producer: PROBE_PRODUCER + self.node,
            connection: self.connection,
            sequence: self.next_sequence,
            records,
            promise: Promise::Committed,
            asked_us: self.recorder.now_us(),
            answered_us: 0,
            outcome: ProduceOutcome::Unknown,
            leader_epoch: None,
        };
        self.next_sequence += u64::from(records);
        let tags: Vec<RecordTag> = (0..records).map(|i| produce.tag(i)).collect();
        let batch = records::batch(tags, 100);
        let to = PartitionRef::by_name(target.topic, target.key.partition);
        let records_bytes = u32::try_from(batch.len()).expect("small");
        let request = ProduceRequest {
            acks: Acks::All,
            timeout_ms: TIMEOUT_MS,
            partitions: vec![ProducePartition { to, records_bytes, leader_epoch: None }],
        };
        let answer = session.direct.ask(&request, &batch, PATIENCE).await;
        produce.answered_us = self.recorder.now_us();
        let result = match &answer {
            Ok(Ok((response, _))) => response.partitions.first().cloned(),
            Ok(Err(failure)) => Some(Err(failure.clone())),
            Err(_) => None,
        };
        match result {
            Some(Ok(produced)) => {
                produce.outcome = ProduceOutcome::Acked { base_offset: produced.base_offset };
                *target.end = produced.base_offset + u64::from(records);
            }
            Some(Err(failure)) => {
                self.count_refusal(&failure);
                if !workload::may_be_appended(failure.code) {
                    produce.outcome = ProduceOutcome::Refused;
                }
            }
            None => {}
        }
        self.recorder.note(Event::Produce(produce));
        answer.map(|_| ())
    }

    async fn fetch(&mut self, session: &mut Session, target: &mut Target<'_>) -> std::io::Result<()> {
        let from = target.end.saturating_sub(self.random.random_range(0..BEHIND_MAX));
        let request = FetchRequest {
            min_bytes: 0,
            max_wait_ms: 0,
            max_bytes: 64 << 10,
            partitions: vec![FetchPartition {
                from: PartitionRef::by_name(target.topic, target.key.partition),
                fetch_offset: from,
                max_bytes: 64 << 10,
                leader_epoch: None,
                last_epoch: None,
            }],
        };
        let asked_us = self.recorder.now_us();
        let (response, payload) = match session.direct.ask(&request, &[], PATIENCE).await? {
            Ok(answer) => answer,
            Err(failure) => return Err(std::io::Error::other(failure)),
        };
        let answered_us = self.recorder.now_us();
        let Some(result) = response.partitions.first() else { return Ok(()) };
        if let Some(failure) = &result.failure {
            self.count_refusal(failure);
            if failure.code == ErrorCode::OffsetOutOfRange {
                // Retention was faster, or a leader that lacks the end; the next look for the latest offset tells.
                *target.end = 0;
            }
            return Ok(());
        }
        let (Some(high_watermark), Some(epoch)) = (result.high_watermark, result.leader_epoch) else {
            return Ok(());
        };
        self.led(session, &target.key, epoch);
        let records = match records::fetched(&payload, from) {
            Ok(records) => records,
            // The checker has no word for it, and it must never be: what a log holds is checked on its way.
            Err(why) => panic!("node {} served {}: {why}", self.node, target.key),
        };
        if let Some(end) = records::end(&records) {
            *target.end = end.0;
        } else {
            *target.end = (*target.end).max(high_watermark);
        }
        self.note_read(&target.key, from, &records, high_watermark, epoch, (asked_us, answered_us));
        Ok(())
    }

    fn note_read(
        &self,
        partition: &PartitionKey,
        from: u64,
        records: &[Stored],
        high_watermark: u64,
        epoch: u32,
        (asked_us, answered_us): (u64, u64),
    ) {
        let consumer = PROBE_PRODUCER + self.node;
        let (reason, to) = (MoveReason::Asked, from);
        self.recorder.note(Event::Move(Move { partition: partition.clone(), consumer, to, reason }));
        self.recorder.note(Event::Read(Read {
            partition: partition.clone(),
            consumer,
            from,
            records: records.iter().map(|stored| (stored.offset, stored.tag)).collect(),
            high_watermark,
            leader_epoch: Some(epoch),
            asked_us,
            answered_us,
        }));
    }

    async fn latest(&mut self, session: &mut Session, target: &mut Target<'_>) -> std::io::Result<()> {
        let of = PartitionRef::by_name(target.topic, target.key.partition);
        let lookup = ListOffsetsPartition { of, spec: OffsetSpec::Latest, leader_epoch: None };
        let request = ListOffsetsRequest { partitions: vec![lookup] };
        let asked_us = self.recorder.now_us();
        let response = match session.direct.ask(&request, &[], PATIENCE).await? {
            Ok((response, _)) => response,
            Err(failure) => return Err(std::io::Error::other(failure)),
        };
        let answered_us = self.recorder.now_us();
        match response.partitions.first() {
            Some(Ok(found)) => {
                let (Some(offset), Some(epoch)) = (found.offset, found.leader_epoch) else { return Ok(()) };
                self.led(session, &target.key, epoch);
                *target.end = offset;
                let leader_epoch = Some(epoch);
                let partition = target.key.clone();
                let latest = Latest { partition, offset, leader_epoch, asked_us, answered_us };
                self.recorder.note(Event::Latest(latest));
            }
            Some(Err(failure)) => self.count_refusal(failure),
            None => {}
        }
        Ok(())
    }
}
