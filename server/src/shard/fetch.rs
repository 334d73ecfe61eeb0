//! Fetch: reads of several partitions, here and on other shards, and the wait for bytes.
//!
//! Owns: how the byte limits are shared out, and when a long poll ends. Local reads hand out the log's own buffers.
//! Invariant: a waiting fetch holds no buffers: what a round read is dropped before it waits, and read again.
//! Invariant: however many partitions a fetch waits for, it holds one waker of its task (`relay.rs`).
//! Invariant: a fetch never waits if something failed, or if a limit cut its answer short: waiting would not help.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use corelog_engine::log::ReadError;
use corelog_engine::{LeaderEpoch, Offset, TopicPartition};
use corelog_net::native::{FetchAnswer, FetchedPartition, Records};
use corelog_replication::{Advanced, FetchError};
use corelog_schemas::messages::{Divergence, FetchRequest};
use corelog_schemas::{ErrorCode, Failure};
use glommio::timer::Timer;
use tokio::sync::oneshot;

use super::failures;
use super::mesh::{MeshRequest, Read};
use super::registry::ShardPartition;
use super::relay::Relay;
use super::state::{Shard, SharedShard};
use crate::control::ShardId;

/// What a read of one partition found; `R` holds the records.
#[derive(Debug)]
pub(super) struct Outcome<R> {
    failure: Option<Failure>,
    records: R,
    bytes: usize,
    high_watermark: Option<u64>,
    log_start: Option<u64>,
    leader_epoch: Option<u32>,
    /// Where the reader is now.
    next_offset: Offset,
    /// [`ShardPartition::committed_bytes`] as the read saw it.
    committed_bytes: u64,
    /// There is more to read than the limits let through, or waiting would not help.
    is_cut: bool,
    /// What the reader has read is not in the log any more.
    diverged: Option<Divergence>,
}

impl<R: Default> Outcome<R> {
    /// Nothing, and why.
    pub(super) fn failed(at: Offset, failure: Failure) -> Self {
        Self {
            failure: Some(failure),
            records: R::default(),
            bytes: 0,
            high_watermark: None,
            log_start: None,
            leader_epoch: None,
            next_offset: at,
            committed_bytes: 0,
            is_cut: false,
            diverged: None,
        }
    }
}

impl<R> Outcome<R> {
    fn map<S>(self, change: impl FnOnce(R) -> S) -> Outcome<S> {
        Outcome {
            failure: self.failure,
            records: change(self.records),
            bytes: self.bytes,
            high_watermark: self.high_watermark,
            log_start: self.log_start,
            leader_epoch: self.leader_epoch,
            next_offset: self.next_offset,
            committed_bytes: self.committed_bytes,
            is_cut: self.is_cut,
            diverged: self.diverged,
        }
    }
}

impl Outcome<Records> {
    /// Copies the records, so that they can leave this core.
    pub(super) fn into_owned(self) -> Outcome<Bytes> {
        self.map(|records| match records {
            Records::Empty => Bytes::new(),
            Records::Owned(bytes) => bytes,
            Records::Shared(slices) => {
                let mut all = BytesMut::with_capacity(slices.iter().map(|slice| slice.len()).sum());
                slices.iter().for_each(|slice| all.extend_from_slice(slice));
                all.freeze()
            }
        })
    }

    fn into_answer(self) -> FetchedPartition {
        FetchedPartition {
            failure: self.failure,
            records: self.records,
            high_watermark: self.high_watermark,
            log_start_offset: self.log_start,
            leader_epoch: self.leader_epoch,
            diverged: self.diverged,
        }
    }
}

/// After so many reads in one go a fetch lets the shard do something else.
const TURN_READS: usize = 64;

/// What is left of the bytes that one answer may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    bytes_left: usize,
    /// Nothing was found yet: the first batch comes whole, whatever its size.
    is_first: bool,
}

impl Budget {
    fn new(bytes_max: usize) -> Self {
        Self { bytes_left: bytes_max, is_first: true }
    }

    fn spend(&mut self, bytes: usize) {
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
        self.is_first &= bytes == 0;
    }
}

/// Reads partitions of this shard, in order, within `budget`.
pub(super) async fn read_local(shard: &Shard, reads: &[Read], mut budget: Budget) -> Vec<Outcome<Records>> {
    let mut outcomes = Vec::with_capacity(reads.len());
    for read in reads {
        let outcome = read_one(shard, read, budget).await;
        let outcome = outcome.unwrap_or_else(|failure| Outcome::failed(read.from, failure));
        budget.spend(outcome.bytes);
        outcomes.push(outcome);
        if outcomes.len().is_multiple_of(TURN_READS) {
            glommio::yield_if_needed().await;
        }
    }
    outcomes
}

