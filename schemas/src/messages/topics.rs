//! Requests about topics.

use super::{
    Builder, DecodeError, Failure, Message, TopicRef, build_topic_ref, failure_of, id_field, id_of, owned,
    read_tables, read_topic_ref, root, tables, text, wire,
};
use crate::api::Api;
use crate::codec::Request;

/// An option of a topic, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicOption {
    /// Its key, as in `docs/configuration.md`.
    pub key: String,
    /// Its value; `None` in an alteration: back to the default.
    pub value: Option<String>,
    /// In descriptions: nobody has set it on this topic.
    pub is_default: bool,
}

/// A topic to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// How many partitions; 0: the server's default.
    pub partitions: u32,
    /// How many replicas of each; 0: the server's default.
    pub replication_factor: u16,
    /// What differs from the defaults.
    pub options: Vec<TopicOption>,
}

/// Creates topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateTopicsRequest {
    /// Which.
    pub topics: Vec<NewTopic>,
    /// Check alone, create nothing.
    pub validate_only: bool,
    /// How long to wait until they can be used.
    pub timeout_ms: u32,
}

/// Deletes topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeleteTopicsRequest {
    /// Which.
    pub topics: Vec<TopicRef>,
    /// How long to wait.
    pub timeout_ms: u32,
}

/// Changes options of a topic; those not named stay as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlterTopicOptionsRequest {
    /// Which.
    pub topic: TopicRef,
    /// New values.
    pub options: Vec<TopicOption>,
    /// Check alone, change nothing.
    pub validate_only: bool,
    /// How long to wait.
    pub timeout_ms: u32,
}

/// Adds partitions to a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatePartitionsRequest {
    /// Which.
    pub topic: TopicRef,
    /// How many there are to be in all.
    pub partitions_total: u32,
    /// Check alone, change nothing.
    pub validate_only: bool,
    /// How long to wait.
    pub timeout_ms: u32,
}

/// What became of one topic of a request that changes topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicResult {
    /// Why nothing changed, if nothing did.
    pub failure: Option<Failure>,
    /// Its name; empty if unknown.
    pub name: String,
    /// Its id, if known.
    pub topic_id: Option<u128>,
    /// How many partitions it has now.
    pub partitions: u32,
}

/// One result for each topic of the request, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicResultsResponse {
    /// Results.
    pub results: Vec<TopicResult>,
}

/// Names topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListTopicsRequest {
    /// What their names begin with; empty: all.
    pub name_prefix: String,
}

/// One line of a list of topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicListing {
    /// Its id.
    pub topic_id: u128,
    /// Its name.
    pub name: String,
    /// How many partitions.
    pub partitions: u32,
    /// How many replicas of each.
    pub replication_factor: u16,
}

/// Topics, sorted by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListTopicsResponse {
    /// The topics.
    pub topics: Vec<TopicListing>,
}

/// Shows topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribeTopicsRequest {
    /// Which.
    pub topics: Vec<TopicRef>,
}

/// All about a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionDescription {
    /// Why offsets and sizes are missing, if they are.
    pub failure: Option<Failure>,
    /// Its number in the topic.
    pub partition: u32,
    /// Node of the leader.
    pub leader_node: u32,
    /// Shard of the leader.
    pub leader_shard: u16,
    /// Its epoch.
    pub leader_epoch: u32,
    /// First offset that can be read.
    pub log_start_offset: Option<u64>,
    /// End of what may be read.
    pub high_watermark: Option<u64>,
    /// End of what has been assigned.
    pub log_end_offset: Option<u64>,
    /// End of what has been synced.
    pub durable_end_offset: Option<u64>,
    /// Size on disk.
    pub log_bytes: u64,
    /// How many files.
    pub segments: u32,
    /// Data directory that holds it, on the leader.
    pub data_dir: String,
    /// The preferred leader first. What each lacks is known where the leader is.
    pub replicas: Vec<ReplicaDescription>,
}

/// One replica of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaDescription {
    /// Its node.
    pub node: u32,
    /// Its shard.
    pub shard: u16,
    /// Whether it leads.
    pub is_leader: bool,
    /// Whether it is in sync.
    pub in_sync: bool,
    /// Whether its node runs.
    pub is_live: bool,
    /// Where its log ends, as the leader knows.
    pub log_end_offset: Option<u64>,
    /// Records that it lacks.
    pub lag_records: Option<u64>,
    /// For how long it has lacked some.
    pub lag_ms: Option<u64>,
    /// What is wrong with it; empty: nothing.
    pub trouble: String,
}

