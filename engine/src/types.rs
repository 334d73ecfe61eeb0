//! Newtypes that cross every boundary of the engine.
//!
//! Owns: what a raw integer means. Arithmetic has names, so that an index, a count, a time and a byte
//! position cannot mix. `end` is always exclusive, `last` always inclusive.

use std::fmt;

/// Position of one record in a partition, counted in records from 0.
///
/// Range: 0 to 2^63 - 1 (the wire and the segment files hold it as a signed 64-bit integer).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

impl Offset {
    /// The first offset of every log.
    pub const ZERO: Self = Self(0);

    /// The offset `records` after this one.
    #[must_use]
    pub fn advance(self, records: u64) -> Self {
        Self(self.0.checked_add(records).expect("offsets never reach 2^64"))
    }

    /// How many offsets lie in `[start, self)`; 0 if `start` is beyond `self`.
    pub fn records_since(self, start: Self) -> u64 {
        self.0.saturating_sub(start.0)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a leadership term of one partition: fences old leaders, locates divergence.
///
/// Range: 0 to 2^31 - 1 (the batch header holds it as a signed 32-bit integer).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaderEpoch(pub u32);

impl LeaderEpoch {
    /// The next term.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("leader epochs never reach 2^32"))
    }
}

impl fmt::Display for LeaderEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimestampMs(pub i64);

impl TimestampMs {
    /// Milliseconds from `earlier` to `self`; 0 if the clock stepped back.
    pub fn ms_since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }
}

/// Random identity of one log directory, made with it.
///
/// A replica is (node id, log id), so a wiped or swapped disk comes back as somebody new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId(pub u128);

/// Random identity of a topic: its name is known only at the edges, so a topic that is deleted and created
/// again is another topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId(pub u128);

/// Number of a partition within its topic, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(pub u32);

/// One partition of one topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic.
    pub topic: TopicId,
    /// The partition within it.
    pub partition: PartitionId,
}

macro_rules! hex_id {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
        impl std::str::FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                u128::from_str_radix(text, 16).map(Self)
            }
        }
    )*};
}
hex_id!(LogId, TopicId);

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
