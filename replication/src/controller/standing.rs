//! What can be expected of a replica now, read off the picture of the cluster.
//!
//! Owns: the one place where registrations, evidence, faults, data directories and intents become a verdict; elections,
//! repairs and administration all ask here.

use corelog_engine::TopicPartition;

use crate::cluster::{ClusterState, FaultKind, Incarnation, PartitionLeader, PartitionRecord, ReplicaRecord};
use crate::replica::NodeId;

/// What can be expected of one replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The start of its node that has a session; `None`: the node does not run.
    pub incarnation: Option<Incarnation>,
    /// Its node has a session, but is taken for dead on others' evidence.
    pub is_suspected: bool,
    /// What its node says about its log.
    pub fault: Option<FaultKind>,
    /// Its node runs without the data directory of its log.
    pub is_dir_missing: bool,
    /// How much its node would rather not lead.
    pub reluctance: Reluctance,
}

/// How much a node would rather not lead: it does so only if nobody less reluctant can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reluctance {
    /// Not at all.
    #[default]
    None,
    /// An operator has drained it.
    Drained,
    /// It is about to stop.
    Stopping,
}

impl Reluctance {
    /// The reluctance of a node.
    pub fn of(state: &ClusterState, node: NodeId) -> Self {
        if state.nodes.get(&node).is_some_and(|record| record.is_stopping) {
            Self::Stopping
        } else if state.is_drained(node) {
            Self::Drained
        } else {
            Self::None
        }
    }
}

impl Standing {
    /// The standing of a replica.
    pub fn of(state: &ClusterState, replica: &ReplicaRecord) -> Self {
        let Some(node) = state.nodes.get(&replica.node) else { return Self::default() };
        Self {
            incarnation: Some(node.incarnation),
            is_suspected: state.is_suspected(replica.node),
            fault: state.faults.get(&replica.id()).map(|fault| fault.kind),
            is_dir_missing: !node.data_dirs.iter().any(|dir| dir.id == replica.dir),
            reluctance: Reluctance::of(state, replica.node),
        }
    }

    /// It is sound, and its node may lead as well as any other.
    pub fn is_willing(&self) -> bool {
        self.is_sound() && self.reluctance == Reluctance::None
    }

    /// It runs, and nothing speaks against it: it may be elected, if it is in the ISR.
    pub fn is_sound(&self) -> bool {
        self.can_serve() && !self.is_suspected && self.fault.is_none()
    }

    /// Its node runs and has the log in working order. A process that others suspect may yet be at work, and a
    /// replica that is not verified has a log that can be written.
    pub fn can_serve(&self) -> bool {
        let is_broken = matches!(self.fault, Some(FaultKind::Lost | FaultKind::Failed));
        self.incarnation.is_some() && !is_broken && !self.is_dir_missing
    }

    /// Its log is gone although its node runs: what it had is not coming back under this log id.
    pub fn is_lost(&self) -> bool {
        self.incarnation.is_some() && (self.is_dir_missing || self.fault == Some(FaultKind::Lost))
    }
}

/// Whether a leader is the process that was elected, and nothing forces another election: it does its work.
pub(super) fn is_serving(record: &PartitionRecord, leader: PartitionLeader, standing: Standing) -> bool {
    // An operator who elects a replica that is not verified accepts what it lacks.
    let is_accepted = record.unclean_epoch == Some(record.leader_epoch);
    let is_verified = standing.fault != Some(FaultKind::Unverified) || is_accepted;
    standing.incarnation == Some(leader.incarnation) && standing.can_serve() && is_verified
}

/// Whether a partition belongs to a topic that exists; others are being made or go.
pub(super) fn exists(state: &ClusterState, id: TopicPartition) -> bool {
    state.topics.get(&id.topic).is_some_and(|topic| id.partition.0 < topic.partitions)
}
