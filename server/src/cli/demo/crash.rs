//! The demo's crash: kills the node in mid-load, starts it again, proves that every acked record is there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use corelog_client::{
    Client, ConsumerConfig, DeliveryReport, PollLimits, Producer, ProducerConfig, ProducerRecord,
    RetryPolicy, StartAt,
};

use super::super::connect::{consume_error, send_error};
use super::super::output::{Progress, counted};
use super::super::{CliError, CliResult, Exit};
use super::load::FirstError;
use super::node::Node;

/// Load before the crash, and after the restart.
const LOAD: Duration = Duration::from_millis(1_500);
/// Bytes of each record's value.
const VALUE_BYTES: usize = 500;

/// Where the server said that a record is.
type Acked = HashMap<(u32, u64), u64>;

/// What the crash showed.
pub(super) struct CrashReport {
    pub acked_before: u64,
    pub acked_in_all: u64,
    pub readable: u64,
    pub copies: u64,
    pub restart: Duration,
}

/// The value of record `number`: its number, and bytes that follow from it.
fn value_of(number: u64) -> Vec<u8> {
    let mut value = number.to_le_bytes().to_vec();
    let mut state = number;
    while value.len() < VALUE_BYTES {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        value.extend(state.to_le_bytes());
    }
    value
}

/// Loads `topic`, kills the node, starts it again, goes on, and checks every ack against what can be read.
pub(super) async fn run(node: Node, topic: &str, partitions: u32) -> CliResult<(Node, CrashReport)> {
    let client = node.client("load").await?;
    let acked: Arc<Mutex<Acked>> = Arc::default();
    let errors = FirstError::default();
    let producer = start(&client, &acked, &errors)?;
    let count = || acked.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
    let mut number = 0;
    load(&producer, topic, partitions, &mut number, LOAD).await?;
    let place = node.kill()?;
    let acked_before = count();
    let killed = Instant::now();
    // The load goes on while the node is down: sends wait for memory, batches are tried again.
    let restarting = place.start();
    let loading = load(&producer, topic, partitions, &mut number, LOAD * 2);
    let restarting = async { restarting.await.map(|node| (node, killed.elapsed())) };
    // A node that does not come back ends the load too, instead of letting it wait for its time-outs.
    let ((node, restart), ()) = tokio::try_join!(restarting, loading)?;
    producer.close().await;
    errors.check()?;
    let acked_in_all = count();
    if acked_before == 0 || acked_in_all <= acked_before {
        return Err(CliError::new(Exit::Failure, "nothing was acked before, or nothing after the crash"));
    }
    let acked = std::mem::take(&mut *acked.lock().unwrap_or_else(PoisonError::into_inner));
    let readable = verify(&node.client("check").await?, topic, acked).await?;
    let copies = readable - acked_in_all;
    Ok((node, CrashReport { acked_before, acked_in_all, readable, copies, restart }))
}

fn start(client: &Client, acked: &Arc<Mutex<Acked>>, errors: &FirstError) -> CliResult<Producer> {
    let (acked, errors) = (Arc::clone(acked), errors.clone());
    let config = ProducerConfig {
        // Little memory, so that the load is felt at once when the node is gone.
        buffer_bytes_max: 8 << 20,
        batch_bytes: 32 << 10,
        retry: RetryPolicy { backoff_ms_max: 200, ..RetryPolicy::default() },
        on_delivery: Some(Arc::new(move |report: &DeliveryReport<'_>| {
            errors.note(report);
            let Some(base) = report.outcome.as_ref().ok().and_then(|ack| ack.base_offset) else { return };
            let mut acked = acked.lock().unwrap_or_else(PoisonError::into_inner);
            for (index, tag) in report.tags.iter().enumerate() {
                acked.insert((report.partition, base.advance(index as u64).0), *tag);
            }
        })),
        ..ProducerConfig::default()
    };
    client.producer(config).map_err(CliError::usage)
}

async fn load(
    producer: &Producer,
    topic: &str,
    partitions: u32,
    number: &mut u64,
    duration: Duration,
) -> CliResult {
    let started = Instant::now();
    let mut progress = Progress::new(true);
    while started.elapsed() < duration {
        let value = value_of(*number);
        let record = ProducerRecord {
            value: Some(&value),
            partition: Some((*number % u64::from(partitions)) as u32),
            tag: *number,
            ..ProducerRecord::default()
        };
        producer.send(topic, record).await.map_err(|error| send_error("cannot load the node", &error))?;
        *number += 1;
        progress.tick(|| format!("      {} sent", counted(*number, "record")));
    }
    Ok(())
}

/// Reads everything and strikes off each ack; yields how many records can be read.
async fn verify(client: &Client, topic: &str, mut acked: Acked) -> CliResult<u64> {
    let failure = |text: String| CliError::new(Exit::Failure, text);
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_all(topic, StartAt::Earliest).await.map_err(|error| consume_error(&error))?;
    let mut progress = Progress::new(true);
    let mut readable = 0;
    let mut next: HashMap<u32, u64> = HashMap::new();
    loop {
        let limits = PollLimits { wait_ms: 2_000, ..PollLimits::default() };
        let records = consumer.poll(limits).await.map_err(|error| consume_error(&error))?;
        if records.is_empty() {
            break;
        }
        for record in records {
            let due = next.entry(record.partition).or_default();
            if record.offset.0 != *due {
                return Err(failure(format!("offset {} came where {due} was due", record.offset)));
            }
            *due += 1;
            readable += 1;
            let value = record.value.unwrap_or_default();
            let number = value.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
            if number.map(value_of).as_deref() != Some(&value[..]) {
                return Err(failure(format!("the record at offset {} came back changed", record.offset)));
            }
            if let Some(expected) = acked.remove(&(record.partition, record.offset.0))
                && Some(expected) != number
            {
                let (partition, offset) = (record.partition, record.offset);
                return Err(failure(format!(
                    "partition {partition} offset {offset} was acked for another record"
                )));
            }
        }
        progress.tick(|| format!("      {} checked", counted(readable, "record")));
    }
    match acked.len() {
        0 => Ok(readable),
        1 => Err(failure("1 acked record is lost".to_owned())),
        lost => Err(failure(format!("{} are lost", counted(lost as u64, "acked record")))),
    }
}
