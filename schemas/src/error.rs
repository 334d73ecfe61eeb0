//! Every way to fail that the wire knows.
//!
//! Owns: the code's number (the same as in `common.fbs`; a test compares), whether a retry can help, and one
//! sentence for a person. The specific message travels beside the code in [`Failure`].

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $retriable:literal, $text:literal;)*) => {
        /// Why something failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum ErrorCode { $($(#[$doc])* $name = $number,)* }

        impl ErrorCode {
            /// All of them, in order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The number on the wire. 0 there means: no error.
            pub const fn number(self) -> u16 {
                self as u16
            }

            /// The code with that number. `None` for 0; [`ErrorCode::Unknown`] for what a newer peer has invented.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number {
                    0 => None,
                    $($number => Some(Self::$name),)*
                    _ => Some(Self::Unknown),
                }
            }

            /// Whether the same request, sent again (after a refresh of the metadata where the code says so), may
            /// succeed without anybody changing anything.
            pub const fn is_retriable(self) -> bool {
                match self { $(Self::$name => $retriable,)* }
            }

            /// One sentence for a person.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Its name, as in the schema.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }
    };
}

error_codes! {
    /// A fault of the server that has no code of its own; its log says more.
    Unknown = 1, false, "the server failed in an unexpected way; see its log";
    /// The bytes are not a frame of this protocol. The connection is closed after this.
    CorruptFrame = 2, false, "the bytes are not a valid frame of this protocol";
    /// The frame is larger than the handshake allows. The connection is closed after this.
    FrameTooLarge = 3, false, "the frame is larger than the server allows";
    /// The server does not know this request: it is older than the client.
    UnsupportedApi = 4, false, "the server does not know this request";
    /// Client and server have no protocol version in common.
    UnsupportedVersion = 5, false, "client and server have no protocol version in common";
    /// Something else came before the handshake. The connection is closed after this.
    HandshakeRequired = 6, false, "a connection begins with a handshake";
    /// The request can be read, but what it says makes no sense.
    InvalidRequest = 7, false, "the request contradicts itself or leaves something out";
    /// The principal may not do this.
    NotAuthorized = 8, false, "not allowed to do this";
    /// A limit of the server is reached; wait, then try again.
    Overloaded = 9, true, "the server is at a limit; try again later";
    /// The node is stopping; look for another one or wait for its return.
    ShuttingDown = 10, true, "the node is stopping";
    /// It took longer than the request allows. A produce may have happened nevertheless.
    RequestTimedOut = 11, true, "it took longer than the request allows";
    /// The records of a produce have their place in the leader's log, but the ack that was asked for does not come: it
    /// leads no more, or too few replicas are in sync. They may be kept or lost; refresh the metadata.
    Unacked = 12, true, "appended, but not acked: the records may be kept or lost";
    /// No such topic or partition here; refresh the metadata.
    UnknownTopicOrPartition = 20, true, "no such topic or partition";
    /// No topic has this id: deleted, or not known here yet. Refresh the metadata by name.
    UnknownTopicId = 21, true, "no topic has this id";
    /// The name is taken.
    TopicAlreadyExists = 22, false, "a topic of this name exists";
    /// The name breaks the rules for names.
    InvalidTopicName = 23, false, "not a valid topic name";
    /// Zero, too many, or fewer than there are.
    InvalidPartitionCount = 24, false, "not a valid number of partitions";
    /// Zero, or more than there are nodes.
    InvalidReplicationFactor = 25, false, "not a valid number of replicas";
    /// Unknown option, or a value out of its range.
    InvalidTopicOption = 26, false, "unknown topic option, or not a valid value";
    /// Another shard or node leads this partition; refresh the metadata.
    NotLeader = 30, true, "this node does not lead the partition";
    /// The request names an older epoch than the leader's; refresh the metadata.
    FencedLeaderEpoch = 31, true, "the leader's epoch is newer than the request's";
    /// The request names a newer epoch than the leader's: it will know soon.
    UnknownLeaderEpoch = 32, true, "the leader's epoch is older than the request's";
    /// The data directory of the partition has failed.
    PartitionOffline = 33, true, "the partition is offline";
    /// Fewer in-sync replicas than `min_insync_replicas`.
    NotEnoughReplicas = 34, true, "not enough in-sync replicas";
    /// A record batch failed its checksum on arrival; send it again.
    CorruptBatch = 40, true, "a record batch failed its checksum";
    /// A record batch breaks the rules of its format.
    InvalidBatch = 41, false, "not a valid record batch";
    /// Larger than `batch_bytes_max` of the topic.
    BatchTooLarge = 42, false, "the record batch is larger than the topic allows";
    /// The codec is not known.
    UnsupportedCompression = 43, false, "the compression of the record batch is not supported";
    /// Too far in the future.
    InvalidTimestamp = 44, false, "the timestamps of the record batch are out of range";
    /// Not -1, 0 or 1.
    InvalidAcks = 45, false, "acks must be -1 (all), 0 or 1";
    /// A batch of an idempotent producer came before the one in front of it, or is too old to be remembered; send what
    /// is in flight again, in order.
    OutOfOrderSequence = 46, true, "a batch of the idempotent producer is missing before this one";
    /// Another instance of the idempotent producer has taken over; stop.
    FencedProducer = 47, false, "a newer instance of this producer has taken over";
    /// Below the log start offset or beyond the log end offset: seek.
    OffsetOutOfRange = 50, false, "the offset is outside the log";
    /// Bytes on the leader's disk failed their checksum.
    CorruptData = 51, false, "the data at this offset is damaged on disk";
    /// Free space is below the watermark; produce is refused until there is more.
    DiskFull = 60, true, "the disk is full";
    /// A write or sync failed: this log takes no appends until it is opened again.
    StorageFailed = 61, true, "the storage of the partition has failed";
    /// The metadata store does not answer now.
    MetadataUnavailable = 70, true, "the metadata store is not available";
    /// No node has this number, or it does not run where it has to.
    UnknownNode = 71, false, "no such node, or it does not run";
    /// There is such a replica, there is none, or the partition cannot do without it.
    InvalidReplica = 72, false, "not a replica that can be added or removed";
    /// The replica may not lead, or need not be forced to.
    ElectionRefused = 73, false, "the election was refused";
}

/// A code and what happened in this case, for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} ({}): {}", .code.text(), .code.name(), .message)]
pub struct Failure {
    /// For programs.
    pub code: ErrorCode,
    /// For people; its wording may change.
    pub message: String,
}

impl Failure {
    /// A failure with its own words.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<ErrorCode> for Failure {
    /// A failure in the code's own words.
    fn from(code: ErrorCode) -> Self {
        Self { code, message: code.text().to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::ErrorCode;
    use crate::generated::corelog::wire;

    #[test]
    #[allow(deprecated)]
    fn codes_are_those_of_the_schema() {
        let schema: Vec<(u16, &str)> =
            wire::ENUM_VALUES_ERROR_CODE.iter().map(|c| (c.0, c.variant_name().unwrap())).collect();
        let ours: Vec<(u16, &str)> = ErrorCode::ALL.iter().map(|c| (c.number(), c.name())).collect();
        assert_eq!(schema[0], (0, "None"));
        assert_eq!(schema[1..], ours[..]);
    }

    #[test]
    fn numbers_come_back_and_unknown_ones_are_unknown() {
        for &code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_number(code.number()), Some(code));
        }
        assert_eq!(ErrorCode::from_number(0), None);
        assert_eq!(ErrorCode::from_number(65_000), Some(ErrorCode::Unknown));
    }
}
