//! What separates a shard from a snapshot, as a list of steps. Pure: no disk, no channel.
//!
//! Owns: the decision for each partition. Invariant: doing all steps makes the registry what the snapshot says, and
//! a plan made afterwards is empty but for retries.
//! Invariant: a log that is not yet on the node's durable list takes no role.
//! Invariant: a log is deleted only if the snapshot names it as removed, never because something looks odd.

use std::sync::Arc;

use corelog_engine::{LogId, LogOptions, TopicPartition};
use corelog_replication::Assignment;
use corelog_replication::cluster::Endpoint;
use corelog_schemas::{ErrorCode, Failure};

use super::registry::{Entries, Entry, State};
use crate::control::{DataDirIndex, DataDirState, LocalReplica, ShardId, Snapshot, TopicMetadata};

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Open the log, or make it if it is new.
    Open(Opening),
    /// Say why it is not served; close its log if it is open.
    TakeOffline {
        /// What cannot be opened.
        opening: Opening,
        /// What clients are told.
        failure: Failure,
    },
    /// Give an open log other options.
    SetOptions(TopicPartition, LogOptions),
    /// Give an open log its part in the newest leadership.
    Assign(TopicPartition, Told),
    /// Its log was made and is on the durable list now.
    Confirm(TopicPartition),
    /// It belongs elsewhere now: sync and close its log.
    Close(TopicPartition),
    /// Its log is to be deleted.
    Delete(TopicPartition),
}

impl Step {
    /// Which partition it is about.
    pub(super) fn id(&self) -> TopicPartition {
        match self {
            Self::Open(opening) | Self::TakeOffline { opening, .. } => opening.id,
            Self::SetOptions(id, _)
            | Self::Assign(id, _)
            | Self::Confirm(id)
            | Self::Close(id)
            | Self::Delete(id) => *id,
        }
    }
}

/// A log to open.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Opening {
    /// Which partition.
    pub(super) id: TopicPartition,
    /// Where.
    pub(super) data_dir: DataDirIndex,
    /// Which log.
    pub(super) log_id: LogId,
    /// It may have to be made.
    pub(super) is_new: bool,
    /// With which options.
    pub(super) options: LogOptions,
}

/// What a replica is told of its leadership.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Told {
    /// Its part.
    pub(super) assignment: Assignment,
    /// Where its leader is.
    pub(super) leader_endpoint: Option<Endpoint>,
}

/// The steps from what is to what the snapshot says, for all partitions. Topics that are the same as in the snapshot
/// `before`, by which all partitions were looked at, are passed over.
///
/// Cost: a look at each partition that changed, and at each that is known.
pub(super) fn plan(
    known: &Entries,
    before: Option<&Snapshot>,
    snapshot: &Snapshot,
    shard: ShardId,
    now_ms: u64,
) -> Vec<Step> {
    let before = before.filter(|before| before.data_dirs == snapshot.data_dirs);
    let is_same = |topic: &Arc<TopicMetadata>| {
        before.and_then(|before| before.topic_by_id(topic.id)).is_some_and(|known| Arc::ptr_eq(known, topic))
    };
    let mut steps = Vec::new();
    for topic in snapshot.topics().iter().filter(|topic| !is_same(topic)) {
        for partition in &topic.partitions {
            let Some(local) = partition.local.as_ref().filter(|local| local.shard == shard) else { continue };
            let id = TopicPartition { topic: topic.id, partition: partition.id };
            steps.extend(step_of(id, known.get(&id), topic, local, snapshot, now_ms));
        }
    }
    // What is not ours any more.
    for (id, entry) in known {
        let local = snapshot.partition(*id).and_then(|partition| partition.local.as_ref());
        if local.is_none_or(|local| local.shard != shard) {
            steps.push(leave(*id, entry, snapshot));
        }
    }
    steps
}

/// The next step for one partition; `None` if there is nothing to do.
pub(super) fn plan_one(
    id: TopicPartition,
    entry: Option<&Entry>,
    snapshot: &Snapshot,
    shard: ShardId,
    now_ms: u64,
) -> Option<Step> {
    let topic = snapshot.topic_by_id(id.topic);
    let local = snapshot.partition(id).and_then(|partition| partition.local.as_ref());
    match (topic, local.filter(|local| local.shard == shard)) {
        (Some(topic), Some(local)) => step_of(id, entry, topic, local, snapshot, now_ms),
        _ => entry.map(|entry| leave(id, entry, snapshot)),
    }
}

fn leave(id: TopicPartition, entry: &Entry, snapshot: &Snapshot) -> Step {
    if snapshot.removed.contains(&entry.log_id) { Step::Delete(id) } else { Step::Close(id) }
}

