//! The idempotent producers of a partition: which batches of each were taken last, and where they lie.
//!
//! Owns: what decides whether a batch is new, is one that was taken already, or came too early.
//! Invariant: of each producer the last batches in the order of their offsets, all of one producer epoch.
//! Limits: [`PRODUCERS_MAX`] producers of a partition, the one that has been silent longest goes; [`BATCHES_MAX`]
//! batches of each, which is how many a client may have in flight (Kafka's number).
//! Source: KIP-98, KIP-360; Kafka's `ProducerStateManager`.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

use corelog_engine::Offset;
use corelog_engine::batch::BatchHeader;

use super::DerivedState;

/// Most producers remembered of one partition: some 200 KiB.
pub const PRODUCERS_MAX: usize = 1_000;

/// Batches remembered of each.
const BATCHES_MAX: usize = 5;

/// Why a batch of an idempotent producer is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    /// A batch before it is missing, or it is older than what is remembered. The producer sends what it has in
    /// flight again, in order.
    #[error("sequence {found} of producer {producer_id}, expected {expected}")]
    OutOfOrder {
        /// Whose.
        producer_id: i64,
        /// The sequence of the next batch.
        expected: i32,
        /// That of the batch.
        found: i32,
    },
    /// Of the batches of one request some are in the log and others are not: the producer has put together what it
    /// had sent apart. It sends them apart again.
    #[error("batches of producer {producer_id} come together that were not sent together")]
    PartlyTaken {
        /// Whose.
        producer_id: i64,
    },
    /// Another instance of the producer has taken over: this one must stop.
    #[error("epoch {found} of producer {producer_id} is older than {current}")]
    Fenced {
        /// Whose.
        producer_id: i64,
        /// The newest epoch.
        current: i16,
        /// That of the batch.
        found: i16,
    },
}

/// What a batch is to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SequenceVerdict {
    /// To be appended.
    New,
    /// In the log already.
    Duplicate {
        /// Offset of its first record.
        base_offset: Offset,
        /// Exclusive end.
        end_offset: Offset,
    },
}

/// A batch that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TakenBatch {
    first_sequence: i32,
    last_sequence: i32,
    base_offset: Offset,
    end_offset: Offset,
}

impl TakenBatch {
    fn from_word(word: &str) -> Option<Self> {
        let mut numbers = word.split(':');
        let mut next = || numbers.next();
        let batch = Self {
            first_sequence: next()?.parse().ok()?,
            last_sequence: next()?.parse().ok()?,
            base_offset: Offset(next()?.parse().ok()?),
            end_offset: Offset(next()?.parse().ok()?),
        };
        (next().is_none() && batch.base_offset < batch.end_offset).then_some(batch)
    }
}

/// One producer. Never without a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Producer {
    epoch: i16,
    /// Oldest first.
    batches: VecDeque<TakenBatch>,
    /// Batches of this epoch were taken that are not remembered any more.
    has_forgotten: bool,
}

impl Producer {
    fn from_line(line: &str, end: Offset) -> Option<(i64, Self)> {
        let mut words = line.split(' ');
        let producer_id: i64 = words.next()?.parse().ok().filter(|id| *id >= 0)?;
        let epoch = words.next()?.parse().ok()?;
        let has_forgotten = match words.next()? {
            "0" => false,
            "1" => true,
            _ => return None,
        };
        let mut batches: VecDeque<TakenBatch> = VecDeque::with_capacity(BATCHES_MAX);
        for word in words {
            let batch = TakenBatch::from_word(word)?;
            let follows = batches.back().is_none_or(|last| last.end_offset <= batch.base_offset);
            if !follows || batch.end_offset > end || batches.len() == BATCHES_MAX {
                return None;
            }
            batches.push_back(batch);
        }
        (!batches.is_empty()).then_some((producer_id, Self { epoch, batches, has_forgotten }))
    }

    fn newest(&self) -> TakenBatch {
        *self.batches.back().expect("a producer has a batch")
    }
}

