//! The file of a single node's store.
//!
//! Owns: opening, making and taking over; reading and writing of its tables. See `kv.rs` for what they mean.
//! Crash story: a new store is made aside and renamed into place, so that a kill in the middle leaves none rather than
//! a half one, which could not be told from a damaged one.

#![expect(
    clippy::result_large_err,
    reason = "redb's errors are large; they are rare and handled one call up"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use corelog_engine::{LogId, TopicId};
use corelog_replication::NodeId;
use corelog_replication::cluster::keys::CLUSTER;
use corelog_replication::cluster::{ClusterRecord, DataDirId, Stored as _};
use corelog_replication::coordination::Version;
use redb::{Database, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::super::format1::{self, ConvertError, Format1};
use super::super::keyspace::{Keyspace, Slot};
use super::super::{DeletedTopic, StoreError, classify};
use super::NodeLocal;
use crate::control::data_dir::sync_dir;

/// Shape of the tables that this code reads and writes.
const FORMAT: u32 = 2;
/// Format of the keys and values, as `/cluster` says it.
const CLUSTER_FORMAT: u32 = 1;

const KEYS: TableDefinition<'_, &str, (i64, &[u8])> = TableDefinition::new("keys");
const NODE: TableDefinition<'_, &str, &str> = TableDefinition::new("node");
const DATA_DIRS: TableDefinition<'_, u128, &str> = TableDefinition::new("data_dirs");
const DELETED: TableDefinition<'_, u128, &str> = TableDefinition::new("deleted");
const MADE: TableDefinition<'_, (u128, u128), ()> = TableDefinition::new("made");

/// Ids as hex text, because JSON numbers have 53 bits.
#[derive(Serialize, Deserialize)]
struct DeletedRow {
    name: String,
    dirs: Vec<String>,
}

/// A key with its version and value; none: it goes.
pub(super) type Row = (String, Option<(i64, Vec<u8>)>);

/// The keys of a file.
pub(super) struct Loaded(Vec<(String, i64, Vec<u8>)>);

impl Loaded {
    pub(super) fn into_keyspace(self) -> Keyspace {
        let mut keys = Keyspace::default();
        for (key, version, value) in self.0 {
            let slot = Slot { value: value.into(), version: Version(version), is_ephemeral: false };
            keys.insert(key, slot);
        }
        keys
    }
}

type Opener = Arc<dyn Fn(&Path) -> Result<Database, redb::Error> + Send + Sync>;

/// Where the file is and how it is opened.
#[derive(Clone)]
pub(super) struct Disk {
    path: PathBuf,
    shown: String,
    opener: Opener,
}

/// Writes rows in one synced transaction.
pub(super) fn write(database: &Database, rows: &[Row]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut table = transaction.open_table(KEYS)?;
        for (key, value) in rows {
            match value {
                Some((version, value)) => {
                    table.insert(key.as_str(), (*version, value.as_slice()))?;
                }
                None => {
                    table.remove(key.as_str())?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

fn text(
    table: &impl ReadableTable<&'static str, &'static str>,
    key: &str,
) -> Result<Option<String>, redb::Error> {
    Ok(table.get(key)?.map(|value| value.value().to_owned()))
}

fn deleted_of(id: u128, row: &str) -> Result<DeletedTopic, String> {
    let damaged = |error: &dyn std::fmt::Display| format!("deleted topic {id:032x}: {error}");
    let row: DeletedRow = serde_json::from_str(row).map_err(|error| damaged(&error))?;
    let dirs = row.dirs.iter().map(|dir| u128::from_str_radix(dir, 16));
    let dirs: Result<Vec<u128>, _> = dirs.collect();
    let data_dirs = dirs.map_err(|error| damaged(&error))?;
    let data_dirs = data_dirs.into_iter().map(DataDirId).collect();
    Ok(DeletedTopic { id: TopicId(id), name: row.name, data_dirs })
}

impl Disk {
    pub(super) fn file(path: &Path) -> Self {
        Self::with(path, Arc::new(|path| Ok(Database::create(path)?)))
    }

    pub(super) fn with(path: &Path, opener: Opener) -> Self {
        Self { path: path.to_owned(), shown: path.display().to_string(), opener }
    }

    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    pub(super) fn failure(&self, problem: &str) -> StoreError {
        StoreError::Failed { path: self.shown.clone(), problem: problem.to_owned() }
    }

    fn damaged(&self, problem: impl Into<String>) -> StoreError {
        StoreError::Damaged { path: self.shown.clone(), problem: problem.into() }
    }

    fn failed<E: Into<redb::Error>>(&self) -> impl Fn(E) -> StoreError + '_ {
        |error| classify(&self.shown, error.into())
    }

    /// Opens the file; makes it if there is none, takes it over if it is of an older format.
    pub(super) fn open_or_make(&self, node: NodeId, cluster_id: &str) -> Result<Database, StoreError> {
        if !self.path.exists() {
            self.make(node, cluster_id)?;
        }
        let database = (self.opener)(&self.path).map_err(self.failed())?;
        let transaction = database.begin_write().map_err(self.failed())?;
        if self.upgrade(&transaction)? {
            transaction.commit().map_err(self.failed())?;
        } else {
            transaction.abort().map_err(self.failed())?;
        }
        Ok(database)
    }

    /// Opens the file after a failure.
    pub(super) fn reopen(&self) -> Result<(Database, Loaded), StoreError> {
        let database = (self.opener)(&self.path).map_err(self.failed())?;
        let loaded = self.load(&database)?;
        Ok((database, loaded))
    }

    fn make(&self, node: NodeId, cluster_id: &str) -> Result<(), StoreError> {
        let failed = |error: std::io::Error| classify(&self.shown, error.into());
        let aside = self.path.with_extension("redb.new");
        match std::fs::remove_file(&aside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let database = (self.opener)(&aside).map_err(self.failed())?;
        initialize(&database, node, cluster_id).map_err(self.failed())?;
        drop(database);
        std::fs::rename(&aside, &self.path).map_err(failed)?;
        self.path.parent().map_or(Ok(()), sync_dir).map_err(failed)
    }

    /// Brings the tables to this format; false if they are there already.
    fn upgrade(&self, transaction: &WriteTransaction) -> Result<bool, StoreError> {
        let mut about = transaction.open_table(NODE).map_err(self.failed())?;
        let format = text(&about, "format").map_err(self.failed())?;
        let format = format.ok_or_else(|| self.damaged("it has no format number"))?;
        let format: u32 =
            format.parse().map_err(|error| self.damaged(format!("its format number: {error}")))?;
        if format > FORMAT {
            let path = self.shown.clone();
            return Err(StoreError::NewerFormat { path, found: format, known: FORMAT });
        }
        if format == FORMAT {
            return Ok(false);
        }
        let number = |key: &str| {
            let text = text(&about, key).map_err(self.failed())?;
            let number = text.and_then(|text| text.parse::<u32>().ok());
            number.ok_or_else(|| self.damaged(format!("{key} is not there or no number")))
        };
        let (node, starts) = (NodeId(number("node_id")?), number("starts")?);
        let cluster_id = text(&about, "cluster_id").map_err(self.failed())?;
        let cluster_id = cluster_id.ok_or_else(|| self.damaged("it has no cluster id"))?;
        self.take_over(transaction, node, starts, cluster_id)?;
        about.insert("format", FORMAT.to_string().as_str()).map_err(self.failed())?;
        about.remove("starts").map_err(self.failed())?;
        Ok(true)
    }

    fn take_over(
        &self,
        transaction: &WriteTransaction,
        node: NodeId,
        starts: u32,
        cluster_id: String,
    ) -> Result<(), StoreError> {
        let convert_failed = |error: ConvertError| match error {
            ConvertError::Row { .. } => self.damaged(error.to_string()),
            ConvertError::Store(error) => classify(&self.shown, error),
        };
        let topics = format1::read_topics(transaction).map_err(convert_failed)?;
        let count = topics.len();
        let new = format1::convert(&Format1 { node, starts, topics }).map_err(convert_failed)?;
        let cluster = ClusterRecord { cluster_id, format: CLUSTER_FORMAT }.encode();
        let put = || -> Result<(), redb::Error> {
            let mut keys = transaction.open_table(KEYS)?;
            keys.insert(CLUSTER, (0, &*cluster))?;
            for (key, value) in &new.keys {
                keys.insert(key.as_str(), (0, &**value))?;
            }
            let mut made = transaction.open_table(MADE)?;
            for (dir, log) in &new.made {
                made.insert((dir.0, log.0), ())?;
            }
            transaction.open_table(DELETED)?;
            transaction.open_table(DATA_DIRS)?;
            format1::drop_tables(transaction)
        };
        put().map_err(self.failed())?;
        tracing::info!(path = self.shown, topics = count, "the metadata store is taken over into format 2");
        Ok(())
    }

    pub(super) fn load(&self, database: &Database) -> Result<Loaded, StoreError> {
        let read = || -> Result<Loaded, redb::Error> {
            let transaction = database.begin_read()?;
            let table = transaction.open_table(KEYS)?;
            let mut rows = Vec::new();
            for row in table.iter()? {
                let (key, row) = row?;
                let (version, value) = row.value();
                rows.push((key.value().to_owned(), version, value.to_vec()));
            }
            Ok(Loaded(rows))
        };
        read().map_err(self.failed())
    }

    pub(super) fn node_local(&self, database: &Database) -> Result<NodeLocal, StoreError> {
        let transaction = database.begin_read().map_err(self.failed())?;
        let about = transaction.open_table(NODE).map_err(self.failed())?;
        let cluster_id = text(&about, "cluster_id").map_err(self.failed())?;
        let cluster_id = cluster_id.ok_or_else(|| self.damaged("it has no cluster id"))?;
        let node = text(&about, "node_id").map_err(self.failed())?.and_then(|node| node.parse().ok());
        let node = node.map(NodeId).ok_or_else(|| self.damaged("it has no node id"))?;
        let mut deleted = Vec::new();
        let table = transaction.open_table(DELETED).map_err(self.failed())?;
        for row in table.iter().map_err(self.failed())? {
            let (id, row) = row.map_err(self.failed())?;
            deleted.push(deleted_of(id.value(), row.value()).map_err(|problem| self.damaged(problem))?);
        }
        let tables = || -> Result<_, redb::Error> {
            let mut dirs = BTreeMap::new();
            for row in transaction.open_table(DATA_DIRS)?.iter()? {
                let (id, path) = row?;
                dirs.insert(DataDirId(id.value()), path.value().to_owned());
            }
            let mut made = Vec::new();
            for row in transaction.open_table(MADE)?.iter()? {
                let (dir, log) = row?.0.value();
                made.push((DataDirId(dir), LogId(log)));
            }
            Ok((dirs, made))
        };
        let (data_dirs, made) = tables().map_err(self.failed())?;
        Ok(NodeLocal { cluster_id, node, data_dirs, deleted, made })
    }

    pub(super) fn forget_data_dirs(&self, database: &Database) -> Result<(), StoreError> {
        let forget = || -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            transaction.open_table(DATA_DIRS)?.retain(|_, _| false)?;
            Ok(transaction.commit()?)
        };
        forget().map_err(self.failed())
    }

    pub(super) fn forget_deleted(
        &self,
        database: &Database,
        topic: TopicId,
        gone: &[DataDirId],
    ) -> Result<(), StoreError> {
        let transaction = database.begin_write().map_err(self.failed())?;
        {
            let mut table = transaction.open_table(DELETED).map_err(self.failed())?;
            let row = table.get(topic.0).map_err(self.failed())?;
            let row = row.map(|row| deleted_of(topic.0, row.value())).transpose();
            let Some(mut deleted) = row.map_err(|problem| self.damaged(problem))? else { return Ok(()) };
            deleted.data_dirs.retain(|dir| !gone.iter().any(|gone| gone.0 == dir.0));
            if deleted.data_dirs.is_empty() {
                table.remove(topic.0).map_err(self.failed())?;
            } else {
                let dirs =
                    deleted.data_dirs.iter().map(|id| crate::control::data_dir::id_text(*id)).collect();
                let row = serde_json::to_string(&DeletedRow { name: deleted.name, dirs });
                let row = row.expect("plain fields serialize");
                table.insert(topic.0, row.as_str()).map_err(self.failed())?;
            }
        }
        transaction.commit().map_err(self.failed())
    }

    pub(super) fn forget_made(&self, database: &Database, dirs: &[DataDirId]) -> Result<(), StoreError> {
        let forget = || -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            transaction.open_table(MADE)?.retain(|(dir, _), ()| !dirs.contains(&DataDirId(dir)))?;
            Ok(transaction.commit()?)
        };
        forget().map_err(self.failed())
    }
}

/// Makes the tables of a new store.
fn initialize(database: &Database, node: NodeId, cluster_id: &str) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut about = transaction.open_table(NODE)?;
        about.insert("format", FORMAT.to_string().as_str())?;
        about.insert("cluster_id", cluster_id)?;
        about.insert("node_id", node.to_string().as_str())?;
        let cluster = ClusterRecord { cluster_id: cluster_id.to_owned(), format: CLUSTER_FORMAT }.encode();
        transaction.open_table(KEYS)?.insert(CLUSTER, (0, &*cluster))?;
        transaction.open_table(DATA_DIRS)?;
        transaction.open_table(DELETED)?;
        transaction.open_table(MADE)?;
    }
    transaction.commit()?;
    Ok(())
}
