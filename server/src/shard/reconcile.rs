//! Making a shard what a snapshot says: logs are opened, closed and deleted.
//!
//! Owns: doing the steps of `plan.rs`, several at a time, and saying what recovery found and cut.
//! Invariant: one snapshot is acted on at a time; those that came meanwhile are skipped but for the newest.
//! Invariant: a log that should exist and does not is a failure, never an empty log in its place.
//! Crash story: the process dies while a new log is made. Its partition is still new in the metadata, so the next
//! start makes it or opens what is there. It dies while a log is deleted: the metadata remembers the deleted topic,
//! and the control thread removes what is left.

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use corelog_engine::TopicPartition;
use corelog_engine::disk::Disk;
use corelog_engine::log::{FlushPolicy, RecoveryReport};
use corelog_engine::{Engine, Log};
use corelog_replication::Partition;
use corelog_schemas::{ErrorCode, Failure};
use futures_util::stream::{self, StreamExt};

use super::disk::ShardDisk;
use super::failures;
use super::plan::{Opening, Step, plan};
use super::registry::{Entry, ShardPartition, State};
use super::state::{Shard, SharedShard};
use crate::control::{
    DataDirIndex, LocalReplica, PartitionFailure, PartitionMetadata, ShardReport, Snapshot, TopicMetadata,
};

/// Logs that are opened at a time: each reads in pieces of a buffer, so more would only wait for memory and disk.
const OPENINGS_MAX: usize = 32;

/// How often a long opening is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Acts on snapshots as they come, until the channel closes.
pub(super) async fn run(shard: SharedShard, snapshots: flume::Receiver<std::sync::Arc<Snapshot>>) {
    while let Ok(first) = snapshots.recv_async().await {
        let newest = snapshots.try_iter().last().unwrap_or(first);
        apply(&shard, &newest).await;
        shard.applied.set(newest.version);
        let failures = failures_of(&shard);
        let (id, version) = (shard.id, newest.version);
        shard.report(ShardReport::Applied { shard: id, version, failures }).await;
    }
}

fn failures_of(shard: &Shard) -> Vec<PartitionFailure> {
    let entries = shard.registry.entries().into_iter();
    let failed = entries.filter_map(|(partition, entry)| match entry.state {
        State::Failed(failure) => Some(PartitionFailure { partition, failure }),
        State::Opening | State::Open(_) | State::Leaving => None,
    });
    failed.collect()
}

async fn apply(shard: &Shard, snapshot: &Snapshot) {
    let steps = plan(&shard.registry.entries(), snapshot, shard.id);
    let openings = steps.iter().filter(|step| matches!(step, Step::Open(_))).count();
    let began = Instant::now();
    let mut progress = Progress { shard: shard.id.0, openings, opened: 0, scanned_bytes: 0, told: began };
    let mut work = stream::iter(steps).map(|step| act(shard, snapshot, step)).buffer_unordered(OPENINGS_MAX);
    let mut made_in: Vec<DataDirIndex> = Vec::new();
    while let Some(done) = work.next().await {
        match done {
            Done::Opened { scanned_bytes } => progress.opened(scanned_bytes),
            Done::Made(data_dir) => {
                progress.opened(0);
                if !made_in.contains(&data_dir) {
                    made_in.push(data_dir);
                }
            }
            Done::Other => {}
        }
    }
    for data_dir in made_in {
        sync_topic_directories(shard, snapshot, data_dir).await;
    }
    if openings > 0 {
        let Progress { opened, scanned_bytes, .. } = progress;
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(shard = shard.id.0, opened, openings, scanned_bytes, ms, "partitions are open");
    }
}

/// What a step came to.
enum Done {
    Opened { scanned_bytes: u64 },
    Made(DataDirIndex),
    Other,
}

struct Progress {
    shard: u16,
    openings: usize,
    opened: usize,
    scanned_bytes: u64,
    told: Instant,
}

