//! From a frame to a call of the backend.
//!
//! Owns: which requests there are, what each must be allowed to do, and what is cut to the session's limits.
//! Invariant: every resource that a request names is authorized before the backend hears of it. One that is denied
//! fails the whole request, because the payload of a produce cannot be taken apart without looking into it.

use std::pin::Pin;
use std::rc::Rc;

use corelog_schemas::messages::{
    Acks, AlterTopicOptionsRequest, CreatePartitionsRequest, CreateTopicsRequest, DeleteRecordsRequest,
    DeleteTopicsRequest, DescribeClusterRequest, DescribeNodeRequest, DescribeTopicsRequest,
    ElectLeadersRequest, ElectionKind, FetchRequest, ListOffsetsRequest, ListTopicsRequest, MetadataRequest,
    MetadataTopics, ProduceRequest,
};
use corelog_schemas::{Api, DecodeError, Encoder, ErrorCode, Failure, Frame, Message, Request, decode};

use super::answers::{Encoded, Work};
use super::backend::{Access, Answer, Backend, Caller, ClusterChange, Operation, Resource};
use super::options::{ADMIN_ANSWER_BYTES, SessionOptions};

/// A request that was read and is allowed.
pub(crate) enum Call {
    Produce(ProduceRequest),
    Fetch(FetchRequest),
    Metadata(MetadataRequest),
    ListOffsets(ListOffsetsRequest),
    CreateTopics(CreateTopicsRequest),
    DeleteTopics(DeleteTopicsRequest),
    ListTopics(ListTopicsRequest),
    DescribeTopics(DescribeTopicsRequest),
    AlterTopicOptions(AlterTopicOptionsRequest),
    CreatePartitions(CreatePartitionsRequest),
    DeleteRecords(DeleteRecordsRequest),
    DescribeNode(DescribeNodeRequest),
    DescribeCluster(DescribeClusterRequest),
    ChangeCluster { api: Api, change: ClusterChange },
    ElectLeaders(ElectLeadersRequest),
}

/// Why there is no call.
pub(crate) enum Refusal {
    /// Answer it and go on.
    Answer(Failure),
    /// Answer it and close: the stream is out of step.
    Close(Failure),
}

impl From<DecodeError> for Refusal {
    fn from(error: DecodeError) -> Self {
        if error.is_fatal() { Self::Close(error.failure()) } else { Self::Answer(error.failure()) }
    }
}

/// Reads a request, and cuts it to the limits.
pub(crate) fn read_call(frame: &Frame<'_>, options: &SessionOptions) -> Result<Call, Refusal> {
    let Some(api) = Api::from_number(frame.prefix.api) else {
        let message = format!("this server does not know request {}", frame.prefix.api);
        return Err(Refusal::Answer(Failure::new(ErrorCode::UnsupportedApi, message)));
    };
    let call = match api {
        Api::Handshake => return Err(invalid("the handshake is done already")),
        Api::Produce => Call::Produce(read(frame)?),
        Api::Fetch => Call::Fetch(read(frame)?),
        Api::Metadata => Call::Metadata(read(frame)?),
        Api::ListOffsets => Call::ListOffsets(read(frame)?),
        Api::CreateTopics => Call::CreateTopics(read(frame)?),
        Api::DeleteTopics => Call::DeleteTopics(read(frame)?),
        Api::ListTopics => Call::ListTopics(read(frame)?),
        Api::DescribeTopics => Call::DescribeTopics(read(frame)?),
        Api::AlterTopicOptions => Call::AlterTopicOptions(read(frame)?),
        Api::CreatePartitions => Call::CreatePartitions(read(frame)?),
        Api::DeleteRecords => Call::DeleteRecords(read(frame)?),
        Api::DescribeNode => Call::DescribeNode(read(frame)?),
        Api::DescribeCluster => Call::DescribeCluster(read(frame)?),
        Api::DrainNode => Call::ChangeCluster { api, change: ClusterChange::DrainNode(read(frame)?) },
        Api::ForgetNode => Call::ChangeCluster { api, change: ClusterChange::ForgetNode(read(frame)?) },
        Api::AddReplica => Call::ChangeCluster { api, change: ClusterChange::AddReplica(read(frame)?) },
        Api::RemoveReplica => Call::ChangeCluster { api, change: ClusterChange::RemoveReplica(read(frame)?) },
        Api::SetReplicas => Call::ChangeCluster { api, change: ClusterChange::SetReplicas(read(frame)?) },
        Api::ElectLeaders => Call::ElectLeaders(read(frame)?),
    };
    match call {
        Call::Produce(request) if request.partitions.is_empty() => {
            Err(invalid("a produce names no partition"))
        }
        Call::Fetch(request) if request.partitions.is_empty() => Err(invalid("a fetch names no partition")),
        Call::ElectLeaders(request)
            if request.kind == ElectionKind::Unclean && request.partitions.is_empty() =>
        {
            Err(invalid("an unclean election names its partitions"))
        }
        Call::Fetch(mut request) => {
            request.max_bytes = request.max_bytes.min(options.fetch_bytes_max);
            request.min_bytes = request.min_bytes.min(request.max_bytes);
            request.max_wait_ms = request.max_wait_ms.min(options.fetch_wait_ms_max);
            Ok(Call::Fetch(request))
        }
        call => Ok(call),
    }
}

