//! One operation: the memory it lends to the kernel, its ring entry, and what its result means.
//!
//! Owns: buffers, iovecs and paths of an operation from its start to its last completion. They live in the
//! slab of `ring.rs`, so a dropped future never frees what the kernel still uses.
//! Invariant: everything the kernel is given a pointer to lies on the heap or in the arena, so an [`Op`] may
//! move while it is in flight.
//! Not here: depth limits, submission, wakers (`ring.rs`).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::rc::Rc;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use super::fd::FileFd;
use crate::buffer::{DmaBuffer, DmaSlice};
use crate::disk::{BLOCK_BYTES, IoClass};

/// Most iovecs in one entry: the kernel's `UIO_MAXIOV`.
const IOVECS_MAX: usize = 1024;

/// Largest single read or write given to the kernel; longer ones continue when the part before is done. One
/// buffer of the pool is never longer, so it only cuts vectors of many buffers.
const TRANSFER_BYTES_MAX: usize = 8 << 20;

/// Length of [`ZEROES`], and so of one write of a `zero()`.
pub(super) const ZERO_BYTES: usize = 1 << 20;

/// Aligned zeroes that every `zero()` writes from. In the `.bss`, so it costs no memory but the zero page.
#[repr(C, align(4096))]
struct Zeroes([u8; ZERO_BYTES]);

static ZEROES: Zeroes = Zeroes([0; ZERO_BYTES]);

/// What the operation is, with all that the kernel may touch while it is in flight.
pub(super) enum Op {
    Write(Write),
    Read(Read),
    /// Writes `[position, end)`, at most [`ZERO_BYTES`], from the shared zeroes.
    Zero {
        file: Rc<FileFd>,
        position: u64,
        end: u64,
    },
    /// Writes `bytes` from the start of a file in the page cache.
    WriteBytes {
        file: Rc<FileFd>,
        bytes: Vec<u8>,
        done: usize,
    },
    /// Reads into `bytes` (its length says how much) from the start of a file in the page cache.
    ReadBytes {
        file: Rc<FileFd>,
        bytes: Vec<u8>,
        done: usize,
    },
    Sync {
        file: Rc<FileFd>,
        data_only: bool,
    },
    Allocate {
        file: Rc<FileFd>,
        position: u64,
        length: u64,
        mode: i32,
    },
    SetLength {
        file: Rc<FileFd>,
        length: u64,
    },
    /// Ends with the descriptor in `opened`, so that it is closed even if nobody waits any more.
    Open {
        path: CString,
        flags: i32,
        opened: Option<OwnedFd>,
    },
    Rename {
        from: CString,
        to: CString,
    },
    Unlink {
        path: CString,
        flags: i32,
    },
    MakeDir {
        path: CString,
    },
    Close {
        fd: RawFd,
    },
}

/// A vectored direct write.
pub(super) struct Write {
    file: Rc<FileFd>,
    /// Keeps alive what `iovecs` points to.
    _slices: Vec<DmaSlice>,
    iovecs: Vec<libc::iovec>,
    /// The first iovec that is not wholly written.
    next: usize,
    position: u64,
    left: usize,
    total: usize,
}

/// A direct read into the front of a buffer.
pub(super) struct Read {
    file: Rc<FileFd>,
    pub(super) buffer: DmaBuffer,
    address: *mut u8,
    position: u64,
    length: usize,
    done: usize,
    /// Longest piece asked of the kernel at once.
    piece_bytes_max: usize,
}

/// What a completion means.
pub(super) enum Progress {
    /// The operation is over.
    Done(io::Result<usize>),
    /// There is more to do: submit [`Op::entry`] again.
    Again,
}

