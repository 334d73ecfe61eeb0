//! What separates a shard from a snapshot, as a list of steps. Pure: no disk, no channel.
//!
//! Owns: the decision for each partition. Invariant: doing all steps makes the registry what the snapshot says, and
//! a plan made afterwards is empty but for retries.

use corelog_engine::{LogOptions, TopicPartition};
use corelog_schemas::{ErrorCode, Failure};
use rustc_hash::FxHashMap;

use super::registry::{Entry, State};
use crate::control::{DataDirIndex, DataDirState, ShardId, Snapshot};

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Open the log, or make it if it is new.
    Open(Opening),
    /// Say why it is not served; close its log if it is open.
    TakeOffline {
        /// Which.
        id: TopicPartition,
        /// Where its log is.
        data_dir: DataDirIndex,
        /// The options it would have.
        options: LogOptions,
        /// What clients are told.
        failure: Failure,
    },
    /// Give an open log other options.
    SetOptions(TopicPartition, LogOptions),
    /// Another shard owns it now: sync and close it.
    Close(TopicPartition),
    /// Its topic is gone: delete its log.
    Delete(TopicPartition),
}

/// A log to open.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Opening {
    /// Which partition.
    pub(super) id: TopicPartition,
    /// Where.
    pub(super) data_dir: DataDirIndex,
    /// With which options.
    pub(super) options: LogOptions,
}

/// The steps from what is to what the snapshot says.
pub(super) fn plan(known: &[(TopicPartition, Entry)], snapshot: &Snapshot, shard: ShardId) -> Vec<Step> {
    let mut left: FxHashMap<_, _> = known.iter().map(|(id, entry)| (*id, entry)).collect();
    let mut steps = Vec::new();
    for (topic, partition, local) in snapshot.partitions_of(shard) {
        let id = TopicPartition { topic: topic.id, partition: partition.id };
        let options = topic.options.log_options();
        let data_dir = local.data_dir;
        let entry = left.remove(&id);
        let step = match &snapshot.data_dir(data_dir).state {
            DataDirState::Offline { reason } => {
                let failure = Failure::new(ErrorCode::PartitionOffline, reason.clone());
                Some(Step::TakeOffline { id, data_dir, options, failure })
            }
            DataDirState::Online | DataDirState::Full { .. } => match entry {
                None => Some(Step::Open(Opening { id, data_dir, options })),
                Some(entry) if is_worth_a_retry(entry) => Some(Step::Open(Opening { id, data_dir, options })),
                Some(entry) if entry.options != options => Some(Step::SetOptions(id, options)),
                Some(_) => None,
            },
        };
        steps.extend(step);
    }
    // What is left is not ours any more. Deleted only if the topic is gone, never because something looks odd.
    for (id, _) in known.iter().filter(|(id, _)| left.contains_key(id)) {
        let is_gone = snapshot.partition(*id).is_none();
        steps.push(if is_gone { Step::Delete(*id) } else { Step::Close(*id) });
    }
    steps
}

/// A full disk may have room again; damage and failed devices do not mend themselves.
fn is_worth_a_retry(entry: &Entry) -> bool {
    match &entry.state {
        State::Failed(failure) => failure.code == ErrorCode::DiskFull,
        State::Opening | State::Open(_) | State::Leaving => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use corelog_engine::{LeaderEpoch, LogId, PartitionId, TimestampMs, TopicId};
    use corelog_replication::ReplicaId;
    use corelog_replication::cluster::Incarnation;

    use super::*;
    use crate::control::TopicOptions;
    use crate::control::snapshot::SnapshotHead;
    use crate::control::{DataDirMetadata, NodeId, PartitionMetadata, SnapshotVersion, TopicMetadata};

    fn id(topic: u128, partition: u32) -> TopicPartition {
        TopicPartition { topic: TopicId(topic), partition: PartitionId(partition) }
    }

    fn snapshot(state: DataDirState, topics: &[(u128, &[u16])]) -> Snapshot {
        let topics = topics.iter().map(|(topic, shards)| {
            let partitions = shards.iter().zip(0..).map(|(&shard, number)| {
                let me = ReplicaId { node: NodeId(1), log: LogId(topic + u128::from(number)) };
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
        let head = SnapshotHead {
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
        };
        Snapshot::new(head, topics.collect())
    }

    fn entry(state: State) -> Entry {
        let options = TopicOptions::default().log_options();
        Entry { data_dir: DataDirIndex(0), dir: std::path::Path::new("/d").into(), options, state }
    }

    fn opening(id: TopicPartition) -> Step {
        let options = TopicOptions::default().log_options();
        Step::Open(Opening { id, data_dir: DataDirIndex(0), options })
    }

    #[test]
    fn new_partitions_of_this_shard_are_opened_and_others_left_alone() {
        let snapshot = snapshot(DataDirState::Online, &[(1, &[0, 1, 0])]);
        assert_eq!(plan(&[], &snapshot, ShardId(0)), [opening(id(1, 0)), opening(id(1, 2))]);
        let known: Vec<_> = [id(1, 0), id(1, 2)].map(|id| (id, entry(State::Opening))).into();
        assert_eq!(plan(&known, &snapshot, ShardId(0)), []);
    }

    #[test]
    fn a_deleted_topic_is_deleted_and_a_moved_partition_only_closed() {
        let known = [(id(1, 0), entry(State::Opening)), (id(2, 0), entry(State::Opening))];
        let snapshot = snapshot(DataDirState::Online, &[(2, &[1])]);
        assert_eq!(plan(&known, &snapshot, ShardId(0)), [Step::Delete(id(1, 0)), Step::Close(id(2, 0))]);
    }

    #[test]
    fn changed_options_are_set_and_full_disks_tried_again() {
        let full = Failure::from(ErrorCode::DiskFull);
        let damaged = Failure::from(ErrorCode::CorruptData);
        let mut changed = entry(State::Opening);
        changed.options.segment_bytes_max = 5;
        let known = [
            (id(1, 0), changed),
            (id(1, 1), entry(State::Failed(full))),
            (id(1, 2), entry(State::Failed(damaged))),
        ];
        let snapshot = snapshot(DataDirState::Full { free_bytes: 1 }, &[(1, &[0, 0, 0])]);
        let options = TopicOptions::default().log_options();
        let expected = [Step::SetOptions(id(1, 0), options), opening(id(1, 1))];
        assert_eq!(plan(&known, &snapshot, ShardId(0)), expected);
    }

    #[test]
    fn an_offline_data_directory_takes_its_partitions_with_it() {
        let state = DataDirState::Offline { reason: "gone".to_owned() };
        let snapshot = snapshot(state, &[(1, &[0])]);
        let steps = plan(&[(id(1, 0), entry(State::Opening))], &snapshot, ShardId(0));
        let [Step::TakeOffline { failure, .. }] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!(*failure, Failure::new(ErrorCode::PartitionOffline, "gone"));
    }
}
