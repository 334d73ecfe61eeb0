//! Record batches of test records, there and back.

use corelog_engine::batch::{BatchBuilder, BatchFields, BatchHeader, HEADER_BYTES, NewRecord, RecordIter};
use corelog_engine::buffer::DmaSlice;
use corelog_engine::{Offset, TimestampMs};

use crate::checker::{RecordTag, Stored};

/// A batch of records, each with a value of `value_bytes`.
pub fn build(tags: impl IntoIterator<Item = RecordTag>, value_bytes: usize, now: TimestampMs) -> Vec<u8> {
    let mut builder = BatchBuilder::new(1 << 20);
    for tag in tags {
        let value = tag.value(value_bytes);
        let record = NewRecord { timestamp: now, key: None, value: Some(&value), headers: &[] };
        builder.push(&record).expect("test records are small");
    }
    builder.finish(&BatchFields::default()).expect("a batch has records")
}

/// The records at and above `from` of whole batches.
///
/// Errors: what is not a test record, or not a batch: nobody may ever read that.
pub fn read(slices: &[DmaSlice], from: Offset) -> Result<Vec<Stored>, String> {
    let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
    let mut rest = &bytes[..];
    let mut records = Vec::new();
    while !rest.is_empty() {
        let header = BatchHeader::parse(rest).map_err(|error| format!("not a batch: {error}"))?;
        let (batch, after) = rest.split_at_checked(header.size()).ok_or("half a batch")?;
        rest = after;
        let leader_epoch = header.leader_epoch.ok_or("a batch without epoch")?.0;
        for record in RecordIter::new(&header, &batch[HEADER_BYTES..]) {
            let record = record.map_err(|error| error.to_string())?;
            let tag =
                RecordTag::parse(record.value.unwrap_or_default()).map_err(|error| error.to_string())?;
            if record.offset >= from {
                records.push(Stored { offset: record.offset.0, leader_epoch, tag });
            }
        }
    }
    Ok(records)
}
