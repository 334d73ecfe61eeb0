//! Produce: from the bytes in a connection's buffer to an ack.
//!
//! Owns: one request over several partitions, here and on other shards, and its pending ack.
//! Invariant: when [`produce`] is ready, every batch of the request has its place or was refused, so the connection's
//! next request comes after it in every log.
//! Invariant: an ack is a future that the session polls: no task, no timer for each. Time-outs are found by waking
//! producers on the shard's timer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use corelog_engine::{LeaderEpoch, Offset, TopicPartition};
use corelog_replication::{Ack, Advanced, ProduceChecks};
use corelog_schemas::messages::{
    Acks, CreateTopicsRequest, NewTopic, PartitionRef, ProduceRequest, ProduceResponse, Produced, TopicRef,
};
use corelog_schemas::{ErrorCode, Failure};
use tokio::sync::oneshot;

use super::counters::count;
use super::failures;
use super::mesh::{Forwarded, ForwardedProduce, MeshRequest, timestamp_max};
use super::state::{Place, Shard, SharedShard};
use crate::control::{AdminRequest, ShardReport, messages::Answer};

/// Where records went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    base_offset: Offset,
    append_time_ms: Option<i64>,
    log_start: Offset,
}

/// Records that have their place in a log of this shard.
pub(super) struct Appended {
    pub(super) placed: Placed,
    /// Ready with the ack; `None` if none was asked for.
    pub(super) acked: Option<Advanced>,
}

/// Checks and appends the batches of one partition of this shard.
pub(super) async fn append_local(
    shard: &Shard,
    id: TopicPartition,
    records: &[u8],
    checks: ProduceChecks,
    ack: Ack,
) -> Result<Appended, Failure> {
    shard.check_space(id)?;
    let partition = shard.partition(id)?;
    let clock = shard.clock;
    let produced = partition
        .produce(records, checks, move || clock.now())
        .await
        .map_err(|error| failures::of_produce(&error))?;
    Ok(Appended {
        placed: Placed {
            base_offset: produced.base_offset,
            append_time_ms: produced.append_time.map(|time| time.0),
            log_start: produced.log_start,
        },
        acked: partition.acked(ack, produced.end_offset),
    })
}

/// Appends all batches of a request, on whichever shards; ready when all have their place.
pub(super) async fn produce(shard: SharedShard, request: ProduceRequest, records: &[u8]) -> ProduceAck {
    let arrived_us = shard.clock.elapsed_us();
    let ack = match request.acks {
        Acks::None => Ack::None,
        Acks::Leader => Ack::Leader,
        Acks::All => Ack::All,
    };
    let timestamp_max = Some(timestamp_max(shard.clock.now()));
    let mut parts = Vec::with_capacity(request.partitions.len());
    let mut rest = records;
    for partition in &request.partitions {
        let (batches, after) = rest.split_at((partition.records_bytes as usize).min(rest.len()));
        rest = after;
        let leader_epoch = partition.leader_epoch.map(LeaderEpoch);
        let checks = ProduceChecks { leader_epoch, timestamp_max, ack };
        let part = match place(&shard, &partition.to).await {
            Err(failure) => Part::failed(failure),
            Ok(to) if to.shard == shard.id => match append_local(&shard, to.id, batches, checks, ack).await {
                Ok(Appended { placed, acked: None }) => Part::Done(Ok(placed)),
                Ok(Appended { placed, acked: Some(acked) }) => Part::Local(placed, acked),
                Err(failure) => Part::failed(failure),
            },
            Ok(to) => forward(&shard, to, batches, checks, ack).await,
        };
        parts.push(part);
    }
    // All were sent before the first is waited for: other shards append at the same time.
    for part in &mut parts {
        part.settle().await;
    }
    ProduceAck {
        deadline_ms: shard.clock.elapsed_ms() + u64::from(request.timeout_ms),
        shard,
        parts,
        acked: 0,
        arrived_us,
    }
}

async fn forward(shard: &Shard, to: Place, batches: &[u8], checks: ProduceChecks, ack: Ack) -> Part {
    let (reply, forwarded) = oneshot::channel();
    let records = Bytes::copy_from_slice(batches);
    let request = MeshRequest::Produce(ForwardedProduce { id: to.id, records, checks, ack }, reply);
    match shard.forward(to.shard, request).await {
        Ok(()) => Part::Sent(forwarded),
        Err(failure) => Part::failed(failure),
    }
}

/// Where a partition is; makes its topic if that is allowed.
async fn place(shard: &Shard, to: &PartitionRef) -> Result<Place, Failure> {
    match (shard.place(to), &to.topic) {
        (Err(failure), TopicRef::Name(name))
            if failure.code == ErrorCode::UnknownTopicOrPartition
                && shard.auto_create
                && shard.snapshot().topic_by_name(name).is_none() =>
        {
            create_topic(shard, name).await?;
            shard.place(to)
        }
        (placed, _) => placed,
    }
}

