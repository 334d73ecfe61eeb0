//! What damage does to a log: flipped bits, lost and wrong indexes, garbage behind the tail, stale batches in
//! recycled space, lost and misdirected writes, failing and full disks.
//!
//! What must never happen: damaged bytes are served, a gap is served, damage to one log stops another, or a
//! failed sync is forgotten.

mod support;

use corelog_engine::batch::BatchHeader;
use corelog_engine::checkpoint::{self, BootId, EpochTable, LogCheckpoint};
use corelog_engine::disk::Disk;
use corelog_engine::log::{AppendError, Log, LogFailure, OpenError, ReadError, ReadLimits, Stage};
use corelog_engine::{LeaderEpoch, LogId, Offset, TimestampMs};
use corelog_sim::{Crash, ENOSPC, Fault, FaultEffect, FaultKind, SimDisk};
use support::*;

/// A log of some segments, all durable; returns what it holds.
fn filled(node: &Node, batches: u64) -> (Log<SimDisk>, Vec<Stored>) {
    let log = node.create();
    log.begin_epoch(LeaderEpoch(1)).expect("a first term");
    let mut model = Vec::new();
    for tag in 0..batches {
        let batch = batch_at(tag, 2, 700, TimestampMs(NOW.0 + tag as i64));
        let appended = node.append_durably(&log, &batch);
        model.extend(stored(&batch, appended.base_offset.0, 1));
    }
    (log, model)
}

/// The same, closed, and opened by a process that has nothing in memory.
fn reopened(node: &Node, batches: u64) -> (Node, Log<SimDisk>, Vec<Stored>) {
    let (log, model) = filled(node, batches);
    node.run(log.close()).expect("a clean close");
    node.executor.kill();
    let node = Node::start(node.executor.clone(), node.disk.clone(), engine_options());
    let (log, report) = node.try_open(true).expect("a clean log");
    assert!(report.was_clean);
    (node, log, model)
}

/// Where each batch of the model lies: segment and position.
fn places(node: &Node, model: &[Stored]) -> Vec<(std::path::PathBuf, u64)> {
    let segments = node.files(".log");
    model
        .iter()
        .map(|batch| {
            let (path, bytes) = segments
                .iter()
                .find(|(_, bytes)| bytes.windows(16).any(|window| window == &batch.bytes[..16]))
                .expect("each batch is in a segment");
            let at = bytes.windows(61).position(|window| window == &batch.bytes[..61]);
            (path.clone(), at.expect("its header") as u64)
        })
        .collect()
}

fn limits() -> ReadLimits {
    ReadLimits::bytes(1 << 20)
}

#[test]
fn a_flipped_bit_is_reported_with_its_place_and_not_served() {
    let node = Node::new(1);
    let (node, log, model) = reopened(&node, 30);
    let places = places(&node, &model);
    let header = [0, 7, 8, 11, 12, 15, 16, 17, 22, 26, 30, 57, 60];
    for at in header.into_iter().chain([61, 100, 800, 1400]) {
        let node = Node::start(node.executor.clone(), node.disk.crash(Crash::Kill), engine_options());
        let (path, position) = &places[4];
        node.disk.rot(path, position + at, 0x04);
        let (log, _) = node.try_open(true).expect("damage in a closed segment is met by its readers");
        let end = log.ends().end;
        let first = node.run(log.read(Offset(0), end, limits()));
        match first {
            Ok(read) => {
                let found = batches_of(&read.slices);
                assert_eq!(found, model[..found.len()], "byte {at}");
                assert!(found.len() <= 4, "byte {at} of the fifth batch was served");
            }
            Err(error) => assert!(matches!(error, ReadError::Corrupt { .. }), "byte {at}: {error}"),
        }
        let error = node.run(log.read(Offset(model[4].base), end, limits())).expect_err("a damaged batch");
        let ReadError::Corrupt { path: reported, position: where_, offset, .. } = &error else {
            panic!("byte {at}: {error}");
        };
        assert_eq!((reported, *where_), (path, *position), "byte {at}: {error}");
        assert_eq!(*offset, Offset(model[4].base), "byte {at}: {error}");
        // Other segments do not suffer.
        let later = node.run(read_from(&log, Offset(model[20].base))).expect("a sound segment");
        assert_eq!(later, model[20..], "byte {at}");
    }
    drop(log);
}

