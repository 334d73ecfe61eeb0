//! Work under way that a crash may interrupt, so that the next start finishes it: a log that begins anew at another
//! offset whatever segments are still there, and a segment that is being mended.

use crate::checkpoint::Checkpoint;
use crate::types::{LogId, Offset};

/// A reset that is under way: it is finished when the log is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetMarker {
    /// Identity of the log.
    pub log_id: LogId,
    /// Where it begins anew.
    pub offset: Offset,
}

impl Checkpoint for ResetMarker {
    const KIND: &'static str = "reset";
    const VERSION: u32 = 1;
    const FILE_BYTES_MAX: usize = 4096;

    /// Shape: the lines `log_id HEX` and `offset OFFSET`.
    fn body(&self) -> String {
        format!("log_id {}\noffset {}\n", self.log_id, self.offset)
    }

    fn from_body(body: &str) -> Option<Self> {
        let mut lines = body.lines();
        let log_id = lines.next()?.strip_prefix("log_id ")?.parse().ok()?;
        let offset = super::log::offset(lines.next()?.strip_prefix("offset ")?)?;
        lines.next().is_none().then_some(Self { log_id, offset })
    }
}

/// A repair that is under way in a sealed segment; the name of the file says in which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepairMarker {
    /// Length of the segment, which the repair does not change for good.
    pub segment_bytes: u64,
}

impl Checkpoint for RepairMarker {
    const KIND: &'static str = "repair";
    const VERSION: u32 = 1;
    const FILE_BYTES_MAX: usize = 4096;

    /// Shape: the line `segment_bytes BYTES`.
    fn body(&self) -> String {
        format!("segment_bytes {}\n", self.segment_bytes)
    }

    fn from_body(body: &str) -> Option<Self> {
        let mut lines = body.lines();
        let segment_bytes = lines.next()?.strip_prefix("segment_bytes ")?.parse().ok()?;
        lines.next().is_none().then_some(Self { segment_bytes })
    }
}
