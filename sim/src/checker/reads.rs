//! What consumers may expect: no step back, no gap, nothing uncommitted, marks that only rise.

use std::collections::BTreeMap;

use super::history::{Event, History, Latest, PartitionKey, ProduceOutcome, Promise, Read};
use super::violation::Violation;

pub(super) fn check(history: &History, found: &mut Vec<Violation>) {
    positions(history, found);
    high_watermarks(history, found);
    latest(history, found);
}

/// Each consumer gets the offset that is next, unless it moved.
fn positions(history: &History, found: &mut Vec<Violation>) {
    let mut next: BTreeMap<(&PartitionKey, u32), u64> = BTreeMap::new();
    for event in &history.events {
        match event {
            Event::Move(moved) => {
                next.insert((&moved.partition, moved.consumer), moved.to);
            }
            Event::Read(read) => {
                let next = next.entry((&read.partition, read.consumer)).or_insert(read.from);
                follows(read, next, found);
            }
            Event::Produce(_) | Event::Latest(_) | Event::Leader(_) | Event::Unclean(_) => {}
        }
    }
}

fn follows(read: &Read, next: &mut u64, found: &mut Vec<Violation>) {
    for &(offset, _) in &read.records {
        if offset != *next {
            let (partition, consumer) = (read.partition.clone(), read.consumer);
            found.push(Violation::Skipped { partition, consumer, expected: *next, found: offset });
        }
        *next = offset + 1;
    }
    if let Some(&(offset, _)) = read.records.last()
        && offset >= read.high_watermark
    {
        let (partition, consumer, high_watermark) =
            (read.partition.clone(), read.consumer, read.high_watermark);
        found.push(Violation::ReadUncommitted { partition, consumer, offset, high_watermark });
    }
}

/// In one leadership, who asks later is told no lower mark.
fn high_watermarks(history: &History, found: &mut Vec<Violation>) {
    let mut terms: BTreeMap<(&PartitionKey, u32), Vec<&Read>> = BTreeMap::new();
    for read in history.reads() {
        if let Some(epoch) = read.leader_epoch {
            terms.entry((&read.partition, epoch)).or_default().push(read);
        }
    }
    for ((partition, epoch), mut reads) in terms {
        let mut answered: Vec<(u64, u64)> =
            reads.iter().map(|read| (read.answered_us, read.high_watermark)).collect();
        answered.sort_unstable();
        reads.sort_by_key(|read| read.asked_us);
        let mut done = answered.into_iter().peekable();
        let mut before = 0;
        for read in reads {
            while let Some((_, mark)) = done.next_if(|(at, _)| *at < read.asked_us) {
                before = before.max(mark);
            }
            let after = read.high_watermark;
            if after < before {
                let partition = partition.clone();
                found.push(Violation::HighWatermarkWentBack { partition, epoch, before, after });
            }
        }
    }
}

/// Something known to be committed: by when, in which epoch, up to where.
struct Known {
    at_us: u64,
    epoch: u32,
    end: u64,
}

/// "Latest" of this or a later leader is not below what was known to be committed when it was asked.
fn latest(history: &History, found: &mut Vec<Violation>) {
    let mut known: BTreeMap<&PartitionKey, Vec<Known>> = BTreeMap::new();
    for produce in history.produces().filter(|produce| produce.promise == Promise::Committed) {
        if let (ProduceOutcome::Acked { base_offset }, Some(epoch)) = (produce.outcome, produce.leader_epoch)
        {
            let (at_us, end) = (produce.answered_us, base_offset + u64::from(produce.records));
            known.entry(&produce.partition).or_default().push(Known { at_us, epoch, end });
        }
    }
    for read in history.reads() {
        if let (Some(&(offset, _)), Some(epoch)) = (read.records.last(), read.leader_epoch) {
            let known = known.entry(&read.partition).or_default();
            known.push(Known { at_us: read.answered_us, epoch, end: offset + 1 });
        }
    }
    for Latest { partition, offset, leader_epoch, answered_us, .. } in history.latest() {
        let Some(epoch) = *leader_epoch else { continue };
        known.entry(partition).or_default().push(Known { at_us: *answered_us, epoch, end: *offset });
    }
    let unclean: Vec<(&PartitionKey, u32)> =
        history.unclean().map(|election| (&election.partition, election.epoch)).collect();
    for latest in history.latest() {
        let (Some(epoch), Some(known)) = (latest.leader_epoch, known.get(&latest.partition)) else {
            continue;
        };
        let last_unclean =
            unclean.iter().filter(|(p, e)| *p == &latest.partition && *e <= epoch).map(|(_, e)| *e).max();
        let committed = known
            .iter()
            .filter(|fact| fact.at_us < latest.asked_us && fact.epoch <= epoch)
            .filter(|fact| last_unclean.is_none_or(|unclean| fact.epoch >= unclean))
            .map(|fact| fact.end)
            .max();
        if let Some(committed) = committed
            && latest.offset < committed
        {
            found.push(Violation::LatestWentBack {
                partition: latest.partition.clone(),
                epoch: latest.leader_epoch,
                latest: latest.offset,
                committed,
            });
        }
    }
}