/// Opens the log anew after `damage` was done to a clean one, and compares all that can be read.
fn check_index_damage(name: &str, damage: impl Fn(&Node, &str)) {
    let node = Node::new(2);
    let (node, log, model) = reopened(&node, 40);
    let segments = node.files(".log").len();
    assert!(segments > 3, "{segments} segments");
    drop(log);
    node.executor.kill();
    let node = Node::start(node.executor.clone(), node.disk.clone(), engine_options());
    damage(&node, "index");
    damage(&node, "timeindex");
    for was_clean in [true, false] {
        let (log, _) = node.try_open(was_clean).expect("an index is not needed to open");
        assert_eq!(node.read_all(&log), model, "{name}");
        for (tag, batch) in model.iter().enumerate() {
            let read = node.run(log.read(Offset(batch.base + 1), log.ends().end, limits())).expect(name);
            assert_eq!(batches_of(&read.slices).first(), Some(batch), "{name}");
            let at = TimestampMs(NOW.0 + tag as i64);
            let found = node.run(log.offset_for_timestamp(at, log.ends().end)).expect(name);
            assert_eq!(found, Some((Offset(batch.base), at)), "{name}: batch {tag}");
        }
        let later = TimestampMs(NOW.0 + 40);
        assert_eq!(node.run(log.offset_for_timestamp(later, log.ends().end)), Ok(None), "{name}");
    }
}

fn each_index(node: &Node, suffix: &str, change: impl Fn(&mut Vec<u8>)) {
    for (path, mut bytes) in node.files(&format!(".{suffix}")) {
        change(&mut bytes);
        node.run(node.disk.replace_file(&path, bytes)).expect("a replaced file");
    }
}

#[test]
fn a_lost_index_is_built_again() {
    check_index_damage("lost", |node, suffix| {
        for (path, _) in node.files(&format!(".{suffix}")) {
            node.run(node.disk.remove_file(&path)).expect("a removed file");
        }
    });
}

#[test]
fn a_short_index_is_built_again() {
    for cut in [1, 4, 8, 12, 13] {
        check_index_damage("short", |node, suffix| {
            each_index(node, suffix, |bytes| bytes.truncate(bytes.len().saturating_sub(cut)));
        });
    }
    check_index_damage("empty", |node, suffix| each_index(node, suffix, Vec::clear));
}

#[test]
fn a_wrong_index_is_built_again() {
    for bit in 0..96 {
        check_index_damage("flipped", |node, suffix| {
            each_index(node, suffix, |bytes| {
                let entry_bytes = if suffix == "index" { 8 } else { 12 };
                let last = bytes.len().saturating_sub(entry_bytes);
                let at = [0, last / entry_bytes / 2 * entry_bytes, last][bit % 3] + bit / 8 % entry_bytes;
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (bit % 8);
                }
            });
        });
    }
}

#[test]
fn the_index_of_another_life_of_a_segment_is_not_believed() {
    let node = Node::new(3);
    let (log, mut model) = filled(&node, 30);
    node.run(log.flush()).expect("a flush");
    // Cut in the middle of a sealed segment, then other batches of other sizes.
    let cut = node.run(log.truncate(Offset(model[10].base))).expect("a cut");
    model.truncate(10);
    assert_eq!(cut.0, model[9].end);
    for tag in 100..104 {
        let batch = batch_at(tag, 3, 300, TimestampMs(NOW.0 + 1000));
        let appended = node.append_durably(&log, &batch);
        model.extend(stored(&batch, appended.base_offset.0, 1));
    }
    let node = node.crash(Crash::PowerLoss);
    let (log, _) = node.open();
    assert_eq!(node.read_all(&log), model);
    let found = node.run(log.offset_for_timestamp(TimestampMs(NOW.0 + 500), log.ends().end));
    assert_eq!(found, Ok(Some((Offset(model[10].base), TimestampMs(NOW.0 + 1000)))));
}

/// Puts `bytes` behind the last batch of an unclean log and opens it.
fn open_with_tail(seed: u64, bytes: &[u8]) -> (Node, Log<SimDisk>, Vec<Stored>, bool) {
    let node = Node::new(seed);
    let (log, model) = filled(&node, 5);
    drop(log);
    let node = node.crash(Crash::PowerLoss);
    let length: usize = model.iter().map(|batch| batch.bytes.len()).sum();
    node.disk.poke(&segment_path(0), length as u64, bytes);
    let (log, report) = node.open();
    assert_eq!(node.read_all(&log), model, "the last whole batch ends the log");
    if let Some(cut) = &report.cut {
        assert_eq!((cut.position, cut.offset), (length as u64, log.ends().end));
        assert!(!cut.sound_batch_behind && cut.saved_aside.is_empty(), "{cut:?}");
    }
    (node, log, model, report.cut.is_some())
}