/// All about a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicDescription {
    /// Why there is no more than the name or the id that was asked for.
    pub failure: Option<Failure>,
    /// Its id, if known.
    pub topic_id: Option<u128>,
    /// Its name; empty if unknown.
    pub name: String,
    /// How many replicas of each partition.
    pub replication_factor: u16,
    /// When it was created.
    pub created_ms: i64,
    /// Every option, with its value.
    pub options: Vec<TopicOption>,
    /// In order of their numbers.
    pub partitions: Vec<PartitionDescription>,
}

/// One description for each topic of the request, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribeTopicsResponse {
    /// Descriptions.
    pub topics: Vec<TopicDescription>,
}

macro_rules! requests {
    ($($request:ident, $api:ident => $response:ident;)*) => {$(
        impl Request for $request {
            const API: Api = Api::$api;
            type Response = $response;
        }
    )*};
}
requests! {
    CreateTopicsRequest, CreateTopics => TopicResultsResponse;
    DeleteTopicsRequest, DeleteTopics => TopicResultsResponse;
    AlterTopicOptionsRequest, AlterTopicOptions => TopicResultsResponse;
    CreatePartitionsRequest, CreatePartitions => TopicResultsResponse;
    ListTopicsRequest, ListTopics => ListTopicsResponse;
    DescribeTopicsRequest, DescribeTopics => DescribeTopicsResponse;
}

fn build_option(b: &mut Builder, option: &TopicOption) -> flatbuffers::WIPOffset<wire::TopicOption<'static>> {
    let key = text(b, &option.key);
    let value = option.value.as_ref().map(|value| b.create_string(value));
    wire::TopicOption::create(b, &wire::TopicOptionArgs { key, value, is_default: option.is_default })
}

fn read_option(t: wire::TopicOption<'_>) -> Result<TopicOption, DecodeError> {
    let key = t.key().filter(|key| !key.is_empty());
    let key = key.ok_or(DecodeError::Missing("which option it means"))?.to_owned();
    Ok(TopicOption { key, value: t.value().map(str::to_owned), is_default: t.is_default() })
}

fn error_field(failure: Option<&Failure>) -> wire::ErrorCode {
    failure.map_or(wire::ErrorCode::None, |f| wire::ErrorCode(f.code.number()))
}

impl Message for CreateTopicsRequest {
    fn build(&self, b: &mut Builder) {
        let topics = tables(b, &self.topics, |b, t| {
            let options = tables(b, &t.options, build_option);
            let name = text(b, &t.name);
            let args = wire::NewTopicArgs {
                name,
                partitions: t.partitions,
                replication_factor: t.replication_factor,
                options: Some(options),
            };
            wire::NewTopic::create(b, &args)
        });
        let args = wire::CreateTopicsRequestArgs {
            topics: Some(topics),
            validate_only: self.validate_only,
            timeout_ms: self.timeout_ms,
        };
        let root = wire::CreateTopicsRequest::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::CreateTopicsRequest<'_>>(head)?;
        let topics = read_tables(t.topics(), |t| {
            Ok(NewTopic {
                name: owned(t.name()),
                partitions: t.partitions(),
                replication_factor: t.replication_factor(),
                options: read_tables(t.options(), read_option)?,
            })
        })?;
        Ok(Self { topics, validate_only: t.validate_only(), timeout_ms: t.timeout_ms() })
    }
}

impl Message for DeleteTopicsRequest {
    fn build(&self, b: &mut Builder) {
        let topics = tables(b, &self.topics, build_topic_ref);
        let args = wire::DeleteTopicsRequestArgs { topics: Some(topics), timeout_ms: self.timeout_ms };
        let root = wire::DeleteTopicsRequest::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::DeleteTopicsRequest<'_>>(head)?;
        Ok(Self { topics: read_tables(t.topics(), read_topic_ref)?, timeout_ms: t.timeout_ms() })
    }
}

