//! `corelog consume`: prints the records of a topic.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use corelog_client::admin::Admin;
use corelog_client::{
    ConsumeError, Consumer, ConsumerConfig, ConsumerRecord, ErrorCode, OutOfRange, PollLimits, RequestError,
};
use corelog_schemas::messages::OffsetSpec;

use super::connect::{ServerArgs, block_on, consume_error, request_error};
use super::output::{Output, Progress, bytes_text, counted, per_second};
use super::when::From;
use super::{CliError, CliResult, Exit, record_json};

/// How records are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum OutputFormat {
    /// The value, then the record separator.
    Value,
    /// Key, separator, value, then the record separator.
    KeyValue,
    /// One JSON object a line, as `produce --format json` reads it.
    Json,
    /// The bytes of the value alone; give --record-separator to part them.
    Raw,
}

/// `corelog consume ...`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  corelog consume orders                             all there is now
  corelog consume orders --follow --from latest      what comes from now on
  corelog consume orders --partition 3 --from 1000 --count 10 --format json
  corelog consume orders --from -10m                 the last ten minutes
  corelog consume orders --from @2026-11-24T09:30:00Z --format key-value

Records of one partition come in their order; partitions are mixed. A partition that is offline is left out
with a warning, and the exit code is then 1.")]
pub struct ConsumeArgs {
    /// The topic.
    topic: String,
    /// Only these partitions.
    #[arg(long, short, value_name = "N,...", value_delimiter = ',')]
    partition: Vec<u32>,
    /// Where to start: earliest, latest, an offset, @TIME, or -10m.
    #[arg(long, value_name = "WHERE", default_value = "earliest", allow_hyphen_values = true)]
    from: From,
    /// Stop before this offset, in every partition.
    #[arg(long, value_name = "OFFSET")]
    to: Option<u64>,
    /// Stop after so many records.
    #[arg(long, short = 'n', value_name = "N")]
    count: Option<u64>,
    /// Wait for more at the end, until Ctrl-C; --from latest implies it.
    #[arg(long, short)]
    follow: bool,
    /// How records are printed.
    #[arg(long, value_enum, default_value = "value")]
    format: OutputFormat,
    /// The same as --format json.
    #[arg(long)]
    json: bool,
    /// Between key and value; \\t is a tab.
    #[arg(long, value_name = "TEXT", default_value = "\\t", value_parser = super::separator)]
    separator: String,
    /// After each record; a line end if not given, nothing with --format raw.
    #[arg(long, value_name = "TEXT", value_parser = super::separator)]
    record_separator: Option<String>,
    /// If the start is outside the log, go on with the first record that is there instead of failing.
    #[arg(long)]
    reset: bool,
    /// No progress and no summary.
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    server: ServerArgs,
}

