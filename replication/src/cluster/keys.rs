//! Under which key each record lies.
//!
//! Owns: the paths, made and read. Ids are 32 hexadecimal digits, numbers decimal without leading zeroes, so that each
//! thing has exactly one key. How the values look is in `codec.rs`.
//! Layout:
//! ```text
//! /cluster                           ClusterRecord
//! /controller                        ControllerRecord   ephemeral
//! /controller_epoch                  number of the newest term
//! /nodes/<node>                      NodeRecord         ephemeral
//! /intents/<node>                    NodeIntent
//! /topics/<topic id>                 TopicRecord: the topic exists
//! /names/<name>                      topic id: the name is taken, also while the topic is being made
//! /partitions/<topic id>/<number>    PartitionRecord
//! /deletions/<topic id>              Deletion: the topic exists no more, its partitions go
//! /faults/<node>-<log id>            ReplicaFault       ephemeral
//! /suspicions/<by>-<node>            Suspicion          ephemeral
//! /removals/<node>/<topic id>-<log>  Removal, named by the first log of its list
//! ```

use corelog_engine::{LogId, PartitionId, TopicId, TopicPartition};

use crate::coordination::Key;
use crate::replica::{NodeId, ReplicaId};

/// Where the cluster's identity lies.
pub const CLUSTER: &str = "/cluster";
/// Where the controller says that it is one.
pub const CONTROLLER: &str = "/controller";
/// Where the number of the newest controller's term lies; each commit of a controller checks its version.
pub const CONTROLLER_EPOCH: &str = "/controller_epoch";

/// What a key is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The cluster.
    Cluster,
    /// The controller.
    Controller,
    /// The controller's term.
    ControllerEpoch,
    /// A node that runs.
    Node(NodeId),
    /// What was asked of a node.
    Intent(NodeId),
    /// A topic.
    Topic(TopicId),
    /// A topic's name.
    Name(String),
    /// A partition.
    Partition(TopicPartition),
    /// A topic that goes.
    Deletion(TopicId),
    /// A fault of a replica.
    Fault(ReplicaId),
    /// A suspicion.
    Suspicion {
        /// Who suspects.
        by: NodeId,
        /// Whom.
        node: NodeId,
    },
    /// Logs to delete.
    Removal(RemovalId),
}

/// Names one list of logs to delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemovalId {
    /// Where they are.
    pub node: NodeId,
    /// Their topic.
    pub topic: TopicId,
    /// The first of the list.
    pub first: LogId,
}

impl Subject {
    /// The key of this.
    pub fn key(&self) -> Key {
        match self {
            Self::Cluster => CLUSTER.to_owned(),
            Self::Controller => CONTROLLER.to_owned(),
            Self::ControllerEpoch => CONTROLLER_EPOCH.to_owned(),
            Self::Node(node) => format!("/nodes/{node}"),
            Self::Intent(node) => format!("/intents/{node}"),
            Self::Topic(topic) => format!("/topics/{topic}"),
            Self::Name(name) => format!("/names/{name}"),
            Self::Partition(id) => format!("/partitions/{}/{}", id.topic, id.partition),
            Self::Deletion(topic) => format!("/deletions/{topic}"),
            Self::Fault(replica) => format!("/faults/{}-{}", replica.node, replica.log),
            Self::Suspicion { by, node } => format!("/suspicions/{by}-{node}"),
            Self::Removal(id) => format!("/removals/{}/{}-{}", id.node, id.topic, id.first),
        }
    }

