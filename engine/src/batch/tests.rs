//! Batches made here are read here: stamps, checks of strangers' and of stored bytes, walks over buffers.

use proptest::prelude::*;

use super::header::seal;
use super::*;
use crate::types::{LeaderEpoch, Offset, TimestampMs};

fn batch(records: u32, value_bytes: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new(1 << 20);
    for i in 0..records {
        let value = vec![i as u8; value_bytes];
        let key = i.to_be_bytes();
        let headers =
            [RecordHeader { key: b"trace", value: Some(&key) }, RecordHeader { key: b"", value: None }];
        let record = NewRecord {
            timestamp: TimestampMs(1_000 + i64::from(i)),
            key: (i % 2 == 0).then_some(&key[..]),
            value: (i % 3 != 2).then_some(&value[..]),
            headers: &headers[..(i % 3) as usize],
        };
        assert_eq!(builder.push(&record), Ok(i));
    }
    builder.finish(&BatchFields::default()).expect("a batch with records")
}

fn stamped(records: u32, base_offset: u64, epoch: u32) -> Vec<u8> {
    let mut bytes = batch(records, 20);
    let (base_offset, leader_epoch) = (Offset(base_offset), LeaderEpoch(epoch));
    stamp(&mut bytes, Stamp { base_offset, leader_epoch, append_time: None });
    bytes
}

fn refused(batches: &[u8]) -> BatchError {
    validate(batches, &BatchLimits::default()).expect_err("these bytes are to be refused")
}

/// The batch with `change` done to it and its checksum made right again.
fn lying(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = batch(3, 20);
    change(&mut bytes);
    seal(&mut bytes);
    bytes
}

#[test]
fn records_come_back_as_they_were_put_in() {
    let bytes = stamped(5, 70, 3);
    let header = BatchHeader::parse(&bytes).expect("own header");
    assert_eq!(header.next_offset(), Offset(75));
    assert_eq!(header.leader_epoch, Some(LeaderEpoch(3)));
    assert_eq!((header.base_timestamp, header.max_timestamp), (TimestampMs(1_000), TimestampMs(1_004)));
    let records: Vec<_> =
        RecordIter::new(&header, &bytes[HEADER_BYTES..]).collect::<Result<_, _>>().expect("own records");
    assert_eq!(records.len(), 5);
    for (i, record) in records.iter().enumerate() {
        assert_eq!(record.offset, Offset(70 + i as u64));
        assert_eq!(record.timestamp, TimestampMs(1_000 + i as i64));
        assert_eq!(record.key.is_some(), i % 2 == 0);
        assert_eq!(record.value.map(<[u8]>::len), (i % 3 != 2).then_some(20));
        assert_eq!(record.headers().count(), i % 3);
    }
    let first = records[2].headers().next().expect("two headers");
    assert_eq!((first.key, first.value), (&b"trace"[..], Some(&2_u32.to_be_bytes()[..])));
}

#[test]
fn a_header_survives_parse_and_encode() {
    let bytes = stamped(2, 9, 1);
    let header = BatchHeader::parse(&bytes).expect("own header");
    assert_eq!(header.encode(), bytes[..HEADER_BYTES]);
}

#[test]
fn several_batches_add_up() {
    let mut bytes = batch(3, 10);
    bytes.extend(batch(7, 10));
    let summary = validate(&bytes, &BatchLimits::default()).expect("sound batches");
    assert_eq!((summary.batches, summary.records, summary.bytes), (2, 10, bytes.len()));
    assert_eq!(summary.max_timestamp, TimestampMs(1_006));
    assert_eq!(summary.first.record_count, 3);
}

#[test]
fn what_a_producer_wrote_as_offset_and_epoch_means_nothing() {
    let mut bytes = batch(3, 10);
    bytes[..8].fill(0xff);
    bytes[12..16].fill(0x7f);
    let summary = validate(&bytes, &BatchLimits::default()).expect("sound but for the stamp");
    assert_eq!((summary.first.base_offset, summary.first.leader_epoch), (Offset(0), None));
}

