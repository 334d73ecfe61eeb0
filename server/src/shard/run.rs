//! The life of a shard: from its first snapshot to its last word.
//!
//! Owns: which tasks a shard runs, in which queue, and how they end. One executor, pinned to one core; every task is
//! held here until the stop.
//! Stop: no new connections; sessions answer what they have read (followers still copy, so that `acks = all` is
//! answered); then streams end; then logs are synced and closed; then the drivers of the engines end. What takes longer than the time granted is left, and its data directory counts as unclean.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::TcpListener as StdListener;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use corelog_engine::Engine;
use corelog_engine::buffer::BufferPool;
use corelog_engine::disk::uring::UringDisk;
use corelog_net::native::Sessions;
use corelog_replication::Replicas;
use corelog_replication::stream::Identity;
use futures_util::stream::{self, StreamExt};
use glommio::io::BufferedFile;
use glommio::timer::{sleep, timeout};
use glommio::{Latency, Shares, Task, TaskQueueHandle};

use super::ShardOptions;
use super::clock::Clock;
use super::counters::Counters;
use super::disk::{ShardDisk, SyncTimes};
use super::mesh::{self, MeshRequest};
use super::peer::{ShardHost, accept_peers};
use super::registry::{Registry, State};
use super::state::{Shard, SharedShard};
use super::{listener, reconcile, stats, timers};
use crate::control::messages::COMMANDS_MAX;
use crate::control::{
    DataDirIndex, DataDirState, ShardCommand, ShardLink, ShardReport, ShardStats, Snapshot, SnapshotVersion,
};

/// CPU shares of what a client waits for, and of what nobody does.
const LATENCY_SHARES: usize = 1_000;
const BACKGROUND_SHARES: usize = 100;

/// How long the latency queue may be kept waiting by the other one.
const LATENCY_WAIT: Duration = Duration::from_millis(1);

/// Logs closed at a time.
const CLOSINGS_MAX: usize = 64;

/// How long the leaders are tried to be told of a stop.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the ends of replication streams are waited for: they wait for the disk at most.
const STREAMS_STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Grain of the waits of a stop.
const STOP_TICK: Duration = Duration::from_millis(10);

/// What a shard is made of, besides its options.
pub(super) struct Parts {
    pub(super) options: ShardOptions,
    pub(super) link: ShardLink,
    pub(super) listener: StdListener,
    pub(super) streams: Option<StdListener>,
    /// To all shards of the node, by number.
    pub(super) mesh: Vec<flume::Sender<MeshRequest>>,
    pub(super) mesh_requests: flume::Receiver<MeshRequest>,
    /// One ring for each data directory: a disk that hangs fills its own depth limits and no others.
    pub(super) disks: Vec<UringDisk>,
}

struct Queues {
    latency: TaskQueueHandle,
    background: TaskQueueHandle,
}

impl Queues {
    fn new() -> Self {
        let executor = glommio::executor();
        let queue = |shares, latency, name| executor.create_task_queue(Shares::Static(shares), latency, name);
        Self {
            latency: queue(LATENCY_SHARES, Latency::Matters(LATENCY_WAIT), "latency"),
            background: queue(BACKGROUND_SHARES, Latency::NotImportant, "background"),
        }
    }
}

/// One engine for each data directory that is there; all share the shard's memory.
fn make_engines(
    disks: &[UringDisk],
    first: &Snapshot,
    pool: &BufferPool,
    options: &ShardOptions,
    sync_times: &SyncTimes,
) -> Vec<Option<Engine<ShardDisk>>> {
    let engines = disks.iter().zip(&first.data_dirs).map(|(disk, dir)| match dir.state {
        DataDirState::Online | DataDirState::Full { .. } => {
            let disk = ShardDisk::new(disk.clone(), sync_times.clone());
            Some(Engine::new(disk, pool.clone(), options.engine.clone()))
        }
        DataDirState::Offline { .. } => None,
    });
    engines.collect()
}

