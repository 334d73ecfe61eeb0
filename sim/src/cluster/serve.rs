//! A simulated node towards its clients: the rules of the server's shards, on a small protocol.
//!
//! Owns: one session: requests in order, answers in the same order.
//! Invariant: an answer says "refused" only if nothing was appended, and "unknown" if it may have been.
//! Not here: the native protocol (`net`).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use corelog_engine::log::ReadError;
use corelog_engine::notify::Notify;
use corelog_engine::{Offset, TopicPartition};
use corelog_replication::stream::Host;
use corelog_replication::{Ack, FetchError, Partition, ProduceChecks, ProduceError};
use futures_util::future::select;

use super::packet::{Packet, PartitionPlace, Refusal, Request, Response, TopicPlace};
use super::process::{Process, Shard};
use super::{admin, batches};
use crate::disk::SimDisk;
use crate::network::{Connection, Listener};

/// How long an ack is waited for.
const ACK_TIMEOUT_MS: u64 = 3_000;

/// How long a fetch waits for records.
const FETCH_WAIT_MS: u64 = 300;

type Pending = Pin<Box<dyn Future<Output = Response>>>;

/// Accepts clients for ever.
pub(super) async fn accept_clients(process: Rc<Process>, shard: Rc<Shard>, listener: Listener<Packet>) {
    loop {
        let connection = Rc::new(listener.accept().await);
        let session = Rc::new(Session {
            connection,
            answers: RefCell::default(),
            changed: Notify::default(),
            is_over: Cell::new(false),
        });
        let answering = session.clone();
        process.handle.spawn(async move { answering.answer().await });
        let process = process.clone();
        let shard = shard.clone();
        process.handle.clone().spawn(async move { session.read(&process, &shard).await });
    }
}

/// One connection of a client.
struct Session {
    connection: Rc<Connection<Packet>>,
    answers: RefCell<VecDeque<Pending>>,
    changed: Notify,
    is_over: Cell<bool>,
}

impl Session {
    async fn read(&self, process: &Rc<Process>, shard: &Rc<Shard>) {
        while let Ok(packet) = self.connection.recv().await {
            let Packet::Request(request) = packet else { break };
            let pending = process.clone().begin(shard.clone(), request).await;
            self.answers.borrow_mut().push_back(pending);
            self.changed.notify_all();
        }
        self.is_over.set(true);
        self.changed.notify_all();
        self.connection.close();
    }

    async fn answer(&self) {
        loop {
            let changed = self.changed.notified();
            let next = self.answers.borrow_mut().pop_front();
            match next {
                Some(pending) => {
                    let response = pending.await;
                    if self.connection.send(Packet::Response(response)).await.is_err() {
                        return;
                    }
                }
                None if self.is_over.get() => return,
                None => changed.await,
            }
        }
    }
}

fn ready(response: Response) -> Pending {
    Box::pin(std::future::ready(response))
}

fn refused(why: impl std::fmt::Display) -> Response {
    Response::Refused(Refusal::Other(why.to_string()))
}

impl Process {
    /// Does what must happen in the order of the requests; the rest is in the future returned.
    async fn begin(self: Rc<Self>, shard: Rc<Shard>, request: Request) -> Pending {
        match request {
            Request::Metadata => ready(self.metadata()),
            Request::Produce { partition, batch, ack, leader_epoch } => {
                let checks = ProduceChecks { leader_epoch, timestamp_max: None, ack };
                match shard.partition(partition) {
                    Some(partition) => self.produce(&shard, partition, &batch, checks).await,
                    None => ready(not_here()),
                }
            }
            Request::Fetch { partition, from, bytes_max, leader_epoch } => Box::pin(async move {
                let Some(partition) = shard.partition(partition) else { return not_here() };
                self.fetch(&shard, &partition, from, bytes_max, leader_epoch).await
            }),
            Request::Latest { partition } => ready(self.latest(&shard, partition)),
            Request::DeleteRecords { partition, before } => Box::pin(async move {
                let Some(partition) = shard.partition(partition) else { return not_here() };
                match partition.delete_records(Some(before), shard.host.wall()).await {
                    Ok(_) => Response::Done,
                    Err(error) => Response::Unknown(error.to_string()),
                }
            }),
            Request::Admin(change) => Box::pin(async move { admin::apply(&self, change).await }),
        }
    }

    fn metadata(&self) -> Response {
        let topics = self.agent.cluster(|cluster| {
            let place = |id: TopicPartition| {
                let record = cluster.partitions.get(&id).map(|stored| stored.record.clone());
                PartitionPlace {
                    partition: id,
                    leader: cluster.leader_location(id),
                    leader_epoch: record.as_ref().map(|record| record.leader_epoch).unwrap_or_default(),
                    unclean_epoch: record.and_then(|record| record.unclean_epoch),
                }
            };
            let topics = cluster.topics.values().map(|topic| TopicPlace {
                id: topic.record.id,
                name: topic.record.name.clone(),
                partitions: cluster.partitions_of(topic.record.id).map(|(id, _)| place(id)).collect(),
            });
            topics.collect::<Vec<_>>()
        });
        Response::Metadata(topics)
    }

