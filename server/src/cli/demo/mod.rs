//! `corelog demo`: watches a real node take real data, die, and come back with all of it.
//!
//! Owns: the story. A node of its own in a temporary directory (`node`), a real text (`text`), the load and its
//! measurements (`load`), the crash (`crash`). Leaves nothing behind: no process, no file.

mod crash;
mod load;
mod node;
mod text;

use std::path::{Path, PathBuf};
use std::time::Duration;

use corelog_client::Compression;
use corelog_schemas::messages::NewTopic;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use self::crash::CrashReport;
use self::load::Streamed;
use self::node::{Node, Place};
use self::text::Text;
use super::connect::{block_on, refused, request_error};
use super::output::{Output, bytes_text, count_text, counted, per_second};
use super::{CliError, CliResult, Exit};

/// Rate and length of the latency measurement.
const LATENCY_RATE: u32 = 500;
const LATENCY_DURATION: Duration = Duration::from_secs(3);

/// `corelog demo ...`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  corelog demo
  corelog demo --file /usr/share/dict/words --partitions 2 --compression lz4")]
pub struct DemoArgs {
    /// The text to stream; the package index of this machine, or another large text, if not given.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Most of the text that is used.
    #[arg(long, value_name = "MB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    megabytes: u64,
    /// Partitions of the topics.
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1024))]
    partitions: u32,
    /// Codec of the batches: none, lz4 or zstd.
    #[arg(long, value_name = "CODEC", default_value = "none")]
    compression: Compression,
    /// Data cores of the node, as in `corelog serve`.
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// Where to make the temporary directory; on a real disk.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Print JSON at the end instead of text.
    #[arg(long)]
    json: bool,
}

/// Runs the demo; the node ends with it, whatever happens.
pub fn run(args: DemoArgs) -> CliResult {
    let text = Text::find(args.file.as_deref(), args.megabytes * 1_000_000);
    let text = text.map_err(|error| {
        let what = args.file.as_ref().map_or_else(|| "a text".to_owned(), |path| path.display().to_string());
        CliError::usage(format!("cannot read {what}: {error}")).advise("--file names any large text")
    })?;
    let parent = args.dir.clone().unwrap_or_else(disk_backed_temp);
    let dir = tempfile::Builder::new().prefix("corelog-demo-").tempdir_in(&parent);
    let dir = dir.map_err(|error| {
        CliError::usage(format!("cannot make a directory in {}: {error}", parent.display()))
            .advise("--dir names another place, on a real disk")
    })?;
    let result = block_on(tell(&args, &text, dir.path()));
    if let Err(error) = dir.close() {
        eprintln!("corelog: cannot remove the temporary directory: {error}");
    }
    result
}

/// `/var/tmp` is on a disk where `/tmp` may be memory.
fn disk_backed_temp() -> PathBuf {
    let var_tmp = Path::new("/var/tmp");
    if std::env::var_os("TMPDIR").is_none() && var_tmp.is_dir() {
        var_tmp.to_owned()
    } else {
        std::env::temp_dir()
    }
}

struct Results {
    written: Streamed,
    read: Streamed,
    latency: Histogram<u64>,
    crash: CrashReport,
}

async fn tell(args: &DemoArgs, text: &Text, dir: &Path) -> CliResult {
    let mut story = Story { out: Output::stdout(), silent: args.json };
    story.step(1, "start a node on free ports of 127.0.0.1, in a temporary directory")?;
    let node = Place::choose(dir, args.cores.clone())?.start().await?;
    let shards = node.client("start").await?.admin().describe_node().await;
    let shards = shards.map_err(|error| request_error("cannot describe the node", &error))?.shards.len();
    story.detail(&format!(
        "process {}, {}, {}",
        node.pid(),
        node.address(),
        counted(shards as u64, "shard")
    ))?;

    story.step(2, &format!("create topics of {}", counted(args.partitions.into(), "partition")))?;
    create_topics(&node, args.partitions).await?;

    let size = bytes_text(text.bytes());
    story
        .step(3, &format!("stream {size} of {}, keyed, every record acked when synced", text.description))?;
    let written = load::stream(&node.client("write").await?, "text", text, args.compression).await?;
    story.detail(&rate_text(&written))?;

    story.step(4, "read all of it back through a second connection, compare checksums per key")?;
    let read = load::read_back(&node.client("read").await?, "text", &written).await?;
    load::compare(&written, &read)?;
    let keys = count_text(written.sums.len() as u64);
    story.detail(&format!("{}; {keys} keys, each complete and in order", rate_text(&read)))?;

    story.step(5, &format!("measure latency: {LATENCY_RATE} records a second, each acked when synced"))?;
    let client = node.client("latency").await?;
    let latency = load::latency(&client, "latency", text, LATENCY_RATE, LATENCY_DURATION).await?;
    story.detail(&latency_text(&latency))?;

    story.step(6, "kill the node with SIGKILL in mid-load, start it again, look for every acked record")?;
    let (node, crash) = crash::run(node, "crash", args.partitions).await?;
    story.detail(&crash_text(&crash))?;

    story.step(7, "stop the node and clean up")?;
    node.stop().await?;
    let results = Results { written, read, latency, crash };
    if args.json {
        let mut out = Output::stdout();
        out.json(&results_json(&results, text))?;
        return out.flush();
    }
    story.end()
}

