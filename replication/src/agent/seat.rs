//! Who is the controller: taking the seat, and giving it up. Pure.
//!
//! Owns: the commits that do it. The seat is an ephemeral key; its term is numbered by a persistent one, which every
//! commit of a controller checks, so an old controller's commits fail from the moment that another takes the seat.
//! Crash story: the controller is killed. Its key lives on until its session expires; a node that has evidence of
//! its death removes the key and takes the seat in one commit. If the evidence was wrong, the old controller's next
//! commit fails its check, and nothing else happens.

use crate::cluster::keys::{CONTROLLER, CONTROLLER_EPOCH};
use crate::cluster::{ClusterState, ControllerEpoch, ControllerRecord, Incarnation, Stored};
use crate::coordination::{Op, Version};
use crate::replica::NodeId;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) node: NodeId,
    pub(super) incarnation: Incarnation,
    /// About to stop: takes no seat and gives up the one it has.
    pub(super) is_leaving: bool,
}

/// Whether the candidate has the seat.
pub(super) fn is_held(cluster: &ClusterState, candidate: Candidate) -> bool {
    cluster.controller.as_ref().is_some_and(|held| {
        (held.record.node, held.record.incarnation) == (candidate.node, candidate.incarnation)
            && cluster.controller_epoch.as_ref().is_some_and(|epoch| epoch.0 == held.epoch)
    })
}

/// The commit that changes who sits there, if there is anything to change.
pub(super) fn change(cluster: &ClusterState, candidate: Candidate) -> Option<Vec<Op>> {
    let holder = cluster.controller.as_ref();
    if candidate.is_leaving {
        let held = holder.filter(|_| is_held(cluster, candidate))?;
        let epoch = cluster.controller_epoch.as_ref()?;
        // A successor's key has the same version, because it was made anew: only the epoch tells them apart.
        return Some(vec![
            Op::Check { key: CONTROLLER_EPOCH.to_owned(), version: epoch.version },
            Op::Delete { key: CONTROLLER.to_owned(), version: held.version },
        ]);
    }
    // Whoever is not registered yet, or suspected itself, has no business there.
    if cluster.incarnation(candidate.node) != Some(candidate.incarnation) || !cluster.is_live(candidate.node)
    {
        return None;
    }
    match holder {
        None => Some(take(cluster, candidate, None)),
        Some(held) if is_gone(cluster, &held.record) => Some(take(cluster, candidate, Some(held.version))),
        Some(_) => None,
    }
}

/// Its node does not run, as far as is known, or runs again as somebody else.
fn is_gone(cluster: &ClusterState, held: &ControllerRecord) -> bool {
    !cluster.is_live(held.node) || cluster.incarnation(held.node) != Some(held.incarnation)
}

fn take(cluster: &ClusterState, candidate: Candidate, former: Option<Version>) -> Vec<Op> {
    let Candidate { node, incarnation, .. } = candidate;
    let epoch = cluster.controller_epoch.as_ref().map_or(1, |stored| stored.0 + 1);
    let mut ops = Vec::with_capacity(3);
    if let Some(version) = former {
        ops.push(Op::Delete { key: CONTROLLER.to_owned(), version });
    }
    ops.push(Op::Create {
        key: CONTROLLER.to_owned(),
        value: ControllerRecord { node, incarnation, epoch }.encode(),
        is_ephemeral: true,
    });
    let value = ControllerEpoch(epoch).encode();
    ops.push(match &cluster.controller_epoch {
        Some(stored) => Op::Put { key: CONTROLLER_EPOCH.to_owned(), value, version: stored.version },
        None => Op::Create { key: CONTROLLER_EPOCH.to_owned(), value, is_ephemeral: false },
    });
    ops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::tests::{cluster, registered};

    fn candidate(node: u32) -> Candidate {
        Candidate { node: NodeId(node), incarnation: Incarnation(u64::from(node)), is_leaving: false }
    }

    /// The epoch that the commit would begin, if there is one.
    fn epoch_begun(ops: Option<Vec<Op>>) -> Option<u64> {
        let ops = ops?;
        let value = ops.iter().find_map(|op| match op {
            Op::Put { key, value, .. } | Op::Create { key, value, .. } if key == CONTROLLER_EPOCH => {
                Some(value)
            }
            _ => None,
        })?;
        Some(ControllerEpoch::decode(value).expect("an epoch").0)
    }

    fn seated(node: u32, incarnation: u64, epoch: u64) -> Vec<(String, crate::coordination::Value)> {
        let record = ControllerRecord { node: NodeId(node), incarnation: Incarnation(incarnation), epoch };
        vec![
            (CONTROLLER.to_owned(), record.encode()),
            (CONTROLLER_EPOCH.to_owned(), ControllerEpoch(epoch).encode()),
        ]
    }

    #[test]
    fn an_empty_seat_is_taken_by_whoever_is_registered() {
        assert_eq!(epoch_begun(change(&cluster(vec![]), candidate(1))), None, "not registered yet");
        let there = cluster(registered(&[1, 2]));
        assert_eq!(epoch_begun(change(&there, candidate(1))), Some(1));
        assert!(!is_held(&there, candidate(1)));
        let mut again = registered(&[1]);
        again.push((CONTROLLER_EPOCH.to_owned(), ControllerEpoch(7).encode()));
        assert_eq!(epoch_begun(change(&cluster(again), candidate(1))), Some(8));
    }

    #[test]
    fn a_seat_is_left_alone_while_its_holder_lives_and_taken_when_it_is_gone_or_somebody_else() {
        let mut keys = registered(&[1, 2]);
        keys.extend(seated(2, 2, 3));
        let there = cluster(keys);
        assert!(is_held(&there, candidate(2)));
        assert_eq!(change(&there, candidate(1)), None);
        // Its registration went with its session; the seat goes with the same session, sooner or later.
        let mut keys = registered(&[1]);
        keys.extend(seated(2, 2, 3));
        assert_eq!(epoch_begun(change(&cluster(keys), candidate(1))), Some(4));
        // It was started again.
        let mut keys = registered(&[1, 2]);
        keys.extend(seated(2, 99, 3));
        let there = cluster(keys);
        assert!(!is_held(&there, candidate(2)));
        assert_eq!(epoch_begun(change(&there, candidate(2))), Some(4));
    }

    #[test]
    fn evidence_of_death_is_enough_to_take_the_seat() {
        let mut keys = registered(&[1, 2, 3]);
        keys.extend(seated(3, 3, 5));
        let suspicion =
            crate::cluster::Suspicion { by: NodeId(1), node: NodeId(3), incarnation: Incarnation(3) };
        keys.push((
            crate::cluster::keys::Subject::Suspicion { by: NodeId(1), node: NodeId(3) }.key(),
            suspicion.encode(),
        ));
        let there = cluster(keys);
        assert_eq!(epoch_begun(change(&there, candidate(2))), Some(6));
        assert_eq!(change(&there, candidate(3)), None, "the suspect does not take its own seat");
    }

    #[test]
    fn who_leaves_gives_up_the_seat_and_takes_none() {
        let mut keys = registered(&[1]);
        keys.extend(seated(1, 1, 2));
        let leaving = Candidate { is_leaving: true, ..candidate(1) };
        let ops = change(&cluster(keys), leaving).expect("it has a seat to give up");
        let epoch = Op::Check { key: CONTROLLER_EPOCH.to_owned(), version: Version(0) };
        assert!(
            matches!(&ops[..], [check, Op::Delete { key, .. }] if *check == epoch && key == CONTROLLER),
            "{ops:?}"
        );
        assert_eq!(change(&cluster(registered(&[1])), leaving), None);
    }
}
