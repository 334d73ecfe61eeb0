//! Simulation: engine and replication code on a seeded executor, with disks that forget, tear, rot and fill up,
//! networks that delay, cut and reset, and a coordination service that goes away.
//!
//! Invariant: one seed, one run. All chance comes from the executor's random stream, time is virtual, and
//! nothing looks at a real clock, thread or file.
//! Used by `engine/tests/` (executor and disk), and by the simulated cluster. The [`checker`] is pure and also judges
//! the tests on real processes.

pub mod checker;
pub mod cluster;
pub mod command;
pub mod coordination;
pub mod disk;
pub mod executor;
pub mod faults;
pub mod network;
pub mod run;
pub mod workload;

pub use disk::{Crash, EIO, ENOSPC, Fault, FaultEffect, FaultKind, SimDisk, SimDiskOptions, SimFile};
pub use executor::{Executor, Group, Handle, Task};
