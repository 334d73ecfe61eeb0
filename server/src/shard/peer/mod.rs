//! What replication needs of a shard: connections to and from the shards of other nodes, tasks, time.
//!
//! Owns: nothing but the list of its files. `socket.rs` makes connections, `frames.rs` carries whole frames over one
//! (`receive.rs` cuts them out of what a socket delivers), `link.rs` and `host.rs` are what
//! `corelog_replication::stream` asks for, `listener.rs` lets peers in.

mod frames;
mod host;
mod link;
mod listener;
mod receive;
mod socket;
mod traffic;

pub(super) use host::ShardHost;
pub(super) use listener::accept_peers;
