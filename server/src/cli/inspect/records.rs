//! Prints the records of batches that a scan has found sound.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use corelog_client::ConsumerRecord;
use corelog_client::compression::{Compression, decompress};
use corelog_engine::batch::{BatchHeader, HEADER_BYTES, RecordIter};

use super::super::CliResult;
use super::super::output::Output;
use super::super::record_json;
use super::read_error;

/// What one batch may unpack to.
const UNPACKED_BYTES_MAX: usize = 1 << 30;

/// Prints each record as a JSON line; returns how many batches cannot be unpacked (told on standard error).
pub(super) fn print(path: &Path, batches: &[(BatchHeader, u64)], out: &mut Output) -> CliResult<u64> {
    let file = File::open(path).map_err(|error| read_error(path, &error))?;
    let mut unread = 0;
    let place = place_of(path);
    for (header, position) in batches {
        if header.attributes.is_control() {
            continue;
        }
        let mut packed = vec![0; header.size() - HEADER_BYTES];
        let at = position + HEADER_BYTES as u64;
        file.read_exact_at(&mut packed, at).map_err(|error| read_error(path, &error))?;
        match unpack(header, packed, &place) {
            Ok(records) => {
                for record in &records {
                    out.line(record_json::to_json(record).to_string())?;
                }
            }
            Err(reason) => {
                unread += 1;
                let offset = header.base_offset;
                eprintln!("DAMAGE {} byte {position} offset {offset}: {reason}", path.display());
            }
        }
    }
    Ok(unread)
}

/// Topic and partition as the directories name them.
fn place_of(path: &Path) -> (String, u32) {
    let name = |path: Option<&Path>| {
        path.and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let log = path.parent();
    let partition = name(log).parse().unwrap_or(0);
    (name(log.and_then(Path::parent)), partition)
}

fn unpack(
    header: &BatchHeader,
    packed: Vec<u8>,
    place: &(String, u32),
) -> Result<Vec<ConsumerRecord>, String> {
    let codec = header.attributes.compression().and_then(Compression::of_batch);
    let codec = codec
        .ok_or_else(|| format!("compression {} is not supported", header.attributes.compression_id()))?;
    let unpacked = decompress(codec, &packed, UNPACKED_BYTES_MAX).map_err(|error| error.to_string())?;
    let topic: std::sync::Arc<str> = place.0.as_str().into();
    let own = Bytes::copy_from_slice;
    RecordIter::new(header, &unpacked)
        .map(|record| {
            let record = record.map_err(|error| error.to_string())?;
            Ok(ConsumerRecord {
                topic: topic.clone(),
                partition: place.1,
                offset: record.offset,
                timestamp: record.timestamp,
                key: record.key.map(own),
                value: record.value.map(own),
                headers: record.headers().map(|header| (own(header.key), header.value.map(own))).collect(),
            })
        })
        .collect()
}
