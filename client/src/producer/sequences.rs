//! Sequence numbers of an idempotent producer: what lets a server recognize a batch that comes again.
//!
//! Owns: for each partition a producer id, and the sequence of its next batch.
//! Invariant: the batches that carry one id in one partition follow each other without a gap, or the id is given up:
//! when a batch fails for good, and when the server has lost what came before (an unclean election).
//! The ids are random: nobody hands them out, and two of 2^63 do not meet. Server side: `replication/src/derived`.

use std::collections::HashMap;

use bytes::Bytes;
use corelog_engine::batch::{BatchFields, stamp_producer};

use super::accumulator::{Batch, BatchBody};
use crate::cluster::PartitionKey;
use crate::compression::{Compression, compress};

/// A random id is never renewed by an epoch of its own.
const PRODUCER_EPOCH: i16 = 0;

struct Sequence {
    producer_id: i64,
    next: i32,
}

/// See the module.
#[derive(Default)]
pub(super) struct Sequences(HashMap<PartitionKey, Sequence>);

impl Sequences {
    /// The batch as it goes on the wire, with its place in the sequence; the same bytes each time, while the id holds.
    pub(super) fn finish(
        &mut self,
        key: &PartitionKey,
        batch: &mut Batch,
        compression: Compression,
    ) -> Bytes {
        if !self.0.contains_key(key) {
            let producer_id = i64::try_from(rand::random::<u64>() >> 1).expect("63 bits");
            self.0.insert(key.clone(), Sequence { producer_id, next: 0 });
        }
        let sequence = self.0.get_mut(key).expect("inserted above");
        let producer_id = sequence.producer_id;
        if batch.stamped_by == Some(producer_id)
            && let BatchBody::Finished(bytes) = &batch.body
        {
            return bytes.clone();
        }
        let base_sequence = sequence.next;
        sequence.next = after(base_sequence, batch.record_count);
        let fields = BatchFields {
            producer_id,
            producer_epoch: PRODUCER_EPOCH,
            base_sequence,
            ..BatchFields::default()
        };
        if let BatchBody::Finished(bytes) = &batch.body {
            let mut again = bytes.to_vec();
            stamp_producer(&mut again, producer_id, PRODUCER_EPOCH, base_sequence);
            batch.body = BatchBody::Finished(again.into());
        }
        batch.stamped_by = Some(producer_id);
        finish(batch, compression, &fields)
    }

    /// The sequence of a partition has a gap now: its next batch begins another one.
    pub(super) fn give_up(&mut self, key: &PartitionKey) {
        self.0.remove(key);
    }
}

/// The batch as it goes on the wire; made once, kept for retries.
pub(super) fn finish(batch: &mut Batch, compression: Compression, fields: &BatchFields) -> Bytes {
    let finished = match &mut batch.body {
        BatchBody::Finished(bytes) => return bytes.clone(),
        BatchBody::Building(builder) => {
            builder.finish_compressed(fields, compression.in_batch(), |records, out| {
                compress(compression, records, out)
            })
        }
    };
    let bytes = Bytes::from(finished.expect("a batch has records, and memory takes them all"));
    batch.bytes = bytes.len();
    batch.body = BatchBody::Finished(bytes.clone());
    bytes
}

/// The sequence `records` after this one; sequences begin anew at 0 after the largest.
fn after(sequence: i32, records: u32) -> i32 {
    let sum = (i64::from(sequence) + i64::from(records)) % (i64::from(i32::MAX) + 1);
    i32::try_from(sum).expect("below 2^31")
}

#[cfg(test)]
mod tests {
    use corelog_engine::batch::{BatchHeader, BatchLimits, NewRecord, validate};

    use super::super::accumulator::{Accumulator, AccumulatorLimits, Entry};
    use super::*;

    fn batches(count: u64) -> Vec<Batch> {
        let limits = AccumulatorLimits {
            batch_bytes: 150,
            linger_ms: 0,
            partition_request_bytes_max: 1 << 20,
            partition_request_batches_max: 100,
            delivery_timeout_ms: 1_000,
            keep_tags: false,
        };
        let mut accumulator = Accumulator::new(limits);
        let record = NewRecord { value: Some(&[7; 50]), ..NewRecord::default() };
        for tag in 0..count {
            accumulator.push(&key(), &record, Entry { tag, reserved_bytes: 1 }, 0).expect("fits");
        }
        accumulator.drain(0, |_, _, _| true).pop().expect("one partition").batches
    }

    fn key() -> PartitionKey {
        ("t".into(), 0)
    }

    fn header(bytes: &Bytes) -> (i64, i32) {
        validate(bytes, &BatchLimits::default()).expect("a sound batch");
        let header = BatchHeader::parse(bytes).expect("a header");
        (header.producer_id, header.base_sequence)
    }

    #[test]
    fn batches_follow_each_other_and_come_again_as_they_were() {
        let mut sequences = Sequences::default();
        let mut all = batches(3);
        let first: Vec<Bytes> =
            all.iter_mut().map(|batch| sequences.finish(&key(), batch, Compression::None)).collect();
        let expected: Vec<i32> = all
            .iter()
            .scan(0, |next, b| Some(std::mem::replace(next, *next + b.record_count as i32)))
            .collect();
        assert_eq!(first.iter().map(|bytes| header(bytes).1).collect::<Vec<_>>(), expected);
        let again: Vec<Bytes> =
            all.iter_mut().map(|batch| sequences.finish(&key(), batch, Compression::None)).collect();
        assert_eq!(again, first);
    }

    #[test]
    fn after_a_gap_another_producer_begins() {
        let mut sequences = Sequences::default();
        let mut all = batches(4);
        let before = sequences.finish(&key(), &mut all[1], Compression::None);
        sequences.give_up(&key());
        let after = sequences.finish(&key(), &mut all[1], Compression::None);
        assert_ne!(header(&before).0, header(&after).0);
        assert_eq!(header(&after).1, 0);
        let other = sequences.finish(&("t".into(), 1), &mut all[0], Compression::None);
        assert_ne!(header(&other).0, header(&after).0, "each partition has its own");
    }

    #[test]
    fn sequences_begin_anew_after_the_largest() {
        assert_eq!(after(i32::MAX, 1), 0);
        assert_eq!(after(i32::MAX - 1, 3), 1);
    }
}