fn read<M: Message>(frame: &Frame<'_>) -> Result<M, DecodeError> {
    decode(frame.head, frame.prefix.payload_bytes())
}

fn invalid(message: &str) -> Refusal {
    Refusal::Answer(Failure::new(ErrorCode::InvalidRequest, message))
}

impl Call {
    /// What to reserve of `answer_bytes_max` while the call is under way.
    pub(crate) fn answer_bytes(&self) -> u64 {
        match self {
            Self::Produce(_) => 0,
            Self::Fetch(request) => u64::from(request.max_bytes),
            _ => ADMIN_ANSWER_BYTES,
        }
    }

    /// Asks for everything that the call touches.
    pub(crate) fn authorize<B: Backend>(&self, backend: &B, caller: &Caller) -> Result<(), Failure> {
        let ask = |operation, resource| backend.authorize(Access { caller, operation, resource });
        match self {
            Self::Produce(r) => {
                r.partitions.iter().try_for_each(|p| ask(Operation::Write, Resource::Topic(&p.to.topic)))
            }
            Self::Fetch(r) => {
                r.partitions.iter().try_for_each(|p| ask(Operation::Read, Resource::Topic(&p.from.topic)))
            }
            Self::Metadata(MetadataRequest { topics: MetadataTopics::All }) | Self::ListTopics(_) => {
                ask(Operation::Describe, Resource::AllTopics)
            }
            Self::Metadata(MetadataRequest { topics: MetadataTopics::These(topics) }) => {
                topics.iter().try_for_each(|topic| ask(Operation::Describe, Resource::Topic(topic)))
            }
            Self::ListOffsets(r) => {
                r.partitions.iter().try_for_each(|p| ask(Operation::Describe, Resource::Topic(&p.of.topic)))
            }
            Self::CreateTopics(r) => {
                r.topics.iter().try_for_each(|t| ask(Operation::Create, Resource::NewTopic(&t.name)))
            }
            Self::DeleteTopics(r) => {
                r.topics.iter().try_for_each(|topic| ask(Operation::Delete, Resource::Topic(topic)))
            }
            Self::DescribeTopics(r) => {
                r.topics.iter().try_for_each(|topic| ask(Operation::Describe, Resource::Topic(topic)))
            }
            Self::AlterTopicOptions(r) => ask(Operation::Alter, Resource::Topic(&r.topic)),
            Self::CreatePartitions(r) => ask(Operation::Alter, Resource::Topic(&r.topic)),
            Self::DeleteRecords(r) => {
                r.partitions.iter().try_for_each(|p| ask(Operation::Delete, Resource::Topic(&p.of.topic)))
            }
            Self::DescribeNode(_) | Self::DescribeCluster(_) => ask(Operation::Describe, Resource::Cluster),
            Self::ChangeCluster { .. } | Self::ElectLeaders(_) => ask(Operation::Alter, Resource::Cluster),
        }
    }

