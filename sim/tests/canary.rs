//! A test of the tests: bugs that have lost data in other systems are planted, and each must be found.
//!
//! Setup: one planted bug at a time, whole runs from fixed seeds, until a run finds something.
//! What must never happen: a bug that is not found within [`SEEDS_MAX`] seeds.

use std::panic::{AssertUnwindSafe, catch_unwind};

use corelog_replication::canary::{self, Canary};
use corelog_sim::run::{RunOptions, run};

/// Seeds in which each must be found.
const SEEDS_MAX: u64 = 200;

/// The first of them.
const FIRST: u64 = 5_000;

/// Seeds until the bug is found.
fn hunt(bug: Canary) -> Option<u64> {
    canary::plant(Some(bug));
    let found = (0..SEEDS_MAX).find(|number| {
        let options = RunOptions::new(FIRST + number);
        // A broken assertion finds it as well as the checker does.
        catch_unwind(AssertUnwindSafe(|| run(&options))).map_or(true, |outcome| !outcome.problems.is_empty())
    });
    canary::plant(None);
    found.map(|number| number + 1)
}

macro_rules! hunts {
    ($($name:ident: $bug:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            let seeds = hunt(Canary::$bug);
            assert!(seeds.is_some(), "{:?} was not found within {SEEDS_MAX} seeds", Canary::$bug);
        }
    )*};
}

hunts! {
    truncating_to_the_high_watermark_is_found: TruncateToHighWatermark,
    advancing_it_by_reports_of_any_epoch_is_found: AnyEpochMovesTheMark,
    acking_before_the_sync_is_found: AckBeforeSync,
    keeping_the_old_epoch_is_found: OldEpochAfterRestart,
    skipping_the_second_truncation_is_found: CopyAfterFirstCut,
    electing_outside_the_isr_is_found: ElectOutsideIsr,
    a_wiped_replica_in_sync_is_found: WipedReplicaInSync,
}
