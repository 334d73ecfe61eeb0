//! More replicas as the cluster grows: what a new topic gets by default, and how the server's own topics follow.
//!
//! Owns: the rule min(3, nodes), for new topics and, online, for internal ones; and when internal topics begin to ask
//! for two replicas in sync. Users' topics keep what they were created with.

use super::placement::Sites;
use super::standing::exists;
use crate::cluster::{ClusterState, MIN_INSYNC_REPLICAS, PartitionRecord, TopicRecord};

/// Replicas by default, once there are that many nodes: one may fail while another one is in maintenance.
const REPLICAS_DEFAULT: usize = 3;

/// Replicas of a topic that does not say how many: min(3, nodes that run).
pub fn replicas_default(state: &ClusterState) -> u16 {
    let live = state.nodes.keys().filter(|node| state.is_live(**node)).count();
    u16::try_from(live.clamp(1, REPLICAS_DEFAULT)).expect("3 fits")
}

/// What becomes of an internal topic as the cluster grows. `None`: it is as it should be.
pub(super) fn grown_topic(state: &ClusterState, topic: &TopicRecord) -> Option<TopicRecord> {
    if !topic.is_internal {
        return None;
    }
    let replicas = topic.replicas.max(replicas_default(state));
    let mut options = topic.options.clone();
    // Not sooner than all are in sync: otherwise raising the number of replicas would stop the topic for a while.
    let is_in_sync = |record: &PartitionRecord| record.isr.len() >= REPLICAS_DEFAULT;
    let is_ready = usize::from(replicas) >= REPLICAS_DEFAULT
        && state.partitions_of(topic.id).filter(|(id, _)| exists(state, *id)).all(|(_, r)| is_in_sync(r));
    if is_ready && !options.contains_key(MIN_INSYNC_REPLICAS) {
        options.insert(MIN_INSYNC_REPLICAS.to_owned(), "2".to_owned());
    }
    let next = TopicRecord { replicas, options, ..topic.clone() };
    (next != *topic).then_some(next)
}

/// The record with as many replicas as an internal topic asks for, as far as there are nodes. `None`: it has them.
pub(super) fn grown_partition(
    record: &PartitionRecord,
    wanted: u16,
    sites: &mut Sites,
    random: &mut dyn FnMut() -> u128,
) -> Option<PartitionRecord> {
    let mut next = record.clone();
    while next.replicas.len() < usize::from(wanted) {
        let Ok(place) = sites.place_replica(&next, None, random) else { break };
        next.replicas.push(place);
    }
    (next.replicas.len() > record.replicas.len()).then_some(next)
}
