//! A log that follows: batches come stamped by a leader, are cut, and the log begins anew elsewhere.
//!
//! What must never happen: an offset without a batch, a term that falls, bytes other than the leader's, or a log that
//! a crash leaves half old and half new.

mod support;

use corelog_engine::batch::{BatchHeader, StampedBatches, StampedError, StampedLimits};
use corelog_engine::disk::IoClass;
use corelog_engine::log::{AppendError, FlushPolicy, Log, LogOptions, ReadLimits, ReplicatedError, Stage};
use corelog_engine::{LeaderEpoch, Offset};
use corelog_sim::{Crash, ENOSPC, Fault, FaultEffect, FaultKind, SimDisk};
use support::*;

fn limits(bytes_max: usize) -> ReadLimits {
    ReadLimits::bytes(bytes_max)
}

/// What a leader of `epoch` sends from `base` on: `count` batches of two records.
fn sent(base: u64, epoch: u32, count: u64) -> Vec<Stored> {
    let batches: Vec<u8> = (0..count).flat_map(|i| batch(base + i, 2, 700)).collect();
    stored(&batches, base, epoch)
}

fn bytes_of(batches: &[Stored]) -> Vec<u8> {
    batches.iter().flat_map(|batch| batch.bytes.clone()).collect()
}

fn follow(node: &Node, log: &Log<SimDisk>, batches: &[Stored]) -> Result<u64, ReplicatedError> {
    let bytes = bytes_of(batches);
    let checked = StampedBatches::check(&bytes, &StampedLimits::default()).expect("own batches");
    node.run(log.append_replicated(&checked, NOW)).map(|appended| appended.end_offset.0)
}

#[test]
fn a_leaders_batches_are_kept_byte_for_byte_with_their_terms() {
    let node = Node::new(1);
    let log = node.create();
    let mut model = sent(0, 3, 20);
    assert_eq!(follow(&node, &log, &model), Ok(40));
    // Two terms in one append, over several segments.
    let (older, newer) = (sent(40, 3, 10), sent(60, 7, 10));
    let both: Vec<_> = older.into_iter().chain(newer).collect();
    assert_eq!(follow(&node, &log, &both), Ok(80));
    model.extend(both);
    node.run(log.flush()).expect("a flush");
    assert!(log.stats().segments > 1, "{:?}", log.stats());
    let terms: Vec<_> = log.epochs().entries().iter().map(|e| (e.epoch.0, e.start_offset.0)).collect();
    assert_eq!(terms, [(3, 0), (7, 60)]);
    assert_eq!(node.read_all(&log), model);
    drop(log);
    let node = node.crash(Crash::PowerLoss);
    let (log, _) = node.open();
    assert_eq!(node.read_all(&log), model);
    assert_eq!(log.newest_epoch(), Some(LeaderEpoch(7)));
}

#[test]
fn what_does_not_go_on_where_the_log_ends_is_refused() {
    let node = Node::new(2);
    let log = node.create();
    follow(&node, &log, &sent(0, 5, 3)).expect("an append");
    let not_next = |found| Err(ReplicatedError::NotNext { found: Offset(found), expected: Offset(6) });
    assert_eq!(follow(&node, &log, &sent(8, 5, 1)), not_next(8));
    assert_eq!(follow(&node, &log, &sent(4, 5, 3)), not_next(4));
    let stale = ReplicatedError::StaleEpoch { found: LeaderEpoch(4), newest: LeaderEpoch(5) };
    assert_eq!(follow(&node, &log, &sent(6, 4, 1)), Err(stale));
    assert_eq!(log.ends().end, Offset(6));
    assert_eq!(follow(&node, &log, &sent(6, 5, 1)), Ok(8));
}

