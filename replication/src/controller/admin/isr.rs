//! What leaders ask for: another ISR.
//!
//! Owns: whether a leader's proposal may be stored.

use crate::assignment::IsrProposal;
use crate::cluster::keys::Subject;
use crate::cluster::{ClusterState, PartitionRecord, Stored};
use crate::controller::Standing;
use crate::coordination::Op;
use crate::replica::ReplicaId;

/// Why an ISR is not stored. The leader goes on with what it has and proposes again when it has seen the newest state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IsrRefused {
    /// The partition has changed, or has another leader, or is gone.
    #[error("the partition has changed meanwhile")]
    Stale,
    /// A member that would join must not lead: its node does not run, or it says that its log is not in order.
    #[error("{replica} cannot join the ISR: its node does not run, or its log is not in order")]
    Unfit {
        /// Which.
        replica: ReplicaId,
    },
}

/// The commit that stores a leader's proposal.
///
/// Whoever joins must be registered (KIP-841: otherwise a node that is cut off from the store would leave the ISR by the
/// controller's hand and come back by the leader's, again and again) and have its log. One that is not verified yet
/// may: it is how it becomes electable again.
pub fn change_isr(state: &ClusterState, proposal: &IsrProposal) -> Result<Vec<Op>, IsrRefused> {
    let stored = state.partitions.get(&proposal.partition).ok_or(IsrRefused::Stale)?;
    let is_of_leader = stored.leader.is_some_and(|leader| leader.replica == proposal.leader)
        && stored.leader_epoch == proposal.leader_epoch;
    if stored.version != proposal.version || !is_of_leader {
        return Err(IsrRefused::Stale);
    }
    for member in proposal.isr.iter().filter(|member| !stored.isr.contains(member)) {
        let place = stored.replica(*member).ok_or(IsrRefused::Stale)?;
        if !Standing::of(state, place).can_serve() {
            return Err(IsrRefused::Unfit { replica: *member });
        }
    }
    let next = PartitionRecord { isr: proposal.isr.clone(), ..(*stored.record).clone() };
    next.check().map_err(|_| IsrRefused::Stale)?;
    let key = Subject::Partition(proposal.partition).key();
    Ok(vec![Op::Put { key, value: next.encode(), version: stored.version }])
}
