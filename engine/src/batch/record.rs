//! Records inside a batch: the borrowed view of one, and the iterator over uncompressed records.
//!
//! Owns: the layout of a record. Every length is checked against the bytes that are left before it is used, and
//! no count is ever believed enough to reserve memory for it.

use crate::batch::attributes::TimestampType;
use crate::batch::header::BatchHeader;
use crate::batch::varint::{take_varint, take_varlong};
use crate::types::{Offset, TimestampMs};

/// One record of a batch, borrowed from its bytes.
///
/// Shape: length varint, then that many bytes: attributes i8 (unused), timestamp delta varlong, offset delta
/// varint, key length varint (-1: no key), key, value length varint (-1: no value, a tombstone), value, header
/// count varint, headers.
/// Source: Kafka documentation, "Record".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its place in the partition.
    pub offset: Offset,
    /// Create time, or the batch's append time.
    pub timestamp: TimestampMs,
    /// What the partition was chosen by, and what compaction keeps the last of.
    pub key: Option<&'a [u8]>,
    /// The message; `None` deletes the key in a compacted topic.
    pub value: Option<&'a [u8]>,
    headers: HeaderIter<'a>,
}

impl<'a> Record<'a> {
    /// The headers, in order; a key may come more than once.
    pub fn headers(&self) -> HeaderIter<'a> {
        self.headers
    }
}

/// One header of a record.
///
/// Shape: key length varint, key, value length varint (-1: no value), value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader<'a> {
    /// Its name: UTF-8 by convention, but a consumer must not stumble over one that is not.
    pub key: &'a [u8],
    /// Its value.
    pub value: Option<&'a [u8]>,
}

/// Headers of one record; they were walked once when the record was parsed, so this cannot fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderIter<'a> {
    bytes: &'a [u8],
    left: u32,
}

impl<'a> Iterator for HeaderIter<'a> {
    type Item = RecordHeader<'a>;

    fn next(&mut self) -> Option<RecordHeader<'a>> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        take_header(&mut self.bytes)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left as usize, Some(self.left as usize))
    }
}

impl ExactSizeIterator for HeaderIter<'_> {}

/// Why the records of a batch cannot be read: the producer that made the batch has a fault, or the
/// decompressed bytes are not what it compressed. Skip the batch or stop; more bytes do not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A length or a number that does not fit the bytes.
    #[error("record {index} of the batch is malformed")]
    Malformed {
        /// Which record, from 0.
        index: u32,
    },
    /// An offset delta outside the batch's range, or not above the one before.
    #[error("record {index} of the batch has offset delta {delta}, expected [{delta_min}, {delta_max}]")]
    OffsetDelta {
        /// Which record, from 0.
        index: u32,
        /// What it says.
        delta: i32,
        /// One above the delta before it.
        delta_min: u32,
        /// The batch's last offset delta.
        delta_max: u32,
    },
    /// Bytes are left behind the last record.
    #[error("{bytes} bytes are left behind the last of {records} records")]
    Trailing {
        /// How many bytes.
        bytes: usize,
        /// How many records the header says.
        records: u32,
    },
}

/// Iterator over the records of one batch. After an error it ends.
///
/// Cost: no allocation.
#[derive(Clone, Debug)]
pub struct RecordIter<'a> {
    bytes: &'a [u8],
    header: BatchHeader,
    index: u32,
    delta_min: u32,
    ended: bool,
}

impl<'a> RecordIter<'a> {
    /// Over `records`: the bytes behind the batch's header, decompressed.
    pub fn new(header: &BatchHeader, records: &'a [u8]) -> Self {
        Self { bytes: records, header: *header, index: 0, delta_min: 0, ended: false }
    }

    fn step(&mut self) -> Result<Option<Record<'a>>, RecordError> {
        let index = self.index;
        if index == self.header.record_count {
            if self.bytes.is_empty() {
                return Ok(None);
            }
            return Err(RecordError::Trailing { bytes: self.bytes.len(), records: index });
        }
        let raw = take_record(&mut self.bytes).ok_or(RecordError::Malformed { index })?;
        let (delta_min, delta_max) = (self.delta_min, self.header.last_offset_delta);
        let delta = match u32::try_from(raw.offset_delta) {
            Ok(delta) if (delta_min..=delta_max).contains(&delta) => delta,
            _ => {
                return Err(RecordError::OffsetDelta {
                    index,
                    delta: raw.offset_delta,
                    delta_min,
                    delta_max,
                });
            }
        };
        let timestamp = match self.header.attributes.timestamp_type() {
            TimestampType::LogAppendTime => self.header.max_timestamp,
            TimestampType::CreateTime => {
                let base = self.header.base_timestamp.0;
                TimestampMs(base.checked_add(raw.timestamp_delta).ok_or(RecordError::Malformed { index })?)
            }
        };
        self.index += 1;
        self.delta_min = delta + 1;
        Ok(Some(Record {
            offset: self.header.base_offset.advance(u64::from(delta)),
            timestamp,
            key: raw.key,
            value: raw.value,
            headers: raw.headers,
        }))
    }
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let step = self.step().transpose();
        self.ended = !matches!(step, Some(Ok(_)));
        step
    }
}

struct RawRecord<'a> {
    timestamp_delta: i64,
    offset_delta: i32,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: HeaderIter<'a>,
}

fn take_record<'a>(bytes: &mut &'a [u8]) -> Option<RawRecord<'a>> {
    let length = usize::try_from(take_varint(bytes)?).ok()?;
    let mut body = take_bytes(bytes, length)?;
    take_bytes(&mut body, 1)?;
    let timestamp_delta = take_varlong(&mut body)?;
    let offset_delta = take_varint(&mut body)?;
    let key = take_nullable(&mut body)?;
    let value = take_nullable(&mut body)?;
    let left = u32::try_from(take_varint(&mut body)?).ok()?;
    let headers = HeaderIter { bytes: body, left };
    for _ in 0..left {
        take_header(&mut body)?;
    }
    body.is_empty().then_some(RawRecord { timestamp_delta, offset_delta, key, value, headers })
}

fn take_header<'a>(bytes: &mut &'a [u8]) -> Option<RecordHeader<'a>> {
    let key = take_nullable(bytes)??;
    let value = take_nullable(bytes)?;
    Some(RecordHeader { key, value })
}

/// The outer `None` is an error, the inner one a null.
#[allow(clippy::option_option)]
fn take_nullable<'a>(bytes: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let length = take_varint(bytes)?;
    if length == -1 {
        return Some(None);
    }
    take_bytes(bytes, usize::try_from(length).ok()?).map(Some)
}

fn take_bytes<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}