/// The producers of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerTable {
    producers: BTreeMap<i64, Producer>,
    /// By the offset of each one's newest batch.
    by_age: BTreeMap<Offset, i64>,
    producers_max: usize,
}

impl Default for ProducerTable {
    fn default() -> Self {
        Self::new(PRODUCERS_MAX)
    }
}

impl ProducerTable {
    /// An empty table of at most so many producers.
    pub fn new(producers_max: usize) -> Self {
        Self { producers: BTreeMap::new(), by_age: BTreeMap::new(), producers_max }
    }

    /// How many producers are remembered.
    pub fn len(&self) -> usize {
        self.producers.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.producers.is_empty()
    }

    /// Decides what becomes of a batch. One without a producer id is always new; so is any of a producer that is not
    /// remembered, which may have been silent for long.
    pub fn check(&self, header: &BatchHeader) -> Result<SequenceVerdict, SequenceError> {
        let Some(producer) = self.producers.get(&header.producer_id) else {
            return Ok(SequenceVerdict::New);
        };
        let producer_id = header.producer_id;
        let (current, found) = (producer.epoch, header.producer_epoch);
        if found < current {
            return Err(SequenceError::Fenced { producer_id, current, found });
        }
        let expected = if found > current {
            0
        } else {
            let last_sequence = last_sequence(header);
            let same = producer.batches.iter().find(|batch| {
                batch.first_sequence == header.base_sequence && batch.last_sequence == last_sequence
            });
            if let Some(&TakenBatch { base_offset, end_offset, .. }) = same {
                return Ok(SequenceVerdict::Duplicate { base_offset, end_offset });
            }
            advance(producer.newest().last_sequence, 1)
        };
        if header.base_sequence == expected {
            return Ok(SequenceVerdict::New);
        }
        Err(SequenceError::OutOfOrder { producer_id, expected, found: header.base_sequence })
    }

    /// A line `PRODUCER EPOCH FORGOTTEN BATCH...` for each producer, ascending; a batch is
    /// `FIRST_SEQUENCE:LAST_SEQUENCE:BASE_OFFSET:END_OFFSET`, FORGOTTEN is 1 if there were batches before them.
    pub(super) fn lines(&self) -> String {
        let mut lines = String::new();
        for (producer_id, producer) in &self.producers {
            let forgotten = u8::from(producer.has_forgotten);
            let _ = write!(lines, "{producer_id} {} {forgotten}", producer.epoch);
            for batch in &producer.batches {
                let TakenBatch { first_sequence, last_sequence, base_offset, end_offset } = batch;
                let _ = write!(lines, " {first_sequence}:{last_sequence}:{base_offset}:{end_offset}");
            }
            lines.push('\n');
        }
        lines
    }

    /// Reads such lines, of a log up to `end`; `None` if they are not that.
    pub(super) fn from_lines<'a>(lines: impl Iterator<Item = &'a str>, end: Offset) -> Option<Self> {
        let mut table = Self::default();
        for line in lines {
            let (producer_id, producer) = Producer::from_line(line, end)?;
            let newest = producer.newest().base_offset;
            let is_new = table.producers.insert(producer_id, producer).is_none();
            if !is_new || table.by_age.insert(newest, producer_id).is_some() {
                return None;
            }
        }
        table.forget_oldest();
        Some(table)
    }

    fn forget_oldest(&mut self) {
        while self.producers.len() > self.producers_max
            && let Some((_, producer_id)) = self.by_age.pop_first()
        {
            self.producers.remove(&producer_id);
        }
    }
}

