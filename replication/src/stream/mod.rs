//! Replication streams, core to core: one connection for each pair (leader's shard, follower's shard).
//!
//! Owns: what a stream needs of the world around it ([`Link`], [`Host`]). `feeder` is the leader's end, `fetcher` the
//! follower's, `mending` asks others for what is damaged here. All run on glommio and TCP in the
//! server and on the seeded executor in simulation.
//! Invariant: nothing here decides who leads, who is in sync or what is committed; that is asked of the partition.
//! Crash story: a connection breaks at any byte. The follower connects again and begins each partition anew with the
//! epoch handshake, from what its log has; nothing of the old connection counts.

mod convert;
pub(crate) mod dirty;
pub(crate) mod feeder;
pub(crate) mod fetcher;
mod link;
pub(crate) mod mending;
mod options;
pub(crate) mod ranges;
pub(crate) mod session;
mod slab;
mod stats;
pub(crate) mod throttle;

pub use corelog_schemas::messages::{STREAM_FRAME_LIMITS, StreamMessage};
pub use link::{ConnectError, Host, Identity, Link, LinkError, Priority};
pub use options::StreamOptions;
pub use stats::{FeederStats, FetcherStats, FollowerLag, StreamStats};
