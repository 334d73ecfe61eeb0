//! What requests do: the seam between a session and the shard behind it.
//!
//! Owns: the trait, who calls ([`Caller`]), and what may be asked ([`Operation`] on a [`Resource`]).
//! Invariant: the session asks [`Backend::authorize`] for every resource of a request before it calls anything else.
//! Not here: bytes of heads and frames (`corelog_schemas`), order and limits (`session`).

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use bytes::Bytes;
use corelog_engine::buffer::DmaSlice;
use corelog_schemas::Failure;
use corelog_schemas::messages::{
    AddReplicaRequest, AlterTopicOptionsRequest, ClusterChangeResponse, CreatePartitionsRequest,
    CreateTopicsRequest, DeleteRecordsRequest, DeleteRecordsResponse, DeleteTopicsRequest,
    DescribeClusterRequest, DescribeClusterResponse, DescribeNodeRequest, DescribeNodeResponse,
    DescribeTopicsRequest, DescribeTopicsResponse, Divergence, DrainNodeRequest, ElectLeadersRequest,
    ElectLeadersResponse, FetchRequest, ForgetNodeRequest, ListOffsetsRequest, ListOffsetsResponse,
    ListTopicsRequest, ListTopicsResponse, MetadataRequest, MetadataResponse, ProduceRequest,
    ProduceResponse, RemoveReplicaRequest, SetReplicasRequest, TopicRef, TopicResultsResponse,
};

/// Who asks. Nobody can prove a name yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// Not authenticated.
    Anonymous,
}

/// One connection, as a backend sees it. Shared by all its requests.
#[derive(Debug)]
pub struct Caller {
    /// Who asks.
    pub principal: Principal,
    /// Name of the listener that accepted the connection.
    pub listener: Rc<str>,
    /// Address of the peer, for logs.
    pub peer: String,
    /// What the client calls itself, for logs.
    pub client_id: String,
    /// Number of the connection, unique on this shard since its start.
    pub connection: u64,
}

/// What is done to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Fetch records.
    Read,
    /// Produce records.
    Write,
    /// See names, options, offsets, load.
    Describe,
    /// Bring into being.
    Create,
    /// Remove, whole or in part.
    Delete,
    /// Change options or the number of partitions.
    Alter,
}

/// What something is done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource<'a> {
    /// The cluster and its nodes.
    Cluster,
    /// All topics at once; a backend may instead leave out what the principal may not see.
    AllTopics,
    /// One topic.
    Topic(&'a TopicRef),
    /// A topic that is not there yet.
    NewTopic(&'a str),
}

/// What is asked of [`Backend::authorize`].
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    /// Who asks, and from where.
    pub caller: &'a Caller,
    /// What for.
    pub operation: Operation,
    /// On what.
    pub resource: Resource<'a>,
}

/// Record batches on their way out, in order.
#[derive(Clone, Debug, Default)]
pub enum Records {
    /// None.
    #[default]
    Empty,
    /// Of this shard's buffers: sent without a copy.
    Shared(Vec<DmaSlice>),
    /// Of another shard, copied on the way.
    Owned(Bytes),
}

impl Records {
    /// Bytes in all.
    pub fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Shared(slices) => slices.iter().map(|slice| slice.len()).sum(),
            Self::Owned(bytes) => bytes.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What was read of one partition.
#[derive(Clone, Debug, Default)]
pub struct FetchedPartition {
    /// Why there is nothing, if it failed. `records` is then empty.
    pub failure: Option<Failure>,
    /// Whole batches.
    pub records: Records,
    /// End of what may be read.
    pub high_watermark: Option<u64>,
    /// First offset that can be read.
    pub log_start_offset: Option<u64>,
    /// Epoch of the leader that answered.
    pub leader_epoch: Option<u32>,
    /// Set, without records and without failure, if the client's position is not in the log any more.
    pub diverged: Option<Divergence>,
}

/// One result for each partition of the request, in its order.
#[derive(Clone, Debug, Default)]
pub struct FetchAnswer {
    /// The client should wait so long before its next fetch.
    pub throttle_ms: u32,
    /// Results.
    pub partitions: Vec<FetchedPartition>,
}

impl FetchAnswer {
    /// Record bytes in all.
    pub fn records_bytes(&self) -> u64 {
        self.partitions.iter().map(|p| p.records.len() as u64).sum()
    }
}

/// What an operator asks of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterChange {
    /// A node is to lead nothing, or may lead again.
    DrainNode(DrainNodeRequest),
    /// A node does not come back.
    ForgetNode(ForgetNodeRequest),
    /// A partition gets another replica.
    AddReplica(AddReplicaRequest),
    /// A replica goes.
    RemoveReplica(RemoveReplicaRequest),
    /// All partitions of a topic get so many replicas.
    SetReplicas(SetReplicasRequest),
}

