//! Random operations on a log against a list of batches: appends as leader and as follower, reads, rolls, cuts at both
//! ends, resets, retention, clean restarts, kills and power losses. A failure prints its seed.
//!
//! What must never happen: the log and the list differ in anything that was sure.

mod support;

use corelog_engine::batch::{StampedBatches, StampedLimits};
use corelog_engine::log::{Log, LogOptions, ReadError, ReadLimits, Stage};
use corelog_engine::{LeaderEpoch, Offset, TimestampMs};
use corelog_sim::{Crash, Handle, SimDisk};
use support::*;

const SEEDS: u64 = 100;
const OPERATIONS: usize = 60;

struct Run {
    node: Node,
    log: Log<SimDisk>,
    random: Handle,
    /// What the log holds, oldest first; the first may begin below the log start.
    model: Vec<Stored>,
    start: u64,
    /// The end of the log while it holds no batch.
    empty_at: u64,
    epoch: u32,
    tag: u64,
    now: TimestampMs,
}

impl Run {
    fn new(seed: u64) -> Self {
        let node = Node::new(seed);
        let random = node.executor.handle();
        let log = node.create();
        let mut run =
            Self { node, log, random, model: Vec::new(), start: 0, empty_at: 0, epoch: 0, tag: 0, now: NOW };
        run.begin_term();
        run
    }

    fn end(&self) -> u64 {
        self.model.last().map_or(self.empty_at, |batch| batch.end)
    }

    fn begin_term(&mut self) {
        self.epoch += 1 + self.random.random(0..3) as u32;
        self.log.begin_epoch(LeaderEpoch(self.epoch)).expect("a later term");
    }

    fn step(&mut self) {
        self.now = TimestampMs(self.now.0 + 1000);
        match self.random.random(0..100) {
            0..30 => self.append(),
            30..43 => self.follow(),
            43..45 => self.reset(),
            45..65 => self.read(),
            65..70 => self.node.run(self.log.flush()).expect("a flush"),
            70..75 => self.delete_before(),
            75..80 => self.truncate(),
            80..84 => self.retain(),
            84..86 => drop(self.log.release_idle_memory()),
            86..88 => self.look_up_time(),
            88..90 => self.restart_cleanly(),
            90..92 => self.crash_within_a_cut(),
            92..96 => self.crash(Crash::Kill),
            _ => self.crash(Crash::PowerLoss),
        }
        self.check_bounds();
    }

    fn check_bounds(&self) {
        let ends = self.log.ends();
        assert_eq!((ends.start.0, ends.end.0), (self.start, self.end()));
        assert!(ends.durable <= ends.written && ends.written <= ends.end, "{ends:?}");
        assert_eq!(self.log.failure(), None);
    }

    fn append(&mut self) {
        let mut batches = Vec::new();
        for _ in 0..self.random.random(1..4) {
            self.tag += 1;
            let records = self.random.random(1..4) as u32;
            let value_bytes = self.random.random(1..2000) as usize;
            batches.extend(batch_at(self.tag, records, value_bytes, self.now));
        }
        let (log, now) = (self.log.clone(), self.now);
        let appended = self.node.run(append(&log, &batches, now)).expect("an append");
        assert_eq!(appended.base_offset.0, self.end());
        self.model.extend(stored(&batches, self.end(), self.epoch));
        assert_eq!(appended.end_offset.0, self.end());
        if self.random.one_in(2) {
            self.node.run(self.log.wait(Stage::Durable, appended.end_offset)).expect("a sync");
        }
    }

    /// Follows a leader of this term or a later one for an append, and leads again.
    fn follow(&mut self) {
        self.log.end_epoch();
        let mut sent = Vec::new();
        for _ in 0..self.random.random(1..4) {
            self.tag += 1;
            self.epoch += self.random.random(0..2) as u32;
            let records = self.random.random(1..4) as u32;
            let value_bytes = self.random.random(1..2000) as usize;
            let batches = batch_at(self.tag, records, value_bytes, self.now);
            let base = sent.last().map_or(self.end(), |last: &Stored| last.end);
            sent.extend(stored(&batches, base, self.epoch));
        }
        let bytes: Vec<u8> = sent.iter().flat_map(|batch| batch.bytes.clone()).collect();
        let checked = StampedBatches::check(&bytes, &StampedLimits::default()).expect("own batches");
        let appended = self.node.run(self.log.append_replicated(&checked, self.now)).expect("an append");
        self.model.extend(sent);
        assert_eq!(appended.end_offset.0, self.end());
        if self.random.one_in(2) {
            self.node.run(self.log.wait(Stage::Durable, appended.end_offset)).expect("a sync");
        }
        self.begin_term();
    }

