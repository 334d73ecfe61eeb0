//! What carries the bytes of one connection.
//!
//! Owns: the trait alone. Plain TCP is in the server, pipes in memory are in the tests; TLS can come beside them.

use std::future::Future;
use std::io::{self, IoSlice};

/// A connected stream of bytes. A session has at most one read and one write under way at a time.
///
/// The session polls reads and writes again whenever anything else wakes it, so a poll of a pending operation should
/// cost no system call. Dropping a pending read loses no bytes; dropping a pending write ends the connection.
pub trait Transport: 'static {
    /// Reads what is there, at least one byte, into the front of `into`; 0 at the end of the stream.
    fn read(&self, into: &mut [u8]) -> impl Future<Output = io::Result<usize>>;

    /// Writes from `parts`, in order, as much as fits now; at least one byte. `parts` is not empty and at most
    /// [`WRITE_PARTS_MAX`] long.
    fn write_vectored(&self, parts: &[IoSlice<'_>]) -> impl Future<Output = io::Result<usize>>;

    /// Says that nothing more will be written, so that the peer reads the last answer and then the end.
    fn shutdown(&self) -> impl Future<Output = io::Result<()>>;
}

/// Most parts of one vectored write: well below Linux's IOV_MAX of 1024, and enough for a burst of answers.
pub const WRITE_PARTS_MAX: usize = 64;
