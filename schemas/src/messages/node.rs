//! DescribeNode.

use super::{
    Builder, DecodeError, Failure, Message, failure_fields, failure_of, owned, read_tables, root, tables,
    text, wire,
};
use crate::api::Api;
use crate::codec::Request;

/// Asks the node that is reached about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescribeNodeRequest;

/// A shard and its load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardDescription {
    /// Its number in the node.
    pub shard: u16,
    /// CPU that it is pinned to.
    pub core: u16,
    /// Where it listens.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// How many partitions it leads.
    pub partitions: u32,
    /// Open connections.
    pub connections: u32,
    /// Buffer memory in use.
    pub buffer_bytes: u64,
    /// Its budget.
    pub buffer_bytes_max: u64,
    /// Record bytes that came in since the start.
    pub produce_bytes: u64,
    /// Record bytes that went out since the start.
    pub fetch_bytes: u64,
    /// Requests answered since the start.
    pub requests: u64,
}

/// A disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDirDescription {
    /// Its path on the node.
    pub path: String,
    /// What took it offline, if it is.
    pub state: Result<(), Failure>,
    /// Size of the file system.
    pub total_bytes: u64,
    /// What is free of it.
    pub free_bytes: u64,
    /// How many partitions it holds.
    pub partitions: u32,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribeNodeResponse {
    /// Its id.
    pub node: u32,
    /// Its cluster.
    pub cluster_id: String,
    /// Server and version.
    pub software: String,
    /// When it was started.
    pub started_ms: i64,
    /// Version of the metadata that it has.
    pub metadata_version: u64,
    /// Shards, in order of their numbers.
    pub shards: Vec<ShardDescription>,
    /// Data directories, as configured.
    pub data_dirs: Vec<DataDirDescription>,
}

impl Request for DescribeNodeRequest {
    const API: Api = Api::DescribeNode;
    type Response = DescribeNodeResponse;
}

impl Message for DescribeNodeRequest {
    fn build(&self, b: &mut Builder) {
        let root = wire::DescribeNodeRequest::create(b, &wire::DescribeNodeRequestArgs {});
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        root::<wire::DescribeNodeRequest<'_>>(head)?;
        Ok(Self)
    }
}

impl Message for DescribeNodeResponse {
    fn build(&self, b: &mut Builder) {
        let (cluster_id, software) = (text(b, &self.cluster_id), text(b, &self.software));
        let shards = tables(b, &self.shards, |b, s| {
            let host = text(b, &s.host);
            let args = wire::ShardDescriptionArgs {
                shard: s.shard,
                core: s.core,
                host,
                port: s.port,
                partitions: s.partitions,
                connections: s.connections,
                buffer_bytes: s.buffer_bytes,
                buffer_bytes_max: s.buffer_bytes_max,
                produce_bytes: s.produce_bytes,
                fetch_bytes: s.fetch_bytes,
                requests: s.requests,
            };
            wire::ShardDescription::create(b, &args)
        });
        let data_dirs = tables(b, &self.data_dirs, |b, d| {
            let path = text(b, &d.path);
            let (error, message) = failure_fields(b, &d.state);
            let args = wire::DataDirDescriptionArgs {
                path,
                error,
                message,
                total_bytes: d.total_bytes,
                free_bytes: d.free_bytes,
                partitions: d.partitions,
            };
            wire::DataDirDescription::create(b, &args)
        });
        let args = wire::DescribeNodeResponseArgs {
            node: self.node,
            cluster_id,
            software,
            started_ms: self.started_ms,
            metadata_version: self.metadata_version,
            shards: Some(shards),
            data_dirs: Some(data_dirs),
        };
        let root = wire::DescribeNodeResponse::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::DescribeNodeResponse<'_>>(head)?;
        let shards = read_tables(t.shards(), |s| {
            Ok(ShardDescription {
                shard: s.shard(),
                core: s.core(),
                host: owned(s.host()),
                port: s.port(),
                partitions: s.partitions(),
                connections: s.connections(),
                buffer_bytes: s.buffer_bytes(),
                buffer_bytes_max: s.buffer_bytes_max(),
                produce_bytes: s.produce_bytes(),
                fetch_bytes: s.fetch_bytes(),
                requests: s.requests(),
            })
        })?;
        let data_dirs = read_tables(t.data_dirs(), |d| {
            Ok(DataDirDescription {
                path: owned(d.path()),
                state: failure_of(d.error(), d.message()).map_or(Ok(()), Err),
                total_bytes: d.total_bytes(),
                free_bytes: d.free_bytes(),
                partitions: d.partitions(),
            })
        })?;
        Ok(Self {
            node: t.node(),
            cluster_id: owned(t.cluster_id()),
            software: owned(t.software()),
            started_ms: t.started_ms(),
            metadata_version: t.metadata_version(),
            shards,
            data_dirs,
        })
    }
}