    /// What `key` is about; `None` if it is no key of this layout (another program's, or a later version's).
    pub fn parse(key: &str) -> Option<Self> {
        let mut parts = key.strip_prefix('/')?.split('/');
        let (family, second, third) = (parts.next()?, parts.next(), parts.next());
        if parts.next().is_some() {
            return None;
        }
        Some(match (family, second, third) {
            ("cluster", None, None) => Self::Cluster,
            ("controller", None, None) => Self::Controller,
            ("controller_epoch", None, None) => Self::ControllerEpoch,
            ("nodes", Some(node), None) => Self::Node(parse_node(node)?),
            ("intents", Some(node), None) => Self::Intent(parse_node(node)?),
            ("topics", Some(topic), None) => Self::Topic(TopicId(parse_hex(topic)?)),
            ("names", Some(name), None) if !name.is_empty() => Self::Name(name.to_owned()),
            ("partitions", Some(topic), Some(number)) => Self::Partition(TopicPartition {
                topic: TopicId(parse_hex(topic)?),
                partition: PartitionId(parse_number(number)?),
            }),
            ("deletions", Some(topic), None) => Self::Deletion(TopicId(parse_hex(topic)?)),
            ("faults", Some(replica), None) => {
                let (node, log) = replica.split_once('-')?;
                Self::Fault(ReplicaId { node: parse_node(node)?, log: LogId(parse_hex(log)?) })
            }
            ("suspicions", Some(pair), None) => {
                let (by, node) = pair.split_once('-')?;
                Self::Suspicion { by: parse_node(by)?, node: parse_node(node)? }
            }
            ("removals", Some(node), Some(list)) => {
                let (topic, first) = list.split_once('-')?;
                Self::Removal(RemovalId {
                    node: parse_node(node)?,
                    topic: TopicId(parse_hex(topic)?),
                    first: LogId(parse_hex(first)?),
                })
            }
            _ => return None,
        })
    }
}

/// An id as it stands in keys and values: 32 hexadecimal digits, in lower case.
pub(super) fn parse_hex(text: &str) -> Option<u128> {
    let is_digit = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
    (text.len() == 32 && text.bytes().all(is_digit)).then(|| u128::from_str_radix(text, 16).ok())?
}

/// A node's number as it stands in keys and values.
pub(super) fn parse_node(text: &str) -> Option<NodeId> {
    parse_number(text).map(NodeId)
}

fn parse_number(text: &str) -> Option<u32> {
    let number: u32 = text.parse().ok()?;
    // One thing, one key: "+1" and "01" are not 1.
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subjects() -> Vec<(Subject, &'static str)> {
        let topic = TopicId(0xab);
        vec![
            (Subject::Cluster, "/cluster"),
            (Subject::Controller, "/controller"),
            (Subject::ControllerEpoch, "/controller_epoch"),
            (Subject::Node(NodeId(3)), "/nodes/3"),
            (Subject::Intent(NodeId(0)), "/intents/0"),
            (Subject::Topic(topic), "/topics/000000000000000000000000000000ab"),
            (Subject::Name("orders.eu-1".to_owned()), "/names/orders.eu-1"),
            (
                Subject::Partition(TopicPartition { topic, partition: PartitionId(12) }),
                "/partitions/000000000000000000000000000000ab/12",
            ),
            (Subject::Deletion(topic), "/deletions/000000000000000000000000000000ab"),
            (
                Subject::Fault(ReplicaId { node: NodeId(2), log: LogId(u128::MAX) }),
                "/faults/2-ffffffffffffffffffffffffffffffff",
            ),
            (Subject::Suspicion { by: NodeId(1), node: NodeId(2) }, "/suspicions/1-2"),
            (
                Subject::Removal(RemovalId { node: NodeId(7), topic, first: LogId(1) }),
                "/removals/7/000000000000000000000000000000ab-00000000000000000000000000000001",
            ),
        ]
    }

    #[test]
    fn each_subject_has_one_key() {
        for (subject, key) in subjects() {
            assert_eq!(subject.key(), key);
            assert_eq!(Subject::parse(key), Some(subject), "{key}");
        }
    }

    #[test]
    fn other_keys_are_nobodys() {
        let odd = [
            "",
            "/",
            "nodes/1",
            "/nodes",
            "/nodes/",
            "/nodes/01",
            "/nodes/+1",
            "/nodes/4294967296",
            "/nodes/1/2",
            "/names/",
            "/topics/AB",
            "/topics/000000000000000000000000000000AB",
            "/partitions/000000000000000000000000000000ab",
            "/partitions/000000000000000000000000000000ab/1/2",
            "/faults/1",
            "/suspicions/1",
            "/removals/1/2",
            "/elections/1",
        ];
        for key in odd {
            assert_eq!(Subject::parse(key), None, "{key:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_judged_without_panic(text in "(/[a-z_]{0,12}){0,4}(/[0-9a-f-]{0,70}){0,3}|.{0,60}") {
            if let Some(subject) = Subject::parse(&text) {
                prop_assert_eq!(subject.key(), text);
            }
        }
    }
}