#[test]
fn lies_in_the_header_are_refused() {
    let count = lying(|b| b[57..61].copy_from_slice(&4_i32.to_be_bytes()));
    assert!(matches!(refused(&count), BatchError::RecordCount { record_count: 4, offset_count: 3, .. }));
    let both = lying(|b| {
        b[57..61].copy_from_slice(&i32::MAX.to_be_bytes());
        b[23..27].copy_from_slice(&(i32::MAX - 1).to_be_bytes());
    });
    assert!(matches!(refused(&both), BatchError::RecordCount { .. }));
    let compressed_liar = lying(|b| {
        b[22] = 4;
        b[57..61].copy_from_slice(&i32::MAX.to_be_bytes());
        b[23..27].copy_from_slice(&(i32::MAX - 1).to_be_bytes());
    });
    assert!(matches!(refused(&compressed_liar), BatchError::RecordCount { .. }));
    let none = lying(|b| {
        b[57..61].fill(0);
        b[23..27].fill(0xff);
    });
    assert!(matches!(refused(&none), BatchError::Header { error: HeaderError::OffsetDelta { .. }, .. }));
    assert!(matches!(refused(&lying(|b| b[22] = 1 << 5)), BatchError::Control { position: 0 }));
    assert!(matches!(refused(&lying(|b| b[22] = 1 << 4)), BatchError::Transactional { .. }));
    assert!(matches!(refused(&lying(|b| b[22] = 1 << 3)), BatchError::BrokerAttributes { .. }));
    assert!(matches!(refused(&lying(|b| b[22] = 1 << 6)), BatchError::BrokerAttributes { .. }));
    assert!(matches!(refused(&lying(|b| b[22] = 5)), BatchError::Compression { id: 5, .. }));
    let old = lying(|b| b[16] = 1);
    assert!(matches!(refused(&old), BatchError::Header { error: HeaderError::Magic { magic: 1 }, .. }));
}

#[test]
fn lengths_are_bounded() {
    let whole = batch(3, 20);
    assert_eq!(refused(&[]), BatchError::Empty);
    for cut in 1..whole.len() {
        let error = refused(&whole[..cut]);
        assert!(matches!(error, BatchError::Incomplete { position: 0, have, .. } if have == cut), "{error}");
    }
    let mut trailing = whole.clone();
    trailing.push(0);
    assert!(matches!(refused(&trailing), BatchError::Incomplete { have: 1, .. }));
    for length in [i32::MIN, -1, 0, 48] {
        let mut bytes = whole.clone();
        bytes[8..12].copy_from_slice(&length.to_be_bytes());
        assert_eq!(
            refused(&bytes),
            BatchError::Header { position: 0, error: HeaderError::Length { length } }
        );
    }
    let mut huge = whole.clone();
    huge[8..12].copy_from_slice(&i32::MAX.to_be_bytes());
    assert!(matches!(refused(&huge), BatchError::TooLarge { .. }));
    let limits = BatchLimits { batch_bytes_max: whole.len() - 1, ..BatchLimits::default() };
    assert!(matches!(validate(&whole, &limits), Err(BatchError::TooLarge { .. })));
}

#[test]
fn a_timestamp_from_the_far_future_is_refused() {
    let bytes = batch(3, 20);
    let limits = |max| BatchLimits { timestamp_max: Some(TimestampMs(max)), ..BatchLimits::default() };
    assert!(validate(&bytes, &limits(1_002)).is_ok());
    assert!(matches!(validate(&bytes, &limits(1_001)), Err(BatchError::Timestamp { .. })));
}

#[test]
fn every_flipped_bit_under_the_checksum_is_found() {
    let bytes = batch(2, 9);
    for bit in CRC_START * 8..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(validate(&bad, &BatchLimits::default()).is_err(), "bit {bit}");
    }
}

#[test]
fn append_time_changes_the_checksum_without_reading_the_records() {
    for records in [1, 2, 50] {
        let mut bytes = batch(records, 100);
        let time = TimestampMs(1_700_000_000_000);
        let (base_offset, leader_epoch) = (Offset(5), LeaderEpoch(2));
        // Only the header is handed over.
        stamp(&mut bytes[..HEADER_BYTES], Stamp { base_offset, leader_epoch, append_time: Some(time) });
        let header = BatchHeader::parse(&bytes).expect("stamped header");
        assert_eq!((header.max_timestamp, header.base_offset), (time, base_offset));
        assert_eq!(header.attributes.timestamp_type(), TimestampType::LogAppendTime);
        assert_eq!(header.crc, crc32c::crc32c(&bytes[CRC_START..]));
        let times = RecordIter::new(&header, &bytes[HEADER_BYTES..]).map(|r| r.expect("sound").timestamp);
        assert!(times.into_iter().all(|t| t == time));
    }
}

#[test]
fn damage_stays_visible_through_an_append_time_stamp() {
    let mut bytes = batch(3, 100);
    *bytes.last_mut().expect("bytes") ^= 1;
    let (base_offset, leader_epoch) = (Offset(5), LeaderEpoch(2));
    stamp(&mut bytes, Stamp { base_offset, leader_epoch, append_time: Some(TimestampMs(9)) });
    assert!(check_stored(&bytes, HeaderCheck::exact(Offset(5), 1 << 20)).is_err());
}

