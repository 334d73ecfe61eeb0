//! How records look in the store: JSON, so that an operator can read them with the store's own tools.
//!
//! Owns: the rows, which are not the records: a record may change its shape without changing what is stored. Ids are
//! hexadecimal text (JSON numbers end at 2^53), a replica is `"<node>/<log id>"`.
//! Invariant: what is decoded encodes to what decodes to the same record; bytes of whatever origin never panic.
//! Evolution: fields are added as optional ones (`#[serde(default)]`); unknown ones are ignored, and lost when an older
//! version writes the record again. What a reader must not ignore needs another format number in `/cluster`.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use corelog_engine::{LeaderEpoch, LogId, TimestampMs, TopicId};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::keys::{parse_hex, parse_node};
use super::records::{
    ClusterRecord, ControllerRecord, DataDirId, DataDirRecord, Deletion, Endpoint, FaultKind, Incarnation,
    NodeIntent, NodeRecord, PartitionLeader, PartitionRecord, Removal, RemovedLog, ReplicaFault,
    ReplicaRecord, ShardRecord, Suspicion, TopicRecord,
};
use crate::coordination::Value;
use crate::replica::{NodeId, ReplicaId};

/// Why stored bytes are no record. The key is left out of the picture until it is written again; a person should look.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid record: {reason}")]
pub struct DecodeError {
    /// What is wrong, and where.
    pub reason: String,
}

/// A record that has a form in the store.
pub trait Stored: Sized {
    /// The value to store.
    fn encode(&self) -> Value;

    /// The record of a stored value.
    fn decode(value: &[u8]) -> Result<Self, DecodeError>;
}

/// Number of the newest controller's term, stored beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerEpoch(pub u64);

/// Whose name it is, stored under the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedTopic(pub TopicId);

/// Text that stands for a value in JSON.
trait Text: Sized {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
    fn read(text: &str) -> Option<Self>;
}

macro_rules! hex_text {
    ($($id:ident),*) => {$(
        impl Text for $id {
            fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
            fn read(text: &str) -> Option<Self> {
                parse_hex(text).map(Self)
            }
        }
    )*};
}
hex_text!(LogId, TopicId, DataDirId);

impl Text for Incarnation {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
    fn read(text: &str) -> Option<Self> {
        let is_hex = text.len() == 16 && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        is_hex.then(|| u64::from_str_radix(text, 16).ok().map(Self))?
    }
}

impl Text for ReplicaId {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
    fn read(text: &str) -> Option<Self> {
        let (node, log) = text.split_once('/')?;
        Some(Self { node: parse_node(node)?, log: LogId(parse_hex(log)?) })
    }
}

/// A [`Text`] as serde sees it.
#[derive(Clone, Copy)]
struct AsText<T>(T);

impl<T: Text> fmt::Display for AsText<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write(f)
    }
}

impl<T: Text> Serialize for AsText<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, T: Text> Deserialize<'de> for AsText<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        T::read(&text).map(Self).ok_or_else(|| D::Error::custom(format!("{text:?} is not an id")))
    }
}

#[derive(Serialize, Deserialize)]
struct ClusterRow {
    cluster_id: String,
    format: u32,
}

#[derive(Serialize, Deserialize)]
struct EndpointRow {
    host: String,
    port: u16,
}

#[derive(Serialize, Deserialize)]
struct ShardRow {
    core: u16,
    client: EndpointRow,
    replication: EndpointRow,
}