/// Runs a shard to its end. Must be polled on its own executor.
pub(super) async fn run(parts: Parts) {
    let Parts { options, link, listener, streams, mesh, mesh_requests, disks } = parts;
    let ShardLink { shard: id, commands, reports } = link;
    let Some(first) = first_snapshot(id, &commands, &reports).await else { return };
    let queues = Queues::new();
    let pool = BufferPool::new(options.memory_bytes);
    let sync_times = SyncTimes::default();
    let engines = make_engines(&disks, &first, &pool, &options, &sync_times);
    let clock = Clock::new();
    let host = ShardHost::new(clock, queues.latency, queues.background);
    let me = Identity {
        cluster_id: (*first.cluster_id).into(),
        node: first.node,
        shard: id.0,
        incarnation: first.incarnation,
    };
    let mut stream_options = options.streams.clone();
    if streams.is_none() {
        // A node alone has no other replica to mend damage from; readers find it as well.
        stream_options.scrub_bytes_per_second = None;
    }
    let replicas = Replicas::new(host.clone(), me, stream_options);
    let sessions =
        Sessions::new(options.sessions.clone().within_buffers(options.memory_bytes), clock.elapsed_ms())
            .expect("the options were checked before the shard was started");
    let shard = Rc::new(Shard {
        id,
        auto_create: options.auto_create,
        clock,
        pool,
        engines,
        registry: Registry::default(),
        isr_options: options.isr,
        host,
        replicas,
        faults: RefCell::default(),
        is_isolated: Cell::new(false),
        sessions,
        counters: Counters::default(),
        sync_times,
        mesh,
        reports,
        snapshot: RefCell::new(first.clone()),
        applied: Cell::new(SnapshotVersion(0)),
        is_stopping: Cell::new(false),
    });
    let drivers = spawn_drivers(&shard, &queues);
    let (snapshots, to_apply) = flume::bounded(COMMANDS_MAX);
    let reconciling = spawn(reconcile::run(shard.clone(), to_apply), queues.latency);
    let mut tasks = spawn_timers(&shard, &queues);
    tasks.push(spawn(mesh::serve(shard.clone(), mesh_requests), queues.latency));
    tasks.push(spawn(shard.host.clone().pass_on(shard.reports.clone()), queues.latency));
    let peers = streams.map(|streams| {
        tasks.push(spawn(timers::streams(shard.clone()), queues.latency));
        let replicas = shard.replicas.clone();
        let take_in = move |link| replicas.accept(link);
        spawn(accept_peers(shard.host.clone(), streams, take_in), queues.latency)
    });
    let accepting = spawn(listener::accept(shard.clone(), listener, queues.latency), queues.latency);
    shard.isolation_is(&first);
    let _ = snapshots.send_async(first).await;
    obey(&shard, &commands, &snapshots).await;
    drop((accepting, peers, snapshots));
    let unclean = stop(&shard, reconciling, &options).await;
    drop(tasks);
    end_drivers(&shard, drivers).await;
    shard.report(ShardReport::Stopped { shard: id, unclean }).await;
}

/// The first snapshot; `None` if the stop comes before it.
async fn first_snapshot(
    id: crate::control::ShardId,
    commands: &flume::Receiver<ShardCommand>,
    reports: &flume::Sender<ShardReport>,
) -> Option<Arc<Snapshot>> {
    loop {
        match commands.recv_async().await {
            Ok(ShardCommand::Apply(snapshot)) => return Some(snapshot),
            Ok(ShardCommand::Stats(answer)) => answer.send(ShardStats::new(id)),
            Ok(ShardCommand::IsrRefused { .. } | ShardCommand::Leave) => {}
            Ok(ShardCommand::Stop) | Err(_) => {
                let _ = reports.send_async(ShardReport::Stopped { shard: id, unclean: Vec::new() }).await;
                return None;
            }
        }
    }
}

/// Does what the control thread says, until it says stop or is gone.
async fn obey(
    shard: &Shard,
    commands: &flume::Receiver<ShardCommand>,
    snapshots: &flume::Sender<Arc<Snapshot>>,
) {
    loop {
        match commands.recv_async().await {
            Ok(ShardCommand::Apply(snapshot)) => {
                // Requests are placed by the new picture at once; its partitions answer when they are open.
                *shard.snapshot.borrow_mut() = snapshot.clone();
                shard.isolation_is(&snapshot);
                let _ = snapshots.send_async(snapshot).await;
            }
            Ok(ShardCommand::Stats(answer)) => answer.send(stats::report(shard)),
            Ok(ShardCommand::IsrRefused { partition, version }) => {
                shard.replicas.isr_refused(partition, version);
            }
            Ok(ShardCommand::Leave) => leave(shard).await,
            Ok(ShardCommand::Stop) => return,
            Err(_) => {
                tracing::error!(shard = shard.id.0, "the control thread is gone; the shard stops");
                return;
            }
        }
    }
}

/// Tells the leaders of this shard's followers that the node stops; those that cannot be reached find out themselves.
async fn leave(shard: &Shard) {
    let replicas = shard.replicas.clone();
    let leaving = async move {
        replicas.leave().await;
        Ok(())
    };
    if timeout(LEAVE_TIMEOUT, leaving).await.is_err() {
        tracing::warn!(shard = shard.id.0, "not every leader could be told that this node stops");
    }
}

fn spawn(future: impl Future<Output = ()> + 'static, queue: TaskQueueHandle) -> Task<()> {
    glommio::spawn_local_into(future, queue).expect("the queue lives as long as the executor")
}

/// The tasks that move bytes between memory and device.
struct Drivers {
    reapers: Vec<Task<()>>,
    engines: Vec<Task<()>>,
}

fn spawn_drivers(shard: &SharedShard, queues: &Queues) -> Drivers {
    let mut drivers = Drivers { reapers: Vec::new(), engines: Vec::new() };
    for engine in shard.engines.iter().flatten() {
        drivers.reapers.push(spawn(reap(engine.disk().ring().clone()), queues.latency));
        let commits = batched(engine.disk().ring().clone(), engine.drive_commits());
        drivers.engines.push(spawn(commits, queues.latency));
        drivers.engines.push(spawn(engine.drive_background(), queues.background));
    }
    drivers
}

