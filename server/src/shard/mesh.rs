//! The mesh: how a request that reached the wrong shard gets to the right one of this node, and its answer back.
//!
//! Owns: the messages between shards, and serving those that come in. Everything in them is owned and `Send`; records
//! are copied once on the way, which is the price of asking the wrong shard.
//! Invariant: who sends waits for room; who receives never sends into the mesh. So two full queues cannot wait for
//! each other.
//! Invariant: order per connection. A session has at most one produce that is not yet appended: it waits for
//! `Forwarded` before it reads its next request.
//! Limits: [`MESH_DEPTH_MAX`] requests queue, [`SERVED_MAX`] are served at a time; beyond, the answer is `Overloaded`.

use std::pin::pin;
use std::rc::Rc;

use bytes::Bytes;
use corelog_engine::{Offset, TimestampMs, TopicPartition};
use corelog_replication::{Ack, ProduceChecks};
use corelog_schemas::messages::{FoundOffset, OffsetSpec};
use corelog_schemas::{ErrorCode, Failure};
use futures_util::future::select;
use tokio::sync::oneshot;

use super::counters::count;
use super::state::{Shard, SharedShard};
use super::{failures, fetch, offsets, produce};

/// Requests that wait for one shard: a burst of a few hundred connections. More make their senders wait.
pub(super) const MESH_DEPTH_MAX: usize = 1024;

/// Requests of other shards that one shard serves at a time, waiting fetches included.
const SERVED_MAX: usize = 16_384;

/// One produce of one partition.
#[derive(Debug)]
pub(super) struct ForwardedProduce {
    pub(super) id: TopicPartition,
    pub(super) records: Bytes,
    pub(super) checks: ProduceChecks,
    pub(super) ack: Ack,
}

/// Records of another shard have their place.
#[derive(Debug)]
pub(super) struct Forwarded {
    pub(super) produced: produce::Placed,
    /// The ack to come; `None` if none was asked for.
    pub(super) acked: Option<oneshot::Receiver<Result<(), Failure>>>,
}

/// What is read of one partition.
#[derive(Clone, Debug)]
pub(super) struct Read {
    pub(super) id: TopicPartition,
    pub(super) from: Offset,
    pub(super) bytes_max: usize,
    pub(super) leader_epoch: Option<u32>,
    /// Of what the reader has read before `from`.
    pub(super) last_epoch: Option<u32>,
}

/// A lookup of an offset.
#[derive(Clone, Debug)]
pub(super) struct Lookup {
    pub(super) id: TopicPartition,
    pub(super) spec: OffsetSpec,
    pub(super) leader_epoch: Option<u32>,
}

/// From shard to shard. Dropping the receiver of a reply gives the request up.
pub(super) enum MeshRequest {
    /// Append; answered when the records have their place.
    Produce(ForwardedProduce, oneshot::Sender<Result<Forwarded, Failure>>),
    /// Read what is there, within a budget.
    Fetch(Vec<Read>, fetch::Budget, oneshot::Sender<Vec<fetch::Outcome<Bytes>>>),
    /// Say when there is something to read at one of the offsets.
    WaitReadable(Vec<(TopicPartition, Offset)>, oneshot::Sender<()>),
    /// Look offsets up.
    ListOffsets(Vec<Lookup>, oneshot::Sender<Vec<Result<FoundOffset, Failure>>>),
    /// Move log start offsets up; `None`: to the high watermark.
    DeleteRecords(Vec<(TopicPartition, Option<u64>)>, oneshot::Sender<Vec<Result<u64, Failure>>>),
}

/// Serves what other shards send, until they are all gone.
pub(super) async fn serve(shard: SharedShard, requests: flume::Receiver<MeshRequest>) {
    let served = Rc::new(());
    while let Ok(request) = requests.recv_async().await {
        count(&shard.counters.served_for_others);
        if Rc::strong_count(&served) > SERVED_MAX {
            refuse(request);
            continue;
        }
        let (shard, served) = (shard.clone(), served.clone());
        // Not joined: at a stop its partition closes, and every wait in it ends with that.
        glommio::spawn_local(async move {
            serve_one(&shard, request).await;
            drop(served);
        })
        .detach();
    }
}

fn refuse(request: MeshRequest) {
    let failure = || Failure::from(ErrorCode::Overloaded);
    match request {
        MeshRequest::Produce(_, reply) => drop(reply.send(Err(failure()))),
        MeshRequest::Fetch(reads, _, reply) => {
            drop(reply.send(reads.iter().map(|read| fetch::Outcome::failed(read.from, failure())).collect()));
        }
        // Who waits is told that there may be something, reads, and is refused there.
        MeshRequest::WaitReadable(_, reply) => drop(reply.send(())),
        MeshRequest::ListOffsets(lookups, reply) => {
            drop(reply.send(lookups.iter().map(|_| Err(failure())).collect()));
        }
        MeshRequest::DeleteRecords(deletions, reply) => {
            drop(reply.send(deletions.iter().map(|_| Err(failure())).collect()));
        }
    }
}

/// An answer that nobody waits for any more is dropped: the peer's connection has ended.
async fn serve_one(shard: &Shard, request: MeshRequest) {
    match request {
        MeshRequest::Produce(forwarded, reply) => serve_produce(shard, forwarded, reply).await,
        MeshRequest::Fetch(reads, budget, reply) => {
            let outcomes = fetch::read_local(shard, &reads, budget).await;
            let _ = reply.send(outcomes.into_iter().map(fetch::Outcome::into_owned).collect());
        }
        MeshRequest::WaitReadable(positions, mut reply) => {
            let wait = pin!(fetch::wait_local_any(shard, &positions));
            // Ends as well when the other side has given up; then nobody hears the answer.
            select(wait, pin!(reply.closed())).await;
            let _ = reply.send(());
        }
        MeshRequest::ListOffsets(lookups, reply) => {
            let _ = reply.send(offsets::list_local(shard, &lookups).await);
        }
        MeshRequest::DeleteRecords(deletions, reply) => {
            let _ = reply.send(offsets::delete_local(shard, &deletions).await);
        }
    }
}

async fn serve_produce(
    shard: &Shard,
    forwarded: ForwardedProduce,
    reply: oneshot::Sender<Result<Forwarded, Failure>>,
) {
    let ForwardedProduce { id, records, checks, ack } = forwarded;
    match produce::append_local(shard, id, &records, checks, ack).await {
        Err(failure) => drop(reply.send(Err(failure))),
        Ok(appended) => {
            drop(records);
            let Some(advanced) = appended.acked else {
                let _ = reply.send(Ok(Forwarded { produced: appended.placed, acked: None }));
                return;
            };
            let (answer, acked) = oneshot::channel();
            let _ = reply.send(Ok(Forwarded { produced: appended.placed, acked: Some(acked) }));
            let _ = answer.send(advanced.await.map_err(|error| failures::of_wait(&error)));
        }
    }
}

/// The wall clock, plus what a record's timestamp may lie ahead of it.
pub(super) fn timestamp_max(now: TimestampMs) -> TimestampMs {
    TimestampMs(now.0.saturating_add(TIMESTAMP_AHEAD_MAX_MS))
}

/// How far a producer's clock may be ahead: Kafka's default, one hour. One record from the year 3000 would keep its
/// segment out of retention for ever.
const TIMESTAMP_AHEAD_MAX_MS: i64 = 3_600_000;
