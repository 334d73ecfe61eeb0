//! Looking offsets up and moving log starts, here and on other shards.
//!
//! Owns: both requests over several partitions. Runs of partitions of one shard go there together.

use corelog_engine::{LeaderEpoch, Offset, TimestampMs, TopicPartition};
use corelog_schemas::messages::{
    DeleteRecordsRequest, DeleteRecordsResponse, FoundOffset, ListOffsetsRequest, ListOffsetsResponse,
    OffsetSpec,
};
use corelog_schemas::{ErrorCode, Failure};
use tokio::sync::oneshot;

use super::failures;
use super::mesh::{Lookup, MeshRequest};
use super::state::{Shard, SharedShard};
use crate::control::ShardId;

/// Looks offsets of this shard's partitions up.
pub(super) async fn list_local(shard: &Shard, lookups: &[Lookup]) -> Vec<Result<FoundOffset, Failure>> {
    let mut found = Vec::with_capacity(lookups.len());
    for lookup in lookups {
        found.push(look_up(shard, lookup).await);
    }
    found
}

async fn look_up(shard: &Shard, lookup: &Lookup) -> Result<FoundOffset, Failure> {
    let partition = shard.partition(lookup.id)?;
    let believed = lookup.leader_epoch.map(LeaderEpoch);
    let leader_epoch = Some(partition.leader_epoch().0);
    let at = |offset: Offset| FoundOffset { offset: Some(offset.0), timestamp_ms: None, leader_epoch };
    let found = match lookup.spec {
        OffsetSpec::Earliest => partition.earliest(believed).map(at),
        OffsetSpec::Latest => partition.latest(believed).map(at),
        OffsetSpec::Timestamp(ms) => {
            let found = partition.offset_for_timestamp(TimestampMs(ms), believed).await;
            found.map(|found| FoundOffset {
                offset: found.map(|(offset, _)| offset.0),
                timestamp_ms: found.map(|(_, timestamp)| timestamp.0),
                leader_epoch,
            })
        }
    };
    found.map_err(|error| failures::of_list_offsets(&error))
}

/// Moves log starts of this shard's partitions up.
pub(super) async fn delete_local(
    shard: &Shard,
    deletions: &[(TopicPartition, Option<u64>)],
) -> Vec<Result<u64, Failure>> {
    let mut starts = Vec::with_capacity(deletions.len());
    for (id, before) in deletions {
        starts.push(delete_before(shard, *id, before.map(Offset)).await);
    }
    starts
}

async fn delete_before(shard: &Shard, id: TopicPartition, before: Option<Offset>) -> Result<u64, Failure> {
    let partition = shard.partition(id)?;
    let trimmed = partition.delete_records(before, shard.clock.now()).await;
    trimmed.map(|trimmed| trimmed.start.0).map_err(|error| failures::of_delete_records(&error))
}

/// Answers a request, asking other shards where need be.
pub(super) async fn list_offsets(
    shard: SharedShard,
    request: ListOffsetsRequest,
) -> Result<ListOffsetsResponse, Failure> {
    let placed = request.partitions.iter().map(|p| {
        let place = shard.place(&p.of)?;
        Ok((place.shard, Lookup { id: place.id, spec: p.spec, leader_epoch: p.leader_epoch }))
    });
    let mut partitions = Vec::with_capacity(request.partitions.len());
    for run in runs(placed.collect()) {
        match run {
            Run::Failed(failure) => partitions.push(Err(failure)),
            Run::At(to, lookups) if to == shard.id => partitions.extend(list_local(&shard, &lookups).await),
            Run::At(to, lookups) => {
                let count = lookups.len();
                let (reply, answered) = oneshot::channel();
                let sent = shard.forward(to, MeshRequest::ListOffsets(lookups, reply)).await;
                partitions.extend(answers(sent, answered, count).await);
            }
        }
    }
    Ok(ListOffsetsResponse { partitions })
}

/// Answers a request, asking other shards where need be.
pub(super) async fn delete_records(
    shard: SharedShard,
    request: DeleteRecordsRequest,
) -> Result<DeleteRecordsResponse, Failure> {
    let placed = request.partitions.iter().map(|p| {
        let place = shard.place(&p.of)?;
        Ok((place.shard, (place.id, p.before_offset)))
    });
    let mut partitions = Vec::with_capacity(request.partitions.len());
    for run in runs(placed.collect()) {
        match run {
            Run::Failed(failure) => partitions.push(Err(failure)),
            Run::At(to, deletions) if to == shard.id => {
                partitions.extend(delete_local(&shard, &deletions).await);
            }
            Run::At(to, deletions) => {
                let count = deletions.len();
                let (reply, answered) = oneshot::channel();
                let sent = shard.forward(to, MeshRequest::DeleteRecords(deletions, reply)).await;
                partitions.extend(answers(sent, answered, count).await);
            }
        }
    }
    Ok(DeleteRecordsResponse { partitions })
}

/// Neighbours in a request that go to the same shard, or one that goes nowhere.
enum Run<T> {
    At(ShardId, Vec<T>),
    Failed(Failure),
}

fn runs<T>(placed: Vec<Result<(ShardId, T), Failure>>) -> Vec<Run<T>> {
    let mut runs: Vec<Run<T>> = Vec::new();
    for item in placed {
        match (item, runs.last_mut()) {
            (Ok((to, item)), Some(Run::At(shard, items))) if *shard == to => items.push(item),
            (Ok((to, item)), _) => runs.push(Run::At(to, vec![item])),
            (Err(failure), _) => runs.push(Run::Failed(failure)),
        }
    }
    runs
}

/// The answers of another shard; the same failure for all if it does not answer.
async fn answers<T>(
    sent: Result<(), Failure>,
    answered: oneshot::Receiver<Vec<Result<T, Failure>>>,
    count: usize,
) -> Vec<Result<T, Failure>> {
    let failure = match sent {
        Ok(()) => match answered.await {
            Ok(answers) => return answers,
            Err(_) => Failure::from(ErrorCode::ShuttingDown),
        },
        Err(failure) => failure,
    };
    (0..count).map(|_| Err(failure.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_shard_travel_together_and_order_is_kept() {
        let failure = Failure::from(ErrorCode::UnknownTopicId);
        let placed = vec![
            Ok((ShardId(0), 'a')),
            Ok((ShardId(0), 'b')),
            Ok((ShardId(1), 'c')),
            Err(failure),
            Ok((ShardId(1), 'd')),
        ];
        let shape: Vec<_> = runs(placed)
            .into_iter()
            .map(|run| match run {
                Run::At(shard, items) => format!("{shard}:{}", items.into_iter().collect::<String>()),
                Run::Failed(failure) => failure.code.name().to_owned(),
            })
            .collect();
        assert_eq!(shape, ["0:ab", "1:c", "UnknownTopicId", "1:d"]);
    }
}
