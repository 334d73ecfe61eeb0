//! Makes record batches: what a producer does before it sends.
//!
//! Owns: the bytes of a batch under construction. They are laid out behind room for the header, so that an
//! uncompressed batch is finished in place, without a copy.
//! Not here: codecs (the caller gives one), partitioning, when a batch is full enough to go (the client).

use crate::batch::attributes::{Attributes, Compression};
use crate::batch::header::{BatchHeader, HEADER_BYTES, NO_PRODUCER_ID, seal};
use crate::batch::record::RecordHeader;
use crate::batch::varint::{put_varint, put_varlong, varint_bytes, varlong_bytes};
use crate::types::{Offset, TimestampMs};

/// Largest record that the format can say (its length is a signed 32-bit number), less what its batch needs.
pub const RECORD_BYTES_MAX: usize = i32::MAX as usize - 1024;

/// A record to be added to a batch.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewRecord<'a> {
    /// Create time.
    pub timestamp: TimestampMs,
    /// Key, if any.
    pub key: Option<&'a [u8]>,
    /// Value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers, in order.
    pub headers: &'a [RecordHeader<'a>],
}

/// Header fields that the one who finishes a batch decides. The default is what a plain producer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchFields {
    /// Offset of the first record; 0 until a leader stamps it.
    pub base_offset: Offset,
    /// Idempotent producer, or [`NO_PRODUCER_ID`].
    pub producer_id: i64,
    /// Its epoch, or -1.
    pub producer_epoch: i16,
    /// Sequence number of the first record, or -1.
    pub base_sequence: i32,
    /// Flags besides the compression, which the builder sets.
    pub flags: Attributes,
}

impl Default for BatchFields {
    fn default() -> Self {
        Self {
            base_offset: Offset::ZERO,
            producer_id: NO_PRODUCER_ID,
            producer_epoch: -1,
            base_sequence: -1,
            flags: Attributes::default(),
        }
    }
}

/// Why a record does not go into a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The record cannot be written in the format at all: refuse it.
    #[error("a record of {bytes} bytes is larger than the format allows ({RECORD_BYTES_MAX})")]
    RecordTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The batch is at its limit: finish it, and put the record into the next one.
    #[error("a record of {bytes} bytes does not fit the batch of {batch_bytes}")]
    BatchFull {
        /// Size of the record.
        bytes: usize,
        /// Size of the batch so far.
        batch_bytes: usize,
    },
}

/// Why a batch could not be finished; the records stay in the builder.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FinishError<E> {
    /// There is nothing in it.
    #[error("a batch without records")]
    Empty,
    /// The codec failed.
    #[error("compression failed: {0}")]
    Codec(E),
    /// The codec made more bytes than a batch can hold.
    #[error("the compressed records have {bytes} bytes")]
    TooLarge {
        /// How many.
        bytes: usize,
    },
}

/// A batch under construction.
#[derive(Debug)]
pub struct BatchBuilder {
    /// Room for the header, then the records.
    bytes: Vec<u8>,
    bytes_max: usize,
    record_count: u32,
    base_timestamp: TimestampMs,
    max_timestamp: TimestampMs,
}

impl BatchBuilder {
    /// An empty batch that takes records until it has `bytes_max` bytes, uncompressed and header included. The
    /// first record is always taken, so that a large one gets a batch to itself.
    pub fn new(bytes_max: usize) -> Self {
        let bytes_max = bytes_max.min(RECORD_BYTES_MAX);
        Self {
            bytes: Vec::new(),
            bytes_max,
            record_count: 0,
            base_timestamp: TimestampMs(0),
            max_timestamp: TimestampMs(0),
        }
    }

    /// Records so far.
    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Size of the batch so far, uncompressed and header included.
    pub fn size_bytes(&self) -> usize {
        if self.is_empty() { HEADER_BYTES } else { self.bytes.len() }
    }

    /// Bytes by which `record` would grow the batch.
    pub fn growth_bytes(&self, record: &NewRecord<'_>) -> usize {
        let body = self.body_bytes(record);
        varint_bytes(i32::try_from(body).unwrap_or(i32::MAX)) + body
    }