#[test]
fn stored_batches_follow_each_other() {
    let mut bytes = stamped(3, 10, 1);
    let second = bytes.len();
    bytes.extend(stamped(2, 13, 2));
    let check = HeaderCheck::exact(Offset(10), 1 << 20);
    let summary = check_stored(&bytes, check).expect("sound");
    assert_eq!((summary.batches, summary.next_offset), (2, Offset(15)));
    assert_eq!(summary.bytes, bytes.len() as u64);

    let wrong_start = check_stored(&bytes, HeaderCheck::exact(Offset(9), 1 << 20));
    assert!(matches!(wrong_start, Err((0, StoredError::BaseOffset { .. }))));
    let gap = HeaderCheck { continuity: Continuity::GapsAllowed, ..HeaderCheck::exact(Offset(9), 1 << 20) };
    assert!(check_stored(&bytes, gap).is_ok());
    let old_epoch = HeaderCheck { epoch_min: Some(LeaderEpoch(2)), ..check };
    assert!(matches!(check_stored(&bytes, old_epoch), Err((0, StoredError::LeaderEpoch { .. }))));
    let future_epoch = HeaderCheck { epoch_max: Some(LeaderEpoch(1)), ..check };
    assert!(
        matches!(check_stored(&bytes, future_epoch), Err((at, StoredError::LeaderEpoch { .. })) if at == second)
    );
    let cut = check_stored(&bytes[..bytes.len() - 1], check);
    assert!(matches!(cut, Err((at, StoredError::Incomplete { .. })) if at == second));
    let zeroes = [bytes.clone(), vec![0; 4096]].concat();
    let blank = Err((bytes.len(), StoredError::Header(HeaderError::Blank)));
    assert_eq!(check_stored(&zeroes, check), blank);
}

#[test]
fn an_unstamped_batch_is_not_one_of_an_epoch() {
    let bytes = batch(1, 5);
    let check = HeaderCheck { epoch_min: Some(LeaderEpoch(0)), ..HeaderCheck::exact(Offset(0), 1 << 20) };
    assert!(matches!(check_stored(&bytes, check), Err((0, StoredError::LeaderEpoch { found: None, .. }))));
}

#[test]
fn a_valid_batch_behind_damage_is_found() {
    let first = stamped(3, 10, 1);
    let mut bytes = [first.clone(), stamped(2, 13, 1), stamped(4, 15, 1)].concat();
    let (second, third) = (first.len(), first.len() + stamped(2, 13, 1).len());
    bytes[second + 30] ^= 0x10;
    let mut scan = StoredScan::new(HeaderCheck::exact(Offset(10), 1 << 20));
    assert!(scan.feed(&bytes, |_, _| {}).is_err());
    assert_eq!(scan.summary().bytes, second as u64);
    let behind = find_plausible_header(&bytes, second + 1, &scan.check()).expect("a header");
    assert_eq!(behind, third);
}

fn check_walk(bytes: &[u8], cuts: &[usize], expected: &[(usize, u64)]) {
    let mut parts: Vec<&[u8]> = Vec::new();
    let mut start = 0;
    for &cut in cuts {
        parts.push(&bytes[start..cut]);
        start = cut;
    }
    parts.push(&bytes[start..]);
    let mut walk = BatchWalk::new(&parts);
    let mut found = Vec::new();
    for span in walk.by_ref() {
        let span = span.expect("whole batches");
        let pieces: Vec<u8> = span.pieces(&parts).collect::<Vec<_>>().concat();
        assert_eq!(pieces, bytes[span.range()]);
        let mut crc = CrcCheck::new(&span.header);
        for piece in span.pieces(&parts) {
            assert_eq!(crc.feed(piece), piece.len());
        }
        assert_eq!(crc.finish(), Ok(()));
        found.push((span.position, span.header.base_offset.0));
    }
    assert_eq!(found, expected);
    assert_eq!(walk.position(), bytes.len());

    let mut scan = StoredScan::new(HeaderCheck::exact(Offset(0), 1 << 20));
    let mut fed = Vec::new();
    for part in parts {
        scan.feed(part, |header, position| fed.push((position as usize, header.base_offset.0)))
            .expect("sound batches");
    }
    assert_eq!(fed, expected);
    assert_eq!(scan.tail(), TailState::Whole);
}