    async fn produce(
        self: Rc<Self>,
        shard: &Rc<Shard>,
        partition: Partition<SimDisk>,
        batch: &[u8],
        checks: ProduceChecks,
    ) -> Pending {
        let host = shard.host.clone();
        let produced = match partition.produce(batch, checks, move || host.wall()).await {
            Ok(produced) => produced,
            Err(ProduceError::Leader(error)) => {
                return ready(Response::Refused(Refusal::NotLeader(error.to_string())));
            }
            Err(error) => return ready(refused(error)),
        };
        let leader_epoch = partition.leader_epoch();
        let base_offset = produced.base_offset;
        let acked = partition.acked(checks.ack, produced.end_offset);
        Box::pin(async move {
            if let Some(acked) = acked {
                let patience = self.handle.sleep(Duration::from_millis(ACK_TIMEOUT_MS));
                match select(acked, Box::pin(patience)).await {
                    futures_util::future::Either::Left((Ok(()), _)) => {}
                    futures_util::future::Either::Left((Err(error), _)) => {
                        return Response::Unknown(error.to_string());
                    }
                    futures_util::future::Either::Right(_) => {
                        return Response::Unknown("timed out".to_owned());
                    }
                }
            }
            if checks.ack != Ack::All {
                self.check_not_cut_off("an ack of the leader alone");
            }
            self.led(&partition, leader_epoch.0);
            Response::Produced { base_offset, leader_epoch }
        })
    }

    async fn fetch(
        &self,
        shard: &Rc<Shard>,
        partition: &Partition<SimDisk>,
        from: Offset,
        bytes_max: usize,
        leader_epoch: Option<corelog_engine::LeaderEpoch>,
    ) -> Response {
        if partition.check_epoch(leader_epoch).is_ok() {
            let patience = self.handle.sleep(Duration::from_millis(FETCH_WAIT_MS));
            select(partition.readable(from), Box::pin(patience)).await;
        }
        let fetched = match partition.fetch(from, bytes_max, leader_epoch).await {
            Ok(fetched) => fetched,
            Err(FetchError::Leader(error)) => {
                return Response::Refused(Refusal::NotLeader(error.to_string()));
            }
            Err(FetchError::Read(ReadError::OffsetOutOfRange { start, end, .. })) => {
                return Response::Refused(Refusal::OutOfRange { start, end });
            }
            Err(FetchError::Read(error @ ReadError::Corrupt { offset, .. })) => {
                self.world.damage_met.set(self.world.damage_met.get() + 1);
                shard.replicas.damaged(partition.id(), offset);
                return refused(error);
            }
            Err(error) => return refused(error),
        };
        self.check_not_cut_off("a fetch");
        self.led(partition, fetched.leader_epoch.0);
        match batches::read(&fetched.batches.slices, from) {
            Ok(records) => {
                let (high_watermark, leader_epoch) = (fetched.high_watermark, fetched.leader_epoch);
                Response::Fetched { records, high_watermark, leader_epoch }
            }
            Err(what) => {
                self.world.recorder.complain(format!("{:?} at {from} served {what}", partition.id()));
                refused(what)
            }
        }
    }

    fn latest(&self, shard: &Shard, partition: TopicPartition) -> Response {
        let Some(partition) = shard.partition(partition) else { return not_here() };
        let leader_epoch = partition.leader_epoch();
        match partition.latest(None) {
            Ok(offset) => {
                self.check_not_cut_off("a question for the latest offset");
                Response::Latest { offset, leader_epoch }
            }
            Err(error) => refused(error),
        }
    }

    fn led(&self, partition: &Partition<SimDisk>, epoch: u32) {
        let replica = partition.me().to_string();
        self.world.recorder.led(partition.id(), epoch, &replica, self.incarnation.0);
    }

    /// Reads and acks of the leader alone stop within a bound after the coordination service is out of reach.
    fn check_not_cut_off(&self, what: &str) {
        let Some(since_us) = self.node.cut_off_since_us.get() else { return };
        let for_ms = (self.handle.now_us() - since_us) / 1000;
        let bound_ms = self.world.coordination.options().session_timeout_ms * 2 + 1_000;
        if for_ms > bound_ms {
            let node = self.node.id;
            self.world
                .recorder
                .complain(format!("node {node} answered {what} {for_ms} ms after it was cut off"));
        }
    }
}

fn not_here() -> Response {
    Response::Refused(Refusal::NotLeader("no such partition here".to_owned()))
}
