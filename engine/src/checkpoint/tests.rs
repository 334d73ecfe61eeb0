//! Checkpoint files: what is written is read back, and nothing else is believed. Epoch tables: KIP-101's rules.

use proptest::prelude::*;

use super::*;
use crate::types::{LeaderEpoch, LogId, Offset};

fn table(entries: &[(u32, u64)]) -> EpochTable {
    let mut table = EpochTable::default();
    for &(epoch, start) in entries {
        assert_eq!(table.assign(LeaderEpoch(epoch), Offset(start)), Ok(true));
    }
    table
}

fn check(table: &EpochTable, expected: &[(u32, u64)]) {
    let found: Vec<_> = table.entries().iter().map(|e| (e.epoch.0, e.start_offset.0)).collect();
    assert_eq!(found, expected);
}

fn log_checkpoint() -> LogCheckpoint {
    LogCheckpoint {
        log_id: LogId(0xabc),
        log_start_offset: Offset(5),
        recovery_point: Offset(1_500),
        segment_base_offset: Offset(1_000),
        segment_position: 88_123,
        clean: true,
        boot_id: Some(BootId(7)),
        epochs: table(&[(0, 0), (2, 10)]),
    }
}

#[test]
fn a_term_without_records_gives_way() {
    let mut t = table(&[(0, 0), (2, 10)]);
    assert_eq!(t.assign(LeaderEpoch(5), Offset(10)), Ok(true));
    check(&t, &[(0, 0), (5, 10)]);
    assert_eq!(t.assign(LeaderEpoch(5), Offset(30)), Ok(false));
    check(&t, &[(0, 0), (5, 10)]);
}

#[test]
fn an_older_term_or_an_earlier_start_is_refused() {
    let mut t = table(&[(1, 0), (3, 10)]);
    let stale = Err(EpochError::Stale { given: LeaderEpoch(2), latest: LeaderEpoch(3) });
    assert_eq!(t.assign(LeaderEpoch(2), Offset(20)), stale);
    assert!(matches!(t.assign(LeaderEpoch(4), Offset(9)), Err(EpochError::StartsBefore { .. })));
    assert!(matches!(t.assign(LeaderEpoch(3), Offset(9)), Err(EpochError::StartsBefore { .. })));
    check(&t, &[(1, 0), (3, 10)]);
}

#[test]
fn the_end_of_a_term_is_where_the_next_one_begins() {
    let t = table(&[(2, 5), (4, 10), (7, 30)]);
    let end = |epoch| t.end_offset_for(LeaderEpoch(epoch), Offset(50)).map(|(e, o)| (e.0, o.0));
    let expected = [
        (0, Some((0, 5))), // before all that is known
        (1, Some((1, 5))),
        (2, Some((2, 10))),
        (3, Some((2, 10))), // never seen here: the one before it
        (4, Some((4, 30))),
        (6, Some((4, 30))),
        (7, Some((7, 50))), // the current one ends with the log
        (8, None),          // later than all
    ];
    for (epoch, expected) in expected {
        assert_eq!(end(epoch), expected, "epoch {epoch}");
    }
    assert_eq!(EpochTable::default().end_offset_for(LeaderEpoch(0), Offset(0)), None);
}

#[test]
fn offsets_know_their_term() {
    let t = table(&[(2, 5), (4, 10)]);
    let at = |offset| t.epoch_at(Offset(offset)).map(|e| e.0);
    assert_eq!([at(4), at(5), at(9), at(10), at(99)], [None, Some(2), Some(2), Some(4), Some(4)]);
}

#[test]
fn cuts_at_the_end_forget_terms() {
    for (end, expected) in
        [(31, &[(2, 5), (4, 10), (7, 30)][..]), (30, &[(2, 5), (4, 10)]), (10, &[(2, 5)]), (5, &[]), (0, &[])]
    {
        let mut t = table(&[(2, 5), (4, 10), (7, 30)]);
        assert_eq!(t.truncate_from_end(Offset(end)), end < 31);
        check(&t, expected);
    }
}

#[test]
fn cuts_at_the_start_move_the_term_that_stays() {
    for (start, expected, changed) in [
        (0, &[(2, 5), (4, 10), (7, 30)][..], false),
        (5, &[(2, 5), (4, 10), (7, 30)], false),
        (6, &[(2, 6), (4, 10), (7, 30)], true),
        (10, &[(4, 10), (7, 30)], true),
        (29, &[(4, 29), (7, 30)], true),
        (99, &[(7, 99)], true),
    ] {
        let mut t = table(&[(2, 5), (4, 10), (7, 30)]);
        assert_eq!(t.truncate_from_start(Offset(start)), changed, "start {start}");
        check(&t, expected);
    }
    assert!(!EpochTable::default().truncate_from_start(Offset(9)));
}

