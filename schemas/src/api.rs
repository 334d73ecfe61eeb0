//! Numbers that name things on the wire: requests, protocol versions, features.
//!
//! Invariant: a number, once released, keeps its meaning.

/// The protocol version that this code speaks best.
pub const PROTOCOL_VERSION: u16 = 1;

/// The oldest protocol version that this code still speaks.
pub const PROTOCOL_VERSION_MIN: u16 = 1;

const _: () = assert!(PROTOCOL_VERSION_MIN <= PROTOCOL_VERSION);

macro_rules! apis {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// A kind of request; a response carries the same number, or 0 if the request failed as a whole.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Api { $($(#[$doc])* $name = $number,)* }

        impl Api {
            /// All of them, in order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The number in the frame.
            pub const fn number(self) -> u16 {
                self as u16
            }

            /// The request with that number, if this code knows it.
            pub const fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Its name in logs and metrics.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

apis! {
    /// Agree on a protocol version; first on every connection.
    Handshake = 1,
    /// Append record batches.
    Produce = 2,
    /// Read record batches.
    Fetch = 3,
    /// Find shards and partitions.
    Metadata = 4,
    /// Find offsets by time, the first and the last.
    ListOffsets = 5,
    /// Create topics.
    CreateTopics = 6,
    /// Delete topics.
    DeleteTopics = 7,
    /// Name all topics.
    ListTopics = 8,
    /// Show topics with options and partitions.
    DescribeTopics = 9,
    /// Change options of a topic.
    AlterTopicOptions = 10,
    /// Add partitions to a topic.
    CreatePartitions = 11,
    /// Move the log start offset up.
    DeleteRecords = 12,
    /// Show a node's shards, load and disks.
    DescribeNode = 13,
    /// Show the nodes, and what is not well.
    DescribeCluster = 14,
    /// Take leadership off a node, or let it have some again.
    DrainNode = 15,
    /// Forget a node that does not come back.
    ForgetNode = 16,
    /// Give a partition another replica.
    AddReplica = 17,
    /// Take a replica away.
    RemoveReplica = 18,
    /// Change the number of replicas of a topic.
    SetReplicas = 19,
    /// Let the preferred leader lead, or one that lacks records.
    ElectLeaders = 20,
}

/// The number of a response to a request that failed as a whole.
pub const API_ERROR: u16 = 0;

/// Optional features, agreed on in the handshake: what both sides know may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// None yet: version 1 has no options.
    pub const SUPPORTED: Self = Self(0);

    /// What both sides know.
    #[must_use]
    pub fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}
