//! The picture of the cluster that each node keeps: every record of the store, by what it is about.
//!
//! Owns: applying store events, and the questions that several parts ask of the picture (who is live, where a leader
//! is, what a replica has to do).
//! Invariant: equal to decoding everything that is stored; a value that cannot be decoded, or that lies under another's
//! key, counts as absent and is listed in `problems`.
//! Not here: deciding anything (`controller/`), talking to the store (`agent/`).
//! Cost: a clone copies pointers, not records.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use corelog_engine::{LogId, PartitionId, TopicId, TopicPartition};

use super::codec::{ControllerEpoch, DecodeError, NamedTopic, Stored};
use super::keys::{RemovalId, Subject};
use super::records::{
    ClusterRecord, ControllerRecord, Deletion, Endpoint, Incarnation, NodeIntent, NodeRecord,
    PartitionRecord, Removal, ReplicaFault, ReplicaRecord, Suspicion, TopicRecord,
};
use super::suspicion::{Accusation, dead_nodes};
use crate::assignment::{Assignment, Role};
use crate::coordination::{Entry, Event, Key, Version};
use crate::replica::{NodeId, ReplicaId};

/// Option of a topic: fewer replicas in sync, and `acks = all` is refused. 1 if it is not set.
pub const MIN_INSYNC_REPLICAS: &str = "min_insync_replicas";

/// A record and the version that it is stored with.
#[derive(Debug, PartialEq, Eq)]
pub struct Versioned<R> {
    /// For the next compare-and-set.
    pub version: Version,
    /// What is stored.
    pub record: Rc<R>,
}

impl<R> Clone for Versioned<R> {
    fn clone(&self) -> Self {
        Self { version: self.version, record: Rc::clone(&self.record) }
    }
}

impl<R> std::ops::Deref for Versioned<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.record
    }
}

/// What an event has changed in the picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Nothing.
    Nothing,
    /// It is a whole new picture.
    All,
    /// What is stored about this, or that it is stored at all.
    Subject(Subject),
}

/// Everything that is stored.
#[derive(Clone, Debug, Default)]
pub struct ClusterState {
    /// The cluster's identity.
    pub cluster: Option<Versioned<ClusterRecord>>,
    /// Who decides.
    pub controller: Option<Versioned<ControllerRecord>>,
    /// The newest controller's term.
    pub controller_epoch: Option<Versioned<ControllerEpoch>>,
    /// Nodes that run.
    pub nodes: BTreeMap<NodeId, Versioned<NodeRecord>>,
    /// Nodes that are known, and what was asked of them.
    pub intents: BTreeMap<NodeId, Versioned<NodeIntent>>,
    /// Topics that exist.
    pub topics: BTreeMap<TopicId, Versioned<TopicRecord>>,
    /// Names that are taken.
    pub names: BTreeMap<String, Versioned<NamedTopic>>,
    /// Partitions; also those of topics that are being made or deleted.
    pub partitions: BTreeMap<TopicPartition, Versioned<PartitionRecord>>,
    /// Topics that go.
    pub deletions: BTreeMap<TopicId, Versioned<Deletion>>,
    /// Replicas that must not lead.
    pub faults: BTreeMap<ReplicaId, Versioned<ReplicaFault>>,
    /// What nodes say about others' processes, by who says it and about whom.
    pub suspicions: BTreeMap<(NodeId, NodeId), Versioned<Suspicion>>,
    /// Logs to delete.
    pub removals: BTreeMap<RemovalId, Versioned<Removal>>,
    /// Keys whose values are no records, and why. A person should look.
    pub problems: BTreeMap<Key, String>,
    suspected: BTreeSet<NodeId>,
}

impl ClusterState {
    /// Takes in what the store says. Never panics, whatever is stored.
    pub fn apply(&mut self, event: &Event) -> Changed {
        match event {
            Event::State { entries, .. } => {
                *self = Self::default();
                for entry in entries {
                    self.put(entry);
                }
                self.judge_nodes();
                Changed::All
            }
            Event::Changed(entry) => {
                let subject = self.put(entry);
                self.changed(subject)
            }
            Event::Removed { key } => {
                self.problems.remove(key);
                let subject = Subject::parse(key);
                if let Some(subject) = &subject {
                    self.take_out(subject);
                }
                self.changed(subject)
            }
            // What was known stays the best knowledge there is; sessions are the store's and the agent's matter.
            Event::Suspended | Event::Expired => Changed::Nothing,
        }
    }

