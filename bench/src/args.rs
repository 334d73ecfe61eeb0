//! Arguments of `corelog bench` and its verbs.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use corelog_schemas::messages::Acks;

use crate::affinity::generator_cores;
use crate::cpu::StealProbe;
use crate::engine::{self, EngineBenchOptions};
use crate::environment::Environment;
use crate::error::BenchError;
use crate::fetch::{FetchMode, FetchOptions, fetch};
use crate::floor;
use crate::load::LoadOptions;
use crate::produce::{ProduceOptions, batch_bytes_max, produce};
use crate::repeat::repeat;
use crate::report::Report;
use crate::target::{NewTarget, Target};
use crate::units::{parse_bytes, parse_duration};

/// Arguments of `corelog bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  corelog bench produce --record-bytes 1000 --batch-records 1000
  corelog bench floor --dir /var/lib/corelog --cores 0,1")]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Measure what the disk and the loopback do without Corelog: the floor under every other figure.
    #[command(after_help = "Example:\n  corelog bench floor --dir /var/lib/corelog --cores 0,1")]
    Floor(FloorArgs),
    /// Append to the log engine alone, in this process: no sockets, no server.
    #[command(after_help = "Example:\n  corelog bench engine --dir /var/lib/corelog-bench")]
    Engine(EngineArgs),
    /// Append prebuilt batches, as fast as they are taken or at a set rate.
    #[command(after_help = PRODUCE_EXAMPLES)]
    Produce(ProduceArgs),
    /// Read a topic from its beginning or at its end.
    #[command(after_help = FETCH_EXAMPLES)]
    Fetch(FetchArgs),
}

const PRODUCE_EXAMPLES: &str = "\
Examples:
  corelog bench produce --record-bytes 1000 --batch-records 1000
  corelog bench produce --record-bytes 100 --batch-records 100 --connections 8 --flush interval
  corelog bench produce --record-bytes 1000 --batch-records 1 --rate 500 --json produce.json
  corelog bench produce --replicas 3 --record-bytes 1000 --batch-records 1 --in-flight 1
  corelog bench produce --kafka --server 127.0.0.1:9092 --replicas 3 --option min.insync.replicas=2

At a set rate latency counts from the time at which a request was due, whether or not it could be sent then.";

const FETCH_EXAMPLES: &str = "\
Examples:
  corelog bench fetch --topic big --mode cold --connections 2
  corelog bench fetch --topic busy --mode tail

A cold read goes through the whole topic and begins again; make the topic larger than the server's memory, or the
server's buffers answer.";

/// Arguments of `corelog bench engine`.
#[derive(Debug, Args)]
pub(crate) struct EngineArgs {
    /// Directory on the disk to measure; logs are written there and removed.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// Bytes of a record's value.
    #[arg(long, value_name = "SIZE", default_value = "1000", value_parser = parse_bytes)]
    record_bytes: u64,
    /// Records of a batch.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    batch_records: u32,
    /// Logs.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    partitions: u16,
    /// Appends waiting for the disk, over all logs.
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u16).range(1..))]
    in_flight: u16,
    /// Wait until synced, or until written.
    #[arg(long, value_enum, default_value = "commit")]
    flush: Flush,
    /// The time that counts.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    duration: Duration,
    /// Load before the time that counts.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    warmup: Duration,
    /// The run ends when the logs hold so much.
    #[arg(long, value_name = "SIZE", default_value = "8g", value_parser = parse_bytes)]
    bytes_max: u64,
    /// Buffer memory of the engine.
    #[arg(long, value_name = "SIZE", default_value = "256m", value_parser = parse_bytes)]
    memory_bytes: u64,
    /// Core to run on. Default: the last one that may be used.
    #[arg(long, value_name = "N")]
    core: Option<usize>,
    /// Write the report as JSON; - means standard output.
    #[arg(long = "json", id = "json_file", value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What the load generators have in common.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Any shard of the server.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9700", env = "CORELOG_SERVER")]
    server: String,
    /// Connections in all; at least one for each shard that leads a partition.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,
    /// The time that counts.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    duration: Duration,
    /// Load before the time that counts.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    warmup: Duration,
    /// Run so many times and report the median; runs that the hypervisor spoilt are made again.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..=100))]
    repeat: u16,
    /// Cores for the generator, one thread each, such as 2,3. Default: all that the server does not use.
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// Poll the sockets instead of sleeping: the generator's own wake-up is then no part of the latency.
    #[arg(long)]
    spin: bool,
    /// Processes whose CPU is counted. Default: whoever listens at the servers' addresses, on this machine.
    #[arg(long, value_name = "PIDS", value_delimiter = ',')]
    server_pid: Vec<u32>,
    /// Write the report as JSON; - means standard output.
    #[arg(long = "json", id = "json_file", value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Arguments of `corelog bench produce`.
