//! Changes of topics, decided: what a request asks, what the state allows, what to store.
//!
//! Owns: the rules and their errors. Pure: a state and a request in, a topic to store out; nothing is written here.
//! Invariant: a planned topic has valid options, a place for every partition, and no partition that moved.

use std::collections::BTreeMap;

use corelog_engine::{LogId, TimestampMs, TopicId};
use corelog_schemas::messages::{NewTopic, TopicOption, TopicRef};

use super::names::{TopicNameError, check_topic_name};
use super::options::{TopicOptionError, TopicOptions, check_topic_option, topic_option};
use super::placement::place;
use super::snapshot::{ShardId, topic_directory_name};
use super::state::State;
use super::store::{StoredPartition, StoredTopic, Version};
use crate::config::LimitsConfig;
use crate::config::check::{FRAME_OVERHEAD_BYTES, batch_fits_frame};
use crate::config::value::Value;

/// Why a topic was not created. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateTopicError {
    /// The name breaks the rules.
    #[error(transparent)]
    Name(#[from] TopicNameError),
    /// The name is taken.
    #[error("topic {name:?} exists; choose another name, or delete it first")]
    Exists {
        /// The name.
        name: String,
    },
    /// Too few or too many partitions.
    #[error(transparent)]
    Partitions(#[from] PartitionCountError),
    /// More replicas than nodes.
    #[error("{requested} replicas asked for, but this node is alone; ask for 1, or leave it to the default")]
    ReplicationFactor {
        /// How many.
        requested: u16,
    },
    /// A wrong option.
    #[error(transparent)]
    Option(#[from] TopicOptionError),
    /// No data directory takes new partitions.
    #[error(
        "no data directory takes new partitions: each is offline or below data.free_bytes_min; free space or add a disk to data.dirs"
    )]
    NoDataDir,
}

/// Why a number of partitions was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartitionCountError {
    /// Beyond the limit of one topic.
    #[error(
        "{requested} partitions are more than one topic may have (limits.partitions_per_topic_max is {max})"
    )]
    Topic {
        /// How many.
        requested: u32,
        /// The limit.
        max: u32,
    },
    /// Beyond the limit of the node.
    #[error(
        "{added} more partitions do not fit: the node has {existing} and may have {max} (limits.partitions_max)"
    )]
    Node {
        /// How many more.
        added: u32,
        /// How many there are.
        existing: usize,
        /// The limit.
        max: u32,
    },
    /// Not more than there are.
    #[error(
        "the topic has {existing} partitions and cannot shrink or stay: {requested} were asked for; ask for more"
    )]
    NotMore {
        /// How many in all were asked for.
        requested: u32,
        /// How many there are.
        existing: u32,
    },
}

/// No such topic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no {topic}; `topic list` shows all")]
pub struct UnknownTopic {
    /// What was asked for.
    pub topic: TopicRef,
}

/// Why options were not changed. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AlterTopicError {
    /// No such topic.
    #[error(transparent)]
    Unknown(#[from] UnknownTopic),
    /// A wrong option.
    #[error(transparent)]
    Option(#[from] TopicOptionError),
}

/// Why partitions were not added. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreatePartitionsError {
    /// No such topic.
    #[error(transparent)]
    Unknown(#[from] UnknownTopic),
    /// Too many, or not more.
    #[error(transparent)]
    Partitions(#[from] PartitionCountError),
    /// No data directory takes new partitions.
    #[error(
        "no data directory takes new partitions: each is offline or below data.free_bytes_min; free space or add a disk to data.dirs"
    )]
    NoDataDir,
}

/// What plans need beside the state.
pub struct Rules<'a> {
    /// Limits of this node.
    pub limits: &'a LimitsConfig,
    /// Partitions of a topic that does not say.
    pub partitions_default: u32,
    /// Source of random ids.
    pub random_id: &'a mut dyn FnMut() -> u128,
}

/// The topic that a client means.
pub fn find<'a>(state: &'a State, topic: &TopicRef) -> Result<&'a StoredTopic, UnknownTopic> {
    state.find(topic).ok_or_else(|| UnknownTopic { topic: topic.clone() })
}

/// Decides on a new topic.
pub fn plan_topic(
    state: &State,
    new: &NewTopic,
    rules: &mut Rules<'_>,
    now: TimestampMs,
) -> Result<StoredTopic, CreateTopicError> {
    check_topic_name(&new.name)?;
    if state.find(&TopicRef::Name(new.name.as_str().into())).is_some() {
        return Err(CreateTopicError::Exists { name: new.name.clone() });
    }
    let count = if new.partitions == 0 { rules.partitions_default } else { new.partitions };
    check_count(state, count, count, rules.limits)?;
    // A node alone has one replica of everything; 0 leaves it to the server.
    if new.replication_factor > 1 {
        return Err(CreateTopicError::ReplicationFactor { requested: new.replication_factor });
    }
    let options = merge(&BTreeMap::new(), &new.options)?;
    check_options(state, &options, rules.limits)?;
    let id = free_topic_id(state, &new.name, rules);
    let partitions = new_partitions(state, count, &options, rules).ok_or(CreateTopicError::NoDataDir)?;
    Ok(StoredTopic { id, name: new.name.clone(), created: now, options, partitions, version: Version(0) })
}