async fn read_one(
    shard: &Shard,
    read: &Read,
    Budget { bytes_left, is_first }: Budget,
) -> Result<Outcome<Records>, Failure> {
    let partition = shard.partition(read.id)?;
    let leader_epoch = read.leader_epoch.map(LeaderEpoch);
    let is_full = bytes_left == 0 && !is_first;
    if is_full || read.last_epoch.is_some() {
        partition.check_epoch(leader_epoch).map_err(|error| failures::of_leader(&error))?;
    }
    let last_epoch = read.last_epoch.map(LeaderEpoch);
    let diverged = last_epoch.and_then(|last_epoch| partition.diverged(read.from, last_epoch));
    if is_full || diverged.is_some() {
        let diverged = diverged.map(|at| Divergence { epoch: at.epoch.0, end_offset: at.end.0 });
        return Ok(nothing_of(&partition, read.from, diverged));
    }
    let bytes_max = read.bytes_max.min(bytes_left);
    let fetched = partition.fetch(read.from, bytes_max, leader_epoch).await;
    let fetched = fetched.map_err(|error| {
        if let FetchError::Read(ReadError::Corrupt { offset, .. }) = &error {
            shard.replicas.damaged(read.id, *offset);
        }
        failures::of_fetch(&error)
    })?;
    // A later partition must not bring a first batch that is larger than what is left of the whole answer.
    let is_too_large = !is_first && fetched.batches.bytes > bytes_left;
    let next_offset = if is_too_large { read.from } else { fetched.batches.next_offset };
    let bytes = if is_too_large { 0 } else { fetched.batches.bytes };
    Ok(Outcome {
        failure: None,
        records: if bytes == 0 { Records::Empty } else { Records::Shared(fetched.batches.slices) },
        bytes,
        high_watermark: Some(fetched.high_watermark.0),
        log_start: Some(fetched.log_start.0),
        leader_epoch: Some(fetched.leader_epoch.0),
        next_offset,
        committed_bytes: fetched.committed_bytes,
        is_cut: next_offset < fetched.high_watermark,
        diverged: None,
    })
}

/// What is said of a partition of which nothing is read.
fn nothing_of(partition: &ShardPartition, from: Offset, diverged: Option<Divergence>) -> Outcome<Records> {
    let high_watermark = partition.high_watermark();
    Outcome {
        failure: None,
        records: Records::Empty,
        bytes: 0,
        high_watermark: Some(high_watermark.0),
        log_start: Some(partition.log_start().0),
        leader_epoch: Some(partition.leader_epoch().0),
        next_offset: from,
        committed_bytes: partition.committed_bytes(),
        is_cut: diverged.is_some() || from < high_watermark,
        diverged,
    }
}