impl Progress {
    fn opened(&mut self, scanned_bytes: u64) {
        self.opened += 1;
        self.scanned_bytes += scanned_bytes;
        if self.told.elapsed() >= PROGRESS_INTERVAL {
            self.told = Instant::now();
            let Self { shard, openings, opened, scanned_bytes, .. } = *self;
            tracing::info!(shard, opened, openings, scanned_bytes, "opening partitions");
        }
    }
}

async fn act(shard: &Shard, snapshot: &Snapshot, step: Step) -> Done {
    match step {
        Step::Open(opening) => return open(shard, snapshot, &opening).await,
        Step::SetOptions(id, options) => shard.registry.set_options(id, options),
        Step::TakeOffline { id, data_dir, options, failure } => {
            let open = shard.partition(id);
            let dir = directory(snapshot, id);
            shard.registry.put(id, Entry { data_dir, dir, options, state: State::Failed(failure) });
            if let Ok(partition) = open {
                // Not waited for: a disk that hangs must not hold up what others ask for. The directory counts as
                // unclean whether it succeeds or not.
                glommio::spawn_local(async move { close_log(&partition).await }).detach();
            }
        }
        Step::Close(id) => {
            close(shard, id).await;
            shard.registry.remove(id);
        }
        Step::Delete(id) => delete(shard, id).await,
    }
    Done::Other
}

fn directory(snapshot: &Snapshot, id: TopicPartition) -> Rc<Path> {
    match find(snapshot, id) {
        Some((topic, partition, local)) => snapshot.log_directory(topic, partition.id, local).into(),
        None => Path::new("").into(),
    }
}

fn find(
    snapshot: &Snapshot,
    id: TopicPartition,
) -> Option<(&TopicMetadata, &PartitionMetadata, &LocalReplica)> {
    let topic = snapshot.topic_by_id(id.topic)?;
    let partition = topic.partition(id.partition)?;
    Some((topic, partition, partition.local.as_ref()?))
}

async fn open(shard: &Shard, snapshot: &Snapshot, opening: &Opening) -> Done {
    let Opening { id, data_dir, options } = *opening;
    let (topic, partition, local) = find(snapshot, id).expect("the plan was made from this snapshot");
    let dir: Rc<Path> = snapshot.log_directory(topic, partition.id, local).into();
    let entry = |state| Entry { data_dir, dir: dir.clone(), options, state };
    shard.registry.put(id, entry(State::Opening));
    let (state, done) = match open_log(shard, snapshot, opening, local, &dir).await {
        Ok((log, report)) => match Partition::lead(id, snapshot.node, log, partition.leader_epoch) {
            Ok(open) => {
                let done = report.map_or(Done::Made(data_dir), |report| {
                    tell_recovery(&dir, &report, options.flush);
                    Done::Opened { scanned_bytes: report.scanned_bytes }
                });
                (State::Open(open), done)
            }
            Err(error) => (State::Failed(failures::of_append(&error)), Done::Other),
        },
        Err(failure) => (State::Failed(failure), Done::Other),
    };
    if let State::Failed(failure) = &state {
        tracing::error!(topic = &*topic.name, partition = partition.id.0, %failure, "cannot open a partition");
    }
    shard.registry.set_state(id, state);
    done
}

