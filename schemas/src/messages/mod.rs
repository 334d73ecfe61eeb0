//! Every message as a plain struct.
//!
//! Owns: what a message means in Rust: absent fields are `Option`s, failures are [`Failure`]s, a topic is an id or a
//! name. One file for each family of requests, named like its schema.
//! Units: offsets count records, `*_ms` are milliseconds (timestamps since the Unix epoch), `*_bytes` are bytes.
//! A topic id is the 128 bits of `corelog_engine::TopicId`.

use flatbuffers::{Follow, ForwardsUOffset, Vector, WIPOffset};

use crate::codec::{Builder, DecodeError, Message, root};
use crate::error::{ErrorCode, Failure};
use crate::generated::corelog::wire;

mod cluster;
mod fetch;
mod handshake;
mod metadata;
mod node;
mod offsets;
mod produce;
mod replication;
mod topics;

pub use cluster::{
    AddReplicaRequest, ClusterChangeResponse, ClusterNode, DescribeClusterRequest, DescribeClusterResponse,
    DrainNodeRequest, ElectLeader, ElectLeadersRequest, ElectLeadersResponse, ElectionKind, ElectionResult,
    ForgetNodeRequest, NodeState, PartitionHealth, RemoveReplicaRequest, ReplicaTrouble, SetReplicasRequest,
};
pub use fetch::{Divergence, FetchPartition, FetchPartitionResult, FetchRequest, FetchResponse};
pub use handshake::{HandshakeRequest, HandshakeResponse};
pub use metadata::{
    MetadataRequest, MetadataResponse, MetadataTopics, PartitionMetadata, ShardAddress, TopicMetadata,
};
pub use node::{DataDirDescription, DescribeNodeRequest, DescribeNodeResponse, ShardDescription};
pub use offsets::{
    DeleteRecordsPartition, DeleteRecordsRequest, DeleteRecordsResponse, FoundOffset, ListOffsetsPartition,
    ListOffsetsRequest, ListOffsetsResponse, OffsetSpec,
};
pub use produce::{Acks, ProducePartition, ProduceRequest, ProduceResponse, Produced};
pub use replication::{
    STREAM_ENTRIES_MAX, STREAM_FRAME_LIMITS, STREAM_VERSION, STREAM_VERSION_MIN, StreamAnswer, StreamBatch,
    StreamFollow, StreamHello, StreamHelloAnswer, StreamMark, StreamMessage, StreamRange, StreamReadRange,
    StreamReport, StreamVerdict,
};
pub use topics::{
    AlterTopicOptionsRequest, CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest,
    DescribeTopicsRequest, DescribeTopicsResponse, ListTopicsRequest, ListTopicsResponse, NewTopic,
    PartitionDescription, ReplicaDescription, TopicDescription, TopicListing, TopicOption, TopicResult,
    TopicResultsResponse,
};

/// A topic, as a request names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TopicRef {
    /// By its id: exact, and the form to use wherever it is known (no lookup of a string).
    Id(u128),
    /// By its name: whichever topic has it now.
    Name(Box<str>),
}

impl From<&str> for TopicRef {
    fn from(name: &str) -> Self {
        Self::Name(name.into())
    }
}

impl std::fmt::Display for TopicRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => write!(f, "topic id {id:032x}"),
            Self::Name(name) => write!(f, "topic {name:?}"),
        }
    }
}

/// A partition, as a request names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PartitionRef {
    /// Its topic.
    pub topic: TopicRef,
    /// Its number in the topic, from 0.
    pub partition: u32,
}

impl PartitionRef {
    /// A partition of a topic known by id.
    pub fn by_id(topic_id: u128, partition: u32) -> Self {
        Self { topic: TopicRef::Id(topic_id), partition }
    }

    /// A partition of a topic known by name.
    pub fn by_name(name: &str, partition: u32) -> Self {
        Self { topic: name.into(), partition }
    }
}

/// The response to a request that failed as a whole (api 0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorResponse {
    /// What failed.
    pub failure: Failure,
}

