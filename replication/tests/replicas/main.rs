//! Replicas of one partition that lead, follow, fail and take over, on simulated disks, without streams between them.
//!
//! Setup: two or three replicas, one executor, each step of a stream taken by hand (`by_hand`).
//! What must never happen: a record that was acked with `acks = all` is missing on a later leader; two replicas hold
//! different records at one offset below the high watermark; a deposed leader acks; a waiter is forgotten.

mod by_hand;
mod failover;
mod random;
mod serving;
