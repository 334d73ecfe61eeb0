//! The coordination service of a single node: one redb file, nothing to install.
//!
//! Owns: the tables, and the order in which commits become durable and known. A commit is decided in memory at once
//! (`keyspace.rs`), waits with the others for one synced write of redb, and only then is answered and told.
//! Invariant: what was answered or told is on disk. Ephemeral keys are in memory alone: the session is this opening of
//! the store.
//! Crash story: redb keeps its previous state until a write is synced, so that a kill or power loss leaves the state
//! before or after a group of commits; none of a group that is lost was answered. A write that fails (disk full) takes
//! back what was decided since: those commits end as unknown, the file is opened anew until that succeeds, and a new
//! state tells what is there.
//!
//! | table | key | value |
//! |---|---|---|
//! | keys | key | version, value |
//! | node | text | format, node id, cluster id (text) |
//! | data_dirs | data directory id | its last path when format 1 was taken over |
//! | deleted | topic id | JSON, see [`DeletedRow`]: deleted before format 2, directories not all gone |
//! | made | data directory id, log id | nothing: logs known to exist when format 1 was taken over |
//!
//! All but `keys` are about this node alone and stay its own if it joins a cluster.
//! Evolution: format 1 is taken over in one transaction (`format1.rs`); newer ones are refused.

#![expect(
    clippy::result_large_err,
    reason = "redb's errors are large; they are rare and handled one call up"
)]

mod disk;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use corelog_replication::NodeId;
use corelog_replication::cluster::DataDirId;
use corelog_replication::coordination::{CommitError, Coordination, Entry, Event, Op, Version, check_limits};
use redb::Database;
use tokio::sync::oneshot;

use super::keyspace::{Applied, Change, Keyspace};
use super::outbox::Outbox;
use super::{DeletedTopic, StoreError};
use disk::{Disk, Row};

/// Runs what blocks beside the control thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("it does not panic, and nobody aborts it")
}

/// What a group of commits changes in the file, in their order.
fn rows_of(group: &[Waiting]) -> Vec<Row> {
    let changes = group.iter().flat_map(|waiting| &waiting.applied.changes);
    changes.filter_map(row_of).collect()
}

fn row_of(change: &Change) -> Option<Row> {
    let stored = change.after.as_ref().filter(|slot| !slot.is_ephemeral);
    let value = stored.map(|slot| (slot.version.0, slot.value.to_vec()));
    (value.is_some() || change.was_stored).then(|| (change.key.clone(), value))
}

/// Most commits that wait for the disk. More are refused.
const WAITING_MAX: usize = 4096;
/// Most rows of one transaction: bounds how long the first of them waits.
const GROUP_ROWS_MAX: usize = 2000;
/// Pause before a file that failed is opened again.
const REOPEN: Duration = Duration::from_secs(1);
/// Attempts to open it for which the log has one line.
const ATTEMPTS_A_LINE: u32 = 30;

/// What the file says about this node alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeLocal {
    /// Random identity of the cluster.
    pub cluster_id: String,
    /// This node.
    pub node: NodeId,
    /// Data directories with their last paths when format 1 was taken over.
    pub data_dirs: BTreeMap<DataDirId, String>,
    /// Topics that were deleted before format 2, with directories that may still hold some of them.
    pub deleted: Vec<DeletedTopic>,
    /// Logs that were known to exist when format 1 was taken over.
    pub made: Vec<(DataDirId, corelog_engine::LogId)>,
}

/// The store. Runs on the control thread: a tokio `LocalSet`. Clones are one session, which ends with the last one.
#[derive(Clone)]
pub struct KvStore {
    inner: Rc<Inner>,
}

struct Inner {
    session: u64,
    disk: Disk,
    outbox: Outbox,
    memory: RefCell<Memory>,
}

struct Memory {
    /// The open file; `None` while a write is under way or it has to be opened anew.
    database: Option<Arc<Database>>,
    /// What all commits so far make of it.
    ahead: Keyspace,
    /// What is durable.
    stored: Keyspace,
    waiting: VecDeque<Waiting>,
    is_writing: bool,
    is_failed: bool,
}

struct Waiting {
    applied: Applied,
    answer: oneshot::Sender<Result<Vec<Version>, CommitError>>,
}

impl KvStore {
    /// Opens the store of a node; makes it, for this node and cluster, if there is none; takes over an old format.
    ///
    /// Cost: blocks for a few syncs.
    pub fn open(path: &Path, node: NodeId, cluster_id: &str) -> Result<Self, StoreError> {
        Self::open_on(Disk::file(path), node, cluster_id)
    }

    fn open_on(disk: Disk, node: NodeId, cluster_id: &str) -> Result<Self, StoreError> {
        let database = disk.open_or_make(node, cluster_id)?;
        let keys = disk.load(&database)?.into_keyspace();
        let memory = Memory {
            database: Some(Arc::new(database)),
            ahead: keys.clone(),
            stored: keys.clone(),
            waiting: VecDeque::new(),
            is_writing: false,
            is_failed: false,
        };
        let (session, _) = uuid::Uuid::new_v4().as_u64_pair();
        let outbox = Outbox::default();
        outbox.push(Event::State { session, entries: keys.entries() });
        Ok(Self { inner: Rc::new(Inner { session, disk, outbox, memory: RefCell::new(memory) }) })
    }

    /// Everything that is durable now, sorted: what a first [`Event::State`] says.
    pub fn entries(&self) -> Vec<Entry> {
        self.inner.memory.borrow().stored.entries()
    }

    /// What the file says about this node alone. For the start, before commits are under way.
    pub fn node_local(&self) -> Result<NodeLocal, StoreError> {
        self.inner.disk.node_local(&*self.database()?)
    }

