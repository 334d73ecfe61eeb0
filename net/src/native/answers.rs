//! The answers that a connection owes, in the order of its requests.
//!
//! Owns: the queue, and the futures in it. Each wake of the session polls the unfinished ones.
//! Invariant: an answer leaves only from the front, so a peer gets its answers in the order of its requests, whatever
//! finishes first. A long poll at the front holds back answers behind it, not the work: later produces are appended.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use corelog_schemas::Failure;
use corelog_schemas::messages::ProduceResponse;

use super::backend::{Answer, FetchAnswer};
use super::unsent::{Held, Lane, UnsentBytes};

/// What is owed for one request.
pub(crate) struct Owed<A> {
    pub(crate) account: Account,
    pub(crate) work: Work<A>,
}

/// What a request counts against the limits of its connection until its answer has left.
pub(crate) struct Account {
    pub(crate) correlation_id: u32,
    /// Length of the request, of `in_flight_bytes_max`.
    pub(crate) request_bytes: u64,
    /// What was reserved of `answer_bytes_max`.
    pub(crate) answer_bytes: u64,
    /// Record bytes that the answer holds, of `unsent_bytes_max`.
    pub(crate) held: Option<Held>,
}

/// How far an answer has come.
pub(crate) enum Work<A> {
    /// Waits for acks. `is_silent`: acks=0, a success is not answered.
    Acking { ack: A, is_silent: bool },
    /// Reads, or waits for something to read.
    Fetching(Answer<FetchAnswer>),
    /// Has read.
    Fetched(Result<FetchAnswer, Failure>, Held),
    /// Some administrative work, whose result is a whole frame.
    Administrating(Pin<Box<dyn Future<Output = Encoded>>>),
    /// A whole frame.
    Encoded(Encoded),
    /// The request failed as a whole.
    Failed(Failure),
}

/// A frame ready to leave.
pub(crate) struct Encoded {
    pub(crate) frame: Vec<u8>,
    pub(crate) is_failure: bool,
}

/// A finished answer.
pub(crate) enum Done {
    Produced(Result<ProduceResponse, Failure>),
    /// acks=0 and appended: nothing to say.
    Silent,
    /// acks=0 and failed: the connection must end, there is no other way to say it.
    SilentFailure,
    Fetched(Result<FetchAnswer, Failure>),
    Encoded(Encoded),
    Failed(Failure),
}

pub(crate) struct Answers<A> {
    queue: VecDeque<Owed<A>>,
    /// How many of the queue are `Fetching` or `Administrating`.
    driven: usize,
}

impl<A: Future<Output = Result<ProduceResponse, Failure>> + Unpin> Answers<A> {
    pub(crate) fn new() -> Self {
        Self { queue: VecDeque::new(), driven: 0 }
    }

    pub(crate) fn push(&mut self, owed: Owed<A>) {
        self.driven += usize::from(matches!(owed.work, Work::Fetching(_) | Work::Administrating(_)));
        self.queue.push_back(owed);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Polls every unfinished answer but acks (those are only looked at when they are at the front: they finish
    /// without being polled). Fetches only while not too many bytes are `unsent`.
    pub(crate) fn drive(&mut self, cx: &mut Context<'_>, unsent: &UnsentBytes) {
        if self.driven == 0 {
            return;
        }
        let mut lane = Lane::Front;
        for owed in &mut self.queue {
            let lane = std::mem::replace(&mut lane, Lane::Behind);
            let finished = match &mut owed.work {
                Work::Fetching(_) if !unsent.is_open(lane, cx) => continue,
                Work::Fetching(answer) => match answer.as_mut().poll(cx) {
                    Poll::Ready(answer) => {
                        let bytes = answer.as_ref().map_or(0, FetchAnswer::records_bytes);
                        Work::Fetched(answer, unsent.hold(lane, bytes))
                    }
                    Poll::Pending => continue,
                },
                Work::Administrating(answer) => match answer.as_mut().poll(cx) {
                    Poll::Ready(encoded) => Work::Encoded(encoded),
                    Poll::Pending => continue,
                },
                Work::Acking { .. } | Work::Fetched(..) | Work::Encoded(_) | Work::Failed(_) => continue,
            };
            owed.work = finished;
            self.driven -= 1;
        }
    }

    /// Takes the oldest answer if it is finished.
    pub(crate) fn poll_front(&mut self, cx: &mut Context<'_>) -> Option<(Account, Done)> {
        let front = self.queue.front_mut()?;
        let acked = match &mut front.work {
            Work::Acking { ack, is_silent } => match Pin::new(ack).poll(cx) {
                Poll::Ready(outcome) => Some((outcome, *is_silent)),
                Poll::Pending => return None,
            },
            Work::Fetching(_) | Work::Administrating(_) => return None,
            Work::Fetched(..) | Work::Encoded(_) | Work::Failed(_) => None,
        };
        let mut owed = self.queue.pop_front().expect("there is a front");
        if let Some(Owed { work: Work::Fetching(_), .. }) = self.queue.front() {
            // It has moved to the front, where it may read though it might not before.
            cx.waker().wake_by_ref();
        }
        let done = match owed.work {
            Work::Acking { .. } => done_ack(acked.expect("it was just acked")),
            Work::Fetched(answer, held) => {
                owed.account.held = Some(held);
                Done::Fetched(answer)
            }
            Work::Encoded(encoded) => Done::Encoded(encoded),
            Work::Failed(failure) => Done::Failed(failure),
            Work::Fetching(_) | Work::Administrating(_) => unreachable!("unfinished answers stay"),
        };
        Some((owed.account, done))
    }
}

fn done_ack((outcome, is_silent): (Result<ProduceResponse, Failure>, bool)) -> Done {
    if !is_silent {
        return Done::Produced(outcome);
    }
    let failed = outcome.is_err() || outcome.is_ok_and(|r| r.partitions.iter().any(Result::is_err));
    if failed { Done::SilentFailure } else { Done::Silent }
}