/// Prints records until the end that the flags name.
pub fn run(args: ConsumeArgs) -> CliResult {
    check(&args)?;
    block_on(async move {
        let client = args.server.connect("consume").await?;
        let admin = client.admin();
        let mut partitions = partitions(&admin, &args).await?;
        let (ends, offline) = ends(&admin, &args, &partitions).await?;
        partitions.retain(|partition| !offline.contains(partition));
        let out_of_range = if args.reset { OutOfRange::Earliest } else { OutOfRange::Fail };
        let mut consumer = client.consumer(ConsumerConfig { out_of_range, ..ConsumerConfig::default() });
        let start = args.from.start(now_ms());
        let starts: Vec<_> = partitions.iter().map(|&partition| (partition, start)).collect();
        consumer.assign(&args.topic, &starts).await.map_err(|error| consume_error(&error))?;
        let mut printing = Printing::new(args, ends);
        let printed = printing.run(&mut consumer).await;
        let flushed = printing.out.flush();
        printed.and(flushed)?;
        printing.summary();
        left_out(&printing.args.topic, &offline)
    })
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

async fn partitions(admin: &Admin, args: &ConsumeArgs) -> CliResult<Vec<u32>> {
    if !args.partition.is_empty() {
        return Ok(args.partition.clone());
    }
    let count = admin.partition_count(&args.topic).await;
    let count = count.map_err(|error| request_error(&format!("cannot read topic {}", args.topic), &error))?;
    Ok((0..count).collect())
}

/// Where each partition ends: at `--to`, at what is there now, or never; and the partitions that are offline.
async fn ends(
    admin: &Admin,
    args: &ConsumeArgs,
    partitions: &[u32],
) -> CliResult<(BTreeMap<u32, u64>, Vec<u32>)> {
    let mut ends: BTreeMap<u32, u64> = BTreeMap::new();
    if let Some(to) = args.to {
        ends.extend(partitions.iter().map(|&partition| (partition, to)));
    }
    if args.follow || args.from == From::Latest {
        return Ok((ends, Vec::new()));
    }
    let wanted: Vec<(u32, OffsetSpec)> = partitions.iter().map(|&p| (p, OffsetSpec::Latest)).collect();
    let found = admin.list_offsets(&args.topic, &wanted).await;
    let found = online(&args.topic, partitions.iter().copied().zip(found))?;
    for (partition, found) in found.online {
        let what = format!("cannot read {}/{partition}", args.topic);
        let latest = found.offset.unwrap_or(0);
        if let From::Offset(offset) = args.from
            && offset > latest
        {
            let text = format!("{what} from offset {offset}: its end is offset {latest}");
            return Err(CliError::new(Exit::NotFound, text)
                .advise("--from earliest starts at the first record, --from latest waits for the next"));
        }
        ends.entry(partition).and_modify(|end| *end = latest.min(*end)).or_insert(latest);
    }
    ends.retain(|partition, _| !found.offline.contains(partition));
    Ok((ends, found.offline))
}

/// Whether a partition alone is out of reach, so that the others can be read all the same.
fn is_offline(error: &RequestError) -> bool {
    matches!(error.code(), Some(ErrorCode::PartitionOffline | ErrorCode::StorageFailed))
}

/// What was found out about the partitions, and those that are offline.
#[derive(Debug)]
struct Online<T> {
    online: Vec<(u32, T)>,
    offline: Vec<u32>,
}

/// Parts the partitions that are offline from the others, with a warning for each.
///
/// Errors: a failure of another kind, or all of them are offline.
fn online<T>(
    topic: &str,
    found: impl Iterator<Item = (u32, Result<T, RequestError>)>,
) -> CliResult<Online<T>> {
    let mut online = Vec::new();
    let mut warnings = Vec::new();
    for (partition, found) in found {
        match found {
            Ok(found) => online.push((partition, found)),
            Err(error) => {
                let warning = request_error(&format!("cannot read {topic}/{partition}"), &error);
                if !is_offline(&error) {
                    return Err(warning);
                }
                warnings.push((partition, warning));
            }
        }
    }
    if online.is_empty() && !warnings.is_empty() {
        return Err(warnings.swap_remove(0).1);
    }
    let mut offline = Vec::new();
    for (partition, warning) in warnings {
        warning.report();
        offline.push(partition);
    }
    Ok(Online { online, offline })
}

/// The failure that the command ends with if partitions were left out.
fn left_out(topic: &str, offline: &[u32]) -> CliResult {
    if offline.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = offline.iter().map(|partition| format!("{topic}/{partition}")).collect();
    let count = counted(names.len() as u64, "partition");
    Err(CliError::new(Exit::Failure, format!("{count} left out: {}", names.join(", "))))
}

struct Printing {
    args: ConsumeArgs,
    /// The offset before which each partition stops; without one it goes on for ever.
    ends: BTreeMap<u32, u64>,
    out: Output,
    progress: Progress,
    started: Instant,
    records: u64,
    bytes: u64,
}

impl Printing {
    fn new(mut args: ConsumeArgs, ends: BTreeMap<u32, u64>) -> Self {
        if args.json {
            args.format = OutputFormat::Json;
        }
        // On a terminal the records themselves are the progress.
        let shown = !args.quiet && !std::io::IsTerminal::is_terminal(&std::io::stdout());
        Self {
            progress: Progress::new(shown),
            out: Output::stdout(),
            started: Instant::now(),
            records: 0,
            bytes: 0,
            ends,
            args,
        }
    }

    async fn run(&mut self, consumer: &mut Consumer) -> CliResult {
        loop {
            if self.is_over(consumer)? {
                return Ok(());
            }
            let mut limits = PollLimits::default();
            if let Some(count) = self.args.count {
                let left = usize::try_from(count - self.records).unwrap_or(usize::MAX);
                limits.records_max = limits.records_max.min(left);
            }
            let records = match consumer.poll(limits).await {
                Ok(records) => records,
                // Who follows has no end to miss: the others go on, and this one when it is back.
                Err(ConsumeError::Request(error)) if self.ends.is_empty() && is_offline(&error) => {
                    self.progress.clear();
                    request_error("still waiting for a partition", &error).report();
                    continue;
                }
                // Reading goes on behind what is gone; the person has to know what was.
                Err(error @ ConsumeError::Truncated { .. }) => {
                    self.progress.clear();
                    consume_error(&error).report();
                    continue;
                }
                Err(error) => return Err(consume_error(&error)),
            };
            for record in &records {
                self.print(record)?;
            }
            // Who follows wants to see it now.
            self.out.flush()?;
            self.show();
        }
    }

    /// Whether every partition has reached its end, or the count is full. Partitions at their end are let go.
    fn is_over(&mut self, consumer: &mut Consumer) -> CliResult<bool> {
        if self.args.count == Some(self.records) {
            return Ok(true);
        }
        let mut over = Vec::new();
        for (&partition, &end) in &self.ends {
            let position = consumer.position(&self.args.topic, partition);
            let position = position.map_err(|error| consume_error(&error))?;
            if position.is_some_and(|position| position.0 >= end) {
                consumer.unassign(&self.args.topic, partition).map_err(|error| consume_error(&error))?;
                over.push(partition);
            }
        }
        let had_ends = !self.ends.is_empty();
        self.ends.retain(|partition, _| !over.contains(partition));
        Ok(had_ends && self.ends.is_empty())
    }

    fn print(&mut self, record: &ConsumerRecord) -> CliResult {
        if self.ends.get(&record.partition).is_some_and(|&end| record.offset.0 >= end) {
            return Ok(());
        }
        self.records += 1;
        self.bytes += record.payload_bytes() as u64;
        let value = record.value.as_deref().unwrap_or_default();
        let separator = self.args.record_separator.as_deref();
        match self.args.format {
            OutputFormat::Json => {
                self.out.bytes(record_json::to_json(record).to_string().as_bytes())?;
                return self.out.bytes(b"\n");
            }
            OutputFormat::Raw => {
                self.out.bytes(value)?;
                return self.out.bytes(separator.unwrap_or("").as_bytes());
            }
            OutputFormat::Value => self.out.bytes(value)?,
            OutputFormat::KeyValue => {
                self.out.bytes(record.key.as_deref().unwrap_or_default())?;
                self.out.bytes(self.args.separator.as_bytes())?;
                self.out.bytes(value)?;
            }
        }
        self.out.bytes(separator.unwrap_or("\n").as_bytes())
    }

    fn show(&mut self) {
        let (records, bytes, elapsed) = (self.records, self.bytes, self.started.elapsed());
        self.progress.tick(|| {
            let rate = bytes_text(per_second(bytes, elapsed));
            format!("{}, {}, {rate}/s", counted(records, "record"), bytes_text(bytes))
        });
    }

    fn summary(&mut self) {
        self.progress.clear();
        if !self.args.quiet {
            let elapsed = self.started.elapsed().as_secs_f64();
            eprintln!("{} ({}) in {elapsed:.1} s", counted(self.records, "record"), bytes_text(self.bytes));
        }
    }
}

/// Checks what clap cannot.
fn check(args: &ConsumeArgs) -> CliResult {
    if args.from == From::Latest && args.to.is_some() {
        return Err(CliError::usage(
            "--from latest and --to cannot both be given: there is nothing in between",
        ));
    }
    if let (From::Offset(from), Some(to)) = (args.from, args.to)
        && from >= to
    {
        return Err(CliError::usage(format!("--to {to} must be above --from {from}")));
    }
    let mut seen = std::collections::BTreeSet::new();
    match args.partition.iter().find(|partition| !seen.insert(**partition)) {
        Some(twice) => Err(CliError::usage(format!("--partition names {twice} twice"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use corelog_client::Failure;

    use super::*;

    fn refused(code: ErrorCode) -> Result<u64, RequestError> {
        Err(Failure::from(code).into())
    }

    #[test]
    fn offline_partitions_are_left_out_and_end_in_a_failure() {
        let found = [(0, Ok(7)), (1, refused(ErrorCode::PartitionOffline)), (2, Ok(9))];
        let found = online("orders", found.into_iter()).expect("two can be read");
        assert_eq!((found.online, &found.offline[..]), (vec![(0, 7), (2, 9)], &[1][..]));
        let CliError::Failed { exit, cause, .. } = left_out("orders", &found.offline).expect_err("left out")
        else {
            panic!("it is a failure");
        };
        assert_eq!((exit, cause.to_string().as_str()), (Exit::Failure, "1 partition left out: orders/1"));
        assert!(left_out("orders", &[]).is_ok());
    }

    #[test]
    fn other_refusals_and_a_topic_that_is_all_offline_end_at_once() {
        let mixed = [(0, Ok(7)), (1, refused(ErrorCode::UnknownTopicOrPartition))];
        assert_eq!(online("t", mixed.into_iter()).expect_err("not offline").code(), Exit::NotFound as u8);
        let all = [(0, refused(ErrorCode::StorageFailed)), (1, refused(ErrorCode::PartitionOffline))];
        assert_eq!(online("t", all.into_iter()).expect_err("all offline").code(), Exit::Failure as u8);
    }
}
