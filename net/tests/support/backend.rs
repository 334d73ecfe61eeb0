//! A backend that remembers what it was asked, and answers when the test says so.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use corelog_net::native::{
    Access, Answer, Backend, Caller, ClusterChange, FetchAnswer, FetchedPartition, Records, Resource,
};
use corelog_schemas::messages::*;
use corelog_schemas::{ErrorCode, Failure};

/// A value to come.
pub struct Promise<T>(Rc<RefCell<(Option<T>, Option<Waker>)>>);

impl<T> Promise<T> {
    fn new() -> (Self, Self) {
        let shared = Rc::new(RefCell::new((None, None)));
        (Self(shared.clone()), Self(shared))
    }

    pub fn fulfil(self, value: T) {
        let mut shared = self.0.borrow_mut();
        shared.0 = Some(value);
        if let Some(waker) = shared.1.take() {
            waker.wake();
        }
    }

    /// Whether nobody waits any more.
    pub fn is_abandoned(&self) -> bool {
        Rc::strong_count(&self.0) == 1
    }
}

impl<T> Future for Promise<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut shared = self.0.borrow_mut();
        match shared.0.take() {
            Some(value) => Poll::Ready(value),
            None => {
                shared.1 = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

type HeldFetch = (FetchRequest, Promise<Result<FetchAnswer, Failure>>);
type Ack = Promise<Result<ProduceResponse, Failure>>;

#[derive(Default)]
pub struct FakeBackend {
    /// Records in the order of their appends.
    pub appended: RefCell<Vec<Vec<u8>>>,
    /// Acks to come, oldest first; empty if `acks_at_once`.
    pub acks: RefCell<VecDeque<Ack>>,
    /// Fetches to answer, oldest first.
    pub fetches: RefCell<VecDeque<HeldFetch>>,
    /// Produces are acked as they come.
    pub acks_at_once: Cell<bool>,
    /// Produces wait for memory.
    pub is_full: Cell<bool>,
    full_waker: RefCell<Option<Waker>>,
    /// Topic name that nobody may touch.
    pub forbidden: RefCell<String>,
    /// What was authorized.
    pub asked: RefCell<Vec<String>>,
}

pub fn produced(base_offset: u64) -> ProduceResponse {
    let produced = Produced { base_offset, append_time_ms: None, log_start_offset: 0 };
    ProduceResponse { throttle_ms: 0, partitions: vec![Ok(produced)] }
}

pub fn fetched(records: Records) -> FetchAnswer {
    let partition = FetchedPartition { records, high_watermark: Some(9), ..FetchedPartition::default() };
    FetchAnswer { throttle_ms: 0, partitions: vec![partition] }
}

impl FakeBackend {
    /// There is memory again.
    pub fn make_room(&self) {
        self.is_full.set(false);
        if let Some(waker) = self.full_waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Acks the oldest produce.
    pub fn ack(&self, base_offset: u64) {
        self.acks.borrow_mut().pop_front().expect("a produce waits").fulfil(Ok(produced(base_offset)));
    }

    /// Answers the oldest fetch.
    pub fn answer_fetch(&self, records: Records) {
        let (_, promise) = self.fetches.borrow_mut().pop_front().expect("a fetch waits");
        promise.fulfil(Ok(fetched(records)));
    }

    pub fn appended_count(&self) -> usize {
        self.appended.borrow().len()
    }
}

fn ready<T: 'static>(value: Result<T, Failure>) -> Answer<T> {
    Box::pin(std::future::ready(value))
}

fn no_topics() -> Answer<TopicResultsResponse> {
    ready(Ok(TopicResultsResponse { results: vec![] }))
}

impl Backend for FakeBackend {
    type ProduceAck = Ack;

    fn identity(&self) -> (u32, u16) {
        (1, 2)
    }

    fn authorize(&self, access: Access<'_>) -> Result<(), Failure> {
        let (operation, resource) = (access.operation, access.resource);
        self.asked.borrow_mut().push(format!("{operation:?} {resource:?} via {}", access.caller.listener));
        match resource {
            Resource::Topic(TopicRef::Name(name)) if **name == **self.forbidden.borrow() => {
                Err(Failure::new(ErrorCode::NotAuthorized, format!("topic {name:?}")))
            }
            _ => Ok(()),
        }
    }

    async fn produce(&self, _: &Rc<Caller>, _: ProduceRequest, records: &[u8]) -> Ack {
        poll_fn(|cx| {
            if self.is_full.get() {
                *self.full_waker.borrow_mut() = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        let base_offset = self.appended_count() as u64;
        self.appended.borrow_mut().push(records.to_vec());
        let (ack, promise) = Promise::new();
        if self.acks_at_once.get() {
            promise.fulfil(Ok(produced(base_offset)));
        } else {
            self.acks.borrow_mut().push_back(promise);
        }
        ack
    }

    fn fetch(&self, _: &Rc<Caller>, request: FetchRequest) -> Answer<FetchAnswer> {
        let (answer, promise) = Promise::new();
        self.fetches.borrow_mut().push_back((request, promise));
        Box::pin(answer)
    }

    fn metadata(&self, _: &Rc<Caller>, _: MetadataRequest) -> Answer<MetadataResponse> {
        let cluster_id = "c".to_owned();
        ready(Ok(MetadataResponse {
            version: 7,
            cluster_id,
            shards: vec![],
            topics: vec![],
            controller_node: None,
        }))
    }

    fn list_offsets(&self, _: &Rc<Caller>, _: ListOffsetsRequest) -> Answer<ListOffsetsResponse> {
        ready(Ok(ListOffsetsResponse { partitions: vec![] }))
    }

    fn create_topics(&self, _: &Rc<Caller>, _: CreateTopicsRequest) -> Answer<TopicResultsResponse> {
        no_topics()
    }

    fn delete_topics(&self, _: &Rc<Caller>, _: DeleteTopicsRequest) -> Answer<TopicResultsResponse> {
        no_topics()
    }

    fn list_topics(&self, _: &Rc<Caller>, _: ListTopicsRequest) -> Answer<ListTopicsResponse> {
        ready(Ok(ListTopicsResponse { topics: vec![] }))
    }

    fn describe_topics(&self, _: &Rc<Caller>, _: DescribeTopicsRequest) -> Answer<DescribeTopicsResponse> {
        ready(Ok(DescribeTopicsResponse { topics: vec![] }))
    }

    fn alter_topic_options(
        &self,
        _: &Rc<Caller>,
        _: AlterTopicOptionsRequest,
    ) -> Answer<TopicResultsResponse> {
        no_topics()
    }

    fn create_partitions(&self, _: &Rc<Caller>, _: CreatePartitionsRequest) -> Answer<TopicResultsResponse> {
        no_topics()
    }

    fn delete_records(&self, _: &Rc<Caller>, _: DeleteRecordsRequest) -> Answer<DeleteRecordsResponse> {
        ready(Ok(DeleteRecordsResponse { partitions: vec![] }))
    }

    fn describe_node(&self, _: &Rc<Caller>, _: DescribeNodeRequest) -> Answer<DescribeNodeResponse> {
        ready(Err(ErrorCode::MetadataUnavailable.into()))
    }

    fn describe_cluster(&self, _: &Rc<Caller>, _: DescribeClusterRequest) -> Answer<DescribeClusterResponse> {
        ready(Err(ErrorCode::MetadataUnavailable.into()))
    }

    fn change_cluster(&self, _: &Rc<Caller>, change: ClusterChange) -> Answer<ClusterChangeResponse> {
        let node = match change {
            ClusterChange::DrainNode(drain) => Some(drain.node),
            _ => None,
        };
        ready(Ok(ClusterChangeResponse { failure: None, is_unchanged: false, node }))
    }

    fn elect_leaders(&self, _: &Rc<Caller>, _: ElectLeadersRequest) -> Answer<ElectLeadersResponse> {
        ready(Ok(ElectLeadersResponse { results: vec![] }))
    }
}
