//! The disk of a shard: the ring, with a watch on how long its syncs take.
//!
//! Owns: the histogram of sync times, because the engine reads no clock. Everything else is passed through.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use corelog_engine::buffer::{DmaBuffer, DmaSlice};
use corelog_engine::disk::uring::{UringDisk, UringFile};
use corelog_engine::disk::{DirEntry, Disk, DiskFile, IoClass, OpenMode};

use crate::control::LatencyBuckets;

/// Sync times of one shard, all disks together.
pub(super) type SyncTimes = Rc<RefCell<LatencyBuckets>>;

/// A ring and the shard's sync times. Cheap to clone.
#[derive(Clone)]
pub(super) struct ShardDisk {
    ring: UringDisk,
    times: SyncTimes,
}

impl ShardDisk {
    /// Watches the syncs of a ring.
    pub(super) fn new(ring: UringDisk, times: SyncTimes) -> Self {
        Self { ring, times }
    }

    /// The ring.
    pub(super) fn ring(&self) -> &UringDisk {
        &self.ring
    }
}

/// An open file of a [`ShardDisk`].
#[derive(Clone)]
pub(super) struct ShardFile {
    file: UringFile,
    times: SyncTimes,
}

/// Notes how long a sync took, from now until it is done. One that fails counts as well: it kept somebody waiting.
fn timed<T>(times: &SyncTimes, sync: impl Future<Output = T> + 'static) -> impl Future<Output = T> + 'static {
    let (times, began) = (times.clone(), Instant::now());
    async move {
        let result = sync.await;
        let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        times.borrow_mut().record(us);
        result
    }
}

impl Disk for ShardDisk {
    type File = ShardFile;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<ShardFile> {
        Ok(ShardFile { file: self.ring.open(path, mode).await?, times: self.times.clone() })
    }

    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>> {
        self.ring.rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> impl Future<Output = io::Result<()>> {
        self.ring.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> impl Future<Output = io::Result<()>> {
        self.ring.remove_dir(path)
    }

    fn remove_dir_all(&self, path: &Path) -> impl Future<Output = io::Result<()>> {
        self.ring.remove_dir_all(path)
    }

    fn create_dir_all(&self, path: &Path) -> impl Future<Output = io::Result<()>> {
        self.ring.create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> impl Future<Output = io::Result<()>> {
        self.ring.sync_dir(path)
    }

    fn list(&self, path: &Path) -> impl Future<Output = io::Result<Vec<DirEntry>>> {
        self.ring.list(path)
    }

    fn read_file(&self, path: &Path, bytes_max: usize) -> impl Future<Output = io::Result<Vec<u8>>> {
        self.ring.read_file(path, bytes_max)
    }

    fn replace_file(&self, path: &Path, contents: Vec<u8>) -> impl Future<Output = io::Result<()>> {
        self.ring.replace_file(path, contents)
    }

    fn free_bytes(&self, path: &Path) -> impl Future<Output = io::Result<u64>> {
        self.ring.free_bytes(path)
    }
}

impl DiskFile for ShardFile {
    fn path(&self) -> PathBuf {
        self.file.path()
    }

    fn write_at(
        &self,
        slices: Vec<DmaSlice>,
        position: u64,
        class: IoClass,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        self.file.write_at(slices, position, class)
    }

    fn read_at(
        &self,
        buffer: DmaBuffer,
        length: usize,
        position: u64,
        class: IoClass,
    ) -> impl Future<Output = (DmaBuffer, io::Result<usize>)> + 'static {
        self.file.read_at(buffer, length, position, class)
    }

    fn sync(&self) -> impl Future<Output = io::Result<()>> + 'static {
        timed(&self.times, self.file.sync())
    }

    fn zero(&self, start: u64, end: u64, class: IoClass) -> impl Future<Output = io::Result<()>> + 'static {
        self.file.zero(start, end, class)
    }

    fn set_length(&self, length: u64) -> impl Future<Output = io::Result<()>> + 'static {
        self.file.set_length(length)
    }

    fn length(&self) -> impl Future<Output = io::Result<u64>> + 'static {
        self.file.length()
    }
}
