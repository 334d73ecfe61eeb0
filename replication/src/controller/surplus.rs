//! Replicas that are not needed any more: somebody else was added in the place of a dead one.
//!
//! Owns: the rule. An operator replaces a dead node by adding a replica elsewhere; once that one is in sync, the dead
//! one is taken off the list by itself.
//! Invariant: only a replica whose node does not run goes, never a member of the ISR, and never below the number that
//! the topic wants; which of several healthy replicas goes is for an operator to say.

use super::standing::Standing;
use crate::cluster::{PartitionRecord, ReplicaRecord};
use crate::replica::ReplicaId;

/// The replica that goes, if one does. `wanted`: number of replicas that the topic asks for.
pub(super) fn surplus(
    record: &PartitionRecord,
    wanted: u16,
    standing: &impl Fn(&ReplicaRecord) -> Standing,
) -> Option<ReplicaRecord> {
    if record.replicas.len() <= usize::from(wanted) {
        return None;
    }
    let is_dead = |r: &ReplicaRecord| standing(r).incarnation.is_none() && !record.isr.contains(&r.id());
    let dead = record.replicas.iter().rev().find(|replica| is_dead(replica))?;
    let in_sync = |r: &&ReplicaRecord| record.isr.contains(&r.id()) && standing(r).is_sound();
    (record.replicas.iter().filter(in_sync).count() >= usize::from(wanted)).then_some(*dead)
}

/// The record without a replica that is not in the ISR.
pub(super) fn without(record: &PartitionRecord, gone: ReplicaId) -> PartitionRecord {
    let mut next = record.clone();
    next.replicas.retain(|replica| replica.id() != gone);
    next
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Standings, record, standings};
    use super::*;

    fn check(before: &str, nodes: &str, goes: Option<u32>) {
        let Standings(table) = standings(nodes);
        let standing = |replica: &ReplicaRecord| table.get(&replica.node).copied().unwrap_or_default();
        let found = surplus(&record(before), 3, &standing);
        assert_eq!(found.map(|replica| replica.node.0), goes, "{before} with {nodes}");
    }

    #[test]
    fn a_dead_replica_goes_once_its_successor_is_in_sync() {
        check("1* 2* 3 4 / 1.1 e5", "1.1 2.1 4.1", None);
        check("1* 2* 3 4* / 1.1 e5", "1.1 2.1 4.1", Some(3));
        check("1* 2* 3 4* 5 / 1.1 e5", "1.1 2.1 4.1", Some(5));
    }

    #[test]
    fn others_stay() {
        check("1* 2* 3* 4* / 1.1 e5", "1.1 2.1 3.1 4.1", None);
        check("1* 2* 3* 4* / 1.1 e5", "1.1 2.1 4.1", None);
        check("1* 2* 3 / 1.1 e5", "1.1 2.1", None);
        check("1* 2* 3 4* / 1.1 e5", "1.1 2.1 4.1:suspected", None);
    }
}
