//! Simulation: engine code on a seeded executor and a disk that forgets, tears, rots and fills up.
//!
//! Invariant: one seed, one run. All chance comes from the executor's random stream, time is virtual, and
//! nothing looks at a real clock, thread or file.
//! Used by `engine/tests/` and, later, by the simulated cluster.

pub mod disk;
pub mod executor;

pub use disk::{Crash, EIO, ENOSPC, Fault, FaultEffect, FaultKind, SimDisk, SimDiskOptions, SimFile};
pub use executor::{Executor, Handle, Task};
