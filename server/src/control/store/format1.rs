//! Reads a store of format 1 (one node, typed tables) and says what it is in keys.
//!
//! Owns: the old tables and rows, to read and to drop; the conversion, as a pure function.
//! Invariant: ids do not change, so logs and directories stay what and where they are. Each partition has one replica,
//! this node's, and has been led in every epoch up to the number of starts: the next leadership comes after them.
//!
//! | table | key | value |
//! |---|---|---|
//! | topics | topic id | JSON, see [`TopicRow`] |
//! | names | topic name | topic id |
//!
//! The tables `node`, `deleted` and `data_dirs` are read and kept by format 2 as well (`kv.rs`).

#![expect(
    clippy::result_large_err,
    reason = "redb's errors are large; they are rare and handled one call up"
)]

use std::collections::BTreeMap;

use corelog_engine::{LeaderEpoch, LogId, PartitionId, TimestampMs, TopicId, TopicPartition};
use corelog_replication::cluster::keys::Subject;
use corelog_replication::cluster::{
    DataDirId, NamedTopic, PartitionRecord, ReplicaRecord, Stored as _, TopicRecord,
};
use corelog_replication::coordination::{Key, Value};
use corelog_replication::{NodeId, ReplicaId};
use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::Deserialize;

const TOPICS: TableDefinition<'_, u128, &str> = TableDefinition::new("topics");
const NAMES: TableDefinition<'_, &str, u128> = TableDefinition::new("names");

/// Ids as hex text, because JSON numbers have 53 bits.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct TopicRow {
    name: String,
    created_ms: i64,
    #[serde(default)]
    options: BTreeMap<String, String>,
    partitions: Vec<PartitionRow>,
}

#[derive(Clone, Debug, Deserialize)]
struct PartitionRow {
    log: String,
    dir: String,
    shard: u16,
    #[serde(default)]
    confirmed: bool,
}

/// What a store of format 1 holds beside what format 2 keeps.
#[derive(Debug)]
pub(super) struct Format1 {
    pub(super) node: NodeId,
    /// Starts of the node so far: each was a leader epoch.
    pub(super) starts: u32,
    pub(super) topics: Vec<(TopicId, TopicRow)>,
}

/// The same in format 2.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Converted {
    pub(super) keys: Vec<(Key, Value)>,
    /// Logs that exist: one of them that is missing was lost.
    pub(super) made: Vec<(DataDirId, LogId)>,
}

/// Why the old tables cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConvertError {
    /// A row makes no sense.
    #[error("topic {topic}: {problem}")]
    Row {
        /// Of which topic.
        topic: TopicId,
        /// What is wrong.
        problem: String,
    },
    /// redb.
    #[error(transparent)]
    Store(#[from] redb::Error),
}

/// Reads the topics.
pub(super) fn read_topics(transaction: &WriteTransaction) -> Result<Vec<(TopicId, TopicRow)>, ConvertError> {
    let table = transaction.open_table(TOPICS).map_err(redb::Error::from)?;
    let mut topics = Vec::new();
    for row in table.iter().map_err(redb::Error::from)? {
        let (id, row) = row.map_err(redb::Error::from)?;
        let topic = TopicId(id.value());
        let row = serde_json::from_str(row.value())
            .map_err(|error| ConvertError::Row { topic, problem: error.to_string() })?;
        topics.push((topic, row));
    }
    Ok(topics)
}

/// Drops the tables that have been taken over.
pub(super) fn drop_tables(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.delete_table(TOPICS)?;
    transaction.delete_table(NAMES)?;
    Ok(())
}

