//! Damage on this shard's disks: looking for it, and mending it with another replica's bytes.
//!
//! Owns: what is known to be damaged and not mended yet, the scrubber's round over all logs, the pace of both.
//! Invariant: what another replica sends is checked against what is damaged (offsets, length, checksums, epochs) by
//! the log before a byte is written.
//! Not here: how a range is found and written (`corelog_engine::log`).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use corelog_engine::disk::Disk;
use corelog_engine::log::{DamagedRange, RepairError, ScrubCursor};
use corelog_engine::notify::Notify;
use corelog_engine::{Offset, TopicPartition};

use super::link::Host;
use super::stats::StreamStats;
use super::throttle::Throttle;
use crate::partition::Partition;
use crate::replicas::{Replicas, Shared};

/// Damaged places that wait to be mended; others are found again by the next round.
const DAMAGED_MAX: usize = 1_024;

/// Largest range that is mended. A larger one is a lost segment: the replica is filled anew.
const REPAIR_BYTES_MAX: u64 = 64 << 20;

/// Bytes of one look of the scrubber.
const SCRUB_LOOK_BYTES: u64 = 1 << 20;

/// What is damaged, and what was done about it.
#[derive(Default)]
pub(crate) struct Mending {
    damaged: RefCell<VecDeque<(TopicPartition, Offset)>>,
    changed: Notify,
    scrubbed_bytes: Cell<u64>,
    damaged_ranges: Cell<u64>,
    repaired_ranges: Cell<u64>,
}

impl Mending {
    /// Damage was met.
    pub(crate) fn damaged(&self, id: TopicPartition, offset: Offset) {
        let mut damaged = self.damaged.borrow_mut();
        if damaged.len() < DAMAGED_MAX && !damaged.contains(&(id, offset)) {
            damaged.push_back((id, offset));
            drop(damaged);
            self.changed.notify_all();
        }
    }

    /// Lets the tasks look whether they are to end.
    pub(crate) fn wake(&self) {
        self.changed.notify_all();
    }

    /// Its part of the statistics.
    pub(crate) fn stats(&self) -> StreamStats {
        StreamStats {
            scrubbed_bytes: self.scrubbed_bytes.get(),
            damaged_ranges: self.damaged_ranges.get(),
            repaired_ranges: self.repaired_ranges.get(),
            ..StreamStats::default()
        }
    }
}

/// Mends what is found, one range at a time, until the shard stops.
pub(crate) async fn mend<D: Disk, H: Host>(replicas: Replicas<D, H>) {
    let shared = replicas.shared().clone();
    while !shared.is_stopped() {
        let changed = shared.mending.changed.notified();
        let next = shared.mending.damaged.borrow_mut().pop_front();
        let Some((id, offset)) = next else {
            changed.await;
            continue;
        };
        let Some(partition) = shared.partition(id) else { continue };
        // What cannot be read at all is not damage that bytes could mend.
        let Ok(Some(range)) = partition.log().damage_at(offset).await else { continue };
        shared.mending.damaged_ranges.set(shared.mending.damaged_ranges.get() + 1);
        let dir = partition.log().dir().display().to_string();
        let DamagedRange { segment_base, position, length_bytes, from, to, reason } = &range;
        tracing::warn!(
            %dir, segment = segment_base.0, position, length_bytes, from = from.0, to = to.0, reason,
            "damage found: a range of a log fails its checks; it is not served, another replica is asked for it"
        );
        match mend_range(&replicas, &partition, &range).await {
            Ok(()) => {
                shared.mending.repaired_ranges.set(shared.mending.repaired_ranges.get() + 1);
                tracing::info!(%dir, from = from.0, to = to.0, "a damaged range was mended from another replica");
            }
            Err(why) => {
                tracing::error!(%dir, from = from.0, to = to.0, %why, "a damaged range could not be mended");
            }
        }
    }
}

/// Why a damaged range stays damaged. Whoever meets it next says so again.
#[derive(Debug, thiserror::Error)]
enum MendError {
    /// Too much is gone: remove this replica and add another one.
    #[error("{length_bytes} bytes are damaged, which is more than is mended")]
    TooLarge {
        /// Of the range.
        length_bytes: u64,
    },
    /// There is none, it cannot be reached, or it has not all of the range either.
    #[error("no other replica can be reached that has offset {from}")]
    NobodyHasIt {
        /// First offset that is missing.
        from: Offset,
    },
    /// See [`RepairError`].
    #[error(transparent)]
    Repair(#[from] RepairError),
}

/// Gets a range from another replica and writes it.
async fn mend_range<D: Disk, H: Host>(
    replicas: &Replicas<D, H>,
    partition: &Partition<D>,
    range: &DamagedRange,
) -> Result<(), MendError> {
    if range.length_bytes > REPAIR_BYTES_MAX {
        return Err(MendError::TooLarge { length_bytes: range.length_bytes });
    }
    let mut batches = Vec::new();
    let mut from = range.from;
    while from < range.to {
        let range = replicas.ask_others(partition.id(), from, range.to).await;
        let fits = |(next, bytes): &(Offset, Vec<u8>)| {
            *next > from && batches.len() + bytes.len() <= REPAIR_BYTES_MAX as usize
        };
        let Some((next, bytes)) = range.filter(fits) else { return Err(MendError::NobodyHasIt { from }) };
        batches.extend_from_slice(&bytes);
        from = next;
    }
    Ok(partition.log().repair(range, &batches).await?)
}

/// Looks at all sealed segments of the shard, round after round, within its budget of bytes a second.
pub(crate) async fn scrub<D: Disk, H: Host>(shared: Rc<Shared<D, H>>) {
    let pace = Throttle::new(shared.options.scrub_bytes_per_second);
    let mut at: Option<TopicPartition> = None;
    while !shared.is_stopped() {
        let Some(partition) = shared.partition_from(at) else {
            at = None;
            pause(&shared, shared.options.scrub_pause_ms).await;
            continue;
        };
        at = Some(partition.id());
        scrub_log(&shared, &partition, &pace).await;
    }
}

async fn scrub_log<D: Disk, H: Host>(shared: &Shared<D, H>, partition: &Partition<D>, pace: &Throttle) {
    let mut cursor = Some(ScrubCursor::default());
    while let Some(at) = cursor
        && !shared.is_stopped()
    {
        let Ok(looked) = partition.log().scrub(at, SCRUB_LOOK_BYTES).await else { return };
        shared.mending.scrubbed_bytes.set(shared.mending.scrubbed_bytes.get() + looked.checked_bytes);
        for range in &looked.damaged {
            shared.mending.damaged(partition.id(), range.from);
        }
        cursor = looked.next;
        let pause_ms = pace.used(looked.checked_bytes, shared.host.now_ms());
        pause(shared, pause_ms).await;
    }
}

/// Waits, and not longer than until the shard stops or damage is found.
async fn pause<D: Disk, H: Host>(shared: &Shared<D, H>, ms: u64) {
    use futures_util::future::select;
    let until_ms = shared.host.now_ms().saturating_add(ms);
    while !shared.is_stopped() {
        let left_ms = until_ms.saturating_sub(shared.host.now_ms());
        if left_ms == 0 {
            return;
        }
        let woken = std::pin::pin!(shared.mending.changed.notified());
        let slept = std::pin::pin!(shared.host.sleep(left_ms));
        select(woken, slept).await;
    }
}
