//! Options of one log and of the engine, with the reason of each limit.
//!
//! Owns: defaults and ranges. A topic's options become [`LogOptions`]; a shard's become [`EngineOptions`].

use crate::batch::TimestampType;
use crate::buffer::BUFFER_BYTES_MAX;
use crate::checkpoint::BootId;
use crate::disk::IoClass;

/// When appended bytes are made to survive power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushPolicy {
    /// Before the produce is answered: one group sync for all that wait.
    Commit,
    /// In the background, when either bound is reached; answered once written (survives kill -9, not power loss).
    Interval {
        /// Unsynced bytes that start a sync.
        bytes_max: u64,
        /// Age in ms of the oldest unsynced byte that starts a sync.
        ms_max: u64,
    },
}

/// What happens to old records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CleanupPolicy {
    /// Whole segments are deleted by `retention_bytes` and `retention_ms`.
    Delete,
    /// Nothing is deleted: the log grows until records are deleted by request.
    Keep,
}

/// Options of one log. All may change while it is open; segment limits take effect at the next append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// A segment rolls before it would pass this many bytes.
    pub segment_bytes_max: u64,
    /// A segment rolls when its first append is older than this.
    pub segment_age_max_ms: u64,
    /// Oldest segments go while the log is larger than this. `None`: no limit.
    pub retention_bytes: Option<u64>,
    /// Segments go when their newest record is older than this. `None`: no limit.
    pub retention_ms: Option<u64>,
    /// When bytes are synced.
    pub flush: FlushPolicy,
    /// Largest batch accepted, header included.
    pub batch_bytes_max: usize,
    /// Whose clock the record timestamps show.
    pub timestamp_type: TimestampType,
    /// What happens to old records.
    pub cleanup_policy: CleanupPolicy,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes_max: 1 << 30,
            segment_age_max_ms: 7 * 24 * 3_600_000,
            retention_bytes: None,
            retention_ms: Some(7 * 24 * 3_600_000),
            flush: FlushPolicy::Commit,
            batch_bytes_max: 1_048_588,
            timestamp_type: TimestampType::CreateTime,
            cleanup_policy: CleanupPolicy::Delete,
        }
    }
}

/// Options of the engine of one shard on one data directory.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Writes and syncs in flight on all logs together: a little above the depth at which a device's rate
    /// stops growing.
    pub commit_depth_max: usize,
    /// Appended but not yet written bytes of one log, above which producers wait, so that one log on a slow
    /// disk cannot take the memory of all.
    pub unwritten_bytes_max: usize,
    /// How far a busy log is written ahead of its end.
    pub write_ahead_bytes_max: u64,
    /// How far all logs together are written ahead: a few per cent of a disk.
    pub write_ahead_total_bytes_max: u64,
    /// Appended bytes after which the recovery point is stored: what a start after a crash has to scan.
    pub checkpoint_bytes: u64,
    /// Bytes between two entries of an offset index.
    pub index_interval_bytes: u64,
    /// One direct read of a sequential cold reader.
    pub cold_read_bytes: usize,
    /// Sealed segment files held open.
    pub open_files_max: usize,
    /// Identity of this boot of the kernel: an unclean stop followed by another one is a power loss.
    pub boot_id: Option<BootId>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            commit_depth_max: 64,
            unwritten_bytes_max: 16 << 20,
            write_ahead_bytes_max: 64 << 20,
            write_ahead_total_bytes_max: 1 << 30,
            checkpoint_bytes: 64 << 20,
            index_interval_bytes: 32 << 10,
            cold_read_bytes: BUFFER_BYTES_MAX,
            open_files_max: 512,
            boot_id: None,
        }
    }
}

/// How much one read may return.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimits {
    /// Later batches keep within this; the first one is returned whole whatever its size.
    pub bytes_max: usize,
    /// Who waits for what has to be read from the device. With `CatchUp` nothing of it stays in memory: a replica
    /// that reads a whole log must not push out what consumers read.
    pub class: IoClass,
}

impl ReadLimits {
    /// For a consumer.
    pub fn bytes(bytes_max: usize) -> Self {
        Self { bytes_max, class: IoClass::ColdRead }
    }
}
