//! What a consumer asks the shards, and what it makes of their answers.
//!
//! Owns: the requests of [`super::Consumer`]: looking up starts, fetching, refreshing metadata, and the back-off
//! between failures.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use corelog_engine::batch::BatchWalk;
use corelog_engine::{Offset, TopicId};
use corelog_schemas::messages::{
    FetchPartition, FetchPartitionResult, FetchRequest, FetchResponse, FoundOffset, OffsetSpec, PartitionRef,
};
use corelog_schemas::{ErrorCode, Failure};

use super::config::OutOfRange;
use super::partition::{AssignedPartition, Stage, StartAt};
use super::{Consumer, LANES};
use crate::cluster::{PartitionKey, Topic};
use crate::connection::Answer;
use crate::error::{ConsumeError, RequestError, is_stale_metadata};
use crate::offsets::list_offsets;
use crate::pool::ConnectionPool;
use crate::retry::RetryPolicy;

/// How long looking up starts may take before it is tried anew.
const LOOKUP_TIMEOUT_MS: u64 = 5_000;
/// A fetch that takes longer than it was to wait, by this much, is looked after: its shard may be gone.
const SLOW_MS: u64 = 300;
/// And then so often.
const SLOW_TICK_MS: u64 = 50;

/// Partitions whose starts are asked of one leader, and what is asked.
type Lookup = (Vec<Asked>, Vec<(PartitionKey, OffsetSpec)>);

/// A question about a partition: its key and the generation that asks.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    key: PartitionKey,
    generation: u64,
    topic_id: Option<TopicId>,
    offset: Offset,
}

/// What has come back.
pub(super) enum Done {
    Resolved {
        asked: Vec<Asked>,
        results: Vec<Result<FoundOffset, RequestError>>,
    },
    Fetched {
        address: Arc<str>,
        lane: usize,
        asked: Vec<Asked>,
        answer: Result<Answer<FetchResponse>, RequestError>,
    },
    /// No answer yet.
    Slow(Waiting),
    Refreshed {
        topic: Arc<str>,
        result: Result<Arc<Topic>, RequestError>,
    },
}

/// A fetch without its answer.
pub(super) struct Waiting {
    address: Arc<str>,
    lane: usize,
    asked: Vec<Asked>,
    answer: Pin<Box<dyn Future<Output = Result<Answer<FetchResponse>, RequestError>> + Send>>,
}

impl Waiting {
    async fn wait(mut self, limit_ms: u64) -> Done {
        match tokio::time::timeout(Duration::from_millis(limit_ms), &mut self.answer).await {
            Ok(answer) => {
                let Self { address, lane, asked, .. } = self;
                Done::Fetched { address, lane, asked, answer }
            }
            Err(_) => Done::Slow(self),
        }
    }
}