async fn create_topics(node: &Node, partitions: u32) -> CliResult {
    let topic = |name: &str| NewTopic {
        name: name.to_owned(),
        partitions,
        replication_factor: 1,
        options: Vec::new(),
    };
    let topics = ["text", "latency", "crash"].map(topic).to_vec();
    let results = node.client("create").await?.admin().create_topics(topics, false).await;
    for result in results.map_err(|error| request_error("cannot create topics", &error))? {
        result.map_err(|failure| refused("cannot create a topic", &failure))?;
    }
    Ok(())
}

fn rate_text(streamed: &Streamed) -> String {
    format!(
        "{}, {} in {:.2} s: {}/s, {} records/s",
        counted(streamed.records, "record"),
        bytes_text(streamed.bytes),
        streamed.elapsed.as_secs_f64(),
        bytes_text(per_second(streamed.bytes, streamed.elapsed)),
        count_text(per_second(streamed.records, streamed.elapsed))
    )
}

fn percentiles(histogram: &Histogram<u64>) -> [(&'static str, f64); 5] {
    let ms = |us: u64| us as f64 / 1_000.0;
    [
        ("p50", ms(histogram.value_at_quantile(0.5))),
        ("p90", ms(histogram.value_at_quantile(0.9))),
        ("p99", ms(histogram.value_at_quantile(0.99))),
        ("p99.9", ms(histogram.value_at_quantile(0.999))),
        ("max", ms(histogram.max())),
    ]
}

fn latency_text(histogram: &Histogram<u64>) -> String {
    let each = percentiles(histogram).map(|(name, ms)| format!("{name} {ms:.2} ms"));
    format!("from the time a record was due to its ack: {}", each.join("  "))
}

fn crash_text(crash: &CrashReport) -> String {
    format!(
        "{} acked before the kill, serving again after {:.0} ms, {} acked in all: every one is there, at its \
         offset, with its bytes ({} more were written but their acks were lost)",
        count_text(crash.acked_before),
        crash.restart.as_secs_f64() * 1_000.0,
        count_text(crash.acked_in_all),
        count_text(crash.copies)
    )
}

fn results_json(results: &Results, text: &Text) -> Value {
    let streamed = |s: &Streamed| {
        json!({
            "records": s.records, "bytes": s.bytes, "seconds": s.elapsed.as_secs_f64(),
            "bytes_per_second": per_second(s.bytes, s.elapsed),
        })
    };
    let latency: serde_json::Map<String, Value> =
        percentiles(&results.latency).into_iter().map(|(name, ms)| (name.to_owned(), json!(ms))).collect();
    json!({
        "text": text.description,
        "keys": results.written.sums.len(),
        "write": streamed(&results.written),
        "read": streamed(&results.read),
        "latency_ms": latency,
        "crash": {
            "acked_before": results.crash.acked_before,
            "acked": results.crash.acked_in_all,
            "readable": results.crash.readable,
            "lost": 0,
            "restart_ms": results.crash.restart.as_secs_f64() * 1_000.0,
        },
    })
}

/// Prints the story as it goes.
struct Story {
    out: Output,
    silent: bool,
}

impl Story {
    fn step(&mut self, number: u32, text: &str) -> CliResult {
        self.line(&format!("[{number}/7] {text}"))
    }

    fn detail(&mut self, text: &str) -> CliResult {
        self.line(&format!("      {text}"))
    }

    fn line(&mut self, text: &str) -> CliResult {
        if self.silent {
            return Ok(());
        }
        self.out.line(text)?;
        self.out.flush()
    }

    fn end(&mut self) -> CliResult {
        let binary = std::env::current_exe()
            .map_err(|error| CliError::new(Exit::Failure, format!("cannot find my own binary: {error}")))?;
        let binary = shown(&binary);
        self.line(&format!(
            "\nAll of it held. What to type next:\n\n  \
             {binary} serve --data ./corelog-data              # a node that stays\n  \
             {binary} topic create greetings --partitions 4    # in another terminal\n  \
             echo hello | {binary} produce greetings\n  \
             {binary} consume greetings --follow\n  \
             {binary} bench produce --help"
        ))
    }
}

/// The binary as a person would type it from here.
fn shown(binary: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    binary.strip_prefix(&here).unwrap_or(binary).display().to_string()
}
