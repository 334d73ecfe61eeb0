//! Topics: made, changed, enlarged, deleted.
//!
//! Crash story: a topic of many partitions needs several commits. The first takes the name, each of the others checks
//! it, and the last makes the topic: until then its partitions are nobody's. If that never comes, the controller gives
//! the name back (`deletion.rs`).

use std::collections::BTreeMap;

use corelog_engine::{LeaderEpoch, PartitionId, TimestampMs, TopicId, TopicPartition};

use super::{UnknownTopic, topic};
use crate::cluster::keys::Subject;
use crate::cluster::{
    ClusterState, Deletion, NamedTopic, PartitionRecord, ReplicaRecord, Stored, TopicRecord,
};
use crate::controller::commits::Commits;
use crate::controller::growth::replicas_default;
use crate::controller::placement::{PlacementError, Sites};
use crate::coordination::{COMMIT_BYTES_MAX, OPS_MAX, Op, Version, commit_bytes};

/// A topic that is asked for. Its name and options are checked already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTopic {
    /// Its identity: new and random. Asked for again with the same one, creation goes on where it was.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// Number of partitions.
    pub partitions: u32,
    /// Replicas of each; 0: min(3, nodes).
    pub replicas: u16,
    /// Whether Corelog itself makes it.
    pub is_internal: bool,
    /// Options that it sets.
    pub options: BTreeMap<String, String>,
    /// The time now.
    pub created: TimestampMs,
}

/// Why a topic was not created. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateTopicError {
    /// The name is taken.
    #[error("topic {name:?} exists; choose another name, or delete it first")]
    Exists {
        /// The name.
        name: String,
    },
    /// The name is taken by a topic that is just being made, or was never finished.
    #[error("topic {name:?} is being made or given up by another request; try again in a minute")]
    NameInUse {
        /// The name.
        name: String,
    },
    /// A topic without partitions.
    #[error("a topic has at least one partition; ask for 1 or more")]
    NoPartitions,
    /// No place for the replicas.
    #[error(transparent)]
    Placement(#[from] PlacementError),
}