fn step_of(
    id: TopicPartition,
    entry: Option<&Entry>,
    topic: &TopicMetadata,
    local: &LocalReplica,
    snapshot: &Snapshot,
    now_ms: u64,
) -> Option<Step> {
    let options = topic.options.log_options();
    let LocalReplica { data_dir, log_id, is_new, .. } = *local;
    let opening = Opening { id, data_dir, log_id, is_new, options };
    if let Some(entry) = entry.filter(|entry| entry.log_id != log_id) {
        // Another replica of the same partition: what is open goes first.
        return Some(leave(id, entry, snapshot));
    }
    if let DataDirState::Offline { reason } = &snapshot.data_dir(data_dir).state {
        let failure = Failure::new(ErrorCode::PartitionOffline, reason.clone());
        let is_said = entry.is_some_and(|entry| entry.failure() == Some(&failure));
        return (!is_said).then_some(Step::TakeOffline { opening, failure });
    }
    let Some(entry) = entry else { return Some(Step::Open(opening)) };
    if entry.is_due(now_ms) {
        return Some(Step::Open(opening));
    }
    if entry.options != options {
        return Some(Step::SetOptions(id, options));
    }
    let State::Open(_) = &entry.state else { return None };
    if is_new {
        return None;
    }
    if !entry.is_confirmed {
        return Some(Step::Confirm(id));
    }
    let Assignment { version, leader_epoch, role, .. } = local.assignment;
    let is_told = entry.told.as_ref().is_some_and(|told| {
        let known = &told.assignment;
        (known.version, known.leader_epoch, known.role) == (version, leader_epoch, role)
            && told.leader_endpoint == local.leader_endpoint
            && known.min_insync_replicas == local.assignment.min_insync_replicas
    });
    let told =
        || Told { assignment: local.assignment.clone(), leader_endpoint: local.leader_endpoint.clone() };
    (!is_told).then(|| Step::Assign(id, told()))
}

#[cfg(test)]
mod tests {
    use corelog_engine::{LeaderEpoch, PartitionId, TimestampMs, TopicId};
    use corelog_replication::ReplicaId;
    use corelog_replication::cluster::Incarnation;

    use super::super::registry::Trouble;
    use super::*;
    use crate::control::TopicOptions;
    use crate::control::snapshot::SnapshotHead;
    use crate::control::{DataDirMetadata, NodeId, PartitionMetadata, SnapshotVersion};

    fn id(topic: u128, partition: u32) -> TopicPartition {
        TopicPartition { topic: TopicId(topic), partition: PartitionId(partition) }
    }

    fn log_of(id: TopicPartition) -> LogId {
        LogId(id.topic.0 * 100 + u128::from(id.partition.0))
    }

    fn snapshot(state: DataDirState, topics: &[(u128, &[u16])]) -> Snapshot {
        let topics = topics.iter().map(|(topic, shards)| {
            let partitions = shards.iter().zip(0..).map(|(&shard, number)| {
                let me = ReplicaId { node: NodeId(1), log: log_of(id(*topic, number)) };
                let of = id(*topic, number);
                PartitionMetadata::led_alone(of, me, ShardId(shard), DataDirIndex(0), LeaderEpoch(1))
            });
            Arc::new(TopicMetadata {
                id: TopicId(*topic),
                name: format!("t{topic}").into(),
                created: TimestampMs(0),
                options: TopicOptions::default(),
                partitions: partitions.collect(),
            })
        });
        Snapshot::new(head(state), topics.collect())
    }

    fn head(state: DataDirState) -> SnapshotHead {
        SnapshotHead {
            version: SnapshotVersion(1),
            cluster_id: "c".into(),
            node: NodeId(1),
            started: TimestampMs(0),
            incarnation: Incarnation(1),
            shards: Vec::new(),
            nodes: Vec::new(),
            is_isolated: false,
            removed: Default::default(),
            data_dirs: vec![DataDirMetadata { path: "/d".into(), state, was_clean: true }],
        }
    }

    fn entry(id: TopicPartition, state: State) -> (TopicPartition, Entry) {
        let options = TopicOptions::default().log_options();
        let dir = std::path::Path::new("/d").into();
        let data_dir = DataDirIndex(0);
        (id, Entry { data_dir, dir, log_id: log_of(id), options, state, is_confirmed: false, told: None })
    }

    /// All steps of shard 0, sorted by partition.
    fn plan_all(known: &[(TopicPartition, Entry)], snapshot: &Snapshot, now_ms: u64) -> Vec<Step> {
        let known: Entries = known.iter().cloned().collect();
        let mut steps = plan(&known, None, snapshot, ShardId(0), now_ms);
        steps.sort_by_key(Step::id);
        steps
    }

