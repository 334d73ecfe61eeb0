//! The header of a record batch: its layout, and the stamps that a leader puts into it.
//!
//! Owns: every byte position in the header; nobody else knows them.
//! Invariant: the checksum covers attributes to the end of the batch, so the base offset and the leader epoch
//! are stamped in place without a new checksum.

use crate::batch::attributes::Attributes;
use crate::types::{LeaderEpoch, Offset, TimestampMs};

/// Bytes of the header; the records follow.
pub const HEADER_BYTES: usize = 61;

/// Bytes that come before what the length field counts: base offset and the length itself. With this much the
/// size of a batch is known.
pub const SIZE_PREFIX_BYTES: usize = 12;

/// First byte under the checksum.
pub const CRC_START: usize = 21;

/// Producer id of a batch that no idempotent producer made.
pub const NO_PRODUCER_ID: i64 = -1;

const MAGIC: u8 = 2;
const LENGTH_AT: usize = 8;
const EPOCH_AT: usize = 12;
const MAGIC_AT: usize = 16;
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;
const LAST_OFFSET_DELTA_AT: usize = 23;
const BASE_TIMESTAMP_AT: usize = 27;
const MAX_TIMESTAMP_AT: usize = 35;
const PRODUCER_ID_AT: usize = 43;
const PRODUCER_EPOCH_AT: usize = 51;
const BASE_SEQUENCE_AT: usize = 53;
const RECORD_COUNT_AT: usize = 57;

const _: () = assert!(RECORD_COUNT_AT + 4 == HEADER_BYTES);
const _: () = assert!(ATTRIBUTES_AT == CRC_START);

/// Header that starts every record batch on disk and on the wire.
///
/// Shape (big-endian, 61 bytes): base_offset i64 @0, batch_length i32 @8, leader_epoch i32 @12, magic i8 @16,
/// crc u32 @17, attributes i16 @21, last_offset_delta i32 @23, base_timestamp i64 @27, max_timestamp i64 @35,
/// producer_id i64 @43, producer_epoch i16 @51, base_sequence i32 @53, record_count i32 @57.
/// Units: timestamps in ms since the Unix epoch; batch_length counts the bytes after itself.
/// The crc (CRC-32C) covers attributes to the end, so the leader may stamp base_offset and leader_epoch without
/// computing it again.
/// Source: Kafka documentation, "Record Batch", magic 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Size of the whole batch, header included.
    pub size_bytes: u32,
    /// Term of the leader that appended it; `None` (-1 on the wire) before a leader has.
    pub leader_epoch: Option<LeaderEpoch>,
    /// Checksum as it stands in the header, not as it should be.
    pub crc: u32,
    /// Compression and flags.
    pub attributes: Attributes,
    /// Offset of the last record, counted from the base offset.
    pub last_offset_delta: u32,
    /// Timestamp from which the records' timestamps are counted.
    pub base_timestamp: TimestampMs,
    /// Latest timestamp of a record, as the producer or the broker says.
    pub max_timestamp: TimestampMs,
    /// Idempotent producer, or [`NO_PRODUCER_ID`].
    pub producer_id: i64,
    /// Epoch of that producer, or -1.
    pub producer_epoch: i16,
    /// Sequence number of the first record, or -1.
    pub base_sequence: i32,
    /// Records in the batch. Compaction may leave fewer than the offsets it spans.
    pub record_count: u32,
}

/// Why bytes are not a batch header. Nothing in them can be believed, the size least of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// More bytes are needed before anything can be said.
    #[error("a batch header has {HEADER_BYTES} bytes, here are {have}")]
    Short {
        /// Bytes that are there.
        have: usize,
    },
    /// All zeroes: space that was written ahead and not used yet, not a batch.
    #[error("zeroes instead of a batch header")]
    Blank,
    /// A message format older or newer than the only one supported; an old client must be updated.
    #[error("record batch of format {magic}, only format 2 is supported")]
    Magic {
        /// What stands in its place.
        magic: u8,
    },
    /// The length field is negative or smaller than a header.
    #[error("batch length {length} is less than a header")]
    Length {
        /// The field.
        length: i32,
    },
    /// The base offset is negative.
    #[error("base offset {base_offset} is negative")]
    BaseOffset {
        /// The field.
        base_offset: i64,
    },
    /// The offset range is negative or passes the largest offset.
    #[error("last offset delta {last_offset_delta} does not fit base offset {base_offset}")]
    OffsetDelta {
        /// The base offset.
        base_offset: i64,
        /// The field.
        last_offset_delta: i32,
    },
    /// The record count is negative.
    #[error("record count {record_count} is negative")]
    RecordCount {
        /// The field.
        record_count: i32,
    },
}

