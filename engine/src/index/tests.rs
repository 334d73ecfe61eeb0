//! Indexes against the list of batches that they were made from.

use proptest::prelude::*;

use super::*;
use crate::batch::Attributes;

const BASE: Offset = Offset(1_000);
const INTERVAL: u64 = 300;

/// A batch of a segment: records, bytes, latest timestamp.
type Batch = (u32, u32, i64);

fn headers(batches: &[Batch]) -> Vec<(BatchHeader, u64)> {
    let (mut base_offset, mut position) = (BASE, 0);
    let mut out = Vec::new();
    for &(records, size_bytes, timestamp) in batches {
        let header = BatchHeader {
            base_offset,
            size_bytes,
            leader_epoch: None,
            crc: 0,
            attributes: Attributes::default(),
            last_offset_delta: records - 1,
            base_timestamp: TimestampMs(timestamp),
            max_timestamp: TimestampMs(timestamp),
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
            record_count: records,
        };
        out.push((header, position));
        base_offset = header.next_offset();
        position += u64::from(size_bytes);
    }
    out
}

fn index_of(headers: &[(BatchHeader, u64)]) -> SegmentIndex {
    let mut index = SegmentIndex::new(BASE, INTERVAL);
    for (header, position) in headers {
        index.append(header, *position);
    }
    index
}

fn bounds(headers: &[(BatchHeader, u64)]) -> SegmentBounds {
    let last = headers.last();
    SegmentBounds {
        base_offset: BASE,
        end_offset: last.map_or(BASE, |(h, _)| h.next_offset()),
        length_bytes: last.map_or(0, |(h, position)| position + u64::from(h.size_bytes)),
    }
}

fn check_lookups(index: &SegmentIndex, headers: &[(BatchHeader, u64)]) {
    for (header, position) in headers {
        for offset in header.base_offset.0..header.next_offset().0 {
            assert!(index.position_of(Offset(offset)) <= *position, "a scan must not begin behind {offset}");
        }
        let entry = index.floor(header.last_offset());
        assert!(
            entry
                .is_none_or(|e| headers.iter().any(|(h, p)| (h.last_offset(), *p) == (e.offset, e.position)))
        );
    }
    for at in (-2..40).map(TimestampMs) {
        let start = index.position_of_time(at);
        let first = headers.iter().find(|(h, _)| h.max_timestamp >= at);
        assert!(first.is_none_or(|(_, position)| start <= *position), "a scan for {at:?} begins behind it");
    }
}

fn check_same(a: &SegmentIndex, b: &SegmentIndex) {
    assert!(a.offsets().iter().eq(b.offsets().iter()));
    assert!(a.times().iter().eq(b.times().iter()));
    assert_eq!(a.max_timestamp(), b.max_timestamp());
}