    fn reset(&mut self) {
        let to = self.random.random(0..self.end() + 100);
        self.node.run(self.log.reset_to(Offset(to))).expect("a reset");
        self.was_reset(to);
        self.begin_term();
    }

    fn was_reset(&mut self, to: u64) {
        self.model.clear();
        (self.start, self.empty_at) = (to, to);
    }

    fn read(&mut self) {
        let from = self.random.random(self.start.saturating_sub(3)..self.end() + 3);
        let visible_end = self.random.random(self.start..self.end() + 1);
        let bytes_max = self.random.random(1..20_000) as usize;
        let limits = ReadLimits::bytes(bytes_max);
        let read = self.node.run(self.log.read(Offset(from), Offset(visible_end), limits));
        if from < self.start || from > self.end() {
            assert!(matches!(read, Err(ReadError::OffsetOutOfRange { .. })), "{from}: {read:?}");
            return;
        }
        let read = read.expect("a read within the log");
        let found = batches_of(&read.slices);
        let expected: Vec<_> = self
            .model
            .iter()
            .filter(|batch| batch.end > from && batch.base < visible_end && from < visible_end)
            .scan(0, |bytes, batch| {
                *bytes += batch.bytes.len();
                Some((*bytes, batch))
            })
            .take_while(|(bytes, batch)| *bytes <= bytes_max || batch.base <= from)
            .map(|(_, batch)| batch.clone())
            .collect();
        // A read may stop earlier, but not before its first batch.
        assert_eq!(found.is_empty(), expected.is_empty(), "from {from} below {visible_end}");
        assert_eq!(found, expected[..found.len()]);
        assert_eq!(read.next_offset.0, found.last().map_or(from, |batch| batch.end));
    }

    fn delete_before(&mut self) {
        self.node.run(self.log.flush()).expect("a flush");
        let to = self.random.random(self.start..self.end() + 1);
        let trimmed = self.node.run(self.log.delete_records_before(Offset(to), self.now));
        self.moved_start(trimmed.expect("a deletion").start.0);
        assert_eq!(self.start, to);
    }

    fn moved_start(&mut self, start: u64) {
        assert!(start >= self.start && start <= self.end());
        self.start = start;
        self.empty_at = self.end();
        self.model.retain(|batch| batch.end > start);
    }

    fn truncate(&mut self) {
        let to = self.random.random(self.start..self.end() + 2);
        let cut = self.node.run(self.log.truncate(Offset(to))).expect("a cut");
        let kept = self.model.iter().filter(|batch| batch.end <= to).count();
        let expected = self.model.get(kept).map_or(self.end(), |batch| batch.base);
        assert_eq!(cut.0, expected, "cut at {to}");
        self.keep(kept);
    }

    /// Cuts the model behind its first `kept` batches.
    fn keep(&mut self, kept: usize) {
        self.empty_at = self.model.first().map_or(self.empty_at, |batch| batch.base);
        self.model.truncate(kept);
        // The start may lie within the first batch; when that goes, the log begins before it.
        self.start = self.start.min(self.end());
    }

    fn retain(&mut self) {
        self.node.run(self.log.flush()).expect("a flush");
        let keep = self.random.random(10_000..80_000);
        self.log.set_options(LogOptions { retention_bytes: Some(keep), ..log_options() });
        let trimmed = self.node.run(self.log.apply_retention(self.now)).expect("retention");
        let moved = trimmed.start.0 > self.start;
        assert!(!moved || self.log.stats().bytes >= keep, "less is left than the limit");
        self.log.set_options(log_options());
        self.moved_start(trimmed.start.0);
    }

    fn look_up_time(&mut self) {
        let at = TimestampMs(self.random.random(NOW.0 as u64..self.now.0 as u64 + 2000) as i64);
        let found = self.node.run(self.log.offset_for_timestamp(at, Offset(self.end()))).expect("a look-up");
        let expected = self.model.iter().find_map(|batch| {
            let header = corelog_engine::batch::BatchHeader::parse(&batch.bytes).expect("own batches");
            let first = batch.base.max(self.start);
            (header.max_timestamp >= at).then_some((Offset(first), header.max_timestamp))
        });
        assert_eq!(found, expected, "at {at:?}");
    }

    fn restart_cleanly(&mut self) {
        self.node.run(self.log.close()).expect("a clean close");
        let options = self.node.engine.options().clone();
        self.node.engine.shutdown();
        self.node.executor.kill();
        self.node = Node::start(self.node.executor.clone(), self.node.disk.clone(), options);
        let (log, report) = self.node.try_open(true).expect("a clean log");
        assert!(report.was_clean, "{report:?}");
        self.log = log;
        self.begin_term();
        self.check_all();
    }

