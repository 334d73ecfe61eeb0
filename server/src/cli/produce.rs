//! `corelog produce`: sends lines, key-separated lines or JSON records to a topic.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use corelog_client::{
    Acks, Client, Compression, DeliveryError, DeliveryReport, KeylessRule, Producer, ProducerConfig,
    ProducerRecord, RecordHeader, RetryNotice, TimestampMs,
};
use serde_json::json;

use super::connect::{ServerArgs, block_on, delivery_error, send_error};
use super::input::{Chunk, InputError, read_lines, source_name};
use super::output::{Output, Progress, bytes_text, count_text, counted, per_second};
use super::record_json::{self, JsonRecord};
use super::when::duration_ms;
use super::{CliError, CliResult, Exit};

/// How lines become records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum InputFormat {
    /// Each line is a value.
    Lines,
    /// Each line is a key, the separator, a value.
    KeyValue,
    /// Each line is an object: key, value, headers, partition, timestamp.
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum AcksArg {
    /// No answer is waited for.
    #[value(name = "0")]
    None,
    /// The leader has it.
    #[value(name = "1")]
    Leader,
    /// All in-sync replicas have it.
    All,
}

/// `corelog produce ...`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  printf 'hello\\nworld\\n' | corelog produce greetings
  corelog produce orders orders.tsv --format key-value --compression zstd
  corelog consume orders --format json | corelog produce copy --format json

A line of --format json:
  {\"key\": \"k\", \"value\": \"v\", \"headers\": {\"h\": \"1\"}, \"partition\": 0, \"timestamp\": 1700000000000}
Bytes that are no text stand in key_hex and value_hex; a null value is a tombstone.")]
pub struct ProduceArgs {
    /// The topic.
    topic: String,
    /// Files to read, one after the other; standard input if none is given, or for \"-\".
    files: Vec<PathBuf>,
    /// How lines become records.
    #[arg(long, value_enum, default_value = "lines")]
    format: InputFormat,
    /// Between key and value of --format key-value; \\t is a tab.
    #[arg(long, value_name = "TEXT", default_value = "\\t", value_parser = super::separator)]
    separator: String,
    /// Send everything to this partition.
    #[arg(long, short, value_name = "N")]
    partition: Option<u32>,
    /// When a record counts as delivered.
    #[arg(long, value_enum, default_value = "all")]
    acks: AcksArg,
    /// Codec of the batches: none, lz4 or zstd.
    #[arg(long, value_name = "CODEC", default_value = "none")]
    compression: Compression,
    /// Most records per second; as fast as it goes if not given.
    #[arg(long, value_name = "RECORDS", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Spread records without a key strictly one by one instead of batch by batch.
    #[arg(long)]
    round_robin: bool,
    /// Close a batch at this size.
    #[arg(long, value_name = "BYTES", default_value_t = 128 << 10, value_parser = batch_bytes)]
    batch_bytes: usize,
    /// Wait so long for a batch to fill.
    #[arg(long, value_name = "MS", default_value_t = 0)]
    linger_ms: u64,
    /// Give a record up that is not acked so long after it was read; until then, retry.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = delivery_timeout_ms)]
    delivery_timeout: u64,
    /// Go on after a record that cannot be delivered, and end with exit code 1.
    #[arg(long)]
    keep_going: bool,
    /// No progress and no summary.
    #[arg(long, short)]
    quiet: bool,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ServerArgs,
}

fn batch_bytes(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(bytes) if (1..=2 << 20).contains(&bytes) => Ok(bytes),
        _ => Err("expected 1 to 2097152 bytes".to_owned()),
    }
}

fn delivery_timeout_ms(text: &str) -> Result<u64, String> {
    let time = duration_ms(text).and_then(|ms| u64::try_from(ms).ok()).filter(|ms| *ms > 0);
    time.ok_or_else(|| "expected for example 500ms, 90s, 10m, 2h".to_owned())
}

/// How long a failure is waited out in silence: a leader that moves, a server that restarts.
const RETRY_SILENT_MS: u64 = 1_000;
/// Most reasons that are told, should they never be the same twice.
const RETRY_REASONS_MAX: usize = 100;

/// What stands in the way of the records, each reason once.
#[derive(Debug, Default)]
struct RetryReasons {
    told: HashSet<String>,
}

impl RetryReasons {
    /// The line to print about a retry; `None` if it is young, or its reason was told before. Numbers make no new
    /// reason: a full disk has other free bytes, and other partitions, each time.
    fn line(&mut self, notice: &RetryNotice<'_>) -> Option<String> {
        if notice.waited_ms < RETRY_SILENT_MS || self.told.len() >= RETRY_REASONS_MAX {
            return None;
        }
        let reason: String = notice.reason.chars().filter(|c| !c.is_ascii_digit()).collect();
        let fresh = self.told.insert(reason);
        fresh.then(|| format!("retrying: {}/{}: {}", notice.topic, notice.partition, notice.reason))
    }
}