proptest! {
    #[test]
    fn lookups_never_begin_behind_what_they_look_for(
        batches in prop::collection::vec((1_u32..5, 61_u32..400, -1_i64..30), 0..40),
        cut in 0_usize..40,
    ) {
        let headers = headers(&batches);
        let mut index = index_of(&headers);
        check_lookups(&index, &headers);
        let latest = batches.iter().map(|b| b.2).max().filter(|t| *t >= 0).map(TimestampMs);
        prop_assert_eq!(index.max_timestamp(), latest);

        // Cut, and fed again from where it says, it is the index of what is left.
        let cut = cut.min(headers.len());
        let (stays, _) = headers.split_at(cut);
        let resume_position = index.truncate(bounds(stays).end_offset);
        for (header, position) in stays.iter().filter(|(_, position)| *position >= resume_position) {
            index.append(header, *position);
        }
        check_lookups(&index, stays);
        check_same(&index, &index_of(stays));

        // Sealed, cut and fed again likewise.
        let mut sealed = index_of(&headers);
        sealed.seal();
        check_lookups(&sealed, &headers);
        let resume_position = sealed.truncate(bounds(stays).end_offset);
        for (header, position) in stays.iter().filter(|(_, position)| *position >= resume_position) {
            sealed.append(header, *position);
        }
        check_same(&sealed, &index_of(stays));
    }

    #[test]
    fn files_give_the_index_back(batches in prop::collection::vec((1_u32..5, 61_u32..400, -1_i64..30), 0..40)) {
        let headers = headers(&batches);
        let mut index = index_of(&headers);
        index.seal();
        let files = (index.offsets().encode(), index.times().encode());
        let read = SegmentIndex::decode(&files.0, &files.1, bounds(&headers), INTERVAL).expect("own files");
        check_same(&read, &index);
    }

    #[test]
    fn no_bytes_of_an_index_file_stop_the_process(
        a in prop::collection::vec(any::<u8>(), 0..100),
        b in prop::collection::vec(any::<u8>(), 0..100),
        length_bytes in any::<u64>(),
        end in any::<u32>(),
    ) {
        let bounds = SegmentBounds { base_offset: BASE, end_offset: BASE.advance(u64::from(end)), length_bytes };
        if let Ok(index) = SegmentIndex::decode(&a, &b, bounds, INTERVAL) {
            prop_assert!(index.resume_position() < length_bytes.max(1));
            index.position_of_time(TimestampMs(0));
        }
    }
}

#[test]
fn entries_have_the_published_layout() {
    // 301 bytes pass before batch 2, so it is the one that is indexed, by its last offset.
    let headers = headers(&[(2, 200, 7), (3, 101, 9), (4, 90, 8), (1, 61, 10)]);
    let mut index = index_of(&headers);
    index.seal();
    assert_eq!(index.offsets().encode(), [0, 0, 0, 8, 0, 0, 1, 45]);
    let times = [
        [0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 4], // the latest when batch 2 was indexed is that of batch 1
        [0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 9],
    ];
    assert_eq!(index.times().encode(), times.concat());
}

#[test]
fn damaged_files_are_refused_with_their_reason() {
    let headers = headers(&[(2, 400, 7), (3, 400, 9), (4, 400, 11), (1, 400, 20)]);
    let index = index_of(&headers);
    let (offsets, times) = (index.offsets().encode(), index.times().encode());
    assert_eq!((offsets.len(), times.len()), (24, 36));
    let decode = |a: &[u8], b: &[u8]| SegmentIndex::decode(a, b, bounds(&headers), INTERVAL).map(|_| ());
    assert_eq!(decode(&offsets, &times), Ok(()));
    assert_eq!(decode(&offsets[..23], &times), Err(IndexError::Length { bytes: 23, entry_bytes: 8 }));
    assert_eq!(decode(&offsets, &times[..13]), Err(IndexError::Length { bytes: 13, entry_bytes: 12 }));
    let mut bad = offsets.clone();
    bad[8..16].fill(0);
    assert_eq!(decode(&bad, &times), Err(IndexError::Order { entry: 1 }));
    bad[8..16].fill(0xff);
    assert_eq!(decode(&bad, &times), Err(IndexError::Bounds { entry: 1 }));
    let mut bad = times.clone();
    bad[12..20].fill(0);
    assert_eq!(decode(&offsets, &bad), Err(IndexError::Order { entry: 1 }));
    bad[12..20].fill(0xff);
    assert_eq!(decode(&offsets, &bad), Err(IndexError::Bounds { entry: 1 }));
}

#[test]
fn entries_that_the_format_cannot_hold_are_left_out() {
    let mut offsets = OffsetIndex::new(BASE);
    offsets.append(OffsetEntry { offset: BASE.advance(1 << 31), position: 5 });
    offsets.append(OffsetEntry { offset: BASE, position: 1 << 31 });
    offsets.append(OffsetEntry { offset: Offset(0), position: 7 });
    assert_eq!(offsets.last(), None);
    let mut times = TimeIndex::new(BASE);
    times.append(TimeEntry { timestamp: TimestampMs(5), offset: BASE.advance(1 << 31) });
    assert_eq!(times.last(), None);
}
