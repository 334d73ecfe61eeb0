//! Damage in closed segments: found by looking, with its exact range, and mended with another replica's bytes.
//!
//! What must never happen: sound batches are called damaged, damage is passed over, or a repair writes what is not
//! the same as before.

mod support;

use corelog_engine::batch::BatchHeader;
use corelog_engine::log::{DamagedRange, Log, ReadError, ReadLimits, RepairError, ScrubCursor};
use corelog_engine::{LeaderEpoch, Offset};
use corelog_sim::{Crash, Fault, FaultKind, SimDisk};
use support::*;

/// A log of some closed segments that nothing of is in memory, and where each of its batches lies.
struct Cold {
    node: Node,
    log: Log<SimDisk>,
    model: Vec<Stored>,
    /// Segment base and position of each batch.
    places: Vec<(u64, u64)>,
}

impl Cold {
    fn new(seed: u64) -> Self {
        let node = Node::new(seed);
        let log = node.create();
        let random = node.executor.handle();
        let mut model = Vec::new();
        for tag in 0..60 {
            if tag % 25 == 0 {
                log.begin_epoch(LeaderEpoch(tag as u32 + 1)).expect("a later term");
            }
            let batch = batch(tag, random.random(1..4) as u32, random.random(300..1500) as usize);
            let appended = node.append_durably(&log, &batch);
            model.extend(stored(&batch, appended.base_offset.0, (tag / 25 * 25) as u32 + 1));
        }
        node.run(log.close()).expect("a clean close");
        node.executor.kill();
        Self::open(node, model)
    }

    fn open(node: Node, model: Vec<Stored>) -> Self {
        let node = Node::start(node.executor.clone(), node.disk.clone(), engine_options());
        let (log, _) = node.try_open(true).expect("a clean log");
        let mut places = Vec::new();
        let segments = node.files(".log");
        for batch in &model {
            let place = segments.iter().find_map(|(path, bytes)| {
                let at = bytes.windows(61).position(|window| window == &batch.bytes[..61])?;
                let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
                Some((name.parse().expect("a base offset"), at as u64))
            });
            places.push(place.expect("each batch is in a segment"));
        }
        Self { node, log, model, places }
    }

    /// The last batch of a closed segment, and some batch in the middle of one.
    fn last_of_segment(&self) -> usize {
        self.places.windows(2).position(|pair| pair[0].0 != pair[1].0).expect("two segments")
    }

    fn rot(&self, at: usize, byte: u64) {
        let (base, position) = self.places[at];
        self.node.disk.rot(&segment_path(base), position + byte, 0x10);
    }

    /// The whole round, `bytes_max` at a time.
    fn scrub(&self, bytes_max: u64) -> (u64, Vec<DamagedRange>) {
        let (mut checked, mut damaged) = (0, Vec::new());
        let mut cursor = Some(ScrubCursor::default());
        while let Some(from) = cursor {
            let progress = self.node.run(self.log.scrub(from, bytes_max)).expect("a sound disk");
            assert!(progress.next != cursor, "it moves on: {progress:?}");
            checked += progress.checked_bytes;
            damaged.extend(progress.damaged);
            cursor = progress.next;
        }
        (checked, damaged)
    }

    /// The bytes of `[from, to)`, as a replica has them.
    fn replica(&self, range: &DamagedRange) -> Vec<u8> {
        let within = |batch: &&Stored| batch.base >= range.from.0 && batch.end <= range.to.0;
        self.model.iter().filter(within).flat_map(|batch| batch.bytes.clone()).collect()
    }

    fn check_range(&self, range: &DamagedRange, at: usize) {
        let batch = &self.model[at];
        assert_eq!((range.segment_base.0, range.position), self.places[at], "{range:?}");
        assert_eq!((range.from.0, range.to.0), (batch.base, batch.end), "{range:?}");
        assert_eq!(range.length_bytes, batch.bytes.len() as u64);
    }

    fn check_sound(&self) {
        assert_eq!(self.scrub(u64::MAX).1, []);
        assert_eq!(self.node.read_all(&self.log), self.model);
    }
}

#[test]
fn a_sound_log_is_looked_at_once_in_pieces_of_any_size() {
    let cold = Cold::new(1);
    let sealed: u64 = cold.node.files(".log").iter().rev().skip(1).map(|(_, bytes)| bytes.len() as u64).sum();
    let read = cold.node.engine.stats().device_read_bytes;
    for bytes_max in [1, 700, 5_000, u64::MAX] {
        assert_eq!(cold.scrub(bytes_max), (sealed, Vec::new()), "{bytes_max} at a time");
    }
    assert_eq!(cold.node.engine.stats().device_read_bytes, read, "no cold read, nothing in the cache");
}

