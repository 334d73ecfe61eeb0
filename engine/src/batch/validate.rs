//! What is asked of batches that a stranger sends, before they are appended.
//!
//! Owns: the one pass over a produce request's bytes. After it a leader may believe every header field that it
//! uses: sizes, counts, checksum. What is inside compressed records is the consumer's to check.
//! Not here: who may produce, sequence numbers of idempotent producers, the topic's options.

use crate::batch::attributes::TimestampType;
use crate::batch::header::{BatchHeader, CRC_START, HEADER_BYTES, HeaderError};
use crate::types::TimestampMs;

/// Smallest record: length, attributes, timestamp delta, offset delta, key length, value length, header count,
/// a byte each.
const RECORD_BYTES_MIN: u64 = 7;

/// Limits of what a stranger may append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Largest batch, header included: the topic's `batch_bytes_max`.
    pub batch_bytes_max: usize,
    /// Most records in one batch. A compressed batch may lie about its count, and each lie uses up offsets;
    /// 2^24 is beyond what an honest batch of some MB holds.
    pub batch_records_max: u32,
    /// Latest timestamp that is believed, now plus the allowed drift: one record from the year 3000 would keep
    /// its segment out of retention for ever.
    pub timestamp_max: Option<TimestampMs>,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self { batch_bytes_max: 1 << 20, batch_records_max: 1 << 24, timestamp_max: None }
    }
}

/// What valid batches add up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSummary {
    /// How many batches.
    pub batches: u32,
    /// How many records, which is how many offsets they take.
    pub records: u64,
    /// Bytes of all of them.
    pub bytes: usize,
    /// Latest timestamp.
    pub max_timestamp: TimestampMs,
    /// Header of the first batch; base offset and leader epoch are not what the producer wrote but 0 and `None`.
    pub first: BatchHeader,
}

/// Why batches of a producer are refused. Nothing of the request is appended, and sending the same bytes again
/// cannot help, except for [`BatchError::Checksum`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// A produce request without a batch: the client has a fault.
    #[error("no record batch")]
    Empty,
    /// The bytes end within a batch: the client sent less than it said.
    #[error("batch at byte {position} needs {need} bytes, {have} are left")]
    Incomplete {
        /// Where the batch begins.
        position: usize,
        /// Bytes from there that it needs, as far as known.
        need: usize,
        /// Bytes that are left.
        have: usize,
    },
    /// A header that cannot be: the client has a fault or speaks an old format.
    #[error("batch at byte {position}: {error}")]
    Header {
        /// Where the batch begins.
        position: usize,
        /// What is wrong with it.
        error: HeaderError,
    },
    /// Larger than the topic allows: send smaller batches, or raise the topic's limit.
    #[error("batch at byte {position} has {size_bytes} bytes, the limit is {bytes_max}")]
    TooLarge {
        /// Where the batch begins.
        position: usize,
        /// Its size.
        size_bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The bytes were damaged on their way: the client may send them again.
    #[error("batch at byte {position} has checksum {actual:#010x}, its header says {expected:#010x}")]
    Checksum {
        /// Where the batch begins.
        position: usize,
        /// What the header says.
        expected: u32,
        /// What the bytes say.
        actual: u32,
    },
    /// Record count and offset range differ, or the bytes cannot hold so many records: the client has a fault.
    #[error(
        "batch at byte {position} says {record_count} records over {offset_count} offsets in {records_bytes} bytes"
    )]
    RecordCount {
        /// Where the batch begins.
        position: usize,
        /// Records that it says it has.
        record_count: u32,
        /// Offsets that it spans.
        offset_count: u64,
        /// Bytes behind its header.
        records_bytes: usize,
    },
    /// Only a broker writes control batches.
    #[error("batch at byte {position} is a control batch")]
    Control {
        /// Where the batch begins.
        position: usize,
    },
    /// Transactions are not supported: do not set a transactional id.
    #[error("batch at byte {position} is transactional")]
    Transactional {
        /// Where the batch begins.
        position: usize,
    },
    /// A flag that only a broker sets (log append time, delete horizon).
    #[error("batch at byte {position} has attributes {attributes:#06x}, which only a broker sets")]
    BrokerAttributes {
        /// Where the batch begins.
        position: usize,
        /// The field.
        attributes: u16,
    },
    /// A codec that nobody has defined.
    #[error("batch at byte {position} has unknown compression {id}")]
    Compression {
        /// Where the batch begins.
        position: usize,
        /// The id.
        id: u16,
    },
    /// A timestamp too far ahead: the producer's clock is wrong.
    #[error(
        "batch at byte {position} has timestamp {timestamp_ms} ms, the latest allowed is {timestamp_max_ms} ms"
    )]
    Timestamp {
        /// Where the batch begins.
        position: usize,
        /// Its maximum timestamp.
        timestamp_ms: i64,
        /// The limit.
        timestamp_max_ms: i64,
    },
}

