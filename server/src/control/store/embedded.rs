//! The metadata store of a single node: one redb file, nothing to install.
//!
//! Owns: the tables and the encoding of their values. redb commits with a sync and keeps its previous state until
//! then, so a kill or power loss leaves the state before or after a write, never between.
//!
//! | table | key | value |
//! |---|---|---|
//! | node | text | format, node id, start counter (decimal text), cluster id |
//! | topics | topic id | JSON, see [`TopicRow`] |
//! | names | topic name | topic id |
//! | deleted | topic id | JSON, see [`DeletedRow`] |
//! | data_dirs | data directory id | path |
//!
//! Evolution: rows gain optional fields; anything else is a new format number, which older versions refuse.

use std::collections::BTreeMap;
use std::path::Path;

use corelog_engine::{LeaderEpoch, LogId, TimestampMs, TopicId};
use redb::{
    Database, ReadableTable, StorageError, Table, TableDefinition, TableError, TransactionError,
    WriteTransaction,
};
use serde::{Deserialize, Serialize};

use super::{
    Change, Coordination, DeletedTopic, StoreError, Stored, StoredPartition, StoredTopic, Version, classify,
};
use crate::control::data_dir::{DataDirId, sync_dir};
use crate::control::snapshot::{NodeId, ShardId};

/// Shape of the tables that this code reads and writes.
const FORMAT: u32 = 1;

const NODE: TableDefinition<'_, &str, &str> = TableDefinition::new("node");
const TOPICS: TableDefinition<'_, u128, &str> = TableDefinition::new("topics");
const NAMES: TableDefinition<'_, &str, u128> = TableDefinition::new("names");
const DELETED: TableDefinition<'_, u128, &str> = TableDefinition::new("deleted");
const DATA_DIRS: TableDefinition<'_, u128, &str> = TableDefinition::new("data_dirs");

/// Ids as hex text, because JSON numbers have 53 bits.
#[derive(Serialize, Deserialize)]
struct TopicRow {
    name: String,
    created_ms: i64,
    version: u64,
    #[serde(default)]
    options: BTreeMap<String, String>,
    partitions: Vec<PartitionRow>,
}

#[derive(Serialize, Deserialize)]
struct PartitionRow {
    log: String,
    dir: String,
    shard: u16,
    #[serde(default)]
    confirmed: bool,
}

#[derive(Serialize, Deserialize)]
struct DeletedRow {
    name: String,
    dirs: Vec<String>,
}

/// The open store.
#[derive(Debug)]
pub struct EmbeddedStore {
    database: Database,
    path: String,
}

impl EmbeddedStore {
    /// Opens the store of a node; makes it, for this node and cluster, if there is none.
    pub fn open(path: &Path, node: NodeId, cluster_id: &str) -> Result<Self, StoreError> {
        if !path.exists() {
            Self::make(path, node, cluster_id)?;
        }
        let store = Self::open_existing(path)?;
        store.initialize(node, cluster_id)?;
        Ok(store)
    }

    /// Makes a store aside and puts it in place whole, so that a kill in the middle leaves none rather than a half
    /// one, which could not be told from a damaged one.
    fn make(path: &Path, node: NodeId, cluster_id: &str) -> Result<(), StoreError> {
        let failed = |error: std::io::Error| classify(&path.display().to_string(), error.into());
        let aside = path.with_extension("redb.new");
        match std::fs::remove_file(&aside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let store = Self::open_existing(&aside)?;
        store.initialize(node, cluster_id)?;
        drop(store);
        std::fs::rename(&aside, path).map_err(failed)?;
        path.parent().map_or(Ok(()), sync_dir).map_err(failed)
    }

    fn open_existing(path: &Path) -> Result<Self, StoreError> {
        let shown = path.display().to_string();
        let database = Database::create(path).map_err(|error| classify(&shown, error.into()))?;
        Ok(Self { database, path: shown })
    }

    fn failed<E: Into<redb::Error>>(&self) -> impl Fn(E) -> StoreError + '_ {
        |error| classify(&self.path, error.into())
    }