#[test]
fn bytes_that_no_leader_sends_are_refused() {
    let check = |bytes: &[u8], limits: StampedLimits| StampedBatches::check(bytes, &limits).map(|_| ());
    let any = StampedLimits::default();
    let good = bytes_of(&sent(10, 2, 2));
    assert_eq!(check(&good, any), Ok(()));
    assert_eq!(check(&[], any), Err(StampedError::Empty));
    assert!(matches!(check(&good[..good.len() - 1], any), Err(StampedError::Batch { .. })));
    assert!(matches!(check(&good[..30], any), Err(StampedError::Batch { position: 0, .. })));
    let mut rotten = good.clone();
    *rotten.last_mut().expect("bytes") ^= 1;
    let second = good.len() / 2;
    assert!(matches!(check(&rotten, any), Err(StampedError::Batch { position, .. }) if position == second));
    assert_eq!(check(&batch(1, 1, 10), any), Err(StampedError::NoEpoch { position: 0 }));
    let gap = [bytes_of(&sent(0, 1, 1)), bytes_of(&sent(4, 1, 1))].concat();
    assert!(matches!(check(&gap, any), Err(StampedError::Batch { .. })));
    let falls = [bytes_of(&sent(0, 2, 1)), bytes_of(&sent(2, 1, 1))].concat();
    assert!(matches!(check(&falls, any), Err(StampedError::Batch { .. })));
    let fenced = StampedLimits { epoch_max: Some(LeaderEpoch(1)), ..any };
    assert!(matches!(check(&good, fenced), Err(StampedError::Batch { position: 0, .. })));
}

#[test]
fn a_leader_that_follows_stops_stamping_and_may_lead_again() {
    let node = Node::new(3);
    let log = node.create();
    log.begin_epoch(LeaderEpoch(1)).expect("a first term");
    node.append_durably(&log, &batch(1, 2, 100));
    assert_eq!(follow(&node, &log, &sent(2, 2, 1)), Err(ReplicatedError::Leads { epoch: LeaderEpoch(1) }));
    // An append that was let in before the term ended finds it over.
    let admission = node.run(log.admit(batch(2, 1, 10).len(), 1, NOW)).expect("a turn");
    log.end_epoch();
    assert_eq!(admission.append(&batch(2, 1, 10), NOW), Err(AppendError::NoEpoch));
    assert!(matches!(node.run(log.admit(100, 1, NOW)), Err(AppendError::NoEpoch)));
    assert_eq!(follow(&node, &log, &sent(2, 4, 2)), Ok(6));
    let stale = AppendError::StaleEpoch { requested: LeaderEpoch(4), newest: LeaderEpoch(4) };
    assert_eq!(log.begin_epoch(LeaderEpoch(4)), Err(stale));
    log.begin_epoch(LeaderEpoch(5)).expect("a later term");
    let appended = node.append_durably(&log, &batch(9, 1, 10));
    assert_eq!((appended.base_offset, appended.end_offset), (Offset(6), Offset(7)));
}

#[test]
fn a_follower_that_becomes_leader_appends_nothing_of_the_old_one() {
    let node = Node::new(4);
    let log = node.create();
    let bytes = bytes_of(&sent(0, 1, 1));
    let checked = StampedBatches::check(&bytes, &StampedLimits::default()).expect("own batches");
    let admission = node.run(log.admit_replicated(&checked, NOW)).expect("a turn");
    log.begin_epoch(LeaderEpoch(2)).expect("a term");
    let leads = ReplicatedError::Leads { epoch: LeaderEpoch(2) };
    assert_eq!(admission.append_replicated(&checked, NOW), Err(leads));
    assert_eq!(log.ends().end, Offset(0));
}