/// Ready when there is something to read at one of the offsets, or one of the partitions has gone.
pub(super) async fn wait_local_any(shard: &Shard, positions: &[(TopicPartition, Offset)]) {
    let mut waits: Vec<Advanced> = Vec::with_capacity(positions.len());
    for (id, from) in positions {
        let Ok(partition) = shard.partition(*id) else { return };
        waits.push(partition.readable(*from));
    }
    let mut relay = Relay::default();
    poll_fn(|cx| {
        let waker = relay.of(cx);
        let cx = &mut Context::from_waker(&waker);
        let is_any_ready = waits.iter_mut().any(|wait| Pin::new(wait).poll(cx).is_ready());
        if is_any_ready || shard.is_stopping.get() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// A part of a request and the shard that it goes to.
type Placed = (ShardId, Read);

/// Reads, and waits until `min_bytes` are there or the time is up.
pub(super) async fn fetch(shard: SharedShard, request: FetchRequest) -> Result<FetchAnswer, Failure> {
    let arrived_us = shard.clock.elapsed_us();
    let reads: Vec<Result<Placed, Failure>> = request
        .partitions
        .iter()
        .map(|p| {
            let place = shard.place(&p.from)?;
            let read = Read {
                id: place.id,
                from: Offset(p.fetch_offset),
                bytes_max: p.max_bytes as usize,
                leader_epoch: p.leader_epoch,
                last_epoch: p.last_epoch,
            };
            Ok((place.shard, read))
        })
        .collect();
    let mut timer = pin!(Timer::new(Duration::from_millis(u64::from(request.max_wait_ms))));
    let is_time_up = Cell::new(request.max_wait_ms == 0);
    let partitions = loop {
        let outcomes = read_round(&shard, &reads, request.max_bytes as usize).await;
        let bytes: usize = outcomes.iter().map(|outcome| outcome.bytes).sum();
        let is_final = outcomes.iter().any(|outcome| outcome.failure.is_some() || outcome.is_cut);
        let is_enough = bytes >= request.min_bytes as usize || is_final || outcomes.is_empty();
        if is_enough || is_time_up.get() || shard.is_stopping.get() {
            break outcomes;
        }
        let bytes_missing = request.min_bytes as u64 - bytes as u64;
        let wait = Wait::start(&shard, &reads, &outcomes, bytes_missing).await;
        drop(outcomes);
        let mut wait = wait?;
        poll_fn(|cx| {
            if timer.as_mut().poll(cx).is_ready() {
                is_time_up.set(true);
                return Poll::Ready(());
            }
            wait.poll(&shard, cx)
        })
        .await;
    };
    let us = shard.clock.elapsed_us() - arrived_us;
    shard.counters.fetch_latency.borrow_mut().record(us);
    let partitions = partitions.into_iter().map(Outcome::into_answer).collect();
    Ok(FetchAnswer { throttle_ms: 0, partitions })
}

/// Reads everything once, runs of partitions of one shard together.
async fn read_round(
    shard: &Shard,
    reads: &[Result<Placed, Failure>],
    bytes_max: usize,
) -> Vec<Outcome<Records>> {
    let mut outcomes: Vec<Outcome<Records>> = Vec::with_capacity(reads.len());
    let mut budget = Budget::new(bytes_max);
    let mut rest = reads;
    while let Some(first) = rest.first() {
        let to = match first {
            Ok((to, _)) => *to,
            Err(failure) => {
                outcomes.push(Outcome::failed(Offset::ZERO, failure.clone()));
                rest = &rest[1..];
                continue;
            }
        };
        let length = rest.iter().take_while(|r| matches!(r, Ok((shard, _)) if *shard == to)).count();
        let run: Vec<Read> = rest[..length].iter().flatten().map(|(_, read)| read.clone()).collect();
        rest = &rest[length..];
        let found = if to == shard.id {
            read_local(shard, &run, budget).await
        } else {
            read_remote(shard, to, run, budget).await
        };
        budget.spend(found.iter().map(|outcome| outcome.bytes).sum());
        outcomes.extend(found);
    }
    outcomes
}

async fn read_remote(shard: &Shard, to: ShardId, run: Vec<Read>, budget: Budget) -> Vec<Outcome<Records>> {
    let froms: Vec<Offset> = run.iter().map(|read| read.from).collect();
    let (reply, answered) = oneshot::channel();
    let sent = shard.forward(to, MeshRequest::Fetch(run, budget, reply)).await;
    let failure = match sent {
        Ok(()) => match answered.await {
            Ok(outcomes) => return outcomes.into_iter().map(|o| o.map(owned)).collect(),
            Err(_) => Failure::from(ErrorCode::ShuttingDown),
        },
        Err(failure) => failure,
    };
    froms.into_iter().map(|from| Outcome::failed(from, failure.clone())).collect()
}

fn owned(bytes: Bytes) -> Records {
    if bytes.is_empty() { Records::Empty } else { Records::Owned(bytes) }
}

/// What a fetch waits for.
struct Wait {
    /// Of this shard: each partition, and what it had committed when it was read.
    local: Vec<(ShardPartition, u64)>,
    /// Their waits, in the same order.
    advanced: Vec<Advanced>,
    bytes_missing: u64,
    /// One for each other shard that is waited for. There any new record ends the wait.
    remote: Vec<oneshot::Receiver<()>>,
    relay: Relay,
}

impl Wait {
    async fn start(
        shard: &Shard,
        reads: &[Result<Placed, Failure>],
        outcomes: &[Outcome<Records>],
        bytes_missing: u64,
    ) -> Result<Self, Failure> {
        let mut wait = Self {
            local: Vec::new(),
            advanced: Vec::new(),
            bytes_missing,
            remote: Vec::new(),
            relay: Relay::default(),
        };
        let mut remote: Vec<(ShardId, Vec<(TopicPartition, Offset)>)> = Vec::new();
        for ((to, read), outcome) in reads.iter().flatten().zip(outcomes) {
            if *to == shard.id {
                wait.local.push((shard.partition(read.id)?, outcome.committed_bytes));
                continue;
            }
            let position = (read.id, outcome.next_offset);
            match remote.iter_mut().find(|(known, _)| known == to) {
                Some((_, positions)) => positions.push(position),
                None => remote.push((*to, vec![position])),
            }
        }
        for (to, positions) in remote {
            let (reply, answered) = oneshot::channel();
            shard.forward(to, MeshRequest::WaitReadable(positions, reply)).await?;
            wait.remote.push(answered);
        }
        // The only partition waits for the very byte; with several, each new record is looked at.
        wait.advanced = match &wait.local[..] {
            [(only, seen)] => vec![only.committed_bytes_reached(seen + bytes_missing)],
            several => several.iter().map(|(p, seen)| p.committed_bytes_reached(seen + 1)).collect(),
        };
        Ok(wait)
    }

    fn poll(&mut self, shard: &Shard, cx: &mut Context<'_>) -> Poll<()> {
        if shard.is_stopping.get() {
            return Poll::Ready(());
        }
        if self.remote.iter_mut().any(|remote| Pin::new(remote).poll(cx).is_ready()) {
            return Poll::Ready(());
        }
        let waker = self.relay.of(cx);
        let cx = &mut Context::from_waker(&waker);
        let mut bytes = 0;
        for ((partition, seen), advanced) in self.local.iter().zip(&mut self.advanced) {
            loop {
                match Pin::new(&mut *advanced).poll(cx) {
                    Poll::Pending => break,
                    // The partition has gone; the next read says so.
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(())) => {
                        *advanced = partition.committed_bytes_reached(partition.committed_bytes() + 1);
                    }
                }
            }
            bytes += partition.committed_bytes() - seen;
        }
        if bytes >= self.bytes_missing { Poll::Ready(()) } else { Poll::Pending }
    }
}
