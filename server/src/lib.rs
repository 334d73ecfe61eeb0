//! The server as a library: the one place that wires engine, replication, net, client, bench and tuning.
//!
//! Owns: the list of modules. `main.rs` is only an entry, so that tests can reach everything else.

pub mod cli;
pub mod config;
pub mod control;
pub mod http;
pub mod logging;
pub mod serve;
pub mod shard;