#[test]
fn the_tail_is_read_before_it_is_written_without_a_copy() {
    let node = Node::new(5);
    let log = node.create();
    log.set_options(LogOptions {
        flush: FlushPolicy::Interval { bytes_max: u64::MAX, ms_max: u64::MAX },
        ..log_options()
    });
    log.begin_epoch(LeaderEpoch(1)).expect("a term");
    let batches: Vec<u8> = (0..3).flat_map(|tag| batch(tag, 1, 900)).collect();
    let read = node.run(async {
        let waiting = log.appended_beyond(Offset(0));
        let append = append(&log, &batches, NOW);
        let (waited, appended) = futures_util::future::join(waiting, append).await;
        waited.expect("the log is sound");
        let appended = appended.expect("an append");
        let ends = log.ends();
        assert_eq!(ends.written, Offset(0), "nothing is on the device: {ends:?}");
        let copied = node.engine.stats().copied_bytes;
        let read = log.read(Offset(1), appended.end_offset, limits(1 << 20)).await;
        assert_eq!(node.engine.stats().copied_bytes, copied);
        read.expect("a read above what is written")
    });
    assert_eq!(batches_of(&read.slices), stored(&batches, 0, 1)[1..]);
    assert_eq!(node.engine.stats().device_read_bytes, 0);
    assert!(node.run(log.appended_beyond(Offset(2))).is_ok(), "it is ready at once");
}

#[test]
fn who_waits_for_an_append_is_told_when_the_log_fails() {
    let node = Node::new(6);
    let log = node.create();
    let waited = node.run(futures_util::future::join(log.appended_beyond(Offset(0)), log.close()));
    assert!(matches!(waited, (Err(_), Ok(()))), "{waited:?}");
}

#[test]
fn a_cut_waits_for_appends_under_way_and_leaves_what_readers_hold() {
    for seed in seeds("follower", 10) {
        let node = Node::new(seed);
        let log = node.create();
        let mut model = sent(0, 1, 12);
        let random = node.executor.handle();
        let to = random.random(0..25);
        let read = node.run(async {
            let bytes = bytes_of(&model);
            let checked = StampedBatches::check(&bytes, &StampedLimits::default()).expect("own batches");
            log.append_replicated(&checked, NOW).await.expect("an append");
            // Nothing of it need be on the device now.
            let read = log.read(Offset(0), log.ends().end, limits(1 << 20)).await.expect("a read");
            let cut = log.truncate(Offset(to)).await.expect("a cut");
            assert_eq!(cut.0, to.min(24) / 2 * 2, "to the beginning of the batch");
            read
        });
        let cut = log.ends().end.0;
        assert_eq!(batches_of(&read.slices), model, "seed {seed}: the slices are what they were");
        model.truncate(cut as usize / 2);
        assert_eq!(log.newest_epoch(), (cut > 0).then_some(LeaderEpoch(1)));
        let other = sent(cut, 2, 3);
        follow(&node, &log, &other).expect("the log goes on at the cut");
        model.extend(other);
        assert_eq!(batches_of(&read.slices).len(), 12, "they still are");
        node.run(log.flush()).expect("a flush");
        drop((log, read));
        let node = node.crash(Crash::PowerLoss);
        let (log, _) = node.open();
        assert_eq!(node.read_all(&log), model, "seed {seed}");
    }
}

#[test]
fn a_cut_that_finds_no_space_is_stored_before_anything_is_appended() {
    let node = Node::new(7);
    let log = node.create();
    let mut model = sent(0, 1, 20);
    follow(&node, &log, &model).expect("an append");
    node.run(log.flush()).expect("a flush");
    let no_space = FaultEffect::Error(ENOSPC);
    node.disk.inject(Fault::eio(FaultKind::Write, "checkpoint").times(u64::MAX).with(no_space));
    assert!(node.run(log.truncate(Offset(10))).is_err());
    assert_eq!(log.ends().end, Offset(10), "it is cut in memory");
    let refused = follow(&node, &log, &sent(10, 2, 1));
    assert!(matches!(refused, Err(ReplicatedError::Append(AppendError::StorageFull { .. }))), "{refused:?}");
    node.disk.heal();
    follow(&node, &log, &sent(10, 2, 1)).expect("there is space again");
    model.truncate(5);
    model.extend(sent(10, 2, 1));
    node.run(log.flush()).expect("a flush");
    drop(log);
    let node = node.crash(Crash::PowerLoss);
    let (log, report) = node.open();
    assert!(report.cut.is_none_or(|cut| !cut.sound_batch_behind), "nothing of the old tail is left");
    assert_eq!(node.read_all(&log), model);
}

