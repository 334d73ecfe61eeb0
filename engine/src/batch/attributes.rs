//! The attributes field of a batch header: compression, timestamp type and flags.
//!
//! Owns: the meaning of its 16 bits. Bits that have no meaning yet are kept as they came.

/// Attributes of a batch.
///
/// Shape: bits 0-2 compression, bit 3 timestamp type (0 create time, 1 log append time), bit 4 transactional,
/// bit 5 control, bit 6 delete horizon set; the rest unused.
/// Source: Kafka documentation, "Record Batch", magic 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Attributes(pub u16);

const COMPRESSION_MASK: u16 = 0b111;
const LOG_APPEND_TIME: u16 = 1 << 3;
const TRANSACTIONAL: u16 = 1 << 4;
const CONTROL: u16 = 1 << 5;
const DELETE_HORIZON: u16 = 1 << 6;

impl Attributes {
    /// Attributes of an ordinary batch with `compression`.
    pub fn compressed_by(compression: Compression) -> Self {
        Self(compression.id())
    }

    /// How the records are compressed; `None` for an id that nobody has defined.
    pub fn compression(self) -> Option<Compression> {
        Compression::from_id(self.0 & COMPRESSION_MASK)
    }

    /// The raw compression id, for messages about an unknown one.
    pub fn compression_id(self) -> u16 {
        self.0 & COMPRESSION_MASK
    }

    /// Who set the timestamps.
    pub fn timestamp_type(self) -> TimestampType {
        if self.0 & LOG_APPEND_TIME == 0 { TimestampType::CreateTime } else { TimestampType::LogAppendTime }
    }

    /// Whether the batch belongs to a transaction.
    pub fn is_transactional(self) -> bool {
        self.0 & TRANSACTIONAL != 0
    }

    /// Whether the batch holds a control record of the broker instead of records of a producer.
    pub fn is_control(self) -> bool {
        self.0 & CONTROL != 0
    }

    /// Whether compaction stored its delete horizon in the base timestamp.
    pub fn has_delete_horizon(self) -> bool {
        self.0 & DELETE_HORIZON != 0
    }

    /// The same with log append time.
    #[must_use]
    pub fn with_log_append_time(self) -> Self {
        Self(self.0 | LOG_APPEND_TIME)
    }

    /// The same with the transactional flag.
    #[must_use]
    pub fn with_transactional(self) -> Self {
        Self(self.0 | TRANSACTIONAL)
    }

    /// The same with the control flag.
    #[must_use]
    pub fn with_control(self) -> Self {
        Self(self.0 | CONTROL)
    }
}

/// Codec of the records of a batch. The engine never runs one; client and consumers do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Records as they are.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Snappy in Xerial's framing.
    Snappy,
    /// LZ4 frame.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// All codecs, by id.
    pub const ALL: [Self; 5] = [Self::None, Self::Gzip, Self::Snappy, Self::Lz4, Self::Zstd];

    /// The id in the batch attributes.
    pub fn id(self) -> u16 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    /// The codec with this id.
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.get(usize::from(id)).copied()
    }

    /// Kafka's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// Who sets the timestamps of a topic's records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TimestampType {
    /// The producer.
    #[default]
    CreateTime,
    /// The broker, when it appends: one time for the whole batch.
    LogAppendTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_codecs_agree() {
        for compression in Compression::ALL {
            assert_eq!(Compression::from_id(compression.id()), Some(compression));
        }
        assert_eq!(Compression::from_id(5), None);
        assert_eq!(Attributes(0b111).compression(), None);
    }

    #[test]
    fn flags_do_not_touch_each_other() {
        let plain = Attributes::compressed_by(Compression::Zstd);
        assert!(!plain.is_control() && !plain.is_transactional() && !plain.has_delete_horizon());
        assert_eq!(plain.timestamp_type(), TimestampType::CreateTime);
        let all = plain.with_control().with_transactional().with_log_append_time();
        assert!(all.is_control() && all.is_transactional());
        assert_eq!(all.timestamp_type(), TimestampType::LogAppendTime);
        assert_eq!(all.compression(), Some(Compression::Zstd));
    }
}
