//! After the faults: everything heals, by itself or with what an operator would do.
//!
//! Owns: what "well" means, and the operator's part: a node with a failed log is started anew; a replica that stays
//! failed is replaced; a partition of which every replica may lack something is elected uncleanly, and that is noted.

use std::collections::BTreeSet;
use std::time::Duration;

use corelog_engine::TopicPartition;
use corelog_replication::NodeId;
use corelog_replication::cluster::{ClusterState, FaultKind};
use corelog_replication::controller::Controller;

use crate::checker::{Event, UncleanElection};
use crate::cluster::{Admin, SimCluster, key};
use crate::workload::{Operator, TopicPlan};

/// How long it may take in all.
const HEAL_MS: u64 = 120_000;

/// When the operator first does something.
const PATIENCE_MS: u64 = 15_000;

/// Waits until all is well.
///
/// Errors: what is not, after all patience.
pub(super) async fn heal(
    cluster: &SimCluster,
    operator: &Operator,
    topics: &[TopicPlan],
) -> Result<(), String> {
    let handle = &cluster.world.handle;
    let began_us = handle.now_us();
    let mut restarted: BTreeSet<NodeId> = BTreeSet::new();
    let mut acted_us = began_us;
    for topic in topics {
        // One that was about to be made again when the faults ended.
        operator.create(topic, 10).await;
    }
    loop {
        let Err(why) = is_well(cluster, topics) else { return Ok(()) };
        let now_us = handle.now_us();
        if now_us - began_us > HEAL_MS * 1000 {
            return Err(why);
        }
        if now_us - acted_us > PATIENCE_MS * 1000 {
            acted_us = now_us;
            handle.note(format_args!("operator looks: {why}"));
            act(cluster, operator, &mut restarted).await;
            complete_replicas(cluster, operator, topics).await;
        }
        handle.sleep(Duration::from_millis(200)).await;
    }
}

/// What an operator does about what does not heal by itself.
async fn act(cluster: &SimCluster, operator: &Operator, restarted: &mut BTreeSet<NodeId>) {
    let state = cluster.state();
    let failed: Vec<_> = state
        .faults
        .values()
        .filter(|f| f.record.kind == FaultKind::Failed)
        .map(|f| f.record.replica)
        .collect();
    for replica in &failed {
        if restarted.insert(replica.node) {
            let node = cluster.node(replica.node);
            node.kill(&cluster.world);
            node.start(&cluster.world);
            continue;
        }
        let of = state.partitions.iter().find(|(_, stored)| stored.record.replica(*replica).is_some());
        if let Some((id, _)) = of {
            operator.replace(*id, replica.node).await;
        }
    }
    let doubted = |id: &TopicPartition| {
        let record = &state.partitions[id].record;
        record
            .isr
            .iter()
            .all(|member| state.faults.get(member).is_some_and(|f| f.record.kind == FaultKind::Unverified))
    };
    let offline: Vec<TopicPartition> = state
        .partitions
        .iter()
        .filter(|(id, stored)| stored.record.leader.is_none() && state.topics.contains_key(&id.topic))
        .map(|(id, _)| *id)
        .collect();
    for partition in offline.into_iter().filter(doubted) {
        operator.ask(Admin::ElectUnclean { partition }, 5).await;
    }
    note_unclean(cluster);
}

/// Adds replicas that a move has taken away and not put back, and removes those that it has left.
async fn complete_replicas(cluster: &SimCluster, operator: &Operator, topics: &[TopicPlan]) {
    let state = cluster.state();
    for topic in topics {
        let Some(stored) = state.topic_named(topic.name) else { continue };
        for (partition, stored) in state.partitions_of(stored.record.id) {
            if stored.record.replicas.len() < usize::from(topic.replicas) {
                operator.ask(Admin::AddReplica { partition, node: None }, 3).await;
            }
            let leader = stored.record.leader.map(|leader| leader.replica.node);
            let surplus = stored.record.replicas.iter().rev().map(|replica| replica.node);
            let surplus = surplus.filter(|node| Some(*node) != leader);
            let count = stored.record.replicas.len().saturating_sub(usize::from(topic.replicas));
            for node in surplus.take(count).collect::<Vec<_>>() {
                operator.ask(Admin::RemoveReplica { partition, node }, 3).await;
            }
        }
    }
}

/// Notes unclean elections for the checker; the operator alone causes them.
fn note_unclean(cluster: &SimCluster) {
    let state = cluster.state();
    for (id, stored) in &state.partitions {
        let Some(epoch) = stored.record.unclean_epoch else { continue };
        let event = Event::Unclean(UncleanElection { partition: key(*id), epoch: epoch.0 });
        cluster.world.recorder.with(|history| {
            if !history.events.contains(&event) {
                history.events.push(event);
            }
        });
    }
}

/// Whether all partitions have leaders and full ISRs, nothing is left to do, and nobody is suspected or at fault.
fn is_well(cluster: &SimCluster, topics: &[TopicPlan]) -> Result<(), String> {
    let state = cluster.state();
    let not = |what: String| Err(what);
    for node in &cluster.nodes {
        let Some(process) = node.process() else { return not(format!("node {} does not run", node.id)) };
        if state.incarnation(node.id) != Some(process.incarnation()) {
            return not(format!("node {} is not registered", node.id));
        }
    }
    for topic in topics {
        let Some(stored) = state.topic_named(topic.name) else {
            return not(format!("no topic {}", topic.name));
        };
        for (id, partition) in state.partitions_of(stored.record.id) {
            is_whole(&state, topic, id, &partition.record)?;
        }
    }
    if let Some(fault) = state.faults.values().next() {
        return not(format!("a replica is at fault: {:?}", fault.record));
    }
    if !state.suspicions.is_empty() || !state.removals.is_empty() || !state.deletions.is_empty() {
        return not(format!(
            "{} suspicions, {} removals, {} deletions are left",
            state.suspicions.len(),
            state.removals.len(),
            state.deletions.len()
        ));
    }
    nothing_planned(cluster, &state)
}

fn is_whole(
    state: &ClusterState,
    topic: &TopicPlan,
    id: TopicPartition,
    record: &corelog_replication::cluster::PartitionRecord,
) -> Result<(), String> {
    let name = topic.name;
    let Some(leader) = record.leader else { return Err(format!("{name}/{} has no leader", id.partition)) };
    if state.incarnation(leader.replica.node) != Some(leader.incarnation) {
        return Err(format!(
            "{name}/{} is led by an earlier start of node {}",
            id.partition, leader.replica.node
        ));
    }
    if record.replicas.len() != usize::from(topic.replicas) || record.isr.len() != record.replicas.len() {
        let (isr, replicas) = (record.isr.len(), record.replicas.len());
        return Err(format!(
            "{name}/{}: {isr} of {replicas} replicas are in sync, {} wanted",
            id.partition, topic.replicas
        ));
    }
    Ok(())
}

fn nothing_planned(cluster: &SimCluster, state: &ClusterState) -> Result<(), String> {
    let Some(term) = state.controller.as_ref().map(|stored| *stored.record) else {
        return Err("there is no controller".to_owned());
    };
    let mut controller = Controller::new(cluster.world.options.controller, term, Box::new(|| 1));
    let plan = controller.plan(state, cluster.world.handle.now_us() / 1000);
    if plan.is_empty() { Ok(()) } else { Err(format!("the controller still wants {plan:?}")) }
}
