//! Consumers: each reads all partitions in turn, from where it was.

use std::collections::BTreeMap;
use std::rc::Rc;

use corelog_engine::{LeaderEpoch, Offset, TopicPartition};

use super::Workload;
use super::client::{Client, Leader};
use crate::checker::{Event, Latest, Move, MoveReason, Read};
use crate::cluster::{Refusal, Request, Response, key};

/// One consumer, until the load ends.
pub(super) async fn consume(workload: Rc<Workload>, client: Rc<Client>, number: u32) {
    let mut consumer = Consumer { client, number, positions: BTreeMap::new() };
    while workload.is_loading() {
        consumer.client.pause(10, workload.pause_ms_max()).await;
        if !consumer.turn().await {
            consumer.client.refresh().await;
        }
    }
}

struct Consumer {
    client: Rc<Client>,
    number: u32,
    positions: BTreeMap<TopicPartition, Position>,
}

#[derive(Clone, Copy)]
struct Position {
    next: Offset,
    /// The unclean election that it knows of.
    unclean_epoch: Option<LeaderEpoch>,
}

impl Consumer {
    /// Reads from one partition. False: look for the leaders again.
    async fn turn(&mut self) -> bool {
        let random = self.client.world.handle.clone();
        let partitions: Vec<TopicPartition> = self
            .client
            .topics()
            .iter()
            .flat_map(|topic| topic.partitions.iter().map(|place| place.partition))
            .collect();
        if partitions.is_empty() {
            return false;
        }
        let partition = partitions[random.random(0..partitions.len() as u64) as usize];
        let Some(leader) = self.client.leader(partition) else { return false };
        let Some(at) = leader.at else { return false };
        if random.one_in(10) {
            return self.latest(partition, at).await;
        }
        self.fetch(partition, leader, at).await
    }

    async fn latest(&self, partition: TopicPartition, at: (corelog_replication::NodeId, u16)) -> bool {
        let world = &self.client.world;
        let asked_us = world.recorder.now_us();
        let Some(Response::Latest { offset, leader_epoch }) =
            self.client.call(at.0, at.1, Request::Latest { partition }).await
        else {
            return false;
        };
        let (answered_us, leader_epoch) = (world.recorder.now_us(), Some(leader_epoch.0));
        let partition = key(partition);
        world.recorder.note(Event::Latest(Latest {
            partition,
            offset: offset.0,
            leader_epoch,
            asked_us,
            answered_us,
        }));
        true
    }

    async fn fetch(
        &mut self,
        partition: TopicPartition,
        leader: Leader,
        at: (corelog_replication::NodeId, u16),
    ) -> bool {
        let world = self.client.world.clone();
        let position = self.position(partition, leader);
        let asked_us = world.recorder.now_us();
        let bytes_max = world.handle.random(1..4_000) as usize;
        let leader_epoch = Some(leader.epoch);
        let request = Request::Fetch { partition, from: position.next, bytes_max, leader_epoch };
        match self.client.call(at.0, at.1, request).await {
            Some(Response::Fetched { records, high_watermark, leader_epoch }) => {
                let records: Vec<_> = records.iter().map(|stored| (stored.offset, stored.tag)).collect();
                if let (Some(&(last, _)), Some(position)) =
                    (records.last(), self.positions.get_mut(&partition))
                {
                    position.next = Offset(last + 1);
                }
                world.recorder.note(Event::Read(Read {
                    partition: key(partition),
                    consumer: self.number,
                    from: position.next.0,
                    records,
                    high_watermark: high_watermark.0,
                    leader_epoch: Some(leader_epoch.0),
                    asked_us,
                    answered_us: world.recorder.now_us(),
                }));
                true
            }
            Some(Response::Refused(Refusal::OutOfRange { start, end })) => {
                if position.next < start {
                    self.move_to(partition, start, MoveReason::BelowLogStart);
                } else {
                    let (number, next) = (self.number, position.next);
                    world.recorder.complain(format!(
                        "{partition:?}: consumer {number} at {next} was told that the log ends at {end}"
                    ));
                }
                true
            }
            _ => false,
        }
    }

    /// Where it reads next; an unclean election since the last look sends it back to the start.
    fn position(&mut self, partition: TopicPartition, leader: Leader) -> Position {
        match self.positions.get(&partition) {
            Some(position) if position.unclean_epoch == leader.unclean_epoch => *position,
            known => {
                let reason = if known.is_some() { MoveReason::Truncated } else { MoveReason::Asked };
                let position = Position { next: Offset::ZERO, unclean_epoch: leader.unclean_epoch };
                self.positions.insert(partition, position);
                self.move_to(partition, Offset::ZERO, reason);
                position
            }
        }
    }

    fn move_to(&mut self, partition: TopicPartition, to: Offset, reason: MoveReason) {
        if let Some(position) = self.positions.get_mut(&partition) {
            position.next = to;
        }
        let (partition, consumer) = (key(partition), self.number);
        self.client.world.recorder.note(Event::Move(Move { partition, consumer, to: to.0, reason }));
    }
}