/// What the topics of a single node are in a cluster of one.
pub(super) fn convert(old: &Format1) -> Result<Converted, ConvertError> {
    let mut converted = Converted::default();
    for (id, row) in &old.topics {
        let topic = *id;
        let wrong = |problem: String| ConvertError::Row { topic, problem };
        let hex =
            |text: &str| u128::from_str_radix(text, 16).map_err(|error| wrong(format!("{text:?}: {error}")));
        let count = u32::try_from(row.partitions.len()).map_err(|error| wrong(error.to_string()))?;
        for (number, partition) in (0..count).zip(&row.partitions) {
            let (log, dir) = (LogId(hex(&partition.log)?), DataDirId(hex(&partition.dir)?));
            if partition.confirmed {
                converted.made.push((dir, log));
            }
            let id = TopicPartition { topic, partition: PartitionId(number) };
            let record = PartitionRecord {
                replicas: vec![ReplicaRecord { node: old.node, log, dir, shard: partition.shard }],
                isr: vec![ReplicaId { node: old.node, log }],
                leader: None,
                leader_epoch: LeaderEpoch(old.starts),
                unclean_epoch: None,
            };
            converted.keys.push((Subject::Partition(id).key(), record.encode()));
        }
        let record = TopicRecord {
            id: topic,
            name: row.name.clone(),
            created: TimestampMs(row.created_ms),
            partitions: count,
            replicas: 1,
            is_internal: false,
            options: row.options.clone(),
        };
        converted.keys.push((Subject::Name(row.name.clone()).key(), NamedTopic(topic).encode()));
        converted.keys.push((Subject::Topic(topic).key(), record.encode()));
    }
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn old(partitions: &str) -> Format1 {
        let row = format!(
            r#"{{"name":"orders","created_ms":7,"version":3,"options":{{"flush":"commit"}},"partitions":{partitions}}}"#
        );
        let row = serde_json::from_str(&row).expect("a row");
        Format1 { node: NodeId(4), starts: 9, topics: vec![(TopicId(0xab), row)] }
    }

    #[test]
    fn a_topic_keeps_its_ids_and_its_partitions_their_places() {
        let partitions =
            r#"[{"log":"1f","dir":"d1","shard":3,"confirmed":true},{"log":"20","dir":"d2","shard":0}]"#;
        let Converted { keys, made } = convert(&old(partitions)).expect("sound rows");
        assert_eq!(made, [(DataDirId(0xd1), LogId(0x1f))]);
        let value = |subject: &Subject| {
            let key = subject.key();
            keys.iter().find(|(there, _)| *there == key).map(|(_, value)| value.clone()).expect("there")
        };
        let topic = TopicId(0xab);
        let record = TopicRecord::decode(&value(&Subject::Topic(topic))).expect("a record");
        let options = BTreeMap::from([("flush".to_owned(), "commit".to_owned())]);
        assert_eq!((record.id, record.name.as_str(), record.created), (topic, "orders", TimestampMs(7)));
        assert_eq!((record.partitions, record.replicas, record.options), (2, 1, options));
        let name = NamedTopic::decode(&value(&Subject::Name("orders".to_owned()))).expect("a record");
        assert_eq!(name, NamedTopic(topic));
        for (number, log, dir, shard) in [(0, 0x1f, 0xd1, 3), (1, 0x20, 0xd2, 0)] {
            let id = TopicPartition { topic, partition: PartitionId(number) };
            let record = PartitionRecord::decode(&value(&Subject::Partition(id))).expect("a record");
            assert_eq!(record.check(), Ok(()));
            let place = ReplicaRecord { node: NodeId(4), log: LogId(log), dir: DataDirId(dir), shard };
            assert_eq!((record.replicas, record.leader), (vec![place], None));
            // Epochs up to the number of starts have been used in its log.
            assert_eq!(record.leader_epoch, LeaderEpoch(9));
        }
        assert_eq!(keys.len(), 4);
    }

    #[test]
    fn a_row_without_sense_is_refused_by_its_topic() {
        let error = convert(&old(r#"[{"log":"xyz","dir":"d1","shard":3}]"#)).expect_err("no hex");
        assert!(error.to_string().contains("000000ab") && error.to_string().contains("xyz"), "{error}");
    }
}
