//! Members that have to leave the ISR of a leader that stays.
//!
//! Owns: the rule. A leader finds out about slow followers by itself, in its own time; a follower that is known to be
//! dead, or to lack what it acked, leaves at once, so that `acks = all` need not wait for the leader's patience.
//! Invariant: the leader stays a member, and nobody is evicted twice for one and the same absence: if the leader takes
//! a member back that others believe dead, it knows better.
//! Crash story: a follower restarts after a power loss, without the tail that it had acked, sooner than the leader has
//! missed it. It is out of the ISR before the leader can die, and not electable until it has caught up.

use std::collections::BTreeSet;

use super::standing::Standing;
use crate::cluster::{PartitionRecord, ReplicaRecord};
use crate::replica::ReplicaId;

/// Decides who leaves the ISR of a partition that has a leader; returns what to store then.
///
/// `already_out`: replicas that have been outside the ISR since they were not sound any more.
pub(super) fn evict(
    record: &PartitionRecord,
    standing: &impl Fn(&ReplicaRecord) -> Standing,
    already_out: &BTreeSet<ReplicaId>,
) -> Option<PartitionRecord> {
    let leader = record.leader?.replica;
    let stays = |member: &ReplicaId| {
        let Some(place) = record.replica(*member) else { return false };
        let now = standing(place);
        *member == leader || now.is_sound() || (already_out.contains(member) && !now.is_lost())
    };
    let isr: Vec<ReplicaId> = record.isr.iter().copied().filter(stays).collect();
    (isr != record.isr).then(|| PartitionRecord { isr, ..record.clone() })
}

/// Keeps `out` up to date for one partition: who is not sound and has been seen outside the ISR since.
pub(super) fn note_absent(
    record: &PartitionRecord,
    standing: &impl Fn(&ReplicaRecord) -> Standing,
    before: &BTreeSet<ReplicaId>,
    out: &mut BTreeSet<ReplicaId>,
) {
    for replica in &record.replicas {
        let id = replica.id();
        let is_outside = !record.isr.contains(&id) || before.contains(&id);
        if is_outside && !standing(replica).is_sound() {
            out.insert(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{RecordText, Standings, log, record, standings};
    use super::*;
    use crate::replica::NodeId;

    fn check(before: &str, nodes: &str, already_out: &[u32], after: Option<&str>) {
        let Standings(table) = standings(nodes);
        let standing = |replica: &ReplicaRecord| table.get(&replica.node).copied().unwrap_or_default();
        let out = already_out.iter().map(|node| ReplicaId { node: NodeId(*node), log: log(*node) }).collect();
        let next = evict(&record(before), &standing, &out);
        assert_eq!(next.map(|next| RecordText(next).to_string()).as_deref(), after, "{before} with {nodes}");
    }

    #[test]
    fn the_dead_and_the_faulty_leave() {
        check("1* 2* 3* / 1.1 e5", "1.1 2.1 3.1", &[], None);
        check("1* 2* 3* / 1.1 e5", "1.1 2.1", &[], Some("1* 2* 3 / 1.1 e5"));
        check("1* 2* 3* / 1.1 e5", "1.1 2.1:suspected 3.1:failed", &[], Some("1* 2 3 / 1.1 e5"));
        check("1* 2* / 1.1 e5", "1.1 2.2:unverified", &[], Some("1* 2 / 1.1 e5"));
        check("1* 2* / 1.1 e5", "1.1 2.1:drained", &[], None);
    }

    #[test]
    fn the_leader_stays_and_without_one_all_do() {
        check("1* 2* / 1.1 e5", "1.1:suspected", &[], Some("1* 2 / 1.1 e5"));
        check("1* 2* / - e5", "", &[], None);
    }

    #[test]
    fn whom_the_leader_took_back_stays_unless_its_log_is_gone() {
        check("1* 2* / 1.1 e5", "1.1 2.1:suspected", &[2], None);
        check("1* 2* / 1.1 e5", "1.1 2.2:unverified", &[2], None);
        check("1* 2* / 1.1 e5", "1.1 2.2:lost", &[2], Some("1* 2 / 1.1 e5"));
    }

    #[test]
    fn absence_is_remembered_until_it_ends() {
        let note = |text: &str, nodes: &str, before: &BTreeSet<ReplicaId>| {
            let Standings(table) = standings(nodes);
            let standing = |replica: &ReplicaRecord| table.get(&replica.node).copied().unwrap_or_default();
            let mut out = BTreeSet::new();
            note_absent(&record(text), &standing, before, &mut out);
            out
        };
        let none = note("1* 2* / 1.1 e5", "1.1", &BTreeSet::new());
        assert!(none.is_empty(), "it is in the ISR still");
        let absent = note("1* 2 / 1.1 e5", "1.1", &none);
        assert_eq!(absent.len(), 1);
        assert_eq!(note("1* 2* / 1.1 e5", "1.1", &absent), absent, "the leader took it back");
        assert!(note("1* 2* / 1.1 e5", "1.1 2.1", &absent).is_empty());
    }
}