impl DerivedState for ProducerTable {
    fn observe(&mut self, header: &BatchHeader) {
        if header.producer_id < 0 {
            return;
        }
        let taken = TakenBatch {
            first_sequence: header.base_sequence,
            last_sequence: last_sequence(header),
            base_offset: header.base_offset,
            end_offset: header.next_offset(),
        };
        let producer = self.producers.entry(header.producer_id).or_insert_with(|| Producer {
            epoch: header.producer_epoch,
            batches: VecDeque::with_capacity(BATCHES_MAX),
            has_forgotten: false,
        });
        if let Some(newest) = producer.batches.back() {
            self.by_age.remove(&newest.base_offset);
        }
        if producer.epoch != header.producer_epoch {
            producer.epoch = header.producer_epoch;
            // A cut may take this epoch away again, and the one before is forgotten.
            producer.has_forgotten = true;
            producer.batches.clear();
        }
        if producer.batches.len() == BATCHES_MAX {
            producer.batches.pop_front();
            producer.has_forgotten = true;
        }
        producer.batches.push_back(taken);
        self.by_age.insert(taken.base_offset, header.producer_id);
        self.forget_oldest();
    }

    fn truncate_to(&mut self, end: Offset) -> bool {
        // Whoever was pushed out by a batch that goes cannot be told from one that was never there.
        let touched: Vec<i64> = self.by_age.split_off(&end).into_values().collect();
        let was_full = self.producers.len() >= self.producers_max;
        for producer_id in &touched {
            let Some(producer) = self.producers.get_mut(producer_id) else { continue };
            while producer.batches.back().is_some_and(|batch| batch.end_offset > end) {
                producer.batches.pop_back();
            }
            match producer.batches.back() {
                Some(newest) => {
                    self.by_age.insert(newest.base_offset, *producer_id);
                }
                None if producer.has_forgotten => return false,
                None => {
                    self.producers.remove(producer_id);
                }
            }
        }
        touched.is_empty() || !was_full
    }

    fn reset(&mut self) {
        self.producers.clear();
        self.by_age.clear();
    }
}

/// The sequence with which the batch after this one begins.
pub fn next_sequence(header: &BatchHeader) -> i32 {
    advance(last_sequence(header), 1)
}

/// The sequence `by` after this one. Sequences begin anew at 0 after the largest.
fn advance(sequence: i32, by: u32) -> i32 {
    let sum = (i64::from(sequence) + i64::from(by)) % (i64::from(i32::MAX) + 1);
    i32::try_from(sum).expect("below 2^31")
}

fn last_sequence(header: &BatchHeader) -> i32 {
    advance(header.base_sequence.max(0), header.last_offset_delta)
}

#[cfg(test)]
mod tests {
    use corelog_engine::TimestampMs;
    use corelog_engine::batch::{BatchBuilder, BatchFields, NewRecord};

    use super::*;

    /// A batch of `records` records of a producer, at an offset.
    fn header(producer_id: i64, epoch: i16, sequence: i32, records: u32, offset: u64) -> BatchHeader {
        let mut builder = BatchBuilder::new(1 << 16);
        for _ in 0..records {
            let record = NewRecord { key: None, value: None, timestamp: TimestampMs(0), headers: &[] };
            builder.push(&record).unwrap();
        }
        let fields = BatchFields {
            producer_id,
            producer_epoch: epoch,
            base_sequence: sequence,
            ..BatchFields::default()
        };
        let bytes = builder.finish(&fields).unwrap();
        BatchHeader { base_offset: Offset(offset), ..BatchHeader::parse_unstamped(&bytes).unwrap() }
    }

    fn table(taken: &[BatchHeader]) -> ProducerTable {
        let mut table = ProducerTable::new(3);
        taken.iter().for_each(|header| table.observe(header));
        table
    }

    fn duplicate(base: u64, end: u64) -> Result<SequenceVerdict, SequenceError> {
        Ok(SequenceVerdict::Duplicate { base_offset: Offset(base), end_offset: Offset(end) })
    }

    fn out_of_order(expected: i32, found: i32) -> Result<SequenceVerdict, SequenceError> {
        Err(SequenceError::OutOfOrder { producer_id: 7, expected, found })
    }

