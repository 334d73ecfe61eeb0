//! Who leads a partition: elections from the ISR.
//!
//! Owns: the choice. Facts in, the next record out.
//! Invariant: a leader is a member of the ISR as stored before the election; each leadership has an epoch of its own,
//! also when the same replica leads again after a restart; the ISR never becomes empty.
//! Crash story: the only member of the ISR goes away. Nobody leads, and the ISR keeps naming it: it alone has everything
//! that was acked. Whoever else is there is elected by an operator's explicit order or not at all (`admin/leaders.rs`).

use super::standing::{Standing, is_serving};
use crate::cluster::{PartitionLeader, PartitionRecord, ReplicaRecord};
use crate::replica::ReplicaId;

/// Decides whether a partition needs another leader; returns what to store then.
///
/// A leader that does its work stays, unless its node is drained, stopping or suspected and another member of the ISR
/// can take over. Members that are not sound leave the ISR in the same write: the new leader need not wait for them.
pub(super) fn elect(
    record: &PartitionRecord,
    standing: &impl Fn(&ReplicaRecord) -> Standing,
) -> Option<PartitionRecord> {
    let best = best(record, standing);
    let choice = match record.leader {
        None => best,
        Some(leader) => {
            let now = record.replica(leader.replica).map(standing).unwrap_or_default();
            if !is_serving(record, leader, now) {
                best
            } else if now.is_suspected {
                // Nothing is won by taking the leadership from it if nobody else can have it.
                best.or(Some(leader))
            } else {
                let is_less_reluctant = |other: &PartitionLeader| {
                    let place = record.replica(other.replica);
                    place.is_some_and(|place| standing(place).reluctance < now.reluctance)
                };
                best.filter(is_less_reluctant).or(Some(leader))
            }
        }
    };
    if choice == record.leader {
        return None;
    }
    Some(match choice {
        Some(leader) => led_by(record, leader, standing),
        None => PartitionRecord { leader: None, ..record.clone() },
    })
}

/// The record under another leader, a member of the ISR: the next epoch, without the members that are not sound.
pub(super) fn led_by(
    record: &PartitionRecord,
    leader: PartitionLeader,
    standing: &impl Fn(&ReplicaRecord) -> Standing,
) -> PartitionRecord {
    let stays = |member: &ReplicaId| {
        *member == leader.replica || record.replica(*member).is_some_and(|place| standing(place).is_sound())
    };
    let isr = record.isr.iter().copied().filter(stays).collect();
    #[cfg(feature = "canary")]
    let isr = with_outsider(isr, leader.replica);
    PartitionRecord { isr, leader: Some(leader), leader_epoch: record.leader_epoch.next(), ..record.clone() }
}

#[cfg(feature = "canary")]
fn with_outsider(mut isr: Vec<ReplicaId>, leader: ReplicaId) -> Vec<ReplicaId> {
    if !isr.contains(&leader) {
        isr.push(leader);
    }
    isr
}