/// Opens a log, or makes it; the report is `None` if it was made.
async fn open_log(
    shard: &Shard,
    snapshot: &Snapshot,
    opening: &Opening,
    local: &LocalReplica,
    dir: &Path,
) -> Result<(Log<ShardDisk>, Option<RecoveryReport>), Failure> {
    let engine = engine(shard, opening.data_dir)?;
    let is_there = match engine.disk().list(dir).await {
        Ok(entries) => !entries.is_empty(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => {
            let message = format!("cannot list {}: {error}", dir.display());
            return Err(Failure::new(ErrorCode::StorageFailed, message));
        }
    };
    if !is_there && !local.is_new {
        let message = format!(
            "{} is missing, although the log was made: was a disk swapped or a directory removed? Restore it, or \
             delete the topic",
            dir.display()
        );
        return Err(Failure::new(ErrorCode::PartitionOffline, message));
    }
    if !is_there {
        let log = engine.create_log(dir, local.log_id, opening.options).await;
        return log.map(|log| (log, None)).map_err(|error| failures::of_open(&error));
    }
    let was_clean = snapshot.data_dir(opening.data_dir).was_clean;
    let opened = engine.open_log(dir, local.log_id, opening.options, was_clean).await;
    opened.map(|(log, report)| (log, Some(report))).map_err(|error| failures::of_open(&error))
}

fn engine(shard: &Shard, data_dir: DataDirIndex) -> Result<&Engine<ShardDisk>, Failure> {
    shard.engines.get(data_dir.index()).and_then(Option::as_ref).ok_or_else(|| {
        Failure::new(ErrorCode::PartitionOffline, "the data directory was offline when the node started")
    })
}

/// Says what recovery found. A cut with sound batches behind it is damage: committed records may be among them.
fn tell_recovery(dir: &Path, report: &RecoveryReport, flush: FlushPolicy) {
    let dir = dir.display();
    if let Some(cut) = &report.cut {
        let (path, at) = (cut.path.display(), cut.position);
        if cut.sound_batch_behind {
            let saved = &cut.saved_aside;
            tracing::error!(
                %path, at, offset = cut.offset.0, bytes = cut.bytes, reason = cut.reason, ?saved,
                "the end of a log was damaged, not torn; it was cut there and saved aside: acked records may be missing"
            );
        } else {
            tracing::warn!(
                %path, at, offset = cut.offset.0, bytes = cut.bytes, reason = cut.reason,
                "cut the torn end of a log; with flush = commit it was never acked"
            );
        }
    }
    if report.power_loss_possible && matches!(flush, FlushPolicy::Interval { .. }) {
        tracing::warn!(%dir, "this host has lost power or was reset; with flush = interval acked records may be missing");
    }
    if !report.was_clean {
        tracing::debug!(%dir, scanned = report.scanned_bytes, batches = report.recovered_batches, "recovered");
    }
}

/// Syncs and closes a log. What fails is said, and found by the next start.
async fn close(shard: &Shard, id: TopicPartition) {
    let Ok(partition) = shard.partition(id) else { return };
    shard.registry.set_state(id, State::Leaving);
    close_log(&partition).await;
}

async fn close_log(partition: &ShardPartition) {
    if let Err(failure) = partition.log().close().await {
        tracing::error!(dir = %partition.log().dir().display(), %failure, "cannot close a log cleanly");
    }
}

async fn delete(shard: &Shard, id: TopicPartition) {
    let Some(entry) = shard.registry.with(id, |entry| entry.cloned()) else { return };
    shard.registry.set_state(id, State::Leaving);
    let result = match (&entry.state, engine(shard, entry.data_dir)) {
        (State::Open(partition), _) => partition.log().delete().await,
        (State::Failed(_) | State::Opening | State::Leaving, Ok(engine)) => {
            engine.disk().remove_dir_all(&entry.dir).await
        }
        // The disk is away; the control thread remembers the topic and removes it when the disk is back.
        (State::Failed(_) | State::Opening | State::Leaving, Err(_)) => Ok(()),
    };
    if let Err(error) = result {
        tracing::error!(dir = %entry.dir.display(), %error, "cannot delete a log; it is tried again at the next start");
    }
    if let Some(topic_dir) = entry.dir.parent() {
        // Fails while another partition is still there: the last one takes it away.
        let _ = std::fs::remove_dir(topic_dir);
    }
    shard.registry.remove(id);
}

/// Makes the names of new topic directories durable. A log's own directory was synced when it was made.
async fn sync_topic_directories(shard: &Shard, snapshot: &Snapshot, data_dir: DataDirIndex) {
    let root = &snapshot.data_dir(data_dir).path;
    let Ok(engine) = engine(shard, data_dir) else { return };
    for dir in [root.join("topics"), root.clone()] {
        if let Err(error) = engine.disk().sync_dir(&dir).await {
            tracing::error!(dir = %dir.display(), %error, "cannot make new topics durable");
        }
    }
}
