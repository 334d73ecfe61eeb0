//! Order: of one connection, and between what was acked before and what was sent after.
//!
//! Also here: one leader per epoch.

use std::collections::BTreeMap;

use super::history::{History, LeaderSeen, PartitionKey, Produce, ProduceOutcome, Promise};
use super::places::Places;
use super::record::RecordTag;
use super::violation::Violation;

pub(super) fn check(history: &History, places: &Places<'_>, found: &mut Vec<Violation>) {
    let mut produces: BTreeMap<&PartitionKey, Vec<&Produce>> = BTreeMap::new();
    for produce in history.produces() {
        produces.entry(&produce.partition).or_default().push(produce);
    }
    for (partition, produces) in produces {
        connections(partition, &produces, places, found);
        acked_before(partition, produces, places, found);
    }
    leaders(history, found);
}

/// What was sent on one connection stands in the order of sending.
fn connections<'a>(
    partition: &'a PartitionKey,
    produces: &[&'a Produce],
    places: &Places<'a>,
    found: &mut Vec<Violation>,
) {
    let mut by_connection: BTreeMap<(u32, u64), Vec<&Produce>> = BTreeMap::new();
    for produce in produces {
        by_connection.entry((produce.producer, produce.connection)).or_default().push(produce);
    }
    for mut sent in by_connection.into_values() {
        sent.sort_by_key(|produce| produce.sequence);
        let mut before: Option<(RecordTag, u64)> = None;
        for produce in sent {
            for i in 0..produce.records {
                let tag = produce.tag(i);
                let Some(offset) = places.offset_of(partition, tag) else { continue };
                if let Some((earlier, earlier_offset)) = before
                    && offset < earlier_offset
                {
                    found.push(Violation::Reordered {
                        partition: partition.clone(),
                        earlier,
                        earlier_offset,
                        later: tag,
                        later_offset: offset,
                    });
                }
                before = Some((tag, offset));
            }
        }
    }
}

/// What was sent after an ack came stands behind what was acked, whoever sent it.
fn acked_before<'a>(
    partition: &'a PartitionKey,
    mut produces: Vec<&'a Produce>,
    places: &Places<'a>,
    found: &mut Vec<Violation>,
) {
    let mut acked: Vec<(u64, u64, RecordTag)> = produces
        .iter()
        .filter(|produce| produce.promise == Promise::Committed)
        .filter_map(|produce| match produce.outcome {
            ProduceOutcome::Acked { base_offset } => {
                let last = produce.records - 1;
                Some((produce.answered_us, base_offset + u64::from(last), produce.tag(last)))
            }
            ProduceOutcome::Refused | ProduceOutcome::Unknown => None,
        })
        .collect();
    acked.sort_unstable();
    produces.sort_by_key(|produce| produce.asked_us);
    let mut done = acked.into_iter().peekable();
    let mut highest: Option<(u64, RecordTag)> = None;
    for produce in produces {
        while let Some((_, offset, tag)) = done.next_if(|(at, ..)| *at < produce.asked_us) {
            if highest.is_none_or(|(known, _)| known < offset) {
                highest = Some((offset, tag));
            }
        }
        let (Some((earlier_offset, earlier)), Some(later_offset)) =
            (highest, places.offset_of(partition, produce.tag(0)))
        else {
            continue;
        };
        // After an unclean election the offsets of lost records are given again.
        if later_offset < earlier_offset && places.last_era(partition) == 0 {
            let (partition, later) = (partition.clone(), produce.tag(0));
            found.push(Violation::Reordered { partition, earlier, earlier_offset, later, later_offset });
        }
    }
}

fn leaders(history: &History, found: &mut Vec<Violation>) {
    let mut seen: BTreeMap<(&PartitionKey, u32), &LeaderSeen> = BTreeMap::new();
    for leader in history.leaders() {
        let first = *seen.entry((&leader.partition, leader.epoch)).or_insert(leader);
        if (&first.replica, first.incarnation) != (&leader.replica, leader.incarnation) {
            let name = |l: &LeaderSeen| format!("{} (start {:x})", l.replica, l.incarnation);
            found.push(Violation::TwoLeaders {
                partition: leader.partition.clone(),
                epoch: leader.epoch,
                first: name(first),
                second: name(leader),
            });
        }
    }
}
