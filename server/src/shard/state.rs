//! The state of one shard that its tasks share, and where a request goes.
//!
//! Owns: the newest snapshot, the way from a request's partition to the shard that owns it, and from there to the
//! partition or to the reason why it is not served.
//! Invariant: everything here belongs to one core. Nothing is `Send`; tasks share it by `Rc`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use corelog_engine::buffer::BufferPool;
use corelog_engine::{Engine, PartitionId, TopicId, TopicPartition};
use corelog_net::native::Sessions;
use corelog_replication::cluster::{FaultKind, ReplicaFault};
use corelog_replication::{IsrOptions, Replicas, RoleError};
use corelog_schemas::messages::{PartitionRef, TopicRef};
use corelog_schemas::{ErrorCode, Failure};

use super::clock::Clock;
use super::counters::{Counters, count};
use super::disk::{ShardDisk, SyncTimes};
use super::mesh::MeshRequest;
use super::peer::ShardHost;
use super::plan::Told;
use super::registry::{Registry, ShardPartition, State};
use super::work;
use crate::control::{
    DataDirState, PartitionMetadata, ShardId, ShardReport, Snapshot, SnapshotVersion, TopicMetadata,
};

/// One shard.
pub(super) struct Shard {
    pub(super) id: ShardId,
    /// Whether a produce creates a topic that does not exist.
    pub(super) auto_create: bool,
    pub(super) clock: Clock,
    pub(super) pool: BufferPool,
    /// One engine for each data directory, in their order; `None` for one that was offline at the start.
    pub(super) engines: Vec<Option<Engine<ShardDisk>>>,
    pub(super) registry: Registry,
    /// When followers count as in sync.
    pub(super) isr_options: IsrOptions,
    pub(super) host: ShardHost,
    pub(super) replicas: Replicas<ShardDisk, ShardHost>,
    /// Replicas that must not lead, to be told with the next report.
    pub(super) faults: RefCell<Vec<ReplicaFault>>,
    /// The node is cut off from the coordination service.
    pub(super) is_isolated: Cell<bool>,
    pub(super) sessions: Sessions,
    pub(super) counters: Counters,
    pub(super) sync_times: SyncTimes,
    /// To every shard of this node, by number; to this one too, which is never used.
    pub(super) mesh: Vec<flume::Sender<MeshRequest>>,
    pub(super) reports: flume::Sender<ShardReport>,
    pub(super) snapshot: RefCell<Arc<Snapshot>>,
    /// The newest snapshot that has been acted on.
    pub(super) applied: Cell<SnapshotVersion>,
    pub(super) is_stopping: Cell<bool>,
}

/// Where a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) id: TopicPartition,
    pub(super) shard: ShardId,
}

impl Shard {
    /// The newest snapshot.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// Which shard owns the partition that a request names.
    pub(super) fn place(&self, of: &PartitionRef) -> Result<Place, Failure> {
        let snapshot = self.snapshot.borrow();
        let topic = find_topic(&snapshot, &of.topic)?;
        let partition = find_partition(topic, PartitionId(of.partition))?;
        let id = TopicPartition { topic: topic.id, partition: partition.id };
        match (partition.leader, &partition.local) {
            (Some(leader), _) if leader.node == snapshot.node => Ok(Place { id, shard: leader.shard }),
            // Whoever holds the replica knows why it cannot lead.
            (None, Some(local)) => Ok(Place { id, shard: local.shard }),
            (Some(leader), _) => Err(Failure::new(
                ErrorCode::NotLeader,
                format!("partition {} is led by node {}, shard {}", id.partition, leader.node, leader.shard),
            )),
            (None, None) => Err(Failure::new(
                ErrorCode::NotLeader,
                format!("nobody leads partition {} now; try again soon", id.partition),
            )),
        }
    }

    /// The partition, if this shard serves it now.
    pub(super) fn partition(&self, id: TopicPartition) -> Result<ShardPartition, Failure> {
        self.registry.with(id, |entry| match entry.map(|entry| &entry.state) {
            Some(State::Open(partition)) => Ok(partition.clone()),
            Some(State::Failed(trouble)) => Err(trouble.failure.clone()),
            Some(State::Opening) => Err(work::being_opened()),
            Some(State::Leaving) | None => Err(self.not_here(id)),
        })
    }

    fn not_here(&self, id: TopicPartition) -> Failure {
        if self.is_stopping.get() {
            return ErrorCode::ShuttingDown.into();
        }
        match self.snapshot.borrow().partition(id) {
            None => ErrorCode::UnknownTopicOrPartition.into(),
            Some(place) if place.local.as_ref().is_some_and(|local| local.shard == self.id) => {
                work::being_opened()
            }
            Some(_) => ErrorCode::NotLeader.into(),
        }
    }

