//! Readers at work while the log rolls, is cut at both ends, is evicted from memory and is deleted (row 32 of the
//! reliability table).
//!
//! What must never happen: a read returns batches that were never in the log together, skips one, serves what
//! lies above the visible end, or ends the process.

mod support;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use corelog_engine::log::{Log, LogOptions, ReadError, ReadLimits, Stage};
use corelog_engine::{LeaderEpoch, Offset, TimestampMs};
use corelog_sim::{Fault, FaultKind, SimDisk};
use support::*;

/// What the log has held: one list of batches after the other, a new one with each cut of its end.
#[derive(Default)]
struct History {
    lives: Vec<Vec<Stored>>,
    cutting: bool,
    finished: bool,
    reads: u64,
    batches_read: u64,
}

impl History {
    fn life(&mut self) -> &mut Vec<Stored> {
        self.lives.last_mut().expect("the first life began with the log")
    }
}

/// Appends, cuts, deletes and retains, at random; durable ends are visible.
async fn write(node_random: corelog_sim::Handle, log: Log<SimDisk>, history: Rc<RefCell<History>>) {
    let random = node_random;
    let mut epoch = 1;
    for tag in 0..150 {
        let batches = batch(tag, random.random(1..4) as u32, random.random(1..3000) as usize);
        let appended = append(&log, &batches, NOW).await.expect("an append");
        history.borrow_mut().life().extend(stored(&batches, appended.base_offset.0, epoch));
        match random.random(0..30) {
            0 => {
                log.flush().await.expect("a flush");
                let ends = log.ends();
                let to = random.random(ends.start.0..ends.end.0 + 1);
                let mut life = history.borrow().lives.last().expect("a life").clone();
                life.retain(|batch| batch.end <= to);
                // Until it is done a reader may see the old life or the new one.
                history.borrow_mut().lives.push(life);
                history.borrow_mut().cutting = true;
                log.truncate(Offset(to)).await.expect("a cut");
                history.borrow_mut().cutting = false;
                epoch += 1;
                log.begin_epoch(LeaderEpoch(epoch)).expect("a later term");
            }
            1 => {
                log.flush().await.expect("a flush");
                let ends = log.ends();
                let to = random.random(ends.start.0..ends.end.0 + 1);
                log.delete_records_before(Offset(to), NOW).await.expect("a deletion");
            }
            2 => {
                log.set_options(LogOptions { retention_bytes: Some(60_000), ..log_options() });
                log.apply_retention(NOW).await.expect("retention");
            }
            3 => drop(log.release_idle_memory()),
            4..8 => log.wait(Stage::Durable, appended.end_offset).await.expect("a sync"),
            _ => random.sleep(Duration::from_micros(random.random(1..400))).await,
        }
    }
    log.flush().await.expect("a flush");
    history.borrow_mut().finished = true;
}

