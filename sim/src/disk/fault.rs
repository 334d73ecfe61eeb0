//! Faults on demand: operations that fail, lie, go astray or take long.

use std::io;
use std::path::Path;

use super::state::{Answer, Effect, State};
use crate::executor::Handle;

/// Which operations a fault meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Opening and creating files.
    Open,
    /// Reads.
    Read,
    /// Writes and zeroing.
    Write,
    /// Syncs of files and directories.
    Sync,
    /// Renames, removals, new directories, listings, lengths.
    Name,
}

/// What happens to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultEffect {
    /// It fails with this errno. A failed write may still have been done; after a failed sync each write that
    /// it covered is on the medium or lost, and later syncs do not try again.
    Error(i32),
    /// It is answered as done and was not done.
    Lost,
    /// A write that lands at this position instead, answered as done.
    Misdirected {
        /// Byte position in the same file.
        position: u64,
    },
    /// It takes this much longer, in virtual microseconds.
    Delay {
        /// Microseconds.
        us: u64,
    },
}

/// EIO: the medium failed.
pub const EIO: i32 = 5;
/// ENOSPC: no space is left.
pub const ENOSPC: i32 = 28;

/// A fault that waits for its operations.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which operations.
    pub kind: FaultKind,
    /// Only those whose path contains this.
    pub path: String,
    /// How many of them pass before.
    pub skip: u64,
    /// How many of them it meets then.
    pub times: u64,
    /// What happens to those.
    pub effect: FaultEffect,
}

impl Fault {
    /// The next such operation fails with EIO.
    pub fn eio(kind: FaultKind, path: &str) -> Self {
        Self { kind, path: path.to_owned(), skip: 0, times: 1, effect: FaultEffect::Error(EIO) }
    }

    /// The same fault at the `count`-th such operation from now (1 is the next).
    #[must_use]
    pub fn at(mut self, count: u64) -> Self {
        self.skip = count.saturating_sub(1);
        self
    }

    /// The same fault at `times` operations in a row.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = times;
        self
    }

    /// The same place with another effect.
    #[must_use]
    pub fn with(mut self, effect: FaultEffect) -> Self {
        self.effect = effect;
        self
    }
}

/// Counts an operation against all faults; the first that is due is what happens to it.
pub(super) fn strike(faults: &mut Vec<Fault>, kind: FaultKind, path: &Path) -> Option<FaultEffect> {
    let path = path.to_string_lossy();
    let mut effect = None;
    for fault in faults.iter_mut().filter(|fault| fault.kind == kind && path.contains(&fault.path)) {
        if fault.skip > 0 {
            fault.skip -= 1;
        } else if effect.is_none() && fault.times > 0 {
            fault.times -= 1;
            effect = Some(fault.effect);
        }
    }
    faults.retain(|fault| fault.times > 0);
    effect
}

/// Does to the disk what a faulty operation does.
pub(super) fn apply(
    state: &mut State,
    effect: Effect,
    fault: FaultEffect,
    random: &Handle,
) -> io::Result<Answer> {
    match (fault, effect) {
        (FaultEffect::Error(errno), effect) => {
            match effect {
                Effect::Sync { node, before } => {
                    state.file_mut(node).lose_changes(before, || random.one_in(2));
                }
                Effect::Write { .. } | Effect::Zero { .. } if random.one_in(2) => {
                    // Done all the same, but nobody is told.
                    let _ = state.apply(&effect);
                }
                _ => {}
            }
            Err(io::Error::from_raw_os_error(errno))
        }
        (FaultEffect::Misdirected { position }, Effect::Write { node, slices, .. }) => {
            state.apply(&Effect::Write { node, position, slices })
        }
        // A lost read or open answers what is there: there is nothing that it could leave undone.
        (_, effect @ (Effect::Read { .. } | Effect::Open { .. } | Effect::List { .. })) => {
            state.apply(&effect)
        }
        (FaultEffect::Lost | FaultEffect::Misdirected { .. }, _) => Ok(Answer::Nothing),
        (FaultEffect::Delay { .. }, effect) => state.apply(&effect),
    }
}
