//! Producers: bursts of batches to one partition after the other, with what became of each.
//!
//! Owns: the sequence numbers. Each attempt has its own: a batch whose fate is unknown is not sent again under the same
//! numbers, so the log shows whether it was kept, once and whole.

use std::rc::Rc;

use corelog_engine::TopicPartition;
use corelog_replication::Ack;

use super::Workload;
use super::client::Client;
use crate::checker::{Event, Produce, ProduceOutcome, Promise, RecordTag};
use crate::cluster::{Refusal, Request, Response, batches, key};

/// Most requests of a burst.
const BURST_MAX: u64 = 4;

/// Most records of a batch.
const RECORDS_MAX: u64 = 4;

/// One producer, until the load ends.
pub(super) async fn produce(workload: Rc<Workload>, client: Rc<Client>, number: u32) {
    let mut producer = Producer { workload, client, number, next_sequence: 0 };
    while producer.workload.is_loading() {
        producer.client.pause(20, producer.workload.pause_ms_max()).await;
        let Some((partition, ack)) = producer.choose() else {
            producer.client.refresh().await;
            continue;
        };
        if !producer.burst(partition, ack).await {
            producer.client.refresh().await;
        }
    }
    producer.workload.producer_ended();
}

struct Producer {
    workload: Rc<Workload>,
    client: Rc<Client>,
    number: u32,
    next_sequence: u64,
}

impl Producer {
    fn choose(&self) -> Option<(TopicPartition, Ack)> {
        let random = &self.client.world.handle;
        let topics = self.client.topics();
        let partitions: Vec<_> = topics
            .iter()
            .flat_map(|topic| topic.partitions.iter().map(move |place| (&topic.name, place.partition)))
            .collect();
        if partitions.is_empty() {
            return None;
        }
        let focus = self.workload.focus.get().filter(|_| !random.one_in(4));
        let focused = partitions.iter().find(|(_, partition)| Some(*partition) == focus).copied();
        let (name, partition) =
            focused.unwrap_or_else(|| partitions[random.random(0..partitions.len() as u64) as usize]);
        self.client.leader(partition)?.at?;
        let ack = match name.as_str() {
            "leader" if random.one_in(2) => Ack::Leader,
            "none" if random.one_in(2) => Ack::None,
            _ => Ack::All,
        };
        Some((partition, ack))
    }

    /// Sends some batches on one connection without waiting, then waits for all answers. False: look for the leader
    /// again.
    async fn burst(&mut self, partition: TopicPartition, ack: Ack) -> bool {
        let world = self.client.world.clone();
        let Some((leader, (node, shard))) = self.client.leader(partition).and_then(|l| Some((l, l.at?)))
        else {
            return false;
        };
        let Some(connection) = self.client.connection(node, shard).await else { return false };
        let mut sent = Vec::new();
        for _ in 0..world.handle.random(1..BURST_MAX + 1) {
            let records = world.handle.random(1..RECORDS_MAX + 1) as u32;
            let value_bytes = world.handle.random(48..400) as usize;
            let mut produce = self.next(partition, records, ack, connection.number());
            let tags: Vec<RecordTag> = (0..records).map(|i| produce.tag(i)).collect();
            let batch = batches::build(tags, value_bytes, self.workload.wall());
            let leader_epoch = world.handle.one_in(2).then_some(leader.epoch);
            let request = Request::Produce { partition, batch, ack, leader_epoch };
            match self.client.send(&connection, request).await {
                Some(answer) => sent.push((produce, answer)),
                None => {
                    produce.answered_us = world.recorder.now_us();
                    world.recorder.note(Event::Produce(produce));
                    break;
                }
            }
        }
        let mut is_well = true;
        for (mut produce, answer) in sent {
            let response = answer.await;
            produce.answered_us = world.recorder.now_us();
            match response {
                Some(Response::Produced { base_offset, leader_epoch }) => {
                    produce.outcome = ProduceOutcome::Acked { base_offset: base_offset.0 };
                    produce.leader_epoch = Some(leader_epoch.0);
                    self.workload.count_ack();
                }
                Some(Response::Refused(why)) => {
                    produce.outcome = ProduceOutcome::Refused;
                    is_well &= !matches!(why, Refusal::NotLeader(_));
                }
                _ => is_well = false,
            }
            world.recorder.note(Event::Produce(produce));
        }
        is_well
    }

    fn next(&mut self, partition: TopicPartition, records: u32, ack: Ack, connection: u64) -> Produce {
        let sequence = self.next_sequence;
        self.next_sequence += u64::from(records);
        let promise = match ack {
            Ack::All => Promise::Committed,
            Ack::Leader => Promise::UntilElection,
            Ack::None => Promise::Nothing,
        };
        let asked_us = self.client.world.recorder.now_us();
        Produce {
            partition: key(partition),
            producer: self.number,
            connection,
            sequence,
            records,
            promise,
            asked_us,
            answered_us: asked_us,
            outcome: ProduceOutcome::Unknown,
            leader_epoch: None,
        }
    }
}