#[test]
fn a_reset_log_is_empty_and_goes_on_elsewhere() {
    for to in [0, 7, 40, 1000] {
        let node = Node::new(to);
        let log = node.create();
        follow(&node, &log, &sent(0, 3, 20)).expect("an append");
        let read = node.run(log.read(Offset(0), Offset(40), limits(1 << 20))).expect("a read");
        node.run(log.reset_to(Offset(to))).expect("a reset");
        assert_eq!(batches_of(&read.slices), sent(0, 3, 20)[..batches_of(&read.slices).len()]);
        let ends = log.ends();
        assert_eq!([ends.start, ends.durable, ends.written, ends.end], [Offset(to); 4]);
        assert_eq!((log.newest_epoch(), log.stats().bytes, log.stats().segments), (None, 0, 1));
        assert!(node.run(log.read(Offset(to + 1), Offset(to + 1), limits(1))).is_err());
        // Any term will do now.
        let model = sent(to, 2, 15);
        follow(&node, &log, &model).expect("an append");
        node.run(log.flush()).expect("a flush");
        assert_eq!(node.read_all(&log), model);
        assert!(!exists(&node, &dir().join("log.reset")));
        drop((log, read));
        let node = node.crash(Crash::PowerLoss);
        let (log, _) = node.open();
        assert_eq!(log.ends().start, Offset(to));
        assert_eq!(node.read_all(&log), model);
    }
}

#[test]
fn an_empty_log_begins_with_the_batch_that_holds_its_end() {
    let node = Node::new(8);
    let log = node.create();
    node.run(log.reset_to(Offset(105))).expect("a reset");
    let model = stored(&[batch(1, 10, 50), batch(2, 2, 50)].concat(), 100, 4);
    assert_eq!(follow(&node, &log, &model), Ok(112));
    assert_eq!((log.ends().start, log.ends().end), (Offset(100), Offset(112)));
    node.run(log.flush()).expect("a flush");
    node.run(log.delete_records_before(Offset(105), NOW)).expect("a deletion");
    let read = node.run(log.read(Offset(105), Offset(112), limits(1 << 20))).expect("a read");
    assert_eq!(batches_of(&read.slices), model);
    // But not with one before it.
    node.run(log.reset_to(Offset(200))).expect("a reset");
    let refused = follow(&node, &log, &sent(198, 4, 1));
    assert_eq!(refused, Err(ReplicatedError::NotNext { found: Offset(198), expected: Offset(200) }));
}

#[test]
fn a_crash_in_a_reset_leaves_the_old_log_or_the_empty_one() {
    for seed in seeds("follower", 3) {
        let mut sync = 1;
        loop {
            let node = Node::new(seed);
            let random = node.executor.handle();
            let log = node.create();
            let old = sent(0, 3, 30);
            follow(&node, &log, &old).expect("an append");
            node.run(log.flush()).expect("a flush");
            let to = [0, 13, 60, 500][random.random(0..4) as usize];
            let (resetting, disk) = (log.clone(), node.disk.clone());
            disk.stop_at_sync(disk.syncs() + sync);
            let reset = async move { resetting.reset_to(Offset(to)).await };
            let ended = node.executor.run_until_or(reset, || disk.is_stopped()).is_some();
            drop(log);
            let crash = if random.one_in(2) { Crash::Kill } else { Crash::PowerLoss };
            let node = node.crash(crash);
            let (log, _) = node.open();
            let ends = log.ends();
            let model = if ended || ends.start == ends.end {
                assert_eq!((ends.start, ends.end), (Offset(to), Offset(to)), "seed {seed}, sync {sync}");
                assert_eq!(log.newest_epoch(), None);
                sent(to, 1, 12)
            } else {
                assert_eq!(node.read_all(&log), old, "seed {seed}, sync {sync}");
                sent(60, 3, 2)
            };
            follow(&node, &log, &model).expect("an append");
            node.run(log.flush()).expect("a flush");
            drop(log);
            let node = node.crash(Crash::PowerLoss);
            let (log, _) = node.open();
            assert!(node.read_all(&log).ends_with(&model), "seed {seed}, sync {sync}");
            if ended {
                break;
            }
            sync += 1;
        }
        assert!(sync > 5, "a reset has some syncs: {sync}");
    }
}

