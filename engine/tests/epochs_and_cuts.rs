//! Leadership terms and cuts of the tail, across crashes.
//!
//! What must never happen: a batch that was cut comes back behind a new one of the same size; a follower is told
//! a wrong end of a term; a torn tail passes for damage, or damage for a torn tail.

mod support;

use corelog_engine::checkpoint::BootId;
use corelog_engine::log::{AppendError, LogOptions, Stage, TrimError};
use corelog_engine::{LeaderEpoch, Offset};
use corelog_sim::Crash;
use support::*;

#[test]
fn only_a_leader_appends_and_terms_only_rise() {
    let node = Node::new(1);
    let log = node.create();
    let refused = node.run(append(&log, &batch(1, 1, 10), NOW));
    assert_eq!(refused, Err(AppendError::NoEpoch));
    log.begin_epoch(LeaderEpoch(3)).expect("a first term");
    for epoch in [0, 2, 3] {
        let stale = AppendError::StaleEpoch { requested: LeaderEpoch(epoch), newest: LeaderEpoch(3) };
        assert_eq!(log.begin_epoch(LeaderEpoch(epoch)), Err(stale));
    }
    node.append_durably(&log, &batch(1, 1, 10));
    let node = node.crash(Crash::PowerLoss);
    let (log, _) = node.open();
    assert_eq!(log.newest_epoch(), Some(LeaderEpoch(3)), "found again in the batches");
    assert!(log.begin_epoch(LeaderEpoch(3)).is_err(), "a restarted process never goes on in its term");
    log.begin_epoch(LeaderEpoch(4)).expect("a later term");
}

#[test]
fn the_ends_of_terms_survive_crashes() {
    for crash in [Crash::Kill, Crash::PowerLoss] {
        let mut node = Node::new(2);
        let mut log = node.create();
        for (epoch, batches) in [(1, 3), (2, 0), (5, 20), (6, 1)] {
            log.begin_epoch(LeaderEpoch(epoch)).expect("a later term");
            for tag in 0..batches {
                node.append_durably(&log, &batch(tag, 2, 500));
            }
            node = node.crash(crash);
            (log, _) = node.open();
        }
        let end = |epoch| {
            let found = log.epochs().end_offset_for(LeaderEpoch(epoch), log.ends().end);
            found.map(|(epoch, offset)| (epoch.0, offset.0))
        };
        assert_eq!([end(1), end(2)], [Some((1, 6)), Some((1, 6))], "a term without batches leaves no trace");
        assert_eq!([end(4), end(5), end(6), end(7)], [Some((1, 6)), Some((5, 46)), Some((6, 48)), None]);
    }
}

/// Appends X and X+1, both written, tears X, and starts a process that finds that.
fn torn_with_a_sound_one_behind(seed: u64) -> (Node, Vec<Stored>, Stored) {
    let node = Node::new(seed);
    let log = node.create();
    log.begin_epoch(LeaderEpoch(1)).expect("a first term");
    let first = batch(1, 1, 300);
    node.append_durably(&log, &first);
    let (x, next) = (batch(2, 1, 9000), batch(3, 1, 9000));
    node.append_durably(&log, &x);
    node.append_durably(&log, &next);
    let kept = stored(&first, 0, 1);
    let next = stored(&next, 2, 1).remove(0);
    drop(log);
    let node = node.crash(Crash::PowerLoss);
    node.disk.poke(&segment_path(0), kept[0].bytes.len() as u64 + 4096, &[0; 4096]);
    (node, kept, next)
}

#[test]
fn what_stood_behind_a_torn_batch_never_comes_back() {
    for seed in seeds("epochs_and_cuts", 40) {
        let (node, mut model, old_next) = torn_with_a_sound_one_behind(seed);
        let (log, report) = node.open();
        assert_eq!(node.read_all(&log), model);
        assert!(report.cut.expect("a cut").sound_batch_behind);
        // Whatever the next crash keeps of the cut and of the new batch, X+1 is gone.
        let node = if seed % 2 == 0 { node.crash(Crash::PowerLoss) } else { node };
        let (log, _) = node.open();
        log.begin_epoch(LeaderEpoch(2)).expect("a later term");
        let new = batch(4, 1, 9000);
        let appended = node.run(append(&log, &new, NOW)).expect("an append");
        if seed % 3 == 0 {
            node.run(log.wait(Stage::Durable, appended.end_offset)).expect("a sync");
            model.extend(stored(&new, 1, 2));
        }
        let sure = model.clone();
        let node = node.crash(Crash::PowerLoss);
        let (log, _) = node.open();
        let found = node.read_all(&log);
        assert!(found.starts_with(&sure), "seed {seed}");
        assert!(!found.contains(&old_next), "seed {seed}: X+1 is back");
        for (path, bytes) in node.files(".log") {
            let stands = bytes.windows(61).any(|window| window == &old_next.bytes[..61]);
            assert!(!stands, "seed {seed}: X+1 still stands in {path:?}");
        }
    }
}

