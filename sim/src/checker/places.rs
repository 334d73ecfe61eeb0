//! Which record stands at which offset, according to everybody who looked.
//!
//! Owns: the one value of each (partition, offset) and the one offset of each record.
//! An unclean election divides a partition's history into eras: values may differ between them, within one they may not.

use std::collections::{BTreeMap, HashMap};

use super::history::{Event, FinalPartition, History, PartitionKey, Produce, ProduceOutcome, Promise};
use super::record::RecordTag;
use super::violation::Violation;

/// Number of unclean elections before.
pub(super) type Era = usize;

/// What everybody saw.
pub(super) struct Places<'a> {
    unclean: BTreeMap<&'a PartitionKey, Vec<u32>>,
    /// Value and first observer of each offset.
    values: HashMap<(&'a PartitionKey, Era, u64), (RecordTag, String)>,
    /// Where each record stands in the last era that saw it.
    offsets: HashMap<(&'a PartitionKey, RecordTag), (Era, u64)>,
}

impl<'a> Places<'a> {
    /// Puts all observations together; conflicts are violations.
    pub(super) fn collect(history: &'a History, found: &mut Vec<Violation>) -> Self {
        let mut unclean: BTreeMap<&PartitionKey, Vec<u32>> = BTreeMap::new();
        for election in history.unclean() {
            unclean.entry(&election.partition).or_default().push(election.epoch);
        }
        let mut places = Self { unclean, values: HashMap::new(), offsets: HashMap::new() };
        for event in &history.events {
            match event {
                Event::Read(read) => {
                    let Some(era) = places.era(&read.partition, read.leader_epoch) else { continue };
                    for &(offset, tag) in &read.records {
                        let who = || format!("read by consumer {}", read.consumer);
                        places.see(&read.partition, era, offset, tag, who, found);
                    }
                }
                Event::Produce(produce) => places.see_ack(produce, found),
                Event::Move(_) | Event::Latest(_) | Event::Leader(_) | Event::Unclean(_) => {}
            }
        }
        for partition in &history.partitions {
            let era = places.last_era(&partition.partition);
            for stored in &partition.records {
                let who = || "read at the end".to_owned();
                places.see(&partition.partition, era, stored.offset, stored.tag, who, found);
            }
        }
        places
    }

    fn see_ack(&mut self, produce: &'a Produce, found: &mut Vec<Violation>) {
        let (ProduceOutcome::Acked { base_offset }, Promise::Committed) = (produce.outcome, produce.promise)
        else {
            return;
        };
        let Some(era) = self.era(&produce.partition, produce.leader_epoch) else { return };
        for i in 0..produce.records {
            let who = || "acked".to_owned();
            let offset = base_offset + u64::from(i);
            self.see(&produce.partition, era, offset, produce.tag(i), who, found);
        }
    }

    fn see(
        &mut self,
        partition: &'a PartitionKey,
        era: Era,
        offset: u64,
        tag: RecordTag,
        who: impl Fn() -> String,
        found: &mut Vec<Violation>,
    ) {
        match self.values.get(&(partition, era, offset)) {
            Some((known, first_by)) if *known != tag => {
                found.push(Violation::TwoValues {
                    partition: partition.clone(),
                    offset,
                    first: *known,
                    first_by: first_by.clone(),
                    second: tag,
                    second_by: who(),
                });
                return;
            }
            Some(_) => return,
            None => {
                self.values.insert((partition, era, offset), (tag, who()));
            }
        }
        if let Some((before, first)) = self.offsets.insert((partition, tag), (era, offset))
            && before == era
            && first != offset
        {
            found.push(Violation::Repeated { partition: partition.clone(), tag, first, second: offset });
        }
    }

    /// The era of an epoch; `None`: the partition has several and the epoch is not known.
    pub(super) fn era(&self, partition: &PartitionKey, epoch: Option<u32>) -> Option<Era> {
        match (self.unclean.get(partition), epoch) {
            (None, _) => Some(0),
            (Some(elections), Some(epoch)) => Some(elections.iter().filter(|&&e| e <= epoch).count()),
            (Some(_), None) => None,
        }
    }

    /// The era of now.
    pub(super) fn last_era(&self, partition: &PartitionKey) -> Era {
        self.unclean.get(partition).map_or(0, Vec::len)
    }

    /// Where a record stands.
    pub(super) fn offset_of(&self, partition: &'a PartitionKey, tag: RecordTag) -> Option<u64> {
        self.offsets.get(&(partition, tag)).map(|(_, offset)| *offset)
    }

    /// Where all records stand.
    pub(super) fn all(&self) -> impl Iterator<Item = (&'a PartitionKey, RecordTag, u64)> + '_ {
        self.offsets.iter().map(|((partition, tag), (_, offset))| (*partition, *tag, *offset))
    }
}

/// The record at an offset of the final log.
pub(super) fn at(partition: &FinalPartition, offset: u64) -> Option<RecordTag> {
    let index = partition.records.binary_search_by_key(&offset, |stored| stored.offset).ok()?;
    Some(partition.records[index].tag)
}
