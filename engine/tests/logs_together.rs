//! Several logs on one engine: they share syncs, memory and drivers, and crash together. Callers that give up.
//!
//! What must never happen: one log's batch in another, a batch that was sure gone because another log was busy, a
//! turn or memory lost with a caller that went away.

mod support;

use std::cell::RefCell;
use std::path::PathBuf;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use corelog_engine::batch::{BatchHeader, TimestampType};
use corelog_engine::log::{Log, LogOptions, ReadLimits, Stage};
use corelog_engine::{LeaderEpoch, LogId, Offset, TimestampMs};
use corelog_sim::{Crash, Executor, SimDisk, SimDiskOptions};
use futures_util::future::{Either, select};
use support::*;

const LOGS: u64 = 5;

fn dir_of(log: u64) -> PathBuf {
    PathBuf::from(format!("/data/topics/t-1/{log}"))
}

#[derive(Default)]
struct Witness {
    appended: Vec<Stored>,
    log: Option<Log<SimDisk>>,
}

async fn workload(node_engine: corelog_engine::Engine<SimDisk>, number: u64, witness: Rc<RefCell<Witness>>) {
    let made = node_engine.create_log(&dir_of(number), LogId(number.into()), log_options()).await;
    let log = made.expect("a new log");
    witness.borrow_mut().log = Some(log.clone());
    log.begin_epoch(LeaderEpoch(1)).expect("a first term");
    for tag in 0..25 {
        let batches = batch(number * 1000 + tag, 1 + tag as u32 % 3, 100 + (tag as usize * 397) % 1500);
        let appended = append(&log, &batches, NOW).await.expect("an append");
        witness.borrow_mut().appended.extend(stored(&batches, appended.base_offset.0, 1));
        if tag % 4 == number % 4 {
            log.wait(Stage::Durable, appended.end_offset).await.expect("a sync");
        }
    }
}

#[test]
fn logs_that_crash_together_recover_each_for_itself() {
    // 768535277: a log whose whole path was new lost its name with the power, because another log had made its grandparent.
    for seed in std::iter::once(768_535_277).chain(seeds("logs_together", 40)) {
        let executor = Rc::new(Executor::new(seed));
        let disk = SimDisk::new(executor.handle(), SimDiskOptions::default());
        disk.stop_at_sync(executor.handle().random(30..200));
        let node = Node::start(executor, disk, engine_options());
        let witnesses: Vec<Rc<RefCell<Witness>>> = (0..LOGS).map(|_| Rc::default()).collect();
        let tasks: Vec<_> = (0..LOGS)
            .map(|number| {
                let witness = witnesses[number as usize].clone();
                node.executor.spawn(workload(node.engine.clone(), number, witness))
            })
            .collect();
        let all = async {
            for task in tasks {
                task.await;
            }
        };
        node.executor.run_until_or(all, || node.disk.is_stopped());
        let crash = if seed % 2 == 0 { Crash::Kill } else { Crash::PowerLoss };
        let sure: Vec<Offset> = witnesses
            .iter()
            .map(|witness| {
                let ends = witness.borrow().log.as_ref().map(Log::ends).unwrap_or_default();
                if crash == Crash::Kill { ends.written } else { ends.durable }
            })
            .collect();
        let node = node.crash(crash);
        for number in 0..LOGS {
            let witness = witnesses[number as usize].borrow();
            let opened =
                node.run(node.engine.open_log(&dir_of(number), LogId(number.into()), log_options(), false));
            let (log, _) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    assert_eq!(sure[number as usize], Offset(0), "seed {seed}: log {number}: {error}");
                    continue;
                }
            };
            let read = node.read_all(&log);
            assert_eq!(read, witness.appended[..read.len()], "seed {seed}: log {number}");
            assert!(log.ends().end >= sure[number as usize], "seed {seed}: log {number}");
        }
    }
}

