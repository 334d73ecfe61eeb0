//! The load: producers and consumers of the client library, direct clients that ask every node whether it leads, and an
//! operator who changes things.
//!
//! Producers come in two kinds: idempotent ones that send again whatever gets lost, and ones that try once and note what
//! they do not know. Both take new sequence numbers for each record, so a record that is there twice is a fault.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corelog_client::producer::BatchAck;
use corelog_client::{
    Client, ClientConfig, ConsumeError, Consumer, ConsumerConfig, ConsumerRecord, DeliveryError,
    DeliveryReport, ErrorCode, Offset, PollLimits, ProducerConfig, ProducerRecord, RetryPolicy, StartAt,
};
use corelog_schemas::messages::{NewTopic, TopicOption};
use corelog_sim::checker::{
    Event, Move, MoveReason, PartitionKey, Produce, ProduceOutcome, Promise, Read, RecordTag,
};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use tokio::task::JoinHandle;

use super::cluster::{NODES, Shared, addresses};
use super::probe;
use super::recorder::{Recorder, micros};

/// Synced before it is acked.
pub(crate) const COMMIT: &str = "commit";
/// Acked when the in-sync replicas have it in memory.
pub(crate) const INTERVAL: &str = "interval";
/// Old records go: a node that was away for long finds that its next record is gone.
pub(crate) const SHORT: &str = "short";

/// Name, partitions, options.
type Topic = (&'static str, u32, &'static [(&'static str, &'static str)]);
/// Topic and partition.
type Place = (Arc<str>, u32);

/// What is written and read all the time.
pub(crate) const TOPICS: &[Topic] = &[
    (COMMIT, 3, &[("batch_bytes_max", "32KiB"), ("segment_bytes_max", "256KiB")]),
    (INTERVAL, 2, &[("batch_bytes_max", "32KiB"), ("segment_bytes_max", "256KiB"), ("flush", "interval")]),
    (
        SHORT,
        1,
        &[("batch_bytes_max", "32KiB"), ("segment_bytes_max", "64KiB"), ("retention_bytes", "512KiB")],
    ),
];

/// Numbers of producers that are not of the load's own.
pub(crate) const PROBE_PRODUCER: u32 = 100;
pub(crate) const OPERATOR_PRODUCER: u32 = 200;

const REQUEST_TIMEOUT_MS: u64 = 5_000;
const BURST_MAX: u32 = 6;
const CONSUMERS: u32 = 2;

/// Whether a produce that failed like this may be in the log all the same.
pub(crate) fn may_be_appended(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Unacked | ErrorCode::RequestTimedOut | ErrorCode::Unknown)
}

pub(crate) fn client_config(name: &str) -> ClientConfig {
    let mut config = ClientConfig::new(addresses());
    config.client_id = name.to_owned();
    config.connect_timeout_ms = 1_000;
    config.request_timeout_ms = REQUEST_TIMEOUT_MS;
    config
}

