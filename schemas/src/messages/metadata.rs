//! Metadata.

use super::{
    Builder, DecodeError, ErrorCode, Failure, Message, TopicRef, build_topic_ref, failure_of, id_field,
    id_of, owned, read_tables, read_topic_ref, root, tables, text, wire,
};
use crate::api::Api;
use crate::codec::Request;

/// Which topics a metadata request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetadataTopics {
    /// All there are.
    All,
    /// These; none of them: shards alone.
    These(Vec<TopicRef>),
}

/// Asks where partitions are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataRequest {
    /// Of which topics.
    pub topics: MetadataTopics,
}

/// Where a shard listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardAddress {
    /// Its node.
    pub node: u32,
    /// Its number in the node.
    pub shard: u16,
    /// Name or address, as clients reach it.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

/// Who leads a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionMetadata {
    /// Its number in the topic.
    pub partition: u32,
    /// `NotLeader` or `PartitionOffline` if nobody serves it now; the rest may then be stale.
    pub error: Option<ErrorCode>,
    /// Node of the leader.
    pub leader_node: u32,
    /// Shard of the leader.
    pub leader_shard: u16,
    /// Its epoch.
    pub leader_epoch: u32,
    /// First offset that can be read, if the server that answers knows.
    pub log_start_offset: Option<u64>,
    /// Nodes that have a replica, the preferred leader first.
    pub replicas: Vec<u32>,
    /// Those in sync.
    pub in_sync: Vec<u32>,
}

/// A topic and its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicMetadata {
    /// Why there is no more than the name or the id that was asked for.
    pub failure: Option<Failure>,
    /// Its id, if known.
    pub topic_id: Option<u128>,
    /// Its name; empty if unknown.
    pub name: String,
    /// In order of their numbers.
    pub partitions: Vec<PartitionMetadata>,
}

/// Where things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataResponse {
    /// Grows with each change.
    pub version: u64,
    /// The cluster; a client that finds another one has been pointed at the wrong place.
    pub cluster_id: String,
    /// Every shard of every node that runs.
    pub shards: Vec<ShardAddress>,
    /// One for each topic asked for, in that order; all, sorted by name, if all were.
    pub topics: Vec<TopicMetadata>,
    /// Who decides for the cluster, if anybody does now.
    pub controller_node: Option<u32>,
}

impl Request for MetadataRequest {
    const API: Api = Api::Metadata;
    type Response = MetadataResponse;
}

impl Message for MetadataRequest {
    fn build(&self, b: &mut Builder) {
        let these: &[TopicRef] = match &self.topics {
            MetadataTopics::All => &[],
            MetadataTopics::These(topics) => topics,
        };
        let topics = tables(b, these, build_topic_ref);
        let all_topics = self.topics == MetadataTopics::All;
        let root =
            wire::MetadataRequest::create(b, &wire::MetadataRequestArgs { all_topics, topics: Some(topics) });
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::MetadataRequest<'_>>(head)?;
        if t.all_topics() {
            return Ok(Self { topics: MetadataTopics::All });
        }
        Ok(Self { topics: MetadataTopics::These(read_tables(t.topics(), read_topic_ref)?) })
    }
}

impl Message for MetadataResponse {
    fn build(&self, b: &mut Builder) {
        let cluster_id = text(b, &self.cluster_id);
        let shards = tables(b, &self.shards, |b, s| {
            let host = text(b, &s.host);
            let args = wire::ShardAddressArgs { node: s.node, shard: s.shard, host, port: s.port };
            wire::ShardAddress::create(b, &args)
        });
        let topics = tables(b, &self.topics, |b, t| {
            let partitions = tables(b, &t.partitions, |b, p| {
                let (replicas, in_sync) = (b.create_vector(&p.replicas), b.create_vector(&p.in_sync));
                let args = wire::PartitionMetadataArgs {
                    error: p.error.map_or(wire::ErrorCode::None, |code| wire::ErrorCode(code.number())),
                    partition: p.partition,
                    leader_node: p.leader_node,
                    leader_shard: p.leader_shard,
                    leader_epoch: p.leader_epoch,
                    log_start_offset: p.log_start_offset,
                    replicas: Some(replicas),
                    in_sync: Some(in_sync),
                };
                wire::PartitionMetadata::create(b, &args)
            });
            let name = text(b, &t.name);
            let message = t.failure.as_ref().and_then(|f| text(b, &f.message));
            let topic_id = t.topic_id.map(id_field);
            let args = wire::TopicMetadataArgs {
                error: t.failure.as_ref().map_or(wire::ErrorCode::None, |f| wire::ErrorCode(f.code.number())),
                message,
                topic_id: topic_id.as_ref(),
                name,
                partitions: Some(partitions),
            };
            wire::TopicMetadata::create(b, &args)
        });
        let args = wire::MetadataResponseArgs {
            version: self.version,
            cluster_id,
            shards: Some(shards),
            topics: Some(topics),
            controller_node: self.controller_node,
        };
        let root = wire::MetadataResponse::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::MetadataResponse<'_>>(head)?;
        let shards = read_tables(t.shards(), |s| {
            Ok(ShardAddress { node: s.node(), shard: s.shard(), host: owned(s.host()), port: s.port() })
        })?;
        let topics = read_tables(t.topics(), |t| {
            let partitions = read_tables(t.partitions(), |p| {
                Ok(PartitionMetadata {
                    partition: p.partition(),
                    error: ErrorCode::from_number(p.error().0),
                    leader_node: p.leader_node(),
                    leader_shard: p.leader_shard(),
                    leader_epoch: p.leader_epoch(),
                    log_start_offset: p.log_start_offset(),
                    replicas: p.replicas().map(|nodes| nodes.iter().collect()).unwrap_or_default(),
                    in_sync: p.in_sync().map(|nodes| nodes.iter().collect()).unwrap_or_default(),
                })
            })?;
            Ok(TopicMetadata {
                failure: failure_of(t.error(), t.message()),
                topic_id: t.topic_id().map(id_of),
                name: owned(t.name()),
                partitions,
            })
        })?;
        let (version, cluster_id) = (t.version(), owned(t.cluster_id()));
        Ok(Self { version, cluster_id, shards, topics, controller_node: t.controller_node() })
    }
}
