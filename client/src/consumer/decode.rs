//! From fetched bytes to records: cuts the next batch off, checks it, unpacks it.
//!
//! Owns: what a consumer believes. A batch is checked against its CRC-32C here, at the end of its way, whatever
//! was checked before; its records are unpacked to at most a limit. Pure.
//! Cost: one checksum pass; keys and values are slices of the received (or unpacked) bytes, not copies.

use std::sync::Arc;

use bytes::Bytes;
use corelog_engine::batch::{BatchHeader, CrcCheck, HEADER_BYTES, RecordIter};
use corelog_engine::{Offset, TimestampMs};

use crate::compression::{Compression, decompress};

/// A record as it is handed to the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerRecord {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: u32,
    /// Its offset.
    pub offset: Offset,
    /// Create time, or the time of the append if the topic says so.
    pub timestamp: TimestampMs,
    /// Key, if any.
    pub key: Option<Bytes>,
    /// Value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Headers, in order.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

impl ConsumerRecord {
    /// What it counts for in the limits of `poll`: key, value and headers.
    pub fn payload_bytes(&self) -> usize {
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|(key, value)| key.len() + length(value)).sum();
        length(&self.key) + length(&self.value) + headers
    }
}

/// A batch that cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadBatch {
    /// Its base offset, if its header can be read.
    pub base_offset: Option<Offset>,
    /// The offset behind it, if its header can be read.
    pub next_offset: Option<Offset>,
    pub reason: String,
}

/// A batch that was read.
#[derive(Debug)]
pub(crate) struct OpenedBatch {
    pub records: Vec<ConsumerRecord>,
    /// Where the next batch begins, in offsets.
    pub next_offset: Offset,
    /// The leader epoch of the batch.
    pub leader_epoch: Option<u32>,
}

/// Takes the batch at the front of `fetched` and reads its records from `position` on.
///
/// `fetched` must not be empty. Control batches yield no records. On an error `fetched` is left as it was.
pub(crate) fn open_batch(
    topic: &Arc<str>,
    partition: u32,
    fetched: &mut Bytes,
    position: Offset,
    unpacked_bytes_max: usize,
) -> Result<OpenedBatch, BadBatch> {
    assert!(!fetched.is_empty(), "nothing to open");
    let unread = |reason: String| BadBatch { base_offset: None, next_offset: None, reason };
    let header = BatchHeader::parse(fetched).map_err(|error| unread(error.to_string()))?;
    let bad = |reason: String| BadBatch {
        base_offset: Some(header.base_offset),
        next_offset: Some(header.next_offset()),
        reason,
    };
    let size = header.size();
    if size > fetched.len() {
        return Err(bad(format!("it has {size} bytes, {} came", fetched.len())));
    }
    let mut crc = CrcCheck::new(&header);
    crc.feed(&fetched[..size]);
    if let Err(error) = crc.finish() {
        // The header is not to be trusted either.
        return Err(unread(error.to_string()));
    }
    let next_offset = header.next_offset();
    let leader_epoch = header.leader_epoch.map(|epoch| epoch.0);
    if header.attributes.is_control() || next_offset <= position {
        bytes::Buf::advance(fetched, size);
        return Ok(OpenedBatch { records: Vec::new(), next_offset, leader_epoch });
    }
    let packed = fetched.slice(HEADER_BYTES..size);
    let compression = header.attributes.compression().and_then(Compression::of_batch);
    let unpacked = match compression {
        None => {
            return Err(bad(format!("compression {} is not supported", header.attributes.compression_id())));
        }
        Some(Compression::None) => packed,
        Some(codec) => {
            let unpacked = decompress(codec, &packed, unpacked_bytes_max);
            Bytes::from(unpacked.map_err(|error| bad(error.to_string()))?)
        }
    };
    let mut records = Vec::new();
    for record in RecordIter::new(&header, &unpacked) {
        let record = record.map_err(|error| bad(error.to_string()))?;
        if record.offset < position {
            continue;
        }
        let own = |bytes: &[u8]| unpacked.slice_ref(bytes);
        records.push(ConsumerRecord {
            topic: Arc::clone(topic),
            partition,
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key.map(own),
            value: record.value.map(own),
            headers: record.headers().map(|header| (own(header.key), header.value.map(own))).collect(),
        });
    }
    bytes::Buf::advance(fetched, size);
    Ok(OpenedBatch { records, next_offset, leader_epoch })
}

