//! What disk and loopback do without Corelog, at the sizes and depths that Corelog uses.
//!
//! Owns: the list of measurements and their table. A figure of the server without the floor beside it cannot be
//! judged: nothing on this machine is faster than this.

mod disk;
mod loopback;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub use disk::{DiskFloor, DiskOperation, DiskTarget};
pub use loopback::{RoundTripFloor, StreamFloor, round_trip, stream};

use crate::affinity::generator_cores;
use crate::error::{BenchError, BenchResult};
use crate::latency::Percentiles;
use crate::units::show_bytes;

/// One kind of floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Measurement {
    /// Direct writes onto a file written before.
    Write,
    /// The same, each followed by fdatasync.
    SyncedWrite,
    /// One synced write on each of three files at the same time, until the slowest is done: the floor of a produce
    /// with three replicas on this machine.
    ReplicatedWrite,
    /// Direct reads.
    Read,
    /// A message over the loopback and back.
    RoundTrip,
    /// Bytes over the loopback, one way.
    Stream,
}

/// What to measure, and how.
#[derive(Clone, Debug)]
pub struct FloorOptions {
    /// Directory on the disk in question.
    pub dir: PathBuf,
    /// The kinds.
    pub measurements: Vec<Measurement>,
    /// Bytes of one disk operation; multiples of 4,096.
    pub block_sizes: Vec<u64>,
    /// Disk operations in flight.
    pub depths: Vec<u32>,
    /// Bytes of one message.
    pub message_sizes: Vec<u64>,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Time for each combination.
    pub duration: Duration,
    /// Round trips and synced writes a second, instead of as many as go.
    pub rate: Option<f64>,
    /// Cores of the receiving and the sending end, as a list.
    pub cores: Option<String>,
}

/// All floors measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Floors {
    /// Disk, by operation, size and depth.
    pub disk: Vec<DiskFloor>,
    /// Loopback there and back, by size.
    pub round_trip: Vec<RoundTripFloor>,
    /// Loopback one way, by size.
    pub stream: Vec<StreamFloor>,
}

/// Files of [`Measurement::ReplicatedWrite`].
const REPLICAS: usize = 3;

/// Measures everything asked for, one after the other.
pub fn measure(options: &FloorOptions) -> BenchResult<Floors> {
    let (receiver, sender) = two_cores(options.cores.as_deref())?;
    // In a thread of its own, since pinning lasts as long as the thread.
    let disk = std::thread::scope(|scope| {
        scope.spawn(|| measure_disk(options, sender)).join().expect("a thread of ours does not panic")
    })?;
    let mut floors = Floors { disk, ..Floors::default() };
    for &message_bytes in &options.message_sizes {
        if options.measurements.contains(&Measurement::RoundTrip) {
            floors.round_trip.push(round_trip(
                message_bytes,
                options.rate,
                options.duration,
                receiver,
                sender,
            )?);
        }
        if options.measurements.contains(&Measurement::Stream) {
            floors.stream.push(stream(message_bytes, options.duration, receiver, sender)?);
        }
    }
    Ok(floors)
}

fn measure_disk(options: &FloorOptions, core: usize) -> BenchResult<Vec<DiskFloor>> {
    let operations: Vec<DiskOperation> =
        options.measurements.iter().filter_map(|m| m.disk_operation()).collect();
    let is_replicated = options.measurements.contains(&Measurement::ReplicatedWrite);
    if operations.is_empty() && !is_replicated {
        return Ok(Vec::new());
    }
    crate::affinity::pin_to(core)?;
    let target = DiskTarget::create(&options.dir, options.file_bytes)?;
    let mut floors = Vec::new();
    if is_replicated {
        let others: Vec<DiskTarget> = (1..REPLICAS)
            .map(|_| DiskTarget::create(&options.dir, options.file_bytes))
            .collect::<BenchResult<_>>()?;
        let targets: Vec<&DiskTarget> = std::iter::once(&target).chain(&others).collect();
        for &block_bytes in &options.block_sizes {
            floors.push(DiskTarget::measure_together(&targets, block_bytes, options.rate, options.duration)?);
        }
    }
    for operation in operations {
        for &block_bytes in &options.block_sizes {
            for &depth in &options.depths {
                let rate = options.rate.filter(|_| operation == DiskOperation::SyncedWrite && depth == 1);
                floors.push(target.measure(operation, block_bytes, depth, rate, options.duration)?);
            }
        }
    }
    Ok(floors)
}

fn two_cores(list: Option<&str>) -> BenchResult<(usize, usize)> {
    match (list.is_some(), generator_cores(list, &[])?.as_slice()) {
        (true, [receiver, sender]) => Ok((*receiver, *sender)),
        (true, cores) => {
            Err(BenchError::Usage(format!("--cores names {} core(s); give two, as A,B", cores.len())))
        }
        (false, [only]) => Ok((*only, *only)),
        (false, cores) => Ok((cores[0], cores[1])),
    }
}