impl Message for ErrorResponse {
    fn build(&self, b: &mut Builder) {
        let message = text(b, &self.failure.message);
        let root = wire::ErrorResponse::create(
            b,
            &wire::ErrorResponseArgs { error: wire::ErrorCode(self.failure.code.number()), message },
        );
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::ErrorResponse<'_>>(head)?;
        Ok(Self { failure: failure_of(t.error(), t.message()).unwrap_or_else(|| ErrorCode::Unknown.into()) })
    }
}

// ---- Shared by the message files ----

/// A string field; an empty string is left out.
fn text(b: &mut Builder, text: &str) -> Option<WIPOffset<&'static str>> {
    if text.is_empty() { None } else { Some(b.create_string(text)) }
}

/// An owned string; an absent one is empty.
fn owned(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}

/// A vector of tables, each built by `build`.
fn tables<T, O: Copy>(
    b: &mut Builder,
    items: &[T],
    mut build: impl FnMut(&mut Builder, &T) -> WIPOffset<O>,
) -> WIPOffset<Vector<'static, ForwardsUOffset<O>>> {
    // One allocation of 4 bytes an item: a builder cannot hold a vector open while its items are built.
    let offsets: Vec<WIPOffset<O>> = items.iter().map(|item| build(b, item)).collect();
    b.create_vector(&offsets)
}

/// Reads each table of a vector; an absent vector is empty. The verifier has bounded how many there are.
fn read_tables<'a, W, T>(
    vector: Option<Vector<'a, ForwardsUOffset<W>>>,
    read: impl FnMut(W::Inner) -> Result<T, DecodeError>,
) -> Result<Vec<T>, DecodeError>
where
    W: Follow<'a> + 'a,
{
    vector.map_or_else(|| Ok(Vec::new()), |tables| tables.iter().map(read).collect())
}

/// The code and message fields of a result.
fn failure_fields<T>(
    b: &mut Builder,
    outcome: &Result<T, Failure>,
) -> (wire::ErrorCode, Option<WIPOffset<&'static str>>) {
    match outcome {
        Ok(_) => (wire::ErrorCode::None, None),
        Err(failure) => (wire::ErrorCode(failure.code.number()), text(b, &failure.message)),
    }
}

fn failure_of(code: wire::ErrorCode, message: Option<&str>) -> Option<Failure> {
    let message = message.filter(|message| !message.is_empty());
    ErrorCode::from_number(code.0).map(|code| Failure::new(code, message.unwrap_or_else(|| code.text())))
}

fn id_field(id: u128) -> wire::TopicId {
    wire::TopicId::new(id as u64, (id >> 64) as u64)
}

fn id_of(id: &wire::TopicId) -> u128 {
    u128::from(id.high()) << 64 | u128::from(id.low())
}

/// The id and name fields of a topic reference.
fn topic_fields(
    b: &mut Builder,
    topic: &TopicRef,
) -> (Option<wire::TopicId>, Option<WIPOffset<&'static str>>) {
    match topic {
        TopicRef::Id(id) => (Some(id_field(*id)), None),
        TopicRef::Name(name) => (None, Some(b.create_string(name))),
    }
}

fn topic_of(id: Option<&wire::TopicId>, name: Option<&str>) -> Result<TopicRef, DecodeError> {
    match (id, name) {
        (Some(id), _) => Ok(TopicRef::Id(id_of(id))),
        (None, Some(name)) => Ok(TopicRef::Name(name.into())),
        (None, None) => Err(DecodeError::Missing("which topic it means")),
    }
}

fn build_topic_ref(b: &mut Builder, topic: &TopicRef) -> WIPOffset<wire::TopicRef<'static>> {
    let (id, name) = topic_fields(b, topic);
    wire::TopicRef::create(b, &wire::TopicRefArgs { id: id.as_ref(), name })
}

fn read_topic_ref(t: wire::TopicRef<'_>) -> Result<TopicRef, DecodeError> {
    topic_of(t.id(), t.name())
}

#[cfg(test)]
mod tests;
