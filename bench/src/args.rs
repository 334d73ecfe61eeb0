//! Arguments of `corelog bench` and its verbs.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::cpu::StealProbe;
use crate::environment::Environment;
use crate::error::BenchError;
use crate::floor;
use crate::report::Report;
use crate::units::{parse_bytes, parse_duration};

/// Arguments of `corelog bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Measure what the disk and the loopback do without Corelog: the floor under every other figure.
    Floor(FloorArgs),
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
    #[arg(long, value_name = "PER_SECOND")]
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
    if let Some(path) = &args.json {
        report.write_json(path)?;
    }
    if args.json.as_deref() != Some(std::path::Path::new("-")) {
        report.print(&report.results.table());
    }
    Ok(())
}
