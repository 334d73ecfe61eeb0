//! A leader's wish for another ISR, checked against the picture of the cluster. Pure.
//!
//! Owns: which wishes are sent to the store. Whatever passes here still has to win its compare-and-set.
//! Invariant: nobody joins who is not registered, is suspected, or has said that it must not lead: a member that
//! could not take over would only hold the high watermark.
//! Crash story: the leader was deposed while its wish was on its way. The record has another version, so the wish
//! is refused here or by the store, and the deposed leader keeps the larger set until it hears of its successor.

use crate::assignment::IsrProposal;
use crate::cluster::keys::Subject;
use crate::cluster::{ClusterState, FaultKind, PartitionRecord, Stored};
use crate::coordination::Op;
use crate::replica::ReplicaId;

/// Why a wish is not sent. The leader waits for the next assignment, or looks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// The partition is gone.
    #[error("the partition does not exist")]
    Unknown,
    /// The record is newer than what the leader has seen, or the picture here is older.
    #[error("the partition has changed meanwhile")]
    Stale,
    /// Another replica leads, or the same one in another epoch.
    #[error("not the leader any more")]
    NotLeader,
    /// It names somebody who may not be a member.
    #[error("a member is not a replica, or its node does not run")]
    NotEligible,
}

/// The change to commit.
pub(super) fn change(cluster: &ClusterState, proposal: &IsrProposal) -> Result<Op, Refusal> {
    let stored = cluster.partitions.get(&proposal.partition).ok_or(Refusal::Unknown)?;
    if stored.version != proposal.version {
        return Err(Refusal::Stale);
    }
    let leader = stored.record.leader.as_ref().ok_or(Refusal::NotLeader)?;
    if leader.replica != proposal.leader || stored.record.leader_epoch != proposal.leader_epoch {
        return Err(Refusal::NotLeader);
    }
    let mut joining = proposal.isr.iter().filter(|member| !stored.record.isr.contains(member));
    let may_join = |member: &&ReplicaId| {
        stored.record.replicas.iter().any(|replica| replica.id() == **member)
            && cluster.is_live(member.node)
            && !cluster.nodes.get(&member.node).is_some_and(|node| node.is_stopping)
            && cluster.faults.get(*member).is_none_or(|fault| fault.kind == FaultKind::Unverified)
    };
    if !proposal.isr.contains(&proposal.leader) || !joining.all(|member| may_join(&member)) {
        return Err(Refusal::NotEligible);
    }
    let mut record = PartitionRecord::clone(&stored.record);
    record.isr.clone_from(&proposal.isr);
    Ok(Op::Put {
        key: Subject::Partition(proposal.partition).key(),
        value: record.encode(),
        version: stored.version,
    })
}

#[cfg(test)]
mod tests {
    use corelog_engine::{LeaderEpoch, LogId, PartitionId, TopicId, TopicPartition};

    use super::*;
    use crate::agent::tests::{cluster, registered};
    use crate::cluster::{DataDirId, Incarnation, PartitionLeader, ReplicaFault, ReplicaRecord};
    use crate::coordination::Version;
    use crate::replica::NodeId;

    const ID: TopicPartition = TopicPartition { topic: TopicId(9), partition: PartitionId(0) };

    fn replica(node: u32) -> ReplicaId {
        ReplicaId { node: NodeId(node), log: LogId(u128::from(node)) }
    }

    fn isr(nodes: &[u32]) -> Vec<ReplicaId> {
        nodes.iter().map(|node| replica(*node)).collect()
    }

    /// A partition on nodes 1 to 3 that node 1 leads in epoch 5; 1 and 2 are in sync.
    fn there(live: &[u32], fault: Option<FaultKind>) -> ClusterState {
        let place = |node: u32| ReplicaRecord {
            node: NodeId(node),
            log: LogId(u128::from(node)),
            dir: DataDirId(1),
            shard: 0,
        };
        let record = PartitionRecord {
            replicas: vec![place(1), place(2), place(3)],
            isr: isr(&[1, 2]),
            leader: Some(PartitionLeader { replica: replica(1), incarnation: Incarnation(1) }),
            leader_epoch: LeaderEpoch(5),
            unclean_epoch: None,
        };
        let mut keys = registered(live);
        keys.push((Subject::Partition(ID).key(), record.encode()));
        keys.extend(fault.map(|kind| {
            let fault = ReplicaFault { replica: replica(3), kind, reason: "test".to_owned() };
            (Subject::Fault(replica(3)).key(), fault.encode())
        }));
        cluster(keys)
    }

    fn wish(nodes: &[u32]) -> IsrProposal {
        IsrProposal {
            partition: ID,
            leader: replica(1),
            leader_epoch: LeaderEpoch(5),
            version: Version(0),
            isr: isr(nodes),
        }
    }

    fn check(cluster: &ClusterState, wish: &IsrProposal, expected: Result<&[u32], Refusal>) {
        let stored = change(cluster, wish).map(|op| match op {
            Op::Put { value, .. } => PartitionRecord::decode(&value).expect("a partition").isr,
            other => panic!("{other:?}"),
        });
        assert_eq!(stored, expected.map(isr));
    }

    #[test]
    fn the_leader_shrinks_and_grows_its_isr() {
        check(&there(&[1, 2, 3], None), &wish(&[1]), Ok(&[1]));
        check(&there(&[1, 2, 3], None), &wish(&[1, 2, 3]), Ok(&[1, 2, 3]));
    }

    #[test]
    fn who_does_not_run_or_must_not_lead_does_not_join() {
        check(&there(&[1, 2], None), &wish(&[1, 2, 3]), Err(Refusal::NotEligible));
        let failed = there(&[1, 2, 3], Some(FaultKind::Failed));
        check(&failed, &wish(&[1, 2, 3]), Err(Refusal::NotEligible));
        // One that is not verified becomes so by catching up, which is what joining means.
        check(&there(&[1, 2, 3], Some(FaultKind::Unverified)), &wish(&[1, 2, 3]), Ok(&[1, 2, 3]));
        check(&there(&[1, 2, 3], None), &wish(&[1, 7]), Err(Refusal::NotEligible));
        check(&there(&[1, 2, 3], None), &wish(&[2]), Err(Refusal::NotEligible));
    }

    #[test]
    fn deposed_and_late_leaders_change_nothing() {
        let stale = IsrProposal { version: Version(4), ..wish(&[1]) };
        check(&there(&[1, 2, 3], None), &stale, Err(Refusal::Stale));
        let deposed = IsrProposal { leader_epoch: LeaderEpoch(4), ..wish(&[1]) };
        check(&there(&[1, 2, 3], None), &deposed, Err(Refusal::NotLeader));
        let other = IsrProposal { leader: replica(2), ..wish(&[2]) };
        check(&there(&[1, 2, 3], None), &other, Err(Refusal::NotLeader));
        check(&cluster(registered(&[1])), &wish(&[1]), Err(Refusal::Unknown));
    }
}