    fn changed(&mut self, subject: Option<Subject>) -> Changed {
        if matches!(subject, Some(Subject::Node(_) | Subject::Suspicion { .. })) {
            self.judge_nodes();
        }
        subject.map_or(Changed::Nothing, Changed::Subject)
    }

    /// Stores one entry. Keys of no known layout are somebody else's.
    fn put(&mut self, entry: &Entry) -> Option<Subject> {
        let subject = Subject::parse(&entry.key)?;
        match self.try_put(&subject, entry) {
            Ok(()) => {
                self.problems.remove(&entry.key);
            }
            Err(error) => {
                self.take_out(&subject);
                self.problems.insert(entry.key.clone(), error.to_string());
            }
        }
        Some(subject)
    }

    fn try_put(&mut self, subject: &Subject, entry: &Entry) -> Result<(), DecodeError> {
        match subject {
            Subject::Cluster => self.cluster = Some(decode(entry, |_| true)?),
            Subject::Controller => self.controller = Some(decode(entry, |_| true)?),
            Subject::ControllerEpoch => self.controller_epoch = Some(decode(entry, |_| true)?),
            Subject::Node(node) => {
                self.nodes.insert(*node, decode(entry, |r: &NodeRecord| r.node == *node)?);
            }
            Subject::Intent(node) => {
                self.intents.insert(*node, decode(entry, |r: &NodeIntent| r.node == *node)?);
            }
            Subject::Topic(topic) => {
                self.topics.insert(*topic, decode(entry, |r: &TopicRecord| r.id == *topic)?);
            }
            Subject::Name(name) => {
                self.names.insert(name.clone(), decode(entry, |_| true)?);
            }
            Subject::Partition(id) => {
                self.partitions.insert(*id, decode(entry, |_| true)?);
            }
            Subject::Deletion(topic) => {
                self.deletions.insert(*topic, decode(entry, |r: &Deletion| r.topic == *topic)?);
            }
            Subject::Fault(replica) => {
                self.faults.insert(*replica, decode(entry, |r: &ReplicaFault| r.replica == *replica)?);
            }
            Subject::Suspicion { by, node } => {
                let record = decode(entry, |r: &Suspicion| r.by == *by && r.node == *node)?;
                self.suspicions.insert((*by, *node), record);
            }
            Subject::Removal(id) => {
                let record = decode(entry, |r: &Removal| r.node == id.node && r.topic == id.topic)?;
                self.removals.insert(*id, record);
            }
        }
        Ok(())
    }

    fn take_out(&mut self, subject: &Subject) {
        match subject {
            Subject::Cluster => self.cluster = None,
            Subject::Controller => self.controller = None,
            Subject::ControllerEpoch => self.controller_epoch = None,
            Subject::Node(node) => drop(self.nodes.remove(node)),
            Subject::Intent(node) => drop(self.intents.remove(node)),
            Subject::Topic(topic) => drop(self.topics.remove(topic)),
            Subject::Name(name) => drop(self.names.remove(name)),
            Subject::Partition(id) => drop(self.partitions.remove(id)),
            Subject::Deletion(topic) => drop(self.deletions.remove(topic)),
            Subject::Fault(replica) => drop(self.faults.remove(replica)),
            Subject::Suspicion { by, node } => drop(self.suspicions.remove(&(*by, *node))),
            Subject::Removal(id) => drop(self.removals.remove(id)),
        }
    }

    fn judge_nodes(&mut self) {
        let names_present_start =
            |s: &Suspicion| self.nodes.get(&s.node).is_some_and(|node| node.incarnation == s.incarnation);
        let accusations: Vec<Accusation> = self
            .suspicions
            .values()
            .filter(|s| names_present_start(s))
            .map(|s| Accusation { by: s.by, node: s.node })
            .collect();
        self.suspected = dead_nodes(&self.nodes.keys().copied().collect(), &accusations);
    }

    /// Whether a node has a session and is not taken for dead on others' evidence.
    pub fn is_live(&self, node: NodeId) -> bool {
        self.nodes.contains_key(&node) && !self.suspected.contains(&node)
    }

    /// Whether a node has a session but is taken for dead: see `suspicion.rs`.
    pub fn is_suspected(&self, node: NodeId) -> bool {
        self.suspected.contains(&node)
    }

    /// Which start of a node has a session now.
    pub fn incarnation(&self, node: NodeId) -> Option<Incarnation> {
        self.nodes.get(&node).map(|record| record.incarnation)
    }

