//! `corelog consume`: prints the records of a topic.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use corelog_client::admin::Admin;
use corelog_client::{Consumer, ConsumerConfig, ConsumerRecord, OutOfRange, PollLimits};
use corelog_schemas::messages::OffsetSpec;

use super::connect::{ServerArgs, block_on, consume_error, request_error};
use super::output::{Output, Progress, bytes_text, count_text, per_second};
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

Records of one partition come in their order; partitions are mixed.")]
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
        let partitions = partitions(&admin, &args).await?;
        let ends = ends(&admin, &args, &partitions).await?;
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
        Ok(())
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

/// Where each partition ends: at `--to`, at what is there now, or never.
async fn ends(admin: &Admin, args: &ConsumeArgs, partitions: &[u32]) -> CliResult<BTreeMap<u32, u64>> {
    let mut ends: BTreeMap<u32, u64> = BTreeMap::new();
    if let Some(to) = args.to {
        ends.extend(partitions.iter().map(|&partition| (partition, to)));
    }
    if args.follow || args.from == From::Latest {
        return Ok(ends);
    }
    let wanted: Vec<(u32, OffsetSpec)> = partitions.iter().map(|&p| (p, OffsetSpec::Latest)).collect();
    for (&partition, found) in partitions.iter().zip(admin.list_offsets(&args.topic, &wanted).await) {
        let what = format!("cannot read {}/{partition}", args.topic);
        let found = found.map_err(|error| request_error(&what, &error))?;
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
    Ok(ends)
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
            format!("{} records, {}, {rate}/s", count_text(records), bytes_text(bytes))
        });
    }

    fn summary(&mut self) {
        self.progress.clear();
        if !self.args.quiet {
            let elapsed = self.started.elapsed().as_secs_f64();
            eprintln!("{} records ({}) in {elapsed:.1} s", count_text(self.records), bytes_text(self.bytes));
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