async fn create_topic(shard: &Shard, name: &str) -> Result<(), Failure> {
    let topic = NewTopic { name: name.to_owned(), partitions: 0, replication_factor: 0, options: Vec::new() };
    let request =
        CreateTopicsRequest { topics: vec![topic], validate_only: false, timeout_ms: AUTO_CREATE_TIMEOUT_MS };
    let (answer, answered) = Answer::new();
    shard.report(ShardReport::Admin(AdminRequest::CreateTopics(request, answer))).await;
    let response = answered.recv_async().await.map_err(|_| Failure::from(ErrorCode::ShuttingDown))?;
    match response.results.into_iter().next().and_then(|result| result.failure) {
        // Another producer was first.
        Some(failure) if failure.code != ErrorCode::TopicAlreadyExists => Err(failure),
        _ => Ok(()),
    }
}

/// How long a produce waits for the topic that it creates.
const AUTO_CREATE_TIMEOUT_MS: u32 = 10_000;

/// One partition of a request, on its way to an ack.
enum Part {
    /// Sent to another shard.
    Sent(oneshot::Receiver<Result<Forwarded, Failure>>),
    /// Has its place on another shard.
    Remote(Placed, oneshot::Receiver<Result<(), Failure>>),
    /// Has its place here.
    Local(Placed, Advanced),
    /// Answered.
    Done(Result<Placed, Failure>),
}

impl Part {
    fn failed(failure: Failure) -> Self {
        Self::Done(Err(failure))
    }

    /// Waits until the records have their place.
    async fn settle(&mut self) {
        if let Self::Sent(forwarded) = self {
            *self = match forwarded.await {
                Ok(Ok(Forwarded { produced, acked: Some(acked) })) => Self::Remote(produced, acked),
                Ok(Ok(Forwarded { produced, acked: None })) => Self::Done(Ok(produced)),
                Ok(Err(failure)) => Self::failed(failure),
                // Its shard has ended, with the records or without.
                Err(_) => Self::failed(ErrorCode::Unacked.into()),
            };
        }
    }

    /// Looks for the ack; `true` once it is answered.
    fn poll_acked(&mut self, cx: &mut Context<'_>) -> bool {
        let done = match self {
            Self::Done(_) => return true,
            Self::Sent(_) => unreachable!("settled before it is polled"),
            Self::Local(placed, acked) => match Pin::new(acked).poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(())) => Ok(*placed),
                Poll::Ready(Err(error)) => Err(failures::of_wait(&error)),
            },
            Self::Remote(placed, acked) => match Pin::new(acked).poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(Ok(()))) => Ok(*placed),
                Poll::Ready(Ok(Err(failure))) => Err(failure),
                Poll::Ready(Err(_)) => Err(ErrorCode::Unacked.into()),
            },
        };
        *self = Self::Done(done);
        true
    }

    /// The answer; what is not answered by now has run out of time.
    fn into_result(self) -> Result<Produced, Failure> {
        match self {
            Self::Done(Ok(placed)) => Ok(Produced {
                base_offset: placed.base_offset.0,
                append_time_ms: placed.append_time_ms,
                log_start_offset: placed.log_start.0,
            }),
            Self::Done(Err(failure)) => Err(failure),
            Self::Local(..) | Self::Remote(..) | Self::Sent(_) => Err(Failure::new(
                ErrorCode::RequestTimedOut,
                "the records have their place, but were not acked in time; they may still become readable",
            )),
        }
    }
}

/// The ack to come of one produce request. Ready when all its partitions are acked or failed, or out of time.
pub(super) struct ProduceAck {
    shard: SharedShard,
    parts: Vec<Part>,
    /// How many of them are answered, from the first on.
    acked: usize,
    deadline_ms: u64,
    arrived_us: u64,
}

impl Future for ProduceAck {
    type Output = Result<ProduceResponse, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        // In order, up to the first that is not acked: so the task has one waker in one queue at a time.
        while let Some(part) = this.parts.get_mut(this.acked) {
            if !part.poll_acked(cx) {
                break;
            }
            this.acked += 1;
        }
        if this.acked < this.parts.len() {
            if this.shard.clock.elapsed_ms() < this.deadline_ms {
                return Poll::Pending;
            }
            // Out of time: those behind the one that is late may well be acked.
            for part in &mut this.parts[this.acked..] {
                part.poll_acked(&mut Context::from_waker(Waker::noop()));
            }
        }
        let partitions: Vec<_> = std::mem::take(&mut this.parts).into_iter().map(Part::into_result).collect();
        let counters = &this.shard.counters;
        partitions.iter().filter(|part| part.is_err()).for_each(|_| count(&counters.produce_failures));
        let us = this.shard.clock.elapsed_us() - this.arrived_us;
        counters.produce_latency.borrow_mut().record(us);
        Poll::Ready(Ok(ProduceResponse { throttle_ms: 0, partitions }))
    }
}