/// The answer to come. An `Err` answers the request as a whole; failures of a single partition or topic belong into
/// the answer.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, Failure>>>>;

/// A shard, as its sessions see it. Sessions hold it in an `Rc`.
///
/// Calls come in the order of the requests on a connection. Futures are polled by the session's own task, all of a
/// connection's unfinished ones whenever it wakes, except that only the oldest [`Backend::ProduceAck`] is polled, and
/// no fetch while peers hold too many unsent bytes (so a fetch must not begin to hold memory before it is polled).
/// If the connection ends, they are dropped: what was appended stays appended, what was only read is given up.
pub trait Backend: 'static {
    /// The answer to a produce whose records have their place in the log.
    type ProduceAck: Future<Output = Result<ProduceResponse, Failure>> + Unpin + 'static;

    /// This shard's node id and number.
    fn identity(&self) -> (u32, u16);

    /// Whether the caller may do that. The one place that decides; it must not block.
    fn authorize(&self, access: Access<'_>) -> Result<(), Failure>;

    /// Checks, admits and appends record batches; ready once their order against later requests of this connection is
    /// settled, so waiting here is back-pressure: the session reads nothing more meanwhile.
    ///
    /// `records` holds the batches of `request.partitions`, in order, `records_bytes` each; their sum is its length.
    /// It lies in the connection's receive buffer: copy what must outlive the call.
    ///
    /// The `ProduceAck` is ready when `request.acks` is fulfilled, or failed, or out of time; with `Acks::None` at once
    /// after the append. A failure then closes the connection, being the only way to tell.
    fn produce(
        &self,
        caller: &Rc<Caller>,
        request: ProduceRequest,
        records: &[u8],
    ) -> impl Future<Output = Self::ProduceAck>;

    /// Reads record batches; waits for `min_bytes` up to `max_wait_ms`. `request.max_bytes` has been cut to the
    /// session's limit, so the answer may pass it by no more than one batch.
    fn fetch(&self, caller: &Rc<Caller>, request: FetchRequest) -> Answer<FetchAnswer>;

    /// Where things are.
    fn metadata(&self, caller: &Rc<Caller>, request: MetadataRequest) -> Answer<MetadataResponse>;

    /// Offsets by time, the first, the last.
    fn list_offsets(&self, caller: &Rc<Caller>, request: ListOffsetsRequest) -> Answer<ListOffsetsResponse>;

    /// Creates topics.
    fn create_topics(
        &self,
        caller: &Rc<Caller>,
        request: CreateTopicsRequest,
    ) -> Answer<TopicResultsResponse>;

    /// Deletes topics.
    fn delete_topics(
        &self,
        caller: &Rc<Caller>,
        request: DeleteTopicsRequest,
    ) -> Answer<TopicResultsResponse>;

    /// Names topics.
    fn list_topics(&self, caller: &Rc<Caller>, request: ListTopicsRequest) -> Answer<ListTopicsResponse>;

    /// Shows topics.
    fn describe_topics(
        &self,
        caller: &Rc<Caller>,
        request: DescribeTopicsRequest,
    ) -> Answer<DescribeTopicsResponse>;

    /// Changes options of a topic.
    fn alter_topic_options(
        &self,
        caller: &Rc<Caller>,
        request: AlterTopicOptionsRequest,
    ) -> Answer<TopicResultsResponse>;

    /// Adds partitions to a topic.
    fn create_partitions(
        &self,
        caller: &Rc<Caller>,
        request: CreatePartitionsRequest,
    ) -> Answer<TopicResultsResponse>;

    /// Moves log start offsets up.
    fn delete_records(
        &self,
        caller: &Rc<Caller>,
        request: DeleteRecordsRequest,
    ) -> Answer<DeleteRecordsResponse>;

    /// Shows this node.
    fn describe_node(
        &self,
        caller: &Rc<Caller>,
        request: DescribeNodeRequest,
    ) -> Answer<DescribeNodeResponse>;

    /// Shows the cluster, as this node knows it.
    fn describe_cluster(
        &self,
        caller: &Rc<Caller>,
        request: DescribeClusterRequest,
    ) -> Answer<DescribeClusterResponse>;

    /// Stores what an operator asks.
    fn change_cluster(&self, caller: &Rc<Caller>, change: ClusterChange) -> Answer<ClusterChangeResponse>;

    /// Lets other replicas lead.
    fn elect_leaders(
        &self,
        caller: &Rc<Caller>,
        request: ElectLeadersRequest,
    ) -> Answer<ElectLeadersResponse>;
}
