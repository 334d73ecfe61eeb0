//! Counters of a ring, for metrics.

/// What one I/O class has done since the ring was made, and is doing now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassStats {
    /// Operations that ended, failed ones included.
    pub ops: u64,
    /// Of them: syncs.
    pub syncs: u64,
    /// Of them: those that ended with an error.
    pub errors: u64,
    /// Bytes that the device has taken.
    pub bytes_written: u64,
    /// Bytes that the device has given.
    pub bytes_read: u64,
    /// Operations that the kernel has now.
    pub in_flight: u64,
    /// Operations that wait for a place below the depth limit.
    pub queued: u64,
}

/// Counters of one [`UringDisk`](super::UringDisk).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UringStats {
    /// Class `Commit`, with opens, renames and syncs.
    pub commit: ClassStats,
    /// Class `ColdRead`.
    pub cold_read: ClassStats,
    /// Class `CatchUp`.
    pub catch_up: ClassStats,
    /// Class `Background`, with removals and closes.
    pub background: ClassStats,
    /// Class `Scrub`.
    pub scrub: ClassStats,
    /// `io_uring_enter` calls.
    pub enters: u64,
}
