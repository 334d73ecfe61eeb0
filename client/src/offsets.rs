//! Looks up and deletes by offset: requests that must reach the leader of each partition.
//!
//! Owns: grouping by leader, asking all leaders at once, looking stale partitions up again. One result for each
//! partition asked for, in that order.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use corelog_engine::Offset;
use corelog_schemas::messages::{
    DeleteRecordsPartition, DeleteRecordsRequest, FoundOffset, ListOffsetsPartition, ListOffsetsRequest,
    OffsetSpec, PartitionRef,
};
use corelog_schemas::{ErrorCode, Failure};
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::cluster::{Cluster, PartitionKey};
use crate::error::RequestError;
use crate::retry::{FailedAttempt, RetryDecision, RetryPolicy};

/// A leader that has not said where an offset lies for so long is looked up anew.
const LOOKUP_TIMEOUT_MS: u64 = 2_000;

/// One result for each partition asked for.
type Outcome<T> = Result<T, RequestError>;

/// Looks up one offset per partition at its leader; tries again until `timeout_ms` has passed.
pub(crate) async fn list_offsets(
    cluster: &Cluster,
    wanted: &[(PartitionKey, OffsetSpec)],
    timeout_ms: u64,
) -> Vec<Outcome<FoundOffset>> {
    at_leaders(cluster, wanted, timeout_ms, |address, batch| async move {
        let partitions =
            batch.into_iter().map(|(of, spec)| ListOffsetsPartition { of, spec, leader_epoch: None });
        let request = ListOffsetsRequest { partitions: partitions.collect() };
        Ok(cluster.ask_at_within(&address, &request, LOOKUP_TIMEOUT_MS).await?.partitions)
    })
    .await
}

/// Moves the log start offset of each partition up; `None` stands for the high watermark. Yields the new start.
pub(crate) async fn delete_records(
    cluster: &Cluster,
    wanted: &[(PartitionKey, Option<Offset>)],
    timeout_ms: u64,
) -> Vec<Outcome<Offset>> {
    let server_timeout_ms = u32::try_from(timeout_ms).unwrap_or(u32::MAX);
    let results = at_leaders(cluster, wanted, timeout_ms, |address, batch| async move {
        let partitions = batch
            .into_iter()
            .map(|(of, before)| DeleteRecordsPartition { of, before_offset: before.map(|offset| offset.0) });
        let request =
            DeleteRecordsRequest { timeout_ms: server_timeout_ms, partitions: partitions.collect() };
        Ok(cluster.ask_at(&address, &request).await?.partitions)
    })
    .await;
    results.into_iter().map(|result| result.map(Offset)).collect()
}

/// Asks the leader of each partition; what failed for a passing reason is asked again, after a refresh.
async fn at_leaders<W, T, F>(
    cluster: &Cluster,
    wanted: &[(PartitionKey, W)],
    timeout_ms: u64,
    ask: impl Fn(Arc<str>, Vec<(PartitionRef, W)>) -> F,
) -> Vec<Outcome<T>>
where
    W: Copy,
    T: Clone,
    F: Future<Output = Result<Vec<Result<T, Failure>>, RequestError>>,
{
    let policy = RetryPolicy::default();
    let started = Instant::now();
    let mut results: Vec<Option<Outcome<T>>> = wanted.iter().map(|_| None).collect();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let mut by_leader: BTreeMap<Arc<str>, Vec<usize>> = BTreeMap::new();
        for (index, (key, _)) in wanted.iter().enumerate() {
            if is_final(results[index].as_ref()) {
                continue;
            }
            match leader(cluster, key, results[index].is_some()).await {
                Ok(address) => by_leader.entry(address).or_default().push(index),
                Err(error) => results[index] = Some(Err(error)),
            }
        }
        let asked = by_leader.into_iter().map(|(address, indices)| {
            let refer = |&index: &usize| {
                let ((topic, partition), what) = &wanted[index];
                (PartitionRef::by_name(topic, *partition), *what)
            };
            let answer = ask(Arc::clone(&address), indices.iter().map(refer).collect());
            async move { (address, indices, answer.await) }
        });
        for (address, indices, answer) in join_all(asked).await {
            spread(&address, &indices, answer, &mut results);
        }
        let failed = FailedAttempt {
            attempts,
            now_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            deadline_ms: timeout_ms,
            is_failover: true,
            jitter: rand::random::<f64>(),
        };
        let done = results.iter().all(|result| is_final(result.as_ref()));
        match policy.decide(failed) {
            RetryDecision::At(at_ms) if !done => {
                tokio::time::sleep(Duration::from_millis(at_ms - failed.now_ms)).await;
            }
            _ => return results.into_iter().map(|result| result.expect("asked above")).collect(),
        }
    }
}

/// Puts the answer of one leader where it belongs.
fn spread<T>(
    address: &Arc<str>,
    indices: &[usize],
    answer: Result<Vec<Result<T, Failure>>, RequestError>,
    results: &mut [Option<Outcome<T>>],
) {
    match answer {
        Ok(found) if found.len() == indices.len() => {
            for (&index, result) in indices.iter().zip(found) {
                results[index] = Some(result.map_err(RequestError::Refused));
            }
        }
        Ok(_) => {
            for &index in indices {
                results[index] = Some(Err(RequestError::BadAnswer {
                    address: Arc::clone(address),
                    reason: "not one result for each partition".into(),
                }));
            }
        }
        Err(error) => {
            for &index in indices {
                results[index] = Some(Err(error.clone()));
            }
        }
    }
}

/// Whether it is of no use to ask again. A topic or partition that the metadata does not know is not waited for.
fn is_final<T>(result: Option<&Outcome<T>>) -> bool {
    match result {
        None => false,
        Some(Ok(_)) => true,
        Some(Err(error)) => !error.is_retriable() || error.code() == Some(ErrorCode::UnknownTopicOrPartition),
    }
}

async fn leader(cluster: &Cluster, key: &PartitionKey, again: bool) -> Result<Arc<str>, RequestError> {
    let (name, partition) = key;
    let topic = match cluster.cached(name).filter(|_| again) {
        Some(stale) => cluster.topic_newer_than(name, stale.generation).await?,
        None => cluster.topic(name).await?,
    };
    if *partition >= topic.partition_count() {
        let message = format!("topic {name} has {} partitions", topic.partition_count());
        return Err(Failure::new(ErrorCode::UnknownTopicOrPartition, message).into());
    }
    match topic.leader(*partition) {
        Some(address) => Ok(Arc::clone(address)),
        None => Err(Failure::from(topic.no_leader(*partition)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_passing_reasons_are_asked_again() {
        let refused = |code: ErrorCode| Some(Err::<(), _>(RequestError::Refused(code.into())));
        assert!(!is_final::<()>(None));
        assert!(is_final(Some(&Ok(()))));
        assert!(!is_final(refused(ErrorCode::NotLeader).as_ref()));
        assert!(is_final(refused(ErrorCode::UnknownTopicOrPartition).as_ref()));
        assert!(is_final(refused(ErrorCode::NotAuthorized).as_ref()));
    }
}
