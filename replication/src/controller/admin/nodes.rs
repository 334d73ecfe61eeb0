//! Nodes: drained before maintenance, forgotten when they do not come back.

use crate::cluster::keys::Subject;
use crate::cluster::{ClusterState, NodeIntent, Stored};
use crate::controller::commits::Commits;
use crate::coordination::Op;
use crate::replica::NodeId;

/// Why a node was not drained, or not taken into service again. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DrainError {
    /// Nobody knows it.
    #[error("node {node} is not known; `cluster status` shows all nodes")]
    UnknownNode {
        /// Which.
        node: NodeId,
    },
}

/// Why a node was not forgotten. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForgetNodeError {
    /// Nobody knows it.
    #[error("node {node} is not known; `cluster status` shows all nodes")]
    UnknownNode {
        /// Which.
        node: NodeId,
    },
    /// It runs.
    #[error("node {node} runs; stop it first")]
    Runs {
        /// Which.
        node: NodeId,
    },
    /// It has replicas.
    #[error("node {node} has {replicas} replicas; add others in their place, or remove them, first")]
    HasReplicas {
        /// Which.
        node: NodeId,
        /// How many.
        replicas: usize,
    },
}

/// Decides on a drain, or its end: a drained node leads nothing that another replica in sync can lead. No commits: it is
/// so already.
pub fn drain(state: &ClusterState, node: NodeId, is_drained: bool) -> Result<Vec<Vec<Op>>, DrainError> {
    let key = Subject::Intent(node).key();
    let record = NodeIntent { node, is_drained };
    match state.intents.get(&node) {
        Some(stored) if **stored == record => Ok(Vec::new()),
        Some(stored) => Ok(vec![vec![Op::Put { key, value: record.encode(), version: stored.version }]]),
        None if state.nodes.contains_key(&node) => {
            Ok(vec![vec![Op::Create { key, value: record.encode(), is_ephemeral: false }]])
        }
        None => Err(DrainError::UnknownNode { node }),
    }
}

/// Partitions that a node leads now: 0 when a drain has done its work.
pub fn leaders_on(state: &ClusterState, node: NodeId) -> usize {
    let leads = |leader: crate::cluster::PartitionLeader| leader.replica.node == node;
    state.partitions.values().filter(|record| record.leader.is_some_and(leads)).count()
}

/// Decides on forgetting a node that is gone for good: nothing is expected of it any more, nor has it to delete
/// anything.
pub fn forget_node(state: &ClusterState, node: NodeId) -> Result<Vec<Vec<Op>>, ForgetNodeError> {
    if state.nodes.contains_key(&node) {
        return Err(ForgetNodeError::Runs { node });
    }
    let intent = state.intents.get(&node).ok_or(ForgetNodeError::UnknownNode { node })?;
    let replicas = state.partitions.values().filter(|record| record.on_node(node).is_some()).count();
    if replicas > 0 {
        return Err(ForgetNodeError::HasReplicas { node, replicas });
    }
    let mut commits = Commits::new(vec![]);
    for (id, stored) in state.removals_of(node) {
        commits.add([Op::Delete { key: Subject::Removal(id).key(), version: stored.version }]);
    }
    // The last thing: until then the node is known, and this can be asked for again.
    commits.add([Op::Delete { key: Subject::Intent(node).key(), version: intent.version }]);
    Ok(commits.finish())
}
