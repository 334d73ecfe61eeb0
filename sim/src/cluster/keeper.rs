//! Makes a process what its picture of the cluster says: logs are opened, made, given roles, closed and deleted.
//!
//! Owns: the rules of `server/src/shard`, in short: a log is made once; one that was made and is not there is lost; one
//! that may lack what it acked is not electable; what is to be deleted is named by a removal.

use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use corelog_engine::batch::TimestampType;
use corelog_engine::disk::Disk;
use corelog_engine::log::{CleanupPolicy, FlushPolicy, OpenError, RecoveryReport};
use corelog_engine::{Log, LogOptions, TopicPartition};
use corelog_replication::cluster::keys::{RemovalId, Subject};
use corelog_replication::cluster::{
    ClusterState, Endpoint, FaultKind, Removal, ReplicaFault, ReplicaRecord, TopicRecord,
};
use corelog_replication::coordination::Op;
use corelog_replication::{Assignment, Partition, Role};
use futures_util::future::select;

use super::process::{Process, Shard, Slot, SlotState};
use super::storage::{DataDir, log_directory};
use crate::disk::SimDisk;

/// How long until a log is tried again that found no space.
const RETRY_MS: u64 = 2_000;

/// A replica that this node is to have.
struct Wanted {
    id: TopicPartition,
    replica: ReplicaRecord,
    options: LogOptions,
    assignment: Assignment,
    leader: Option<Endpoint>,
}

/// Follows the picture for ever.
pub(super) async fn keep(process: Rc<Process>) {
    let mut is_announced = false;
    loop {
        let changed = process.agent.changed();
        if process.is_stopping.get() {
            return;
        }
        if process.agent.has_state() {
            process.reconcile();
            if !is_announced && process.has_opened_all() {
                is_announced = true;
                process.agent.announce();
            }
        }
        let is_isolated = process.agent.is_isolated();
        for shard in &process.shards {
            shard.replicas.set_isolated(is_isolated);
        }
        let patience = Duration::from_millis(if is_announced { 500 } else { 20 });
        select(changed, Box::pin(process.handle.sleep(patience))).await;
    }
}

/// The options of a topic's logs.
pub fn log_options(topic: &TopicRecord) -> LogOptions {
    let number = |name: &str| topic.options.get(name).and_then(|value| value.parse::<u64>().ok());
    let flush = match number("flush_interval_ms") {
        Some(ms_max) => FlushPolicy::Interval { bytes_max: 64 << 10, ms_max },
        None => FlushPolicy::Commit,
    };
    LogOptions {
        segment_bytes_max: number("segment_bytes").unwrap_or(32 << 10),
        segment_age_max_ms: 7 * 24 * 3_600_000,
        retention_bytes: number("retention_bytes"),
        retention_ms: None,
        flush,
        batch_bytes_max: 64 << 10,
        timestamp_type: TimestampType::CreateTime,
        cleanup_policy: CleanupPolicy::Delete,
    }
}

impl Process {
    fn wanted(&self, cluster: &ClusterState) -> Vec<Wanted> {
        let here = cluster.partitions.iter().filter_map(|(id, stored)| {
            let replica = *stored.record.on_node(self.node.id)?;
            let topic = cluster.topics.get(&id.topic)?;
            let assignment = cluster.assignment(self.node.id, self.incarnation, *id)?;
            let leader = match assignment.role {
                Role::Follow { leader, shard } => cluster.replication_endpoint(leader.node, shard).cloned(),
                Role::Lead | Role::Wait => None,
            };
            Some(Wanted { id: *id, replica, options: log_options(topic), assignment, leader })
        });
        here.collect()
    }

    /// Whether every log that is wanted is open, or known not to open.
    fn has_opened_all(&self) -> bool {
        let is_opening = |slot: &Slot| matches!(slot.state, SlotState::Opening);
        !self.shards.iter().any(|shard| shard.slots.borrow().values().any(is_opening))
    }

    fn reconcile(self: &Rc<Self>) {
        if self.is_stopping.get() {
            return;
        }
        let (wanted, removals) = self.agent.cluster(|cluster| {
            let removals: Vec<(RemovalId, Removal)> = cluster
                .removals_of(self.node.id)
                .map(|(id, stored)| (id, (*stored.record).clone()))
                .collect();
            (self.wanted(cluster), removals)
        });
        self.close_unwanted(&wanted);
        for wanted in wanted {
            let shard = self.shards[usize::from(wanted.replica.shard) % self.shards.len()].clone();
            self.keep_one(&shard, wanted);
        }
        for (id, removal) in removals {
            if self.removing.borrow_mut().insert(id) {
                let process = self.clone();
                self.handle.spawn(async move { process.remove(id, removal).await });
            }
        }
    }