    fn damaged(&self, problem: impl Into<String>) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), problem: problem.into() }
    }

    fn begin_write(&self) -> Result<WriteTransaction, StoreError> {
        self.database.begin_write().map_err(self.failed::<TransactionError>())
    }

    fn commit(&self, transaction: WriteTransaction) -> Result<(), StoreError> {
        transaction.commit().map_err(self.failed())
    }

    /// Makes the tables of a new store; checks the format of an old one.
    fn initialize(&self, node: NodeId, cluster_id: &str) -> Result<(), StoreError> {
        let transaction = self.begin_write()?;
        {
            let mut about = transaction.open_table(NODE).map_err(self.failed::<TableError>())?;
            let format = self.text(&about, "format")?;
            match format.as_deref().map(str::parse::<u32>) {
                Some(Ok(found)) if found > FORMAT => {
                    return Err(StoreError::NewerFormat { path: self.path.clone(), found, known: FORMAT });
                }
                // Dropping the transaction undoes nothing: the tables are there.
                Some(Ok(_)) => return Ok(()),
                Some(Err(error)) => return Err(self.damaged(format!("its format number: {error}"))),
                None => {
                    let (format, node) = (FORMAT.to_string(), node.to_string());
                    let rows = [
                        ("format", format.as_str()),
                        ("cluster_id", cluster_id),
                        ("node_id", &node),
                        ("starts", "0"),
                    ];
                    for (key, value) in rows {
                        about.insert(key, value).map_err(self.failed::<StorageError>())?;
                    }
                }
            }
            transaction.open_table(TOPICS).map_err(self.failed())?;
            transaction.open_table(NAMES).map_err(self.failed())?;
            transaction.open_table(DELETED).map_err(self.failed())?;
            transaction.open_table(DATA_DIRS).map_err(self.failed())?;
        }
        self.commit(transaction)
    }

    fn text(
        &self,
        table: &impl ReadableTable<&'static str, &'static str>,
        key: &str,
    ) -> Result<Option<String>, StoreError> {
        let row = table.get(key).map_err(self.failed::<StorageError>())?;
        Ok(row.map(|value| value.value().to_owned()))
    }

    fn topic_of(&self, id: u128, row: &str) -> Result<StoredTopic, StoreError> {
        let damaged = |problem: String| self.damaged(format!("topic {id:032x}: {problem}"));
        let row: TopicRow = serde_json::from_str(row).map_err(|error| damaged(error.to_string()))?;
        let hex = |text: &str| {
            u128::from_str_radix(text, 16).map_err(|error| damaged(format!("{text:?}: {error}")))
        };
        let partitions = row.partitions.iter().map(|partition| {
            Ok(StoredPartition {
                log_id: LogId(hex(&partition.log)?),
                data_dir: DataDirId(hex(&partition.dir)?),
                shard: ShardId(partition.shard),
                is_confirmed: partition.confirmed,
            })
        });
        Ok(StoredTopic {
            id: TopicId(id),
            created: TimestampMs(row.created_ms),
            version: Version(row.version),
            partitions: partitions.collect::<Result<_, StoreError>>()?,
            name: row.name,
            options: row.options,
        })
    }

    fn deleted_of(&self, id: u128, row: &str) -> Result<DeletedTopic, StoreError> {
        let damaged = |problem: String| self.damaged(format!("deleted topic {id:032x}: {problem}"));
        let row: DeletedRow = serde_json::from_str(row).map_err(|error| damaged(error.to_string()))?;
        let dirs = row.dirs.iter().map(|dir| u128::from_str_radix(dir, 16).map(DataDirId));
        let data_dirs = dirs.collect::<Result<_, _>>().map_err(|error| damaged(error.to_string()))?;
        Ok(DeletedTopic { id: TopicId(id), name: row.name, data_dirs })
    }

    fn stored_topic(
        &self,
        topics: &impl ReadableTable<u128, &'static str>,
        id: TopicId,
    ) -> Result<Option<StoredTopic>, StoreError> {
        let row = topics.get(id.0).map_err(self.failed::<StorageError>())?;
        row.map(|row| self.topic_of(id.0, row.value())).transpose()
    }

    fn put_topic(
        &self,
        tables: &mut Tables<'_>,
        topic: &StoredTopic,
        expected: Option<Version>,
    ) -> Result<StoredTopic, StoreError> {
        let conflict = || StoreError::Conflict { what: format!("topic {:?}", topic.name) };
        let there = self.stored_topic(&tables.topics, topic.id)?;
        if there.as_ref().map(|topic| topic.version) != expected {
            return Err(conflict());
        }
        let named = tables.names.get(topic.name.as_str()).map_err(self.failed::<StorageError>())?;
        if named.is_some_and(|id| id.value() != topic.id.0) {
            return Err(conflict());
        }
        let topic = StoredTopic { version: Version(expected.map_or(1, |v| v.0 + 1)), ..topic.clone() };
        let partitions = topic.partitions.iter().map(|partition| PartitionRow {
            log: partition.log_id.to_string(),
            dir: partition.data_dir.to_string(),
            shard: partition.shard.0,
            confirmed: partition.is_confirmed,
        });
        let row = json(&TopicRow {
            name: topic.name.clone(),
            created_ms: topic.created.0,
            version: topic.version.0,
            options: topic.options.clone(),
            partitions: partitions.collect(),
        });
        tables.topics.insert(topic.id.0, row.as_str()).map_err(self.failed::<StorageError>())?;
        tables.names.insert(topic.name.as_str(), topic.id.0).map_err(self.failed::<StorageError>())?;
        Ok(topic)
    }

    fn delete_topic(
        &self,
        tables: &mut Tables<'_>,
        id: TopicId,
        expected: Version,
    ) -> Result<(), StoreError> {
        let topic = self.stored_topic(&tables.topics, id)?.filter(|topic| topic.version == expected);
        let topic = topic.ok_or_else(|| StoreError::Conflict { what: format!("topic id {id}") })?;
        let mut dirs: Vec<String> = topic.partitions.iter().map(|p| p.data_dir.to_string()).collect();
        dirs.sort();
        dirs.dedup();
        let row = json(&DeletedRow { name: topic.name.clone(), dirs });
        tables.topics.remove(id.0).map_err(self.failed::<StorageError>())?;
        tables.names.remove(topic.name.as_str()).map_err(self.failed::<StorageError>())?;
        tables.deleted.insert(id.0, row.as_str()).map_err(self.failed::<StorageError>())?;
        Ok(())
    }

    fn forget_deleted(
        &self,
        tables: &mut Tables<'_>,
        id: TopicId,
        gone: &[DataDirId],
    ) -> Result<(), StoreError> {
        let row = tables.deleted.get(id.0).map_err(self.failed::<StorageError>())?;
        let deleted = row.map(|row| self.deleted_of(id.0, row.value())).transpose()?;
        let Some(DeletedTopic { name, mut data_dirs, .. }) = deleted else { return Ok(()) };
        data_dirs.retain(|dir| !gone.contains(dir));
        if data_dirs.is_empty() {
            tables.deleted.remove(id.0).map_err(self.failed::<StorageError>())?;
        } else {
            let row = json(&DeletedRow { name, dirs: data_dirs.iter().map(DataDirId::to_string).collect() });
            tables.deleted.insert(id.0, row.as_str()).map_err(self.failed::<StorageError>())?;
        }
        Ok(())
    }

    fn apply(
        &self,
        transaction: &WriteTransaction,
        changes: &[Change],
    ) -> Result<Vec<StoredTopic>, StoreError> {
        let mut tables = Tables {
            topics: transaction.open_table(TOPICS).map_err(self.failed())?,
            names: transaction.open_table(NAMES).map_err(self.failed())?,
            deleted: transaction.open_table(DELETED).map_err(self.failed())?,
        };
        let mut put = Vec::new();
        for change in changes {
            match change {
                Change::PutTopic { topic, expected } => {
                    put.push(self.put_topic(&mut tables, topic, *expected)?);
                }
                Change::DeleteTopic { id, expected } => self.delete_topic(&mut tables, *id, *expected)?,
                Change::ForgetDeleted { id, data_dirs } => {
                    self.forget_deleted(&mut tables, *id, data_dirs)?
                }
                Change::PutDataDir { id, path } => {
                    let mut dirs = transaction.open_table(DATA_DIRS).map_err(self.failed())?;
                    dirs.insert(id.0, path.as_str()).map_err(self.failed::<StorageError>())?;
                }
            }
        }
        Ok(put)
    }
}

