//! The demo's load: streams the text in, reads it back, measures latency at a modest rate.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use corelog_client::{
    Client, Compression, ConsumerConfig, DeliveryError, DeliveryReport, Offset, PollLimits, ProducerConfig,
    ProducerRecord, StartAt,
};
use hdrhistogram::Histogram;

use super::super::connect::{consume_error, delivery_error, send_error};
use super::super::output::{Progress, bytes_text, counted, per_second};
use super::super::{CliError, CliResult, Exit};
use super::text::{Text, TextRecord};

/// Checksum and number of the records of one key, in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KeySum {
    crc: u32,
    records: u64,
}

/// Checksums of all keys.
pub(super) type KeySums = HashMap<Vec<u8>, KeySum>;

/// What was streamed, and how fast.
pub(super) struct Streamed {
    pub records: u64,
    pub bytes: u64,
    pub elapsed: Duration,
    pub sums: KeySums,
}

fn add(sums: &mut KeySums, key: &[u8], value: &[u8]) {
    let sum = match sums.get_mut(key) {
        Some(sum) => sum,
        None => sums.entry(key.to_vec()).or_default(),
    };
    // The length joins the sum, so that bytes cannot move from one record to the next unseen.
    let length = (value.len() as u64).to_le_bytes();
    sum.crc = crc32c::crc32c_append(crc32c::crc32c_append(sum.crc, &length), value);
    sum.records += 1;
}

/// Remembers the first failed delivery.
#[derive(Clone, Default)]
pub(super) struct FirstError(Arc<Mutex<Option<DeliveryError>>>);

impl FirstError {
    pub(super) fn note(&self, report: &DeliveryReport<'_>) {
        if let Err(error) = report.outcome {
            let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| error.clone());
        }
    }

    pub(super) fn check(&self) -> CliResult {
        let first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*first {
            Some(error) => Err(delivery_error("a record was not delivered", error)),
            None => Ok(()),
        }
    }
}

/// Streams the text through a producer, all keyed, and waits for every ack.
pub(super) async fn stream(
    client: &Client,
    topic: &str,
    text: &Text,
    compression: Compression,
) -> CliResult<Streamed> {
    let errors = FirstError::default();
    let noted = errors.clone();
    let config = ProducerConfig {
        compression,
        on_delivery: Some(Arc::new(move |report: &DeliveryReport<'_>| noted.note(report))),
        ..ProducerConfig::default()
    };
    let producer = client.producer(config).map_err(CliError::usage)?;
    let mut progress = Progress::new(true);
    let (mut records, mut bytes, total) = (0, 0, text.bytes());
    let mut sums = KeySums::new();
    let started = Instant::now();
    for TextRecord { key, value } in text.records() {
        let record = ProducerRecord { key: Some(key), value: Some(value), ..ProducerRecord::default() };
        producer.send(topic, record).await.map_err(|error| send_error("cannot stream the text", &error))?;
        add(&mut sums, key, value);
        records += 1;
        bytes += (key.len() + value.len()) as u64;
        let elapsed = started.elapsed();
        progress.tick(|| {
            let rate = bytes_text(per_second(bytes, elapsed));
            format!("      {} of {}, {rate}/s", bytes_text(bytes), bytes_text(total))
        });
    }
    producer.close().await;
    errors.check()?;
    Ok(Streamed { records, bytes, elapsed: started.elapsed(), sums })
}

/// Reads a topic back from the first to the last record that was streamed.
pub(super) async fn read_back(client: &Client, topic: &str, expected: &Streamed) -> CliResult<Streamed> {
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_all(topic, StartAt::Earliest).await.map_err(|error| consume_error(&error))?;
    let mut progress = Progress::new(true);
    let (mut records, mut bytes) = (0, 0);
    let mut sums = KeySums::new();
    let mut next: HashMap<u32, Offset> = HashMap::new();
    let started = Instant::now();
    while records < expected.records {
        let limits = PollLimits { wait_ms: 10_000, ..PollLimits::default() };
        let batch = consumer.poll(limits).await.map_err(|error| consume_error(&error))?;
        if batch.is_empty() {
            let text = format!("only {records} of {} can be read back", counted(expected.records, "record"));
            return Err(CliError::new(Exit::Failure, text));
        }
        for record in batch {
            let due = next.entry(record.partition).or_default();
            if record.offset != *due {
                let text = format!(
                    "partition {}: offset {} came where {due} was due",
                    record.partition, record.offset
                );
                return Err(CliError::new(Exit::Failure, text));
            }
            *due = record.offset.advance(1);
            let (key, value) = (record.key.unwrap_or_default(), record.value.unwrap_or_default());
            add(&mut sums, &key, &value);
            records += 1;
            bytes += (key.len() + value.len()) as u64;
        }
        progress.tick(|| {
            let rate = bytes_text(per_second(bytes, started.elapsed()));
            format!("      {} of {}, {rate}/s", bytes_text(bytes), bytes_text(expected.bytes))
        });
    }
    Ok(Streamed { records, bytes, elapsed: started.elapsed(), sums })
}

/// Compares what was sent with what was read, key by key.
pub(super) fn compare(sent: &Streamed, read: &Streamed) -> CliResult {
    if sent.sums == read.sums {
        return Ok(());
    }
    let wrong = sent.sums.iter().filter(|(key, sum)| read.sums.get(*key) != Some(*sum)).count();
    let text = format!("{wrong} of {} keys came back with other bytes or in another order", sent.sums.len());
    Err(CliError::new(Exit::Failure, text))
}

/// Sends records at a set rate and measures the time from when each was due until its ack, in microseconds.
pub(super) async fn latency(
    client: &Client,
    topic: &str,
    text: &Text,
    rate: u32,
    duration: Duration,
) -> CliResult<Histogram<u64>> {
    let errors = FirstError::default();
    let noted = errors.clone();
    let histogram =
        Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).expect("bounds and digits are in range");
    let histogram = Arc::new(Mutex::new(histogram));
    let recorded = Arc::clone(&histogram);
    let started = Instant::now();
    let config = ProducerConfig {
        on_delivery: Some(Arc::new(move |report: &DeliveryReport<'_>| {
            noted.note(report);
            let now_us = started.elapsed().as_micros() as u64;
            let mut histogram = recorded.lock().unwrap_or_else(PoisonError::into_inner);
            for due_us in report.tags {
                histogram.saturating_record(now_us.saturating_sub(*due_us).max(1));
            }
        })),
        ..ProducerConfig::default()
    };
    let producer = client.producer(config).map_err(CliError::usage)?;
    let mut progress = Progress::new(true);
    for (sent, TextRecord { key, value }) in text.records().enumerate() {
        let due = Duration::from_secs_f64(sent as f64 / f64::from(rate));
        if due > duration {
            break;
        }
        tokio::time::sleep_until((started + due).into()).await;
        let tag = due.as_micros() as u64;
        let record = ProducerRecord { key: Some(key), value: Some(value), tag, ..ProducerRecord::default() };
        producer.send(topic, record).await.map_err(|error| send_error("cannot send", &error))?;
        progress.tick(|| format!("      {:.1} of {:.0} s", due.as_secs_f64(), duration.as_secs_f64()));
    }
    producer.close().await;
    errors.check()?;
    let histogram = histogram.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(histogram)
}
