//! Settings of a consumer.

/// What to do when the position is outside the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutOfRange {
    /// Tell the caller: records that retention has deleted show up as an error, not as a gap.
    #[default]
    Fail,
    /// Go on with the first record that is there.
    Earliest,
    /// Go on with what is appended from now on.
    Latest,
}

/// Settings of a consumer. Units are in the names.
#[derive(Clone, Debug)]
pub struct ConsumerConfig {
    /// A fetch waits until so many bytes are there ...
    pub fetch_min_bytes: u32,
    /// ... or this time has passed.
    pub fetch_max_wait_ms: u32,
    /// Most bytes of one partition in one fetch.
    pub fetch_partition_bytes_max: u32,
    /// Bytes, as they come from the server, that are fetched ahead of the caller, all partitions together. One
    /// batch that is larger alone still comes.
    pub prefetch_bytes_max: usize,
    /// What one batch may unpack to. 64 MiB: sixty times the largest batch that a topic takes by default.
    pub unpacked_bytes_max: usize,
    /// What to do when the position is outside the log.
    pub out_of_range: OutOfRange,
    /// For how long failures that may pass (leader moves, server restarts) are waited out in silence.
    pub patience_ms: u64,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self {
            fetch_min_bytes: 1,
            fetch_max_wait_ms: 500,
            fetch_partition_bytes_max: 1 << 20,
            prefetch_bytes_max: 16 << 20,
            unpacked_bytes_max: 64 << 20,
            out_of_range: OutOfRange::Fail,
            patience_ms: 60_000,
        }
    }
}

/// Limits of one `poll`.
#[derive(Clone, Copy, Debug)]
pub struct PollLimits {
    /// Most records.
    pub records_max: usize,
    /// Most bytes of keys, values and headers; the first record always comes.
    pub bytes_max: usize,
    /// How long to wait for the first record.
    pub wait_ms: u64,
}

impl Default for PollLimits {
    fn default() -> Self {
        Self { records_max: 10_000, bytes_max: 8 << 20, wait_ms: 500 }
    }
}
