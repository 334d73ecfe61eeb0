//! Test records in batches: made for direct clients, and read back from answers and from the files of a replica.

use std::path::{Path, PathBuf};

use corelog_client::{Offset, TimestampMs};
use corelog_engine::batch::{
    BatchBuilder, BatchFields, BatchHeader, CrcCheck, HEADER_BYTES, NewRecord, RecordIter,
};
use corelog_sim::checker::{FinalReplica, RecordTag, Stored};

/// A batch of records, each with a value of `value_bytes`.
pub(crate) fn batch(tags: impl IntoIterator<Item = RecordTag>, value_bytes: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new(1 << 20);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let timestamp = TimestampMs(i64::try_from(now.as_millis()).expect("long from now"));
    for tag in tags {
        let value = tag.value(value_bytes);
        let record = NewRecord { timestamp, key: None, value: Some(&value), headers: &[] };
        builder.push(&record).expect("test records are small");
    }
    builder.finish(&BatchFields::default()).expect("a batch has records")
}

/// The first batch of some bytes: its records, and how long it is.
///
/// Errors: not a batch, not whole, or damaged.
fn first_batch(bytes: &[u8]) -> Result<(Vec<Stored>, usize), String> {
    let header = BatchHeader::parse(bytes).map_err(|error| error.to_string())?;
    let batch = bytes.get(..header.size()).ok_or("half a batch")?;
    let mut crc = CrcCheck::new(&header);
    crc.feed(batch);
    crc.finish().map_err(|error| error.to_string())?;
    let leader_epoch = header.leader_epoch.ok_or("a batch without epoch")?.0;
    let mut records = Vec::new();
    for record in RecordIter::new(&header, &batch[HEADER_BYTES..]) {
        let record = record.map_err(|error| error.to_string())?;
        let tag = RecordTag::parse(record.value.unwrap_or_default()).map_err(|error| error.to_string())?;
        records.push(Stored { offset: record.offset.0, leader_epoch, tag });
    }
    Ok((records, header.size()))
}

/// The records at and above `from` of a fetch; a last batch that is cut off is left out.
///
/// Errors: what nobody may ever be served.
pub(crate) fn fetched(bytes: &[u8], from: u64) -> Result<Vec<Stored>, String> {
    let mut records = Vec::new();
    let mut rest = bytes;
    while rest.len() >= HEADER_BYTES {
        let size = BatchHeader::parse(rest).map_err(|error| error.to_string())?.size();
        if size > rest.len() {
            break;
        }
        let (batch, size) = first_batch(rest)?;
        records.extend(batch.into_iter().filter(|stored| stored.offset >= from));
        rest = &rest[size..];
    }
    Ok(records)
}

/// A log in the files of a node that has stopped.
///
/// Errors: no such log, or it cannot be read.
pub(crate) fn replica(data: &Path, node: u32, topic: &str, partition: u32) -> Result<FinalReplica, String> {
    let log = log_directory(data, topic, partition)
        .ok_or_else(|| format!("node {node} has no log of {topic}/{partition}"))?;
    let mut segments: Vec<(u64, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(&log).map_err(|error| error.to_string())? {
        let path = entry.map_err(|error| error.to_string())?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(base) = name.strip_suffix(".log").and_then(|digits| digits.parse().ok()) {
            segments.push((base, path));
        }
    }
    segments.sort();
    let log_start = segments.first().map_or(0, |(base, _)| *base);
    let mut records: Vec<Stored> = Vec::new();
    for (base, path) in segments {
        let bytes = std::fs::read(&path).map_err(|error| error.to_string())?;
        let mut rest = &bytes[..];
        let mut next = base;
        while let Ok((batch, size)) = first_batch(rest) {
            if batch.first().is_none_or(|first| first.offset != next) {
                break;
            }
            next += batch.len() as u64;
            records.extend(batch);
            rest = &rest[size..];
        }
    }
    Ok(FinalReplica { name: format!("of node {node}"), log_start, records })
}

fn log_directory(data: &Path, topic: &str, partition: u32) -> Option<PathBuf> {
    let topics = std::fs::read_dir(data.join("topics")).ok()?;
    let is_of_topic = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.rsplit_once('-').is_some_and(|(name, _)| name == topic)
    };
    let mut found = topics
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| is_of_topic(path))
        .map(|path| path.join(partition.to_string()));
    found.find(|log| log.is_dir())
}

/// The offset behind the last of some records.
pub(crate) fn end(records: &[Stored]) -> Option<Offset> {
    records.last().map(|stored| Offset(stored.offset + 1))
}
