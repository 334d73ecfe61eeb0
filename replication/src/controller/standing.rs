//! What can be expected of a replica now, read off the picture of the cluster.
//!
//! Owns: the one place where registrations, evidence, faults, data directories and intents become a verdict; elections,
//! repairs and administration all ask here.

use corelog_engine::TopicPartition;

use crate::cluster::{ClusterState, FaultKind, Incarnation, PartitionLeader, PartitionRecord, ReplicaRecord};

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
    /// Its node is drained or about to stop: it leads only if nobody else can.
    pub is_leaving: bool,
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
            is_leaving: node.is_stopping || state.is_drained(replica.node),
        }
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
