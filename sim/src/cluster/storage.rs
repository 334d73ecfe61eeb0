//! A data directory of a simulated node: its identity, the list of logs that were made in it, whether it was left clean.
//!
//! Owns: the files beside the logs. Invariant: a log is on the list, durably, before it takes part in anything; so a log
//! that is on the list and not there was lost. A wiped directory has neither list nor identity: it is another one.
//! Invariant: the sign of a clean stop is taken away, durably, before any log is opened.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use corelog_engine::disk::{Disk, DiskFile, OpenMode};
use corelog_engine::notify::Turnstile;
use corelog_engine::{LogId, TopicPartition};
use corelog_replication::cluster::DataDirId;

use crate::disk::SimDisk;
use crate::executor::Handle;

const ID: &str = "/id";
const MADE: &str = "/made";
const CLEAN: &str = "/clean";
const FILE_BYTES_MAX: usize = 1 << 20;

/// An open data directory. Cheap to clone.
#[derive(Clone)]
pub(super) struct DataDir(Rc<Inner>);

struct Inner {
    disk: SimDisk,
    id: DataDirId,
    was_clean: bool,
    made: RefCell<BTreeSet<u128>>,
    storing: Turnstile,
}

impl DataDir {
    /// Opens a directory; one without an identity gets one.
    ///
    /// Errors: the disk failed: the node starts without it.
    pub(super) async fn open(disk: SimDisk, random: &Handle) -> io::Result<Self> {
        let id = match disk.read_file(Path::new(ID), FILE_BYTES_MAX).await {
            Ok(bytes) => parse(&bytes).first().copied().ok_or(ErrorKind::InvalidData)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let id = u128::from(random.random(0..u64::MAX));
                disk.replace_file(Path::new(ID), format!("{id:032x}\n").into_bytes()).await?;
                id
            }
            Err(error) => return Err(error),
        };
        let made = match disk.read_file(Path::new(MADE), FILE_BYTES_MAX).await {
            Ok(bytes) => parse(&bytes).into_iter().collect(),
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeSet::new(),
            Err(error) => return Err(error),
        };
        let was_clean = match disk.remove_file(Path::new(CLEAN)).await {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        disk.sync_dir(Path::new("/")).await?;
        let made = RefCell::new(made);
        let storing = Turnstile::default();
        Ok(Self(Rc::new(Inner { disk, id: DataDirId(id), was_clean, made, storing })))
    }

    /// Its identity.
    pub(super) fn id(&self) -> DataDirId {
        self.0.id
    }

    /// Its disk.
    pub(super) fn disk(&self) -> &SimDisk {
        &self.0.disk
    }

    /// Whether the last stop was clean.
    pub(super) fn was_clean(&self) -> bool {
        self.0.was_clean
    }

    /// Whether a log was made here.
    pub(super) fn has_made(&self, log: LogId) -> bool {
        self.0.made.borrow().contains(&log.0)
    }

    /// Puts a log on the list; durable when it returns.
    pub(super) async fn note_made(&self, log: LogId) -> io::Result<()> {
        self.change(|made| made.insert(log.0)).await
    }

    /// Takes a log off the list.
    pub(super) async fn note_deleted(&self, log: LogId) -> io::Result<()> {
        self.change(|made| made.remove(&log.0)).await
    }

    /// Leaves the sign of a clean stop.
    pub(super) async fn note_clean(&self) -> io::Result<()> {
        let file = self.0.disk.open(Path::new(CLEAN), OpenMode::CreateNew).await?;
        file.sync().await?;
        self.0.disk.sync_dir(Path::new("/")).await
    }

    async fn change(&self, change: impl FnOnce(&mut BTreeSet<u128>) -> bool) -> io::Result<()> {
        let _turn = self.0.storing.enter().await;
        let mut made = self.0.made.borrow().clone();
        if change(&mut made) {
            let text: String = made.iter().map(|log| format!("{log:032x}\n")).collect();
            self.0.disk.replace_file(Path::new(MADE), text.into_bytes()).await?;
            *self.0.made.borrow_mut() = made;
        }
        Ok(())
    }
}

/// Where a log lies in its data directory.
pub fn log_directory(partition: TopicPartition, log: LogId) -> PathBuf {
    PathBuf::from(format!("/topics/{}/{}-{log}", partition.topic, partition.partition))
}

fn parse(bytes: &[u8]) -> Vec<u128> {
    let text = String::from_utf8_lossy(bytes);
    text.lines().filter_map(|line| u128::from_str_radix(line, 16).ok()).collect()
}