#[derive(Debug, Args)]
pub(crate) struct ProduceArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// Topic to make for the run. Default: a new name.
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
    /// Produce to a topic that is there, as it is.
    #[arg(long, requires = "topic", conflicts_with_all = ["partitions", "replicas", "flush", "topic_options", "keep"])]
    existing: bool,
    /// Leave the topic there after the run.
    #[arg(long)]
    keep: bool,
    /// Partitions of the topic.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..))]
    partitions: u32,
    /// Replicas of each partition. Default: the server's.
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    replicas: u16,
    /// Speak Kafka's protocol: --server is a broker of Apache Kafka or of anything that takes Produce v7; --option then
    /// names Kafka's topic settings, and --flush says nothing.
    #[arg(long, conflicts_with = "existing")]
    kafka: bool,
    /// When the topic's appends are safe: after each commit's sync, or once written and synced at intervals.
    #[arg(long, value_enum, default_value = "commit")]
    flush: Flush,
    /// Another option of the topic, such as retention_bytes=1000000000; may be repeated.
    #[arg(long = "option", id = "topic_options", value_name = "KEY=VALUE", value_parser = parse_option)]
    topic_options: Vec<(String, String)>,
    /// Bytes of a record's value.
    #[arg(long, value_name = "SIZE", default_value = "1000", value_parser = parse_bytes)]
    record_bytes: u64,
    /// Records of a batch; a request carries one batch.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = clap::value_parser!(u32).range(1..))]
    batch_records: u32,
    /// Unanswered requests of a connection.
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u16).range(1..))]
    in_flight: u16,
    /// Records a second in all, in open loop. Default: as many as are taken.
    #[arg(long, value_name = "PER_SECOND", value_parser = parse_rate, conflicts_with = "max")]
    rate: Option<f64>,
    /// As many as are taken (the default).
    #[arg(long)]
    max: bool,
    /// When the server answers.
    #[arg(long, value_enum, default_value = "all")]
    acks: AcksArg,
}

/// Arguments of `corelog bench fetch`.
#[derive(Debug, Args)]
pub(crate) struct FetchArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// Topic to read.
    #[arg(long, value_name = "NAME")]
    topic: String,
    /// Where to read.
    #[arg(long, value_enum, default_value = "cold")]
    mode: FetchMode,
    /// Most bytes of one response.
    #[arg(long, value_name = "SIZE", default_value = "1m", value_parser = parse_bytes)]
    fetch_bytes: u64,
    /// How long the server waits for new records.
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = parse_duration)]
    max_wait: Duration,
    /// The server answers at once with so many bytes.
    #[arg(long, value_name = "SIZE", default_value = "1", value_parser = parse_bytes)]
    min_bytes: u64,
    /// Drop the kernel's page cache first (needs root). Corelog does not use it; other systems do.
    #[arg(long)]
    drop_caches: bool,
}

/// Values of `--flush`, as the topic option spells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Flush {
    /// Synced before it is answered.
    Commit,
    /// Answered when written, synced at intervals.
    Interval,
}

/// Values of `--acks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum AcksArg {
    /// All in-sync replicas have it.
    All,
    /// The leader has it.
    #[value(name = "1")]
    Leader,
    /// No answer at all.
    #[value(name = "0")]
    None,
}

