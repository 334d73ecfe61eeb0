//! The shard as its sessions see it: each request of the protocol, and who answers it.
//!
//! Owns: the table from request to answer. Records are for the owning shard (`produce`, `fetch`, `offsets`); where
//! things are is in the snapshot (`metadata`); changes and sizes of topics are the control thread's.

use std::future::Future;
use std::rc::Rc;

use corelog_net::native::{Access, Answer, Backend, Caller, ClusterChange, FetchAnswer, Principal};
use corelog_schemas::messages::{
    AlterTopicOptionsRequest, ClusterChangeResponse, CreatePartitionsRequest, CreateTopicsRequest,
    DeleteRecordsRequest, DeleteRecordsResponse, DeleteTopicsRequest, DescribeClusterRequest,
    DescribeClusterResponse, DescribeNodeRequest, DescribeNodeResponse, DescribeTopicsRequest,
    DescribeTopicsResponse, ElectLeadersRequest, ElectLeadersResponse, FetchRequest, ListOffsetsRequest,
    ListOffsetsResponse, ListTopicsRequest, ListTopicsResponse, MetadataRequest, MetadataResponse,
    ProduceRequest, TopicResultsResponse,
};
use corelog_schemas::{ErrorCode, Failure};

use super::produce::ProduceAck;
use super::state::SharedShard;
use super::{fetch, metadata, offsets, produce};
use crate::control::messages::Answer as ControlAnswer;
use crate::control::{AdminRequest, ShardReport};

/// What sessions of this shard hold.
pub(super) struct ShardBackend(pub(super) SharedShard);

impl ShardBackend {
    /// Asks the control thread.
    fn ask<T: 'static>(&self, request: impl FnOnce(ControlAnswer<T>) -> AdminRequest) -> Answer<T> {
        let shard = self.0.clone();
        let (answer, answered) = ControlAnswer::new();
        let request = request(answer);
        Box::pin(async move {
            shard.report(ShardReport::Admin(request)).await;
            answered.recv_async().await.map_err(|_| Failure::from(ErrorCode::ShuttingDown))
        })
    }
}

impl Backend for ShardBackend {
    type ProduceAck = ProduceAck;

    fn identity(&self) -> (u32, u16) {
        (self.0.snapshot.borrow().node.0, self.0.id.0)
    }

    /// Everybody may do everything, for now: listeners that others can reach need `insecure = true`.
    fn authorize(&self, access: Access<'_>) -> Result<(), Failure> {
        match access.caller.principal {
            Principal::Anonymous => Ok(()),
        }
    }

    fn produce(
        &self,
        _: &Rc<Caller>,
        request: ProduceRequest,
        records: &[u8],
    ) -> impl Future<Output = ProduceAck> {
        produce::produce(self.0.clone(), request, records)
    }

    fn fetch(&self, _: &Rc<Caller>, request: FetchRequest) -> Answer<FetchAnswer> {
        Box::pin(fetch::fetch(self.0.clone(), request))
    }

    fn metadata(&self, _: &Rc<Caller>, request: MetadataRequest) -> Answer<MetadataResponse> {
        let response = metadata::describe(&self.0, &request);
        Box::pin(std::future::ready(Ok(response)))
    }

    fn list_offsets(&self, _: &Rc<Caller>, request: ListOffsetsRequest) -> Answer<ListOffsetsResponse> {
        Box::pin(offsets::list_offsets(self.0.clone(), request))
    }

    fn create_topics(&self, _: &Rc<Caller>, request: CreateTopicsRequest) -> Answer<TopicResultsResponse> {
        self.ask(|answer| AdminRequest::CreateTopics(request, answer))
    }

    fn delete_topics(&self, _: &Rc<Caller>, request: DeleteTopicsRequest) -> Answer<TopicResultsResponse> {
        self.ask(|answer| AdminRequest::DeleteTopics(request, answer))
    }

    fn list_topics(&self, _: &Rc<Caller>, request: ListTopicsRequest) -> Answer<ListTopicsResponse> {
        self.ask(|answer| AdminRequest::ListTopics(request, answer))
    }

    fn describe_topics(
        &self,
        _: &Rc<Caller>,
        request: DescribeTopicsRequest,
    ) -> Answer<DescribeTopicsResponse> {
        self.ask(|answer| AdminRequest::DescribeTopics(request, answer))
    }

    fn alter_topic_options(
        &self,
        _: &Rc<Caller>,
        request: AlterTopicOptionsRequest,
    ) -> Answer<TopicResultsResponse> {
        self.ask(|answer| AdminRequest::AlterTopicOptions(request, answer))
    }

    fn create_partitions(
        &self,
        _: &Rc<Caller>,
        request: CreatePartitionsRequest,
    ) -> Answer<TopicResultsResponse> {
        self.ask(|answer| AdminRequest::CreatePartitions(request, answer))
    }

    fn delete_records(&self, _: &Rc<Caller>, request: DeleteRecordsRequest) -> Answer<DeleteRecordsResponse> {
        Box::pin(offsets::delete_records(self.0.clone(), request))
    }

    fn describe_node(&self, _: &Rc<Caller>, _: DescribeNodeRequest) -> Answer<DescribeNodeResponse> {
        self.ask(AdminRequest::DescribeNode)
    }

    fn describe_cluster(
        &self,
        _: &Rc<Caller>,
        request: DescribeClusterRequest,
    ) -> Answer<DescribeClusterResponse> {
        self.ask(|answer| AdminRequest::DescribeCluster(request, answer))
    }

    fn change_cluster(&self, _: &Rc<Caller>, change: ClusterChange) -> Answer<ClusterChangeResponse> {
        self.ask(|answer| AdminRequest::ChangeCluster(change, answer))
    }

    fn elect_leaders(&self, _: &Rc<Caller>, request: ElectLeadersRequest) -> Answer<ElectLeadersResponse> {
        self.ask(|answer| AdminRequest::ElectLeaders(request, answer))
    }
}
