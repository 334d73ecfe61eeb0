//! What the engine asks of a disk.
//!
//! Owns: the two traits, the I/O classes, and the contract below. Implementations: `uring` here (Linux direct
//! I/O), `corelog_sim::SimDisk` (a disk that forgets, tears, rots and fills up). One conformance suite runs
//! on both (`engine/tests/disk_conformance.rs`).
//!
//! The contract:
//! - Writes and reads are aligned to [`BLOCK_BYTES`] in file position, length and memory.
//! - A completed write is *written*: it survives the death of the process. It survives power loss only once a
//!   [`DiskFile::sync`] that started after its completion has succeeded.
//! - Writes in flight complete in any order, and power loss keeps, drops or tears each at the grain of 512
//!   bytes: a sector holds old or new bytes, never a mixture.
//! - A created, renamed or removed name is durable once [`Disk::sync_dir`] of its directory has succeeded.
//! - Operations start when the future is first polled or earlier. Dropping a future does not cancel its
//!   operation: the implementation keeps file and buffers alive until the kernel is done.
//! - After a failed sync nothing is known of what was written since the last good one. Never retry it.
//!
//! Absent on purpose: a write that is durable by itself. Measured 2026-11-24 (ext4 on a virtio disk with a write-back
//! cache and without FUA, Linux 6.18, two cores busy with other work, direct writes into a written file, the modes in
//! turn on one file, medians in microseconds):
//!
//! | bytes | write | write, then fdatasync | the two linked | `RWF_DSYNC` | 4 writes, then fdatasync | 4 x `RWF_DSYNC` |
//! |---|---|---|---|---|---|---|
//! | 4 KiB | 54 | 101 | 100 | 94 | 114 | 162 |
//! | 64 KiB | 72 | 124 | 120 | 116 | 177 | 217 |
//! | 1 MiB | 322 | 467 | 432 | 1,961 | 2,041 | 1,308 |
//!
//! So one sync for many writes wins as soon as there are two, and linking gains nothing. A write and its sync into a
//! file that was only fallocated took 211 (4 KiB) and 4,409 (64 KiB), into one that grew 960 and 203, all with tails of
//! 4 to 8 ms: hence [`DiskFile::zero`].

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};

use crate::buffer::{DmaBuffer, DmaSlice};

pub mod uring;

/// Alignment of every position, length and address of direct I/O: a page, and a multiple of any logical block
/// size in use.
pub const BLOCK_BYTES: usize = 4096;

/// Who waits for an operation; decides its depth limit and its kernel I/O priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoClass {
    /// A produce waits: writes and syncs of the active segment.
    Commit,
    /// A consumer waits: cold reads and their read-ahead.
    ColdRead,
    /// A replica far behind waits: it may take all day, so producers and consumers go first.
    CatchUp,
    /// Nobody waits: writing ahead, compaction, copying aside, mending.
    Background,
    /// Looking at what nobody asked for.
    Scrub,
}

/// How a file is opened. Always for reading and writing, with direct I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Fails with `NotFound` if it is not there.
    Existing,
    /// Fails with `AlreadyExists` if it is there.
    CreateNew,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// File name without its directory.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// A disk, as one shard sees it. Cheap to clone.