#[test]
fn a_flipped_bit_anywhere_is_found_and_mended() {
    // Offsets, length, epoch, magic, checksum, attributes, counts, records; each in one batch.
    for byte in [0, 7, 8, 10, 11, 12, 15, 16, 17, 20, 22, 26, 30, 57, 60, 61, 200] {
        let cold = Cold::new(2);
        let last = cold.last_of_segment();
        for at in [0, 3, last, last + 1] {
            cold.rot(at, byte);
            let (_, damaged) = cold.scrub(3_000);
            assert_eq!(damaged.len(), 1, "byte {byte} of batch {at}: {damaged:?}");
            cold.check_range(&damaged[0], at);
            let met = cold.node.run(cold.log.damage_at(damaged[0].from)).expect("a sound disk");
            assert_eq!(met.as_ref(), Some(&damaged[0]), "byte {byte} of batch {at}");
            let batches = cold.replica(&damaged[0]);
            cold.node.run(cold.log.repair(&damaged[0], &batches)).expect("a repair");
            cold.check_sound();
            assert_eq!(cold.node.run(cold.log.damage_at(damaged[0].from)), Ok(None));
        }
        let node = cold.node.crash(Crash::PowerLoss);
        let (log, _) = node.try_open(true).expect("a clean log");
        assert_eq!(node.read_all(&log), cold.model, "byte {byte}: the repair is durable");
    }
}

#[test]
fn what_a_reader_meets_is_found_mended_and_read() {
    let cold = Cold::new(3);
    cold.rot(5, 100);
    let (end, batch) = (cold.log.ends().end, Offset(cold.model[5].base));
    let before = cold.node.run(cold.log.read(Offset(0), end, ReadLimits::bytes(1 << 20))).expect("a read");
    assert_eq!(batches_of(&before.slices), cold.model[..5], "what is sound before it is served");
    let read = || cold.node.run(cold.log.read(batch, end, ReadLimits::bytes(1 << 20)));
    assert!(matches!(read(), Err(ReadError::Corrupt { offset, .. }) if offset == batch));
    let range = cold.node.run(cold.log.damage_at(batch)).expect("a sound disk").expect("the damage");
    cold.check_range(&range, 5);
    assert_eq!(cold.node.run(cold.log.damage_at(Offset(cold.model[4].base))), Ok(None));
    assert_eq!(cold.node.run(cold.log.damage_at(Offset(cold.model[6].base))), Ok(None));
    cold.node.run(cold.log.repair(&range, &cold.replica(&range))).expect("a repair");
    assert_eq!(batches_of(&read().expect("a read").slices)[0], cold.model[5]);
    cold.check_sound();
}

