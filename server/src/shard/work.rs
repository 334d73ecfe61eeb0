//! One step of a plan, done: a log is opened or made, given a role, closed or deleted.
//!
//! Owns: the way from a directory to an open partition, what recovery found and whom that is told, and the names of
//! new logs.
//! Invariant: a log that should exist and does not is a fault, never an empty log in its place.
//! Invariant: a new log is reported as made only once its name is durable, and takes no role before the control thread
//! has said that it is on its list: a crash in between leaves a directory that the next start opens or makes.
//! Crash story: the process dies while a log is made. Its partition is still new in the metadata, so the next start
//! makes it or opens what is there. It dies while a log is deleted: the metadata remembers the removal, and the
//! control thread removes what is left.

use std::io;
use std::path::Path;
use std::rc::Rc;

use corelog_engine::disk::Disk;
use corelog_engine::log::{FlushPolicy, OpenError, RecoveryReport};
use corelog_engine::{Engine, Log, TopicPartition};
use corelog_replication::cluster::{FaultKind, ReplicaFault};
use corelog_replication::{Partition, ReplicaId};
use corelog_schemas::{ErrorCode, Failure};

use super::disk::ShardDisk;
use super::failures;
use super::plan::{Opening, Step};
use super::registry::{Entry, ShardPartition, State, Trouble};
use super::state::{Shard, SharedShard};
use crate::control::{DataDirIndex, MadeLog, ShardReport, Snapshot};

/// How long until a log is tried again that found no space, or the log of an earlier replica in its place.
const RETRY_MS: u64 = 5_000;

/// What a piece of work came to.
pub(super) enum Done {
    /// A log is open.
    Opened {
        /// Bytes that recovery read.
        scanned_bytes: u64,
        /// It is not on the durable list yet.
        made: Option<MadeLog>,
    },
    /// It is not.
    NotOpened,
    /// Nothing to say.
    Other,
}

/// What clients are told while a log is being opened.
pub(super) fn being_opened() -> Failure {
    Failure::new(ErrorCode::PartitionOffline, "the partition is being opened; try again soon")
}

/// Does a step that takes no disk.
pub(super) fn do_now(shard: &SharedShard, snapshot: &Snapshot, step: Step) {
    match step {
        Step::SetOptions(id, options) => shard.registry.set_options(id, options),
        Step::Confirm(id) => shard.registry.change(id, |entry| entry.is_confirmed = true),
        Step::Assign(id, told) => shard.assign(id, told),
        Step::TakeOffline { opening, failure } => take_offline(shard, snapshot, &opening, failure),
        Step::Open(_) | Step::Close(_) | Step::Delete(_) => unreachable!("it takes the disk"),
    }
}

/// Does a step that takes the disk.
pub(super) async fn do_on_disk(shard: &Shard, snapshot: &Snapshot, step: Step) -> Done {
    match step {
        Step::Open(opening) => return open(shard, snapshot, &opening).await,
        Step::Close(id) => close(shard, id).await,
        Step::Delete(id) => delete(shard, id).await,
        Step::SetOptions(..) | Step::Confirm(_) | Step::Assign(..) | Step::TakeOffline { .. } => {
            unreachable!("it takes no disk")
        }
    }
    Done::Other
}

fn take_offline(shard: &SharedShard, snapshot: &Snapshot, opening: &Opening, failure: Failure) {
    let open = shard.partition(opening.id);
    let trouble = Trouble { failure, retry_at_ms: None };
    shard.registry.put(opening.id, entry(snapshot, opening, State::Failed(trouble)));
    if let Ok(partition) = open {
        shard.let_go(opening.id);
        // Not waited for: a disk that hangs must not hold up what others ask for. The directory counts as unclean
        // whether it succeeds or not.
        glommio::spawn_local(async move { close_log(&partition).await }).detach();
    }
}

fn entry(snapshot: &Snapshot, opening: &Opening, state: State) -> Entry {
    let Opening { id, data_dir, log_id, options, .. } = *opening;
    let topic = snapshot.topic_by_id(id.topic);
    let local = snapshot.partition(id).and_then(|partition| partition.local.as_ref());
    let dir: Rc<Path> = match (topic, local) {
        (Some(topic), Some(local)) => snapshot.log_directory(topic, id.partition, local).into(),
        _ => Path::new("").into(),
    };
    Entry { data_dir, dir, log_id, options, state, is_confirmed: false, told: None }
}