    /// Adds a record; returns its place in the batch, from 0.
    pub fn push(&mut self, record: &NewRecord<'_>) -> Result<u32, BuildError> {
        let body = self.body_bytes(record);
        if body > RECORD_BYTES_MAX {
            return Err(BuildError::RecordTooLarge { bytes: body });
        }
        let batch_bytes = self.size_bytes();
        let grown = batch_bytes + varint_bytes(body as i32) + body;
        if !self.is_empty() && (grown > self.bytes_max || self.record_count == i32::MAX as u32) {
            return Err(BuildError::BatchFull { bytes: body, batch_bytes });
        }
        if self.is_empty() {
            self.bytes.clear();
            self.bytes.resize(HEADER_BYTES, 0);
            self.base_timestamp = record.timestamp;
            self.max_timestamp = record.timestamp;
        }
        self.put_record(record, body);
        debug_assert_eq!(self.bytes.len(), grown, "a record takes what it was said to take");
        self.max_timestamp = self.max_timestamp.max(record.timestamp);
        self.record_count += 1;
        Ok(self.record_count - 1)
    }

    /// The batch, uncompressed; the builder is empty again. `None` if it was empty.
    pub fn finish(&mut self, fields: &BatchFields) -> Option<Vec<u8>> {
        if self.is_empty() {
            return None;
        }
        let mut batch = std::mem::take(&mut self.bytes);
        self.write_header(&mut batch, fields, Compression::None);
        self.record_count = 0;
        Some(batch)
    }

    /// The batch with its records compressed; the builder is empty again, and keeps its memory.
    ///
    /// `compress` appends to its second argument what becomes of the first. If that is not smaller, the batch
    /// is sent uncompressed: a consumer then has less to do.
    pub fn finish_compressed<E>(
        &mut self,
        fields: &BatchFields,
        compression: Compression,
        compress: impl FnOnce(&[u8], &mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Vec<u8>, FinishError<E>> {
        if self.is_empty() {
            return Err(FinishError::Empty);
        }
        if compression == Compression::None {
            return self.finish(fields).ok_or(FinishError::Empty);
        }
        let mut batch = Vec::with_capacity(HEADER_BYTES + self.bytes.len() / 2);
        batch.resize(HEADER_BYTES, 0);
        compress(&self.bytes[HEADER_BYTES..], &mut batch).map_err(FinishError::Codec)?;
        if batch.len() >= self.bytes.len() {
            return self.finish(fields).ok_or(FinishError::Empty);
        }
        if batch.len() > i32::MAX as usize {
            return Err(FinishError::TooLarge { bytes: batch.len() });
        }
        self.write_header(&mut batch, fields, compression);
        self.record_count = 0;
        Ok(batch)
    }

    fn write_header(&self, batch: &mut [u8], fields: &BatchFields, compression: Compression) {
        let header = BatchHeader {
            base_offset: fields.base_offset,
            size_bytes: batch.len() as u32,
            leader_epoch: None,
            crc: 0,
            attributes: Attributes(fields.flags.0 | compression.id()),
            last_offset_delta: self.record_count - 1,
            base_timestamp: self.base_timestamp,
            max_timestamp: self.max_timestamp,
            producer_id: fields.producer_id,
            producer_epoch: fields.producer_epoch,
            base_sequence: fields.base_sequence,
            record_count: self.record_count,
        };
        batch[..HEADER_BYTES].copy_from_slice(&header.encode());
        seal(batch);
    }

    fn timestamp_delta(&self, record: &NewRecord<'_>) -> i64 {
        if self.is_empty() { 0 } else { record.timestamp.0.wrapping_sub(self.base_timestamp.0) }
    }

    fn body_bytes(&self, record: &NewRecord<'_>) -> usize {
        let headers: usize =
            record.headers.iter().map(|h| nullable_bytes(Some(h.key)) + nullable_bytes(h.value)).sum();
        1 + varlong_bytes(self.timestamp_delta(record))
            + varint_bytes(self.record_count as i32)
            + nullable_bytes(record.key)
            + nullable_bytes(record.value)
            + varint_bytes(record.headers.len().min(i32::MAX as usize) as i32)
            + headers
    }

    fn put_record(&mut self, record: &NewRecord<'_>, body: usize) {
        let delta = self.timestamp_delta(record);
        let out = &mut self.bytes;
        put_varint(out, body as i32);
        out.push(0);
        put_varlong(out, delta);
        put_varint(out, self.record_count as i32);
        put_nullable(out, record.key);
        put_nullable(out, record.value);
        put_varint(out, record.headers.len() as i32);
        for header in record.headers {
            put_nullable(out, Some(header.key));
            put_nullable(out, header.value);
        }
    }
}

fn nullable_bytes(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(1, |b| varint_bytes(i32::try_from(b.len()).unwrap_or(i32::MAX)) + b.len())
}

fn put_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_varint(out, bytes.len() as i32);
            out.extend_from_slice(bytes);
        }
    }
}