/// Why partitions were not added. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreatePartitionsError {
    /// See [`UnknownTopic`].
    #[error(transparent)]
    Unknown(#[from] UnknownTopic),
    /// It has more than that.
    #[error("the topic has {existing} partitions and cannot shrink to {requested}; ask for more")]
    Fewer {
        /// How many there are.
        existing: u32,
        /// How many in all were asked for.
        requested: u32,
    },
    /// No place for the replicas.
    #[error(transparent)]
    Placement(#[from] PlacementError),
}

/// Decides on a new topic. No commits: it exists already, with this id.
///
/// `random`: source of log ids.
pub fn create_topic(
    state: &ClusterState,
    new: &NewTopic,
    random: &mut dyn FnMut() -> u128,
) -> Result<Vec<Vec<Op>>, CreateTopicError> {
    if state.topics.contains_key(&new.id) {
        return Ok(Vec::new());
    }
    if new.partitions == 0 {
        return Err(CreateTopicError::NoPartitions);
    }
    let name_key = Subject::Name(new.name.clone()).key();
    let taken = state.names.get(&new.name);
    let name_op = match taken {
        None => Op::Create { key: name_key.clone(), value: NamedTopic(new.id).encode(), is_ephemeral: false },
        Some(stored) if stored.0 == new.id => Op::Check { key: name_key.clone(), version: stored.version },
        Some(stored) if state.topics.contains_key(&stored.0) => {
            return Err(CreateTopicError::Exists { name: new.name.clone() });
        }
        Some(_) => return Err(CreateTopicError::NameInUse { name: new.name.clone() }),
    };
    let replicas = if new.replicas == 0 { replicas_default(state) } else { new.replicas };
    let partitions = new_partitions(state, new.id, 0..new.partitions, replicas, random)?;
    let record = TopicRecord {
        id: new.id,
        name: new.name.clone(),
        created: new.created,
        partitions: new.partitions,
        replicas,
        is_internal: new.is_internal,
        options: new.options.clone(),
    };
    let topic_op =
        Op::Create { key: Subject::Topic(new.id).key(), value: record.encode(), is_ephemeral: false };
    let guard = Op::Check { key: name_key, version: taken.map_or(Version(0), |stored| stored.version) };
    Ok(in_order(name_op, partitions, topic_op, guard))
}

/// Decides on more partitions of a topic. No commits: it has that many.
pub fn create_partitions(
    state: &ClusterState,
    id: TopicId,
    partitions_total: u32,
    random: &mut dyn FnMut() -> u128,
) -> Result<Vec<Vec<Op>>, CreatePartitionsError> {
    let stored = topic(state, id)?;
    if partitions_total < stored.partitions {
        let (existing, requested) = (stored.partitions, partitions_total);
        return Err(CreatePartitionsError::Fewer { existing, requested });
    }
    if partitions_total == stored.partitions {
        return Ok(Vec::new());
    }
    let key = Subject::Topic(id).key();
    let partitions = new_partitions(state, id, stored.partitions..partitions_total, stored.replicas, random)?;
    let record = TopicRecord { partitions: partitions_total, ..(*stored.record).clone() };
    // A topic that is deleted meanwhile gets no more partitions.
    let check = Op::Check { key: key.clone(), version: stored.version };
    let put = Op::Put { key, value: record.encode(), version: stored.version };
    Ok(in_order(check.clone(), partitions, put, check))
}

/// Decides on other options of a topic: `options` are all that it sets afterwards.
pub fn alter_options(
    state: &ClusterState,
    id: TopicId,
    options: &BTreeMap<String, String>,
) -> Result<Vec<Vec<Op>>, UnknownTopic> {
    let stored = topic(state, id)?;
    if stored.options == *options {
        return Ok(Vec::new());
    }
    let record = TopicRecord { options: options.clone(), ..(*stored.record).clone() };
    let key = Subject::Topic(id).key();
    Ok(vec![vec![Op::Put { key, value: record.encode(), version: stored.version }]])
}

/// Decides on the end of a topic: its name is free at once, the controller deletes its partitions.
pub fn delete_topic(state: &ClusterState, id: TopicId) -> Result<Vec<Vec<Op>>, UnknownTopic> {
    let stored = topic(state, id)?;
    let deletion = Deletion { topic: id, name: stored.name.clone() };
    let mut ops = vec![
        Op::Delete { key: Subject::Topic(id).key(), version: stored.version },
        Op::Create { key: Subject::Deletion(id).key(), value: deletion.encode(), is_ephemeral: false },
    ];
    if let Some(name) = state.names.get(&stored.name).filter(|name| name.0 == id) {
        ops.push(Op::Delete { key: Subject::Name(stored.name.clone()).key(), version: name.version });
    }
    Ok(vec![ops])
}

/// The ops that make partitions which are not there yet.
fn new_partitions(
    state: &ClusterState,
    topic: TopicId,
    numbers: std::ops::Range<u32>,
    replicas: u16,
    random: &mut dyn FnMut() -> u128,
) -> Result<Vec<Op>, PlacementError> {
    let mut sites = Sites::of(state);
    sites.see_topic(state, topic);
    let mut ops = Vec::new();
    for number in numbers {
        let id = TopicPartition { topic, partition: PartitionId(number) };
        if state.partitions.contains_key(&id) {
            continue;
        }
        let places = sites.place_partition(replicas, random)?;
        let record = PartitionRecord {
            isr: places.iter().map(ReplicaRecord::id).collect(),
            replicas: places,
            leader: None,
            leader_epoch: LeaderEpoch(0),
            unclean_epoch: None,
        };
        let key = Subject::Partition(id).key();
        ops.push(Op::Create { key, value: record.encode(), is_ephemeral: false });
    }
    Ok(ops)
}

/// One commit if it fits; otherwise `first` in the first and `last` in the last of several, all but the first guarded.
fn in_order(first: Op, middle: Vec<Op>, last: Op, guard: Op) -> Vec<Vec<Op>> {
    let all: Vec<Op> = std::iter::once(first.clone()).chain(middle.clone()).chain([last.clone()]).collect();
    if all.len() <= OPS_MAX && commit_bytes(&all) <= COMMIT_BYTES_MAX {
        return vec![all];
    }
    let mut commits = Commits::new(vec![guard]);
    middle.into_iter().for_each(|op| commits.add([op]));
    commits.add([last]);
    let mut plan = vec![vec![first]];
    plan.extend(commits.finish());
    plan
}
