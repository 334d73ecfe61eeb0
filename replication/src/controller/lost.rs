//! Replicas whose log is gone although their node runs: a disk was replaced, or a directory deleted.
//!
//! Owns: the rule by which somebody new takes their place. A log is made once; whatever stands in the place of a lost
//! one is another replica, outside the ISR, that has to copy everything.
//! Invariant: a member of the ISR is never replaced. If it is the only one, the partition is offline until its disk is
//! back, or until an operator gives its records up: replacing it would pretend that an empty log is all there was.
//! Crash story: a node comes back with an empty disk under its old number. By its node id it would be in sync, with
//! nothing in its log, and could be elected.

use corelog_engine::LogId;

use super::standing::Standing;
use crate::cluster::{DataDirId, PartitionRecord, ReplicaRecord};
use crate::replica::NodeId;

/// A record with somebody new in the place of lost replicas, and what to do about the old logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Replacement {
    /// What to store.
    pub(super) record: PartitionRecord,
    /// Logs whose data directory is there: the node deletes what is left of them.
    pub(super) old: Vec<ReplicaRecord>,
}

/// Decides which replicas are replaced. `None`: none is.
///
/// `dir_for`: the data directory that a node has for a new log; `None`: it has none now.
pub(super) fn replace_lost(
    record: &PartitionRecord,
    standing: &impl Fn(&ReplicaRecord) -> Standing,
    dir_for: &mut dyn FnMut(NodeId) -> Option<DataDirId>,
    random: &mut dyn FnMut() -> u128,
) -> Option<Replacement> {
    let mut replacement = Replacement { record: record.clone(), old: vec![] };
    for at in 0..record.replicas.len() {
        let lost = record.replicas[at];
        let now = standing(&lost);
        if !now.is_lost() || record.isr.contains(&lost.id()) {
            continue;
        }
        let Some(dir) = dir_for(lost.node) else { continue };
        replacement.record.replicas[at] = ReplicaRecord { log: LogId(random()), dir, ..lost };
        #[cfg(feature = "canary")]
        if crate::canary::is_planted(crate::canary::Canary::WipedReplicaInSync) {
            replacement.record.isr.push(replacement.record.replicas[at].id());
        }
        if !now.is_dir_missing {
            replacement.old.push(lost);
        }
    }
    (replacement.record != *record).then_some(replacement)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{RecordText, Standings, record, standings};
    use super::*;

    fn check(before: &str, nodes: &str, after: Option<(&str, &[u32])>) {
        let Standings(table) = standings(nodes);
        let standing = |replica: &ReplicaRecord| table.get(&replica.node).copied().unwrap_or_default();
        let mut dir_for = |node: NodeId| (node != NodeId(9)).then_some(DataDirId(77));
        let mut random = || 555;
        let next = replace_lost(&record(before), &standing, &mut dir_for, &mut random);
        let found = next.map(|next| {
            next.record.check().expect("what is stored is in order");
            let old: Vec<u32> = next.old.iter().map(|replica| replica.node.0).collect();
            (RecordText(next.record).to_string(), old)
        });
        assert_eq!(found, after.map(|(text, old)| (text.to_owned(), old.to_vec())), "{before} with {nodes}");
    }

    #[test]
    fn a_lost_replica_becomes_another_one_in_its_place() {
        check("1* 2* 3 / 1.1 e5", "1.1 2.1 3.2:lost", Some(("1* 2* 3@555 / 1.1 e5", &[3])));
        check("1 2* / 2.1 e5", "1.2:nodir 2.1", Some(("1@555 2* / 2.1 e5", &[])));
    }

    #[test]
    fn what_may_come_back_is_not_replaced() {
        check("1* 2 / 1.1 e5", "1.1", None);
        check("1* 2 / 1.1 e5", "1.1 2.1:failed", None);
        check("1* 2 / 1.1 e5", "1.1 2.1:unverified", None);
        check("1* 2 / 1.1 e5", "1.1 2.1:suspected", None);
    }

    #[test]
    fn the_last_one_in_sync_is_not_replaced() {
        check("1* 2 / - e5", "1.2:lost 2.1", None);
        check("1* 2* / - e5", "1.2:lost 2.1:nodir", None);
    }

    #[test]
    fn without_a_data_directory_it_waits() {
        check("1* 9 / 1.1 e5", "1.1 9.1:nodir", None);
    }
}
