//! Golden record batches: bytes that another implementation made (`golden/make.py`) and bytes laid out by hand
//! from the published format.
//!
//! What must never happen: we read them differently, or build other bytes from the same records.

use corelog_engine::batch::{
    Attributes, BatchBuilder, BatchError, BatchFields, BatchHeader, BatchLimits, Compression, HEADER_BYTES,
    NewRecord, RecordHeader, RecordIter, validate,
};
use corelog_engine::{Offset, TimestampMs};

const LONG: [u8; 200] = [b'x'; 200];

/// The records of `make.py`.
fn records() -> [NewRecord<'static>; 4] {
    const SECOND: [RecordHeader<'static>; 3] = [
        RecordHeader { key: b"trace", value: Some(&[0, 1, 255]) },
        RecordHeader { key: b"empty", value: Some(b"") },
        RecordHeader { key: b"null", value: None },
    ];
    const THIRD: [RecordHeader<'static>; 2] = [
        RecordHeader { key: b"trace", value: Some(b"again") },
        RecordHeader { key: b"trace", value: Some(b"twice") },
    ];
    [
        NewRecord {
            timestamp: TimestampMs(1_700_000_000_000),
            key: Some(b"user-1"),
            value: Some(b"first"),
            headers: &[],
        },
        NewRecord {
            timestamp: TimestampMs(1_700_000_000_250),
            key: None,
            value: Some(&LONG),
            headers: &SECOND,
        },
        NewRecord {
            timestamp: TimestampMs(1_699_999_999_000),
            key: Some(b"user-2"),
            value: None,
            headers: &THIRD,
        },
        NewRecord {
            timestamp: TimestampMs(1_700_000_100_000),
            key: Some(b""),
            value: Some(b""),
            headers: &[],
        },
    ]
}

fn build(fields: &BatchFields) -> Vec<u8> {
    let mut builder = BatchBuilder::new(1 << 20);
    for record in records() {
        builder.push(&record).expect("room");
    }
    builder.finish(fields).expect("records")
}

/// The same but for the leader epoch, which no producer knows: kafka-python writes 0, we write -1 as Kafka's own
/// client does. It is outside the checksum.
fn check_same_bytes(built: &[u8], golden: &[u8]) {
    let (epoch, rest) = (12..16, 16..);
    assert_eq!(golden[epoch.clone()], [0; 4]);
    assert_eq!(built[epoch], [0xff; 4]);
    assert_eq!(built[..12], golden[..12]);
    assert_eq!(built[rest.clone()], golden[rest]);
}

fn check_same_records(batch: &[u8]) {
    let header = BatchHeader::parse(batch).expect("golden header");
    let read: Vec<_> =
        RecordIter::new(&header, &batch[HEADER_BYTES..]).collect::<Result<_, _>>().expect("golden records");
    assert_eq!(read.len(), records().len());
    for (i, (read, expected)) in read.iter().zip(records()).enumerate() {
        assert_eq!(read.offset, Offset(i as u64));
        assert_eq!(read.timestamp, expected.timestamp);
        assert_eq!((read.key, read.value), (expected.key, expected.value));
        assert!(read.headers().eq(expected.headers.iter().copied()), "headers of record {i}");
    }
}

#[test]
fn a_plain_batch_is_the_same_byte_for_byte() {
    let golden = include_bytes!("golden/batch_plain.bin");
    check_same_records(golden);
    check_same_bytes(&build(&BatchFields::default()), golden);
    let summary = validate(golden, &BatchLimits::default()).expect("sound");
    assert_eq!((summary.batches, summary.records, summary.bytes), (1, 4, golden.len()));
    assert_eq!(summary.max_timestamp, TimestampMs(1_700_000_100_000));
}

#[test]
fn an_idempotent_batch_is_the_same_byte_for_byte() {
    let golden = include_bytes!("golden/batch_idempotent.bin");
    check_same_records(golden);
    let fields = BatchFields {
        producer_id: 4711,
        producer_epoch: 3,
        base_sequence: i32::MAX,
        ..BatchFields::default()
    };
    check_same_bytes(&build(&fields), golden);
    let first = validate(golden, &BatchLimits::default()).expect("sound").first;
    assert_eq!((first.producer_id, first.producer_epoch, first.base_sequence), (4711, 3, i32::MAX));
}

#[test]
fn a_transactional_batch_is_built_and_refused() {
    let golden = include_bytes!("golden/batch_transactional.bin");
    check_same_records(golden);
    let fields = BatchFields {
        producer_id: 4711,
        producer_epoch: 3,
        base_sequence: 12,
        flags: Attributes::default().with_transactional(),
        ..BatchFields::default()
    };
    check_same_bytes(&build(&fields), golden);
    assert_eq!(validate(golden, &BatchLimits::default()), Err(BatchError::Transactional { position: 0 }));
}

#[test]
fn a_compressed_batch_is_taken_without_looking_inside() {
    let golden = include_bytes!("golden/batch_gzip.bin");
    let summary = validate(golden, &BatchLimits::default()).expect("sound");
    assert_eq!(summary.first.attributes.compression(), Some(Compression::Gzip));
    assert_eq!(summary.records, 4);
}

/// One record without key, timestamp 0, value "v", laid out by hand from the format's description.
#[test]
fn a_batch_laid_out_by_hand_is_what_is_built() {
    #[rustfmt::skip]
    let mut by_hand = vec![
        0, 0, 0, 0, 0, 0, 0, 0,                         // base offset 0
        0, 0, 0, 57,                                    // length: 49 of the header, 8 of the record
        0xff, 0xff, 0xff, 0xff,                         // leader epoch -1
        2,                                              // magic
        0, 0, 0, 0,                                     // checksum, below
        0, 0,                                           // attributes
        0, 0, 0, 0,                                     // last offset delta 0
        0, 0, 0, 0, 0, 0, 0, 0,                         // base timestamp 0
        0, 0, 0, 0, 0, 0, 0, 0,                         // max timestamp 0
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, // producer id -1
        0xff, 0xff,                                     // producer epoch -1
        0xff, 0xff, 0xff, 0xff,                         // base sequence -1
        0, 0, 0, 1,                                     // one record
        14,                                             // record length 7
        0, 0, 0,                                        // attributes, timestamp delta, offset delta
        1,                                              // key length -1
        2, b'v',                                        // value length 1, value
        0,                                              // no headers
    ];
    let crc = crc32c_bit_by_bit(&by_hand[21..]);
    by_hand[17..21].copy_from_slice(&crc.to_be_bytes());

    let mut builder = BatchBuilder::new(1 << 20);
    builder.push(&NewRecord { value: Some(b"v"), ..NewRecord::default() }).expect("room");
    let built = builder.finish(&BatchFields::default()).expect("a record");
    assert_eq!(built, by_hand);
    check_same_bytes(&built, include_bytes!("golden/batch_one.bin"));
}

/// CRC-32C from its polynomial, so that the test does not lean on the crate that the code uses.
fn crc32c_bit_by_bit(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| {
                if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 }
            },
        )
    })
}