#[derive(Serialize, Deserialize)]
struct DataDirRow {
    id: AsText<DataDirId>,
    free_bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct NodeRow {
    node: u32,
    incarnation: AsText<Incarnation>,
    started_ms: i64,
    program_version: String,
    #[serde(default)]
    rack: String,
    shards: Vec<ShardRow>,
    data_dirs: Vec<DataDirRow>,
    #[serde(default)]
    is_stopping: bool,
    #[serde(default)]
    http: Option<EndpointRow>,
}

#[derive(Serialize, Deserialize)]
struct IntentRow {
    node: u32,
    #[serde(default)]
    is_drained: bool,
}

#[derive(Serialize, Deserialize)]
struct ControllerRow {
    node: u32,
    incarnation: AsText<Incarnation>,
    epoch: u64,
}

#[derive(Serialize, Deserialize)]
struct EpochRow {
    epoch: u64,
}

#[derive(Serialize, Deserialize)]
struct NameRow {
    topic: AsText<TopicId>,
}

#[derive(Serialize, Deserialize)]
struct TopicRow {
    id: AsText<TopicId>,
    name: String,
    created_ms: i64,
    partitions: u32,
    replicas: u16,
    #[serde(default)]
    is_internal: bool,
    #[serde(default)]
    options: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct ReplicaRow {
    node: u32,
    log: AsText<LogId>,
    dir: AsText<DataDirId>,
    shard: u16,
}

#[derive(Serialize, Deserialize)]
struct LeaderRow {
    replica: AsText<ReplicaId>,
    incarnation: AsText<Incarnation>,
}

#[derive(Serialize, Deserialize)]
struct PartitionRow {
    replicas: Vec<ReplicaRow>,
    isr: Vec<AsText<ReplicaId>>,
    leader: Option<LeaderRow>,
    leader_epoch: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unclean_epoch: Option<u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FaultKindRow {
    Lost,
    Failed,
    Unverified,
}

#[derive(Serialize, Deserialize)]
struct FaultRow {
    replica: AsText<ReplicaId>,
    kind: FaultKindRow,
    reason: String,
}

#[derive(Serialize, Deserialize)]
struct SuspicionRow {
    by: u32,
    node: u32,
    incarnation: AsText<Incarnation>,
}

#[derive(Serialize, Deserialize)]
struct DeletionRow {
    topic: AsText<TopicId>,
    name: String,
}

#[derive(Serialize, Deserialize)]
struct RemovedLogRow {
    partition: u32,
    log: AsText<LogId>,
    dir: AsText<DataDirId>,
}

#[derive(Serialize, Deserialize)]
struct RemovalRow {
    node: u32,
    topic: AsText<TopicId>,
    name: String,
    logs: Vec<RemovedLogRow>,
}

fn to_value(row: &impl Serialize) -> Value {
    Rc::from(serde_json::to_vec(row).expect("rows have text keys alone, which always encode"))
}

fn to_row<R: DeserializeOwned>(value: &[u8]) -> Result<R, DecodeError> {
    serde_json::from_slice(value).map_err(|e| wrong(e.to_string()))
}

fn wrong(reason: impl Into<String>) -> DecodeError {
    DecodeError { reason: reason.into() }
}

fn endpoint_row(endpoint: &Endpoint) -> EndpointRow {
    EndpointRow { host: endpoint.host.clone(), port: endpoint.port }
}

fn endpoint(row: EndpointRow) -> Endpoint {
    Endpoint { host: row.host, port: row.port }
}

impl Stored for ClusterRecord {
    fn encode(&self) -> Value {
        to_value(&ClusterRow { cluster_id: self.cluster_id.clone(), format: self.format })
    }

    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let row: ClusterRow = to_row(value)?;
        Ok(Self { cluster_id: row.cluster_id, format: row.format })
    }
}

impl Stored for NodeRecord {
    fn encode(&self) -> Value {
        to_value(&NodeRow {
            node: self.node.0,
            incarnation: AsText(self.incarnation),
            started_ms: self.started.0,
            program_version: self.program_version.clone(),
            rack: self.rack.clone(),
            shards: self
                .shards
                .iter()
                .map(|shard| ShardRow {
                    core: shard.core,
                    client: endpoint_row(&shard.client),
                    replication: endpoint_row(&shard.replication),
                })
                .collect(),
            data_dirs: self
                .data_dirs
                .iter()
                .map(|dir| DataDirRow { id: AsText(dir.id), free_bytes: dir.free_bytes })
                .collect(),
            is_stopping: self.is_stopping,
            http: self.http.as_ref().map(endpoint_row),
        })
    }

    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let row: NodeRow = to_row(value)?;
        if row.shards.is_empty() || row.shards.len() > usize::from(u16::MAX) {
            return Err(wrong(format!("a node has 1 to 65535 shards, not {}", row.shards.len())));
        }
        let shard = |row: ShardRow| ShardRecord {
            core: row.core,
            client: endpoint(row.client),
            replication: endpoint(row.replication),
        };
        let data_dir = |row: DataDirRow| DataDirRecord { id: row.id.0, free_bytes: row.free_bytes };
        Ok(Self {
            node: NodeId(row.node),
            incarnation: row.incarnation.0,
            started: TimestampMs(row.started_ms),
            program_version: row.program_version,
            rack: row.rack,
            shards: row.shards.into_iter().map(shard).collect(),
            data_dirs: row.data_dirs.into_iter().map(data_dir).collect(),
            is_stopping: row.is_stopping,
            http: row.http.map(endpoint),
        })
    }
}

impl Stored for NodeIntent {
    fn encode(&self) -> Value {
        to_value(&IntentRow { node: self.node.0, is_drained: self.is_drained })
    }

    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let row: IntentRow = to_row(value)?;
        Ok(Self { node: NodeId(row.node), is_drained: row.is_drained })
    }
}

impl Stored for ControllerRecord {
    fn encode(&self) -> Value {
        to_value(&ControllerRow {
            node: self.node.0,
            incarnation: AsText(self.incarnation),
            epoch: self.epoch,
        })
    }

    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let row: ControllerRow = to_row(value)?;
        Ok(Self { node: NodeId(row.node), incarnation: row.incarnation.0, epoch: row.epoch })
    }
}

impl Stored for ControllerEpoch {
    fn encode(&self) -> Value {
        to_value(&EpochRow { epoch: self.0 })
    }

    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        to_row::<EpochRow>(value).map(|row| Self(row.epoch))
    }
}

