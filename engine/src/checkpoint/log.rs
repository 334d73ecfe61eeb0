//! What is known of one log without reading it: its identity, where it begins, and up to where it is durable.
//!
//! Owns: the fields and the text of the file. The recovery point may lie behind the truth, never before it: all
//! below it was synced before the file was written.
//! Invariant: the leader epochs are in the same file, so that they change with the recovery point or not at all:
//! recovery finds again the terms that began behind the point, and believes the table for what lies before it.

use std::fmt;
use std::str::FromStr;

use crate::checkpoint::{Checkpoint, EpochTable};
use crate::types::{LogId, Offset};

/// Identity of one run of the kernel: another one after an unclean stop means that power may have been lost.
///
/// Source: `/proc/sys/kernel/random/boot_id`, a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BootId(pub u128);

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for BootId {
    type Err = std::num::ParseIntError;

    /// With or without the dashes of a UUID.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(&text.trim().replace('-', ""), 16).map(Self)
    }
}

/// State of a log as it was when the file was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogCheckpoint {
    /// Identity of the log.
    pub log_id: LogId,
    /// First offset that is still to be read.
    pub log_start_offset: Offset,
    /// Durable end offset: recovery scans from here.
    pub recovery_point: Offset,
    /// Base offset of the segment in which the recovery point lies.
    pub segment_base_offset: Offset,
    /// Where in that segment, in bytes, the batch at the recovery point begins.
    pub segment_position: u64,
    /// Whether the log was closed, everything synced and trimmed: then there is nothing to scan.
    pub clean: bool,
    /// Run of the kernel that wrote the file; `None` where nobody knows.
    pub boot_id: Option<BootId>,
    /// The leadership terms; those that begin behind the recovery point may be missing.
    pub epochs: EpochTable,
}

impl Checkpoint for LogCheckpoint {
    const KIND: &'static str = "log";
    const VERSION: u32 = 1;
    /// Seven short lines, and half a million terms, each with records.
    const FILE_BYTES_MAX: usize = 16 << 20;

    /// Shape: a line `NAME VALUE` for each field, in their order; ids in hex, `-` for no boot id. Then the line
    /// `leader_epochs`, and a line `EPOCH START_OFFSET` for each term.
    fn body(&self) -> String {
        let boot_id = self.boot_id.map_or("-".to_owned(), |id| id.to_string());
        format!(
            "log_id {}\nlog_start_offset {}\nrecovery_point {}\nsegment_base_offset {}\nsegment_position {}\nclean \
             {}\nboot_id {boot_id}\nleader_epochs\n{}",
            self.log_id,
            self.log_start_offset,
            self.recovery_point,
            self.segment_base_offset,
            self.segment_position,
            self.clean,
            self.epochs.lines(),
        )
    }

    fn from_body(body: &str) -> Option<Self> {
        let mut lines = body.lines();
        let mut value = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let checkpoint = Self {
            log_id: value("log_id")?.parse().ok()?,
            log_start_offset: offset(value("log_start_offset")?)?,
            recovery_point: offset(value("recovery_point")?)?,
            segment_base_offset: offset(value("segment_base_offset")?)?,
            segment_position: value("segment_position")?.parse().ok()?,
            clean: value("clean")?.parse().ok()?,
            boot_id: match value("boot_id")? {
                "-" => None,
                id => Some(id.parse().ok()?),
            },
            epochs: match lines.next()? {
                "leader_epochs" => EpochTable::from_lines(lines)?,
                _ => return None,
            },
        };
        // The log start may lie behind the recovery point: a sealed segment that is not trimmed holds that back.
        (checkpoint.segment_base_offset <= checkpoint.recovery_point).then_some(checkpoint)
    }
}

pub(super) fn offset(text: &str) -> Option<Offset> {
    text.parse().ok().filter(|raw| *raw <= i64::MAX as u64).map(Offset)
}
