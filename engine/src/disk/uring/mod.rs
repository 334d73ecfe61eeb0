//! The real disk: direct I/O through one io_uring per shard, independent of the executor that runs the shard.
//!
//! Owns: the ring (`ring.rs`) and how each operation of [`Disk`] is said in ring operations.
//! Invariant: an operation starts when its function is called, and runs to its end whoever still waits.
//! Invariant: buffers, iovecs and paths belong to the ring until the kernel is done with them (`op.rs`).
//! Why not glommio's files: they cannot write a part of a shared buffer, and take one operation per await.
//!
//! Waiting: completions are taken by [`UringDisk::reap`]. Whoever runs the shard waits for
//! [`UringDisk::eventfd`] to be readable, reads its eight bytes, and then reaps; without executor,
//! [`UringDisk::block_on`] does both. The descriptor is a blocking one: read it through a ring or after a poll.
//! A disk belongs to the thread that made it (the ring is set up for a single issuer).
//!
//! Assumes Linux 5.15 or later; 6.1 for completions in batches, 6.9 for cutting files without blocking the
//! core, 6.17 and a device with it for zeroing by the device.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustc_hash::FxHashSet;

use self::fd::FileFd;
use self::op::{Op, c_path};
use self::ring::Ring;
use crate::buffer::BUFFER_BYTES_MAX;
use crate::disk::{DirEntry, Disk, IoClass, OpenMode, assert_aligned};

mod block_on;
mod fd;
mod file;
mod op;
mod ring;
mod stats;

pub use self::file::UringFile;
pub use self::stats::{ClassStats, UringStats};

/// Limits of one ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UringOptions {
    /// Operations of class `Commit` that the kernel has at once; more wait. 256 is beyond what any one device
    /// gains from, and bounds the kernel's memory.
    pub commit_depth_max: usize,
    /// The same of class `ColdRead`. 16 reads of a whole buffer saturate a solid-state disk; more would only
    /// lengthen the queue that a commit stands in.
    pub cold_read_depth_max: usize,
    /// The same of class `CatchUp`. 4 reads of a whole buffer fill a 10 Gbit/s link from a solid-state disk.
    pub catch_up_depth_max: usize,
    /// The same of class `Background`. 4 large writes keep a device busy while commits still get through.
    pub background_depth_max: usize,
    /// The same of class `Scrub`. One read at a time: whoever scrubs also waits between them.
    pub scrub_depth_max: usize,
    /// Longest read asked of the kernel at once, in bytes, a multiple of [`BLOCK_BYTES`](super::BLOCK_BYTES); longer ones are done
    /// in pieces.
    pub read_bytes_max: usize,
}

impl Default for UringOptions {
    fn default() -> Self {
        Self {
            commit_depth_max: 256,
            cold_read_depth_max: 16,
            catch_up_depth_max: 4,
            background_depth_max: 4,
            scrub_depth_max: 1,
            read_bytes_max: BUFFER_BYTES_MAX,
        }
    }
}

/// Direct I/O on the real disk. Cheap to clone; all clones share one ring.
#[derive(Clone)]
pub struct UringDisk(Rc<Inner>);

pub(super) struct Inner {
    ring: Rc<Ring>,
    /// Devices that have no `FALLOC_FL_WRITE_ZEROES`: learnt once, not asked again.
    writes_zeroes_by_hand: RefCell<FxHashSet<u64>>,
    /// Makes the names of temporary files differ.
    replaced: std::cell::Cell<u64>,
}

impl UringDisk {
    /// Sets up a ring for the calling thread.
    ///
    /// Errors: the kernel has no io_uring, is older than 5.15 (`Unsupported`), forbids it (`PermissionDenied`), or
    /// memory is short (`OutOfMemory`); the message says what to change, and the shard cannot start.
    ///
    /// # Panics
    /// If a depth is 0 or `read_bytes_max` is not a positive multiple of [`BLOCK_BYTES`](super::BLOCK_BYTES).
    pub fn new(options: &UringOptions) -> io::Result<Self> {
        assert!(options.read_bytes_max > 0, "a read has at least one block");
        assert_aligned(options.read_bytes_max as u64, "read_bytes_max");
        Ok(Self(Rc::new(Inner {
            ring: Rc::new(Ring::new(options)?),
            writes_zeroes_by_hand: RefCell::default(),
            replaced: std::cell::Cell::new(0),
        })))
    }

