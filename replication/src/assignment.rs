//! What one shard has to do for one partition: the picture of the cluster, cut down to a replica.
//!
//! Owns: the shape. Made by whoever knows the cluster (server, simulation), acted on by `Replicas`.
//! Invariant: of two assignments of a partition the one with the higher version is newer; an older one is ignored.

use corelog_engine::{LeaderEpoch, TopicPartition};

use crate::cluster::Incarnation;
use crate::coordination::Version;
use crate::replica::{NodeId, ReplicaId};

/// The part of this replica in the newest leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Lead, in the epoch of the assignment.
    Lead,
    /// Copy from the leader.
    Follow {
        /// The leader.
        leader: ReplicaId,
        /// Shard of the leader's node that has it.
        shard: u16,
    },
    /// Nobody leads, or the leader's node does not run.
    Wait,
}

/// What a shard has to do for a partition of which it holds a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Which partition.
    pub partition: TopicPartition,
    /// The replica here.
    pub me: ReplicaId,
    /// Its part.
    pub role: Role,
    /// Of the newest leadership.
    pub leader_epoch: LeaderEpoch,
    /// All replicas.
    pub replicas: Vec<ReplicaId>,
    /// Those in sync, as stored.
    pub isr: Vec<ReplicaId>,
    /// Version of what is stored: the leader names it when it changes the ISR.
    pub version: Version,
    /// Fewer in sync: `acks = all` is refused.
    pub min_insync_replicas: usize,
}

/// A change of the ISR that a leader wants stored, by compare-and-set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsrProposal {
    /// Which partition.
    pub partition: TopicPartition,
    /// The leader that asks.
    pub leader: ReplicaId,
    /// Its epoch.
    pub leader_epoch: LeaderEpoch,
    /// The version that it has seen.
    pub version: Version,
    /// All members; the leader is one of them.
    pub isr: Vec<ReplicaId>,
}

/// What a shard has seen of another node's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// A stream to it broke and a new connection was refused: nobody listens there any more.
    Refused,
    /// It accepted a connection.
    Connected,
}

/// What a shard tells whoever talks to the coordination service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Store another ISR. Answered by an assignment with a higher version, or by `Replicas::isr_refused`.
    Isr(IsrProposal),
    /// A process was seen, or not.
    Seen {
        /// Whose.
        node: NodeId,
        /// Which start of it: the one that was last connected to. Says nothing about a later one, which may listen
        /// elsewhere.
        incarnation: Incarnation,
        /// How.
        sighting: Sighting,
    },
    /// A replica that may not have been electable has caught up (it is in the ISR again), or leads: an operator has
    /// elected it.
    Verified {
        /// Which.
        replica: ReplicaId,
    },
}