impl BatchHeader {
    /// Reads the header at the front of `bytes`; what follows it is not looked at, and the batch need not be
    /// there whole.
    ///
    /// Errors: [`HeaderError::Short`] asks for more bytes, the others condemn them.
    /// Cost: no allocation, some dozen loads.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let header = header_of(bytes)?;
        let base_offset = i64_at(header, 0);
        if base_offset < 0 {
            return Err(HeaderError::BaseOffset { base_offset });
        }
        let epoch = i32_at(header, EPOCH_AT);
        Self::fields(header, base_offset, u32::try_from(epoch).ok().map(LeaderEpoch))
    }

    /// Reads a header that no leader has stamped: the base offset and the leader epoch that a producer wrote
    /// mean nothing, whatever they are.
    pub fn parse_unstamped(bytes: &[u8]) -> Result<Self, HeaderError> {
        Self::fields(header_of(bytes)?, 0, None)
    }

    fn fields(
        header: &[u8; HEADER_BYTES],
        base_offset: i64,
        leader_epoch: Option<LeaderEpoch>,
    ) -> Result<Self, HeaderError> {
        let length = i32_at(header, LENGTH_AT);
        if length < (HEADER_BYTES - SIZE_PREFIX_BYTES) as i32 {
            if length == 0 && header.iter().all(|&byte| byte == 0) {
                return Err(HeaderError::Blank);
            }
            return Err(HeaderError::Length { length });
        }
        let magic = header[MAGIC_AT];
        if magic != MAGIC {
            return Err(HeaderError::Magic { magic });
        }
        let last_offset_delta = i32_at(header, LAST_OFFSET_DELTA_AT);
        if last_offset_delta < 0 || base_offset.checked_add(i64::from(last_offset_delta) + 1).is_none() {
            return Err(HeaderError::OffsetDelta { base_offset, last_offset_delta });
        }
        let record_count = i32_at(header, RECORD_COUNT_AT);
        if record_count < 0 {
            return Err(HeaderError::RecordCount { record_count });
        }
        Ok(Self {
            base_offset: Offset(base_offset as u64),
            size_bytes: length as u32 + SIZE_PREFIX_BYTES as u32,
            leader_epoch,
            crc: i32_at(header, CRC_AT) as u32,
            attributes: Attributes(i16_at(header, ATTRIBUTES_AT) as u16),
            last_offset_delta: last_offset_delta as u32,
            base_timestamp: TimestampMs(i64_at(header, BASE_TIMESTAMP_AT)),
            max_timestamp: TimestampMs(i64_at(header, MAX_TIMESTAMP_AT)),
            producer_id: i64_at(header, PRODUCER_ID_AT),
            producer_epoch: i16_at(header, PRODUCER_EPOCH_AT),
            base_sequence: i32_at(header, BASE_SEQUENCE_AT),
            record_count: record_count as u32,
        })
    }

    /// Writes the header, the checksum as the field has it.
    ///
    /// # Panics
    /// If a field is out of the range that [`BatchHeader::parse`] lets through.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let signed = |value: u32| i32::try_from(value).expect("header counts fit 31 bits");
        let base_offset = i64::try_from(self.base_offset.0).expect("offsets fit 63 bits");
        let length = self
            .size_bytes
            .checked_sub(SIZE_PREFIX_BYTES as u32)
            .expect("a batch is not smaller than its header");
        let epoch = self.leader_epoch.map_or(-1, |epoch| signed(epoch.0));
        let mut out = [0; HEADER_BYTES];
        put(&mut out, 0, base_offset.to_be_bytes());
        put(&mut out, LENGTH_AT, signed(length).to_be_bytes());
        put(&mut out, EPOCH_AT, epoch.to_be_bytes());
        out[MAGIC_AT] = MAGIC;
        put(&mut out, CRC_AT, self.crc.to_be_bytes());
        put(&mut out, ATTRIBUTES_AT, self.attributes.0.to_be_bytes());
        put(&mut out, LAST_OFFSET_DELTA_AT, signed(self.last_offset_delta).to_be_bytes());
        put(&mut out, BASE_TIMESTAMP_AT, self.base_timestamp.0.to_be_bytes());
        put(&mut out, MAX_TIMESTAMP_AT, self.max_timestamp.0.to_be_bytes());
        put(&mut out, PRODUCER_ID_AT, self.producer_id.to_be_bytes());
        put(&mut out, PRODUCER_EPOCH_AT, self.producer_epoch.to_be_bytes());
        put(&mut out, BASE_SEQUENCE_AT, self.base_sequence.to_be_bytes());
        put(&mut out, RECORD_COUNT_AT, signed(self.record_count).to_be_bytes());
        out
    }

    /// Whether the magic stands where it would in a header at the front of `bytes`.
    pub fn has_magic(bytes: &[u8]) -> bool {
        bytes.get(MAGIC_AT) == Some(&MAGIC)
    }

    /// Size of the whole batch, header included.
    pub fn size(&self) -> usize {
        self.size_bytes as usize
    }

    /// Offset of the last record.
    pub fn last_offset(&self) -> Offset {
        self.base_offset.advance(u64::from(self.last_offset_delta))
    }

    /// The offset after the last record: where the next batch begins.
    pub fn next_offset(&self) -> Offset {
        self.base_offset.advance(u64::from(self.last_offset_delta) + 1)
    }

    /// How many offsets the batch spans.
    pub fn offset_count(&self) -> u64 {
        u64::from(self.last_offset_delta) + 1
    }
}