    /// Readable when there may be something to [`reap`](UringDisk::reap). Read its eight bytes first, then reap.
    pub fn eventfd(&self) -> BorrowedFd<'_> {
        self.0.ring.eventfd()
    }

    /// Takes all completions, starts what was queued behind a depth limit, wakes who waited. Never blocks.
    /// Returns how many completions there were.
    pub fn reap(&self) -> usize {
        self.0.ring.reap()
    }

    /// Runs `body`, and then hands all operations that it started to the kernel in one system call.
    pub fn batched<R>(&self, body: impl FnOnce() -> R) -> R {
        self.0.ring.batched(body)
    }

    /// Runs a future to its end on this thread, without executor: for tests, tools and the bench. It may wait
    /// only for this disk and for what it wakes itself.
    ///
    /// # Panics
    /// If it waits while nothing is in flight: it would wait for ever.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        block_on::block_on(&self.0.ring, future)
    }

    /// Counters since the ring was made.
    pub fn stats(&self) -> UringStats {
        self.0.ring.stats()
    }

    async fn run(&self, op: io::Result<Op>, class: IoClass) -> io::Result<Op> {
        let (op, result) = self.0.ring.start(op?, class).await;
        result.map(|_| op)
    }

    /// Opens a file without direct I/O: small files that are read or written whole, and directories.
    async fn open_plain(&self, path: &Path, flags: i32) -> io::Result<Rc<FileFd>> {
        let fd = self.run(Op::open(path, flags), IoClass::Commit).await?.into_opened();
        self.own(fd)
    }

    fn own(&self, fd: OwnedFd) -> io::Result<Rc<FileFd>> {
        let status = status(fd.as_raw_fd())?;
        Ok(Rc::new(FileFd::new(fd, status.st_dev, Rc::downgrade(&self.0.ring))))
    }

    async fn sync_fd(&self, file: Rc<FileFd>) -> io::Result<()> {
        self.run(Ok(Op::Sync { file, data_only: false }), IoClass::Commit).await.map(drop)
    }

    async fn write_whole(&self, path: &Path, contents: Vec<u8>) -> io::Result<()> {
        let file = self.open_plain(path, libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC).await?;
        if !contents.is_empty() {
            let op = Op::WriteBytes { file: file.clone(), bytes: contents, done: 0 };
            self.run(Ok(op), IoClass::Commit).await?;
        }
        self.sync_fd(file).await
    }

    async fn remove(&self, path: &Path, flags: i32) -> io::Result<()> {
        let op = c_path(path).map(|path| Op::Unlink { path, flags });
        self.run(op, IoClass::Background).await.map(drop)
    }
}

