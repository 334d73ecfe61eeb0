//! The end of a history: acked and read records are there, nothing else is, and the replicas agree.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::history::{
    FinalPartition, FinalReplica, History, PartitionKey, Produce, ProduceOutcome, Promise, Stored,
};
use super::places::{Places, at};
use super::record::RecordTag;
use super::violation::Violation;

pub(super) fn check(history: &History, places: &Places<'_>, found: &mut Vec<Violation>) {
    let finals: BTreeMap<&PartitionKey, &FinalPartition> =
        history.partitions.iter().map(|partition| (&partition.partition, partition)).collect();
    sent(history, places, found);
    for partition in &history.partitions {
        continuous(&partition.partition, "committed", partition.log_start, &partition.records, found);
        if let Some(asked) = partition.log_start_max
            && partition.log_start > asked
        {
            let log_start = partition.log_start;
            let partition = partition.partition.clone();
            found.push(Violation::DeletedTooMuch { partition, log_start, asked });
        }
        for replica in &partition.replicas {
            agrees(partition, replica, found);
        }
    }
    let elections = elections(history);
    let stored: BTreeMap<&PartitionKey, HashMap<RecordTag, u64>> = history
        .partitions
        .iter()
        .map(|p| (&p.partition, p.records.iter().map(|stored| (stored.tag, stored.offset)).collect()))
        .collect();
    for produce in history.produces() {
        let Some(partition) = finals.get(&produce.partition) else { continue };
        acked_is_there(produce, partition, places, &elections, found);
        is_whole(produce, partition, &stored[&produce.partition], found);
    }
    read_is_there(history, &finals, places, found);
}

/// Every record that was seen was sent there, and not refused.
fn sent(history: &History, places: &Places<'_>, found: &mut Vec<Violation>) {
    let mut attempts: HashMap<(&PartitionKey, RecordTag), &Produce> = HashMap::new();
    for produce in history.produces() {
        for i in 0..produce.records {
            attempts.insert((&produce.partition, produce.tag(i)), produce);
        }
    }
    let mut all: Vec<_> = places.all().collect();
    all.sort_unstable();
    for (partition, tag, offset) in all {
        match attempts.get(&(partition, tag)) {
            None => found.push(Violation::NeverSent { partition: partition.clone(), tag, offset }),
            Some(produce) if produce.outcome == ProduceOutcome::Refused => {
                found.push(Violation::RefusedButThere { partition: partition.clone(), tag, offset });
            }
            Some(_) => {}
        }
    }
}

fn continuous(
    partition: &PartitionKey,
    who: &str,
    start: u64,
    records: &[Stored],
    found: &mut Vec<Violation>,
) {
    let mut expected = start;
    for stored in records {
        if stored.offset != expected {
            let (partition, who, offset) = (partition.clone(), who.to_owned(), stored.offset);
            found.push(Violation::Gap { partition, who, expected, found: offset });
        }
        expected = stored.offset + 1;
    }
}

/// A replica holds what is committed, above both log starts and below the high watermark.
fn agrees(partition: &FinalPartition, replica: &FinalReplica, found: &mut Vec<Violation>) {
    let name = format!("replica {}", replica.name);
    continuous(&partition.partition, &name, replica.log_start, &replica.records, found);
    let value = |records: &[Stored], offset: u64| {
        let index = records.binary_search_by_key(&offset, |stored| stored.offset).ok()?;
        Some((records[index].leader_epoch, records[index].tag))
    };
    for offset in partition.log_start.max(replica.log_start)..partition.high_watermark {
        let (held, committed) = (value(&replica.records, offset), value(&partition.records, offset));
        if held != committed {
            found.push(Violation::ReplicasDiffer {
                partition: partition.partition.clone(),
                replica: replica.name.clone(),
                offset,
                found: held,
                committed,
            });
            return;
        }
    }
}

/// Which replica led in each epoch.
type Elections<'a> = BTreeMap<&'a PartitionKey, BTreeMap<u32, BTreeSet<&'a str>>>;

fn elections(history: &History) -> Elections<'_> {
    let mut elections = Elections::new();
    for seen in history.leaders() {
        elections.entry(&seen.partition).or_default().entry(seen.epoch).or_default().insert(&seen.replica);
    }
    elections
}

/// Whether the promise of an ack still stands at the end.
fn stands(produce: &Produce, places: &Places<'_>, elections: &Elections<'_>) -> bool {
    let last = places.last_era(&produce.partition);
    if places.era(&produce.partition, produce.leader_epoch) != Some(last) {
        return false;
    }
    match (produce.promise, produce.leader_epoch) {
        (Promise::Committed, _) => true,
        (Promise::Nothing, _) | (Promise::UntilElection, None) => false,
        (Promise::UntilElection, Some(epoch)) => elections.get(&produce.partition).is_some_and(|epochs| {
            let leaders: BTreeSet<&&str> = epochs.range(epoch..).flat_map(|(_, leaders)| leaders).collect();
            leaders.len() == 1 && epochs.contains_key(&epoch)
        }),
    }
}

fn acked_is_there(
    produce: &Produce,
    partition: &FinalPartition,
    places: &Places<'_>,
    elections: &Elections<'_>,
    found: &mut Vec<Violation>,
) {
    let ProduceOutcome::Acked { base_offset } = produce.outcome else { return };
    if !stands(produce, places, elections) {
        return;
    }
    for i in 0..produce.records {
        let (offset, tag) = (base_offset + u64::from(i), produce.tag(i));
        let there = at(partition, offset);
        if offset >= partition.log_start && there != Some(tag) {
            let partition = partition.partition.clone();
            found.push(Violation::Lost { partition, tag, offset, found: there });
        }
    }
}

/// A batch is there as a whole or not at all, but for what lies below the log start.
fn is_whole(
    produce: &Produce,
    partition: &FinalPartition,
    stored: &HashMap<RecordTag, u64>,
    found: &mut Vec<Violation>,
) {
    let one = (0..produce.records).find_map(|i| Some((i, *stored.get(&produce.tag(i))?)));
    let Some((i, offset)) = one else { return };
    for j in 0..produce.records {
        let offset = (offset + u64::from(j)).checked_sub(u64::from(i));
        if offset.is_some_and(|offset| offset < partition.log_start) {
            continue;
        }
        if offset.and_then(|offset| at(partition, offset)) != Some(produce.tag(j)) {
            found.push(Violation::Half {
                partition: produce.partition.clone(),
                first: produce.tag(0),
                there: produce.tag(i),
                missing: produce.tag(j),
            });
            return;
        }
    }
}

fn read_is_there(
    history: &History,
    finals: &BTreeMap<&PartitionKey, &FinalPartition>,
    places: &Places<'_>,
    found: &mut Vec<Violation>,
) {
    for read in history.reads() {
        let Some(partition) = finals.get(&read.partition) else { continue };
        if places.era(&read.partition, read.leader_epoch) != Some(places.last_era(&read.partition)) {
            continue;
        }
        for &(offset, tag) in &read.records {
            let there = at(partition, offset);
            if offset >= partition.log_start && there != Some(tag) {
                found.push(Violation::ReadButLost {
                    partition: read.partition.clone(),
                    consumer: read.consumer,
                    tag,
                    offset,
                    found: there,
                });
                break;
            }
        }
    }
}