/// Takes completions whenever the ring's eventfd says that there are some.
async fn reap(disk: UringDisk) {
    let eventfd = disk.eventfd().try_clone_to_owned().expect("a descriptor is left for the ring");
    // SAFETY: the descriptor was just given up by its owner. An eventfd is read like a file.
    let events = unsafe { BufferedFile::from_raw_fd(eventfd.into_raw_fd()) };
    loop {
        if let Err(error) = events.read_at(0, 8).await {
            panic!("cannot wait for the disk any more: {error}");
        }
        disk.reap();
    }
}

/// Polls a future so that all operations that one poll starts go to the kernel in one system call.
async fn batched(disk: UringDisk, future: impl Future<Output = ()>) {
    let mut future = pin!(future);
    poll_fn(|cx| disk.batched(|| future.as_mut().poll(cx))).await;
}

fn spawn_timers(shard: &SharedShard, queues: &Queues) -> Vec<Task<()>> {
    vec![
        spawn(timers::tick(shard.clone()), queues.latency),
        spawn(timers::flush(shard.clone()), queues.latency),
        spawn(timers::retention(shard.clone()), queues.background),
        spawn(timers::derived(shard.clone()), queues.background),
        spawn(timers::idle(shard.clone()), queues.background),
    ]
}

/// Drains and closes everything; returns the data directories in which something was left open.
async fn stop(shard: &SharedShard, reconciling: Task<()>, options: &ShardOptions) -> Vec<DataDirIndex> {
    let deadline = shard.clock.elapsed_ms() + options.stop_timeout.as_millis() as u64;
    shard.is_stopping.set(true);
    shard.sessions.begin_shutdown();
    // Half of the time for those who still wait for an answer, half for the disks.
    let sessions_until = shard.clock.elapsed_ms() + options.stop_timeout.as_millis() as u64 / 2;
    while shard.sessions.connections().open > 0 && shard.clock.elapsed_ms() < sessions_until {
        shard.registry.open().iter().for_each(|partition| partition.wake_readers());
        sleep(STOP_TICK).await;
    }
    shard.sessions.close_all();
    let left =
        |shard: &Shard| Duration::from_millis(deadline.saturating_sub(shard.clock.elapsed_ms()).max(1));
    shard.replicas.stop();
    let streams = shard.replicas.clone();
    let streams = async move {
        streams.stopped().await;
        Ok(())
    };
    if timeout(left(shard).min(STREAMS_STOP_TIMEOUT), streams).await.is_err() {
        tracing::warn!(shard = shard.id.0, "replication streams have not ended in time");
    }
    // A snapshot that is being acted on opens or deletes logs: they must not be closed under it.
    let is_settled = timeout(left(shard), async move {
        reconciling.await;
        Ok(())
    })
    .await
    .is_ok();
    let closed = Rc::new(RefCell::new(Vec::new()));
    let closing = close_all(shard.clone(), closed.clone());
    let _ = timeout(left(shard), async move {
        closing.await;
        Ok(())
    })
    .await;
    let closed = closed.borrow();
    let mut unclean: Vec<DataDirIndex> = Vec::new();
    shard.registry.with_all(|entries| {
        for (id, entry) in entries {
            let is_clean = match entry.state {
                State::Open(_) => closed.contains(id),
                State::Failed(_) => true,
                State::Opening | State::Leaving => false,
            };
            if !is_clean && !unclean.contains(&entry.data_dir) {
                unclean.push(entry.data_dir);
            }
        }
    });
    if !is_settled || !unclean.is_empty() {
        tracing::warn!(
            shard = shard.id.0,
            ?unclean,
            "not every log was closed; the next start scans their tails"
        );
    }
    unclean
}

/// Syncs and closes all logs; notes those that went well.
async fn close_all(shard: SharedShard, closed: Rc<RefCell<Vec<corelog_engine::TopicPartition>>>) {
    let mut closing = stream::iter(shard.registry.open())
        .map(|partition| async move { (partition.id(), partition.close().await) })
        .buffer_unordered(CLOSINGS_MAX);
    while let Some((id, result)) = closing.next().await {
        match result {
            Ok(()) => closed.borrow_mut().push(id),
            Err(failure) => tracing::warn!(shard = shard.id.0, %failure, "a log was not closed cleanly"),
        }
    }
}

/// Ends the drivers; those that still wait for a hanging disk are dropped.
async fn end_drivers(shard: &Shard, drivers: Drivers) {
    shard.engines.iter().flatten().for_each(Engine::shutdown);
    let Drivers { reapers, engines } = drivers;
    let _ = timeout(Duration::from_secs(1), async move {
        for driver in engines {
            driver.await;
        }
        Ok(())
    })
    .await;
    drop(reapers);
}

/// A ring for each data directory.
pub(super) fn make_disks(options: &ShardOptions) -> io::Result<Vec<UringDisk>> {
    options.rings.iter().map(UringDisk::new).collect()
}