impl Measurement {
    fn disk_operation(self) -> Option<DiskOperation> {
        match self {
            Self::Write => Some(DiskOperation::Write),
            Self::SyncedWrite => Some(DiskOperation::SyncedWrite),
            Self::Read => Some(DiskOperation::Read),
            Self::ReplicatedWrite | Self::RoundTrip | Self::Stream => None,
        }
    }
}

impl Floors {
    /// Tables for people; latencies in milliseconds, MB of 1,000,000 bytes.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let mut line = |args: std::fmt::Arguments<'_>| {
            text.write_fmt(args).expect("a string takes all");
            text.push('\n');
        };
        if !self.disk.is_empty() {
            line(format_args!(
                "disk (direct I/O)    size depth      MB/s     ops/s {} ms",
                Percentiles::HEAD
            ));
        }
        for disk in &self.disk {
            line(format_args!(
                "{:<16} {:>8} {:>5} {:>9.1} {:>9.0} {}",
                disk.operation.name(),
                show_bytes(disk.block_bytes),
                disk.depth,
                disk.megabytes_per_second,
                disk.operations_per_second,
                disk.latency.row()
            ));
        }
        if !self.round_trip.is_empty() {
            line(format_args!(
                "\nloopback             size                     trips/s {} ms",
                Percentiles::HEAD
            ));
        }
        for trip in &self.round_trip {
            line(format_args!(
                "round trip       {:>8}                   {:>9.0} {}",
                show_bytes(trip.message_bytes),
                trip.trips_per_second,
                trip.latency.row()
            ));
        }
        if !self.stream.is_empty() {
            line(format_args!(
                "\nloopback one way     size      MB/s   MB/CPU-s receiving   MB/CPU-s sending"
            ));
        }
        for stream in &self.stream {
            line(format_args!(
                "stream           {:>8} {:>9.1} {:>20.1} {:>18.1}",
                show_bytes(stream.message_bytes),
                stream.megabytes_per_second,
                stream.megabytes_per_receiver_cpu_second,
                stream.megabytes_per_sender_cpu_second
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dir: &std::path::Path) -> FloorOptions {
        FloorOptions {
            dir: dir.to_owned(),
            measurements: vec![
                Measurement::Write,
                Measurement::SyncedWrite,
                Measurement::ReplicatedWrite,
                Measurement::Read,
                Measurement::RoundTrip,
                Measurement::Stream,
            ],
            block_sizes: vec![4096, 65536],
            depths: vec![1, 2],
            message_sizes: vec![100],
            file_bytes: 4 << 20,
            duration: Duration::from_millis(30),
            rate: None,
            cores: None,
        }
    }

    #[test]
    fn every_combination_is_measured_and_nothing_is_left_behind() {
        let dir = crate::tests::dir_on_disk();
        let floors = measure(&options(dir.path())).expect("this disk has direct I/O");
        assert_eq!(floors.disk.len(), 3 * 2 * 2 + 2);
        for disk in &floors.disk {
            assert!(disk.operations > 0 && disk.latency.count == disk.operations, "{disk:?}");
        }
        assert!(floors.round_trip[0].latency.count > 0);
        assert!(floors.stream[0].megabytes_per_second > 0.0);
        assert_eq!(std::fs::read_dir(dir.path()).expect("it is there").count(), 0);
        let table = floors.table();
        assert!(table.contains("synced write") && table.contains("round trip"), "{table}");
    }

    #[test]
    fn a_paced_floor_keeps_its_pace() {
        let dir = crate::tests::dir_on_disk();
        let options = FloorOptions {
            measurements: vec![Measurement::SyncedWrite, Measurement::RoundTrip],
            block_sizes: vec![4096],
            depths: vec![1],
            rate: Some(100.0),
            duration: Duration::from_millis(200),
            ..options(dir.path())
        };
        let floors = measure(&options).expect("this disk has direct I/O");
        assert!(floors.round_trip[0].latency.count <= 21, "{:?}", floors.round_trip);
        assert!(floors.disk[0].operations <= 21, "{:?}", floors.disk);
    }

    #[test]
    fn senseless_options_are_refused() {
        let dir = crate::tests::dir_on_disk();
        let refused = |change: fn(&mut FloorOptions)| {
            let mut options = options(dir.path());
            change(&mut options);
            measure(&options).expect_err("it makes no sense").to_string()
        };
        assert!(refused(|o| o.block_sizes = vec![1000]).contains("4096"));
        assert!(refused(|o| o.depths = vec![0]).contains("depth"));
        assert!(refused(|o| o.file_bytes = 1 << 60).contains("free"));
        assert!(refused(|o| o.block_sizes = vec![8 << 20]).contains("file"));
        assert!(refused(|o| o.cores = Some("0".into())).contains("two"));
        assert!(refused(|o| o.dir = "no/such/dir".into()).contains("no/such/dir"));
        assert!(refused(|o| o.message_sizes = vec![0]).contains("message"));
    }
}