#[test]
fn zeroes_behind_the_tail_are_space_not_damage() {
    let (node, log, mut model, cut) = open_with_tail(4, &[0; 9000]);
    assert!(!cut);
    log.begin_epoch(LeaderEpoch(2)).expect("a later term");
    let batch = batch(9, 1, 10);
    let appended = node.append_durably(&log, &batch);
    model.extend(stored(&batch, appended.base_offset.0, 2));
    assert_eq!(node.read_all(&log), model);
}

#[test]
fn garbage_behind_the_tail_is_cut_and_said() {
    for length in [1, 11, 60, 61, 5000] {
        let garbage: Vec<u8> = (0..length).map(|i| (i * 37 + 11) as u8).collect();
        let (_, _, _, cut) = open_with_tail(5, &garbage);
        assert!(cut, "{length} bytes of garbage");
    }
}

#[test]
fn a_torn_batch_is_cut() {
    let next = stored(&batch(50, 2, 700), 10, 1).remove(0).bytes;
    for kept in [8, 12, 61, 512, next.len() - 2] {
        let (_, _, _, cut) = open_with_tail(6, &next[..kept]);
        assert!(cut, "torn after {kept} bytes");
    }
}

#[test]
fn a_batch_of_another_place_or_time_is_not_the_next_one() {
    let other_offset = |base, epoch| stored(&batch(50, 2, 700), base, epoch).remove(0).bytes;
    // The next offset is 10, and the term was 1.
    for stale in [other_offset(0, 1), other_offset(8, 1), other_offset(12, 1), other_offset(10, 0)] {
        let header = BatchHeader::parse(&stale).expect("a sound header");
        let node = Node::new(7);
        let (log, model) = filled(&node, 5);
        drop(log);
        let node = node.crash(Crash::PowerLoss);
        let length: usize = model.iter().map(|batch| batch.bytes.len()).sum();
        node.disk.poke(&segment_path(0), length as u64, &stale);
        let (log, _) = node.open();
        assert_eq!(node.read_all(&log), model, "{header:?}");
    }
}

#[test]
fn rot_before_a_sound_batch_is_saved_aside_and_said() {
    let node = Node::new(8);
    let log = node.create();
    log.begin_epoch(LeaderEpoch(1)).expect("a first term");
    let mut model = Vec::new();
    for tag in 0..6 {
        // Small, so that no checkpoint comes between.
        let batch = batch(tag, 2, 100);
        let appended = node.append_durably(&log, &batch);
        model.extend(stored(&batch, appended.base_offset.0, 1));
    }
    let lengths: Vec<u64> = model.iter().map(|batch| batch.bytes.len() as u64).collect();
    let bad = lengths[..2].iter().sum::<u64>();
    drop(log);
    let node = node.crash(Crash::PowerLoss);
    node.disk.rot(&segment_path(0), bad + 70, 1);
    let (log, report) = node.open();
    assert_eq!(node.read_all(&log), model[..2]);
    let cut = report.cut.expect("a cut is said");
    assert!(cut.sound_batch_behind);
    assert_eq!((cut.position, cut.offset), (bad, Offset(4)));
    let mut expected: Vec<u8> = model[2..].iter().flat_map(|batch| batch.bytes.clone()).collect();
    expected[70] ^= 1;
    // The last record ends with a zero: no headers.
    assert_eq!(cut.bytes as usize, expected.len() - 1);
    let saved = node.disk.peek(&cut.saved_aside[0]);
    assert!(saved.starts_with(&expected), "all that was cut is kept for a human");
    assert!(saved[expected.len()..].iter().all(|byte| *byte == 0));
    // Said once: the log is whole now.
    let node = node.crash(Crash::PowerLoss);
    let (log, report) = node.open();
    assert_eq!(report.cut, None);
    assert_eq!(node.read_all(&log), model[..2]);
}