#[test]
fn a_torn_tail_is_not_damage() {
    let node = Node::new(3);
    let log = node.create();
    log.begin_epoch(LeaderEpoch(1)).expect("a first term");
    node.append_durably(&log, &batch(1, 1, 300));
    node.append_durably(&log, &batch(2, 1, 9000));
    let length = 9000;
    drop(log);
    let node = node.crash(Crash::PowerLoss);
    node.disk.poke(&segment_path(0), length, &[0; 1000]);
    let (log, report) = node.open();
    let cut = report.cut.expect("a cut");
    assert!(!cut.sound_batch_behind);
    assert_eq!(cut.saved_aside, [] as [std::path::PathBuf; 0]);
    assert_eq!(log.ends().end, Offset(1));
    assert!(node.files(".log.cut-at-370").is_empty());
}

#[test]
fn a_cut_goes_to_the_batch_that_holds_the_offset() {
    let node = Node::new(4);
    let log = node.create();
    let mut model = Vec::new();
    for epoch in 1..4 {
        log.begin_epoch(LeaderEpoch(epoch)).expect("a later term");
        for tag in 0..12 {
            let batch = batch(u64::from(epoch) * 100 + tag, 3, 500);
            let appended = node.append_durably(&log, &batch);
            model.extend(stored(&batch, appended.base_offset.0, epoch));
        }
    }
    assert!(node.files(".log").len() > 2);
    for to in [107, 74, 73, 36, 35, 2, 0] {
        let cut = node.run(log.truncate(Offset(to))).expect("a cut");
        let kept = to as usize / 3;
        model.truncate(kept);
        assert_eq!(cut.0, kept as u64 * 3, "cut at {to}");
        assert_eq!(node.read_all(&log), model);
        let newest = model.last().map(|_| 1 + (kept as u32 - 1) / 12);
        assert_eq!(log.newest_epoch().map(|epoch| epoch.0), newest, "cut at {to}");
        assert_eq!(log.ends().durable, log.ends().end);
    }
    let beyond = node.run(log.truncate(Offset(9)));
    assert_eq!(beyond, Ok(Offset(0)), "nothing to cut");
}

#[test]
fn a_cut_below_the_log_start_is_refused() {
    let node = Node::new(5);
    let log = node.create();
    log.begin_epoch(LeaderEpoch(1)).expect("a first term");
    for tag in 0..5 {
        node.append_durably(&log, &batch(tag, 2, 100));
    }
    node.run(log.delete_records_before(Offset(4), NOW)).expect("a deletion");
    let refused = node.run(log.truncate(Offset(3)));
    assert!(matches!(refused, Err(TrimError::OutOfRange { .. })), "{refused:?}");
    let refused = node.run(log.delete_records_before(Offset(11), NOW));
    assert!(matches!(refused, Err(TrimError::OutOfRange { .. })), "{refused:?}");
    assert_eq!(node.run(log.delete_records_before(Offset(1), NOW)).expect("no change").start, Offset(4));
}

#[test]
fn power_loss_is_told_from_a_kill_by_the_boot() {
    for (boot_id, possible) in [(0, false), (77, true)] {
        let node = Node::new(6);
        let log = node.create();
        log.begin_epoch(LeaderEpoch(1)).expect("a first term");
        node.append_durably(&log, &batch(1, 1, 100));
        drop(log);
        let disk = node.disk.crash(Crash::Kill);
        node.executor.kill();
        let mut options = engine_options();
        options.boot_id = Some(BootId(boot_id));
        let node = Node::start(node.executor.clone(), disk, options);
        let (_, report) = node.open();
        assert_eq!(report.power_loss_possible, possible);
    }
}

#[test]
fn with_flush_interval_written_is_answered_and_a_sync_comes_later() {
    use corelog_engine::TimestampMs;
    use corelog_engine::log::FlushPolicy;
    let node = Node::new(7);
    let flush = FlushPolicy::Interval { bytes_max: 10_000, ms_max: 1000 };
    let options = LogOptions { flush, ..log_options() };
    let log = node.run(node.engine.create_log(&dir(), LOG_ID, options)).expect("a new log");
    log.begin_epoch(LeaderEpoch(1)).expect("a first term");
    let appended = node.run(async {
        let appended = append(&log, &batch(1, 1, 100), NOW).await.expect("an append");
        log.wait(Stage::Written, appended.end_offset).await.expect("a write");
        appended
    });
    node.executor.run_until_stalled();
    assert_eq!(log.ends().durable, Offset(0), "nothing asked for a sync");
    log.flush_if_due(TimestampMs(NOW.0 + 999));
    node.executor.run_until_stalled();
    assert_eq!(log.ends().durable, Offset(0), "not due");
    log.flush_if_due(TimestampMs(NOW.0 + 1000));
    node.executor.run_until_stalled();
    assert_eq!(log.ends().durable, appended.end_offset, "due by age");
    node.run(append(&log, &batch(2, 1, 12_000), NOW)).expect("an append");
    node.executor.run_until_stalled();
    assert_eq!(log.ends().durable, Offset(2), "due by bytes");

    // A kill loses nothing that was written.
    node.run(async {
        let appended = append(&log, &batch(3, 1, 100), NOW).await.expect("an append");
        log.wait(Stage::Written, appended.end_offset).await.expect("a write");
    });
    drop(log);
    let node = node.crash(Crash::Kill);
    let (log, _) = node.open();
    assert_eq!(log.ends().end, Offset(3));
}