    /// Whether an operator has asked for the node to lead nothing.
    pub fn is_drained(&self, node: NodeId) -> bool {
        self.intents.get(&node).is_some_and(|intent| intent.is_drained)
    }

    /// The topic with this name, if it exists.
    pub fn topic_named(&self, name: &str) -> Option<&Versioned<TopicRecord>> {
        self.topics.get(&self.names.get(name)?.0)
    }

    /// A topic's partitions, in order.
    pub fn partitions_of(
        &self,
        topic: TopicId,
    ) -> impl Iterator<Item = (TopicPartition, &Versioned<PartitionRecord>)> {
        let id = |number| TopicPartition { topic, partition: PartitionId(number) };
        self.partitions.range(id(0)..=id(u32::MAX)).map(|(id, record)| (*id, record))
    }

    /// What a node has to delete, in order.
    pub fn removals_of(&self, node: NodeId) -> impl Iterator<Item = (RemovalId, &Versioned<Removal>)> {
        let id = |n| RemovalId { node, topic: TopicId(n), first: LogId(n) };
        self.removals.range(id(0)..=id(u128::MAX)).map(|(id, record)| (*id, record))
    }

    /// Shard that has a replica now; `None` if its node does not run.
    pub fn shard_of(&self, replica: &ReplicaRecord) -> Option<u16> {
        let shards = self.nodes.get(&replica.node)?.shards.len();
        let shards = u16::try_from(shards).expect("decoding holds a node to 65535 shards");
        replica.shard.checked_rem(shards)
    }

    /// Node and shard of a partition's leader; `None` if nobody leads, or not any more: the leader's process is gone.
    pub fn leader_location(&self, partition: TopicPartition) -> Option<(NodeId, u16)> {
        let record = self.partitions.get(&partition)?;
        let leader = record.leader?;
        let node = leader.replica.node;
        if self.incarnation(node) != Some(leader.incarnation) {
            return None;
        }
        Some((node, self.shard_of(record.replica(leader.replica)?)?))
    }

    /// Where a shard listens for the streams of other nodes.
    pub fn replication_endpoint(&self, node: NodeId, shard: u16) -> Option<&Endpoint> {
        Some(&self.nodes.get(&node)?.shards.get(usize::from(shard))?.replication)
    }

    /// Fewest replicas in sync with which `acks = all` is taken, as set on the topic.
    pub fn min_insync_replicas(&self, topic: TopicId) -> usize {
        let set =
            self.topics.get(&topic).and_then(|topic| topic.options.get(MIN_INSYNC_REPLICAS)?.parse().ok());
        set.unwrap_or(1)
    }

    /// What a node, in this start of it, has to do for a partition. `None`: it has no replica, or the topic does not
    /// exist (any more).
    pub fn assignment(
        &self,
        node: NodeId,
        incarnation: Incarnation,
        partition: TopicPartition,
    ) -> Option<Assignment> {
        if !self.topics.contains_key(&partition.topic) {
            return None;
        }
        let stored = self.partitions.get(&partition)?;
        let me = stored.on_node(node)?.id();
        let role = match stored.leader {
            // Whoever was started anew never resumes: it waits for a new epoch. Having lost the registration is no
            // reason to stop: acks = all is safe by the epoch alone.
            Some(leader) if leader.replica == me && leader.incarnation == incarnation => Role::Lead,
            Some(leader) if leader.replica != me => match self.leader_location(partition) {
                Some((_, shard)) => Role::Follow { leader: leader.replica, shard },
                None => Role::Wait,
            },
            _ => Role::Wait,
        };
        Some(Assignment {
            partition,
            me,
            role,
            leader_epoch: stored.leader_epoch,
            replicas: stored.replicas.iter().map(ReplicaRecord::id).collect(),
            isr: stored.isr.clone(),
            version: stored.version,
            min_insync_replicas: self.min_insync_replicas(partition.topic),
        })
    }
}

/// Decodes an entry whose record must be about what its key says.
fn decode<R: Stored>(entry: &Entry, is_of_key: impl Fn(&R) -> bool) -> Result<Versioned<R>, DecodeError> {
    let record = R::decode(&entry.value)?;
    if !is_of_key(&record) {
        return Err(DecodeError { reason: "the record is about something else than its key".to_owned() });
    }
    Ok(Versioned { version: entry.version, record: Rc::new(record) })
}

#[cfg(test)]
mod tests;