/// Notes that a log is about to be opened.
pub(super) fn begin_opening(shard: &Shard, snapshot: &Snapshot, opening: &Opening) {
    shard.registry.put(opening.id, entry(snapshot, opening, State::Opening));
}

async fn open(shard: &Shard, snapshot: &Snapshot, opening: &Opening) -> Done {
    let id = opening.id;
    let dir = shard.registry.with(id, |entry| entry.map(|entry| entry.dir.clone()));
    let dir = dir.expect("an opening has its entry");
    let me = ReplicaId { node: snapshot.node, log: opening.log_id };
    match open_log(shard, snapshot, opening, &dir).await {
        Ok((log, report)) => {
            let scanned_bytes = report.as_ref().map_or(0, |report| report.scanned_bytes);
            if let Some(report) = &report {
                tell_recovery(&dir, report, opening.options.flush);
                if let Some(reason) = &report.unverified {
                    doubt(shard, snapshot, id, &log, reason).await;
                }
            }
            shard.take_in(id, Partition::open(id, me, log));
            let Opening { data_dir, log_id: log, .. } = *opening;
            let made = opening.is_new.then_some(MadeLog { partition: id, log, data_dir });
            Done::Opened { scanned_bytes, made }
        }
        Err(NotOpened { trouble, fault }) => {
            let (topic, partition, failure) = (id.topic, id.partition.0, &trouble.failure);
            tracing::error!(%topic, partition, %failure, "cannot open a partition");
            if let Some(kind) = fault {
                let reason = failure.to_string();
                shard.faults.borrow_mut().push(ReplicaFault { replica: me, kind, reason });
            }
            shard.registry.set_state(id, State::Failed(trouble));
            Done::NotOpened
        }
    }
}

/// Why a log is not open, and what the cluster hears of it.
struct NotOpened {
    trouble: Trouble,
    fault: Option<FaultKind>,
}