/// The progress line, shared with the retries, which are told above it.
type SharedProgress = Arc<Mutex<Progress>>;

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What has been delivered so far; filled by the producer's reports.
#[derive(Debug, Default)]
struct Tally {
    acked: u64,
    failed: u64,
    first_error: Option<(u64, DeliveryError)>,
}

#[derive(Clone, Default)]
struct SharedTally(Arc<Mutex<Tally>>);

impl SharedTally {
    fn lock(&self) -> MutexGuard<'_, Tally> {
        locked(&self.0)
    }

    fn report(&self, report: &DeliveryReport<'_>) {
        let mut tally = self.lock();
        let count = report.tags.len() as u64;
        match report.outcome {
            Ok(_) => tally.acked += count,
            Err(error) => {
                tally.failed += count;
                let first = report.tags.first().copied().unwrap_or(0);
                tally.first_error.get_or_insert_with(|| (first, error.clone()));
            }
        }
    }
}

/// Sends the input.
pub fn run(args: ProduceArgs) -> CliResult {
    let chunks = read_lines(args.files.clone()).map_err(|error| input_error(&error))?;
    block_on(async move {
        let client = args.server.connect("produce").await?;
        let tally = SharedTally::default();
        let progress = Arc::new(Mutex::new(Progress::new(!args.quiet)));
        let producer = start(&client, &args, &tally, &progress)?;
        let mut sending = Sending {
            progress,
            started: Instant::now(),
            records: 0,
            bytes: 0,
            rejected: 0,
            producer,
            tally,
            args,
        };
        let sent = sending.send_all(chunks).await;
        // What was taken before an error is still delivered.
        sending.producer.close().await;
        locked(&sending.progress).clear();
        sent.and_then(|()| sending.finish())
    })
}

