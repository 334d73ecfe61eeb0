//! The operator: makes and deletes a topic, takes replicas away and adds them again, drains nodes, while all goes on.
//!
//! What it asks for may fail for want of a controller or a quorum; whether all is well again is seen at the end.

use std::sync::Arc;
use std::time::Duration;

use corelog_client::{Client, ConsumerConfig, Offset, PollLimits, ProducerConfig, ProducerRecord, StartAt};
use corelog_schemas::Request;
use corelog_schemas::messages::{
    AddReplicaRequest, ClusterChangeResponse, DrainNodeRequest, RemoveReplicaRequest,
};
use corelog_sim::checker::{Event, Move, MoveReason, Produce, ProduceOutcome, Promise, Read, RecordTag};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::cluster::{NODES, Shared, address};
use super::direct::Direct;
use super::recorder::Recorder;
use super::workload::{self, OPERATOR_PRODUCER, TOPICS};

/// The topic that comes and goes.
const TRANSIENT: &str = "transient";
const PATIENCE: Duration = Duration::from_secs(10);
/// How often what must be done before the end is tried.
const ATTEMPTS_MAX: u32 = 60;

struct Operator {
    recorder: Recorder,
    shared: Arc<Shared>,
    random: Pcg64Mcg,
    client: Client,
    /// How often the topic was made: its partitions are others each time.
    generation: u32,
    next_sequence: u64,
}

/// Goes on until the load is over, and leaves three replicas of everything and no node drained.
pub(crate) async fn run(recorder: Recorder, shared: Arc<Shared>, seed: u64) {
    let client = workload::connect("operator").await;
    let random = Pcg64Mcg::seed_from_u64(seed ^ 77 << 40);
    let mut operator = Operator { recorder, shared, random, client, generation: 0, next_sequence: 0 };
    while !operator.recorder.is_over() {
        let pause_ms = operator.random.random_range(1_000..6_000);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        match operator.random.random_range(0..3) {
            0 => operator.topic_comes_and_goes().await,
            1 => operator.replica_goes_and_comes().await,
            _ => operator.drain().await,
        }
    }
}

impl Operator {
    fn done(&self) {
        self.recorder.tally.borrow_mut().changes += 1;
    }

    /// Asks one node after the other until one says yes or no.
    async fn change<R: Request<Response = ClusterChangeResponse>>(&mut self, request: &R) -> bool {
        let first = self.random.random_range(0..NODES);
        for step in 0..NODES {
            let node = (first + step) % NODES + 1;
            let Ok(mut direct) = Direct::connect(address(node, 0)).await else { continue };
            if let Ok(Ok((response, _))) = direct.ask(request, &[], PATIENCE).await
                && response.failure.is_none()
            {
                self.done();
                return true;
            }
        }
        false
    }