    /// Refuses produce to a disk that is nearly full.
    pub(super) fn check_space(&self, id: TopicPartition) -> Result<(), Failure> {
        let snapshot = self.snapshot.borrow();
        let Some(local) = snapshot.partition(id).and_then(|p| p.local.as_ref()) else { return Ok(()) };
        match &snapshot.data_dir(local.data_dir).state {
            DataDirState::Full { free_bytes } => {
                let path = snapshot.data_dir(local.data_dir).path.display();
                let message = format!(
                    "{path} has {free_bytes} bytes free, less than data.free_bytes_min; delete records or topics, \
                     lower their retention, or add space; produce comes back by itself"
                );
                Err(Failure::new(ErrorCode::DiskFull, message))
            }
            DataDirState::Online | DataDirState::Offline { .. } => Ok(()),
        }
    }

    /// Passes a request to another shard, waiting for room in its queue.
    pub(super) async fn forward(&self, shard: ShardId, request: MeshRequest) -> Result<(), Failure> {
        count(&self.counters.forwarded);
        let Some(queue) = self.mesh.get(shard.index()) else { return Err(ErrorCode::NotLeader.into()) };
        queue.send_async(request).await.map_err(|_| ErrorCode::ShuttingDown.into())
    }

    /// Takes in whether this node is cut off from the coordination service.
    pub(super) fn isolation_is(&self, snapshot: &Snapshot) {
        if self.is_isolated.replace(snapshot.is_isolated) != snapshot.is_isolated {
            self.replicas.set_isolated(snapshot.is_isolated);
        }
    }

    /// A log is open: it is there for streams and requests, without a role.
    pub(super) fn take_in(&self, id: TopicPartition, partition: ShardPartition) {
        partition.set_isr_options(self.isr_options);
        self.registry.set_state(id, State::Open(partition.clone()));
        self.replicas.host_partition(partition);
    }

    /// Gives an open partition its part in a leadership.
    pub(super) fn assign(&self, id: TopicPartition, told: Told) {
        let outcome = self.replicas.assign(told.assignment.clone(), told.leader_endpoint.as_ref());
        match &outcome {
            Ok(()) => {}
            // A leadership that a newer one has overtaken: its order comes with a later snapshot.
            Err(error @ (RoleError::Stale { .. } | RoleError::OutsideIsr { .. })) => {
                tracing::warn!(topic = %id.topic, partition = id.partition.0, %error, "a role was not taken");
            }
            Err(error @ RoleError::Log(_)) => {
                tracing::error!(topic = %id.topic, partition = id.partition.0, %error, "a role was not taken");
                let (replica, reason) = (told.assignment.me, error.to_string());
                self.faults.borrow_mut().push(ReplicaFault { replica, kind: FaultKind::Failed, reason });
            }
        }
        self.registry.change(id, |entry| entry.told = Some(told));
    }

    /// Lets go of a partition whose log is about to be closed: its streams end, and who waits is answered.
    pub(super) fn let_go(&self, id: TopicPartition) {
        self.replicas.drop_partition(id);
    }

    /// Tells the control thread of the replicas that must not lead.
    pub(super) async fn report_faults(&self) {
        let faults = std::mem::take(&mut *self.faults.borrow_mut());
        for fault in faults {
            self.report(ShardReport::Fault(fault)).await;
        }
    }

    /// Waits for room and sends; a control thread that has gone needs no reports.
    pub(super) async fn report(&self, report: ShardReport) {
        let _ = self.reports.send_async(report).await;
    }
}

/// The topic that a request names.
pub(super) fn find_topic<'a>(
    snapshot: &'a Snapshot,
    topic: &TopicRef,
) -> Result<&'a Arc<TopicMetadata>, Failure> {
    match topic {
        TopicRef::Id(id) => snapshot
            .topic_by_id(TopicId(*id))
            .ok_or_else(|| Failure::new(ErrorCode::UnknownTopicId, format!("no topic has id {id:032x}"))),
        TopicRef::Name(name) => snapshot.topic_by_name(name).ok_or_else(|| {
            Failure::new(ErrorCode::UnknownTopicOrPartition, format!("there is no topic {name:?}"))
        }),
    }
}

/// The partition of that number.
fn find_partition(topic: &TopicMetadata, id: PartitionId) -> Result<&PartitionMetadata, Failure> {
    topic.partition(id).ok_or_else(|| {
        let (name, count) = (&topic.name, topic.partitions.len());
        let message = format!("topic {name:?} has no partition {id}: it has {count}, numbered from 0");
        Failure::new(ErrorCode::UnknownTopicOrPartition, message)
    })
}

/// What all tasks of a shard hold.
pub(super) type SharedShard = Rc<Shard>;
