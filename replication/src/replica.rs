//! Who holds a copy of a partition.
//!
//! Owns: the identity of a replica, as it stands in the ISR and everywhere that is stored. Shards are no part of
//! it: their number may change between starts, and they are looked up when sending.

use std::fmt;

use corelog_engine::LogId;

/// Number of a node in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One copy of one partition.
///
/// The log id is random and made with the log's directory, so a wiped or swapped disk comes back as somebody new,
/// outside the ISR, instead of as a member that has forgotten what it acked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId {
    /// The node that holds it.
    pub node: NodeId,
    /// The log directory there.
    pub log: LogId,
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.log)
    }
}