impl Write {
    pub(super) fn new(file: Rc<FileFd>, slices: Vec<DmaSlice>, position: u64) -> Self {
        let iovecs: Vec<_> = slices
            .iter()
            .filter(|slice| !slice.is_empty())
            .map(|slice| libc::iovec { iov_base: slice.as_ptr() as *mut _, iov_len: slice.len() })
            .collect();
        let total = iovecs.iter().map(|iovec| iovec.iov_len).sum();
        Self { file, _slices: slices, iovecs, next: 0, position, left: total, total }
    }

    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// How many iovecs the next entry takes: bounded in number and bytes, at least one.
    fn span(&self) -> usize {
        let mut bytes = 0;
        let mut count = 0;
        for iovec in self.iovecs[self.next..].iter().take(IOVECS_MAX) {
            bytes += iovec.iov_len;
            if count > 0 && bytes > TRANSFER_BYTES_MAX {
                break;
            }
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut written: usize) {
        self.left -= written;
        self.position += written as u64;
        while written > 0 {
            let iovec = &mut self.iovecs[self.next];
            let step = written.min(iovec.iov_len);
            iovec.iov_len -= step;
            // SAFETY: `step` is at most the length of this slice, so the pointer stays within or one past it.
            iovec.iov_base = unsafe { iovec.iov_base.cast::<u8>().add(step).cast() };
            written -= step;
            if iovec.iov_len == 0 {
                self.next += 1;
            }
        }
    }
}

impl Read {
    /// `buffer` must be empty and unshared, so that the kernel is the only one who touches its memory.
    pub(super) fn new(
        file: Rc<FileFd>,
        mut buffer: DmaBuffer,
        length: usize,
        position: u64,
        piece_bytes_max: usize,
    ) -> Self {
        let address = buffer.spare_ptr();
        Self { file, buffer, address, position, length, done: 0, piece_bytes_max }
    }
}

impl Op {
    /// The ring entry of what is still to do. The caller puts in the key.
    pub(super) fn entry(&self, class: IoClass, setting: EntrySetting) -> Entry {
        let here = types::Fd(libc::AT_FDCWD);
        match self {
            Op::Write(write) => {
                let file = types::Fd(write.file.raw());
                let from = write.iovecs[write.next..].as_ptr();
                opcode::Writev::new(file, from, write.span() as u32)
                    .offset(write.position)
                    .ioprio(priority(class))
                    .build()
            }
            Op::Read(read) => {
                let length = (read.length - read.done).min(read.piece_bytes_max);
                // SAFETY: `done <= length <= capacity` of the buffer that `address` starts.
                let to = unsafe { read.address.add(read.done) };
                opcode::Read::new(types::Fd(read.file.raw()), to, length as u32)
                    .offset(read.position + read.done as u64)
                    .ioprio(priority(class))
                    .build()
            }
            Op::Zero { file, position, end } => {
                opcode::Write::new(types::Fd(file.raw()), ZEROES.0.as_ptr(), (end - position) as u32)
                    .offset(*position)
                    .ioprio(priority(class))
                    .build()
            }
            Op::WriteBytes { file, bytes, done } => {
                let left = &bytes[*done..];
                let length = left.len().min(TRANSFER_BYTES_MAX) as u32;
                opcode::Write::new(types::Fd(file.raw()), left.as_ptr(), length).offset(*done as u64).build()
            }
            Op::ReadBytes { file, bytes, done } => {
                let left = &bytes[*done..];
                let length = left.len().min(TRANSFER_BYTES_MAX) as u32;
                opcode::Read::new(types::Fd(file.raw()), left.as_ptr() as *mut u8, length)
                    .offset(*done as u64)
                    .build()
            }
            Op::Sync { file, data_only } => {
                let flags = if *data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
                opcode::Fsync::new(types::Fd(file.raw())).flags(flags).build()
            }
            Op::Allocate { file, position, length, mode } => {
                opcode::Fallocate::new(types::Fd(file.raw()), *length).offset(*position).mode(*mode).build()
            }
            Op::SetLength { file, length } => opcode::Ftruncate::new(types::Fd(file.raw()), *length).build(),
            Op::Open { path, flags, .. } => {
                opcode::OpenAt::new(here, path.as_ptr()).flags(*flags).mode(0o644).build()
            }
            Op::Rename { from, to } => opcode::RenameAt::new(here, from.as_ptr(), here, to.as_ptr()).build(),
            Op::Unlink { path, flags } => opcode::UnlinkAt::new(here, path.as_ptr()).flags(*flags).build(),
            Op::MakeDir { path } => opcode::MkDirAt::new(here, path.as_ptr()).mode(0o755).build(),
            // Forced onto a kernel worker: the last close of a removed file frees its blocks, which takes
            // milliseconds for a segment, and would take them from this core.
            Op::Close { fd } => {
                return opcode::Close::new(types::Fd(*fd)).build().flags(io_uring::squeue::Flags::ASYNC);
            }
        }
        .flags(match setting {
            EntrySetting::Inline => io_uring::squeue::Flags::empty(),
            EntrySetting::Worker => io_uring::squeue::Flags::ASYNC,
        })
    }

