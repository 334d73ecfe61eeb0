//! Leadership back in balance: after a failure to the preferred leaders, after growth by preferring others.
//!
//! Owns: two rules. (1) A partition is led by its preferred leader again once that one has been in sync, and fit to lead,
//! for some time without a break. (2) If some nodes are preferred by more partitions than others, partitions prefer
//! another of their in-sync replicas, until the numbers differ by one at most or nothing can be won.
//! Invariant: only members of the ISR get a leadership, and a round moves a bounded number: each move costs the clients
//! of its partition a moment.
//! Not here: moves that cannot wait (`election.rs`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use corelog_engine::TopicPartition;

use super::election::led_by;
use super::standing::Standing;
use crate::cluster::{PartitionLeader, PartitionRecord, ReplicaRecord};
use crate::replica::NodeId;

/// The record under the preferred leader, if that one is not the leader and could be at once.
pub(super) fn to_preferred(
    record: &PartitionRecord,
    standing: &impl Fn(&ReplicaRecord) -> Standing,
) -> Option<PartitionRecord> {
    let leader = record.leader?;
    let preferred = record.replicas.first()?;
    let now = standing(preferred);
    let is_fit = record.isr.contains(&preferred.id()) && now.is_willing();
    if leader.replica == preferred.id() || !is_fit {
        return None;
    }
    let leader = PartitionLeader { replica: preferred.id(), incarnation: now.incarnation? };
    Some(led_by(record, leader, standing))
}

/// One partition, as the second rule sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Preference {
    /// Which.
    pub(super) partition: TopicPartition,
    /// Who is preferred.
    pub(super) preferred: NodeId,
    /// Who could be: has a replica that is in sync and fit to lead.
    pub(super) others: Vec<NodeId>,
}

/// Which partitions should prefer another node, and which one. At most `moves_max`.
///
/// Finds the shortest chain of partitions that takes one from the node that is preferred most and gives one to a node
/// that is preferred less by at least two, and begins again until there is no such chain.
pub(super) fn spread(mut partitions: Vec<Preference>, moves_max: usize) -> Vec<(TopicPartition, NodeId)> {
    let mut counts: BTreeMap<NodeId, usize> = BTreeMap::new();
    for partition in &partitions {
        *counts.entry(partition.preferred).or_default() += 1;
        for node in &partition.others {
            counts.entry(*node).or_default();
        }
    }
    let mut moves = Vec::new();
    while moves.len() < moves_max && is_uneven(&counts) {
        let links = links(&partitions);
        let mut sources: Vec<NodeId> = counts.keys().copied().collect();
        sources.sort_by_key(|node| std::cmp::Reverse(counts[node]));
        let Some(chain) = sources.iter().find_map(|from| chain(&links, &counts, *from)) else { break };
        for (at, to) in chain {
            let partition = &mut partitions[at];
            let from = std::mem::replace(&mut partition.preferred, to);
            partition.others.retain(|node| *node != to);
            partition.others.push(from);
            *counts.entry(from).or_default() -= 1;
            *counts.entry(to).or_default() += 1;
            moves.push((partition.partition, to));
        }
    }
    // A partition that was moved twice is stored once, at its last place.
    let last: BTreeMap<TopicPartition, NodeId> = moves.into_iter().collect();
    last.into_iter().collect()
}

fn is_uneven(counts: &BTreeMap<NodeId, usize>) -> bool {
    let (least, most) = (counts.values().min(), counts.values().max());
    least.zip(most).is_some_and(|(least, most)| least + 2 <= *most)
}

/// For each pair of nodes one partition, by index, that could change from the first to the second.
type Links = BTreeMap<NodeId, BTreeMap<NodeId, usize>>;

fn links(partitions: &[Preference]) -> Links {
    let mut links = Links::new();
    for (at, partition) in partitions.iter().enumerate() {
        for to in &partition.others {
            links.entry(partition.preferred).or_default().entry(*to).or_insert(at);
        }
    }
    links
}

/// The shortest chain of changes (partition by index, whom it prefers then) that ends at a node which is preferred less
/// than `from` by two or more.
fn chain(links: &Links, counts: &BTreeMap<NodeId, usize>, from: NodeId) -> Option<Vec<(usize, NodeId)>> {
    let count = |node: &NodeId| counts.get(node).copied().unwrap_or(0);
    let mut came_by: BTreeMap<NodeId, (NodeId, usize)> = BTreeMap::new();
    let mut seen = BTreeSet::from([from]);
    let mut queue = VecDeque::from([from]);
    while let Some(node) = queue.pop_front() {
        if count(&node) + 2 <= count(&from) {
            let mut chain = Vec::new();
            let mut at = node;
            while let Some((before, partition)) = came_by.get(&at) {
                chain.push((*partition, at));
                at = *before;
            }
            return Some(chain);
        }
        for (to, partition) in links.get(&node).into_iter().flatten() {
            if seen.insert(*to) {
                came_by.insert(*to, (node, *partition));
                queue.push_back(*to);
            }
        }
    }
    None
}

