//! Leaders on an operator's order: the preferred one, or one that may lack records.
//!
//! Invariant: records are given up only here, only for the partition that was named, and only while no replica that has
//! them all can lead.

use corelog_engine::{LogId, TopicId, TopicPartition};

use super::{UnknownPartition, partition};
use crate::cluster::keys::Subject;
use crate::cluster::{ClusterState, PartitionLeader, PartitionRecord, ReplicaRecord, Stored};
use crate::controller::commits::Commits;
use crate::controller::placement::Sites;
use crate::controller::standing::exists;
use crate::controller::{Standing, moves};
use crate::coordination::Op;
use crate::replica::{NodeId, ReplicaId};

/// Why the preferred leader does not lead. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElectPreferredError {
    /// See [`UnknownPartition`].
    #[error(transparent)]
    Unknown(#[from] UnknownPartition),
    /// Nobody leads.
    #[error("the partition has no leader; it gets one as soon as a replica in sync runs")]
    Offline,
    /// The preferred leader cannot lead now.
    #[error(
        "the preferred leader, node {node}, is not in sync, does not run, is drained or stopping; it leads again by \
         itself some time after it can"
    )]
    Unfit {
        /// Its node.
        node: NodeId,
    },
}

/// Why there is no unclean election. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElectUncleanError {
    /// See [`UnknownPartition`].
    #[error(transparent)]
    Unknown(#[from] UnknownPartition),
    /// Nothing need be lost.
    #[error("{replica} has every acked record and can lead; no unclean election is needed")]
    CleanPossible {
        /// Who.
        replica: ReplicaId,
    },
    /// The node has none.
    #[error("node {node} has no replica of the partition; `topic describe` shows who has")]
    NoReplica {
        /// Which node.
        node: NodeId,
    },
    /// The one asked for cannot lead.
    #[error(
        "the replica on node {node} cannot lead: its node does not run, or its log has failed; choose another one"
    )]
    Unfit {
        /// Which node.
        node: NodeId,
    },
    /// None can.
    #[error("no replica can lead: no node that has one runs; start one")]
    NobodyRuns,
}

/// Decides on the leadership of the preferred leader, now. No commits: it leads.
pub fn elect_preferred(
    state: &ClusterState,
    id: TopicPartition,
) -> Result<Vec<Vec<Op>>, ElectPreferredError> {
    let stored = partition(state, id)?;
    let leader = stored.leader.ok_or(ElectPreferredError::Offline)?;
    let preferred = stored.replicas[0].id();
    if leader.replica == preferred {
        return Ok(Vec::new());
    }
    let standing = |replica: &ReplicaRecord| Standing::of(state, replica);
    let next =
        moves::to_preferred(stored, &standing).ok_or(ElectPreferredError::Unfit { node: preferred.node })?;
    let key = Subject::Partition(id).key();
    Ok(vec![vec![Op::Put { key, value: next.encode(), version: stored.version }]])
}

/// Decides on the leadership of every preferred leader that could lead and does not, of one topic or of all.
pub fn elect_all_preferred(state: &ClusterState, topic: Option<TopicId>) -> Vec<Vec<Op>> {
    let standing = |replica: &ReplicaRecord| Standing::of(state, replica);
    let mut commits = Commits::new(vec![]);
    for (id, stored) in state.partitions.iter().filter(|(id, _)| exists(state, **id)) {
        if topic.is_some_and(|topic| topic != id.topic) {
            continue;
        }
        if let Some(next) = moves::to_preferred(stored, &standing) {
            let key = Subject::Partition(*id).key();
            commits.add([Op::Put { key, value: next.encode(), version: stored.version }]);
        }
    }
    commits.finish()
}

/// Decides on a leader that may lack acked records: they are given up, and consumers are told.
///
/// `on`: the node whose replica is to lead; `None`: one that was in sync but is not verified, else the first that runs,
/// one with a log before one whose log is lost. A lost log begins anew, empty, as another replica.
pub fn elect_unclean(
    state: &ClusterState,
    id: TopicPartition,
    on: Option<NodeId>,
    random: &mut dyn FnMut() -> u128,
) -> Result<Vec<Vec<Op>>, ElectUncleanError> {
    let stored = partition(state, id)?;
    if let Some(member) = clean_leader(state, stored) {
        return Err(ElectUncleanError::CleanPossible { replica: member });
    }
    let place = match on {
        Some(node) => {
            let place = stored.on_node(node).ok_or(ElectUncleanError::NoReplica { node })?;
            fitness(state, stored, place).map(|_| *place).ok_or(ElectUncleanError::Unfit { node })?
        }
        None => {
            let fit =
                stored.replicas.iter().filter_map(|place| Some((fitness(state, stored, place)?, place)));
            // The first one of the best: `min_by_key` keeps the first among equals.
            fit.min_by_key(|(fitness, _)| *fitness)
                .map(|(_, place)| *place)
                .ok_or(ElectUncleanError::NobodyRuns)?
        }
    };
    let unfit = ElectUncleanError::Unfit { node: place.node };
    let now = Standing::of(state, &place);
    let mut next = (*stored.record).clone();
    let mut chosen = place;
    if now.is_lost() {
        let dir = Sites::of(state).take_dir(place.node).ok_or(unfit.clone())?;
        chosen = ReplicaRecord { log: LogId(random()), dir, ..place };
        next.replicas.iter_mut().filter(|replica| replica.node == place.node).for_each(|r| *r = chosen);
    }
    let leader = PartitionLeader { replica: chosen.id(), incarnation: now.incarnation.ok_or(unfit)? };
    next.isr = vec![chosen.id()];
    next.leader = Some(leader);
    next.leader_epoch = stored.leader_epoch.next();
    next.unclean_epoch = Some(next.leader_epoch);
    let key = Subject::Partition(id).key();
    Ok(vec![vec![Op::Put { key, value: next.encode(), version: stored.version }]])
}

/// A member of the ISR that leads, or that the controller can elect.
fn clean_leader(state: &ClusterState, record: &PartitionRecord) -> Option<ReplicaId> {
    let is_able = |member: &&ReplicaId| {
        let Some(place) = record.replica(**member) else { return false };
        let now = Standing::of(state, place);
        let leads = record.leader.is_some_and(|leader| {
            leader.replica == **member && Some(leader.incarnation) == now.incarnation && !now.is_suspected
        });
        now.is_sound() || (leads && now.can_serve())
    };
    record.isr.iter().find(is_able).copied()
}

/// How little is given up by electing a replica, best first; `None`: it cannot lead.
fn fitness(state: &ClusterState, record: &PartitionRecord, place: &ReplicaRecord) -> Option<u8> {
    let now = Standing::of(state, place);
    if now.is_lost() {
        return (!now.is_suspected).then_some(2);
    }
    let is_able = now.can_serve() && !now.is_suspected;
    is_able.then(|| if record.isr.contains(&place.id()) { 0 } else { 1 })
}