struct Tables<'a> {
    topics: Table<'a, u128, &'static str>,
    names: Table<'a, &'static str, u128>,
    deleted: Table<'a, u128, &'static str>,
}

fn json(row: &impl Serialize) -> String {
    serde_json::to_string(row).expect("plain fields serialize")
}

impl Coordination for EmbeddedStore {
    fn load(&self) -> Result<Stored, StoreError> {
        let transaction = self.database.begin_read().map_err(self.failed::<TransactionError>())?;
        let about = transaction.open_table(NODE).map_err(self.failed())?;
        let cluster_id =
            self.text(&about, "cluster_id")?.ok_or_else(|| self.damaged("it has no cluster id"))?;
        let node = self.text(&about, "node_id")?.and_then(|node| node.parse().ok());
        let node = node.map(NodeId).ok_or_else(|| self.damaged("it has no node id"))?;
        let mut stored =
            Stored { cluster_id, node, topics: Vec::new(), deleted: Vec::new(), data_dirs: BTreeMap::new() };
        let topics = transaction.open_table(TOPICS).map_err(self.failed())?;
        for row in topics.iter().map_err(self.failed::<StorageError>())? {
            let (id, row) = row.map_err(self.failed::<StorageError>())?;
            stored.topics.push(self.topic_of(id.value(), row.value())?);
        }
        let deleted = transaction.open_table(DELETED).map_err(self.failed())?;
        for row in deleted.iter().map_err(self.failed::<StorageError>())? {
            let (id, row) = row.map_err(self.failed::<StorageError>())?;
            stored.deleted.push(self.deleted_of(id.value(), row.value())?);
        }
        let dirs = transaction.open_table(DATA_DIRS).map_err(self.failed())?;
        for row in dirs.iter().map_err(self.failed::<StorageError>())? {
            let (id, path) = row.map_err(self.failed::<StorageError>())?;
            stored.data_dirs.insert(DataDirId(id.value()), path.value().to_owned());
        }
        Ok(stored)
    }

