//! Options of a topic, and what they mean to its logs.
//!
//! Owns: the options of one topic with all defaults filled in.

use corelog_engine::batch::TimestampType;

/// When appended bytes are made to survive power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Before a produce is answered.
    Commit,
    /// In the background, when either bound is reached.
    Interval {
        /// Unsynced bytes that start a sync.
        bytes_max: u64,
        /// Age in ms of the oldest unsynced byte that starts a sync.
        ms_max: u64,
    },
}

/// Options of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicOptions {
    /// A segment rolls before it would pass this many bytes.
    pub segment_bytes_max: u64,
    /// A segment rolls when its first append is older than this.
    pub segment_age_max_ms: u64,
    /// Oldest segments go while the log is larger than this. `None`: no limit.
    pub retention_bytes: Option<u64>,
    /// Segments go when their newest record is older than this. `None`: no limit.
    pub retention_ms: Option<u64>,
    /// When bytes are synced.
    pub flush: Flush,
    /// Largest batch accepted, header included.
    pub batch_bytes_max: u32,
    /// Whose clock the record timestamps show.
    pub timestamp_type: TimestampType,
    /// Old records are deleted by retention; `false`: kept for ever.
    pub is_deleting: bool,
}

impl Default for TopicOptions {
    fn default() -> Self {
        Self {
            segment_bytes_max: 1 << 30,
            segment_age_max_ms: 7 * 24 * 3_600_000,
            retention_bytes: None,
            retention_ms: Some(7 * 24 * 3_600_000),
            flush: Flush::Commit,
            batch_bytes_max: 1_048_588,
            timestamp_type: TimestampType::CreateTime,
            is_deleting: true,
        }
    }
}
