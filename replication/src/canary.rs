//! Bugs planted on purpose, so that the simulation can prove that it would find them.
//!
//! Owns: their names and which one is planted on this thread. Compiled only with the feature `canary`, which no
//! program turns on: without it the code that they spoil holds no trace of them.

use std::cell::Cell;

/// A bug that has lost committed data somewhere before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    /// A follower cuts its log at the high watermark that it knows, before it asks its leader (before KIP-101).
    TruncateToHighWatermark,
    /// Whatever a replica has reported in any epoch, on any connection, moves the high watermark for ever (R2, R3, R10).
    AnyEpochMovesTheMark,
    /// `flush = commit` counts what is written, not what is synced (R4).
    AckBeforeSync,
    /// A replica that begins to lead stamps its batches with the newest epoch in its log (KIP-101, S1).
    OldEpochAfterRestart,
    /// A follower copies after the first cut, without asking again (KIP-279).
    CopyAfterFirstCut,
    /// The controller elects any replica that runs, in sync or not (C3).
    ElectOutsideIsr,
    /// A replica whose log is lost counts as in sync again as soon as its node has made an empty log (replicas known
    /// by their node alone).
    WipedReplicaInSync,
}

impl Canary {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::TruncateToHighWatermark,
        Self::AnyEpochMovesTheMark,
        Self::AckBeforeSync,
        Self::OldEpochAfterRestart,
        Self::CopyAfterFirstCut,
        Self::ElectOutsideIsr,
        Self::WipedReplicaInSync,
    ];
}

thread_local! {
    static PLANTED: Cell<Option<Canary>> = const { Cell::new(None) };
}

/// Plants a bug on this thread, or takes it away.
pub fn plant(canary: Option<Canary>) {
    PLANTED.set(canary);
}

/// Whether this bug is planted on this thread.
pub fn is_planted(canary: Canary) -> bool {
    PLANTED.get() == Some(canary)
}