#[test]
fn a_crash_anywhere_in_following_leaves_a_beginning_of_the_leaders_log() {
    for seed in seeds("follower", 3) {
        let mut sync = 1;
        loop {
            let node = Node::new(seed);
            let log = node.create();
            let model = [sent(0, 1, 14), sent(28, 2, 10)].concat();
            let (following, disk) = (log.clone(), node.disk.clone());
            disk.stop_at_sync(disk.syncs() + sync);
            let work = async {
                for piece in model.chunks(3) {
                    let bytes = bytes_of(piece);
                    let checked = StampedBatches::check(&bytes, &StampedLimits::default()).expect("own");
                    following.append_replicated(&checked, NOW).await.expect("an append");
                }
                following.wait(Stage::Durable, Offset(48)).await.expect("a sync");
                // What a new leader lacks goes, and its own comes.
                following.truncate(Offset(33)).await.expect("a cut");
                let bytes = bytes_of(&sent(32, 5, 6));
                let checked = StampedBatches::check(&bytes, &StampedLimits::default()).expect("own");
                following.append_replicated(&checked, NOW).await.expect("an append");
                following.flush().await.expect("a flush");
            };
            let ended = node.executor.run_until_or(work, || disk.is_stopped()).is_some();
            let durable = log.ends().durable;
            drop((log, following));
            let node = node.crash(if seed % 2 == 0 { Crash::PowerLoss } else { Crash::Kill });
            let (log, _) = node.open();
            let read = node.read_all(&log);
            let cut = [&model[..16], &sent(32, 5, 6)[..]].concat();
            let known = if read.starts_with(&model[..17]) { &model } else { &cut };
            assert_eq!(read, known[..read.len()], "seed {seed}, sync {sync}");
            assert!(log.ends().end.0 >= durable.0.min(32), "seed {seed}, sync {sync}: {durable} was durable");
            if ended {
                assert_eq!(read, cut);
                break;
            }
            sync += 1;
        }
        assert!(sync > 8, "{sync}");
    }
}

#[test]
fn a_replica_that_catches_up_leaves_no_chunks_behind() {
    let node = Node::new(9);
    let log = node.create();
    let model = sent(0, 1, 60);
    for piece in model.chunks(10) {
        follow(&node, &log, piece).expect("an append");
    }
    node.run(log.close()).expect("a clean close");
    node.executor.kill();
    let node = Node::start(node.executor.clone(), node.disk.clone(), engine_options());
    let (log, _) = node.try_open(true).expect("a clean log");
    let before = node.engine.pool().used_bytes();
    let mut from = Offset(0);
    let mut found = Vec::new();
    while from < log.ends().end {
        let limits = ReadLimits { bytes_max: 8_000, class: IoClass::CatchUp };
        let read = node.run(log.read(from, log.ends().end, limits)).expect("a read");
        found.extend(batches_of(&read.slices));
        from = read.next_offset;
    }
    assert_eq!(found, model);
    let held = node.engine.pool().used_bytes() - before;
    assert!(held < 200 << 10, "{held} bytes of {} are still in memory", log.stats().bytes);
    assert!(BatchHeader::parse(&found[0].bytes).is_ok());
}
