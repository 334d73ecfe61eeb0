//! What happened, as the clients and the operator of one test saw it.
//!
//! Owns: the shapes. Times are microseconds of one clock that all observers share; `asked` is before the request was
//! sent, `answered` after the answer came, so that "A before B" means `A.answered < B.asked`.

use std::fmt;
use std::rc::Rc;

use super::record::RecordTag;

/// A partition of one topic; a topic that was deleted and made again is another one (name it by its id).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionKey {
    /// The topic's identity.
    pub topic: Rc<str>,
    /// Number of the partition.
    pub partition: u32,
}

impl fmt::Display for PartitionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// How long an ack holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// acks=all: until an unclean election.
    Committed,
    /// acks=1: until another replica is elected.
    UntilElection,
    /// acks=0: nothing was promised.
    Nothing,
}

/// How a produce ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProduceOutcome {
    /// Acked at this offset.
    Acked {
        /// Offset of its first record.
        base_offset: u64,
    },
    /// Refused before anything was appended: it must never be read.
    Refused,
    /// Time-out, broken connection, or an error that may come after the append: it may be there, once and whole.
    Unknown,
}

/// One attempt to write one batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Produce {
    /// Where to.
    pub partition: PartitionKey,
    /// Who.
    pub producer: u32,
    /// Number of his connection: what is sent on one connection keeps its order, acked or not.
    pub connection: u64,
    /// Sequence of the first record; the others follow.
    pub sequence: u64,
    /// Records in the batch.
    pub records: u32,
    /// What an ack promises.
    pub promise: Promise,
    /// Before it was sent.
    pub asked_us: u64,
    /// After it had ended.
    pub answered_us: u64,
    /// How.
    pub outcome: ProduceOutcome,
    /// Epoch of the leader that acked, if known.
    pub leader_epoch: Option<u32>,
}

impl Produce {
    /// The tag of its `i`-th record.
    pub fn tag(&self, i: u32) -> RecordTag {
        RecordTag { producer: self.producer, sequence: self.sequence + u64::from(i) }
    }
}

/// One answered fetch of a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Where from.
    pub partition: PartitionKey,
    /// Who.
    pub consumer: u32,
    /// The offset asked for.
    pub from: u64,
    /// What the application got, below `from` left out.
    pub records: Vec<(u64, RecordTag)>,
    /// As told with it.
    pub high_watermark: u64,
    /// Of the leader that answered, if known.
    pub leader_epoch: Option<u32>,
    /// Before it was sent.
    pub asked_us: u64,
    /// After the answer had come.
    pub answered_us: u64,
}

/// Why a consumer moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveReason {
    /// It wanted to: its first position, a seek, a replay.
    Asked,
    /// Its offset is below the log start.
    BelowLogStart,
    /// It was told that the log was truncated by an unclean election.
    Truncated,
}

/// A consumer's position was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where.
    pub partition: PartitionKey,
    /// Who.
    pub consumer: u32,
    /// The offset that it reads next.
    pub to: u64,
    /// Why.
    pub reason: MoveReason,
}

/// An answered question for the latest offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latest {
    /// Of which partition.
    pub partition: PartitionKey,
    /// The answer.
    pub offset: u64,
    /// Of the leader that answered, if known.
    pub leader_epoch: Option<u32>,
    /// Before it was sent.
    pub asked_us: u64,
    /// After the answer had come.
    pub answered_us: u64,
}

/// Somebody acted as leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderSeen {
    /// Of which partition.
    pub partition: PartitionKey,
    /// In which epoch.
    pub epoch: u32,
    /// Which replica.
    pub replica: Rc<str>,
    /// Which start of its process.
    pub incarnation: u64,
}

/// The operator had a replica elected from outside the ISR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UncleanElection {
    /// Of which partition.
    pub partition: PartitionKey,
    /// The epoch that began with it.
    pub epoch: u32,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// See there.
    Produce(Produce),
    /// See there.
    Read(Read),
    /// See there.
    Move(Move),
    /// See there.
    Latest(Latest),
    /// See there.
    Leader(LeaderSeen),
    /// See there.
    Unclean(UncleanElection),
}

/// A record as a log holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its offset.
    pub offset: u64,
    /// Epoch of the leader that appended it.
    pub leader_epoch: u32,
    /// What it is.
    pub tag: RecordTag,
}

/// One replica's log at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalReplica {
    /// Which.
    pub name: String,
    /// Its first offset.
    pub log_start: u64,
    /// All its records.
    pub records: Vec<Stored>,
}

/// One partition at the end, after all faults were healed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalPartition {
    /// Which.
    pub partition: PartitionKey,
    /// First offset that can be read.
    pub log_start: u64,
    /// Highest log start that somebody asked for (deletion of records); `None`: retention may have removed any.
    pub log_start_max: Option<u64>,
    /// Exclusive end of what is committed.
    pub high_watermark: u64,
    /// All that can be read.
    pub records: Vec<Stored>,
    /// What the replicas hold, if that could be seen.
    pub replicas: Vec<FinalReplica>,
}

/// All of it. Partitions that are not among the final ones (deleted topics) are checked as far as reads go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// In the order in which they were noted: of one consumer in its own order.
    pub events: Vec<Event>,
    /// At the end.
    pub partitions: Vec<FinalPartition>,
}

impl History {
    pub(super) fn produces(&self) -> impl Iterator<Item = &Produce> {
        self.events.iter().filter_map(|event| match event {
            Event::Produce(produce) => Some(produce),
            _ => None,
        })
    }

    pub(super) fn reads(&self) -> impl Iterator<Item = &Read> {
        self.events.iter().filter_map(|event| match event {
            Event::Read(read) => Some(read),
            _ => None,
        })
    }

    pub(super) fn latest(&self) -> impl Iterator<Item = &Latest> {
        self.events.iter().filter_map(|event| match event {
            Event::Latest(latest) => Some(latest),
            _ => None,
        })
    }

    pub(super) fn leaders(&self) -> impl Iterator<Item = &LeaderSeen> {
        self.events.iter().filter_map(|event| match event {
            Event::Leader(seen) => Some(seen),
            _ => None,
        })
    }

    /// Epochs that began with an unclean election.
    pub(super) fn unclean(&self) -> impl Iterator<Item = &UncleanElection> {
        self.events.iter().filter_map(|event| match event {
            Event::Unclean(election) => Some(election),
            _ => None,
        })
    }
}