#[test]
fn several_batches_in_a_row_and_whole_blocks_are_one_range_each() {
    for seed in seeds("scrub_and_repair", 20) {
        let cold = Cold::new(seed);
        let random = cold.node.executor.handle();
        let at = random.random(0..40) as usize;
        let (base, position) = cold.places[at];
        let file = cold.node.disk.peek(&segment_path(base));
        // A lost write: zeroes, over batches that then say nothing.
        let length = random.random(1..9_000).min(file.len() as u64 - position) as usize;
        cold.node.disk.poke(&segment_path(base), position, &vec![0; length]);
        if random.one_in(3) {
            // And no index to go by.
            for suffix in ["index", "timeindex"] {
                cold.node.disk.poke(&segment_path(base).with_extension(suffix), 0, &[0xff; 16]);
            }
        }
        let (_, damaged) = cold.scrub(4_000);
        assert!(!damaged.is_empty(), "seed {seed}");
        for range in &damaged {
            let batches = cold.replica(range);
            assert_eq!(batches.len() as u64, range.length_bytes, "seed {seed}: whole batches, {range:?}");
            cold.node.run(cold.log.repair(range, &batches)).expect("a repair");
        }
        cold.check_sound();
        assert_eq!(cold.node.disk.peek(&segment_path(base)), file, "seed {seed}: byte for byte");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_said() {
    let cold = Cold::new(4);
    cold.rot(3, 100);
    let range = cold.scrub(u64::MAX).1.remove(0);
    let good = cold.replica(&range);
    let repair = |range: &DamagedRange, bytes: &[u8]| cold.node.run(cold.log.repair(range, bytes));
    let header = BatchHeader::parse(&good).expect("a batch");
    let shorter = stored(&batch(1, header.record_count, 10), range.from.0, 1)[0].bytes.clone();
    let refused = repair(&range, &shorter).expect_err("fewer bytes");
    assert!(refused.to_string().contains("cannot take"), "{refused}");
    assert!(matches!(refused, RepairError::DoesNotFit { .. }));
    let elsewhere = cold.model[9].bytes.clone();
    assert!(matches!(repair(&range, &elsewhere), Err(RepairError::DoesNotFit { .. })));
    assert!(matches!(repair(&range, &good[1..]), Err(RepairError::Batches(_))));
    let mut other_term = good.clone();
    other_term[12..16].copy_from_slice(&7_i32.to_be_bytes());
    assert!(matches!(repair(&range, &other_term), Err(RepairError::OtherEpoch { .. })));
    let active = DamagedRange { segment_base: Offset(cold.places[59].0), ..range.clone() };
    assert!(matches!(repair(&active, &good), Err(RepairError::NotSealed { .. })));
    repair(&range, &good).expect("and what fits is taken");
    cold.check_sound();
}

#[test]
fn a_medium_that_forgets_the_repair_is_said() {
    let cold = Cold::new(5);
    cold.rot(3, 100);
    let range = cold.scrub(u64::MAX).1.remove(0);
    let lost = Fault::eio(FaultKind::Write, ".log").with(corelog_sim::FaultEffect::Lost);
    cold.node.disk.inject(lost);
    let repaired = cold.node.run(cold.log.repair(&range, &cold.replica(&range)));
    assert!(matches!(repaired, Err(RepairError::StillDamaged { .. })), "{repaired:?}");
    cold.node.disk.inject(Fault::eio(FaultKind::Sync, ".log"));
    let repaired = cold.node.run(cold.log.repair(&range, &cold.replica(&range)));
    assert!(matches!(repaired, Err(RepairError::Disk { .. })), "{repaired:?}");
    assert_eq!(cold.log.failure(), None, "appends go to another segment");
}

#[test]
fn a_crash_in_a_repair_leaves_its_neighbours_and_its_length() {
    for seed in seeds("scrub_and_repair", 4) {
        let mut sync = 1;
        loop {
            let cold = Cold::new(seed);
            let at = cold.last_of_segment();
            cold.rot(at, 70);
            let range = cold.scrub(u64::MAX).1.remove(0);
            let (log, disk, batches) = (cold.log.clone(), cold.node.disk.clone(), cold.replica(&range));
            disk.stop_at_sync(disk.syncs() + sync);
            let repair = async move { log.repair(&range, &batches).await };
            let ended = cold.node.executor.run_until_or(repair, || disk.is_stopped()).is_some();
            let crash = if sync % 2 == 0 { Crash::Kill } else { Crash::PowerLoss };
            let cold = Cold { log: cold.log, node: cold.node.crash(crash), ..cold };
            let (log, _) = cold.node.open();
            let cold = Cold { log, ..cold };
            let (_, damaged) = cold.scrub(u64::MAX);
            assert!(damaged.len() <= usize::from(!ended), "seed {seed}, sync {sync}: {damaged:?}");
            for range in damaged {
                cold.check_range(&range, at);
                cold.node.run(cold.log.repair(&range, &cold.replica(&range))).expect("a repair");
            }
            cold.check_sound();
            assert_eq!(cold.node.files(".repair"), []);
            if ended {
                break;
            }
            sync += 1;
        }
        assert!(sync > 3, "{sync}");
    }
}

#[test]
fn retention_and_appends_go_on_beside_it() {
    for seed in seeds("scrub_and_repair", 10) {
        let cold = Cold::new(seed);
        let random = cold.node.executor.handle();
        cold.rot(random.random(0..20) as usize, 100);
        let (log, end) = (cold.log.clone(), cold.log.ends().end);
        log.begin_epoch(LeaderEpoch(100)).expect("a later term");
        let to = Offset(random.random(0..end.0));
        let look = async {
            let mut found = Vec::new();
            let mut cursor = Some(ScrubCursor::default());
            while let Some(from) = cursor {
                let progress = cold.log.scrub(from, 2_000).await.expect("a sound disk");
                cursor = progress.next;
                found.extend(progress.damaged);
            }
            for range in &found {
                match cold.log.repair(range, &cold.replica(range)).await {
                    Ok(()) | Err(RepairError::NotSealed { .. }) => {}
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            }
        };
        let work = async {
            for tag in 100..110 {
                append(&log, &batch(tag, 1, 2_000), NOW).await.expect("an append");
                if tag == 104 {
                    log.delete_records_before(to, NOW).await.expect("a deletion");
                }
            }
        };
        cold.node.run(futures_util::future::join(look, work));
        let left = cold.node.read_all(&cold.log);
        let kept: Vec<_> = cold.model.iter().filter(|batch| batch.end > to.0).cloned().collect();
        assert_eq!(left[..kept.len()], kept, "seed {seed}");
        assert_eq!(left.len(), kept.len() + 10);
    }
}