    /// Asks until it is done: what the operator undoes, has to be undone.
    async fn insist<R: Request<Response = ClusterChangeResponse>>(&mut self, request: &R, what: &str) {
        for _ in 0..ATTEMPTS_MAX {
            if self.change(request).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("the operator cannot {what}");
    }

    async fn drain(&mut self) {
        let node = self.random.random_range(1..=NODES);
        if self.change(&DrainNodeRequest { node, is_drained: true }).await {
            let pause_ms = self.random.random_range(500..4_000);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
        // Even if it was refused: a lost answer is no refusal.
        self.insist(&DrainNodeRequest { node, is_drained: false }, "end a drain").await;
    }

    async fn replica_goes_and_comes(&mut self) {
        let (topic, partitions, _) = TOPICS[self.random.random_range(0..TOPICS.len())];
        let partition = self.random.random_range(0..partitions);
        let node = self.random.random_range(1..=NODES);
        let removal = RemoveReplicaRequest { topic: topic.into(), partition, node };
        if self.change(&removal).await {
            let pause_ms = self.random.random_range(200..3_000);
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
        for _ in 0..ATTEMPTS_MAX {
            let view = self.shared.view();
            let known = view.partitions.get(&(topic.to_owned(), partition));
            let addition = AddReplicaRequest { topic: topic.into(), partition, node: Some(node) };
            if self.change(&addition).await || known.is_some_and(|p| p.replicas.contains(&node)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("the operator cannot add a replica of {topic}/{partition} on node {node}");
    }

    async fn topic_comes_and_goes(&mut self) {
        self.generation += 1;
        if workload::create_topic(&self.client, TRANSIENT, (1, 3), &[]).await.is_ok() {
            self.done();
            self.write_and_read().await;
        }
        for _ in 0..ATTEMPTS_MAX {
            let deleted = self.client.admin().delete_topics(&[TRANSIENT]).await;
            let code = match deleted.map(|mut results| results.pop()) {
                Ok(Some(Ok(_))) => return self.done(),
                Ok(Some(Err(failure))) => Some(failure.code),
                Ok(None) | Err(_) => None,
            };
            if code == Some(corelog_client::ErrorCode::UnknownTopicOrPartition) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        panic!("the operator cannot delete a topic");
    }

    /// A few records, and what is there: nothing of an earlier topic of that name.
    async fn write_and_read(&mut self) {
        // A client of its own, that knows nothing of an earlier one.
        let client = workload::connect("transient").await;
        let key = self.recorder.key(&format!("{TRANSIENT}#{}", self.generation), 0);
        let config = ProducerConfig { delivery_timeout_ms: 10_000, ..ProducerConfig::default() };
        let producer = client.producer(config).expect("a sound configuration");
        for _ in 0..3 {
            let asked_us = self.recorder.now_us();
            let tag = RecordTag { producer: OPERATOR_PRODUCER, sequence: self.next_sequence };
            self.next_sequence += 1;
            let value = tag.value(60);
            let record = ProducerRecord { value: Some(&value), ..ProducerRecord::default() };
            let Ok(delivery) = producer.send(TRANSIENT, record).await else { continue };
            let outcome = match delivery.wait().await.map(|metadata| metadata.offset) {
                Ok(Some(Offset(base_offset))) => ProduceOutcome::Acked { base_offset },
                Ok(None) | Err(_) => ProduceOutcome::Unknown,
            };
            self.recorder.note(Event::Produce(Produce {
                partition: key.clone(),
                producer: tag.producer,
                connection: u64::from(OPERATOR_PRODUCER) << 32 | u64::from(self.generation),
                sequence: tag.sequence,
                records: 1,
                promise: Promise::Committed,
                asked_us,
                answered_us: self.recorder.now_us(),
                outcome,
                leader_epoch: None,
            }));
        }
        let mut consumer =
            client.consumer(ConsumerConfig { patience_ms: 2_000, ..ConsumerConfig::default() });
        if consumer.assign_all(TRANSIENT, StartAt::Offset(Offset(0))).await.is_err() {
            return;
        }
        let asked_us = self.recorder.now_us();
        let polled = consumer.poll(PollLimits { wait_ms: 1_000, ..PollLimits::default() }).await;
        let records: Vec<(u64, RecordTag)> = polled
            .unwrap_or_default()
            .iter()
            .map(|record| (record.offset.0, RecordTag::parse(record.value.as_deref().unwrap_or_default())))
            .map(|(offset, tag)| (offset, tag.expect("a record of this test")))
            .collect();
        let consumer = OPERATOR_PRODUCER + self.generation;
        let (partition, to) = (key.clone(), 0);
        self.recorder.note(Event::Move(Move { partition, consumer, to, reason: MoveReason::Asked }));
        let high_watermark = records.last().map_or(0, |(offset, _)| offset + 1);
        self.recorder.note(Event::Read(Read {
            partition: key,
            consumer,
            from: 0,
            records,
            high_watermark,
            leader_epoch: None,
            asked_us,
            answered_us: self.recorder.now_us(),
        }));
    }
}