    fn crash(&mut self, crash: Crash) {
        let ends = self.log.ends();
        let sure_end = if crash == Crash::Kill { ends.written } else { ends.durable };
        self.node = self.node.crash(crash);
        let (log, _) = self.node.open();
        self.log = log;
        let end = self.log.ends().end;
        assert!(end >= sure_end, "{end} is left, {sure_end} was sure");
        // A deletion is durable when it returns; the rest of the start is.
        assert_eq!(self.log.ends().start.0, self.start, "the log start");
        let start = self.start;
        self.keep(self.model.iter().filter(|batch| batch.end <= end.0).count());
        assert_eq!(self.start, start, "what holds the log start is durable");
        assert_eq!(self.end(), end.0, "the end is that of a batch");
        self.begin_term();
        self.check_all();
    }

    /// A truncation, a deletion, retention or a reset that a crash interrupts at one of its syncs, if it lasts so long.
    fn crash_within_a_cut(&mut self) {
        self.node.run(self.log.flush()).expect("a flush");
        let (log, disk, now) = (self.log.clone(), self.node.disk.clone(), self.now);
        let (from, to) = (self.random.random(self.start..self.end() + 1), self.end());
        let kind = self.random.random(0..4);
        disk.stop_at_sync(disk.syncs() + self.random.random(1..8));
        let operation = async {
            match kind {
                0 => drop(log.truncate(Offset(from)).await.expect("a cut")),
                1 => drop(log.delete_records_before(Offset(from), now).await.expect("a deletion")),
                2 => log.reset_to(Offset(from)).await.expect("a reset"),
                _ => {
                    log.set_options(LogOptions { retention_bytes: Some(10_000), ..log_options() });
                    log.apply_retention(now).await.expect("retention");
                }
            }
        };
        let ended = self.node.executor.run_until_or(operation, || disk.is_stopped()).is_some();
        let crash = if self.random.one_in(2) { Crash::Kill } else { Crash::PowerLoss };
        self.node = self.node.crash(crash);
        let (log, report) = self.node.open();
        self.log = log;
        let ends = self.log.ends();
        assert!(report.cut.as_ref().is_none_or(|cut| !cut.sound_batch_behind), "no damage: {report:?}");
        // What it has done before the crash is done, the rest is not: between the old bounds and the new ones.
        let kept = self.model.iter().filter(|batch| batch.end <= from).count();
        let cut = self.model.get(kept).map_or(to, |batch| batch.base);
        match kind {
            0 => assert!((cut..=to).contains(&ends.end.0) && (!ended || ends.end.0 == cut), "{ends:?}"),
            1 => assert!((self.start..=from).contains(&ends.start.0) && (!ended || ends.start.0 == from)),
            2 => {
                let (old, new) = ((self.start, to), (from, from));
                let is = (ends.start.0, ends.end.0);
                assert!(is == new || is == old && !ended, "{is:?} of {old:?} and {new:?}");
                if is == new {
                    self.was_reset(from);
                }
            }
            _ => assert!(ends.start.0 >= self.start),
        }
        if kind == 0 {
            // A cut within the batch that holds the log start moves the start to where it begins.
            let start = self.start.min(cut);
            assert!([self.start, start].contains(&ends.start.0), "{ends:?}");
            self.start = ends.start.0;
            self.keep(self.model.iter().filter(|batch| batch.end <= ends.end.0).count());
        } else {
            self.moved_start(ends.start.0);
        }
        assert_eq!((self.start, self.end()), (ends.start.0, ends.end.0));
        self.begin_term();
        self.check_all();
    }

    fn check_all(&self) {
        self.check_bounds();
        assert_eq!(self.node.read_all(&self.log), self.model);
        let mut epochs: Vec<(u32, u64)> = Vec::new();
        for batch in &self.model {
            let header = corelog_engine::batch::BatchHeader::parse(&batch.bytes).expect("own batches");
            let epoch = header.leader_epoch.expect("a stamped batch").0;
            if epochs.last().is_none_or(|last| last.0 != epoch) {
                epochs.push((epoch, batch.base.max(self.start)));
            }
        }
        let table = self.log.epochs();
        let found: Vec<_> = table.entries().iter().map(|e| (e.epoch.0, e.start_offset.0)).collect();
        if !self.model.is_empty() {
            assert_eq!(found, epochs, "the epoch table says where each term began");
        }
    }
}

fn check(seed: u64) {
    let mut run = Run::new(seed);
    for _ in 0..OPERATIONS {
        run.step();
    }
    run.node.run(run.log.flush()).expect("a flush");
    run.check_all();
}

#[test]
fn a_log_is_a_list_of_batches() {
    for seed in seeds("random_ops_vs_model", SEEDS) {
        check(seed);
    }
}