/// The sound member of the ISR that is least reluctant; among equals the first in the order of preference.
pub(super) fn best(
    record: &PartitionRecord,
    standing: &impl Fn(&ReplicaRecord) -> Standing,
) -> Option<PartitionLeader> {
    let is_candidate = |replica: &ReplicaRecord| {
        let is_in_sync = record.isr.contains(&replica.id());
        #[cfg(feature = "canary")]
        let is_in_sync = is_in_sync || crate::canary::is_planted(crate::canary::Canary::ElectOutsideIsr);
        is_in_sync
    };
    let sound = record.replicas.iter().filter(|replica| is_candidate(replica)).filter_map(|replica| {
        let now = standing(replica);
        let incarnation = now.incarnation.filter(|_| now.is_sound())?;
        Some((now.reluctance, PartitionLeader { replica: replica.id(), incarnation }))
    });
    // Of equals the first stays.
    sound.min_by_key(|(reluctance, _)| *reluctance).map(|(_, leader)| leader)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{RecordText, Standings, record, standings};
    use super::*;

    /// `before`: replicas, `*` marks the ISR; leader; epoch. `nodes`: see `fixture.rs`.
    fn check(before: &str, nodes: &str, after: Option<&str>) {
        let Standings(table) = standings(nodes);
        let standing = |replica: &ReplicaRecord| table.get(&replica.node).copied().unwrap_or_default();
        let record = record(before);
        let next = elect(&record, &standing);
        if let Some(next) = &next {
            next.check().expect("what is stored is in order");
        }
        assert_eq!(next.map(|next| RecordText(next).to_string()).as_deref(), after, "{before} with {nodes}");
    }

    #[test]
    fn a_leader_at_work_stays() {
        check("1* 2* 3* / 1.1 e5", "1.1 2.1 3.1", None);
        check("1* 2* 3* / 2.1 e5", "1.1 2.1 3.1", None);
        check("1* 2* / 1.1 e5", "1.1", None);
    }

    #[test]
    fn the_first_of_the_isr_takes_over_and_the_dead_leave_it() {
        check("1* 2* 3* / 1.1 e5", "2.1 3.1", Some("1 2* 3* / 2.1 e6"));
        check("1* 2* 3* / 1.1 e5", "3.7", Some("1 2 3* / 3.7 e6"));
        check("1* 2 3* / 1.1 e5", "2.1 3.1", Some("1 2 3* / 3.1 e6"));
        check("1* 2* 3* / 3.1 e5", "1.1 2.1", Some("1* 2* 3 / 1.1 e6"));
    }

    #[test]
    fn nobody_leads_if_the_isr_is_gone_and_it_is_remembered() {
        check("1* 2 3 / 1.1 e5", "2.1 3.1", Some("1* 2 3 / - e5"));
        check("1* 2* 3 / 1.1 e5", "3.1", Some("1* 2* 3 / - e5"));
        check("1* 2 3 / - e5", "2.1 3.1", None);
        check("1* 2 3 / - e5", "1.2 2.1 3.1", Some("1* 2 3 / 1.2 e6"));
    }

    #[test]
    fn a_new_partition_gets_its_preferred_leader() {
        check("2* 1* 3* / - e0", "1.1 2.1 3.1", Some("2* 1* 3* / 2.1 e1"));
        check("2* 1* 3* / - e0", "1.1 3.1", Some("2 1* 3* / 1.1 e1"));
    }

    #[test]
    fn another_start_of_the_leader_leads_in_another_epoch() {
        check("1* 2* / 1.1 e5", "1.2 2.1", Some("1* 2* / 1.2 e6"));
        check("1* 2 / 1.1 e5", "1.2 2.1", Some("1* 2 / 1.2 e6"));
        check("1* 2* / 2.1 e5", "1.1 2.2", Some("1* 2* / 1.1 e6"));
    }

    #[test]
    fn a_fault_takes_the_leadership_away() {
        check("1* 2* 3* / 1.1 e5", "1.1:failed 2.1 3.1", Some("1 2* 3* / 2.1 e6"));
        check("1* 2* 3* / 1.1 e5", "1.1:lost 2.1 3.1", Some("1 2* 3* / 2.1 e6"));
        check("1* 2* 3* / 1.1 e5", "1.1:nodir 2.1 3.1", Some("1 2* 3* / 2.1 e6"));
        check("1* 2* 3* / 1.1 e5", "1.1:unverified 2.1 3.1", Some("1 2* 3* / 2.1 e6"));
        check("1* 2 / 1.1 e5", "1.1:failed 2.1", Some("1* 2 / - e5"));
        check("1* 2* / 1.1 e5", "2.1:failed", Some("1* 2* / - e5"));
        check("1* 2* 3* / 1.1 e5", "2.1:unverified 3.1", Some("1 2 3* / 3.1 e6"));
        check("1* 2 / - e5", "1.2:unverified 2.1", None);
    }

    #[test]
    fn the_reluctant_lead_only_if_nobody_else_can() {
        check("1* 2* 3* / 1.1 e5", "1.1:drained 2.1 3.1", Some("1* 2* 3* / 2.1 e6"));
        check("1* 2* 3* / 1.1 e5", "1.1:drained 2.1:drained 3.1", Some("1* 2* 3* / 3.1 e6"));
        check("1* 2 3 / 1.1 e5", "1.1:drained 2.1 3.1", None);
        check("1* 2* / 1.1 e5", "1.1:drained 2.1:drained", None);
        check("1* 2* / 1.1 e5", "1.2:drained", Some("1* 2 / 1.2 e6"));
        check("1* 2* / - e5", "1.1:drained 2.1", Some("1* 2* / 2.1 e6"));
        check("1* 2* / 1.1 e5", "1.1:stopping 2.1:drained", Some("1* 2* / 2.1 e6"));
        check("1* 2* / 1.1 e5", "1.1:drained 2.1:stopping", None);
        check("1* 2* 3* / 1.1 e5", "2.1:stopping 3.1:drained", Some("1 2* 3* / 3.1 e6"));
    }

    #[test]
    fn suspicion_moves_a_leadership_but_never_ends_the_last_one() {
        check("1* 2* 3* / 1.1 e5", "1.1:suspected 2.1 3.1", Some("1 2* 3* / 2.1 e6"));
        check("1* 2* / 1.1 e5", "1.1:suspected 2.1:drained", Some("1 2* / 2.1 e6"));
        check("1* 2 / 1.1 e5", "1.1:suspected 2.1", None);
        check("1* 2* / 1.1 e5", "1.1:suspected 2.1:suspected", None);
        check("1* 2 / - e5", "1.1:suspected 2.1", None);
    }
}