impl Disk for UringDisk {
    type File = UringFile;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<UringFile> {
        let create = match mode {
            OpenMode::Existing => 0,
            OpenMode::CreateNew => libc::O_CREAT | libc::O_EXCL,
        };
        let op = Op::open(path, libc::O_RDWR | libc::O_DIRECT | create);
        let fd = match self.run(op, IoClass::Commit).await {
            Ok(op) => self.own(op.into_opened())?,
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                if mode == OpenMode::CreateNew {
                    // The kernel makes the name before it finds out.
                    let _ = self.remove(path, 0).await;
                }
                return Err(no_direct_io(path));
            }
            Err(error) => return Err(error),
        };
        Ok(UringFile { inner: self.0.clone(), fd, path: path.into() })
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let op = c_path(from).and_then(|from| Ok(Op::Rename { from, to: c_path(to)? }));
        self.run(op, IoClass::Commit).await.map(drop)
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.remove(path, 0).await
    }

    async fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.remove(path, libc::AT_REMOVEDIR).await
    }

    async fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut missing: Vec<&Path> = Vec::new();
        let mut next = Some(path);
        // Upwards to the first directory that can be made or is there, then down again.
        while let Some(dir) = next {
            match self.make_dir(dir).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    missing.push(dir);
                    next = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
                }
                other => {
                    other?;
                    break;
                }
            }
        }
        while let Some(dir) = missing.pop() {
            self.make_dir(dir).await?;
        }
        Ok(())
    }

    async fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let dir = self.open_plain(path, libc::O_RDONLY | libc::O_DIRECTORY).await?;
        self.sync_fd(dir).await
    }

    async fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        // The ring has no getdents. Directories are listed when a log is opened or deleted, not per request.
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name().into_string().map_err(|name| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{path:?} has a name that is not text: {name:?}"),
                )
            })?;
            entries.push(DirEntry { name, is_dir: entry.file_type()?.is_dir() });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    async fn read_file(&self, path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
        let file = self.open_plain(path, libc::O_RDONLY).await?;
        let length = status(file.raw())?.st_size as u64;
        if length > bytes_max as u64 {
            let message = format!("{path:?} has {length} bytes, more than {bytes_max}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        if length == 0 {
            return Ok(Vec::new());
        }
        let op = Op::ReadBytes { file, bytes: vec![0; length as usize], done: 0 };
        match self.run(Ok(op), IoClass::Commit).await? {
            Op::ReadBytes { mut bytes, done, .. } => {
                bytes.truncate(done);
                Ok(bytes)
            }
            _ => unreachable!("an operation comes back as what it was"),
        }
    }

    async fn replace_file(&self, path: &Path, contents: Vec<u8>) -> io::Result<()> {
        let beside = self.temporary_beside(path)?;
        let written = self.write_whole(&beside, contents).await;
        if let Err(error) = written {
            // Best effort: what is left is ignored and overwritten by the next try.
            let _ = self.remove(&beside, 0).await;
            return Err(error);
        }
        self.rename(&beside, path).await?;
        self.sync_dir(parent(path)).await
    }

    async fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let dir = self.open_plain(path, libc::O_RDONLY).await?;
        free_bytes(dir.raw())
    }
}

impl UringDisk {
    async fn make_dir(&self, path: &Path) -> io::Result<()> {
        match self.run(c_path(path).map(|path| Op::MakeDir { path }), IoClass::Commit).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            other => other.map(drop),
        }
    }

    /// A name in the same directory that no other replacement in progress uses.
    fn temporary_beside(&self, path: &Path) -> io::Result<PathBuf> {
        let Some(name) = path.file_name() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} names no file")));
        };
        let count = self.0.replaced.get();
        self.0.replaced.set(count + 1);
        let mut name = name.to_os_string();
        name.push(format!(".{count}.tmp"));
        Ok(path.with_file_name(name))
    }
}

/// The directory of a path; `.` for a bare name.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn no_direct_io(path: &Path) -> io::Error {
    let message = format!(
        "{path:?}: the file system does not take direct I/O (O_DIRECT); put the data directory on ext4 or XFS"
    );
    io::Error::new(io::ErrorKind::Unsupported, message)
}

/// Bytes that an ordinary user may still write on the file system of `fd`. Not through the ring, which has no
/// statfs; a local file system answers from memory.
fn free_bytes(fd: RawFd) -> io::Result<u64> {
    let mut status = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: memory for the answer that lives through the call.
    if unsafe { libc::fstatvfs(fd, status.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call went well, so it has filled it in.
    let status = unsafe { status.assume_init() };
    Ok(status.f_bavail * status.f_frsize)
}

fn status(fd: RawFd) -> io::Result<libc::stat> {
    let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: memory for the answer that lives through the call.
    if unsafe { libc::fstat(fd, status.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call went well, so it has filled it in.
    Ok(unsafe { status.assume_init() })
}
