//! The table of producers as a file beside its log, so that a start need not read the whole log.
//!
//! Owns: the file's body. Frame and checksum are those of every checkpoint of the engine.
//! Invariant: a snapshot is believed only if the log still has the record before its end, of the same epoch: one
//! leader of an epoch gives an offset out once, so all below is what it was. Beyond the durable end of a log that
//! lost power, or behind a cut, that record is gone or another one.
//! Crash story: the snapshot is stored before the batches that it reflects are durable, and power fails. The log ends
//! before it, or has gone on in a later epoch: either way the snapshot is thrown away.

use corelog_engine::checkpoint::{Checkpoint, EpochTable};
use corelog_engine::{LeaderEpoch, Offset};

use super::ProducerTable;

/// Name of the file in the log's directory.
pub const SNAPSHOT_NAME: &str = "producers.checkpoint";

/// A table, and the log that it reflects.
#[derive(Debug, PartialEq, Eq)]
pub struct ProducerSnapshot {
    /// Exclusive end of what it reflects.
    pub end: Offset,
    /// Epoch of the record before that.
    pub epoch: LeaderEpoch,
    /// The table.
    pub table: ProducerTable,
}

impl ProducerSnapshot {
    /// Whether a log with these bounds and epochs is the one that it reflects.
    pub fn fits(&self, start: Offset, end: Offset, epochs: &EpochTable) -> bool {
        let last = self.end.0.checked_sub(1).map(Offset);
        start < self.end && self.end <= end && last.and_then(|last| epochs.epoch_at(last)) == Some(self.epoch)
    }
}

impl Checkpoint for ProducerSnapshot {
    const KIND: &'static str = "producers";
    const VERSION: u32 = 1;
    /// A thousand producers of five batches take some 300 KiB.
    const FILE_BYTES_MAX: usize = 1 << 20;

    /// A line `END EPOCH`, then the lines of the table.
    fn body(&self) -> String {
        format!("{} {}\n{}", self.end, self.epoch, self.table.lines())
    }

    fn from_body(body: &str) -> Option<Self> {
        let mut lines = body.lines();
        let (end, epoch) = lines.next()?.split_once(' ')?;
        let (end, epoch) = (Offset(end.parse().ok()?), LeaderEpoch(epoch.parse().ok()?));
        let table = ProducerTable::from_lines(lines, end)?;
        Some(Self { end, epoch, table })
    }
}

#[cfg(test)]
mod tests {
    use corelog_engine::checkpoint::{decode, encode};

    use super::*;

    const BODY: &str = "120 4\n7 0 1 10:14:100:105 15:15:119:120\n9 2 0 0:9:105:115\n";

    fn snapshot() -> ProducerSnapshot {
        ProducerSnapshot::from_body(BODY).expect("it is one")
    }

    #[test]
    fn what_is_stored_is_read_again() {
        let stored = snapshot();
        assert_eq!(stored.body(), BODY);
        assert_eq!(decode::<ProducerSnapshot>(&encode(&stored)), Ok(stored));
    }

    #[test]
    fn what_no_table_can_be_is_not_read() {
        for body in [
            "",
            "120\n",
            "120 x\n",
            "120 4\n7 0 1\n",
            "120 4\n7 0 2 0:0:1:2\n",
            "120 4\n7 0 0 0:0:2:1\n",
            "120 4\n7 0 0 0:0:119:121\n",
            "120 4\n7 0 0 0:0:5:6 1:1:4:5\n",
            "120 4\n7 0 0 0:0:5:6\n7 0 0 1:1:6:7\n",
            "120 4\n-1 0 0 0:0:5:6\n",
        ] {
            assert_eq!(ProducerSnapshot::from_body(body), None, "{body}");
        }
    }

    #[test]
    fn it_fits_the_log_that_has_the_record_before_its_end_in_the_same_epoch() {
        let mut epochs = EpochTable::default();
        epochs.assign(LeaderEpoch(3), Offset(0)).unwrap();
        epochs.assign(LeaderEpoch(4), Offset(110)).unwrap();
        let fits = |start, end, epochs: &EpochTable| snapshot().fits(Offset(start), Offset(end), epochs);
        assert!(fits(0, 120, &epochs));
        assert!(fits(100, 500, &epochs));
        assert!(!fits(0, 119, &epochs), "beyond the end");
        assert!(!fits(120, 500, &epochs), "all that it reflects is deleted");
        epochs.truncate_from_end(Offset(110));
        epochs.assign(LeaderEpoch(5), Offset(110)).unwrap();
        assert!(!fits(0, 500, &epochs), "the log was cut and went on in another epoch");
    }
}
