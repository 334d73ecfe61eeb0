//! Options of the streams of one shard, with the reason of each limit.

/// Options of the streams of one shard. Times in ms, sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// Bytes of batches that a follower's shard takes from one leader's shard before its logs have them: what fills
    /// the way there and back at the rate of the disk, and what a slow disk may hold in memory.
    pub credit_bytes: u64,
    /// A message of batches is closed when it holds so many bytes: large enough that a system call is not felt.
    pub bundle_bytes_max: usize,
    /// From one partition into one message while others wait.
    pub turn_bytes_max: usize,
    /// First pause before a connection is tried again; doubles.
    pub reconnect_ms_min: u64,
    /// Longest pause before a connection is tried again: what a failover may lose to it.
    pub reconnect_ms_max: u64,
    /// A stream that could not go on (a full disk, damage) is tried again after this.
    pub retry_ms: u64,
    /// A follower's log that takes nothing for so long is given up for a while: what is held for it comes out of the
    /// credit of the others.
    pub stall_ms_max: u64,
    /// A side that has sent nothing for so long sends a sign of life.
    pub heartbeat_ms: u64,
    /// A connection on which nothing came for so long is given up: half-open, or the peer hangs.
    pub silence_ms_max: u64,
    /// Bytes a second that this shard reads from its disks for followers far behind; `None`: no limit.
    pub catch_up_bytes_per_second: Option<u64>,
    /// Bytes a second that this shard reads from its disks to find damage; `None`: it does not look.
    pub scrub_bytes_per_second: Option<u64>,
    /// Pause between two looks at all logs of the shard.
    pub scrub_pause_ms: u64,
    /// Connections of followers' shards; more are turned away. Far above nodes times shards of a large cluster.
    pub connections_max: usize,
    /// Partitions on one connection; more are turned away.
    pub streams_max: usize,
    /// Ranges that a peer may have asked for and not got.
    pub ranges_max: usize,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            credit_bytes: 8 << 20,
            bundle_bytes_max: 1 << 20,
            turn_bytes_max: 128 << 10,
            reconnect_ms_min: 50,
            reconnect_ms_max: 1_000,
            retry_ms: 500,
            stall_ms_max: 2_000,
            heartbeat_ms: 500,
            silence_ms_max: 3_000,
            catch_up_bytes_per_second: None,
            scrub_bytes_per_second: Some(8 << 20),
            scrub_pause_ms: 3_600_000,
            connections_max: 512,
            streams_max: 20_000,
            ranges_max: 8,
        }
    }
}
