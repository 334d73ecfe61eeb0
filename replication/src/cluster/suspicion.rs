//! Whose word counts: which nodes are taken for dead on what the others say about their processes.
//!
//! Owns: the rule. Evidence is faster than a session, and it may be wrong: a firewall that refuses connections looks
//! like a dead process. Wrong evidence never costs safety (epochs see to that), so the rule only has to keep one node
//! that is cut off from bringing down all the others.
//! Crash story: node 1 loses its network in a way that refuses connections. It suspects 2 and 3, both suspect it: only
//! node 1 is taken for dead. Nodes 1 and 2 refuse each other alone: neither is, their sessions decide.

use std::collections::BTreeSet;

use crate::replica::NodeId;

/// One node says of another, in its present incarnation, that nobody listens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Accusation {
    /// Who says so.
    pub(super) by: NodeId,
    /// About whom.
    pub(super) node: NodeId,
}

/// The nodes that are taken for dead.
///
/// `registered`: all that have a session. Accusations by or about others, and of oneself, count for nothing, nor do
/// those by a node that more than half of the others accuse. Of two that accuse each other, only the one with more
/// accusers can be dead. A node that alone accuses more than half of the others is itself cut off.
pub(super) fn dead_nodes(registered: &BTreeSet<NodeId>, accusations: &[Accusation]) -> BTreeSet<NodeId> {
    let valid: BTreeSet<Accusation> = accusations
        .iter()
        .filter(|a| a.by != a.node && registered.contains(&a.by) && registered.contains(&a.node))
        .copied()
        .collect();
    let others = registered.len().saturating_sub(1);
    let accusers = |node: NodeId| valid.iter().filter(|a| a.node == node).count();
    let is_believed = |a: &Accusation| {
        let is_mutual = valid.contains(&Accusation { by: a.node, node: a.by });
        accusers(a.by) * 2 <= others && (!is_mutual || accusers(a.node) > accusers(a.by))
    };
    let believed: Vec<Accusation> = valid.iter().filter(|a| is_believed(a)).copied().collect();
    let is_wide = |by: NodeId| others > 1 && believed.iter().filter(|a| a.by == by).count() * 2 > others;
    let is_alone = |node: NodeId| believed.iter().filter(|a| a.node == node).count() == 1;
    believed.iter().filter(|a| !(is_wide(a.by) && is_alone(a.node))).map(|a| a.node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(nodes: u32, accusations: &[(u32, u32)], dead: &[u32]) {
        let registered = (1..=nodes).map(NodeId).collect();
        let list: Vec<Accusation> = accusations
            .iter()
            .map(|(by, node)| Accusation { by: NodeId(*by), node: NodeId(*node) })
            .collect();
        let expected: BTreeSet<NodeId> = dead.iter().copied().map(NodeId).collect();
        assert_eq!(dead_nodes(&registered, &list), expected, "{nodes} nodes, {accusations:?}");
    }

    #[test]
    fn a_refused_process_is_dead() {
        check(3, &[], &[]);
        check(2, &[(1, 2)], &[2]);
        check(3, &[(1, 3)], &[3]);
        check(3, &[(1, 3), (2, 3)], &[3]);
        check(5, &[(1, 3), (1, 4)], &[3, 4]);
    }

    #[test]
    fn nobody_speaks_for_strangers_or_of_itself() {
        check(2, &[(1, 1)], &[]);
        check(2, &[(3, 1), (1, 3)], &[]);
        check(0, &[(1, 2)], &[]);
    }

    #[test]
    fn a_node_cut_off_takes_nobody_with_it() {
        check(3, &[(1, 2), (1, 3), (2, 1), (3, 1)], &[1]);
        // It does not even hear that the others have no trouble with it.
        check(3, &[(1, 2), (1, 3)], &[]);
        check(5, &[(1, 2), (1, 3), (1, 4)], &[]);
        // One of them is really dead, and another one says so too.
        check(5, &[(1, 2), (1, 3), (1, 4), (5, 3)], &[3]);
        // What a dead node said before it died about a third one is forgotten.
        check(3, &[(3, 2), (1, 3), (2, 3)], &[3]);
    }

    #[test]
    fn two_that_accuse_each_other_wait_for_their_sessions() {
        check(2, &[(1, 2), (2, 1)], &[]);
        check(3, &[(1, 2), (2, 1)], &[]);
        check(3, &[(1, 2), (2, 1), (3, 2)], &[2]);
        check(3, &[(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)], &[]);
    }
}