/// Connects, waiting for a cluster that is just starting.
pub(crate) async fn connect(name: &str) -> Client {
    for _ in 0..300 {
        if let Ok(client) = Client::connect(client_config(name)).await {
            return client;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("no node answers");
}

/// Connects once every node runs: only then can a topic have three replicas.
pub(crate) async fn connect_to_all(name: &str) -> Client {
    let client = connect(name).await;
    for _ in 0..300 {
        if let Ok(metadata) = client.admin().metadata().await
            && (1..=NODES).all(|node| metadata.shards.iter().any(|shard| shard.node == node))
        {
            return client;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("a node does not start");
}

/// Creates a topic; tries for as long as the cluster is just starting.
///
/// Errors: the last refusal, in words.
pub(crate) async fn create_topic(
    client: &Client,
    name: &str,
    (partitions, replicas): (u32, u16),
    options: &[(&str, &str)],
) -> Result<(), String> {
    let option = |(key, value): &(&str, &str)| TopicOption {
        key: (*key).to_owned(),
        value: Some((*value).to_owned()),
        is_default: false,
    };
    let topic = NewTopic {
        name: name.to_owned(),
        partitions,
        replication_factor: replicas,
        options: options.iter().map(option).collect(),
    };
    let mut last = String::new();
    for _ in 0..150 {
        match client.admin().create_topics(vec![topic.clone()], false).await {
            Ok(mut results) => match results.pop() {
                Some(Ok(_)) => return Ok(()),
                Some(Err(failure)) if failure.code == ErrorCode::TopicAlreadyExists => return Ok(()),
                Some(Err(failure)) if !failure.code.is_retriable() => return Err(failure.to_string()),
                other => last = format!("{other:?}"),
            },
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Err(last)
}

/// The tasks of a load.
pub(crate) struct Load {
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts it on the current-thread runtime's local set.
    pub(crate) async fn start(recorder: &Recorder, shared: &Arc<Shared>, seed: u64) -> Self {
        let client = connect("load").await;
        let mut tasks = Vec::new();
        let mut number = 0;
        for &(topic, partitions, _) in TOPICS {
            for partition in 0..partitions {
                for is_idempotent in [true, false] {
                    let random = Pcg64Mcg::seed_from_u64(seed ^ u64::from(number) << 32);
                    let producer = LoadProducer::new(recorder, &client, number, topic, partition, random);
                    tasks.push(tokio::task::spawn_local(producer.run(is_idempotent)));
                    number += 1;
                }
            }
        }
        for number in 0..CONSUMERS {
            let client = connect("consumer").await;
            tasks.push(tokio::task::spawn_local(consume(recorder.clone(), client, number)));
        }
        for node in 1..=NODES {
            let probe = probe::run(recorder.clone(), shared.clone(), node, seed);
            tasks.push(tokio::task::spawn_local(probe));
        }
        let operator = super::operator::run(recorder.clone(), shared.clone(), seed);
        tasks.push(tokio::task::spawn_local(operator));
        Self { tasks }
    }

    /// Waits until all have ended, after [`Recorder::end`].
    pub(crate) async fn finish(self) {
        for task in self.tasks {
            task.await.expect("no client panics");
        }
    }
}

/// What the producer's task tells of a batch.
struct Settled {
    tags: Vec<u64>,
    outcome: Result<BatchAck, DeliveryError>,
    answered_us: u64,
}

/// Sends to one partition.
pub(crate) struct LoadProducer {
    recorder: Recorder,
    client: Client,
    number: u32,
    topic: &'static str,
    key: PartitionKey,
    random: Pcg64Mcg,
    next_sequence: u64,
    connection: u64,
}

impl LoadProducer {
    fn new(
        recorder: &Recorder,
        client: &Client,
        number: u32,
        topic: &'static str,
        partition: u32,
        random: Pcg64Mcg,
    ) -> Self {
        Self {
            recorder: recorder.clone(),
            client: client.clone(),
            number,
            topic,
            key: recorder.key(topic, partition),
            random,
            next_sequence: 0,
            connection: u64::from(number) << 32,
        }
    }

    async fn run(mut self, is_idempotent: bool) {
        let settled: Arc<Mutex<Vec<Settled>>> = Arc::default();
        let (of_callback, began) = (settled.clone(), self.recorder.began());
        let mut config = ProducerConfig {
            idempotent: is_idempotent,
            on_delivery: Some(Arc::new(move |report: &DeliveryReport<'_>| {
                let answered_us = micros(began.elapsed());
                let (tags, outcome) = (report.tags.to_vec(), report.outcome.clone());
                of_callback.lock().expect("nobody panics").push(Settled { tags, outcome, answered_us });
            })),
            ..ProducerConfig::default()
        };
        if !is_idempotent {
            config.retry = RetryPolicy { retries_max: 0, ..config.retry };
            config.delivery_timeout_ms = 5_000;
        }
        let producer = self.client.producer(config).expect("a sound configuration");
        while !self.recorder.is_over() {
            let asked_us = self.recorder.now_us();
            let records = self.random.random_range(1..=BURST_MAX);
            for _ in 0..records {
                let tag = RecordTag { producer: self.number, sequence: self.next_sequence };
                self.next_sequence += 1;
                let value = tag.value(self.random.random_range(48..300));
                let record = ProducerRecord {
                    value: Some(&value),
                    partition: Some(self.key.partition),
                    tag: tag.sequence,
                    ..ProducerRecord::default()
                };
                // What is not taken is not sent, and nobody will hear of it.
                let _ = producer.send(self.topic, record).await;
            }
            producer.flush().await;
            let settled = std::mem::take(&mut *settled.lock().expect("nobody panics"));
            let is_well = settled.iter().all(|settled| settled.outcome.is_ok());
            for settled in settled {
                self.note(settled, asked_us);
            }
            let pause_ms = if is_well { self.random.random_range(5..40) } else { 50 };
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
        producer.close().await;
    }

    fn note(&mut self, settled: Settled, asked_us: u64) {
        let outcome = match settled.outcome {
            Ok(BatchAck { base_offset: Some(Offset(base_offset)), .. }) => {
                ProduceOutcome::Acked { base_offset }
            }
            Err(DeliveryError::GaveUp { maybe_appended: false, .. }) => ProduceOutcome::Refused,
            Err(DeliveryError::Refused(failure)) if !may_be_appended(failure.code) => ProduceOutcome::Refused,
            Ok(_) | Err(_) => ProduceOutcome::Unknown,
        };
        self.recorder.note(Event::Produce(Produce {
            partition: self.key.clone(),
            producer: self.number,
            connection: self.connection,
            sequence: settled.tags[0],
            records: u32::try_from(settled.tags.len()).expect("few"),
            promise: Promise::Committed,
            asked_us,
            answered_us: settled.answered_us,
            outcome,
            leader_epoch: None,
        }));
        if outcome == ProduceOutcome::Unknown {
            // It may still arrive, on a connection that the library has given up, behind what is sent next.
            self.connection += 1;
        }
    }
}

/// Reads everything as it comes.
async fn consume(recorder: Recorder, client: Client, number: u32) {
    let mut reader = Reader::new(recorder.clone(), &client, number);
    for &(topic, ..) in TOPICS {
        while let Err(error) = reader.consumer.assign_all(topic, StartAt::Earliest).await {
            assert!(!recorder.is_over(), "{topic} cannot be assigned: {error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    while !recorder.is_over() {
        reader.turn(200).await;
    }
}

/// A consumer whose reads are noted.
pub(crate) struct Reader {
    recorder: Recorder,
    number: u32,
    pub(crate) consumer: Consumer,
    /// Next offset of each partition that was read; what is not here begins with whatever comes.
    next: HashMap<Place, u64>,
    /// Failures of partitions that nobody expects.
    pub(crate) failures: Vec<String>,
}

impl Reader {
    pub(crate) fn new(recorder: Recorder, client: &Client, number: u32) -> Self {
        let consumer =
            client.consumer(ConsumerConfig { fetch_max_wait_ms: 200, ..ConsumerConfig::default() });
        Self { recorder, number, consumer, next: HashMap::new(), failures: Vec::new() }
    }

    /// One poll; says how many records came.
    pub(crate) async fn turn(&mut self, wait_ms: u64) -> usize {
        let asked_us = self.recorder.now_us();
        let limits = PollLimits { wait_ms, ..PollLimits::default() };
        match self.consumer.poll(limits).await {
            Ok(records) => {
                let count = records.len();
                self.note(records, asked_us);
                count
            }
            Err(ConsumeError::OffsetOutOfRange { topic, partition, .. }) => {
                // Retention was faster. Where it goes on is seen with the next record.
                self.next.remove(&(topic.clone(), partition));
                let sought = self.consumer.seek(&topic, partition, StartAt::Earliest);
                sought.expect("it is assigned");
                0
            }
            Err(error) => {
                self.failed(&error);
                0
            }
        }
    }

    fn failed(&mut self, error: &ConsumeError) {
        self.failures.push(error.to_string());
        if let ConsumeError::Refused { topic, partition, .. }
        | ConsumeError::BadBatch { topic, partition, .. } = error
        {
            let to = self.next.get(&(topic.clone(), *partition)).copied();
            let to = to.map_or(StartAt::Earliest, |next| StartAt::Offset(Offset(next)));
            self.consumer.seek(topic, *partition, to).expect("it is assigned");
        }
    }

    fn note(&mut self, records: Vec<ConsumerRecord>, asked_us: u64) {
        let mut by_partition: HashMap<Place, Vec<(u64, RecordTag)>> = HashMap::new();
        for record in records {
            let value = record.value.as_deref().unwrap_or_default();
            match RecordTag::parse(value) {
                Ok(tag) => {
                    let place = by_partition.entry((record.topic, record.partition)).or_default();
                    place.push((record.offset.0, tag));
                }
                Err(error) => self.failures.push(format!("offset {}: {error}", record.offset)),
            }
        }
        let answered_us = self.recorder.now_us();
        for (place, records) in by_partition {
            let partition = self.recorder.key(&place.0, place.1);
            let (first, last) = (records[0].0, records[records.len() - 1].0);
            let from = *self.next.entry(place.clone()).or_insert_with(|| {
                let (partition, consumer) = (partition.clone(), self.number);
                let reason = MoveReason::BelowLogStart;
                self.recorder.note(Event::Move(Move { partition, consumer, to: first, reason }));
                first
            });
            self.next.insert(place, last + 1);
            self.recorder.note(Event::Read(Read {
                partition,
                consumer: self.number,
                from,
                records,
                // The library tells the mark of its newest fetch alone, which is not that of these records.
                high_watermark: last + 1,
                leader_epoch: None,
                asked_us,
                answered_us,
            }));
        }
    }
}

/// Names of partitions as shared by tasks.
pub(crate) fn partitions(recorder: &Recorder) -> Rc<[(&'static str, u32, PartitionKey)]> {
    TOPICS
        .iter()
        .flat_map(|&(topic, count, _)| (0..count).map(move |partition| (topic, partition)))
        .map(|(topic, partition)| (topic, partition, recorder.key(topic, partition)))
        .collect()
}