fn parse_option(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        _ => Err(format!("{text:?} is no positive number")),
    }
}

/// Arguments of `corelog bench floor`.
#[derive(Debug, Args)]
pub(crate) struct FloorArgs {
    /// Directory on the disk to measure; a file is written there and removed.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    /// What to measure.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "write,synced-write,read,round-trip,stream"
    )]
    only: Vec<floor::Measurement>,
    /// Sizes of the device's reads and writes, multiples of 4 KiB up to 64 MiB.
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_value = "4k,64k,1m", value_parser = parse_bytes)]
    sizes: Vec<u64>,
    /// Operations that the device has at once.
    #[arg(long, value_name = "DEPTHS", value_delimiter = ',', default_value = "1,4,16")]
    depths: Vec<u32>,
    /// Sizes of the messages sent over the loopback.
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_value = "100,1k,64k,1m", value_parser = parse_bytes)]
    message_sizes: Vec<u64>,
    /// Size of the file; it is written once before anything is measured.
    #[arg(long, value_name = "SIZE", default_value = "1g", value_parser = parse_bytes)]
    file_bytes: u64,
    /// How long each measurement runs.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_duration)]
    duration: Duration,
    /// Pace round trips and synced writes at so many a second instead of one after the other: the floor of a
    /// latency measured at the same rate, since waking from idle takes time too.
    #[arg(long, value_name = "PER_SECOND", value_parser = parse_rate)]
    rate: Option<f64>,
    /// Two cores, as A,B: the receiving end of the loopback runs on A, the rest on B.
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// Write the report as JSON; - means standard output.
    #[arg(long = "json", id = "json_file", value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs a measurement, prints it, and writes it where asked.
pub fn run(args: BenchArgs) -> Result<(), BenchError> {
    match args.command {
        BenchCommand::Floor(args) => run_floor(args),
        BenchCommand::Engine(args) => run_engine(args),
        BenchCommand::Produce(args) => run_produce(args),
        BenchCommand::Fetch(args) => run_fetch(args),
    }
}

fn run_floor(args: FloorArgs) -> Result<(), BenchError> {
    let environment = Environment::detect(Some(&args.dir));
    let steal = StealProbe::start();
    let figures = floor::measure(&floor::FloorOptions {
        dir: args.dir,
        measurements: args.only,
        block_sizes: args.sizes,
        depths: args.depths,
        message_sizes: args.message_sizes,
        file_bytes: args.file_bytes,
        duration: args.duration,
        rate: args.rate,
        cores: args.cores,
    })?;
    let report = Report::new("floor", environment, steal.percent(), figures);
    report.finish(args.json.as_deref(), &report.results.table())
}

fn run_engine(args: EngineArgs) -> Result<(), BenchError> {
    let environment = Environment::detect(Some(&args.dir));
    let steal = StealProbe::start();
    let allowed = corelog_tuning::Cores::detect().allowed;
    let core = args.core.or(allowed.last().copied()).unwrap_or(0);
    corelog_tuning::cores::check_allowed(&[core], &allowed)?;
    let figures = engine::measure(&EngineBenchOptions {
        dir: args.dir,
        record_bytes: args.record_bytes as usize,
        batch_records: args.batch_records,
        partitions: usize::from(args.partitions),
        in_flight: usize::from(args.in_flight),
        is_synced: args.flush == Flush::Commit,
        warmup: args.warmup,
        duration: args.duration,
        bytes_max: args.bytes_max,
        memory_bytes: args.memory_bytes.max(ENGINE_MEMORY_BYTES_MIN) as usize,
        core,
    })?;
    let report = Report::new("engine", environment, steal.percent(), figures);
    report.finish(args.json.as_deref(), &report.results.table())
}

/// What the engine needs for its tail blocks and one large batch.
const ENGINE_MEMORY_BYTES_MIN: u64 = 16 << 20;