impl Message for AlterTopicOptionsRequest {
    fn build(&self, b: &mut Builder) {
        let topic = build_topic_ref(b, &self.topic);
        let options = tables(b, &self.options, build_option);
        let args = wire::AlterTopicOptionsRequestArgs {
            topic: Some(topic),
            options: Some(options),
            validate_only: self.validate_only,
            timeout_ms: self.timeout_ms,
        };
        let root = wire::AlterTopicOptionsRequest::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::AlterTopicOptionsRequest<'_>>(head)?;
        Ok(Self {
            topic: read_topic_ref(t.topic().ok_or(DecodeError::Missing("which topic it means"))?)?,
            options: read_tables(t.options(), read_option)?,
            validate_only: t.validate_only(),
            timeout_ms: t.timeout_ms(),
        })
    }
}

impl Message for CreatePartitionsRequest {
    fn build(&self, b: &mut Builder) {
        let topic = build_topic_ref(b, &self.topic);
        let args = wire::CreatePartitionsRequestArgs {
            topic: Some(topic),
            partitions_total: self.partitions_total,
            validate_only: self.validate_only,
            timeout_ms: self.timeout_ms,
        };
        let root = wire::CreatePartitionsRequest::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::CreatePartitionsRequest<'_>>(head)?;
        Ok(Self {
            topic: read_topic_ref(t.topic().ok_or(DecodeError::Missing("which topic it means"))?)?,
            partitions_total: t.partitions_total(),
            validate_only: t.validate_only(),
            timeout_ms: t.timeout_ms(),
        })
    }
}

impl Message for TopicResultsResponse {
    fn build(&self, b: &mut Builder) {
        let results = tables(b, &self.results, |b, t| {
            let message = t.failure.as_ref().and_then(|f| text(b, &f.message));
            let name = text(b, &t.name);
            let topic_id = t.topic_id.map(id_field);
            let args = wire::TopicResultArgs {
                error: error_field(t.failure.as_ref()),
                message,
                name,
                topic_id: topic_id.as_ref(),
                partitions: t.partitions,
            };
            wire::TopicResult::create(b, &args)
        });
        let root =
            wire::TopicResultsResponse::create(b, &wire::TopicResultsResponseArgs { results: Some(results) });
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::TopicResultsResponse<'_>>(head)?;
        let results = read_tables(t.results(), |t| {
            Ok(TopicResult {
                failure: failure_of(t.error(), t.message()),
                name: owned(t.name()),
                topic_id: t.topic_id().map(id_of),
                partitions: t.partitions(),
            })
        })?;
        Ok(Self { results })
    }
}

impl Message for ListTopicsRequest {
    fn build(&self, b: &mut Builder) {
        let name_prefix = text(b, &self.name_prefix);
        let root = wire::ListTopicsRequest::create(b, &wire::ListTopicsRequestArgs { name_prefix });
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::ListTopicsRequest<'_>>(head)?;
        Ok(Self { name_prefix: owned(t.name_prefix()) })
    }
}

impl Message for ListTopicsResponse {
    fn build(&self, b: &mut Builder) {
        let topics = tables(b, &self.topics, |b, t| {
            let name = text(b, &t.name);
            let args = wire::TopicListingArgs {
                topic_id: Some(&id_field(t.topic_id)),
                name,
                partitions: t.partitions,
                replication_factor: t.replication_factor,
            };
            wire::TopicListing::create(b, &args)
        });
        let root =
            wire::ListTopicsResponse::create(b, &wire::ListTopicsResponseArgs { topics: Some(topics) });
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::ListTopicsResponse<'_>>(head)?;
        let topics = read_tables(t.topics(), |t| {
            Ok(TopicListing {
                topic_id: id_of(t.topic_id().ok_or(DecodeError::Missing("the id of a topic"))?),
                name: owned(t.name()),
                partitions: t.partitions(),
                replication_factor: t.replication_factor(),
            })
        })?;
        Ok(Self { topics })
    }
}

impl Message for DescribeTopicsRequest {
    fn build(&self, b: &mut Builder) {
        let topics = tables(b, &self.topics, build_topic_ref);
        let root =
            wire::DescribeTopicsRequest::create(b, &wire::DescribeTopicsRequestArgs { topics: Some(topics) });
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::DescribeTopicsRequest<'_>>(head)?;
        Ok(Self { topics: read_tables(t.topics(), read_topic_ref)? })
    }
}