fn start(
    client: &Client,
    args: &ProduceArgs,
    tally: &SharedTally,
    progress: &SharedProgress,
) -> CliResult<Producer> {
    let (tally, progress) = (tally.clone(), Arc::clone(progress));
    let reasons = Mutex::new(RetryReasons::default());
    let tell_retry = move |notice: &RetryNotice<'_>| {
        if let Some(line) = locked(&reasons).line(notice) {
            locked(&progress).clear();
            eprintln!("{line}");
        }
    };
    let config = ProducerConfig {
        acks: match args.acks {
            AcksArg::None => Acks::None,
            AcksArg::Leader => Acks::Leader,
            AcksArg::All => Acks::All,
        },
        compression: args.compression,
        keyless_rule: if args.round_robin { KeylessRule::RoundRobin } else { KeylessRule::Sticky },
        batch_bytes: args.batch_bytes,
        linger_ms: args.linger_ms,
        delivery_timeout_ms: args.delivery_timeout,
        on_delivery: Some(Arc::new(move |report: &DeliveryReport<'_>| tally.report(report))),
        on_retry: Some(Arc::new(tell_retry)),
        ..ProducerConfig::default()
    };
    client.producer(config).map_err(CliError::usage)
}

fn input_error(error: &InputError) -> CliError {
    CliError::usage(error)
}

struct Sending {
    args: ProduceArgs,
    producer: Producer,
    tally: SharedTally,
    progress: SharedProgress,
    started: Instant,
    records: u64,
    bytes: u64,
    rejected: u64,
}

impl Sending {
    async fn send_all(
        &mut self,
        mut chunks: tokio::sync::mpsc::Receiver<Result<Chunk, InputError>>,
    ) -> CliResult {
        while let Some(chunk) = chunks.recv().await {
            let chunk = chunk.map_err(|error| input_error(&error))?;
            for (index, line) in chunk.lines().enumerate() {
                let number = chunk.first_line + index as u64;
                self.send_line(line, number, chunk.source).await?;
                self.pace().await;
                if !self.args.keep_going && self.tally.lock().failed > 0 {
                    return Ok(());
                }
            }
            self.show();
        }
        Ok(())
    }

    async fn send_line(&mut self, line: &[u8], number: u64, source: usize) -> CliResult {
        let record = match self.parse(line) {
            Ok(record) => record,
            Err(message) => {
                let place = format!("line {number} of {}", source_name(&self.args.files, source));
                let error = CliError::usage(format!("{place}: {message}"));
                if self.args.keep_going {
                    eprintln!("corelog: {place}: {message}");
                    self.rejected += 1;
                    return Ok(());
                }
                return Err(error);
            }
        };
        let headers: Vec<RecordHeader<'_>> =
            record.headers.iter().map(|(key, value)| RecordHeader { key, value: value.as_deref() }).collect();
        let new = ProducerRecord {
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &headers,
            timestamp: record.timestamp_ms.map(TimestampMs),
            partition: self.args.partition.or(record.partition),
            tag: number,
        };
        let sent = self.producer.send(&self.args.topic, new).await;
        sent.map_err(|error| send_error(&format!("cannot produce to topic {}", self.args.topic), &error))?;
        self.records += 1;
        self.bytes += line.len() as u64;
        Ok(())
    }

    fn parse(&self, line: &[u8]) -> Result<JsonRecord, String> {
        match self.args.format {
            InputFormat::Lines => Ok(JsonRecord { value: Some(line.to_vec()), ..JsonRecord::default() }),
            InputFormat::KeyValue => {
                let separator = self.args.separator.as_bytes();
                let at = line.windows(separator.len()).position(|window| window == separator);
                let at = at.ok_or_else(|| format!("no separator {:?} in it", self.args.separator))?;
                let (key, value) = (line[..at].to_vec(), line[at + separator.len()..].to_vec());
                Ok(JsonRecord { key: Some(key), value: Some(value), ..JsonRecord::default() })
            }
            InputFormat::Json => record_json::parse(line).map_err(|error| error.to_string()),
        }
    }

    /// Holds the rate: sleeps until the time that this record is due.
    async fn pace(&self) {
        if let Some(rate) = self.args.rate {
            let due = self.started + Duration::from_secs_f64(self.records as f64 / f64::from(rate));
            tokio::time::sleep_until(due.into()).await;
        }
    }

    fn show(&self) {
        let (records, bytes, elapsed) = (self.records, self.bytes, self.started.elapsed());
        let acked = self.tally.lock().acked;
        locked(&self.progress).tick(|| {
            format!(
                "{} read, {} acked, {}, {}/s",
                counted(records, "record"),
                count_text(acked),
                bytes_text(bytes),
                bytes_text(per_second(bytes, elapsed))
            )
        });
    }

    fn finish(self) -> CliResult {
        let tally = self.tally.lock();
        let elapsed = self.started.elapsed();
        if self.args.json {
            let mut out = Output::stdout();
            out.json(&json!({
                "topic": self.args.topic,
                "records": self.records,
                "acked": tally.acked,
                "failed": tally.failed,
                "rejected": self.rejected,
                "bytes": self.bytes,
                "seconds": elapsed.as_secs_f64(),
            }))?;
            out.flush()?;
        } else if !self.args.quiet {
            eprintln!(
                "{} ({}) in {:.1} s: {}/s",
                counted(tally.acked, "record"),
                bytes_text(self.bytes),
                elapsed.as_secs_f64(),
                bytes_text(per_second(self.bytes, elapsed))
            );
        }
        if let Some((line, error)) = &tally.first_error {
            let what = match tally.failed {
                1 => format!("1 record was not delivered, that of line {line}"),
                failed => {
                    format!("{} were not delivered, the first of line {line}", counted(failed, "record"))
                }
            };
            return Err(delivery_error(&what, error));
        }
        if self.rejected > 0 {
            let what = match self.rejected {
                1 => "1 line was no record".to_owned(),
                rejected => format!("{} were no records", counted(rejected, "line")),
            };
            return Err(CliError::new(Exit::Failure, what));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_is_told_once_per_reason_and_not_before_it_has_lasted() {
        let topic: Arc<str> = "orders".into();
        let full = RetryNotice {
            topic: &topic,
            partition: 1,
            reason: "the disk is full (DiskFull): 512 bytes are free",
            waited_ms: RETRY_SILENT_MS,
        };
        let mut reasons = RetryReasons::default();
        assert_eq!(reasons.line(&RetryNotice { waited_ms: 20, ..full }), None);
        let line = "retrying: orders/1: the disk is full (DiskFull): 512 bytes are free";
        assert_eq!(reasons.line(&full).as_deref(), Some(line));
        let same =
            RetryNotice { partition: 2, reason: "the disk is full (DiskFull): 16 bytes are free", ..full };
        assert_eq!(reasons.line(&same), None);
        let other = RetryNotice { reason: "the partition is offline (PartitionOffline)", ..full };
        assert!(reasons.line(&other).is_some());
    }

    #[test]
    fn the_delivery_timeout_is_the_clients_unless_given() {
        #[derive(clap::Parser)]
        struct Parsed {
            #[command(flatten)]
            args: ProduceArgs,
        }
        let timeout = |given: &[&str]| {
            let words = ["produce", "orders"].iter().chain(given);
            <Parsed as clap::Parser>::try_parse_from(words).map(|parsed| parsed.args.delivery_timeout)
        };
        assert_eq!(timeout(&[]).expect("valid"), ProducerConfig::default().delivery_timeout_ms);
        assert_eq!(timeout(&["--delivery-timeout", "500ms"]).expect("valid"), 500);
        for bad in ["0s", "-1s", "10", "soon"] {
            assert!(timeout(&[&format!("--delivery-timeout={bad}")]).is_err(), "{bad}");
        }
    }
}