impl Consumer {
    /// Starts what can be started: look-ups, fetches, refreshes.
    pub(super) fn ask(&mut self, now_ms: u64) {
        self.look_up_starts(now_ms);
        let mut by_shard: BTreeMap<Arc<str>, Vec<usize>> = BTreeMap::new();
        let mut leaderless = Vec::new();
        let count = self.partitions.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            let assigned = &mut self.partitions[index];
            if !assigned.is_readable() {
                continue;
            }
            let topic = self.cluster.cached(&assigned.topic);
            match topic.as_ref().and_then(|topic| topic.leader(assigned.partition)) {
                Some(address) => by_shard.entry(Arc::clone(address)).or_default().push(index),
                None if assigned.not_before_ms <= now_ms => {
                    let code =
                        topic.map_or(ErrorCode::NotLeader, |topic| topic.no_leader(assigned.partition));
                    leaderless.push((index, code));
                }
                None => {}
            }
        }
        for (index, code) in leaderless {
            self.refresh(Arc::clone(&self.partitions[index].topic));
            self.try_later(index, &Failure::from(code).into(), now_ms);
        }
        let share = self.config.prefetch_bytes_max / by_shard.len().max(1);
        for (address, indices) in by_shard {
            let free = (0..LANES).find(|lane| !self.busy.contains(&(Arc::clone(&address), *lane)));
            if let Some(lane) = free {
                self.fetch(address, lane, &indices, share, now_ms);
            }
        }
    }

    fn look_up_starts(&mut self, now_ms: u64) {
        let mut asked = Vec::new();
        let mut wanted: Vec<(PartitionKey, OffsetSpec)> = Vec::new();
        for assigned in &mut self.partitions {
            let Stage::Unresolved(start) = assigned.stage else { continue };
            if assigned.under_way || assigned.not_before_ms > now_ms {
                continue;
            }
            let spec = start.lookup().expect("a known offset is not unresolved");
            assigned.under_way = true;
            let asking = assigned.asking(None);
            wanted.push((asking.key.clone(), spec));
            asked.push(asking);
        }
        // One look-up for each leader, so that one that is gone holds nobody else up.
        let mut by_leader: BTreeMap<Option<Arc<str>>, Lookup> = BTreeMap::new();
        for (asking, wanted) in asked.into_iter().zip(wanted) {
            let topic = self.cluster.cached(&asking.key.0);
            let leader = topic.as_ref().and_then(|topic| topic.leader(asking.key.1)).cloned();
            let (asked, all) = by_leader.entry(leader).or_default();
            asked.push(asking);
            all.push(wanted);
        }
        for (asked, wanted) in by_leader.into_values() {
            let cluster = Arc::clone(&self.cluster);
            self.in_flight.push(Box::pin(async move {
                let results = list_offsets(&cluster, &wanted, LOOKUP_TIMEOUT_MS).await;
                Done::Resolved { asked, results }
            }));
        }
    }

    /// One fetch for all partitions of a shard that want one, if at least half of the shard's share is free.
    fn fetch(&mut self, address: Arc<str>, lane: usize, indices: &[usize], share: usize, now_ms: u64) {
        let buffered: usize = indices.iter().map(|&index| self.partitions[index].buffered_bytes()).sum();
        if buffered > share / 2 {
            return;
        }
        let mut asked = Vec::new();
        let mut partitions = Vec::new();
        for &index in indices {
            let assigned = &mut self.partitions[index];
            let Some(topic) = self.cluster.cached(&assigned.topic) else { continue };
            if !assigned.wants_fetch(now_ms) {
                continue;
            }
            assigned.under_way = true;
            // The epoch fences a leader that does not know yet that it is deposed.
            let leader = topic.partitions.get(assigned.partition as usize);
            partitions.push(FetchPartition {
                from: PartitionRef::by_id(topic.id.0, assigned.partition),
                fetch_offset: assigned.fetch_offset.0,
                max_bytes: self.config.fetch_partition_bytes_max,
                leader_epoch: leader.map(|leader| leader.leader_epoch),
                last_epoch: assigned.fetched_epoch,
            });
            asked.push(assigned.asking(Some(topic.id)));
        }
        if asked.is_empty() {
            return;
        }
        let max_bytes = u32::try_from(share - buffered).unwrap_or(u32::MAX).max(1);
        let request = FetchRequest {
            min_bytes: self.config.fetch_min_bytes,
            max_wait_ms: self.config.fetch_max_wait_ms,
            max_bytes,
            partitions,
        };
        self.busy.insert((Arc::clone(&address), lane));
        let limit_ms = u64::from(self.config.fetch_max_wait_ms) + SLOW_MS;
        let answer = exchange(Arc::clone(&self.pools[lane]), Arc::clone(&address), request);
        let waiting = Waiting { address, lane, asked, answer: Box::pin(answer) };
        self.in_flight.push(Box::pin(waiting.wait(limit_ms)));
    }

    /// A fetch is not answered: partitions that have another leader by now are asked there, the others are waited for.
    fn slow(&mut self, waiting: Waiting) {
        let mut topics: Vec<Arc<str>> = Vec::new();
        for asked in &waiting.asked {
            let Some(index) = self.asker(asked) else { continue };
            let (name, partition) = &asked.key;
            if !topics.contains(name) {
                topics.push(Arc::clone(name));
            }
            let topic = self.cluster.cached(name);
            let leader = topic.as_ref().and_then(|topic| topic.leader(*partition));
            if leader.is_some_and(|leader| *leader != waiting.address) {
                // Its answer, should it come, counts no more.
                self.partitions[index].generation += 1;
                self.partitions[index].under_way = false;
            }
        }
        for topic in topics {
            self.refresh(topic);
        }
        self.in_flight.push(Box::pin(waiting.wait(SLOW_TICK_MS)));
    }

    fn refresh(&mut self, topic: Arc<str>) {
        if !self.refreshing.insert(Arc::clone(&topic)) {
            return;
        }
        let cluster = Arc::clone(&self.cluster);
        self.in_flight.push(Box::pin(async move {
            let generation = cluster.cached(&topic).map_or(0, |known| known.generation);
            let result = cluster.topic_newer_than(&topic, generation).await;
            Done::Refreshed { topic, result }
        }));
    }

    pub(super) fn done(&mut self, done: Done) {
        match done {
            Done::Resolved { asked, results } => {
                for (asked, result) in asked.into_iter().zip(results) {
                    self.resolved(&asked, result);
                }
            }
            Done::Fetched { address, lane, asked, answer } => {
                self.fetched(&address, &asked, answer);
                self.busy.remove(&(address, lane));
            }
            Done::Slow(waiting) => self.slow(waiting),
            Done::Refreshed { topic, result } => {
                self.refreshing.remove(&topic);
                if let Err(error) = result {
                    self.refresh_failed(&topic, &error);
                }
            }
        }
    }

    /// A topic that is gone is an error of each of its partitions; anything else may pass.
    fn refresh_failed(&mut self, topic: &Arc<str>, error: &RequestError) {
        let now_ms = self.now_ms();
        for index in 0..self.partitions.len() {
            if self.partitions[index].topic != *topic || !self.partitions[index].is_readable() {
                continue;
            }
            match error {
                RequestError::Refused(failure) if failure.code == ErrorCode::UnknownTopicOrPartition => {
                    self.refused(index, failure.clone());
                }
                error => self.try_later(index, error, now_ms),
            }
        }
    }

    /// The partition that asked, unless it has moved on since.
    fn asker(&self, asked: &Asked) -> Option<usize> {
        self.partitions.iter().position(|assigned| {
            assigned.generation == asked.generation
                && assigned.partition == asked.key.1
                && assigned.topic == asked.key.0
        })
    }

    fn resolved(&mut self, asked: &Asked, result: Result<FoundOffset, RequestError>) {
        let Some(index) = self.asker(asked) else { return };
        let assigned = &mut self.partitions[index];
        assigned.under_way = false;
        match result {
            Ok(FoundOffset { offset: Some(offset), .. }) => assigned.resolved(Offset(offset)),
            // No record is that young.
            Ok(FoundOffset { offset: None, .. }) => assigned.seek(StartAt::Latest),
            Err(error) => self.failed(index, error),
        }
    }

    fn fetched(
        &mut self,
        address: &Arc<str>,
        asked: &[Asked],
        answer: Result<Answer<FetchResponse>, RequestError>,
    ) {
        let nonsense =
            |reason: &str| RequestError::BadAnswer { address: Arc::clone(address), reason: reason.into() };
        let answer = match answer {
            Ok(answer) if answer.message.partitions.len() == asked.len() => answer,
            other => {
                let error = other.err().unwrap_or_else(|| nonsense("not one result for each partition"));
                for asked in asked {
                    if let Some(index) = self.asker(asked) {
                        self.partitions[index].under_way = false;
                        self.failed(index, error.clone());
                    }
                }
                return;
            }
        };
        let mut payload = answer.payload;
        for (asked, result) in asked.iter().zip(answer.message.partitions) {
            // The head has been checked against the payload's length.
            let batches = payload.split_to(result.records_bytes as usize);
            let Some(index) = self.asker(asked) else { continue };
            self.partitions[index].under_way = false;
            if let Err(error) = self.partition_fetched(index, asked, result, batches) {
                self.failed(index, error);
            }
        }
    }

    fn partition_fetched(
        &mut self,
        index: usize,
        asked: &Asked,
        result: FetchPartitionResult,
        batches: Bytes,
    ) -> Result<(), RequestError> {
        if let Some(failure) = result.failure {
            if failure.code == ErrorCode::OffsetOutOfRange {
                self.out_of_range(index, &failure);
                return Ok(());
            }
            return Err(failure.into());
        }
        let assigned = &mut self.partitions[index];
        if assigned.topic_id.is_some() && assigned.topic_id != asked.topic_id {
            let message = "the topic was deleted and created again; seek to read the new one";
            self.refused(index, Failure::new(ErrorCode::UnknownTopicId, message));
            return Ok(());
        }
        assigned.topic_id = asked.topic_id;
        assigned.succeeded();
        if let Some(end) = result.high_watermark {
            assigned.high_watermark = Some(Offset(end));
        }
        if let Some(diverged) = result.diverged {
            let reset_to = Offset(diverged.end_offset);
            if let Some(position) = assigned.truncated(diverged.epoch, reset_to) {
                let (topic, partition) = (Arc::clone(&assigned.topic), assigned.partition);
                self.errors.push_back(ConsumeError::Truncated { topic, partition, position, reset_to });
            }
            return Ok(());
        }
        if !batches.is_empty() {
            let (next, epoch) = end_of(&batches).unwrap_or_else(|| (asked.offset.advance(1), None));
            // Batches that all lie below what was asked for cannot be placed; `next_record` reports the rest.
            if next > assigned.fetch_offset {
                assigned.take_in(batches, next, epoch);
            } else {
                return Err(
                    Failure::new(ErrorCode::Unknown, "the batches end below the offset asked for").into()
                );
            }
        }
        Ok(())
    }

    fn out_of_range(&mut self, index: usize, failure: &Failure) {
        let assigned = &mut self.partitions[index];
        match self.config.out_of_range {
            OutOfRange::Earliest => assigned.seek(StartAt::Earliest),
            OutOfRange::Latest => assigned.seek(StartAt::Latest),
            OutOfRange::Fail if assigned.has_buffered() => {
                // What was read before is sound: hand it out first, then ask again.
                assigned.not_before_ms = self.started.elapsed().as_millis() as u64 + 100;
            }
            OutOfRange::Fail => {
                assigned.stage = Stage::Failed;
                self.errors.push_back(ConsumeError::OffsetOutOfRange {
                    topic: Arc::clone(&assigned.topic),
                    partition: assigned.partition,
                    offset: assigned.position,
                    message: failure.message.as_str().into(),
                });
            }
        }
    }

    /// A look-up or fetch of a partition has failed: later again, or never.
    fn failed(&mut self, index: usize, error: RequestError) {
        let now_ms = self.now_ms();
        let topic = Arc::clone(&self.partitions[index].topic);
        match error {
            RequestError::Refused(failure) if !failure.code.is_retriable() => self.refused(index, failure),
            RequestError::Refused(failure) if is_stale_metadata(failure.code) => {
                self.refresh(topic);
                self.try_later(index, &failure.into(), now_ms);
            }
            error => {
                if error.code().is_none() {
                    self.refresh(topic);
                }
                self.try_later(index, &error, now_ms);
            }
        }
    }

    fn refused(&mut self, index: usize, failure: Failure) {
        let assigned = &mut self.partitions[index];
        assigned.stage = Stage::Failed;
        let (topic, partition) = (Arc::clone(&assigned.topic), assigned.partition);
        self.errors.push_back(ConsumeError::Refused { topic, partition, failure });
    }

    /// Backs off; failures that have lasted too long are told, and then waited out again.
    fn try_later(&mut self, index: usize, error: &RequestError, now_ms: u64) {
        let assigned = &mut self.partitions[index];
        assigned.attempts += 1;
        let pause = RetryPolicy::default().backoff_ms(assigned.attempts, true, rand::random::<f64>());
        assigned.not_before_ms = now_ms + pause;
        let since = *assigned.failing_since_ms.get_or_insert(now_ms);
        tracing::debug!(topic = %assigned.topic, partition = assigned.partition, %error, "fetch failed");
        if now_ms - since >= self.config.patience_ms {
            assigned.failing_since_ms = None;
            self.errors.push_back(ConsumeError::Request(error.clone()));
        }
    }
}

impl AssignedPartition {
    fn asking(&self, topic_id: Option<TopicId>) -> Asked {
        Asked {
            key: (Arc::clone(&self.topic), self.partition),
            generation: self.generation,
            topic_id,
            offset: self.fetch_offset,
        }
    }
}

/// The offset behind the last batch whose header can be read, and its leader epoch.
fn end_of(batches: &Bytes) -> Option<(Offset, Option<u32>)> {
    let parts = [&batches[..]];
    let last = BatchWalk::new(&parts).map_while(Result::ok).last()?;
    Some((last.header.next_offset(), last.header.leader_epoch.map(|epoch| epoch.0)))
}

async fn exchange(
    pool: Arc<ConnectionPool>,
    address: Arc<str>,
    request: FetchRequest,
) -> Result<Answer<FetchResponse>, RequestError> {
    let (connection, _) = pool.get(&address).await?;
    let timeout_ms = pool.options().request_timeout_ms + u64::from(request.max_wait_ms);
    let answer = connection.call_within(&request, Vec::new(), timeout_ms).await?;
    if answer.message.throttle_ms > 0 {
        tokio::time::sleep(Duration::from_millis(u64::from(answer.message.throttle_ms))).await;
    }
    Ok(answer)
}
