//! Test language for records and standings, so that a decision's test is a table of short lines.
//!
//! A record: `1* 2 3* / 1.7 e5` (replicas by node in order of preference, `*`: in the ISR; leader node and incarnation,
//! or `-`; epoch; `u4` after it: the unclean epoch). Standings: `1.7 2.1:failed` (node, incarnation, and what is wrong).

use std::collections::BTreeMap;
use std::fmt;

use corelog_engine::{LeaderEpoch, LogId, PartitionId, TimestampMs, TopicId, TopicPartition};

use super::standing::{Reluctance, Standing};
use crate::cluster::keys::Subject;
use crate::cluster::{
    ClusterState, DataDirId, DataDirRecord, Endpoint, FaultKind, Incarnation, NamedTopic, NodeIntent,
    NodeRecord, PartitionLeader, PartitionRecord, ReplicaFault, ReplicaRecord, ShardRecord, Stored,
    Suspicion, TopicRecord,
};
use crate::coordination::{Entry, Event, Op, Version};
use crate::replica::{NodeId, ReplicaId};

/// The log that the replica of a node has in these tests.
pub(super) fn log(node: u32) -> LogId {
    LogId(u128::from(node) * 10)
}

fn replica(node: u32) -> ReplicaRecord {
    ReplicaRecord { node: NodeId(node), log: log(node), dir: DataDirId(u128::from(node)), shard: 0 }
}

/// Reads a record.
pub(super) fn record(text: &str) -> PartitionRecord {
    let (replicas, rest) = text.split_once(" / ").expect("replicas / leader epoch");
    let mut record = PartitionRecord {
        replicas: vec![],
        isr: vec![],
        leader: None,
        leader_epoch: LeaderEpoch(0),
        unclean_epoch: None,
    };
    for word in replicas.split(' ') {
        let node = replica(word.trim_end_matches('*').parse().expect("a node"));
        record.replicas.push(node);
        if word.ends_with('*') {
            record.isr.push(node.id());
        }
    }
    for word in rest.split(' ') {
        if let Some(epoch) = word.strip_prefix('e') {
            record.leader_epoch = LeaderEpoch(epoch.parse().expect("an epoch"));
        } else if let Some(epoch) = word.strip_prefix('u') {
            record.unclean_epoch = Some(LeaderEpoch(epoch.parse().expect("an epoch")));
        } else if let Some((node, incarnation)) = word.split_once('.') {
            record.leader = Some(PartitionLeader {
                replica: replica(node.parse().expect("a node")).id(),
                incarnation: Incarnation(incarnation.parse().expect("an incarnation")),
            });
        }
    }
    record.check().expect("a record that may be stored");
    record
}

/// Writes a record; a log that is not the node's own in these tests is shown behind `@`.
pub(super) struct RecordText(pub(super) PartitionRecord);

impl fmt::Display for RecordText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = |f: &mut fmt::Formatter<'_>, id: ReplicaId| {
            write!(f, "{}", id.node)?;
            if id.log == log(id.node.0) { Ok(()) } else { write!(f, "@{}", id.log.0) }
        };
        for replica in &self.0.replicas {
            id(f, replica.id())?;
            f.write_str(if self.0.isr.contains(&replica.id()) { "* " } else { " " })?;
        }
        f.write_str("/ ")?;
        match self.0.leader {
            Some(leader) => {
                id(f, leader.replica)?;
                write!(f, ".{}", leader.incarnation.0)?;
            }
            None => f.write_str("-")?,
        }
        write!(f, " e{}", self.0.leader_epoch)?;
        match self.0.unclean_epoch {
            Some(epoch) => write!(f, " u{epoch}"),
            None => Ok(()),
        }
    }
}

/// Standings by node.
pub(super) struct Standings(pub(super) BTreeMap<NodeId, Standing>);

/// Reads standings.
pub(super) fn standings(text: &str) -> Standings {
    let mut table = BTreeMap::new();
    for word in text.split_whitespace() {
        let (name, wrong) = word.split_once(':').unwrap_or((word, ""));
        let (node, incarnation) = name.split_once('.').expect("node.incarnation");
        let mut standing = Standing {
            incarnation: Some(Incarnation(incarnation.parse().expect("an incarnation"))),
            ..Standing::default()
        };
        match wrong {
            "" => {}
            "suspected" => standing.is_suspected = true,
            "drained" => standing.reluctance = Reluctance::Drained,
            "stopping" => standing.reluctance = Reluctance::Stopping,
            "nodir" => standing.is_dir_missing = true,
            "failed" => standing.fault = Some(FaultKind::Failed),
            "lost" => standing.fault = Some(FaultKind::Lost),
            "unverified" => standing.fault = Some(FaultKind::Unverified),
            other => panic!("nothing is called {other:?}"),
        }
        table.insert(NodeId(node.parse().expect("a node")), standing);
    }
    Standings(table)
}