/// The record with another preferred leader, which must be a replica on `node`; the leadership itself does not change.
pub(super) fn preferring(record: &PartitionRecord, node: NodeId) -> Option<PartitionRecord> {
    let at = record.replicas.iter().position(|replica| replica.node == node)?;
    let mut next = record.clone();
    next.replicas.swap(0, at);
    Some(next)
}

#[cfg(test)]
mod tests {
    use corelog_engine::{PartitionId, TopicId};

    use super::super::fixture::{RecordText, Standings, record, standings};
    use super::*;

    fn check_move(before: &str, nodes: &str, after: Option<&str>) {
        let Standings(table) = standings(nodes);
        let standing = |replica: &ReplicaRecord| table.get(&replica.node).copied().unwrap_or_default();
        let next = to_preferred(&record(before), &standing);
        assert_eq!(next.map(|next| RecordText(next).to_string()).as_deref(), after, "{before} with {nodes}");
    }

    #[test]
    fn a_fit_preferred_leader_leads_again() {
        check_move("1* 2* / 2.1 e5", "1.1 2.1", Some("1* 2* / 1.1 e6"));
        check_move("1* 2* / 1.1 e5", "1.1 2.1", None);
    }

    #[test]
    fn others_wait() {
        check_move("1 2* / 2.1 e5", "1.1 2.1", None);
        check_move("1* 2* / 2.1 e5", "2.1", None);
        check_move("1* 2* / 2.1 e5", "1.1:drained 2.1", None);
        check_move("1* 2* / 2.1 e5", "1.1:unverified 2.1", None);
        check_move("1* 2* / - e5", "1.1 2.1", None);
    }

    /// Partitions as `preferred: others`; expected: how many prefer each node afterwards.
    fn check_spread(partitions: &[(u32, &[u32])], moves: usize, after: &[usize]) {
        let list: Vec<Preference> = (0..)
            .zip(partitions)
            .map(|(number, (preferred, others))| Preference {
                partition: TopicPartition { topic: TopicId(1), partition: PartitionId(number) },
                preferred: NodeId(*preferred),
                others: others.iter().copied().map(NodeId).collect(),
            })
            .collect();
        let found = spread(list.clone(), 100);
        assert_eq!(found.len(), moves, "{found:?}");
        let mut preferred: Vec<u32> = list.iter().map(|partition| partition.preferred.0).collect();
        for (partition, node) in found {
            let at = partition.partition.0 as usize;
            assert!(list[at].others.contains(&node), "{node} has no replica in sync of {partition:?}");
            preferred[at] = node.0;
        }
        let counts: Vec<usize> =
            (1..=after.len()).map(|node| preferred.iter().filter(|p| **p as usize == node).count()).collect();
        assert_eq!(counts, after);
    }

    #[test]
    fn preferences_spread_where_replicas_allow() {
        check_spread(&[], 0, &[]);
        check_spread(&[(1, &[2]), (2, &[1])], 0, &[1, 1]);
        check_spread(&[(1, &[2]), (1, &[2])], 1, &[1, 1]);
        check_spread(&[(1, &[2, 3][..]); 9], 6, &[3, 3, 3]);
        check_spread(&[(1, &[][..]); 9], 0, &[9]);
        check_spread(&[(1, &[2]), (1, &[2]), (1, &[2])], 1, &[2, 1]);
    }

    #[test]
    fn a_chain_of_changes_reaches_whom_no_single_one_does() {
        let chained: &[(u32, &[u32])] = &[
            (1, &[2]),
            (1, &[2]),
            (1, &[2]),
            (1, &[2]),
            (2, &[3]),
            (2, &[3]),
            (2, &[3]),
            (3, &[2]),
            (3, &[2]),
        ];
        check_spread(chained, 2, &[3, 3, 3]);
    }

    #[test]
    fn a_round_is_bounded() {
        let list = |number| Preference {
            partition: TopicPartition { topic: TopicId(1), partition: PartitionId(number) },
            preferred: NodeId(1),
            others: vec![NodeId(2)],
        };
        assert_eq!(spread((0..100).map(list).collect(), 5).len(), 5);
    }

    #[test]
    fn preferring_another_changes_the_order_alone() {
        let next = preferring(&record("1* 2* 3 / 1.1 e5"), NodeId(2)).expect("2 has a replica");
        assert_eq!(RecordText(next).to_string(), "2* 1* 3 / 1.1 e5");
        assert_eq!(preferring(&record("1* / 1.1 e5"), NodeId(2)), None);
    }
}