    fn close_unwanted(self: &Rc<Self>, wanted: &[Wanted]) {
        for shard in &self.shards {
            let gone: Vec<(TopicPartition, Partition<SimDisk>)> = {
                let slots = shard.slots.borrow();
                let is_wanted = |id: &TopicPartition, slot: &Slot| {
                    wanted.iter().any(|w| w.id == *id && w.replica.log == slot.replica.log)
                };
                let unwanted = slots.iter().filter(|(id, slot)| !is_wanted(id, slot));
                let open = unwanted.filter_map(|(id, slot)| match &slot.state {
                    SlotState::Open(partition) => Some((*id, partition.clone())),
                    SlotState::Opening | SlotState::Failed(_) | SlotState::Leaving => None,
                });
                open.collect()
            };
            let failed = |id: &TopicPartition, slot: &Slot| {
                matches!(slot.state, SlotState::Failed(_))
                    && !wanted.iter().any(|w| w.id == *id && w.replica.log == slot.replica.log)
            };
            shard.slots.borrow_mut().retain(|id, slot| !failed(id, slot));
            for (id, partition) in gone {
                if let Some(slot) = shard.slots.borrow_mut().get_mut(&id) {
                    slot.state = SlotState::Leaving;
                }
                shard.replicas.drop_partition(id);
                let shard = shard.clone();
                self.handle.spawn(async move {
                    // What fails is found by the next start.
                    let _ = partition.log().close().await;
                    shard.slots.borrow_mut().remove(&id);
                });
            }
        }
    }

    fn keep_one(self: &Rc<Self>, shard: &Rc<Shard>, wanted: Wanted) {
        let now_ms = corelog_replication::stream::Host::now_ms(&shard.host);
        let state = shard.slots.borrow().get(&wanted.id).map(|slot| (slot.state.clone(), slot.options));
        match state {
            None => self.begin_opening(shard, &wanted),
            Some((SlotState::Failed(Some(at_ms)), _)) if now_ms >= at_ms => {
                self.begin_opening(shard, &wanted)
            }
            Some((SlotState::Open(partition), options)) => {
                if options != wanted.options {
                    partition.set_options(wanted.options);
                }
                self.assign(shard, wanted);
            }
            Some((SlotState::Opening | SlotState::Failed(_) | SlotState::Leaving, _)) => {}
        }
    }

    fn assign(&self, shard: &Shard, wanted: Wanted) {
        let order = (wanted.assignment.clone(), wanted.leader.clone());
        {
            let mut slots = shard.slots.borrow_mut();
            let Some(slot) = slots.get_mut(&wanted.id) else { return };
            slot.options = wanted.options;
            if slot.told.as_ref() == Some(&order) {
                return;
            }
            slot.told = Some(order);
        }
        let Assignment { me, role, leader_epoch, version, .. } = &wanted.assignment;
        self.handle.note(format_args!("assign {me} {role:?} in {leader_epoch}, version {}", version.0));
        let outcome = shard.replicas.assign(wanted.assignment, wanted.leader.as_ref());
        if let Err(error) = outcome {
            self.handle.note(format_args!("node {}: role refused: {error}", self.node.id));
        }
    }

    fn begin_opening(self: &Rc<Self>, shard: &Rc<Shard>, wanted: &Wanted) {
        let slot =
            Slot { replica: wanted.replica, options: wanted.options, state: SlotState::Opening, told: None };
        shard.slots.borrow_mut().insert(wanted.id, slot);
        let (process, shard) = (self.clone(), shard.clone());
        let (id, replica, options) = (wanted.id, wanted.replica, wanted.options);
        self.handle.spawn(async move { process.open(&shard, id, replica, options).await });
    }

    async fn open(
        self: &Rc<Self>,
        shard: &Rc<Shard>,
        id: TopicPartition,
        replica: ReplicaRecord,
        options: LogOptions,
    ) {
        let state = match self.open_log(shard, id, &replica, options).await {
            Ok((log, report)) => {
                if let Some(reason) = report.and_then(|report| report.unverified) {
                    self.fault(&replica, FaultKind::Unverified, &reason);
                }
                let partition = Partition::open(id, replica.id(), log);
                partition.set_isr_options(self.world.isr_options());
                shard.replicas.host_partition(partition.clone());
                SlotState::Open(partition)
            }
            Err(NotOpened { kind: Some(kind), reason }) => {
                self.fault(&replica, kind, &reason);
                SlotState::Failed(None)
            }
            Err(NotOpened { kind: None, reason }) => {
                self.handle.note(format_args!("node {}: {id:?} waits: {reason}", self.node.id));
                SlotState::Failed(Some(corelog_replication::stream::Host::now_ms(&shard.host) + RETRY_MS))
            }
        };
        if let Some(slot) = shard.slots.borrow_mut().get_mut(&id) {
            slot.state = state;
        }
        self.reconcile();
    }