    /// Takes the paths of data directories of format 1 away, when they are kept elsewhere.
    ///
    /// Durability: stored before it returns.
    pub fn forget_data_dirs(&self) -> Result<(), StoreError> {
        self.inner.disk.forget_data_dirs(&*self.database()?)
    }

    /// Some directories of a topic that was deleted before format 2 are gone; without any left it is forgotten.
    ///
    /// Durability: stored before it returns.
    pub fn forget_deleted(
        &self,
        topic: corelog_engine::TopicId,
        gone: &[DataDirId],
    ) -> Result<(), StoreError> {
        self.inner.disk.forget_deleted(&*self.database()?, topic, gone)
    }

    /// Takes the logs of format 1 in these directories away, when they are kept elsewhere.
    ///
    /// Durability: stored before it returns.
    pub fn forget_made(&self, dirs: &[DataDirId]) -> Result<(), StoreError> {
        self.inner.disk.forget_made(&*self.database()?, dirs)
    }

    fn database(&self) -> Result<Arc<Database>, StoreError> {
        let database = self.inner.memory.borrow().database.clone();
        database.ok_or_else(|| self.inner.disk.failure("it is being opened anew after a failed write"))
    }

    /// Decides a commit and lets it wait for the disk.
    fn begin(&self, ops: &[Op]) -> Result<oneshot::Receiver<Result<Vec<Version>, CommitError>>, CommitError> {
        check_limits(ops)?;
        let mut memory = self.inner.memory.borrow_mut();
        if memory.is_failed {
            return Err(CommitError::NoSession);
        }
        if memory.waiting.len() >= WAITING_MAX {
            return Err(CommitError::Refused(format!("{WAITING_MAX} commits wait for the disk; try again")));
        }
        let applied = memory.ahead.apply(ops)?;
        let (answer, answered) = oneshot::channel();
        memory.waiting.push_back(Waiting { applied, answer });
        if !std::mem::replace(&mut memory.is_writing, true) {
            tokio::task::spawn_local(self.inner.clone().write_all());
        }
        Ok(answered)
    }
}

impl Coordination for KvStore {
    async fn next(&self) -> Event {
        self.inner.outbox.next().await
    }

    fn commit(&self, ops: Vec<Op>) -> impl Future<Output = Result<Vec<Version>, CommitError>> {
        let begun = self.begin(&ops);
        async move {
            // Dropped with the runtime alone: nobody is there to act on it.
            begun?.await.unwrap_or(Err(CommitError::Unknown))
        }
    }
}

impl Inner {
    /// Writes until nothing waits. One of these runs at a time.
    async fn write_all(self: Rc<Self>) {
        while let Some(group) = self.next_group() {
            let rows = rows_of(&group);
            let database = self.memory.borrow().database.clone();
            let Some(database) = database else { unreachable!("one writer, which opens the file again") };
            let written =
                if rows.is_empty() { Ok(()) } else { blocking(move || disk::write(&database, &rows)).await };
            match written {
                Ok(()) => self.tell(group),
                Err(error) => self.start_over(group, &error).await,
            }
        }
    }

    fn next_group(&self) -> Option<Vec<Waiting>> {
        let mut memory = self.memory.borrow_mut();
        let mut rows = 0;
        let mut group = Vec::new();
        while let Some(first) = memory.waiting.front() {
            rows += first.applied.changes.len();
            if !group.is_empty() && rows > GROUP_ROWS_MAX {
                break;
            }
            group.extend(memory.waiting.pop_front());
        }
        memory.is_writing = !group.is_empty();
        memory.is_writing.then_some(group)
    }

    fn tell(&self, group: Vec<Waiting>) {
        for Waiting { applied, answer } in group {
            self.memory.borrow_mut().stored.put(&applied.changes);
            for change in &applied.changes {
                self.outbox.push(change.event());
            }
            // Whoever asked may have gone.
            let _ = answer.send(Ok(applied.versions));
        }
    }

    /// After a failed write nothing is known of the file's state: all that was decided is taken back, and the file is
    /// opened anew, as often as it takes.
    async fn start_over(&self, group: Vec<Waiting>, error: &redb::Error) {
        tracing::error!(
            path = self.disk.shown(), %error,
            "the metadata store cannot be written; nothing is created, changed or deleted until it can: look at the disk"
        );
        let waiting = {
            let mut memory = self.memory.borrow_mut();
            memory.database = None;
            memory.is_failed = true;
            std::mem::take(&mut memory.waiting)
        };
        for Waiting { answer, .. } in group.into_iter().chain(waiting) {
            let _ = answer.send(Err(CommitError::Unknown));
        }
        let mut attempts = 0;
        let (database, loaded) = loop {
            tokio::time::sleep(REOPEN).await;
            attempts += 1;
            let disk = self.disk.clone();
            match blocking(move || disk.reopen()).await {
                Ok(opened) => break opened,
                Err(error) if attempts % ATTEMPTS_A_LINE == 0 => tracing::warn!(
                    path = self.disk.shown(), %error,
                    "the metadata store still cannot be opened"
                ),
                Err(_) => {}
            }
        };
        tracing::info!(path = self.disk.shown(), "the metadata store has been opened again");
        let mut keys = loaded.into_keyspace();
        let mut memory = self.memory.borrow_mut();
        for (key, slot) in memory.stored.ephemerals() {
            keys.insert(key.clone(), slot.clone());
        }
        memory.database = Some(Arc::new(database));
        memory.stored = keys;
        memory.ahead = memory.stored.clone();
        memory.is_failed = false;
        self.outbox.push(Event::State { session: self.session, entries: memory.stored.entries() });
    }
}

#[cfg(test)]
mod tests;