proptest! {
    #[test]
    fn walks_do_not_depend_on_where_buffers_end(mut cuts in prop::collection::vec(0_usize..400, 0..12)) {
        let bytes = [stamped(1, 0, 0), stamped(3, 1, 0), stamped(2, 4, 0)].concat();
        let (second, third) = (stamped(1, 0, 0).len(), stamped(1, 0, 0).len() + stamped(3, 1, 0).len());
        cuts.iter_mut().for_each(|cut| *cut = (*cut).min(bytes.len()));
        cuts.sort_unstable();
        check_walk(&bytes, &cuts, &[(0, 0), (second, 1), (third, 4)]);
    }

    #[test]
    fn no_bytes_of_a_stranger_stop_the_process(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        header in any::<bool>(),
        length in any::<u8>(),
    ) {
        if header && bytes.len() > 20 {
            bytes[8..12].copy_from_slice(&i32::from(length).to_be_bytes());
            bytes[16] = 2;
        }
        let _ = validate(&bytes, &BatchLimits::default());
        let _ = check_stored(&bytes, HeaderCheck::exact(Offset(0), 1 << 20));
        let parts = [&bytes[..bytes.len() / 2], &bytes[bytes.len() / 2..]];
        prop_assert!(BatchWalk::new(&parts).count() <= bytes.len() / HEADER_BYTES + 1);
        if let Ok(header) = BatchHeader::parse(&bytes) {
            let lying = BatchHeader { record_count: i32::MAX as u32, ..header };
            let records = RecordIter::new(&lying, &bytes[HEADER_BYTES..]).count();
            prop_assert!(records <= bytes.len());
        }
    }

    #[test]
    fn records_of_a_stranger_are_walked_within_their_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let own = batch(1, 1);
        let header = BatchHeader { record_count: 1_000_000, last_offset_delta: 999_999,
            ..BatchHeader::parse(&own).expect("own header") };
        let read = RecordIter::new(&header, &bytes).filter_map(Result::ok).count();
        prop_assert!(read <= bytes.len() / 7);
    }
}

#[test]
fn a_full_batch_sends_the_record_to_the_next_one() {
    let mut builder = BatchBuilder::new(200);
    let value = [7; 100];
    let record = NewRecord { value: Some(&value), ..NewRecord::default() };
    let growth = builder.growth_bytes(&record);
    assert_eq!(builder.push(&record), Ok(0));
    assert_eq!(builder.size_bytes(), HEADER_BYTES + growth);
    assert!(matches!(builder.push(&record), Err(BuildError::BatchFull { .. })));
    assert_eq!(builder.finish(&BatchFields::default()).expect("one record").len(), HEADER_BYTES + growth);
    let large = [7; 1000];
    let record = NewRecord { value: Some(&large), ..NewRecord::default() };
    assert_eq!(builder.push(&record), Ok(0));
}

#[test]
fn compression_is_given_by_the_caller_and_dropped_where_it_does_not_help() {
    let fill = |builder: &mut BatchBuilder| {
        let value = [7; 100];
        builder.push(&NewRecord { value: Some(&value), ..NewRecord::default() }).expect("room");
    };
    let mut builder = BatchBuilder::new(1 << 16);
    fill(&mut builder);
    let halve = |raw: &[u8], out: &mut Vec<u8>| -> Result<(), ()> {
        out.extend_from_slice(&raw[..raw.len() / 2]);
        Ok(())
    };
    let batch = builder.finish_compressed(&BatchFields::default(), Compression::Lz4, halve).expect("a batch");
    let summary = validate(&batch, &BatchLimits::default()).expect("sound");
    assert_eq!(summary.first.attributes.compression(), Some(Compression::Lz4));
    assert!(builder.is_empty());

    fill(&mut builder);
    let grow = |raw: &[u8], out: &mut Vec<u8>| -> Result<(), ()> {
        out.extend_from_slice(raw);
        out.extend_from_slice(raw);
        Ok(())
    };
    let batch = builder.finish_compressed(&BatchFields::default(), Compression::Zstd, grow).expect("a batch");
    let summary = validate(&batch, &BatchLimits::default()).expect("sound");
    assert_eq!(summary.first.attributes.compression(), Some(Compression::None));

    fill(&mut builder);
    let fail = |_: &[u8], _: &mut Vec<u8>| Err("no memory");
    let failed = builder.finish_compressed(&BatchFields::default(), Compression::Zstd, fail);
    assert_eq!(failed, Err(FinishError::Codec("no memory")));
    assert_eq!(builder.record_count(), 1, "a failed codec loses no record");
}
