//! Expired segments become the next ones, with the batches of their earlier life still in them, while power fails.
//!
//! What must never happen: an old batch shows at a new place, a segment that was used again shows at its old
//! place, or a crash between the two leaves a gap.

mod support;

use std::cell::RefCell;
use std::rc::Rc;

use corelog_engine::log::{EngineOptions, Log, LogOptions, Stage};
use corelog_engine::{LeaderEpoch, Offset};
use corelog_sim::{Crash, Executor, SimDisk, SimDiskOptions};
use support::*;

fn engine_options_busy() -> EngineOptions {
    EngineOptions {
        unwritten_bytes_max: 1 << 20,
        write_ahead_bytes_max: 2 << 20,
        checkpoint_bytes: 256 << 10,
        ..engine_options()
    }
}

fn options() -> LogOptions {
    LogOptions {
        segment_bytes_max: 1 << 20,
        retention_bytes: Some(1 << 20),
        retention_ms: None,
        ..log_options()
    }
}

#[derive(Default)]
struct Witness {
    appended: Vec<Stored>,
    log: Option<Log<SimDisk>>,
}

async fn workload(node: &Node, witness: &RefCell<Witness>) {
    let log = node.engine.create_log(&dir(), LOG_ID, options()).await.expect("a new log");
    witness.borrow_mut().log = Some(log.clone());
    log.begin_epoch(LeaderEpoch(1)).expect("a first term");
    let random = node.executor.handle();
    let mut waiting = Offset(0);
    for tag in 0..120 {
        // Two sizes, so that batch boundaries of two lives often coincide.
        let value_bytes = if random.one_in(5) { 30_000 } else { 60_000 };
        let batches = batch(tag, 1, value_bytes);
        let appended = append(&log, &batches, NOW).await.expect("an append");
        witness.borrow_mut().appended.extend(stored(&batches, appended.base_offset.0, 1));
        if tag % 6 == 5 {
            log.wait(Stage::Durable, waiting).await.expect("a sync");
            waiting = appended.end_offset;
        }
    }
}

/// Opens what a crash left and compares it with what was sure; returns the node with the log.
fn check(node: Node, known: &[Stored], sure_end: Offset) -> (Node, Log<SimDisk>, Vec<Stored>) {
    let seed = node.executor.seed();
    let opened = node.run(node.engine.open_log(&dir(), LOG_ID, options(), false));
    let (log, _) = opened.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    let ends = log.ends();
    assert!(ends.end >= sure_end, "seed {seed}: {ends:?}, {sure_end} was sure");
    let read = node.read_all(&log);
    let first = known.iter().position(|batch| batch.end > ends.start.0).unwrap_or(known.len());
    assert_eq!(read, known[first..first + read.len()], "seed {seed}");
    assert_eq!(read.last().map_or(ends.start.0, |batch| batch.end), ends.end.0, "seed {seed}");
    (node, log, read)
}

#[test]
fn old_batches_in_recycled_space_never_show() {
    let mut recycled = 0;
    for seed in seeds("recycled_space", 15) {
        let executor = Rc::new(Executor::new(seed));
        let disk = SimDisk::new(executor.handle(), SimDiskOptions::default());
        disk.stop_at_sync(executor.handle().random(20..260));
        let node = Node::start(executor, disk, engine_options_busy());
        let witness = RefCell::default();
        node.executor.run_until_or(workload(&node, &witness), || node.disk.is_stopped());
        recycled += node.engine.stats().recycled_segments;
        let Witness { appended, log } = witness.into_inner();
        let ends = log.as_ref().map(Log::ends).unwrap_or_default();
        drop(log);
        node.executor.kill();
        let crash = if seed % 3 == 0 { Crash::Kill } else { Crash::PowerLoss };
        let sure_end = if crash == Crash::Kill { ends.written } else { ends.durable };
        let (node, log, mut known) = check(node.crash(crash), &appended, sure_end);
        log.begin_epoch(LeaderEpoch(2)).expect("a later term");
        for tag in 200..203 {
            let batches = batch(tag, 1, 60_000);
            let appended = node.append_durably(&log, &batches);
            known.extend(stored(&batches, appended.base_offset.0, 2));
        }
        let end = log.ends().end;
        drop(log);
        check(node.crash(Crash::PowerLoss), &known, end);
    }
    assert!(recycled > 4, "{recycled} segments were recycled");
}