#[test]
fn a_lost_or_misdirected_write_is_found_when_it_is_read() {
    for effect in [FaultEffect::Lost, FaultEffect::Misdirected { position: 64 << 10 }] {
        let node = Node::new(9);
        let (log, mut model) = filled(&node, 3);
        // A whole block at least, in the middle of the segment.
        let lost = batch(50, 2, 4000);
        node.disk.inject(Fault::eio(FaultKind::Write, ".log").with(effect));
        let appended = node.append_durably(&log, &lost);
        model.extend(stored(&lost, appended.base_offset.0, 1));
        node.run(log.close()).expect("nothing was noticed");
        node.executor.kill();
        let node = Node::start(node.executor.clone(), node.disk.clone(), engine_options());
        let (log, _) = node.try_open(true).expect("a log that looks clean");
        let read = node.run(read_from(&log, Offset(0)));
        assert!(matches!(read, Err(ReadError::Corrupt { .. })), "{effect:?}: {read:?}");
    }
}

/// A second log on the same engine, which must not notice.
fn other_log(node: &Node) -> Log<SimDisk> {
    let dir = std::path::PathBuf::from("/data/topics/t-1/1");
    let log = node.run(node.engine.create_log(&dir, LogId(7), log_options())).expect("a new log");
    log.begin_epoch(LeaderEpoch(1)).expect("a first term");
    log
}

fn check_poison(kind: FaultKind) {
    for seed in seeds("damage", 20) {
        let node = Node::new(seed);
        let (log, model) = filled(&node, 3);
        let other = other_log(&node);
        node.disk.inject(Fault::eio(kind, "t-1/0/0"));
        let outcome = node.run(async {
            let appended = append(&log, &batch(50, 2, 4000), NOW).await.expect("not yet noticed");
            log.wait(Stage::Durable, appended.end_offset).await
        });
        assert!(matches!(outcome, Err(LogFailure::Poisoned { .. })), "{outcome:?}");
        assert_eq!(log.ends().durable.0, model[2].end, "nothing more is sure");

        // No appends, no later sync that would look good; reads below go on.
        let refused = node.run(append(&log, &batch(51, 1, 10), NOW));
        assert!(matches!(refused, Err(AppendError::Failed(LogFailure::Poisoned { .. }))), "{refused:?}");
        assert!(node.run(log.flush()).is_err());
        let read = node.run(log.read(Offset(0), log.ends().durable, limits())).expect("sound batches");
        assert_eq!(batches_of(&read.slices), model);
        assert!(node.run(log.close()).is_err(), "not a clean stop");

        node.append_durably(&other, &batch(1, 1, 100));
        node.run(other.close()).expect("the other log is well");

        // Opened again, as if the stop of the node had been clean.
        node.executor.kill();
        let node = Node::start(node.executor.clone(), node.disk.crash(Crash::Kill), engine_options());
        let (log, report) = node.try_open(true).expect("the disk is well again");
        assert!(!report.was_clean, "a poisoned log is looked at");
        let read = node.read_all(&log);
        assert_eq!(read[..3], model);
        assert!(read.len() <= 4, "the failed append is there whole, or not at all");
    }
}

#[test]
fn a_failed_write_poisons_its_log_only() {
    check_poison(FaultKind::Write);
}

#[test]
fn a_failed_sync_poisons_its_log_only() {
    check_poison(FaultKind::Sync);
}

