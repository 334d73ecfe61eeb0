//! An open file on the ring.
//!
//! Invariant: every operation starts when it is called, not when its future is polled.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::Inner;
use super::fd::FileFd;
use super::op::{Op, Read, Write, ZERO_BYTES};
use crate::buffer::{DmaBuffer, DmaSlice};
use crate::disk::{DiskFile, IoClass, assert_aligned, assert_write_aligned};

/// `FALLOC_FL_WRITE_ZEROES` of Linux 6.17: allocated, zeroed by the device, and marked as written.
const WRITE_ZEROES: i32 = 0x80;

/// Writes of one `zero()` in flight: two keep a device busy while the next is being submitted; the depth limit
/// of the class bounds all of them together.
const ZERO_DEPTH: usize = 4;

/// A file of a [`UringDisk`](super::UringDisk).
#[derive(Clone)]
pub struct UringFile {
    pub(super) inner: Rc<Inner>,
    pub(super) fd: Rc<FileFd>,
    pub(super) path: Rc<Path>,
}

impl UringFile {
    /// The descriptor, for a look at it (`/proc/self/fdinfo`).
    pub fn raw_fd(&self) -> RawFd {
        self.fd.raw()
    }

    async fn allocate(&self, mode: i32, start: u64, end: u64, class: IoClass) -> io::Result<()> {
        let op = Op::Allocate { file: self.fd.clone(), position: start, length: end - start, mode };
        self.inner.ring.start(op, class).await.1.map(drop)
    }

    async fn write_zeroes(&self, start: u64, end: u64, class: IoClass) -> io::Result<()> {
        let mut running = VecDeque::with_capacity(ZERO_DEPTH);
        let mut result = Ok(());
        let mut position = start;
        while position < end || !running.is_empty() {
            if position < end && running.len() < ZERO_DEPTH && result.is_ok() {
                let piece_end = end.min(position + ZERO_BYTES as u64);
                let op = Op::Zero { file: self.fd.clone(), position, end: piece_end };
                running.push_back(self.inner.ring.start(op, class));
                position = piece_end;
                continue;
            }
            let Some(oldest) = running.pop_front() else { break };
            result = result.and(oldest.await.1.map(drop));
        }
        result
    }
}

impl DiskFile for UringFile {
    fn path(&self) -> PathBuf {
        self.path.to_path_buf()
    }

    fn write_at(
        &self,
        slices: Vec<DmaSlice>,
        position: u64,
        class: IoClass,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        assert_write_aligned(&slices, position);
        let write = Write::new(self.fd.clone(), slices, position);
        let started = (!write.is_empty()).then(|| self.inner.ring.start(Op::Write(write), class));
        async move {
            match started {
                Some(started) => started.await.1.map(drop),
                None => Ok(()),
            }
        }
    }

    fn read_at(
        &self,
        mut buffer: DmaBuffer,
        length: usize,
        position: u64,
        class: IoClass,
    ) -> impl Future<Output = (DmaBuffer, io::Result<usize>)> + 'static {
        assert_aligned(position, "position");
        assert_aligned(length as u64, "length");
        assert!(length > 0 && length <= buffer.capacity(), "{length} bytes into {buffer:?}");
        buffer.clear();
        let read = Read::new(self.fd.clone(), buffer, length, position, self.inner.ring.read_bytes_max);
        let started = self.inner.ring.start(Op::Read(read), class);
        async move {
            let (op, result) = started.await;
            let Op::Read(read) = op else { unreachable!("an operation comes back as what it was") };
            (read.buffer, result)
        }
    }

    fn sync(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let op = Op::Sync { file: self.fd.clone(), data_only: true };
        let started = self.inner.ring.start(op, IoClass::Commit);
        async move { started.await.1.map(drop) }
    }

    fn zero(&self, start: u64, end: u64, class: IoClass) -> impl Future<Output = io::Result<()>> + 'static {
        assert_aligned(start, "start");
        assert_aligned(end, "end");
        assert!(start <= end, "[{start}, {end}) is no range");
        let file = self.clone();
        async move {
            if start == end {
                return Ok(());
            }
            // A fallocate that fails for want of space keeps what it got: it would leave nothing to those who
            // write. So it is not tried when it cannot work.
            let grown_bytes = end.saturating_sub(start.max(file.length().await?));
            if grown_bytes > super::free_bytes(file.fd.raw())? {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC));
            }
            let device = file.fd.device;
            if !file.inner.writes_zeroes_by_hand.borrow().contains(&device) {
                match file.allocate(WRITE_ZEROES, start, end, class).await {
                    Err(error) if is_unsupported(&error) => {
                        file.inner.writes_zeroes_by_hand.borrow_mut().insert(device);
                    }
                    other => return other,
                }
            }
            // The blocks in one piece first, and the length: each write then only fills what is there.
            match file.allocate(0, start, end, class).await {
                Err(error) if !is_unsupported(&error) => Err(error),
                _ => file.write_zeroes(start, end, class).await,
            }
        }
    }

    fn set_length(&self, length: u64) -> impl Future<Output = io::Result<()>> + 'static {
        let file = self.clone();
        let started = file.inner.ring.has_ftruncate.then(|| {
            let op = Op::SetLength { file: file.fd.clone(), length };
            file.inner.ring.start(op, IoClass::Commit)
        });
        async move {
            match started {
                Some(started) => started.await.1.map(drop),
                // Linux before 6.9 has no such operation: the call blocks this core for as long as it takes to
                // free the blocks. Segments are cut when they are sealed, not per append.
                // SAFETY: no pointers; the descriptor is open as long as `file` lives.
                None => match unsafe { libc::ftruncate(file.fd.raw(), length as libc::off_t) } {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                },
            }
        }
    }

    fn length(&self) -> impl Future<Output = io::Result<u64>> + 'static {
        // Not through the ring: the inode of an open file is in memory, so this is one short system call,
        // where the ring's statx always goes to a worker thread.
        let result = super::status(self.fd.raw()).map(|status| status.st_size as u64);
        std::future::ready(result)
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS))
}

impl std::fmt::Debug for UringFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UringFile({:?})", self.path)
    }
}
