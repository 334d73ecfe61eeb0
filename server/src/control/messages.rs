//! What control thread and shards say to each other.
//!
//! Owns: the messages and the bounded channels that carry them. Both ends are async and neither blocks a core:
//! the control thread never waits for room in a shard's channel (it tries again with the newest snapshot), a shard
//! waits for room in the control thread's.
//! Invariant: commands to one shard arrive in order; of two snapshots in the channel the later one is enough.

use std::sync::Arc;

use corelog_engine::{LogId, TopicPartition};
use corelog_net::native::ClusterChange;
use corelog_replication::Report;
use corelog_replication::cluster::ReplicaFault;
use corelog_replication::coordination::Version;
use corelog_schemas::error::Failure;
use corelog_schemas::messages::{
    AlterTopicOptionsRequest, ClusterChangeResponse, CreatePartitionsRequest, CreateTopicsRequest,
    DeleteTopicsRequest, DescribeClusterRequest, DescribeClusterResponse, DescribeNodeResponse,
    DescribeTopicsRequest, DescribeTopicsResponse, ElectLeadersRequest, ElectLeadersResponse,
    ListTopicsRequest, ListTopicsResponse, TopicResultsResponse,
};

use super::snapshot::{DataDirIndex, ShardId, Snapshot, SnapshotVersion};
use super::stats::ShardStats;

/// Commands that wait for one shard. A shard drains its channel in one go, so a full one means a stuck shard.
pub const COMMANDS_MAX: usize = 16;

/// Reports that wait for the control thread: more than the shards' admin requests in flight; beyond, sessions wait.
pub const REPORTS_MAX: usize = 1024;

/// Control thread to shard.
#[derive(Clone, Debug)]
pub enum ShardCommand {
    /// Open, close and delete partitions until this is true; answer with [`ShardReport::Applied`].
    Apply(Arc<Snapshot>),
    /// A proposal of this partition's leader, made at this version, was refused or overtaken: decide again.
    IsrRefused {
        /// Which.
        partition: TopicPartition,
        /// The version that the proposal named.
        version: Version,
    },
    /// The node stops cleanly and leads nothing any more: say so on every stream, so that leaders drop its replicas
    /// from their ISR at once. [`ShardCommand::Stop`] follows.
    Leave,
    /// Report counters and sizes.
    Stats(Answer<ShardStats>),
    /// Refuse new work, answer what is under way, sync, close; answer with [`ShardReport::Stopped`].
    Stop,
}

/// Shard to control thread.
#[derive(Debug)]
pub enum ShardReport {
    /// A snapshot has been acted on.
    Applied {
        /// By whom.
        shard: ShardId,
        /// Which; all earlier ones with it.
        version: SnapshotVersion,
        /// Every partition of the shard that could not be opened, created or deleted.
        failures: Vec<PartitionFailure>,
    },
    /// A session asks for a change, or for what only the control thread knows.
    Admin(AdminRequest),
    /// New logs exist and their directories are durable. The control thread puts them on its list and says so with
    /// the next snapshot; until then they take no role.
    LogsMade(Vec<MadeLog>),
    /// For the node's agent: an ISR to store, a process seen or not, a replica that has caught up.
    Replication(Report),
    /// A replica must not lead: its log is lost, has failed, or may lack what it acked. `Lost` and `Failed` are also
    /// reported by [`ShardReport::Applied`] or [`ShardReport::PartitionFailed`], for clients.
    Fault(ReplicaFault),
    /// A log has failed after it was open (a write or sync failed); it takes no appends any more.
    PartitionFailed(PartitionFailure),
    /// A whole data directory does not answer.
    DataDirFailed {
        /// Which.
        data_dir: DataDirIndex,
        /// What happened, for a person.
        reason: String,
    },
    /// The last word of a shard.
    Stopped {
        /// Which.
        shard: ShardId,
        /// Data directories in which not every log of the shard was synced and closed: they get no clean marker.
        unclean: Vec<DataDirIndex>,
    },
}

/// A log that was made just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MadeLog {
    /// Of which partition.
    pub partition: TopicPartition,
    /// Its identity.
    pub log: LogId,
    /// Where it lies.
    pub data_dir: DataDirIndex,
}

/// Why one partition is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionFailure {
    /// Which.
    pub partition: TopicPartition,
    /// Code and words for clients.
    pub failure: Failure,
}

/// Carries one answer back; the asker may have gone.
#[derive(Debug)]
pub struct Answer<T>(flume::Sender<T>);

impl<T> Clone for Answer<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Answer<T> {
    /// A way back, and where it ends.
    pub fn new() -> (Self, flume::Receiver<T>) {
        let (sender, receiver) = flume::bounded(1);
        (Self(sender), receiver)
    }

    /// Answers. Does nothing if nobody waits any more, or if it has been answered already.
    pub fn send(self, value: T) {
        let _ = self.0.try_send(value);
    }
}

/// A request that the control thread answers. The shard has authorized it.
#[derive(Debug)]
pub enum AdminRequest {
    /// Create topics; answered when every shard has applied them, or after the request's timeout.
    CreateTopics(CreateTopicsRequest, Answer<TopicResultsResponse>),
    /// Delete topics.
    DeleteTopics(DeleteTopicsRequest, Answer<TopicResultsResponse>),
    /// Change options of a topic.
    AlterTopicOptions(AlterTopicOptionsRequest, Answer<TopicResultsResponse>),
    /// Add partitions to a topic.
    CreatePartitions(CreatePartitionsRequest, Answer<TopicResultsResponse>),
    /// Name topics.
    ListTopics(ListTopicsRequest, Answer<ListTopicsResponse>),
    /// Show topics, with sizes and offsets from the shards.
    DescribeTopics(DescribeTopicsRequest, Answer<DescribeTopicsResponse>),
    /// Show this node: shards, load, disks.
    DescribeNode(Answer<DescribeNodeResponse>),
    /// Show the cluster: nodes, and what is not well.
    DescribeCluster(DescribeClusterRequest, Answer<DescribeClusterResponse>),
    /// Drain or forget a node; add or remove replicas.
    ChangeCluster(ClusterChange, Answer<ClusterChangeResponse>),
    /// Let the preferred leaders lead, or one that lacks records.
    ElectLeaders(ElectLeadersRequest, Answer<ElectLeadersResponse>),
}

/// The shard's end.
#[derive(Debug)]
pub struct ShardLink {
    /// Which shard this is.
    pub shard: ShardId,
    /// From the control thread.
    pub commands: flume::Receiver<ShardCommand>,
    /// To the control thread.
    pub reports: flume::Sender<ShardReport>,
}

/// The control thread's end.
#[derive(Debug)]
pub struct ControlLink {
    /// To each shard, by number.
    pub commands: Vec<flume::Sender<ShardCommand>>,
    /// From all of them.
    pub reports: flume::Receiver<ShardReport>,
}

/// The channels between the control thread and `shards` shards.
pub fn link_shards(shards: u16) -> (ControlLink, Vec<ShardLink>) {
    let (to_control, reports) = flume::bounded(REPORTS_MAX);
    let (commands, links) = (0..shards)
        .map(|shard| {
            let (to_shard, commands) = flume::bounded(COMMANDS_MAX);
            (to_shard, ShardLink { shard: ShardId(shard), commands, reports: to_control.clone() })
        })
        .unzip();
    (ControlLink { commands, reports }, links)
}
