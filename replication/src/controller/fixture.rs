//! Test language for records and standings, so that a decision's test is a table of short lines.
//!
//! A record: `1* 2 3* / 1.7 e5` (replicas by node in order of preference, `*`: in the ISR; leader node and incarnation,
//! or `-`; epoch; `u4` after it: the unclean epoch). Standings: `1.7 2.1:failed` (node, incarnation, and what is wrong).

use std::collections::BTreeMap;
use std::fmt;

use corelog_engine::{LeaderEpoch, LogId};

use super::standing::Standing;
use crate::cluster::{DataDirId, FaultKind, Incarnation, PartitionLeader, PartitionRecord, ReplicaRecord};
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
            "leaving" => standing.is_leaving = true,
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
