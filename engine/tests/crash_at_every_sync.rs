//! A workload is run once to count its syncs, and then again and again, stopped at each of them: by kill -9 and by
//! power loss, several times each. Then the log is opened, crashed again, opened, appended to, and crashed once more.
//!
//! What must never happen: a batch that was durable (or, after a kill, written) is gone or changed; the log is
//! not a beginning of what was appended; something that was cut comes back.

mod support;

use std::rc::Rc;

use corelog_engine::log::{Log, Stage};
use corelog_engine::{LeaderEpoch, Offset};
use corelog_sim::{Crash, Executor, SimDisk, SimDiskOptions};
use support::*;

/// What the process knew when it died.
#[derive(Default)]
struct Witness {
    /// Everything appended, in order.
    appended: Vec<Stored>,
    log: Option<Log<SimDisk>>,
}

/// Appends of many sizes, three or fewer of them waiting at a time; closed and opened again in the middle.
async fn workload(node: &Node, witness: &std::cell::RefCell<Witness>) {
    let log = node.engine.create_log(&dir(), LOG_ID, log_options()).await.expect("a new log");
    witness.borrow_mut().log = Some(log.clone());
    run_term(node, &log, 1, 0..14, witness).await;
    log.close().await.expect("a clean close");
    let (log, report) = node.engine.open_log(&dir(), LOG_ID, log_options(), true).await.expect("a clean log");
    assert!(report.was_clean);
    witness.borrow_mut().log = Some(log.clone());
    run_term(node, &log, 2, 14..24, witness).await;
    log.close().await.expect("a clean close");
}

async fn run_term(
    node: &Node,
    log: &Log<SimDisk>,
    epoch: u32,
    tags: std::ops::Range<u64>,
    witness: &std::cell::RefCell<Witness>,
) {
    log.begin_epoch(LeaderEpoch(epoch)).expect("a later term");
    let handle = node.executor.handle();
    let mut ends = Vec::new();
    for tag in tags {
        let value_bytes = handle.random(1..2500) as usize;
        let mut batches = batch(tag, handle.random(1..4) as u32, value_bytes);
        if handle.one_in(4) {
            batches.extend(batch(tag + 1000, 1, 10));
        }
        let appended = append(log, &batches, NOW).await.expect("an append");
        let stored = stored(&batches, appended.base_offset.0, epoch);
        assert_eq!(stored.last().map(|batch| batch.end), Some(appended.end_offset.0));
        witness.borrow_mut().appended.extend(stored);
        ends.push(appended.end_offset);
        if ends.len() >= 3 {
            log.wait(Stage::Durable, ends[ends.len() - 3]).await.expect("a sync");
        }
    }
}

/// Runs the workload until the disk stops; returns the node with what it knew, and whether it came to its end.
fn run_until_sync(seed: u64, sync: u64) -> (Node, Witness, bool) {
    let executor = Rc::new(Executor::new(seed));
    let disk = SimDisk::new(executor.handle(), SimDiskOptions::default());
    disk.stop_at_sync(sync);
    let node = Node::start(executor, disk, engine_options());
    let witness = std::cell::RefCell::default();
    let ended = node.executor.run_until_or(workload(&node, &witness), || node.disk.is_stopped()).is_some();
    (node, witness.into_inner(), ended)
}

/// Opens the log, or makes it again if its making was interrupted; checks it against what the dead process knew.
fn recover(node: &Node, known: &[Stored], sure_end: Offset) -> (Log<SimDisk>, Vec<Stored>) {
    let seed = node.executor.seed();
    let log = match node.try_open(false) {
        Ok((log, report)) => {
            if let Some(cut) = &report.cut {
                assert_eq!(cut.offset, log.ends().end);
                assert_eq!(cut.sound_batch_behind, !cut.saved_aside.is_empty(), "{cut:?}");
            }
            log
        }
        Err(error) if sure_end == Offset(0) => {
            let made = node.run(node.engine.create_log(&dir(), LOG_ID, log_options()));
            made.unwrap_or_else(|again| panic!("seed {seed}: {error}, then {again}"))
        }
        Err(error) => panic!("seed {seed}: {error}"),
    };
    let ends = log.ends();
    let read = node.read_all(&log);
    assert!(ends.end >= sure_end, "seed {seed}: {ends:?}, but {sure_end} was sure");
    assert_eq!(ends.durable, ends.end, "seed {seed}: all that is left is durable");
    assert_eq!(read, known[..read.len()], "seed {seed}: a beginning of what was appended");
    assert_eq!(read.last().map_or(0, |batch| batch.end), ends.end.0);
    (log, read)
}

fn check_crash(node: &Node, witness: &Witness, crash: Crash) {
    let sure_end = witness.log.as_ref().map_or(Offset(0), |log| match crash {
        Crash::Kill => log.ends().written,
        Crash::PowerLoss => log.ends().durable,
    });
    let handle = node.executor.handle();
    let disk = node.disk.after_crash(crash, &handle);
    let node = Node::start(node.executor.clone(), disk, engine_options());
    let (_, read) = recover(&node, &witness.appended, sure_end);
    let end = Offset(read.last().map_or(0, |batch| batch.end));

    // What was cut must stay away, whatever happens next.
    let node = node.crash(Crash::PowerLoss);
    let (log, again) = recover(&node, &read, end);
    assert_eq!(again, read, "nothing comes back, nothing goes");
    log.begin_epoch(LeaderEpoch(9)).expect("a later term");
    let mut known = read;
    let lost = witness.appended.get(known.len());
    // The same size as what was lost: where the old next batch would fit behind it.
    let records = lost.map_or(1, |batch| (batch.end - batch.base) as u32);
    let value_bytes =
        lost.map_or(10, |b| ((b.bytes.len() - 61) / records as usize).saturating_sub(20).max(1));
    for tag in 100..103 {
        let batches = batch(tag, records, value_bytes);
        let appended = node.append_durably(&log, &batches);
        known.extend(stored(&batches, appended.base_offset.0, 9));
    }
    let end = log.ends().end;
    drop(log);
    let node = node.crash(Crash::PowerLoss);
    let (_, last) = recover(&node, &known, end);
    assert_eq!(last, known);
}

fn crash_everywhere(seed: u64) {
    let mut sync = 1;
    loop {
        let (node, witness, ended) = run_until_sync(seed, sync);
        node.executor.kill();
        for crash in [Crash::Kill, Crash::PowerLoss, Crash::PowerLoss, Crash::PowerLoss] {
            check_crash(&node, &witness, crash);
            node.executor.kill();
        }
        if ended {
            break;
        }
        sync += 1;
    }
    assert!(sync > 40, "the workload is long enough to be worth crashing: {sync} syncs");
}

#[test]
fn nothing_sure_is_lost_whenever_it_crashes() {
    for seed in seeds("crash_at_every_sync", 4) {
        crash_everywhere(seed);
    }
}
