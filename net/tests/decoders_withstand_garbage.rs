//! Any bytes at all: errors, never a panic, never much memory.
//!
//! Setup: the targets of `net/fuzz` with every case that ever broke one, with random bytes, and with some thousand
//! mutations of valid frames. `make fuzz` looks for longer.

#[path = "../fuzz/mod.rs"]
mod fuzz;

use fuzz::memory::CountingAllocator;
use fuzz::mutate::{Random, mutate};
use fuzz::{TARGETS, Target, corpus};
use proptest::prelude::*;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("there is such a target")
}

#[test]
fn found_cases_stay_mended() {
    let mut replayed = 0;
    for target in TARGETS {
        for (name, case) in corpus(target.name) {
            eprintln!("replaying {name}");
            (target.run)(&case);
            replayed += 1;
        }
    }
    assert!(replayed >= TARGETS.len(), "the corpus is there: {replayed} cases");
}

#[test]
fn samples_pass() {
    for target in TARGETS {
        (target.seeds)().iter().for_each(|seed| (target.run)(seed));
    }
}

fn mutations(name: &str, rounds: usize) {
    let target = target(name);
    let seeds = (target.seeds)();
    let mut random = Random(0x5eed);
    for _ in 0..rounds {
        let mut case = seeds[random.below(seeds.len())].clone();
        let other = &seeds[random.below(seeds.len())];
        mutate(&mut case, other, &mut random);
        (target.run)(&case);
    }
}

#[test]
fn mutated_heads_pass() {
    mutations("heads", 4_000);
}

#[test]
fn mutated_frames_pass() {
    mutations("frames", 4_000);
}

#[test]
fn mutated_batches_pass() {
    mutations("batches", 10_000);
}

#[test]
fn mutated_sessions_pass() {
    mutations("session", 400);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_pass(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        for target in TARGETS {
            (target.run)(&bytes);
        }
    }
}