    /// Takes the result of a completion (`-errno` if negative) into account.
    pub(super) fn advance(&mut self, result: i32) -> Progress {
        let count = match usize::try_from(result) {
            Ok(count) => count,
            Err(_) => return Progress::Done(Err(io::Error::from_raw_os_error(-result))),
        };
        match self {
            Op::Write(write) => {
                assert!(count <= write.left, "{count} bytes written of {}", write.left);
                write.advance(count);
                written(count, write.left, write.total)
            }
            Op::Zero { position, end, .. } => {
                *position += count as u64;
                written(count, (*end - *position) as usize, ZERO_BYTES)
            }
            Op::WriteBytes { bytes, done, .. } => {
                *done += count;
                written(count, bytes.len() - *done, bytes.len())
            }
            Op::Read(read) => {
                assert!(count <= read.length - read.done, "{count} bytes read, more than asked for");
                read.done += count;
                // A count that is no multiple of a block is the end of the file. A whole one may be a short
                // read, and only the next read tells.
                let at_end = count == 0 || !count.is_multiple_of(BLOCK_BYTES);
                if read.done == read.length || at_end {
                    // SAFETY: the kernel has put `done` bytes at the front of the buffer, which was empty.
                    unsafe { read.buffer.add_filled(read.done) };
                    return Progress::Done(Ok(read.done));
                }
                Progress::Again
            }
            Op::ReadBytes { bytes, done, .. } => {
                *done += count;
                if count == 0 || *done == bytes.len() {
                    return Progress::Done(Ok(*done));
                }
                Progress::Again
            }
            Op::Open { opened, .. } => {
                // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
                *opened = Some(unsafe { OwnedFd::from_raw_fd(result) });
                Progress::Done(Ok(0))
            }
            Op::Sync { .. }
            | Op::Allocate { .. }
            | Op::SetLength { .. }
            | Op::Rename { .. }
            | Op::Unlink { .. }
            | Op::MakeDir { .. }
            | Op::Close { .. } => Progress::Done(Ok(0)),
        }
    }

    /// What the counters file it under.
    pub(super) fn kind(&self) -> OpKind {
        match self {
            Op::Write(_) | Op::Zero { .. } | Op::WriteBytes { .. } => OpKind::Write,
            Op::Read(_) | Op::ReadBytes { .. } => OpKind::Read,
            Op::Sync { .. } => OpKind::Sync,
            _ => OpKind::Other,
        }
    }

    /// Opens a file by path; `flags` as of `open(2)`.
    pub(super) fn open(path: &Path, flags: i32) -> io::Result<Self> {
        Ok(Op::Open { path: c_path(path)?, flags: flags | libc::O_CLOEXEC, opened: None })
    }
}

/// How an entry is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntrySetting {
    /// Tried in the submitting system call first.
    Inline,
    /// Given to a kernel worker at once, where it may block: after an `EAGAIN`.
    Worker,
}

/// What the counters file an operation under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpKind {
    Write,
    Read,
    Sync,
    Other,
}

fn written(count: usize, left: usize, total: usize) -> Progress {
    match (count, left) {
        (_, 0) => Progress::Done(Ok(total)),
        // A write that takes nothing and says no error would be repeated for ever.
        (0, _) => Progress::Done(Err(io::ErrorKind::WriteZero.into())),
        _ => Progress::Again,
    }
}

/// Kernel I/O priority: best effort (no privilege needed), level by class, 0 first and 7 last. Never the idle
/// class: produces may come to wait for a segment that background work makes ready.
fn priority(class: IoClass) -> u16 {
    const BEST_EFFORT: u16 = 2 << 13;
    match class {
        IoClass::Commit => BEST_EFFORT,
        IoClass::ColdRead => BEST_EFFORT | 4,
        IoClass::CatchUp => BEST_EFFORT | 6,
        IoClass::Background | IoClass::Scrub => BEST_EFFORT | 7,
    }
}

/// The path as the kernel takes it. Fails with `InvalidInput` if there is a NUL in it.
pub(super) fn c_path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} has a NUL byte in it")))
}

impl Op {
    /// The descriptor that an [`Op::Open`] ended with.
    pub(super) fn into_opened(self) -> OwnedFd {
        match self {
            Op::Open { opened: Some(fd), .. } => fd,
            _ => unreachable!("only an open that went well is asked for its descriptor"),
        }
    }
}

impl AsRawFd for FileFd {
    fn as_raw_fd(&self) -> RawFd {
        self.raw()
    }
}

#[cfg(test)]
mod tests;
