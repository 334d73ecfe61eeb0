//! What may happen in these tests, one small thing at a time.

use corelog_engine::{TimestampMs, TopicId, TopicPartition};
use corelog_replication::cluster::keys::Subject;
use corelog_replication::cluster::{FaultKind, PartitionRecord, Stored};
use corelog_replication::controller::admin::{self, NewTopic};
use corelog_replication::coordination::Op;
use corelog_replication::{NodeId, ReplicaId};
use proptest::prelude::*;

use super::world::{By, World};

/// One thing that happens. Numbers are taken modulo what there is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Start(u32),
    Stop(u32),
    BeginStop(u32),
    Wipe { node: u32, is_dir_new: bool },
    Suspect { by: u32, node: u32, is_suspected: bool },
    Fault { partition: usize, at: usize, kind: FaultKind },
    ClearFault { partition: usize, at: usize },
    Shrink { partition: usize, at: usize },
    Grow { partition: usize },
    TakeSeat(usize),
    See { candidate: usize, events: usize },
    Plan { candidate: usize, lost: u8 },
    Wait(u64),
    CreateTopic { partitions: u32, replicas: u16, is_internal: bool },
    DeleteTopic(usize),
    CreatePartitions { topic: usize, more: u32 },
    AddReplica { partition: usize, on: Option<u32> },
    RemoveReplica { partition: usize, node: u32 },
    SetReplicas { topic: usize, replicas: u16 },
    Drain { node: u32, is_drained: bool },
    ElectPreferred(usize),
    ElectUnclean { partition: usize, on: Option<u32> },
}

/// Any step; what a cluster does all day more often than the rest.
pub(crate) fn step() -> impl Strategy<Value = Step> {
    let (node, at, partition) = (0_u32..5, 0_usize..4, 0_usize..12);
    let kind = prop_oneof![Just(FaultKind::Failed), Just(FaultKind::Unverified)];
    prop_oneof![
        4 => node.clone().prop_map(Step::Start),
        3 => node.clone().prop_map(Step::Stop),
        1 => node.clone().prop_map(Step::BeginStop),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, is_dir_new)| Step::Wipe { node, is_dir_new }),
        3 => (node.clone(), node.clone(), any::<bool>())
            .prop_map(|(by, node, is_suspected)| Step::Suspect { by, node, is_suspected }),
        2 => (partition.clone(), at.clone(), kind)
            .prop_map(|(partition, at, kind)| Step::Fault { partition, at, kind }),
        2 => (partition.clone(), at.clone()).prop_map(|(partition, at)| Step::ClearFault { partition, at }),
        4 => (partition.clone(), at).prop_map(|(partition, at)| Step::Shrink { partition, at }),
        6 => partition.clone().prop_map(|partition| Step::Grow { partition }),
        2 => (0_usize..2).prop_map(Step::TakeSeat),
        6 => (0_usize..2, 0_usize..30).prop_map(|(candidate, events)| Step::See { candidate, events }),
        8 => (0_usize..2, prop_oneof![Just(0_u8), any::<u8>()])
            .prop_map(|(candidate, lost)| Step::Plan { candidate, lost }),
        2 => (0_u64..3_000).prop_map(Step::Wait),
        3 => (1_u32..5, 0_u16..4, any::<bool>()).prop_map(|(partitions, replicas, is_internal)| {
            Step::CreateTopic { partitions, replicas, is_internal }
        }),
        1 => (0_usize..4).prop_map(Step::DeleteTopic),
        1 => (0_usize..4, 0_u32..3).prop_map(|(topic, more)| Step::CreatePartitions { topic, more }),
        2 => (partition.clone(), prop::option::of(node.clone()))
            .prop_map(|(partition, on)| Step::AddReplica { partition, on }),
        2 => (partition.clone(), node.clone())
            .prop_map(|(partition, node)| Step::RemoveReplica { partition, node }),
        1 => (0_usize..4, 0_u16..4).prop_map(|(topic, replicas)| Step::SetReplicas { topic, replicas }),
        1 => (node.clone(), any::<bool>()).prop_map(|(node, is_drained)| Step::Drain { node, is_drained }),
        1 => partition.clone().prop_map(Step::ElectPreferred),
        1 => (partition, prop::option::of(node))
            .prop_map(|(partition, on)| Step::ElectUnclean { partition, on }),
    ]
}

impl World {
    fn node(&self, number: u32) -> NodeId {
        let count = u32::try_from(self.nodes.len()).expect("few nodes");
        NodeId(number % count + 1)
    }

    fn partition(&self, number: usize) -> Option<TopicPartition> {
        let count = self.newest.partitions.len();
        self.newest.partitions.keys().nth(number.checked_rem(count)?).copied()
    }

    fn topic(&self, number: usize) -> Option<TopicId> {
        let count = self.newest.topics.len();
        self.newest.topics.keys().nth(number.checked_rem(count)?).copied()
    }

    fn replica(&self, partition: usize, at: usize) -> Option<ReplicaId> {
        let replicas = &self.newest.partitions[&self.partition(partition)?].replicas;
        Some(replicas[at % replicas.len()].id())
    }

