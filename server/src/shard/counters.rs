//! What a shard counts, beside what sessions, engine and partitions count themselves.
//!
//! Owns: cells of one core; nothing is shared with other threads. The control thread asks for a copy over its channel.

use std::cell::{Cell, RefCell};

use crate::control::LatencyBuckets;

/// Counters of one shard, since it began.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Requests, or parts of them, passed on to another shard.
    pub(super) forwarded: Cell<u64>,
    /// Requests that another shard has passed on to this one.
    pub(super) served_for_others: Cell<u64>,
    /// From the arrival of a produce until its answer was ready.
    pub(super) produce_latency: RefCell<LatencyBuckets>,
    /// From the arrival of a fetch until its answer was ready, the wait for bytes included.
    pub(super) fetch_latency: RefCell<LatencyBuckets>,
    /// Batches or whole produce requests refused, by whatever reason.
    pub(super) produce_failures: Cell<u64>,
}

/// Adds one.
pub(super) fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}
