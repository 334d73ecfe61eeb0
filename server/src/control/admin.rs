//! Changes of topics, checked: what a request asks, what this server allows, with defaults filled in.
//!
//! Owns: the rules of names, numbers and options, and their errors. Pure: a picture and a request in, a plan out; where
//! replicas go and what is stored is decided by `corelog_replication::controller`.
//! Invariant: a plan that passes has a valid name, valid options, and numbers within the limits.

use std::collections::BTreeMap;

use corelog_engine::TopicId;
use corelog_replication::cluster::{ClusterState, TopicRecord, Versioned};
use corelog_replication::controller::replicas_default;
use corelog_schemas::messages::{NewTopic, TopicOption, TopicRef};

use super::names::{TopicNameError, check_topic_name};
use super::options::{TopicOptionError, TopicOptions, check_topic_option, topic_option};
use super::snapshot::topic_directory_name;
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
    /// Beyond the limit of the nodes.
    #[error(
        "{added} more partitions with {replicas} replicas do not fit: there are {existing} replicas on {nodes} nodes, and each node may have {max} (limits.partitions_max)"
    )]
    Nodes {
        /// How many more partitions.
        added: u32,
        /// Replicas of each.
        replicas: u16,
        /// Replicas there are.
        existing: usize,
        /// Nodes that run.
        nodes: usize,
        /// The limit of each node.
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

/// What checks need beside the picture.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Limits of this node.
    pub limits: &'a LimitsConfig,
    /// Partitions of a topic that does not say.
    pub partitions_default: u32,
    /// Replicas of a topic that does not say; `None`: three, or as many as there are nodes.
    pub replicas_default: Option<u16>,
    /// Options of a topic that does not say.
    pub defaults: &'a TopicOptions,
}

/// A topic to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPlan {
    /// How many partitions.
    pub partitions: u32,
    /// Replicas of each.
    pub replicas: u16,
    /// Options that are set, spelled as they are stored.
    pub options: BTreeMap<String, String>,
}

/// The topic that a client means.
pub fn find<'a>(
    cluster: &'a ClusterState,
    topic: &TopicRef,
) -> Result<&'a Versioned<TopicRecord>, UnknownTopic> {
    let found = match topic {
        TopicRef::Id(id) => cluster.topics.get(&TopicId(*id)),
        TopicRef::Name(name) => cluster.topic_named(name),
    };
    found.ok_or_else(|| UnknownTopic { topic: topic.clone() })
}

/// Checks a new topic. `is_begun`: its name was taken for it by an earlier attempt.
pub fn check_new(
    cluster: &ClusterState,
    new: &NewTopic,
    is_begun: bool,
    rules: &Rules<'_>,
) -> Result<TopicPlan, CreateTopicError> {
    check_topic_name(&new.name)?;
    if !is_begun && cluster.topic_named(&new.name).is_some() {
        return Err(CreateTopicError::Exists { name: new.name.clone() });
    }
    let partitions = if new.partitions == 0 { rules.partitions_default } else { new.partitions };
    let replicas = match new.replication_factor {
        0 => rules.replicas_default.unwrap_or_else(|| replicas_default(cluster)),
        wanted => wanted,
    };
    check_count(cluster, partitions, partitions, replicas, rules.limits)?;
    let options = merge(&BTreeMap::new(), &new.options)?;
    check_options(&options, rules)?;
    if !has_room(cluster) {
        return Err(CreateTopicError::NoDataDir);
    }
    Ok(TopicPlan { partitions, replicas, options })
}

/// Checks more partitions of a topic.
pub fn check_more_partitions(
    cluster: &ClusterState,
    topic: &TopicRecord,
    partitions_total: u32,
    rules: &Rules<'_>,
) -> Result<(), CreatePartitionsError> {
    let existing = topic.partitions;
    let added = match partitions_total.checked_sub(existing) {
        None | Some(0) => {
            return Err(PartitionCountError::NotMore { requested: partitions_total, existing }.into());
        }
        Some(added) => added,
    };
    check_count(cluster, partitions_total, added, topic.replicas, rules.limits)?;
    if has_room(cluster) { Ok(()) } else { Err(CreatePartitionsError::NoDataDir) }
}

/// The options of a topic after a change.
pub fn changed_options(
    topic: &TopicRecord,
    changes: &[TopicOption],
    rules: &Rules<'_>,
) -> Result<BTreeMap<String, String>, TopicOptionError> {
    let options = merge(&topic.options, changes)?;
    check_options(&options, rules)?;
    Ok(options)
}

/// Whether a new topic's directories would meet what is left of a deleted one of the same name.
pub fn is_id_taken(cluster: &ClusterState, name: &str, id: TopicId) -> bool {
    let directory = topic_directory_name(name, id);
    let is_same = |other: &str, of: TopicId| topic_directory_name(other, of) == directory;
    cluster.topics.contains_key(&id)
        || cluster.removals.values().any(|removal| is_same(&removal.name, removal.topic))
        || cluster.deletions.values().any(|gone| is_same(&gone.name, gone.topic))
}

/// Whether any running node has a data directory that is not full.
fn has_room(cluster: &ClusterState) -> bool {
    let live = cluster.nodes.iter().filter(|(node, _)| cluster.is_live(**node));
    live.flat_map(|(_, node)| &node.data_dirs).any(|dir| dir.free_bytes > 0)
}

fn check_count(
    cluster: &ClusterState,
    total: u32,
    added: u32,
    replicas: u16,
    limits: &LimitsConfig,
) -> Result<(), PartitionCountError> {
    if total > limits.partitions_per_topic_max {
        return Err(PartitionCountError::Topic { requested: total, max: limits.partitions_per_topic_max });
    }
    let existing: usize = cluster.partitions.values().map(|partition| partition.replicas.len()).sum();
    let nodes = cluster.nodes.len().max(1);
    let max = limits.partitions_max;
    if existing + added as usize * usize::from(replicas) > nodes * max as usize {
        return Err(PartitionCountError::Nodes { added, replicas, existing, nodes, max });
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

fn check_options(set: &BTreeMap<String, String>, rules: &Rules<'_>) -> Result<(), TopicOptionError> {
    let options = TopicOptions::resolve(rules.defaults, set)?;
    if batch_fits_frame(options.batch_bytes_max, rules.limits.frame_bytes_max) {
        return Ok(());
    }
    let frame = u64::from(rules.limits.frame_bytes_max);
    Err(TopicOptionError::Contradiction(format!(
        "batch_bytes_max ({}) does not fit a request of this node; the most is {} (limits.frame_bytes_max, less {})",
        Value::Bytes(options.batch_bytes_max),
        Value::Bytes(frame - FRAME_OVERHEAD_BYTES),
        Value::Bytes(FRAME_OVERHEAD_BYTES)
    )))
}