/// Opens a log, or makes it; the report is `None` if it was made.
async fn open_log(
    shard: &Shard,
    snapshot: &Snapshot,
    opening: &Opening,
    dir: &Path,
) -> Result<(Log<ShardDisk>, Option<RecoveryReport>), NotOpened> {
    let failed = |failure| {
        let trouble = Trouble { failure, retry_at_ms: None };
        NotOpened { trouble, fault: Some(FaultKind::Failed) }
    };
    let engine = engine(shard, opening.data_dir).map_err(failed)?;
    let is_there = match engine.disk().list(dir).await {
        Ok(entries) => !entries.is_empty(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => {
            let message = format!("cannot list {}: {error}", dir.display());
            return Err(failed(Failure::new(ErrorCode::StorageFailed, message)));
        }
    };
    if !is_there && !opening.is_new {
        let message = format!(
            "{} is missing, although the log was made: was a disk swapped or a directory removed? Restore it, or \
             delete the topic",
            dir.display()
        );
        let trouble =
            Trouble { failure: Failure::new(ErrorCode::PartitionOffline, message), retry_at_ms: None };
        return Err(NotOpened { trouble, fault: Some(FaultKind::Lost) });
    }
    if !is_there {
        let log = engine.create_log(dir, opening.log_id, opening.options).await;
        return log.map(|log| (log, None)).map_err(|error| not_opened(shard, opening, &error));
    }
    let was_clean = snapshot.data_dir(opening.data_dir).was_clean;
    let opened = engine.open_log(dir, opening.log_id, opening.options, was_clean).await;
    opened.map(|(log, report)| (log, Some(report))).map_err(|error| not_opened(shard, opening, &error))
}

/// What becomes of a log that could not be opened or made.
///
/// A full disk may have room again. A new log that finds another one in its place waits until that one, which belonged
/// to an earlier replica, is removed. Damage and failed devices do not mend themselves.
fn not_opened(shard: &Shard, opening: &Opening, error: &OpenError) -> NotOpened {
    let failure = failures::of_open(error);
    let is_full = failure.code == ErrorCode::DiskFull;
    let is_in_the_way = matches!(error, OpenError::WrongLog { .. });
    let fault = match (is_full || (is_in_the_way && opening.is_new), is_in_the_way) {
        (true, _) => None,
        (false, true) => Some(FaultKind::Lost),
        (false, false) => Some(FaultKind::Failed),
    };
    let retry_at_ms = fault.is_none().then(|| shard.clock.elapsed_ms() + RETRY_MS);
    NotOpened { trouble: Trouble { failure, retry_at_ms }, fault }
}

fn engine(shard: &Shard, data_dir: DataDirIndex) -> Result<&Engine<ShardDisk>, Failure> {
    shard.engines.get(data_dir.index()).and_then(Option::as_ref).ok_or_else(|| {
        Failure::new(ErrorCode::PartitionOffline, "the data directory was offline when the node started")
    })
}

/// A log that may lack acked records must not lead before it has caught up from another replica. The only replica is
/// all that there is: what it has is the truth from now on, and what was cut was said.
async fn doubt(shard: &Shard, snapshot: &Snapshot, id: TopicPartition, log: &Log<ShardDisk>, reason: &str) {
    let dir = log.dir().display().to_string();
    if snapshot.partition(id).is_some_and(|partition| partition.replicas.len() == 1) {
        if let Err(error) = log.note_verified().await {
            // It leads all the same; the next start doubts and decides anew.
            tracing::warn!(dir, %error, "cannot note that a log is accepted as it is");
        }
        return;
    }
    let replica = ReplicaId { node: snapshot.node, log: log.id() };
    let (kind, reason) = (FaultKind::Unverified, format!("{dir}: {reason}"));
    shard.faults.borrow_mut().push(ReplicaFault { replica, kind, reason });
}

/// Says what recovery found. A cut with sound batches behind it is damage: committed records may be among them.
fn tell_recovery(dir: &Path, report: &RecoveryReport, flush: FlushPolicy) {
    let shown = dir.display();
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
        tracing::warn!(dir = %shown, "this host has lost power or was reset; with flush = interval acked records may be missing");
    }
    if !report.was_clean {
        tracing::debug!(dir = %shown, scanned = report.scanned_bytes, batches = report.recovered_batches, "recovered");
    }
}

/// Syncs and closes a log. What fails is said, and found by the next start.
async fn close(shard: &Shard, id: TopicPartition) {
    let open = shard.partition(id);
    shard.registry.set_state(id, State::Leaving);
    if let Ok(partition) = open {
        shard.let_go(id);
        close_log(&partition).await;
    }
    shard.registry.remove(id);
}

async fn close_log(partition: &ShardPartition) {
    if let Err(failure) = partition.close().await {
        tracing::error!(dir = %partition.log().dir().display(), %failure, "cannot close a log cleanly");
    }
}

async fn delete(shard: &Shard, id: TopicPartition) {
    let Some(entry) = shard.registry.with(id, |entry| entry.cloned()) else { return };
    shard.registry.set_state(id, State::Leaving);
    let result = match (&entry.state, engine(shard, entry.data_dir)) {
        (State::Open(partition), _) => {
            shard.let_go(id);
            partition.log().delete().await
        }
        (State::Failed(_) | State::Opening | State::Leaving, Ok(engine)) => {
            engine.disk().remove_dir_all(&entry.dir).await
        }
        // The disk is away; the control thread remembers the removal for when it is back.
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

/// Makes the names of new logs durable, and tells the control thread that they exist. A log's own directory was synced
/// when it was made.
pub(super) async fn confirm_names(
    shard: &Shard,
    snapshot: &Snapshot,
    data_dir: DataDirIndex,
    made: Vec<MadeLog>,
) {
    let root = &snapshot.data_dir(data_dir).path;
    let Ok(engine) = engine(shard, data_dir) else { return };
    for dir in [root.join("topics"), root.clone()] {
        if let Err(error) = engine.disk().sync_dir(&dir).await {
            // They stay new: without a role, and the next start makes them or opens what is there.
            tracing::error!(dir = %dir.display(), %error, "cannot make new logs durable");
            return;
        }
    }
    shard.report(ShardReport::LogsMade(made)).await;
}