fn build_partition(
    b: &mut Builder,
    p: &PartitionDescription,
) -> flatbuffers::WIPOffset<wire::PartitionDescription<'static>> {
    let message = p.failure.as_ref().and_then(|f| text(b, &f.message));
    let data_dir = text(b, &p.data_dir);
    let replicas = tables(b, &p.replicas, build_replica);
    let args = wire::PartitionDescriptionArgs {
        error: error_field(p.failure.as_ref()),
        message,
        partition: p.partition,
        leader_node: p.leader_node,
        leader_shard: p.leader_shard,
        leader_epoch: p.leader_epoch,
        log_start_offset: p.log_start_offset,
        high_watermark: p.high_watermark,
        log_end_offset: p.log_end_offset,
        durable_end_offset: p.durable_end_offset,
        log_bytes: p.log_bytes,
        segments: p.segments,
        data_dir,
        replicas: Some(replicas),
    };
    wire::PartitionDescription::create(b, &args)
}

fn read_partition(p: wire::PartitionDescription<'_>) -> Result<PartitionDescription, DecodeError> {
    Ok(PartitionDescription {
        failure: failure_of(p.error(), p.message()),
        partition: p.partition(),
        leader_node: p.leader_node(),
        leader_shard: p.leader_shard(),
        leader_epoch: p.leader_epoch(),
        log_start_offset: p.log_start_offset(),
        high_watermark: p.high_watermark(),
        log_end_offset: p.log_end_offset(),
        durable_end_offset: p.durable_end_offset(),
        log_bytes: p.log_bytes(),
        segments: p.segments(),
        data_dir: owned(p.data_dir()),
        replicas: read_tables(p.replicas(), read_replica)?,
    })
}

fn build_replica(
    b: &mut Builder,
    r: &ReplicaDescription,
) -> flatbuffers::WIPOffset<wire::ReplicaDescription<'static>> {
    let trouble = text(b, &r.trouble);
    let args = wire::ReplicaDescriptionArgs {
        node: r.node,
        shard: r.shard,
        is_leader: r.is_leader,
        in_sync: r.in_sync,
        is_live: r.is_live,
        log_end_offset: r.log_end_offset,
        lag_records: r.lag_records,
        lag_ms: r.lag_ms,
        trouble,
    };
    wire::ReplicaDescription::create(b, &args)
}

fn read_replica(r: wire::ReplicaDescription<'_>) -> Result<ReplicaDescription, DecodeError> {
    Ok(ReplicaDescription {
        node: r.node(),
        shard: r.shard(),
        is_leader: r.is_leader(),
        in_sync: r.in_sync(),
        is_live: r.is_live(),
        log_end_offset: r.log_end_offset(),
        lag_records: r.lag_records(),
        lag_ms: r.lag_ms(),
        trouble: owned(r.trouble()),
    })
}

impl Message for DescribeTopicsResponse {
    fn build(&self, b: &mut Builder) {
        let topics = tables(b, &self.topics, |b, t| {
            let partitions = tables(b, &t.partitions, build_partition);
            let options = tables(b, &t.options, build_option);
            let message = t.failure.as_ref().and_then(|f| text(b, &f.message));
            let name = text(b, &t.name);
            let topic_id = t.topic_id.map(id_field);
            let args = wire::TopicDescriptionArgs {
                error: error_field(t.failure.as_ref()),
                message,
                topic_id: topic_id.as_ref(),
                name,
                replication_factor: t.replication_factor,
                created_ms: t.created_ms,
                options: Some(options),
                partitions: Some(partitions),
            };
            wire::TopicDescription::create(b, &args)
        });
        let root = wire::DescribeTopicsResponse::create(
            b,
            &wire::DescribeTopicsResponseArgs { topics: Some(topics) },
        );
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::DescribeTopicsResponse<'_>>(head)?;
        let topics = read_tables(t.topics(), |t| {
            Ok(TopicDescription {
                failure: failure_of(t.error(), t.message()),
                topic_id: t.topic_id().map(id_of),
                name: owned(t.name()),
                replication_factor: t.replication_factor(),
                created_ms: t.created_ms(),
                options: read_tables(t.options(), read_option)?,
                partitions: read_tables(t.partitions(), read_partition)?,
            })
        })?;
        Ok(Self { topics })
    }
}
