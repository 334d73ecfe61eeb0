//! What replication needs of a shard: connections to and from the shards of other nodes.
//!
//! Owns: nothing but the list of its files. `receive.rs` cuts frames out of what a socket delivers.

mod frames;
mod receive;
mod socket;
