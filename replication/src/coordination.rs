//! The coordination service as the cluster uses it: a small ordered store with versions, sessions and watches.
//!
//! Owns: the contract alone. The embedded store of a single node, ZooKeeper, and the simulated store implement it.
//! Invariant: a commit is all or nothing, and durable when it is answered. What it changed is also seen by
//! [`Coordination::next`], on every node, in the order of the commits.
//! Invariant: keys of a session that has expired are gone (ephemeral); nothing else depends on a session.
//! Not here: what is stored (`cluster/`), who decides (`controller/`), who talks to it (`agent/`).

use std::future::Future;
use std::rc::Rc;

/// A path such as `/partitions/<topic id>/3`: begins with a slash, no empty part, ASCII.
pub type Key = String;

/// What is stored under a key. At most 512 KiB (ZooKeeper's limit is 1 MiB a request).
pub type Value = Rc<[u8]>;

/// Grows with each change of one key; a key that was deleted and made again begins anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub i64);

/// One part of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The key must be there with this version; nothing is changed.
    Check {
        /// Which.
        key: Key,
        /// What the caller has seen.
        version: Version,
    },
    /// Makes a key that must not be there.
    Create {
        /// Which.
        key: Key,
        /// What to store.
        value: Value,
        /// Whether it goes when the session of this store ends.
        is_ephemeral: bool,
    },
    /// Replaces a value that has this version.
    Put {
        /// Which.
        key: Key,
        /// What to store.
        value: Value,
        /// What the caller has seen.
        version: Version,
    },
    /// Removes a key that has this version.
    Delete {
        /// Which.
        key: Key,
        /// What the caller has seen.
        version: Version,
    },
}

impl Op {
    /// The key that it is about.
    pub fn key(&self) -> &str {
        match self {
            Self::Check { key, .. }
            | Self::Create { key, .. }
            | Self::Put { key, .. }
            | Self::Delete { key, .. } => key,
        }
    }
}

/// Most parts of one commit: far below what one request of ZooKeeper may carry.
pub const OPS_MAX: usize = 500;

/// Why a commit is not known to have happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// One part did not fit what is stored: nothing was changed. Look at the newest state and decide again.
    #[error("{key} has changed meanwhile")]
    Conflict {
        /// The key of the first part that did not fit.
        key: Key,
    },
    /// The connection broke before the answer: it may or may not have happened. Wait for the next
    /// [`Event::State`] and look.
    #[error("the connection to the coordination service broke before the answer")]
    Unknown,
    /// There is no session now: nothing was changed.
    #[error("no session with the coordination service")]
    NoSession,
    /// The service refused for another reason; a person should look.
    #[error("the coordination service refused: {0}")]
    Refused(String),
}

/// One key and what is stored under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: Key,
    /// Its value.
    pub value: Value,
    /// Its version.
    pub version: Version,
}

/// What a store tells its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A session is there, and this is everything that is stored: replaces all that was known. Sent at the start and
    /// after each reconnection.
    State {
        /// Number of the session; another number than before: the old session has expired, its ephemeral keys with it.
        session: u64,
        /// Every key, sorted.
        entries: Vec<Entry>,
    },
    /// A key was made or changed.
    Changed(Entry),
    /// A key was removed.
    Removed {
        /// Which.
        key: Key,
    },
    /// The service does not answer. The session may live on: a [`Event::State`] follows if it comes back.
    Suspended,
    /// The session is gone for good. A new one is tried for; an [`Event::State`] follows.
    Expired,
}

/// A connection to the coordination service. Cheap to clone; all clones are one session.
pub trait Coordination: Clone + 'static {
    /// The next thing that happened. One caller at a time.
    ///
    /// Cancel: loses nothing.
    fn next(&self) -> impl Future<Output = Event>;

    /// Does all parts or none. Returns the new version of each part, in order (for a check the version seen, for a
    /// removal 0).
    ///
    /// Several may be under way; they take effect in the order of the calls.
    /// Durability: stored by a majority of the service before it is answered.
    fn commit(&self, ops: Vec<Op>) -> impl Future<Output = Result<Vec<Version>, CommitError>>;
}
