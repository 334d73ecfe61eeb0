//! One produce request on its way: sent, waited for, and taken apart when some of its partitions have moved.
//!
//! Owns: what the sender is told about a request. A request that is not answered soon comes back as
//! [`Done::Slow`], so that the sender can look where its partitions are led now, and wait on for the rest.
//! Invariant: every send of a request comes back exactly once: with its result, or taken out of a slow one.
//! Why: a leader that is cut off or stopped answers nothing for as long as the request timeout; its partitions have
//! another leader long before.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use corelog_engine::{Offset, TimestampMs};
use corelog_schemas::Failure;
use corelog_schemas::messages::{Acks, ProduceRequest, Produced};

use super::accumulator::PartitionSend;
use super::delivery::BatchAck;
use crate::error::RequestError;
use crate::pool::ConnectionPool;

/// Room for the head of a request in the server's largest frame.
const HEAD_ROOM_BYTES: usize = 64 << 10;
/// A request that takes longer is looked after: above a healthy sync, below a failover.
pub(super) const SLOW_MS: u64 = 300;
/// And then so often.
pub(super) const SLOW_TICK_MS: u64 = 50;

/// What a request is told about: one result per partition, in order.
pub(super) type Results = Result<Answered, RequestError>;

pub(super) struct Answered {
    pub(super) throttle_ms: u32,
    pub(super) partitions: Vec<Result<BatchAck, Failure>>,
}

/// What the sender hears.
pub(super) enum Done {
    Request {
        address: Arc<str>,
        sends: Vec<PartitionSend>,
        results: Results,
    },
    /// The request would not fit a frame of the server: nothing was sent.
    TooLarge {
        address: Arc<str>,
        sends: Vec<PartitionSend>,
        bytes_max: usize,
    },
    /// No answer yet.
    Slow(Waiting),
    Refreshed {
        topic: Arc<str>,
    },
}

enum Outcome {
    Answered(Results),
    TooLarge { bytes_max: usize },
}

/// A request without its answer.
pub(super) struct Waiting {
    pub(super) address: Arc<str>,
    /// What is still waited for, with its place in the request.
    sends: Vec<(usize, PartitionSend)>,
    outcome: Pin<Box<dyn Future<Output = Outcome> + Send>>,
}

impl Waiting {
    /// Puts a request on its way once it is polled.
    pub(super) fn new(
        pool: Arc<ConnectionPool>,
        address: Arc<str>,
        request: ProduceRequest,
        payload: Vec<Bytes>,
        sends: Vec<PartitionSend>,
    ) -> Self {
        let outcome = exchange(pool, Arc::clone(&address), request, payload);
        Self { address, sends: sends.into_iter().enumerate().collect(), outcome: Box::pin(outcome) }
    }

    /// The partitions that are waited for.
    pub(super) fn sends(&self) -> impl Iterator<Item = &PartitionSend> {
        self.sends.iter().map(|(_, send)| send)
    }

    /// Takes the partitions for which `is_moved` holds out: their answer does not count any more.
    pub(super) fn take_moved(&mut self, is_moved: impl Fn(&PartitionSend) -> bool) -> Vec<PartitionSend> {
        let all = std::mem::take(&mut self.sends);
        let (moved, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, send)| is_moved(send));
        self.sends = rest;
        moved.into_iter().map(|(_, send)| send).collect()
    }

    /// Waits for the answer, for at most so long.
    pub(super) async fn wait(mut self, limit_ms: u64) -> Done {
        let limit = Duration::from_millis(limit_ms);
        let Ok(outcome) = tokio::time::timeout(limit, &mut self.outcome).await else {
            return Done::Slow(self);
        };
        let Self { address, sends, .. } = self;
        let (places, sends): (Vec<usize>, Vec<PartitionSend>) = sends.into_iter().unzip();
        match outcome {
            Outcome::TooLarge { bytes_max } => Done::TooLarge { address, sends, bytes_max },
            Outcome::Answered(Ok(Answered { throttle_ms, mut partitions })) => {
                let mut place = 0;
                partitions.retain(|_| {
                    place += 1;
                    places.contains(&(place - 1))
                });
                Done::Request { address, sends, results: Ok(Answered { throttle_ms, partitions }) }
            }
            Outcome::Answered(Err(error)) => Done::Request { address, sends, results: Err(error) },
        }
    }
}

async fn exchange(
    pool: Arc<ConnectionPool>,
    address: Arc<str>,
    request: ProduceRequest,
    payload: Vec<Bytes>,
) -> Outcome {
    let connection = match pool.get(&address).await {
        Ok((connection, _)) => connection,
        Err(error) => return Outcome::Answered(Err(error.into())),
    };
    let count = request.partitions.len();
    let payload_bytes: usize = payload.iter().map(Bytes::len).sum();
    let bytes_max = (connection.frame_bytes_max() as usize).saturating_sub(HEAD_ROOM_BYTES);
    if payload_bytes > bytes_max {
        return Outcome::TooLarge { bytes_max };
    }
    if request.acks == Acks::None {
        let none = BatchAck { base_offset: None, append_time: None };
        let sent = connection.send_unanswered(&request, payload).await;
        let partitions = (0..count).map(|_| Ok(none)).collect();
        return Outcome::Answered(sent.map(|()| Answered { throttle_ms: 0, partitions }));
    }
    Outcome::Answered(match connection.call(&request, payload).await {
        Err(error) => Err(error),
        Ok(answer) if answer.message.partitions.len() != count => {
            let reason = "not one result for each partition of the produce".into();
            Err(RequestError::BadAnswer { address, reason })
        }
        Ok(answer) => {
            let ack = |produced: Produced| BatchAck {
                base_offset: Some(Offset(produced.base_offset)),
                append_time: produced.append_time_ms.map(TimestampMs),
            };
            let partitions = answer.message.partitions.into_iter().map(|result| result.map(ack)).collect();
            Ok(Answered { throttle_ms: answer.message.throttle_ms, partitions })
        }
    })
}