/// The topic of these tests, called `t`.
pub(super) const TOPIC: TopicId = TopicId(1);

/// One of its partitions.
pub(super) fn id(number: u32) -> TopicPartition {
    TopicPartition { topic: TOPIC, partition: PartitionId(number) }
}

/// The picture with these nodes and these partitions of one topic; a fault is of the node's replica of each.
pub(super) fn cluster(nodes: &str, partitions: &[&str]) -> ClusterState {
    let Standings(table) = standings(nodes);
    let records: Vec<PartitionRecord> = partitions.iter().map(|text| record(text)).collect();
    let mut entries = Vec::new();
    let mut add = |subject: Subject, value: crate::coordination::Value| {
        entries.push(Entry { key: subject.key(), value, version: Version(0) });
    };
    for (node, standing) in &table {
        add(Subject::Node(*node), registration(*node, *standing).encode());
        let intent = NodeIntent { node: *node, is_drained: standing.reluctance == Reluctance::Drained };
        add(Subject::Intent(*node), intent.encode());
        if let Some((kind, incarnation)) = standing.fault.zip(standing.incarnation) {
            let replica = replica(node.0).id();
            add(
                Subject::Fault(replica),
                ReplicaFault { replica, kind, reason: format!("{incarnation:?}") }.encode(),
            );
        }
        let other = table.keys().find(|other| *other != node);
        if let Some((by, incarnation)) = other.zip(standing.incarnation).filter(|_| standing.is_suspected) {
            let suspicion = Suspicion { by: *by, node: *node, incarnation };
            add(Subject::Suspicion { by: *by, node: *node }, suspicion.encode());
        }
    }
    if let Some(first) = records.first() {
        let topic = TopicRecord {
            id: TOPIC,
            name: "t".to_owned(),
            created: TimestampMs(0),
            partitions: u32::try_from(records.len()).expect("few"),
            replicas: u16::try_from(first.replicas.len()).expect("few"),
            is_internal: false,
            options: BTreeMap::new(),
        };
        add(Subject::Topic(TOPIC), topic.encode());
        add(Subject::Name("t".to_owned()), NamedTopic(TOPIC).encode());
    }
    (0..).zip(&records).for_each(|(number, record)| add(Subject::Partition(id(number)), record.encode()));
    let mut state = ClusterState::default();
    state.apply(&Event::State { session: 1, entries });
    assert!(state.problems.is_empty(), "{:?}", state.problems);
    state
}

fn registration(node: NodeId, standing: Standing) -> NodeRecord {
    let endpoint = || Endpoint { host: "n".to_owned(), port: 1 };
    let dir = u128::from(node.0) + if standing.is_dir_missing { 1_000 } else { 0 };
    NodeRecord {
        node,
        incarnation: standing.incarnation.expect("a node that runs has one"),
        started: TimestampMs(0),
        program_version: String::new(),
        rack: String::new(),
        shards: vec![ShardRecord { core: 0, client: endpoint(), replication: endpoint() }],
        data_dirs: vec![DataDirRecord { id: DataDirId(dir), free_bytes: 1 << 40 }],
        is_stopping: standing.reluctance == Reluctance::Stopping,
        http: None,
    }
}

/// Does the commits on the picture, as a store would. Panics on a conflict.
pub(super) fn commit(state: &mut ClusterState, commits: &[Vec<Op>], stored: &mut BTreeMap<String, i64>) {
    for op in commits.iter().flatten() {
        let there = stored.get(op.key()).copied();
        let event = match op {
            Op::Check { key, version } => {
                assert_eq!(there.unwrap_or(0), version.0, "{key}");
                continue;
            }
            Op::Create { key, value, .. } => {
                stored.insert(key.clone(), 0);
                Event::Changed(Entry { key: key.clone(), value: value.clone(), version: Version(0) })
            }
            Op::Put { key, value, version } => {
                assert_eq!(there.unwrap_or(0), version.0, "{key}");
                stored.insert(key.clone(), version.0 + 1);
                let version = Version(version.0 + 1);
                Event::Changed(Entry { key: key.clone(), value: value.clone(), version })
            }
            Op::Delete { key, version } => {
                assert_eq!(there.unwrap_or(0), version.0, "{key}");
                stored.remove(key);
                Event::Removed { key: key.clone() }
            }
        };
        state.apply(&event);
    }
    assert!(state.problems.is_empty(), "{:?}", state.problems);
}

/// A partition of the picture, in words.
pub(super) fn show(state: &ClusterState, number: u32) -> String {
    RecordText((*state.partitions[&id(number)].record).clone()).to_string()
}