    fn begin_incarnation(&mut self) -> Result<LeaderEpoch, StoreError> {
        let transaction = self.begin_write()?;
        let starts = {
            let mut about = transaction.open_table(NODE).map_err(self.failed::<TableError>())?;
            let starts = self.text(&about, "starts")?.and_then(|starts| starts.parse::<u32>().ok());
            // Never from 0 again: an epoch that was used before would let old and new batches mix.
            let starts = starts.ok_or_else(|| self.damaged("it has no start counter"))?;
            let starts = starts.checked_add(1).filter(|starts| i32::try_from(*starts).is_ok());
            let starts = starts.ok_or_else(|| self.damaged("its start counter is at its end"))?;
            about.insert("starts", starts.to_string().as_str()).map_err(self.failed::<StorageError>())?;
            starts
        };
        self.commit(transaction)?;
        Ok(LeaderEpoch(starts))
    }

    fn write(&mut self, changes: &[Change]) -> Result<Vec<StoredTopic>, StoreError> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let transaction = self.begin_write()?;
        // An error drops the transaction, which undoes it.
        let put = self.apply(&transaction, changes)?;
        self.commit(transaction)?;
        Ok(put)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn topic(name: &str, id: u128) -> StoredTopic {
        let partition = |log| StoredPartition {
            log_id: LogId(log),
            data_dir: DataDirId(u128::MAX - 1),
            shard: ShardId(3),
            is_confirmed: log % 2 == 0,
        };
        StoredTopic {
            id: TopicId(id),
            name: name.to_owned(),
            created: TimestampMs(1_700_000_000_000),
            options: BTreeMap::from([("flush".to_owned(), "interval".to_owned())]),
            partitions: vec![partition(id + 1), partition(u128::MAX)],
            version: Version(0),
        }
    }

