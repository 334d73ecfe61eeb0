//! `corelog bench fetch`: reads a topic from its beginning (cold) or at its end (tail).
//!
//! Owns: how partitions are read: one request in flight on each connection, over all its partitions.

mod cursor;
mod worker;

use std::time::Duration;

use corelog_schemas::messages::{OffsetSpec, TopicRef};

use crate::error::BenchResult;
use crate::load::connection::{Connection, Protocol};
use crate::load::{LoadFigures, LoadOptions, drive, plan_connections};
use crate::target::Target;
use crate::wire::Wire;
use worker::{FetchConnection, FetchWorker, Position};

/// Where to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FetchMode {
    /// From the log start offset to the high watermark, again and again.
    Cold,
    /// From the high watermark on, waiting for what is produced meanwhile.
    Tail,
}

/// How to fetch.
#[derive(Clone, Debug)]
pub(crate) struct FetchOptions {
    /// Where.
    pub(crate) mode: FetchMode,
    /// Most bytes of one response.
    pub(crate) fetch_bytes: u32,
    /// Connections in all.
    pub(crate) connections: usize,
    /// How long the server waits for new records.
    pub(crate) max_wait: Duration,
    /// The server answers at once with so many bytes.
    pub(crate) min_bytes: u32,
}

/// Fetches from a topic that is there.
pub(crate) fn fetch(
    target: &Target,
    options: &FetchOptions,
    load: &LoadOptions,
) -> BenchResult<(LoadFigures, f64)> {
    let plans = plan_connections(options.connections, &target.leaders);
    let topic = TopicRef::Id(target.topic_id);
    let mut connections = Vec::new();
    for plan in &plans {
        let mut wire = Wire::connect(&plan.address)?;
        let earliest = wire.offsets(&topic, &plan.partitions, OffsetSpec::Earliest)?;
        let latest = wire.offsets(&topic, &plan.partitions, OffsetSpec::Latest)?;
        let positions = plan
            .partitions
            .iter()
            .zip(earliest.into_iter().zip(latest))
            .map(|(&partition, (earliest, latest))| Position::new(partition, options.mode, earliest, latest))
            .collect();
        let connection = Connection::new(wire.into_stream(), &plan.address, Protocol::Native)?;
        connections.push(FetchConnection::new(connection, target.topic_id, positions, options));
    }
    let threads = load.cores.len().min(connections.len()).max(1);
    let mut workers: Vec<FetchWorker> = (0..threads).map(|_| FetchWorker::default()).collect();
    for (i, connection) in connections.into_iter().enumerate() {
        workers[i % threads].add(connection);
    }
    drive(workers, load)
}
