//! A descriptor that closes itself through the ring.
//!
//! Invariant: it is held by the file and by each of its operations in flight, so the number is never reused
//! under an operation.
//! Why through the ring: the last close of a removed segment frees its blocks, which may take milliseconds.

use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::rc::Weak;

use super::op::Op;
use super::ring::Ring;
use crate::disk::IoClass;

pub(super) struct FileFd {
    fd: RawFd,
    /// Device number of the file system, to remember what it cannot do.
    pub(super) device: u64,
    /// Weak, because operations in flight live inside the ring and hold descriptors.
    ring: Weak<Ring>,
}

impl FileFd {
    pub(super) fn new(fd: OwnedFd, device: u64, ring: Weak<Ring>) -> Self {
        Self { fd: fd.into_raw_fd(), device, ring }
    }

    pub(super) fn raw(&self) -> RawFd {
        self.fd
    }
}

impl Drop for FileFd {
    fn drop(&mut self) {
        match self.ring.upgrade() {
            Some(ring) => drop(ring.start(Op::Close { fd: self.fd }, IoClass::Background)),
            // The ring is going down: nothing is in flight any more.
            // SAFETY: we own the descriptor, and nobody uses it after this.
            None => drop(unsafe { OwnedFd::from_raw_fd(self.fd) }),
        }
    }
}

impl std::fmt::Debug for FileFd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FileFd({})", self.as_raw_fd())
    }
}
