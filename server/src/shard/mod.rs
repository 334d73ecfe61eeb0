//! One shard: a pinned core with its executor, its partitions, its memory, its files, and its door.
//!
//! Owns: everything of the data path on that core. `run.rs` is its life, `state.rs` what its tasks share; one file
//! for each kind of request. Shards talk to each other over the mesh (`mesh.rs`) and to the control thread over
//! `crate::control::messages`; nothing else is shared between cores.
//! Invariant: a panic in a shard ends the process (the binary aborts on panic): a half-dead shard would hold
//! connections and answer nobody.
//! This is the only place that names glommio.

mod backend;
mod clock;
mod counters;
mod disk;
mod failures;
mod fetch;
pub mod listener;
mod mesh;
mod metadata;
mod offsets;
mod peer;
mod plan;
mod produce;
mod reconcile;
mod registry;
mod relay;
mod run;
mod state;
mod stats;
mod timers;
mod transport;
mod work;

use std::io;
use std::net::TcpListener;
use std::thread::JoinHandle;
use std::time::Duration;

use corelog_engine::disk::uring::UringOptions;
use corelog_engine::log::EngineOptions;
use corelog_net::native::SessionOptions;
use corelog_replication::IsrOptions;
use corelog_replication::stream::StreamOptions;
use glommio::{LocalExecutorBuilder, Placement};

use crate::control::ShardLink;
use mesh::{MESH_DEPTH_MAX, MeshRequest};

/// Memory that glommio registers for its own file I/O, of which a shard does none but for eventfds. Its least, because
/// registered memory counts against the limit of locked memory.
const EXECUTOR_IO_BYTES: usize = 64 << 10;

/// Depth of glommio's rings: socket readiness and timers alone.
const EXECUTOR_RING_DEPTH: usize = 256;

/// What a shard is told at its start.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// CPU that it is pinned to.
    pub core: usize,
    /// Its buffer memory.
    pub memory_bytes: usize,
    /// How long it polls before it sleeps; zero: not at all.
    pub polling: Duration,
    /// Whether a produce creates a topic that does not exist.
    pub auto_create: bool,
    /// Limits of connections.
    pub sessions: SessionOptions,
    /// Limits of replication streams.
    pub streams: StreamOptions,
    /// When followers count as in sync.
    pub isr: IsrOptions,
    /// Limits of the engine on each data directory.
    pub engine: EngineOptions,
    /// Limits of the ring of each data directory, in their order.
    pub rings: Vec<UringOptions>,
    /// How long a stop may take.
    pub stop_timeout: Duration,
}

/// Why a shard could not start.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// Its limits contradict each other.
    #[error(transparent)]
    Sessions(#[from] corelog_net::native::SessionOptionsError),
    /// No thread, no executor, or no ring: look at what the host allows.
    #[error("shard {shard} on core {core} cannot start: cannot {what}: {source}")]
    Start {
        /// Which.
        shard: u16,
        /// Its core.
        core: usize,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A shard to be started.
#[derive(Debug)]
pub struct ShardStart {
    /// Its options.
    pub options: ShardOptions,
    /// To the control thread.
    pub link: ShardLink,
    /// Its socket for clients.
    pub listener: TcpListener,
    /// Its socket for the replication streams of other nodes; `None` on a node that is alone.
    pub streams: Option<TcpListener>,
}

/// Starts all shards of a node. Each is up (executor, rings) when this returns, and waits for its first snapshot.
///
/// The threads end after [`crate::control::ShardCommand::Stop`].
pub fn start(starts: Vec<ShardStart>) -> Result<Vec<JoinHandle<()>>, ShardError> {
    let (mesh, requests): (Vec<_>, Vec<_>) = starts.iter().map(|_| flume::bounded(MESH_DEPTH_MAX)).unzip();
    let threads = starts.into_iter().zip(requests).map(|(start, requests)| {
        start.options.sessions.check()?;
        start_one(start, mesh.clone(), requests)
    });
    threads.collect()
}

fn start_one(
    start: ShardStart,
    mesh: Vec<flume::Sender<MeshRequest>>,
    mesh_requests: flume::Receiver<MeshRequest>,
) -> Result<JoinHandle<()>, ShardError> {
    let (shard, core) = (start.link.shard.0, start.options.core);
    let failed = move |what, source| ShardError::Start { shard, core, what, source };
    let (up, is_up) = flume::bounded(1);
    let life = move || {
        let executor = match executor(&start.options, shard) {
            Ok(executor) => executor,
            Err(error) => return drop(up.send(Err(failed("make its executor", error)))),
        };
        executor.run(async move {
            let disks = match run::make_disks(&start.options) {
                Ok(disks) => disks,
                Err(error) => return drop(up.send(Err(failed("make its rings", error)))),
            };
            let _ = up.send(Ok(()));
            let ShardStart { options, link, listener, streams } = start;
            run::run(run::Parts { options, link, listener, streams, mesh, mesh_requests, disks }).await;
        });
    };
    let name = format!("shard-{shard}");
    let thread =
        std::thread::Builder::new().name(name).spawn(life).map_err(|e| failed("make its thread", e))?;
    match is_up.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(failed("start", io::Error::other("its thread ended"))),
    }
}

fn executor(options: &ShardOptions, shard: u16) -> io::Result<glommio::LocalExecutor> {
    let mut builder = LocalExecutorBuilder::new(Placement::Fixed(options.core))
        .name(&format!("shard-{shard}"))
        .io_memory(EXECUTOR_IO_BYTES)
        .ring_depth(EXECUTOR_RING_DEPTH);
    if !options.polling.is_zero() {
        builder = builder.spin_before_park(options.polling);
    }
    builder.make().map_err(io::Error::from)
}
