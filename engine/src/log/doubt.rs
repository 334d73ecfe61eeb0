//! A durable mark: this log may lack what its replica has acked.
//!
//! Owns: the marker file beside the segments. Made by recovery before anything else that it stores, taken away once the
//! replica has caught up from another one, or leads all the same by an operator's will.
//! Invariant: what recovery finds out once (power was lost with `flush = interval`; sound batches stood behind damage)
//! is not forgotten by a second crash, after which the log looks sound.
//! Crash story: power is lost, recovery cuts the log and stores a checkpoint of this boot. The process is killed before
//! the replica has caught up: the next opening finds nothing to cut and no other boot, but it finds the mark.

use std::io::{self, ErrorKind};
use std::path::Path;

use super::Log;
use crate::disk::Disk;

/// Name of the marker.
const NAME: &str = "log.unverified";

/// A sentence for a person.
const MARKER_BYTES_MAX: usize = 64 << 10;

impl<D: Disk> Log<D> {
    /// Whether the log carries the mark.
    pub fn is_unverified(&self) -> bool {
        self.0.unverified.get()
    }

    /// Says that the log has all that was acked, or that what it has counts from now on. Durable when it returns.
    ///
    /// Errors: the mark may still be there: the replica counts as unverified after the next start.
    pub async fn note_verified(&self) -> io::Result<()> {
        let disk = self.engine().disk();
        match disk.remove_file(&self.dir().join(NAME)).await {
            Ok(()) => disk.sync_dir(self.dir()).await?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.0.unverified.set(false);
        Ok(())
    }
}

/// Why the log in `dir` may lack something, if it is marked.
pub(super) async fn load<D: Disk>(disk: &D, dir: &Path) -> io::Result<Option<String>> {
    match disk.read_file(&dir.join(NAME), MARKER_BYTES_MAX).await {
        Ok(reason) => Ok(Some(String::from_utf8_lossy(&reason).trim_end().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Marks the log in `dir`. Durable when it returns.
pub(super) async fn store<D: Disk>(disk: &D, dir: &Path, reason: &str) -> io::Result<()> {
    disk.replace_file(&dir.join(NAME), format!("{reason}\n").into_bytes()).await
}
