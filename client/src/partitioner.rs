//! Which partition a record goes to: by key hash, round-robin without a key, or as the caller says.
//!
//! Owns: the hash (murmur2 as Kafka's Java client computes it, so that both clients put a key into the same
//! partition) and the state of the round-robin. Pure: no clock, no randomness of its own.
//! Not here: how many partitions a topic has (`cluster`), when a sticky batch is full (`producer::accumulator`).

use std::collections::HashMap;
use std::sync::Arc;

/// Seed of Kafka's murmur2.
const MURMUR2_SEED: u32 = 0x9747_b28c;
/// Multiplier of murmur2.
const MURMUR2_M: u32 = 0x5bd1_e995;
/// Shift of murmur2.
const MURMUR2_R: u32 = 24;

/// 32-bit murmur2 of `key`, bit for bit what `org.apache.kafka.common.utils.Utils.murmur2` yields (there as
/// a signed integer).
///
/// Source: Kafka 4.1, `Utils.java`; Austin Appleby's MurmurHash2.
pub fn murmur2(key: &[u8]) -> u32 {
    let length = u32::try_from(key.len()).expect("keys are shorter than 4 GiB");
    let mut hash = MURMUR2_SEED ^ length;
    let mut words = key.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
        k = k.wrapping_mul(MURMUR2_M);
        k ^= k >> MURMUR2_R;
        k = k.wrapping_mul(MURMUR2_M);
        hash = hash.wrapping_mul(MURMUR2_M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (index, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(MURMUR2_M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MURMUR2_M);
    hash ^ (hash >> 15)
}

/// The partition of a key: `toPositive(murmur2(key)) % partitions`, Kafka's default rule.
///
/// `toPositive` clears the sign bit (it is not the absolute value).
/// Panics if `partitions` is 0: a topic has at least one.
pub fn partition_of_key(key: &[u8], partitions: u32) -> u32 {
    assert!(partitions > 0, "a topic has at least one partition");
    (murmur2(key) & 0x7fff_ffff) % partitions
}

/// How records without a key are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeylessRule {
    /// Stay with one partition until its batch is full or sent, then move to the next: fewer, larger batches.
    #[default]
    Sticky,
    /// The next partition for every record: evenest, smallest batches.
    RoundRobin,
}

/// Whose turn it is in one topic, of how many.
#[derive(Clone, Copy, Debug)]
struct Turn {
    partition: u32,
    partitions: u32,
}

/// Chooses partitions for the records of one producer.
#[derive(Debug)]
pub struct Partitioner {
    rule: KeylessRule,
    turns: HashMap<Arc<str>, Turn>,
    first: u32,
}

impl Partitioner {
    /// A partitioner whose first keyless record of every topic goes to partition `first` (modulo their
    /// number). Producers start at different ones, so that many short-lived producers do not all fill
    /// partition 0.
    pub fn new(rule: KeylessRule, first: u32) -> Self {
        Self { rule, turns: HashMap::new(), first }
    }

    /// The partition for a record of `topic` that has `partitions` partitions.
    ///
    /// Panics if `partitions` is 0.
    pub fn place(&mut self, topic: &Arc<str>, partitions: u32, key: Option<&[u8]>) -> u32 {
        if let Some(key) = key {
            return partition_of_key(key, partitions);
        }
        assert!(partitions > 0, "a topic has at least one partition");
        let first = self.first;
        let turn = match self.turns.get_mut(topic) {
            Some(turn) => turn,
            None => self.turns.entry(Arc::clone(topic)).or_insert(Turn { partition: first, partitions }),
        };
        // The topic may have got more partitions since.
        turn.partitions = partitions;
        let chosen = turn.partition % partitions;
        turn.partition =
            if self.rule == KeylessRule::RoundRobin { (chosen + 1) % partitions } else { chosen };
        chosen
    }

    /// Tells that a batch of this partition was closed: the sticky rule moves on if it still points there.
    pub fn batch_closed(&mut self, topic: &Arc<str>, partition: u32) {
        if self.rule == KeylessRule::RoundRobin {
            return;
        }
        if let Some(turn) = self.turns.get_mut(topic)
            && turn.partition == partition
        {
            turn.partition = (partition + 1) % turn.partitions;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden values of Kafka's own test, `UtilsTest.testMurmur2`.
    #[test]
    fn murmur2_is_bit_for_bit_that_of_the_java_client() {
        let golden: [(&[u8], i32); 6] = [
            (b"21", -973_932_308),
            (b"foobar", -790_332_482),
            (b"a-little-bit-long-string", -985_981_536),
            (b"a-little-bit-longer-string", -1_486_304_829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            (b"abc", 479_470_107),
        ];
        for (key, expected) in golden {
            assert_eq!(murmur2(key).cast_signed(), expected, "{}", String::from_utf8_lossy(key));
        }
    }

    #[test]
    fn negative_hashes_lose_their_sign_bit_and_not_their_sign() {
        // murmur2("21") is -973932308; the low 31 bits are 1173551340, the absolute value would be 973932308.
        assert_eq!(partition_of_key(b"21", 7), 1_173_551_340 % 7);
        assert_eq!(partition_of_key(b"abc", 10), 7);
        assert_eq!(partition_of_key(b"", 1), 0);
    }

    #[test]
    fn round_robin_visits_every_partition_in_turn() {
        let topic: Arc<str> = "t".into();
        let mut partitioner = Partitioner::new(KeylessRule::RoundRobin, 1);
        let chosen: Vec<u32> = (0..5).map(|_| partitioner.place(&topic, 3, None)).collect();
        assert_eq!(chosen, [1, 2, 0, 1, 2]);
    }

    #[test]
    fn sticky_stays_until_its_batch_is_closed() {
        let topic: Arc<str> = "t".into();
        let mut partitioner = Partitioner::new(KeylessRule::Sticky, 2);
        assert_eq!(partitioner.place(&topic, 3, None), 2);
        assert_eq!(partitioner.place(&topic, 3, None), 2);
        partitioner.batch_closed(&topic, 1); // another partition's batch (a keyed record filled it)
        assert_eq!(partitioner.place(&topic, 3, None), 2);
        partitioner.batch_closed(&topic, 2);
        assert_eq!(partitioner.place(&topic, 3, None), 0);
    }

    #[test]
    fn topics_take_turns_on_their_own_and_survive_a_new_number_of_partitions() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let mut partitioner = Partitioner::new(KeylessRule::RoundRobin, 0);
        assert_eq!(partitioner.place(&a, 2, None), 0);
        assert_eq!(partitioner.place(&b, 2, None), 0);
        assert_eq!(partitioner.place(&a, 2, None), 1);
        assert_eq!(partitioner.place(&a, 4, None), 0);
        assert_eq!(partitioner.place(&a, 4, None), 1);
        assert_eq!(partitioner.place(&a, 4, None), 2);
    }
}
