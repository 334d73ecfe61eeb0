//! What a verdict may say, with the values that a person needs to begin to look.

use super::history::PartitionKey;
use super::record::RecordTag;

/// Something that must never happen, and did.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Two observers got different records at one offset.
    #[error("{partition}: offset {offset} holds {first} ({first_by}) and {second} ({second_by})")]
    TwoValues {
        /// Where.
        partition: PartitionKey,
        /// At which offset.
        offset: u64,
        /// One.
        first: RecordTag,
        /// Who saw it.
        first_by: String,
        /// The other.
        second: RecordTag,
        /// Who saw it.
        second_by: String,
    },
    /// One record stands at two offsets.
    #[error("{partition}: {tag} stands at offsets {first} and {second}")]
    Repeated {
        /// Where.
        partition: PartitionKey,
        /// Which.
        tag: RecordTag,
        /// One offset.
        first: u64,
        /// The other.
        second: u64,
    },
    /// A record that nobody wrote there.
    #[error("{partition}: {tag} at offset {offset} was never sent there")]
    NeverSent {
        /// Where.
        partition: PartitionKey,
        /// Which.
        tag: RecordTag,
        /// At which offset.
        offset: u64,
    },
    /// A produce that was refused is in the log.
    #[error("{partition}: {tag} at offset {offset} was refused, and is there all the same")]
    RefusedButThere {
        /// Where.
        partition: PartitionKey,
        /// Which.
        tag: RecordTag,
        /// At which offset.
        offset: u64,
    },
    /// A batch is there in part.
    #[error(
        "{partition}: of the batch that begins with {first}, record {there} is there and {missing} is not"
    )]
    Half {
        /// Where.
        partition: PartitionKey,
        /// First record of the batch.
        first: RecordTag,
        /// One that is there.
        there: RecordTag,
        /// One that is not, at the offset where it belongs.
        missing: RecordTag,
    },
    /// An acked record is not at its offset.
    #[error("{partition}: {tag} was acked at offset {offset}, where now stands {found:?}")]
    Lost {
        /// Where.
        partition: PartitionKey,
        /// Which.
        tag: RecordTag,
        /// Its offset.
        offset: u64,
        /// What is there.
        found: Option<RecordTag>,
    },
    /// A consumer has read what is not in the log any more.
    #[error("{partition}: consumer {consumer} read {tag} at offset {offset}, where now stands {found:?}")]
    ReadButLost {
        /// Where.
        partition: PartitionKey,
        /// Who.
        consumer: u32,
        /// Which.
        tag: RecordTag,
        /// Its offset.
        offset: u64,
        /// What is there.
        found: Option<RecordTag>,
    },
    /// The final log has a gap, or an order that is none.
    #[error("{partition} ({who}): offset {found} follows where {expected} was expected")]
    Gap {
        /// Where.
        partition: PartitionKey,
        /// Whose log.
        who: String,
        /// The offset that should come.
        expected: u64,
        /// The one that came.
        found: u64,
    },
    /// Records are gone that nobody deleted.
    #[error("{partition}: the log starts at {log_start}, but nothing above {asked} was to be deleted")]
    DeletedTooMuch {
        /// Where.
        partition: PartitionKey,
        /// First offset left.
        log_start: u64,
        /// Highest offset that somebody asked for.
        asked: u64,
    },
    /// What came later stands before what was acked earlier, or two batches of one connection have changed places.
    #[error(
        "{partition}: {later} at offset {later_offset} was sent after {earlier}, which stands at {earlier_offset}"
    )]
    Reordered {
        /// Where.
        partition: PartitionKey,
        /// Sent or acked before.
        earlier: RecordTag,
        /// Its offset.
        earlier_offset: u64,
        /// Sent later.
        later: RecordTag,
        /// Its offset, lower.
        later_offset: u64,
    },
    /// A consumer got another offset than the next one.
    #[error("{partition}: consumer {consumer} got offset {found} where {expected} was next")]
    Skipped {
        /// Where.
        partition: PartitionKey,
        /// Who.
        consumer: u32,
        /// Next.
        expected: u64,
        /// Got.
        found: u64,
    },
    /// A consumer was given records at or above the high watermark that came with them.
    #[error("{partition}: consumer {consumer} got offset {offset} with high watermark {high_watermark}")]
    ReadUncommitted {
        /// Where.
        partition: PartitionKey,
        /// Who.
        consumer: u32,
        /// Highest offset got.
        offset: u64,
        /// As told.
        high_watermark: u64,
    },
    /// The high watermark of one leadership went back.
    #[error("{partition}: in epoch {epoch} the high watermark was {before}, later {after}")]
    HighWatermarkWentBack {
        /// Where.
        partition: PartitionKey,
        /// In which epoch.
        epoch: u32,
        /// Earlier.
        before: u64,
        /// Later.
        after: u64,
    },
    /// "Latest" was below what was known to be committed.
    #[error("{partition}: latest was {latest} in epoch {epoch:?}, although {committed} was committed before")]
    LatestWentBack {
        /// Where.
        partition: PartitionKey,
        /// In which epoch it was answered.
        epoch: Option<u32>,
        /// The answer.
        latest: u64,
        /// Exclusive end of what was committed before.
        committed: u64,
    },
    /// Two replicas led in one epoch.
    #[error("{partition}: epoch {epoch} was led by {first} and by {second}")]
    TwoLeaders {
        /// Where.
        partition: PartitionKey,
        /// In which epoch.
        epoch: u32,
        /// One, with its incarnation.
        first: String,
        /// The other.
        second: String,
    },
    /// A replica's log differs from what is committed.
    #[error("{partition}: replica {replica} holds {found:?} at offset {offset}, committed is {committed:?}")]
    ReplicasDiffer {
        /// Where.
        partition: PartitionKey,
        /// Which.
        replica: String,
        /// At which offset.
        offset: u64,
        /// Epoch and record there.
        found: Option<(u32, RecordTag)>,
        /// What readers get.
        committed: Option<(u32, RecordTag)>,
    },
}