    /// Does it. Waits for a produce to have its place in the log, and for nothing else.
    pub(crate) async fn run<B: Backend>(
        self,
        backend: &B,
        caller: &Rc<Caller>,
        correlation_id: u32,
        payload: &[u8],
    ) -> Work<B::ProduceAck> {
        match self {
            Self::Produce(request) => {
                let is_silent = request.acks == Acks::None;
                let ack = backend.produce(caller, request, payload).await;
                Work::Acking { ack, is_silent }
            }
            Self::Fetch(request) => Work::Fetching(backend.fetch(caller, request)),
            Self::Metadata(r) => framed::<MetadataRequest, B>(correlation_id, backend.metadata(caller, r)),
            Self::ListOffsets(r) => {
                framed::<ListOffsetsRequest, B>(correlation_id, backend.list_offsets(caller, r))
            }
            Self::CreateTopics(r) => {
                framed::<CreateTopicsRequest, B>(correlation_id, backend.create_topics(caller, r))
            }
            Self::DeleteTopics(r) => {
                framed::<DeleteTopicsRequest, B>(correlation_id, backend.delete_topics(caller, r))
            }
            Self::ListTopics(r) => {
                framed::<ListTopicsRequest, B>(correlation_id, backend.list_topics(caller, r))
            }
            Self::DescribeTopics(r) => {
                framed::<DescribeTopicsRequest, B>(correlation_id, backend.describe_topics(caller, r))
            }
            Self::AlterTopicOptions(r) => {
                framed::<AlterTopicOptionsRequest, B>(correlation_id, backend.alter_topic_options(caller, r))
            }
            Self::CreatePartitions(r) => {
                framed::<CreatePartitionsRequest, B>(correlation_id, backend.create_partitions(caller, r))
            }
            Self::DeleteRecords(r) => {
                framed::<DeleteRecordsRequest, B>(correlation_id, backend.delete_records(caller, r))
            }
            Self::DescribeNode(r) => {
                framed::<DescribeNodeRequest, B>(correlation_id, backend.describe_node(caller, r))
            }
            Self::DescribeCluster(r) => {
                framed::<DescribeClusterRequest, B>(correlation_id, backend.describe_cluster(caller, r))
            }
            Self::ChangeCluster { api, change } => {
                framed_as(api, correlation_id, backend.change_cluster(caller, change))
            }
            Self::ElectLeaders(r) => {
                framed::<ElectLeadersRequest, B>(correlation_id, backend.elect_leaders(caller, r))
            }
        }
    }
}

/// An administrative answer as a frame of its own: rare, so it may allocate.
fn framed<R: Request + 'static, B: Backend>(
    correlation_id: u32,
    answer: Answer<R::Response>,
) -> Work<B::ProduceAck> {
    framed_as(R::API, correlation_id, answer)
}

fn framed_as<M: Message + 'static, A>(api: Api, correlation_id: u32, answer: Answer<M>) -> Work<A> {
    let encoded: Pin<Box<dyn Future<Output = Encoded>>> = Box::pin(async move {
        let outcome = answer.await;
        let (mut encoder, mut frame) = (Encoder::default(), Vec::new());
        match &outcome {
            Ok(response) => encoder.response(&mut frame, api, correlation_id, response),
            Err(failure) => encoder.failure(&mut frame, correlation_id, failure),
        }
        Encoded { frame, is_failure: outcome.is_err() }
    });
    Work::Administrating(encoded)
}