    fn opening(id: TopicPartition) -> Opening {
        let options = TopicOptions::default().log_options();
        Opening { id, data_dir: DataDirIndex(0), log_id: log_of(id), is_new: false, options }
    }

    #[test]
    fn new_partitions_of_this_shard_are_opened_and_others_left_alone() {
        let snapshot = snapshot(DataDirState::Online, &[(1, &[0, 1, 0])]);
        let expected = [Step::Open(opening(id(1, 0))), Step::Open(opening(id(1, 2)))];
        assert_eq!(plan_all(&[], &snapshot, 0), expected);
        let known: Vec<_> = [id(1, 0), id(1, 2)].map(|id| entry(id, State::Opening)).into();
        assert_eq!(plan_all(&known, &snapshot, 0), []);
        assert_eq!(plan_one(id(1, 1), None, &snapshot, ShardId(0), 0), None);
    }

    #[test]
    fn only_what_is_named_as_removed_is_deleted_and_all_else_closed() {
        let known = [
            entry(id(1, 0), State::Opening),
            entry(id(2, 0), State::Opening),
            entry(id(3, 0), State::Opening),
        ];
        let mut snapshot = snapshot(DataDirState::Online, &[(2, &[1])]);
        snapshot.removed.insert(log_of(id(1, 0)));
        let expected = [Step::Delete(id(1, 0)), Step::Close(id(2, 0)), Step::Close(id(3, 0))];
        assert_eq!(plan_all(&known, &snapshot, 0), expected);
        let one = plan_one(id(1, 0), Some(&known[0].1), &snapshot, ShardId(0), 0);
        assert_eq!(one, Some(Step::Delete(id(1, 0))));
    }

    #[test]
    fn changed_options_are_set_and_full_disks_tried_again_when_their_time_has_come() {
        let mut changed = entry(id(1, 0), State::Opening);
        changed.1.options.segment_bytes_max = 5;
        let failed =
            |retry_at_ms| State::Failed(Trouble { failure: ErrorCode::DiskFull.into(), retry_at_ms });
        let known = [changed, entry(id(1, 1), failed(Some(1_000))), entry(id(1, 2), failed(None))];
        let snapshot = snapshot(DataDirState::Full { free_bytes: 1 }, &[(1, &[0, 0, 0])]);
        let set = Step::SetOptions(id(1, 0), TopicOptions::default().log_options());
        assert_eq!(plan_all(&known, &snapshot, 999), std::slice::from_ref(&set));
        assert_eq!(plan_all(&known, &snapshot, 1_000), [set, Step::Open(opening(id(1, 1)))]);
    }

    #[test]
    fn an_offline_data_directory_takes_its_partitions_with_it_once() {
        let state = DataDirState::Offline { reason: "gone".to_owned() };
        let snapshot = snapshot(state, &[(1, &[0])]);
        let steps = plan_all(&[entry(id(1, 0), State::Opening)], &snapshot, 0);
        let [Step::TakeOffline { failure, .. }] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!(*failure, Failure::new(ErrorCode::PartitionOffline, "gone"));
        let offline = State::Failed(Trouble { failure: failure.clone(), retry_at_ms: None });
        assert_eq!(plan_all(&[entry(id(1, 0), offline)], &snapshot, 0), []);
    }

    #[test]
    fn another_log_of_the_same_partition_waits_until_the_old_one_is_closed() {
        let snapshot = snapshot(DataDirState::Online, &[(1, &[0])]);
        let mut old = entry(id(1, 0), State::Opening);
        old.1.log_id = LogId(7);
        assert_eq!(plan_all(&[old], &snapshot, 0), [Step::Close(id(1, 0))]);
        assert_eq!(plan_all(&[], &snapshot, 0), [Step::Open(opening(id(1, 0)))]);
    }

    #[test]
    fn topics_that_have_not_changed_are_passed_over_unless_a_disk_has() {
        let before = snapshot(DataDirState::Online, &[(1, &[0])]);
        let topics = before.topics().to_vec();
        let again = |state| {
            let mut head = head(state);
            head.version = SnapshotVersion(2);
            Snapshot::new(head, topics.clone())
        };
        let known = Entries::default();
        let count = |snapshot: &Snapshot| plan(&known, Some(&before), snapshot, ShardId(0), 0).len();
        assert_eq!(count(&again(DataDirState::Online)), 0);
        assert_eq!(count(&again(DataDirState::Full { free_bytes: 1 })), 1);
        assert_eq!(count(&snapshot(DataDirState::Online, &[(1, &[0])])), 1, "it may have changed");
    }
}