    fn open(dir: &Path) -> EmbeddedStore {
        EmbeddedStore::open(&dir.join("meta.redb"), NodeId(1), "c1").expect("the store opens")
    }

    fn put(topic: &StoredTopic, expected: Option<u64>) -> Change {
        Change::PutTopic { topic: topic.clone(), expected: expected.map(Version) }
    }

    #[test]
    fn what_is_written_is_there_after_opening_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut store = open(dir.path());
        let (a, b) = (topic("a", 1 << 100), topic("b", 2));
        let changes =
            [put(&a, None), put(&b, None), Change::PutDataDir { id: DataDirId(7), path: "/d".to_owned() }];
        let written = store.write(&changes).expect("written");
        assert_eq!(written.iter().map(|t| t.version.0).collect::<Vec<_>>(), [1, 1]);
        let before = store.load().expect("loaded");
        drop(store);
        let after = open(dir.path()).load().expect("loaded");
        assert_eq!(before, after);
        assert_eq!(after.topics, [written[1].clone(), written[0].clone()]);
        assert_eq!(after.data_dirs[&DataDirId(7)], "/d");
    }

    #[test]
    fn every_start_has_a_greater_epoch() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for start in 1..=3 {
            assert_eq!(open(dir.path()).begin_incarnation().expect("begun"), LeaderEpoch(start));
        }
    }

    #[test]
    fn a_stale_write_loses_and_changes_nothing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut store = open(dir.path());
        let a = topic("a", 1);
        store.write(&[put(&a, None)]).expect("written");
        let before = store.load().expect("loaded");
        let stale = [
            put(&a, None),
            put(&a, Some(7)),
            put(&topic("a", 2), None),
            Change::DeleteTopic { id: a.id, expected: Version(2) },
            Change::DeleteTopic { id: TopicId(9), expected: Version(1) },
        ];
        for change in stale {
            let both = [put(&topic("innocent", 5), None), change.clone()];
            let error = store.write(&both).expect_err("it is stale");
            assert!(matches!(error, StoreError::Conflict { .. }), "{change:?}: {error}");
            assert_eq!(store.load().expect("loaded"), before);
        }
    }

    #[test]
    fn a_deleted_topic_is_remembered_until_its_directories_are_gone() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut store = open(dir.path());
        let mut a = topic("a", 1);
        a.partitions[0].data_dir = DataDirId(5);
        store.write(&[put(&a, None)]).expect("written");
        // The name is free at once, for another topic.
        let changes = [Change::DeleteTopic { id: a.id, expected: Version(1) }, put(&topic("a", 2), None)];
        store.write(&changes).expect("written");
        let deleted = store.load().expect("loaded").deleted;
        assert_eq!(deleted[0].data_dirs, [DataDirId(5), DataDirId(u128::MAX - 1)]);
        let forget = |dir| Change::ForgetDeleted { id: a.id, data_dirs: vec![DataDirId(dir)] };
        store.write(&[forget(5)]).expect("written");
        assert_eq!(store.load().expect("loaded").deleted[0].data_dirs, [DataDirId(u128::MAX - 1)]);
        store.write(&[forget(u128::MAX - 1), forget(1)]).expect("written");
        assert_eq!(store.load().expect("loaded").deleted, []);
    }

    #[test]
    fn a_newer_or_a_damaged_store_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = open(dir.path());
        let transaction = store.begin_write().expect("begun");
        transaction.open_table(NODE).expect("table").insert("format", "2").expect("inserted");
        store.commit(transaction).expect("committed");
        drop(store);
        let path = dir.path().join("meta.redb");
        let error = EmbeddedStore::open(&path, NodeId(1), "c1").expect_err("it is newer");
        assert!(matches!(error, StoreError::NewerFormat { found: 2, .. }), "{error}");
        std::fs::write(&path, vec![b'x'; 4096]).expect("written");
        let error = EmbeddedStore::open(&path, NodeId(1), "c1").expect_err("it is damaged");
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    }
}