#[test]
fn a_full_disk_refuses_appends_and_recovers_by_itself() {
    let node = Node::new(10);
    let (log, mut model) = filled(&node, 20);
    node.disk.set_capacity_bytes(Some(0));
    let mut refused = false;
    for tag in 100..160 {
        let batch = batch(tag, 1, 3000);
        match node.run(append(&log, &batch, NOW)) {
            Ok(appended) => model.extend(stored(&batch, appended.base_offset.0, 1)),
            Err(AppendError::StorageFull { .. }) => refused = true,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused, "a full disk is met");
    assert_eq!(log.failure(), None);
    node.run(log.flush()).expect("what was taken fits");
    assert_eq!(node.read_all(&log), model, "reads go on");

    node.disk.set_capacity_bytes(None);
    let batch = batch(200, 1, 3000);
    let appended = node.append_durably(&log, &batch);
    model.extend(stored(&batch, appended.base_offset.0, 1));
    assert_eq!(node.read_all(&log), model);
    let node = node.crash(Crash::PowerLoss);
    let (log, _) = node.open();
    assert_eq!(node.read_all(&log), model);
}

#[test]
fn records_can_be_deleted_on_a_full_disk() {
    let node = Node::new(11);
    let (log, model) = filled(&node, 30);
    node.disk.set_capacity_bytes(Some(1 << 30));
    let free = node.run(node.disk.free_bytes(&dir())).expect("a number");
    node.disk.set_capacity_bytes(Some((1 << 30) - free));
    let to = Offset(model[20].base);
    let trimmed = node.run(log.delete_records_before(to, NOW));
    let trimmed = trimmed.unwrap_or_else(|error| panic!("deletion makes room: {error}"));
    assert_eq!(trimmed.start, to);
    assert!(trimmed.segments > 0);
}

#[test]
fn an_index_that_found_no_space_does_not_keep_its_segment_for_ever() {
    let node = Node::new(13);
    let log = node.create();
    log.begin_epoch(LeaderEpoch(1)).expect("a first term");
    let no_space = FaultEffect::Error(ENOSPC);
    node.disk.inject(Fault::eio(FaultKind::Write, "index").times(u64::MAX).with(no_space));
    for tag in 0..60 {
        node.append_durably(&log, &batch(tag, 2, 700));
    }
    assert!(log.stats().segments > 3, "{:?}", log.stats());
    node.disk.heal();
    let (more, to) = (batch(100, 1, 3000), log.ends().end);
    let kept = node.append_durably(&log, &more);
    node.run(log.delete_records_before(to, NOW)).expect("there is room again");
    assert!(log.stats().segments <= 2, "what lies below the log start is gone: {:?}", log.stats());
    let node = node.crash(Crash::PowerLoss);
    let (log, _) = node.open();
    assert_eq!(node.read_all(&log), stored(&more, kept.base_offset.0, 1));
}

#[test]
fn a_damaged_checkpoint_costs_a_scan_and_a_newer_one_stops() {
    let node = Node::new(12);
    let (node, log, model) = reopened(&node, 30);
    drop(log);
    let name = "log.checkpoint";
    node.executor.kill();
    let path = dir().join(name);
    let node = Node::start(node.executor.clone(), node.disk.crash(Crash::Kill), engine_options());
    node.disk.rot(&path, 30, 0x10);
    let (log, report) = node.try_open(true).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(!report.was_clean);
    assert_eq!(node.read_all(&log), model, "{name}");
    assert_eq!(log.epochs().entries().len(), 1);
    drop(log);

    node.run(node.disk.remove_file(&path)).expect("a removed file");
    let (log, _) = node.try_open(true).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(node.read_all(&log), model, "{name}");

    let newer = b"corelog log 9 0 00000000\n".to_vec();
    let head = b"corelog log 9 0 ";
    let crc = format!("{:08x}", crc32c::crc32c(head));
    let newer = [&newer[..16], crc.as_bytes(), b"\n"].concat();
    node.run(node.disk.replace_file(&path, newer)).expect("a replaced file");
    let error = node.try_open(true).map(|_| ()).expect_err("a newer format is not guessed at");
    assert!(matches!(error, OpenError::Checkpoint { .. }), "{name}: {error}");
}

#[test]
fn a_recovery_point_in_a_deleted_segment_costs_a_scan_and_nothing_else() {
    let node = Node::new(7);
    let (log, model) = filled(&node, 60);
    drop(log);
    let node = node.crash(Crash::Kill);
    let segments = node.files(".log");
    assert!(segments.len() > 3, "{} segments", segments.len());
    let second = model.iter().find(|batch| segments[1].0.ends_with(format!("{:020}.log", batch.base)));
    let start = second.expect("the second segment begins with a batch").base;
    node.run(async {
        // The disk was full: the first segment went, and there was no room to store where the log begins now.
        let stale = LogCheckpoint {
            log_id: LOG_ID,
            log_start_offset: Offset(0),
            recovery_point: Offset(0),
            segment_base_offset: Offset(0),
            segment_position: 0,
            clean: false,
            boot_id: Some(BootId(0)),
            epochs: EpochTable::default(),
        };
        checkpoint::store(&node.disk, &dir().join("log.checkpoint"), &stale).await.expect("stored");
        node.disk.remove_file(&segments[0].0).await.expect("removed");
    });
    let (log, _) = node.open();
    assert_eq!(log.ends().start, Offset(start));
    let kept: Vec<_> = model.into_iter().filter(|batch| batch.base >= start).collect();
    assert_eq!(node.read_all(&log), kept);
}
