//! What travels on the simulated network: frames of replication streams, and requests of clients.
//!
//! Owns: the shapes. Clients speak a small protocol of their own: the native one is tested on real sockets, and what
//! matters here is who is told what, when.

use corelog_engine::{LeaderEpoch, Offset, TopicId, TopicPartition};
use corelog_replication::{Ack, NodeId};

use crate::checker::Stored;
use crate::network::Parcel;

/// One message.
pub enum Packet {
    /// Of a replication stream, as the real codec makes it.
    Frame(Vec<u8>),
    /// Of a client.
    Request(Request),
    /// To a client; answers come in the order of the requests.
    Response(Response),
}

impl Parcel for Packet {
    fn bytes(&self) -> usize {
        match self {
            Self::Frame(bytes) => bytes.len(),
            Self::Request(Request::Produce { batch, .. }) => batch.len(),
            Self::Request(_) => 64,
            Self::Response(_) => 256,
        }
    }
}

/// What a client asks.
pub enum Request {
    /// Which topics there are, and who leads their partitions.
    Metadata,
    /// Append a batch.
    Produce {
        /// Where to.
        partition: TopicPartition,
        /// A whole record batch.
        batch: Vec<u8>,
        /// When to answer.
        ack: Ack,
        /// The leadership that the producer believes in.
        leader_epoch: Option<LeaderEpoch>,
    },
    /// Read committed records; waits a little if there are none.
    Fetch {
        /// Where from.
        partition: TopicPartition,
        /// The first offset wanted.
        from: Offset,
        /// About how much.
        bytes_max: usize,
        /// The leadership that the consumer believes in.
        leader_epoch: Option<LeaderEpoch>,
    },
    /// The latest offset.
    Latest {
        /// Of which partition.
        partition: TopicPartition,
    },
    /// Delete what is below an offset.
    DeleteRecords {
        /// Of which partition.
        partition: TopicPartition,
        /// The new log start.
        before: Offset,
    },
    /// Change the cluster.
    Admin(Admin),
}

/// What an operator asks.
#[derive(Clone, Debug)]
pub enum Admin {
    /// Make a topic.
    CreateTopic {
        /// Its name.
        name: String,
        /// How many partitions.
        partitions: u32,
        /// How many replicas of each.
        replicas: u16,
        /// Options set on it.
        options: Vec<(String, String)>,
    },
    /// Delete a topic.
    DeleteTopic {
        /// Its name.
        name: String,
    },
    /// Add a replica of a partition.
    AddReplica {
        /// Of which partition.
        partition: TopicPartition,
        /// Where; `None`: where the placement says.
        node: Option<NodeId>,
    },
    /// Remove a replica of a partition.
    RemoveReplica {
        /// Of which partition.
        partition: TopicPartition,
        /// Where.
        node: NodeId,
    },
    /// Let a node lead nothing, or take that back.
    Drain {
        /// Which node.
        node: NodeId,
        /// Whether it is to be drained.
        is_drained: bool,
    },
    /// Elect from outside the ISR.
    ElectUnclean {
        /// Which partition.
        partition: TopicPartition,
    },
    /// Give leadership back to the preferred leaders.
    Rebalance,
}

/// Where a partition is led.
#[derive(Clone, Debug)]
pub struct PartitionPlace {
    /// Which partition.
    pub partition: TopicPartition,
    /// Node and shard of the leader, if there is one.
    pub leader: Option<(NodeId, u16)>,
    /// Its epoch.
    pub leader_epoch: LeaderEpoch,
    /// The epoch that began with an unclean election, if there was one.
    pub unclean_epoch: Option<LeaderEpoch>,
}

/// A topic as clients see it.
#[derive(Clone, Debug)]
pub struct TopicPlace {
    /// Its identity.
    pub id: TopicId,
    /// Its name.
    pub name: String,
    /// Its partitions.
    pub partitions: Vec<PartitionPlace>,
}

/// What a node answers.
pub enum Response {
    /// To a question for metadata.
    Metadata(Vec<TopicPlace>),
    /// Records have their place, as safe as was asked for.
    Produced {
        /// Offset of the first.
        base_offset: Offset,
        /// Of the leader that took them.
        leader_epoch: LeaderEpoch,
    },
    /// Committed records.
    Fetched {
        /// Those at and above the offset asked for, whole batches.
        records: Vec<Stored>,
        /// Exclusive end of what is committed.
        high_watermark: Offset,
        /// Of the leader that answered.
        leader_epoch: LeaderEpoch,
    },
    /// The latest offset.
    Latest {
        /// It.
        offset: Offset,
        /// Of the leader that answered.
        leader_epoch: LeaderEpoch,
    },
    /// It is done.
    Done,
    /// Nothing was done.
    Refused(Refusal),
    /// It may have been done, or not.
    Unknown(String),
}

/// Why nothing was done.
#[derive(Clone, Debug)]
pub enum Refusal {
    /// Ask another node: this one does not lead, or its epoch is another one.
    NotLeader(String),
    /// The offset is outside the log.
    OutOfRange {
        /// First offset there.
        start: Offset,
        /// Exclusive end of the log.
        end: Offset,
    },
    /// Anything else; try again.
    Other(String),
}