#[cfg(test)]
mod tests {
    use corelog_engine::LeaderEpoch;
    use corelog_engine::batch::{BatchBuilder, BatchFields, NewRecord, RecordHeader, Stamp, stamp};

    use super::*;
    use crate::compression::compress;

    fn batch(base: u64, values: &[&str], compression: Compression) -> Vec<u8> {
        let mut builder = BatchBuilder::new(1 << 20);
        for value in values {
            let headers = [RecordHeader { key: b"h", value: Some(b"1") }];
            let record = NewRecord {
                timestamp: TimestampMs(1_000),
                key: Some(b"k"),
                value: Some(value.as_bytes()),
                headers: &headers,
            };
            builder.push(&record).expect("fits");
        }
        let mut bytes = builder
            .finish_compressed(&BatchFields::default(), compression.in_batch(), |records, out| {
                compress(compression, records, out)
            })
            .expect("packs");
        let leader_epoch = LeaderEpoch(1);
        stamp(&mut bytes, Stamp { base_offset: Offset(base), leader_epoch, append_time: None });
        bytes
    }

    fn open(fetched: &mut Bytes, position: u64) -> Result<OpenedBatch, BadBatch> {
        open_batch(&"t".into(), 3, fetched, Offset(position), 1 << 20)
    }

    #[test]
    fn records_come_from_the_position_on_with_all_their_parts() {
        let long = "v".repeat(500);
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let mut fetched = batch(10, &["a", &long, "c"], compression);
            fetched.extend(batch(13, &["d"], Compression::None));
            let mut fetched = Bytes::from(fetched);
            let opened = open(&mut fetched, 11).expect("sound");
            assert_eq!(opened.next_offset, Offset(13));
            let offsets: Vec<u64> = opened.records.iter().map(|record| record.offset.0).collect();
            assert_eq!(offsets, [11, 12]);
            let last = &opened.records[1];
            assert_eq!((last.key.as_deref(), last.value.as_deref()), (Some(&b"k"[..]), Some(&b"c"[..])));
            assert_eq!(last.headers, [(Bytes::from("h"), Some(Bytes::from("1")))]);
            assert_eq!((last.partition, last.timestamp, last.payload_bytes()), (3, TimestampMs(1_000), 4));
            assert_eq!(open(&mut fetched, 13).expect("sound").records.len(), 1);
            assert!(fetched.is_empty());
        }
    }

    #[test]
    fn every_flipped_bit_behind_the_stamp_is_found() {
        let sound = batch(0, &["hello"], Compression::None);
        for position in 21..sound.len() {
            let mut bytes = sound.clone();
            bytes[position] ^= 1;
            let mut fetched = Bytes::from(bytes);
            let before = fetched.len();
            open(&mut fetched, 0).expect_err("a flipped bit");
            assert_eq!(fetched.len(), before, "an unsound batch is not consumed");
        }
    }

    #[test]
    fn a_cut_batch_and_a_bomb_are_refused_with_their_offsets() {
        let sound = batch(7, &["hello", "world"], Compression::None);
        let mut cut = Bytes::from(sound).slice(..70);
        let bad = open(&mut cut, 7).expect_err("cut");
        assert_eq!((bad.base_offset, bad.next_offset), (Some(Offset(7)), Some(Offset(9))));

        let mut bomb = Bytes::from(batch(7, &["0".repeat(100_000).as_str()], Compression::Zstd));
        assert!(bomb.len() < 1_000);
        let bad = open_batch(&"t".into(), 0, &mut bomb, Offset(7), 10_000).expect_err("too large");
        assert!(bad.reason.contains("10000 bytes"), "{}", bad.reason);
        assert_eq!(bad.next_offset, Some(Offset(8)));
    }
}