/// Decides on more partitions of a topic.
pub fn plan_partitions(
    state: &State,
    topic: &TopicRef,
    partitions_total: u32,
    rules: &mut Rules<'_>,
) -> Result<StoredTopic, CreatePartitionsError> {
    let mut topic = find(state, topic)?.clone();
    let existing = u32::try_from(topic.partitions.len()).expect("partitions are counted in 32 bits");
    let added = match partitions_total.checked_sub(existing) {
        None | Some(0) => {
            return Err(PartitionCountError::NotMore { requested: partitions_total, existing }.into());
        }
        Some(added) => added,
    };
    check_count(state, partitions_total, added, rules.limits)?;
    let more = new_partitions(state, added, &topic.options, rules).ok_or(CreatePartitionsError::NoDataDir)?;
    topic.partitions.extend(more);
    Ok(topic)
}

/// Decides on new options of a topic.
pub fn plan_options(
    state: &State,
    topic: &TopicRef,
    changes: &[TopicOption],
    limits: &LimitsConfig,
) -> Result<StoredTopic, AlterTopicError> {
    let mut topic = find(state, topic)?.clone();
    topic.options = merge(&topic.options, changes)?;
    check_options(state, &topic.options, limits)?;
    Ok(topic)
}

fn check_count(
    state: &State,
    total: u32,
    added: u32,
    limits: &LimitsConfig,
) -> Result<(), PartitionCountError> {
    if total > limits.partitions_per_topic_max {
        return Err(PartitionCountError::Topic { requested: total, max: limits.partitions_per_topic_max });
    }
    let existing = state.partition_count();
    if existing + added as usize > limits.partitions_max as usize {
        return Err(PartitionCountError::Node { added, existing, max: limits.partitions_max });
    }
    Ok(())
}

/// Lays changes over what is set; `None` takes an option back to its default.
fn merge(
    set: &BTreeMap<String, String>,
    changes: &[TopicOption],
) -> Result<BTreeMap<String, String>, TopicOptionError> {
    let mut merged = set.clone();
    for change in changes {
        match &change.value {
            Some(value) => {
                let (name, value) = check_topic_option(&change.key, value)?;
                merged.insert(name.to_owned(), value);
            }
            None => {
                merged.remove(topic_option(&change.key)?.name);
            }
        }
    }
    Ok(merged)
}

fn check_options(
    state: &State,
    set: &BTreeMap<String, String>,
    limits: &LimitsConfig,
) -> Result<(), TopicOptionError> {
    let options = TopicOptions::resolve(&state.defaults, set)?;
    if batch_fits_frame(options.batch_bytes_max, limits.frame_bytes_max) {
        return Ok(());
    }
    let frame = u64::from(limits.frame_bytes_max);
    Err(TopicOptionError::Contradiction(format!(
        "batch_bytes_max ({}) does not fit a request of this node; the most is {} (limits.frame_bytes_max, less {})",
        Value::Bytes(options.batch_bytes_max),
        Value::Bytes(frame - FRAME_OVERHEAD_BYTES),
        Value::Bytes(FRAME_OVERHEAD_BYTES)
    )))
}

/// An id whose directory is not that of a deleted topic of the same name which is still being removed.
fn free_topic_id(state: &State, name: &str, rules: &mut Rules<'_>) -> TopicId {
    loop {
        let id = TopicId((rules.random_id)());
        let directory = topic_directory_name(name, id);
        let is_taken = state.deleted.iter().any(|old| topic_directory_name(&old.name, old.id) == directory);
        if !is_taken && state.topic(id).is_none() {
            return id;
        }
    }
}

fn new_partitions(
    state: &State,
    count: u32,
    options: &BTreeMap<String, String>,
    rules: &mut Rules<'_>,
) -> Option<Vec<StoredPartition>> {
    let segment_bytes = TopicOptions::resolve(&state.defaults, options).map_or(0, |o| o.segment_bytes_max);
    let places = place(count as usize, &state.shard_loads(), &state.spaces(), segment_bytes)?;
    let partitions = places.into_iter().map(|place| StoredPartition {
        log_id: LogId((rules.random_id)()),
        data_dir: state.data_dirs[place.data_dir.index()].id.expect("an online directory has an id"),
        shard: ShardId(place.shard.0),
        is_confirmed: false,
    });
    Some(partitions.collect())
}