impl Stored for NamedTopic {
    fn encode(&self) -> Value {
        to_value(&NameRow { topic: AsText(self.0) })
    }

    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        to_row::<NameRow>(value).map(|row| Self(row.topic.0))
    }
}

impl Stored for TopicRecord {
    fn encode(&self) -> Value {
        to_value(&TopicRow {
            id: AsText(self.id),
            name: self.name.clone(),
            created_ms: self.created.0,
            partitions: self.partitions,
            replicas: self.replicas,
            is_internal: self.is_internal,
            options: self.options.clone(),
        })
    }

    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let row: TopicRow = to_row(value)?;
        Ok(Self {
            id: row.id.0,
            name: row.name,
            created: TimestampMs(row.created_ms),
            partitions: row.partitions,
            replicas: row.replicas,
            is_internal: row.is_internal,
            options: row.options,
        })
    }
}

impl Stored for PartitionRecord {
    fn encode(&self) -> Value {
        let replica = |r: &ReplicaRecord| ReplicaRow {
            node: r.node.0,
            log: AsText(r.log),
            dir: AsText(r.dir),
            shard: r.shard,
        };
        to_value(&PartitionRow {
            replicas: self.replicas.iter().map(replica).collect(),
            isr: self.isr.iter().copied().map(AsText).collect(),
            leader: self.leader.map(|leader| LeaderRow {
                replica: AsText(leader.replica),
                incarnation: AsText(leader.incarnation),
            }),
            leader_epoch: self.leader_epoch.0,
            unclean_epoch: self.unclean_epoch.map(|epoch| epoch.0),
        })
    }

    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let row: PartitionRow = to_row(value)?;
        let replica = |row: ReplicaRow| ReplicaRecord {
            node: NodeId(row.node),
            log: row.log.0,
            dir: row.dir.0,
            shard: row.shard,
        };
        let record = Self {
            replicas: row.replicas.into_iter().map(replica).collect(),
            isr: row.isr.into_iter().map(|replica| replica.0).collect(),
            leader: row
                .leader
                .map(|row| PartitionLeader { replica: row.replica.0, incarnation: row.incarnation.0 }),
            leader_epoch: LeaderEpoch(row.leader_epoch),
            unclean_epoch: row.unclean_epoch.map(LeaderEpoch),
        };
        // Beyond this the epoch does not fit a batch header; one less, so that there is always a next one.
        if record.leader_epoch.0 >= i32::MAX.unsigned_abs() {
            return Err(wrong(format!("leader epoch {} is out of range", record.leader_epoch)));
        }
        record.check().map_err(wrong)?;
        Ok(record)
    }
}

impl Stored for ReplicaFault {
    fn encode(&self) -> Value {
        let kind = match self.kind {
            FaultKind::Lost => FaultKindRow::Lost,
            FaultKind::Failed => FaultKindRow::Failed,
            FaultKind::Unverified => FaultKindRow::Unverified,
        };
        to_value(&FaultRow { replica: AsText(self.replica), kind, reason: self.reason.clone() })
    }

    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let row: FaultRow = to_row(value)?;
        let kind = match row.kind {
            FaultKindRow::Lost => FaultKind::Lost,
            FaultKindRow::Failed => FaultKind::Failed,
            FaultKindRow::Unverified => FaultKind::Unverified,
        };
        Ok(Self { replica: row.replica.0, kind, reason: row.reason })
    }
}

impl Stored for Suspicion {
    fn encode(&self) -> Value {
        to_value(&SuspicionRow { by: self.by.0, node: self.node.0, incarnation: AsText(self.incarnation) })
    }

    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let row: SuspicionRow = to_row(value)?;
        Ok(Self { by: NodeId(row.by), node: NodeId(row.node), incarnation: row.incarnation.0 })
    }
}

impl Stored for Deletion {
    fn encode(&self) -> Value {
        to_value(&DeletionRow { topic: AsText(self.topic), name: self.name.clone() })
    }

    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let row: DeletionRow = to_row(value)?;
        Ok(Self { topic: row.topic.0, name: row.name })
    }
}

impl Stored for Removal {
    fn encode(&self) -> Value {
        let log = |removed: &RemovedLog| RemovedLogRow {
            partition: removed.partition,
            log: AsText(removed.log),
            dir: AsText(removed.dir),
        };
        to_value(&RemovalRow {
            node: self.node.0,
            topic: AsText(self.topic),
            name: self.name.clone(),
            logs: self.logs.iter().map(log).collect(),
        })
    }

    fn decode(value: &[u8]) -> Result<Self, DecodeError> {
        let row: RemovalRow = to_row(value)?;
        if row.logs.is_empty() {
            return Err(wrong("a removal names at least one log"));
        }
        let log =
            |row: RemovedLogRow| RemovedLog { partition: row.partition, log: row.log.0, dir: row.dir.0 };
        Ok(Self {
            node: NodeId(row.node),
            topic: row.topic.0,
            name: row.name,
            logs: row.logs.into_iter().map(log).collect(),
        })
    }
}

#[cfg(test)]
mod tests;