    const NEW: Result<SequenceVerdict, SequenceError> = Ok(SequenceVerdict::New);

    #[test]
    fn the_next_batch_is_new_a_known_one_a_duplicate_and_others_are_out_of_order() {
        let table = table(&[header(7, 0, 0, 10, 100), header(7, 0, 10, 5, 120)]);
        let stories = [
            (header(7, 0, 15, 3, 0), NEW),
            (header(7, 0, 10, 5, 0), duplicate(120, 125)),
            (header(7, 0, 0, 10, 0), duplicate(100, 110)),
            (header(7, 0, 0, 9, 0), out_of_order(15, 0)),
            (header(7, 0, 16, 1, 0), out_of_order(15, 16)),
            (header(7, 1, 0, 1, 0), NEW),
            (header(7, 1, 15, 1, 0), out_of_order(0, 15)),
            (header(8, 0, 99, 1, 0), NEW),
            (header(-1, -1, -1, 1, 0), NEW),
        ];
        for (batch, expected) in stories {
            assert_eq!(table.check(&batch), expected, "{batch:?}");
        }
    }

    #[test]
    fn an_older_epoch_is_fenced() {
        let table = table(&[header(7, 3, 0, 1, 0)]);
        let fenced = SequenceError::Fenced { producer_id: 7, current: 3, found: 2 };
        assert_eq!(table.check(&header(7, 2, 1, 1, 0)), Err(fenced));
    }

    #[test]
    fn five_batches_are_remembered_and_a_sixth_pushes_the_first_out() {
        let taken: Vec<_> = (0..6).map(|i| header(7, 0, i, 1, 10 + i as u64)).collect();
        let table = table(&taken);
        assert_eq!(table.check(&taken[0]), out_of_order(6, 0));
        assert_eq!(table.check(&taken[1]), duplicate(11, 12));
    }

    #[test]
    fn sequences_begin_anew_after_the_largest() {
        let table = table(&[header(7, 0, i32::MAX - 1, 4, 0)]);
        assert_eq!(table.check(&header(7, 0, 2, 1, 0)), NEW);
        assert_eq!(table.check(&header(7, 0, i32::MAX - 1, 4, 0)), duplicate(0, 4));
    }

    #[test]
    fn the_producer_that_was_silent_longest_goes() {
        let mut table = table(&[header(1, 0, 0, 1, 0), header(2, 0, 0, 1, 1), header(3, 0, 0, 1, 2)]);
        table.observe(&header(1, 0, 1, 1, 3));
        table.observe(&header(4, 0, 0, 1, 4));
        assert_eq!(table.len(), 3);
        assert_eq!(table.check(&header(2, 0, 0, 1, 0)), NEW, "forgotten");
        assert_eq!(table.check(&header(1, 0, 0, 1, 0)), duplicate(0, 1));
    }

    #[test]
    fn a_cut_takes_batches_away_and_says_when_that_is_not_enough() {
        let two = [header(7, 0, 0, 2, 0), header(7, 0, 2, 2, 2)];
        let mut cut = table(&two);
        assert!(cut.truncate_to(Offset(2)));
        assert_eq!(cut, table(&two[..1]));
        assert!(cut.truncate_to(Offset(0)));
        assert!(cut.is_empty());
        let six: Vec<_> = (0..6).map(|i| header(7, 0, i, 1, i as u64)).collect();
        assert!(!table(&six).truncate_to(Offset(1)), "the first batch was there and is not remembered");
        assert!(table(&six).truncate_to(Offset(3)));
        let epochs = [header(7, 0, 0, 1, 0), header(7, 1, 0, 1, 1)];
        assert!(!table(&epochs).truncate_to(Offset(1)), "the epoch before is not remembered");
        let mut full = table(&[header(1, 0, 0, 1, 0), header(2, 0, 0, 1, 1), header(3, 0, 0, 1, 2)]);
        assert!(!full.truncate_to(Offset(2)), "one more may have been there before");
    }
}
