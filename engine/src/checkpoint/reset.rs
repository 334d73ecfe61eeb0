//! The word that a log begins anew at another offset, whatever segments are still there.

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