#[test]
fn files_are_read_back() {
    let log = log_checkpoint();
    assert_eq!(decode::<LogCheckpoint>(&encode(&log)), Ok(log.clone()));
    let epochs = table(&[(0, 0), (2, 10), (i32::MAX as u32, i64::MAX as u64)]);
    for epochs in [epochs, EpochTable::default()] {
        let other = LogCheckpoint { boot_id: None, clean: false, epochs, ..log.clone() };
        assert_eq!(decode::<LogCheckpoint>(&encode(&other)), Ok(other));
    }
}

#[test]
fn the_text_is_the_released_one() {
    let log = "corelog log 1 202 66ffabda\n\
        log_id 00000000000000000000000000000abc\nlog_start_offset 5\nrecovery_point 1500\n\
        segment_base_offset 1000\nsegment_position 88123\nclean true\n\
        boot_id 00000000000000000000000000000007\nleader_epochs\n0 0\n2 10\n";
    assert_eq!(String::from_utf8_lossy(&encode(&log_checkpoint())), log);
}

#[test]
fn every_cut_is_a_cut() {
    let file = encode(&log_checkpoint());
    for cut in 0..file.len() {
        let error = decode::<LogCheckpoint>(&file[..cut]);
        assert_eq!(error, Err(DecodeError::Truncated { kind: "log" }), "cut at {cut}");
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let file = encode(&log_checkpoint());
    for bit in 0..file.len() * 8 {
        let mut bad = file.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        // A flip in the case of a hex digit of the checksum changes nothing.
        let read = decode::<LogCheckpoint>(&bad);
        assert!(read.is_err() || bad.eq_ignore_ascii_case(&file), "bit {bit}: {read:?}");
    }
}

#[test]
fn newer_formats_and_other_kinds_are_named() {
    let body = log_checkpoint().body();
    let newer = DecodeError::Newer { kind: "log", version: 2, version_max: 1 };
    assert_eq!(decode::<LogCheckpoint>(&frame("log", 2, &body)), Err(newer));
    let other = DecodeError::WrongKind { kind: "log", found: "topic".to_owned() };
    assert_eq!(decode::<LogCheckpoint>(&frame("topic", 1, &body)), Err(other));
}

#[test]
fn sound_files_with_impossible_contents_are_not_believed() {
    let corrupt = Err(DecodeError::Corrupt { kind: "log" });
    let without = LogCheckpoint { epochs: EpochTable::default(), ..log_checkpoint() }.body();
    for lines in ["3 10\n2 20\n", "3 10\n4 10\n", "3\n", "x 1\n", "1 -1\n", "4294967295 0\n", "1 2 3\n", "\n"]
    {
        let body = format!("{without}{lines}");
        assert_eq!(decode::<LogCheckpoint>(&frame("log", 1, &body)), corrupt, "{lines:?}");
    }
    let before = LogCheckpoint { segment_base_offset: Offset(2_000), ..log_checkpoint() };
    assert!(decode::<LogCheckpoint>(&encode(&before)).is_err());
    let extra = format!("{}more 1\n", log_checkpoint().body());
    assert!(decode::<LogCheckpoint>(&frame("log", 1, &extra)).is_err());
}

#[test]
fn boot_ids_are_read_as_the_kernel_writes_them() {
    let id: BootId = "6ba7b810-9dad-11d1-80b4-00c04fd430c8\n".parse().expect("a UUID");
    assert_eq!(id.to_string(), "6ba7b8109dad11d180b400c04fd430c8");
    assert!("".parse::<BootId>().is_err());
}

proptest! {
    #[test]
    fn no_bytes_stop_the_process(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        head in prop::option::of("corelog (log|topic) [0-9]{1,30} [0-9]{1,30} [0-9a-f]{1,9}\n"),
    ) {
        if let Some(head) = head {
            bytes.splice(0..0, head.bytes());
        }
        prop_assert!(decode::<LogCheckpoint>(&bytes).is_err());
    }

    #[test]
    fn no_body_stops_the_process(body in "[0-9a-z_ \n]{0,60}") {
        let _ = decode::<LogCheckpoint>(&frame("log", 1, &body));
    }

    #[test]
    fn tables_stay_ascending(ops in prop::collection::vec((0_u8..4, 0_u32..12, 0_u64..60), 0..40)) {
        let mut t = EpochTable::default();
        for (op, epoch, offset) in ops {
            match op {
                0 => { t.truncate_from_end(Offset(offset)); }
                1 => { t.truncate_from_start(Offset(offset)); }
                _ => { let _ = t.assign(LeaderEpoch(epoch), Offset(offset)); }
            }
            prop_assert!(t.entries().is_sorted_by(|a, b| a.epoch < b.epoch && a.start_offset < b.start_offset));
            let file = LogCheckpoint { epochs: t.clone(), ..log_checkpoint() };
            prop_assert_eq!(decode::<LogCheckpoint>(&encode(&file)), Ok(file));
        }
    }
}