    fn fault(&self, replica: &ReplicaRecord, kind: FaultKind, reason: &str) {
        self.handle.note(format_args!("node {}: {:?} is {kind:?}: {reason}", self.node.id, replica.log));
        self.agent.fault(&ReplicaFault { replica: replica.id(), kind, reason: reason.to_owned() });
    }

    async fn open_log(
        &self,
        shard: &Shard,
        id: TopicPartition,
        replica: &ReplicaRecord,
        options: LogOptions,
    ) -> Result<(Log<SimDisk>, Option<RecoveryReport>), NotOpened> {
        let dir = self.dirs.iter().find(|dir| dir.id() == replica.dir);
        let (Some(dir), Some(engine)) = (dir, shard.engine(replica.dir)) else {
            // The cluster sees by the registration that the directory is not here.
            return Err(NotOpened { kind: None, reason: "its directory is not here".to_owned() });
        };
        let path = log_directory(id, replica.log);
        let is_there = match dir.disk().list(&path).await {
            Ok(entries) => !entries.is_empty(),
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => return Err(NotOpened { kind: Some(FaultKind::Failed), reason: error.to_string() }),
        };
        if !is_there && dir.has_made(replica.log) {
            return Err(NotOpened { kind: Some(FaultKind::Lost), reason: "its log is gone".to_owned() });
        }
        let opened = if is_there {
            let opened = engine.open_log(&path, replica.log, options, dir.was_clean()).await;
            opened.map(|(log, report)| (log, Some(report)))
        } else {
            engine.create_log(&path, replica.log, options).await.map(|log| (log, None))
        };
        let opened = opened.map_err(|error| NotOpened::of(&error))?;
        match dir.note_made(replica.log).await {
            Ok(()) => Ok(opened),
            Err(error) => {
                // Not on the list: it takes no part. It is closed, and tried again.
                let _ = opened.0.close().await;
                Err(NotOpened { kind: None, reason: error.to_string() })
            }
        }
    }

    /// Deletes logs, and says that they are gone.
    async fn remove(self: &Rc<Self>, id: RemovalId, removal: Removal) {
        for log in &removal.logs {
            let partition = TopicPartition {
                topic: removal.topic,
                partition: corelog_engine::PartitionId(log.partition),
            };
            let Some(dir) = self.dirs.iter().find(|dir| dir.id() == log.dir) else { continue };
            self.close_for_removal(partition, log.log).await;
            if self.delete_log(dir, partition, log.log).await.is_err() {
                self.removing.borrow_mut().remove(&id);
                return;
            }
        }
        let gone = self.agent.change(|cluster| {
            let stored = cluster.removals.get(&id);
            let key = Subject::Removal(id).key();
            Ok::<_, std::convert::Infallible>(
                stored.map(|stored| vec![Op::Delete { key, version: stored.version }]).into_iter().collect(),
            )
        });
        // Without an answer it is tried again, by the next look at the picture.
        let _ = gone.await;
        self.removing.borrow_mut().remove(&id);
    }

    async fn close_for_removal(&self, partition: TopicPartition, log: corelog_engine::LogId) {
        let is_here =
            |shard: &Shard| shard.slots.borrow().get(&partition).is_some_and(|slot| slot.replica.log == log);
        while self.shards.iter().any(|shard| is_here(shard)) {
            // The picture does not want it any more: it is being closed.
            self.handle.sleep(Duration::from_millis(20)).await;
        }
    }

    async fn delete_log(
        &self,
        dir: &DataDir,
        partition: TopicPartition,
        log: corelog_engine::LogId,
    ) -> std::io::Result<()> {
        let path = log_directory(partition, log);
        dir.disk().remove_dir_all(&path).await?;
        match dir.disk().sync_dir(path.parent().expect("a log lies in its topic's directory")).await {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        dir.note_deleted(log).await
    }
}

/// Why a log is not open; without a kind it is tried again.
struct NotOpened {
    kind: Option<FaultKind>,
    reason: String,
}

impl NotOpened {
    fn of(error: &OpenError) -> Self {
        let is_full =
            matches!(error, OpenError::Disk { source, .. } if source.kind() == ErrorKind::StorageFull);
        Self { kind: (!is_full).then_some(FaultKind::Failed), reason: error.to_string() }
    }
}
