//! Which server to ask next, and not to wait for one that is silent.
//!
//! Owns: the order of candidates, what is remembered of failures, and the race of several answers.
//! Invariant: every candidate is asked before a question fails, and the first answer counts.
//! Not here: what is asked (`cluster`), connections (`pool`).
//! Cost: while all is well one request; a silent server costs [`HEDGE_MS`] once, then it comes last for a while.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use crate::error::RequestError;

/// The next server is asked too if one has not answered for so long: far above a healthy answer (1 ms), far below what
/// a person or a failover (1 s) would notice.
const HEDGE_MS: u64 = 150;
/// Servers that are asked at a time.
const ASKED_MAX: usize = 4;
/// For how long who has failed or been silent comes last.
const SUSPECT: Duration = Duration::from_secs(5);

/// What is remembered of servers.
#[derive(Default)]
pub(crate) struct Servers {
    /// Grows with each question.
    turn: AtomicUsize,
    suspects: Mutex<HashMap<Arc<str>, Instant>>,
}

impl Servers {
    /// All servers, in the order in which to ask them now.
    pub(crate) fn order(&self, given: &[Arc<str>], known: &[Arc<str>]) -> Vec<Arc<str>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        suspects.retain(|_, since| now.duration_since(*since) < SUSPECT);
        order(turn, given, known, |address| suspects.contains_key(address))
    }

    fn failed(&self, address: &Arc<str>) {
        let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        suspects.insert(Arc::clone(address), Instant::now());
    }

    fn answered(&self, address: &Arc<str>) {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner).remove(address);
    }
}

/// Begins with another one at each turn; suspects come last.
fn order(
    turn: usize,
    given: &[Arc<str>],
    known: &[Arc<str>],
    is_suspect: impl Fn(&Arc<str>) -> bool,
) -> Vec<Arc<str>> {
    let mut all: Vec<Arc<str>> = given.to_vec();
    all.extend(known.iter().filter(|address| !given.contains(address)).cloned());
    if !all.is_empty() {
        let first = turn % all.len();
        all.rotate_left(first);
    }
    let (last, mut first): (Vec<_>, Vec<_>) = all.into_iter().partition(|address| is_suspect(address));
    first.extend(last);
    first
}

/// Asks the candidates, one more whenever one fails or has been silent for a while; the first answer counts, also a
/// refusal.
///
/// # Panics
/// Without candidates.
pub(crate) async fn first_answer<T, F>(
    servers: &Servers,
    candidates: Vec<Arc<str>>,
    ask: impl Fn(Arc<str>) -> F,
) -> Result<(Arc<str>, T), RequestError>
where
    F: Future<Output = (Arc<str>, Result<T, RequestError>)>,
{
    let mut waiting = candidates.into_iter();
    let mut asked = FuturesUnordered::new();
    let mut silent: Vec<(Arc<str>, Instant)> = Vec::new();
    let mut first_error = None;
    loop {
        if asked.len() < ASKED_MAX
            && let Some(next) = waiting.next()
        {
            silent.push((Arc::clone(&next), Instant::now()));
            asked.push(ask(next));
        }
        let hedge = tokio::time::sleep(Duration::from_millis(HEDGE_MS));
        let may_ask_more = asked.len() < ASKED_MAX && waiting.len() > 0;
        let outcome = tokio::select! {
            biased;
            outcome = asked.next() => outcome,
            () = hedge, if may_ask_more => continue,
        };
        match outcome {
            Some((address, Err(error))) if is_of_the_way(&error) => {
                servers.failed(&address);
                silent.retain(|(other, _)| *other != address);
                first_error.get_or_insert(error);
            }
            Some((address, outcome)) => {
                let hedge = Duration::from_millis(HEDGE_MS);
                silent.retain(|(other, since)| *other != address && since.elapsed() >= hedge);
                silent.iter().for_each(|(other, _)| servers.failed(other));
                servers.answered(&address);
                return outcome.map(|answer| (address, answer));
            }
            None => return Err(first_error.expect("a client has at least one address")),
        }
    }
}

/// Whether a failure says something of the way to the server, and nothing of what was asked.
fn is_of_the_way(error: &RequestError) -> bool {
    match error {
        RequestError::Connect(_) | RequestError::Disconnected { .. } | RequestError::TimedOut { .. } => true,
        RequestError::Refused(failure) => failure.code == corelog_schemas::ErrorCode::ShuttingDown,
        RequestError::BadAnswer { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<Arc<str>> {
        list.iter().map(|name| Arc::from(*name)).collect()
    }

    fn broken(address: &Arc<str>) -> RequestError {
        RequestError::Disconnected { address: Arc::clone(address), reason: "gone".into() }
    }

    #[test]
    fn each_turn_begins_elsewhere_and_suspects_come_last() {
        let (given, known) = (names(&["a", "b"]), names(&["b", "c"]));
        let at = |turn| order(turn, &given, &known, |address| **address == *"b");
        assert_eq!(at(0), names(&["a", "c", "b"]));
        assert_eq!(at(1), names(&["c", "a", "b"]));
        assert_eq!(at(2), names(&["c", "a", "b"]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_not_waited_for_and_comes_last() {
        let servers = Servers::default();
        let started = Instant::now();
        let ask = |address: Arc<str>| async move {
            if *address == *"silent" {
                std::future::pending::<()>().await;
            }
            (address, Ok(7))
        };
        let answer = first_answer(&servers, names(&["silent", "b"]), ask).await.expect("an answer");
        assert_eq!((&*answer.0, answer.1), ("b", 7));
        assert_eq!(started.elapsed(), Duration::from_millis(HEDGE_MS));
        assert_eq!(servers.order(&names(&["silent", "b"]), &[])[1], Arc::from("silent"));
        tokio::time::advance(SUSPECT).await;
        let first: Vec<_> = (0..2).map(|_| servers.order(&names(&["silent", "b"]), &[])[0].clone()).collect();
        assert!(first.contains(&Arc::from("silent")), "it is tried again after a while");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_connection_costs_no_wait_and_a_question_fails_only_at_the_end() {
        let servers = Servers::default();
        let started = Instant::now();
        let ask = |address: Arc<str>| async move {
            let outcome = if *address == *"c" { Ok(()) } else { Err(broken(&address)) };
            (address, outcome)
        };
        assert!(first_answer(&servers, names(&["a", "b", "c"]), ask).await.is_ok());
        let failed = first_answer(&servers, names(&["a", "b"]), ask).await.expect_err("nobody answers");
        assert!(failed.to_string().contains(" a "), "the first failure is told: {failed}");
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_server_refuses_is_not_asked_elsewhere() {
        let ask = |address: Arc<str>| async move {
            let refused: corelog_schemas::Failure = corelog_schemas::ErrorCode::NotAuthorized.into();
            (address, Err::<(), _>(RequestError::Refused(refused)))
        };
        let servers = Servers::default();
        let failed = first_answer(&servers, names(&["a", "b"]), ask).await.expect_err("it is refused");
        assert_eq!(failed.code(), Some(corelog_schemas::ErrorCode::NotAuthorized));
    }
}