/// Reads at random places until the writer is done.
async fn read(random: corelog_sim::Handle, log: Log<SimDisk>, history: Rc<RefCell<History>>) {
    while !history.borrow().finished {
        random.sleep(Duration::from_micros(random.random(1..300))).await;
        let ends = log.ends();
        let first_life = history.borrow().lives.len() - 1 - usize::from(history.borrow().cutting);
        let from = Offset(random.random(ends.start.0..ends.end.0 + 1));
        let visible_end = ends.durable;
        let limits = ReadLimits::bytes(random.random(1..30_000) as usize);
        let read = match log.read(from, visible_end, limits).await {
            Ok(read) => read,
            // Cut off meanwhile, at either end.
            Err(ReadError::OffsetOutOfRange { start, end, .. }) => {
                assert!(from < start || from > end, "{from} is within [{start}, {end}]");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let found = batches_of(&read.slices);
        let Some(first) = found.first() else { continue };
        assert!(first.base <= from.0 && from.0 < first.end, "{from}: {found:?}");
        assert!(found.iter().all(|batch| batch.base < visible_end.0), "{visible_end}: {found:?}");
        let history_now = history.borrow();
        let holds = |life: &Vec<Stored>| {
            let at = life.iter().position(|batch| batch == first);
            at.is_some_and(|at| life[at..].starts_with(&found))
        };
        assert!(
            history_now.lives[first_life..].iter().any(holds),
            "{found:?} is in none of {:?}",
            &history_now.lives[first_life..]
        );
        drop(history_now);
        let mut history = history.borrow_mut();
        history.reads += 1;
        history.batches_read += found.len() as u64;
    }
}

#[test]
fn readers_see_the_log_as_it_was_at_one_moment() {
    let mut batches_read = 0;
    // 1167: a chunk read from the device took the place of one that had been appended to meanwhile.
    for seed in seeds("reads", 10).chain([1167]) {
        let node = Node::new(seed);
        let log = node.create();
        log.begin_epoch(LeaderEpoch(1)).expect("a first term");
        let history = Rc::new(RefCell::new(History { lives: vec![Vec::new()], ..History::default() }));
        let readers: Vec<_> = (0..4)
            .map(|_| node.executor.spawn(read(node.executor.handle(), log.clone(), history.clone())))
            .collect();
        let writer = node.executor.spawn(write(node.executor.handle(), log.clone(), history.clone()));
        node.run(writer);
        for reader in readers {
            node.run(reader);
        }
        let last = history.borrow().lives.last().cloned().expect("a life");
        let start = log.ends().start.0;
        let kept: Vec<_> = last.into_iter().filter(|batch| batch.end > start).collect();
        assert_eq!(node.read_all(&log), kept, "seed {seed}");
        assert!(history.borrow().reads > 0, "seed {seed}: nobody read");
        batches_read += history.borrow().batches_read;
    }
    assert!(batches_read > 1000, "{batches_read} batches are enough to prove something");
}

fn long_log(node: &Node) -> (Log<SimDisk>, Vec<Stored>) {
    let log = node.create();
    log.begin_epoch(LeaderEpoch(1)).expect("a first term");
    let mut model = Vec::new();
    for tag in 0..60 {
        let batch = batch_at(tag, 1, 3000, TimestampMs(NOW.0 + tag as i64));
        let appended = node.append_durably(&log, &batch);
        model.extend(stored(&batch, appended.base_offset.0, 1));
    }
    (log, model)
}

#[test]
fn the_first_batch_is_whole_and_later_ones_keep_within_the_limit() {
    let node = Node::new(1);
    let (log, model) = long_log(&node);
    let bytes = model[10].bytes.len();
    let count = |bytes_max: usize| {
        let read = node.run(log.read(Offset(10), Offset(13), ReadLimits::bytes(bytes_max))).expect("a read");
        assert_eq!(read.bytes, batches_of(&read.slices).iter().map(|b| b.bytes.len()).sum::<usize>());
        batches_of(&read.slices).len()
    };
    assert_eq!([0, 1, bytes, 2 * bytes - 1, 2 * bytes].map(count), [1, 1, 1, 1, 2]);
}

#[test]
fn offsets_at_the_ends_are_answered_and_beyond_them_refused() {
    let node = Node::new(2);
    let (log, _) = long_log(&node);
    node.run(log.delete_records_before(Offset(7), NOW)).expect("a deletion");
    let limits = ReadLimits::bytes(1 << 20);
    let read = |from, visible_end| node.run(log.read(Offset(from), Offset(visible_end), limits));
    for (from, visible_end) in [(60, 60), (50, 50), (50, 40), (60, 1000), (7, 7), (7, 0)] {
        let read = read(from, visible_end).expect("nothing to see yet");
        assert_eq!((read.bytes, read.next_offset), (0, Offset(from)), "from {from} below {visible_end}");
    }
    for from in [0, 6, 61, u64::MAX / 2] {
        let (start, end) = (Offset(7), Offset(60));
        let refused = ReadError::OffsetOutOfRange { requested: Offset(from), start, end };
        assert_eq!(read(from, 60).map(|_| ()), Err(refused));
    }
    assert_eq!(read(7, 8).expect("one batch").next_offset, Offset(8));
}

#[test]
fn what_a_reader_holds_outlives_deletion() {
    let node = Node::new(3);
    let (log, model) = long_log(&node);
    let limits = ReadLimits::bytes(10_000);
    let held = node.run(log.read(Offset(0), Offset(60), limits)).expect("a read");
    node.run(log.delete()).expect("a deletion");
    assert_eq!(batches_of(&held.slices), model[..held.next_offset.0 as usize]);
}

#[test]
fn a_read_during_deletion_is_refused_and_does_not_hang() {
    for seed in seeds("reads", 20) {
        let node = Node::new(seed);
        let (log, model) = long_log(&node);
        node.run(log.close()).expect("a clean close");
        node.executor.kill();
        let node = Node::start(node.executor.clone(), node.disk.clone(), engine_options());
        let (log, _) = node.try_open(true).expect("a clean log");
        let reader = node.executor.spawn({
            let log = log.clone();
            async move { log.read(Offset(3), Offset(60), ReadLimits::bytes(1 << 20)).await }
        });
        let wait_us = node.executor.handle().random(0..600);
        node.run(node.executor.handle().sleep(Duration::from_micros(wait_us)));
        node.run(log.delete()).expect("a deletion");
        if let Ok(read) = node.run(reader) {
            let found = batches_of(&read.slices);
            assert_eq!(found, model[3..3 + found.len()], "seed {seed}");
        }
    }
}

#[test]
fn a_device_that_cannot_be_read_is_said_and_heals() {
    let node = Node::new(4);
    let (log, model) = long_log(&node);
    node.run(log.close()).expect("a clean close");
    node.executor.kill();
    let node = Node::start(node.executor.clone(), node.disk.clone(), engine_options());
    let (log, _) = node.try_open(true).expect("a clean log");
    node.disk.inject(Fault::eio(FaultKind::Read, ".log").times(1000));
    let limits = ReadLimits::bytes(1 << 20);
    let failed = node.run(log.read(Offset(3), Offset(60), limits));
    assert!(matches!(failed, Err(ReadError::Disk { .. })), "{failed:?}");
    node.disk.heal();
    assert_eq!(node.read_all(&log), model);
    assert_eq!(log.failure(), None, "a failed read poisons nothing");
}

#[test]
fn readers_of_large_batches_do_not_starve_each_other() {
    for seed in 0..6 {
        let node = Node::new(seed);
        let mut options = engine_options();
        options.unwritten_bytes_max = 4 << 20;
        let node = Node::start(node.executor.clone(), node.disk.clone(), options.clone());
        let log = node.create();
        log.begin_epoch(LeaderEpoch(1)).expect("a first term");
        let mut model = Vec::new();
        for tag in 0..6 {
            // Each nearly a quarter of all memory.
            let batch = batch(tag, 1, 900_000);
            let appended = node.append_durably(&log, &batch);
            model.extend(stored(&batch, appended.base_offset.0, 1));
        }
        node.run(log.close()).expect("a clean close");
        drop(log);
        node.executor.kill();
        let node = Node::start(node.executor.clone(), node.disk.clone(), options);
        let (log, _) = node.try_open(true).expect("a clean log");
        let readers: Vec<_> = (0..6)
            .map(|from| {
                let log = log.clone();
                let limits = ReadLimits::bytes(1);
                node.executor.spawn(async move {
                    log.read(Offset(from), Offset(6), limits).await.map(|r| batches_of(&r.slices))
                })
            })
            .collect();
        for (reader, expected) in readers.into_iter().zip(model) {
            assert_eq!(node.run(reader), Ok(vec![expected]), "seed {seed}");
        }
    }
}
