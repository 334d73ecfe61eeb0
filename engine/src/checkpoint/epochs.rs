//! The leader-epoch table of a log: at which offset each leadership term began.
//!
//! Owns: the rules by which a leader tells a follower where an epoch ended, so that the follower cuts exactly
//! what the leader does not have.
//! Invariant: epochs and start offsets both ascend strictly: an epoch in which nothing was appended gives way to
//! the next one.
//! Source: KIP-101, KIP-279; Kafka's `LeaderEpochFileCache`.

use crate::batch::BatchHeader;
use crate::types::{LeaderEpoch, Offset};

/// Beginning of one leadership term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// The term.
    pub epoch: LeaderEpoch,
    /// Offset of its first record, or where that will be.
    pub start_offset: Offset,
}

/// All terms of which the log holds records, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochTable {
    entries: Vec<EpochStart>,
}

/// Why a term cannot begin: whoever asked is a deposed leader, or has not cut the log first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EpochError {
    /// A later term has begun.
    #[error("leader epoch {given} is older than {latest}")]
    Stale {
        /// The term asked for.
        given: LeaderEpoch,
        /// The latest.
        latest: LeaderEpoch,
    },
    /// The latest term began at a higher offset.
    #[error("leader epoch {given} would begin at {start_offset}, before epoch {latest} at {latest_start}")]
    StartsBefore {
        /// The term asked for.
        given: LeaderEpoch,
        /// Where it would begin.
        start_offset: Offset,
        /// The latest term.
        latest: LeaderEpoch,
        /// Where that began.
        latest_start: Offset,
    },
}

impl EpochTable {
    /// The latest term.
    pub fn latest(&self) -> Option<EpochStart> {
        self.entries.last().copied()
    }

    /// All terms, ascending.
    pub fn entries(&self) -> &[EpochStart] {
        &self.entries
    }

    /// Lets a term begin at `start_offset`. Returns whether the table changed, and so must be stored.
    ///
    /// The term that is already the latest goes on; one without records gives way.
    pub fn assign(&mut self, epoch: LeaderEpoch, start_offset: Offset) -> Result<bool, EpochError> {
        if let Some(latest) = self.latest() {
            if epoch < latest.epoch {
                return Err(EpochError::Stale { given: epoch, latest: latest.epoch });
            }
            if start_offset < latest.start_offset {
                return Err(EpochError::StartsBefore {
                    given: epoch,
                    start_offset,
                    latest: latest.epoch,
                    latest_start: latest.start_offset,
                });
            }
            if epoch == latest.epoch {
                return Ok(false);
            }
            if start_offset == latest.start_offset {
                self.entries.pop();
            }
        }
        self.entries.push(EpochStart { epoch, start_offset });
        Ok(true)
    }

    /// Takes note of a batch of the log, when the table is built again or a follower copies. A batch that no
    /// leader stamped says nothing.
    pub fn observe(&mut self, header: &BatchHeader) -> Result<bool, EpochError> {
        header.leader_epoch.map_or(Ok(false), |epoch| self.assign(epoch, header.base_offset))
    }

    /// The term of the record at `offset`; `None` if it is older than the table.
    pub fn epoch_at(&self, offset: Offset) -> Option<LeaderEpoch> {
        let after = self.entries.partition_point(|entry| entry.start_offset <= offset);
        Some(self.entries.get(after.checked_sub(1)?)?.epoch)
    }

    /// Where `epoch` ended in this log: the largest term at or before it, and the offset after that term's last
    /// record. A follower whose latest term is `epoch` cuts its log there, and if the term is another one than it
    /// asked for, asks again.
    ///
    /// `None` if `epoch` is later than any here: nothing can be said.
    pub fn end_offset_for(&self, epoch: LeaderEpoch, end_offset: Offset) -> Option<(LeaderEpoch, Offset)> {
        let latest = self.latest()?;
        if epoch == latest.epoch {
            return Some((epoch, end_offset));
        }
        let after = self.entries.partition_point(|entry| entry.epoch <= epoch);
        let next = self.entries.get(after)?;
        // Before the first term here all records are older: they end where that one begins.
        let found = after.checked_sub(1).map_or(epoch, |floor| self.entries[floor].epoch);
        Some((found, next.start_offset))
    }

    /// Forgets the terms that begin at or behind `end_offset`, when the log is cut there. Returns whether the
    /// table changed.
    pub fn truncate_from_end(&mut self, end_offset: Offset) -> bool {
        let keep = self.entries.partition_point(|entry| entry.start_offset < end_offset);
        let changed = keep < self.entries.len();
        self.entries.truncate(keep);
        changed
    }

    /// Forgets the terms that end at or before `start_offset`, when the log's first records are deleted; the term
    /// at `start_offset` now begins there. Returns whether the table changed.
    pub fn truncate_from_start(&mut self, start_offset: Offset) -> bool {
        let after = self.entries.partition_point(|entry| entry.start_offset <= start_offset);
        let Some(current) = after.checked_sub(1) else { return false };
        if current == 0 && self.entries[0].start_offset == start_offset {
            return false;
        }
        self.entries.drain(..current);
        self.entries[0].start_offset = start_offset;
        true
    }
}

impl EpochTable {
    /// A line `EPOCH START_OFFSET` for each term, ascending.
    pub(super) fn lines(&self) -> String {
        self.entries.iter().map(|entry| format!("{} {}\n", entry.epoch, entry.start_offset)).collect()
    }

    /// Reads such lines; `None` if they are not that.
    pub(super) fn from_lines<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut table = Self::default();
        for line in lines {
            let (epoch, start_offset) = line.split_once(' ')?;
            let entry = EpochStart {
                epoch: LeaderEpoch(epoch.parse().ok()?),
                start_offset: Offset(start_offset.parse().ok()?),
            };
            let ascends = table
                .latest()
                .is_none_or(|latest| latest.epoch < entry.epoch && latest.start_offset < entry.start_offset);
            let in_range = entry.epoch.0 <= i32::MAX as u32 && entry.start_offset.0 <= i64::MAX as u64;
            if !ascends || !in_range {
                return None;
            }
            table.entries.push(entry);
        }
        Some(table)
    }
}