pub trait Disk: Clone + 'static {
    /// An open file.
    type File: DiskFile;

    /// Opens a file for direct I/O.
    fn open(&self, path: &Path, mode: OpenMode) -> impl Future<Output = io::Result<Self::File>>;

    /// Renames a file or directory, replacing a file at `to`. Durable after `sync_dir` of both directories.
    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>>;

    /// Removes a file. Durable after `sync_dir`.
    fn remove_file(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Removes an empty directory. Durable after `sync_dir` of the one above.
    fn remove_dir(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Removes a directory with all in it. Not an error if it is not there.
    ///
    /// Cancel: if dropped, a part of it may be left.
    fn remove_dir_all(&self, path: &Path) -> impl Future<Output = io::Result<()>> {
        async move {
            // Directories to look into, and those seen, parents first; each is removed after all in it.
            let mut open = vec![path.to_path_buf()];
            let mut seen = Vec::new();
            while let Some(dir) = open.pop() {
                let entries = match self.list(&dir).await {
                    // Somebody else removes the same tree: the end is what counts.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    other => other?,
                };
                for entry in entries {
                    let inner = dir.join(&entry.name);
                    if entry.is_dir {
                        open.push(inner);
                    } else {
                        gone_is_fine(self.remove_file(&inner).await)?;
                    }
                }
                seen.push(dir);
            }
            for dir in seen.iter().rev() {
                gone_is_fine(self.remove_dir(dir).await)?;
            }
            Ok(())
        }
    }

    /// Creates a directory and its parents. Not an error if it is there.
    fn create_dir_all(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Makes created, renamed and removed names of a directory durable.
    fn sync_dir(&self, path: &Path) -> impl Future<Output = io::Result<()>>;

    /// Names in a directory, sorted.
    fn list(&self, path: &Path) -> impl Future<Output = io::Result<Vec<DirEntry>>>;

    /// Whole contents of a small file (an index, a checkpoint). Fails with `InvalidData` above `bytes_max`.
    fn read_file(&self, path: &Path, bytes_max: usize) -> impl Future<Output = io::Result<Vec<u8>>>;

    /// Replaces a small file: written beside it, synced, renamed over it, directory synced. A crash leaves the
    /// old or the new contents, whole.
    fn replace_file(&self, path: &Path, contents: Vec<u8>) -> impl Future<Output = io::Result<()>>;

    /// Bytes that an ordinary user may still write on the file system of `path`.
    fn free_bytes(&self, path: &Path) -> impl Future<Output = io::Result<u64>>;
}

/// What is not there any more need not be removed.
fn gone_is_fine(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// An open file. Cheap to clone; closed when the last clone and the last operation are gone.
pub trait DiskFile: Clone + 'static {
    /// The path it was opened with (a later rename does not show).
    fn path(&self) -> PathBuf;

    /// Writes the slices one after the other at `position`. A short write is an error.
    ///
    /// Shape: `position`, and each slice's address and length, are multiples of [`BLOCK_BYTES`].
    /// Errors: `StorageFull` (ENOSPC) leaves the file usable; anything else means that the medium is in doubt.
    fn write_at(
        &self,
        slices: Vec<DmaSlice>,
        position: u64,
        class: IoClass,
    ) -> impl Future<Output = io::Result<()>> + 'static;

    /// Reads `length` bytes at `position` into the front of `buffer` and gives it back with the number of bytes
    /// read (less than `length` only at the end of the file), already counted as filled.
    ///
    /// Shape: `position` and `length` are multiples of [`BLOCK_BYTES`]; `length` fits the buffer.
    fn read_at(
        &self,
        buffer: DmaBuffer,
        length: usize,
        position: u64,
        class: IoClass,
    ) -> impl Future<Output = (DmaBuffer, io::Result<usize>)> + 'static;

    /// Makes all completed writes and the length durable (fdatasync).
    fn sync(&self) -> impl Future<Output = io::Result<()>> + 'static;

    /// Writes zeroes to `[start, end)`, growing the file if needed: the blocks are allocated *and written*, so
    /// that a later write there moves data and nothing else. Not durable by itself.
    ///
    /// Errors: `StorageFull` before anything is taken, if the space is not there for what grows the file.
    /// Cancel: if dropped, it stops after the pieces in flight.
    fn zero(&self, start: u64, end: u64, class: IoClass) -> impl Future<Output = io::Result<()>> + 'static;

    /// Cuts or extends the file to `length` bytes (any number, not only whole blocks).
    fn set_length(&self, length: u64) -> impl Future<Output = io::Result<()>> + 'static;

    /// Current length in bytes.
    fn length(&self) -> impl Future<Output = io::Result<u64>> + 'static;
}

/// For implementations: a position, length or address that is not aligned is a bug of the caller.
///
/// # Panics
/// If `value` is no multiple of [`BLOCK_BYTES`].
pub fn assert_aligned(value: u64, what: &str) {
    assert!(value.is_multiple_of(BLOCK_BYTES as u64), "{what} {value} is no multiple of {BLOCK_BYTES}");
}

/// For implementations: the shape that [`DiskFile::write_at`] demands.
///
/// # Panics
/// If the position, or an address or length, is not aligned.
pub fn assert_write_aligned(slices: &[DmaSlice], position: u64) {
    assert_aligned(position, "position");
    for slice in slices {
        assert_aligned(slice.as_ptr() as u64, "address");
        assert_aligned(slice.len() as u64, "length");
    }
}