#[test]
fn a_sync_is_shared_by_all_who_wait_for_it() {
    let node = Node::new(1);
    let log = node.create();
    log.begin_epoch(LeaderEpoch(1)).expect("a first term");
    node.append_durably(&log, &batch(0, 1, 10));
    let before = node.engine.stats().syncs;
    let writers: Vec<_> = (0..50)
        .map(|tag| {
            let log = log.clone();
            node.executor.spawn(async move {
                let appended = append(&log, &batch(tag, 1, 100), NOW).await.expect("an append");
                log.wait(Stage::Durable, appended.end_offset).await.expect("a sync");
            })
        })
        .collect();
    for writer in writers {
        node.run(writer);
    }
    let syncs = node.engine.stats().syncs - before;
    assert!(syncs <= 10, "{syncs} syncs for 50 appends that came together");
    assert_eq!(log.ends().durable, Offset(51));
}

#[test]
fn callers_that_give_up_leave_nothing_behind() {
    for seed in seeds("logs_together", 20) {
        let node = Node::new(seed);
        let log = node.create();
        log.begin_epoch(LeaderEpoch(1)).expect("a first term");
        let handle = node.executor.handle();
        let mut model = Vec::new();
        for tag in 0..80 {
            let batches = batch(tag, 1, handle.random(1..6000) as usize);
            let patience = handle.sleep(Duration::from_micros(handle.random(0..300)));
            let appended = node.run(async {
                match select(pin!(append(&log, &batches, NOW)), pin!(patience)).await {
                    Either::Left((appended, _)) => Some(appended.expect("an append")),
                    Either::Right(_) => None,
                }
            });
            if let Some(appended) = appended {
                model.extend(stored(&batches, appended.base_offset.0, 1));
            }
            assert_eq!(log.ends().end.0, model.last().map_or(0, |batch| batch.end), "seed {seed}");
            let from = Offset(handle.random(0..log.ends().end.0 + 1));
            let patience = handle.sleep(Duration::from_micros(handle.random(0..300)));
            node.run(async {
                let read = log.read(from, log.ends().end, ReadLimits::bytes(50_000));
                if let Either::Left((read, _)) = select(pin!(read), pin!(patience)).await {
                    let found = batches_of(&read.expect("a read").slices);
                    let at = model.iter().position(|batch| batch.end > from.0).unwrap_or(model.len());
                    assert_eq!(found, model[at..at + found.len()], "seed {seed}");
                }
            });
            if handle.one_in(10) {
                log.release_idle_memory();
            }
        }
        node.run(log.flush()).expect("a flush");
        assert_eq!(node.read_all(&log), model, "seed {seed}");
        let sure_end = log.ends().end;
        drop(log);
        // What the device was told by those who gave up comes late, and must not fall on what others wrote.
        node.executor.run_until_stalled();
        let node = node.crash(Crash::Kill);
        let (log, _) = node.open();
        assert_eq!(log.ends().end, sure_end, "seed {seed}");
        assert_eq!(node.read_all(&log), model, "seed {seed}");
    }
}

#[test]
fn log_append_time_is_stamped_into_every_batch() {
    let node = Node::new(2);
    let options = LogOptions { timestamp_type: TimestampType::LogAppendTime, ..log_options() };
    let log = node.run(node.engine.create_log(&dir(), LOG_ID, options)).expect("a new log");
    log.begin_epoch(LeaderEpoch(1)).expect("a first term");
    for tag in 0..30 {
        let batches = [batch(tag, 2, 500), batch(tag + 100, 1, 300)].concat();
        let now = TimestampMs(NOW.0 + 1000 * tag as i64);
        let appended = node.run(append(&log, &batches, now)).expect("an append");
        assert_eq!(appended.append_time, Some(now));
    }
    node.run(log.close()).expect("a clean close");
    node.executor.kill();
    // From the device, so that the new checksums are checked.
    let node = Node::start(node.executor.clone(), node.disk.clone(), engine_options());
    let (log, _) = node.try_open(true).expect("a clean log");
    for (i, batch) in node.read_all(&log).iter().enumerate() {
        let header = BatchHeader::parse(&batch.bytes).expect("a header");
        assert_eq!(header.attributes.timestamp_type(), TimestampType::LogAppendTime);
        assert_eq!(header.max_timestamp, TimestampMs(NOW.0 + 1000 * (i as i64 / 2)));
    }
    let at = TimestampMs(NOW.0 + 6500);
    let found = node.run(log.offset_for_timestamp(at, log.ends().end));
    assert_eq!(found, Ok(Some((Offset(21), TimestampMs(NOW.0 + 7000)))));
}