/// What a leader writes into a batch that it appends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Offset of the first record.
    pub base_offset: Offset,
    /// Term of the leader.
    pub leader_epoch: LeaderEpoch,
    /// For a topic with log append time: the time, which becomes that of every record.
    pub append_time: Option<TimestampMs>,
}

/// Stamps a batch in place; `header` is its first [`HEADER_BYTES`] bytes or more.
///
/// With an append time the maximum timestamp, the timestamp type and the checksum change too. The new checksum
/// is derived from the old one, without reading the records: CRC-32C is linear, so the difference that the
/// header makes is moved over the records' length. A batch that was damaged before stays visibly damaged.
///
/// Cost: no pass over the records.
///
/// # Panics
/// If `header` is shorter than a header, or a value does not fit its signed field.
pub fn stamp(header: &mut [u8], stamp: Stamp) {
    let header: &mut [u8; HEADER_BYTES] = header.first_chunk_mut().expect("a header is stamped whole");
    let base_offset = i64::try_from(stamp.base_offset.0).expect("offsets fit 63 bits");
    let epoch = i32::try_from(stamp.leader_epoch.0).expect("leader epochs fit 31 bits");
    put(header, 0, base_offset.to_be_bytes());
    put(header, EPOCH_AT, epoch.to_be_bytes());
    if let Some(at) = stamp.append_time {
        stamp_append_time(header, at);
    }
}

fn stamp_append_time(header: &mut [u8; HEADER_BYTES], at: TimestampMs) {
    let records_bytes = (i32_at(header, LENGTH_AT) as usize + SIZE_PREFIX_BYTES).saturating_sub(HEADER_BYTES);
    let before = crc32c::crc32c(&header[CRC_START..]);
    let attributes = Attributes(i16_at(header, ATTRIBUTES_AT) as u16).with_log_append_time();
    put(header, ATTRIBUTES_AT, attributes.0.to_be_bytes());
    put(header, MAX_TIMESTAMP_AT, at.0.to_be_bytes());
    let after = crc32c::crc32c(&header[CRC_START..]);
    let difference = crc32c::crc32c_combine(before ^ after, 0, records_bytes);
    let crc = i32_at(header, CRC_AT) as u32 ^ difference;
    put(header, CRC_AT, crc.to_be_bytes());
}

/// Makes a whole batch that of an idempotent producer, at `base_sequence`, with a new checksum.
///
/// Cost: one pass over the batch.
///
/// # Panics
/// If `batch` is shorter than a header.
pub fn stamp_producer(batch: &mut [u8], producer_id: i64, producer_epoch: i16, base_sequence: i32) {
    let header: &mut [u8; HEADER_BYTES] = batch.first_chunk_mut().expect("a whole batch has a header");
    put(header, PRODUCER_ID_AT, producer_id.to_be_bytes());
    put(header, PRODUCER_EPOCH_AT, producer_epoch.to_be_bytes());
    put(header, BASE_SEQUENCE_AT, base_sequence.to_be_bytes());
    seal(batch);
}

/// Writes the checksum of `batch` (whole) into its header.
pub(crate) fn seal(batch: &mut [u8]) {
    let crc = crc32c::crc32c(&batch[CRC_START..]);
    batch[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_be_bytes());
}

fn header_of(bytes: &[u8]) -> Result<&[u8; HEADER_BYTES], HeaderError> {
    bytes.first_chunk().ok_or(HeaderError::Short { have: bytes.len() })
}

fn i64_at(header: &[u8; HEADER_BYTES], at: usize) -> i64 {
    i64::from_be_bytes(header[at..at + 8].try_into().expect("eight bytes"))
}

fn i32_at(header: &[u8; HEADER_BYTES], at: usize) -> i32 {
    i32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"))
}

fn i16_at(header: &[u8; HEADER_BYTES], at: usize) -> i16 {
    i16::from_be_bytes(header[at..at + 2].try_into().expect("two bytes"))
}

fn put<const N: usize>(header: &mut [u8; HEADER_BYTES], at: usize, value: [u8; N]) {
    header[at..at + N].copy_from_slice(&value);
}