/// Checks one or more batches back to back, as a producer sent them.
///
/// Errors: see [`BatchError`]; bytes behind the last whole batch are one too.
/// Cost: one checksum pass, no allocation.
pub fn validate(batches: &[u8], limits: &BatchLimits) -> Result<BatchSummary, BatchError> {
    let mut summary: Option<BatchSummary> = None;
    let mut position = 0;
    while position < batches.len() {
        let header = validate_one(batches, position, limits)?;
        let sum = summary.get_or_insert(BatchSummary {
            batches: 0,
            records: 0,
            bytes: batches.len(),
            max_timestamp: header.max_timestamp,
            first: header,
        });
        sum.batches += 1;
        sum.records += header.offset_count();
        sum.max_timestamp = sum.max_timestamp.max(header.max_timestamp);
        position += header.size();
    }
    summary.ok_or(BatchError::Empty)
}

/// The cheap checks first: a stranger's nonsense should not cost a checksum.
fn validate_one(batches: &[u8], position: usize, limits: &BatchLimits) -> Result<BatchHeader, BatchError> {
    let rest = &batches[position..];
    let header = match BatchHeader::parse_unstamped(rest) {
        Ok(header) => header,
        Err(HeaderError::Short { have }) => {
            return Err(BatchError::Incomplete { position, need: HEADER_BYTES, have });
        }
        Err(error) => return Err(BatchError::Header { position, error }),
    };
    let size_bytes = header.size();
    if size_bytes > limits.batch_bytes_max {
        return Err(BatchError::TooLarge { position, size_bytes, bytes_max: limits.batch_bytes_max });
    }
    if size_bytes > rest.len() {
        return Err(BatchError::Incomplete { position, need: size_bytes, have: rest.len() });
    }
    check_attributes(&header, position)?;
    check_counts(&header, position, limits)?;
    if let Some(timestamp_max) = limits.timestamp_max
        && header.max_timestamp > timestamp_max
    {
        let (timestamp_ms, timestamp_max_ms) = (header.max_timestamp.0, timestamp_max.0);
        return Err(BatchError::Timestamp { position, timestamp_ms, timestamp_max_ms });
    }
    let actual = crc32c::crc32c(&rest[CRC_START..size_bytes]);
    if actual != header.crc {
        return Err(BatchError::Checksum { position, expected: header.crc, actual });
    }
    Ok(header)
}

fn check_attributes(header: &BatchHeader, position: usize) -> Result<(), BatchError> {
    let attributes = header.attributes;
    if attributes.is_control() {
        return Err(BatchError::Control { position });
    }
    if attributes.is_transactional() {
        return Err(BatchError::Transactional { position });
    }
    if attributes.timestamp_type() == TimestampType::LogAppendTime || attributes.has_delete_horizon() {
        return Err(BatchError::BrokerAttributes { position, attributes: attributes.0 });
    }
    if attributes.compression().is_none() {
        return Err(BatchError::Compression { position, id: attributes.compression_id() });
    }
    Ok(())
}

fn check_counts(header: &BatchHeader, position: usize, limits: &BatchLimits) -> Result<(), BatchError> {
    let record_count = header.record_count;
    let offset_count = header.offset_count();
    let records_bytes = header.size() - HEADER_BYTES;
    let uncompressed = header.attributes.compression_id() == 0;
    let impossible = uncompressed && u64::from(record_count) * RECORD_BYTES_MIN > records_bytes as u64;
    if record_count == 0
        || u64::from(record_count) != offset_count
        || record_count > limits.batch_records_max
        || impossible
    {
        return Err(BatchError::RecordCount { position, record_count, offset_count, records_bytes });
    }
    Ok(())
}