impl LoadArgs {
    fn options(&self, target: &Target) -> Result<LoadOptions, BenchError> {
        Ok(LoadOptions {
            cores: generator_cores(self.cores.as_deref(), &target.server_cores)?,
            warmup: self.warmup,
            duration: self.duration,
            spin: self.spin,
            server_pids: match self.server_pid.as_slice() {
                [] => target.server_pids.clone(),
                given => given.to_vec(),
            },
        })
    }
}

fn run_produce(args: ProduceArgs) -> Result<(), BenchError> {
    let environment = Environment::detect(None);
    let new = (!args.existing).then(|| NewTarget {
        partitions: args.partitions,
        replicas: args.replicas,
        options: if args.kafka { args.topic_options.clone() } else { new_topic_options(&args) },
        keep: args.keep,
    });
    let topic = args.topic.clone().unwrap_or_else(|| format!("bench-{}", std::process::id()));
    let options = ProduceOptions {
        record_bytes: args.record_bytes as usize,
        batch_records: args.batch_records,
        connections: usize::from(args.load.connections),
        in_flight: usize::from(args.in_flight),
        rate: args.rate,
        acks: args.acks.acks(),
    };
    let results = repeat(usize::from(args.load.repeat), args.rate.is_some(), || {
        // A new topic for each run, so that none inherits the logs of another.
        let target = match &new {
            Some(new) if args.kafka => Target::open_kafka(&args.load.server, &topic, new)?,
            _ => Target::open(&args.load.server, &topic, new.as_ref())?,
        };
        produce(&target, &options, &args.load.options(&target)?)
    })?;
    let report = Report::new("produce", environment, results.steal_percent, results);
    report.finish(args.load.json.as_deref(), &report.results.table("record values"))
}

/// Options of the topic that is made for a run: those asked for, and a batch limit that lets the run's batches in.
fn new_topic_options(args: &ProduceArgs) -> Vec<(String, String)> {
    let mut options = vec![("flush".to_owned(), args.flush.name().to_owned())];
    let batch_bytes = batch_bytes_max(args.record_bytes, args.batch_records);
    let is_asked_for = args.topic_options.iter().any(|(key, _)| key == BATCH_LIMIT);
    if batch_bytes > BATCH_BYTES_ALWAYS_TAKEN && !is_asked_for {
        options.push((BATCH_LIMIT.to_owned(), batch_bytes.to_string()));
    }
    options.extend(args.topic_options.iter().cloned());
    options
}

/// The topic's option that limits batches.
const BATCH_LIMIT: &str = "batch_bytes_max";
/// Below the default of that option.
const BATCH_BYTES_ALWAYS_TAKEN: u64 = 1_000_000;

fn run_fetch(args: FetchArgs) -> Result<(), BenchError> {
    let environment = Environment::detect(None);
    let small = |name: &str, bytes: u64| {
        u32::try_from(bytes).map_err(|_| BenchError::Usage(format!("--{name} {bytes} is above 4 GiB")))
    };
    let options = FetchOptions {
        mode: args.mode,
        fetch_bytes: small("fetch-bytes", args.fetch_bytes)?,
        connections: usize::from(args.load.connections),
        max_wait: args.max_wait,
        min_bytes: small("min-bytes", args.min_bytes)?,
    };
    let results = repeat(usize::from(args.load.repeat), false, || {
        let target = Target::open(&args.load.server, &args.topic, None)?;
        if args.drop_caches {
            std::fs::write("/proc/sys/vm/drop_caches", "1")
                .map_err(BenchError::io("dropping the page cache"))?;
        }
        fetch(&target, &options, &args.load.options(&target)?)
    })?;
    let report = Report::new("fetch", environment, results.steal_percent, results);
    report.finish(args.load.json.as_deref(), &report.results.table("record batches"))
}

impl Flush {
    fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Interval => "interval",
        }
    }
}

impl AcksArg {
    fn acks(self) -> Acks {
        match self {
            Self::All => Acks::All,
            Self::Leader => Acks::Leader,
            Self::None => Acks::None,
        }
    }
}