    /// Lets it happen; what makes no sense now is passed over.
    pub(crate) fn take(&mut self, step: Step) {
        match step {
            Step::Start(node) => self.start(self.node(node)),
            Step::Stop(node) => self.stop(self.node(node)),
            Step::BeginStop(node) => self.begin_stop(self.node(node)),
            Step::Wipe { node, is_dir_new } => self.wipe(self.node(node), is_dir_new),
            Step::Suspect { by, node, is_suspected } => {
                self.suspect(self.node(by), self.node(node), is_suspected);
            }
            Step::Fault { partition, at, kind } => {
                let known = |replica| self.newest.faults.contains_key(&replica);
                if let Some(replica) = self.replica(partition, at).filter(|replica| !known(*replica)) {
                    self.fault(replica, kind);
                }
            }
            Step::ClearFault { partition, at } => {
                let is_lost = |replica: &ReplicaId| self.nodes[&replica.node].lost.contains(&replica.log);
                if let Some(replica) = self.replica(partition, at).filter(|replica| !is_lost(replica)) {
                    self.forget(&Subject::Fault(replica));
                }
            }
            Step::Shrink { partition, at } => {
                let replica = self.replica(partition, at);
                if let Some((id, replica)) = self.partition(partition).zip(replica) {
                    self.shrink(id, replica);
                }
            }
            Step::Grow { partition } => {
                if let Some(id) = self.partition(partition) {
                    self.grow(id);
                }
            }
            Step::TakeSeat(candidate) => self.take_seat(candidate),
            Step::See { candidate, events } => self.see(candidate, events),
            Step::Plan { candidate, lost } => drop(self.plan(candidate, lost)),
            Step::Wait(ms) => self.now_ms += ms,
            _ => self.administer(step),
        }
    }

    /// What an operator asks, decided on a picture that may be old.
    fn administer(&mut self, step: Step) {
        let mut ids = self.ids();
        let picture = if self.now_ms.is_multiple_of(3) { &self.newest } else { &self.candidates[0].picture };
        let by = if matches!(step, Step::ElectUnclean { .. }) { By::Unclean } else { By::Operator };
        let commits = match step {
            Step::CreateTopic { partitions, replicas, is_internal } => {
                let id = TopicId(ids());
                let new = NewTopic {
                    id,
                    name: format!("t{}", id.0),
                    partitions,
                    replicas,
                    is_internal,
                    options: Default::default(),
                    created: TimestampMs(0),
                };
                admin::create_topic(picture, &new, &mut ids).ok()
            }
            Step::DeleteTopic(topic) => {
                self.topic(topic).and_then(|id| admin::delete_topic(picture, id).ok())
            }
            Step::CreatePartitions { topic, more } => self.topic(topic).and_then(|id| {
                let total = picture.topics.get(&id)?.partitions + more;
                admin::create_partitions(picture, id, total, &mut ids).ok()
            }),
            Step::AddReplica { partition, on } => self.partition(partition).and_then(|id| {
                admin::add_replica(picture, id, on.map(|node| self.node(node)), &mut ids).ok()
            }),
            Step::RemoveReplica { partition, node } => self
                .partition(partition)
                .and_then(|id| admin::remove_replica(picture, id, self.node(node)).ok()),
            Step::SetReplicas { topic, replicas } => {
                self.topic(topic).and_then(|id| admin::set_replicas(picture, id, replicas, &mut ids).ok())
            }
            Step::Drain { node, is_drained } => admin::drain(picture, self.node(node), is_drained).ok(),
            Step::ElectPreferred(partition) => {
                self.partition(partition).and_then(|id| admin::elect_preferred(picture, id).ok())
            }
            Step::ElectUnclean { partition, on } => self.partition(partition).and_then(|id| {
                admin::elect_unclean(picture, id, on.map(|node| self.node(node)), &mut ids).ok()
            }),
            _ => None,
        };
        for ops in commits.unwrap_or_default() {
            // A conflict is for whoever asked to try again.
            if self.commit(by, &ops).is_err() {
                break;
            }
        }
    }

    /// The leader gives up waiting for a follower.
    fn shrink(&mut self, id: TopicPartition, gone: ReplicaId) {
        let Some((leader, mut record)) = self.leader_of(id) else { return };
        if gone != leader.replica {
            record.isr.retain(|member| *member != gone);
            self.store_isr(id, &record);
        }
    }

    /// Followers that can have caught up by now.
    pub(crate) fn grow(&mut self, id: TopicPartition) {
        let Some((_, mut record)) = self.leader_of(id) else { return };
        for replica in record.replicas.clone() {
            let member = replica.id();
            let is_fit =
                self.newest.faults.get(&member).is_none_or(|fault| fault.kind == FaultKind::Unverified);
            let is_new = !record.isr.contains(&member);
            if is_new && is_fit && self.newest.is_live(member.node) && self.can_follow(member, replica.dir) {
                record.isr.push(member);
            }
        }
        self.store_isr(id, &record);
        // Who is in sync again is verified.
        for member in &record.isr {
            if self.newest.faults.get(member).is_some_and(|fault| fault.kind == FaultKind::Unverified) {
                self.forget(&Subject::Fault(*member));
            }
        }
    }

    fn store_isr(&mut self, id: TopicPartition, record: &PartitionRecord) {
        let stored = &self.newest.partitions[&id];
        if *stored.record != *record {
            let key = Subject::Partition(id).key();
            let op = Op::Put { key, value: record.encode(), version: stored.version };
            self.commit(By::Leader, &[op]).expect("the picture is the newest");
        }
    }
}
