//! The coordination service as the cluster uses it: a small ordered store with versions, sessions and watches.
//!
//! Owns: the contract alone. The embedded store of a single node, ZooKeeper, and the simulated store implement it.
//! Invariant: a commit is all or nothing, and durable when it is answered. What it changed is also seen by
//! [`Coordination::next`], on every node, in the order of the commits.
//! Invariant: keys of a session that has expired are gone (ephemeral); nothing else depends on a session.
//! Not here: what is stored (`cluster/`), who decides (`controller/`), who talks to it (`agent/`).

#[cfg(feature = "conformance")]
pub mod conformance;

use std::future::Future;
use std::rc::Rc;

/// A path such as `/partitions/<topic id>/3`: begins with a slash, no empty part, printable ASCII. No key lies below
/// another one: what has a value has no children.
pub type Key = String;

/// What is stored under a key: 1 byte to [`VALUE_BYTES_MAX`]. Never empty: in ZooKeeper an empty znode is one that
/// exists for the sake of those below it, and is no key.
pub type Value = Rc<[u8]>;

/// Grows by one with each change of one key, from 0; a key that was deleted and made again begins anew.
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

    /// What it stores.
    pub fn value(&self) -> Option<&Value> {
        match self {
            Self::Create { value, .. } | Self::Put { value, .. } => Some(value),
            Self::Check { .. } | Self::Delete { .. } => None,
        }
    }
}

/// Most parts of one commit: far below what one request of ZooKeeper may carry.
pub const OPS_MAX: usize = 500;

/// Most bytes of one value.
pub const VALUE_BYTES_MAX: usize = 512 << 10;

/// Most bytes of one commit, as [`commit_bytes`] counts them: ZooKeeper takes requests below 1 MiB.
pub const COMMIT_BYTES_MAX: usize = 900 << 10;

/// What one part costs beside its key and its value: headers, access list, version.
const OP_BYTES: usize = 128;

/// Bytes that a commit takes in a request, rounded up.
pub fn commit_bytes(ops: &[Op]) -> usize {
    ops.iter().map(|op| OP_BYTES + op.key().len() + op.value().map_or(0, |value| value.len())).sum()
}

fn is_key(key: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && part.bytes().all(|byte| byte.is_ascii_graphic())
    };
    key.strip_prefix('/').is_some_and(|rest| rest.split('/').all(part))
}

/// Refuses what no store takes, so that all of them take the same.
///
/// Errors: [`CommitError::Refused`] with the limit that was passed.
pub fn check_limits(ops: &[Op]) -> Result<(), CommitError> {
    let refuse = |problem: String| Err(CommitError::Refused(problem));
    if ops.len() > OPS_MAX {
        return refuse(format!("{} parts in one commit; at most {OPS_MAX}", ops.len()));
    }
    let bytes = commit_bytes(ops);
    if bytes > COMMIT_BYTES_MAX {
        return refuse(format!("{bytes} bytes in one commit; at most {COMMIT_BYTES_MAX}"));
    }
    for op in ops {
        if !is_key(op.key()) {
            return refuse(format!("{:?} is not a key", op.key()));
        }
        if op.value().is_some_and(|value| value.is_empty() || value.len() > VALUE_BYTES_MAX) {
            return refuse(format!("{}: a value has 1 to {VALUE_BYTES_MAX} bytes", op.key()));
        }
    }
    Ok(())
}

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
    /// The parts are done one after the other: a later one sees what an earlier one did. Several commits may be under
    /// way; they take effect in the order of the calls (not of the polls). One that is called when there is no session
    /// yet, or while it is suspended, ends with [`CommitError::NoSession`].
    /// Cancel: the commit goes on; only its result is lost.
    /// Durability: stored by a majority of the service before it is answered.
    fn commit(&self, ops: Vec<Op>) -> impl Future<Output = Result<Vec<Version>, CommitError>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(op: Op) -> Option<String> {
        match check_limits(&[op]) {
            Err(CommitError::Refused(problem)) => Some(problem),
            Err(other) => panic!("{other}"),
            Ok(()) => None,
        }
    }

    fn put(key: &str, bytes: usize) -> Op {
        Op::Put { key: key.to_owned(), value: vec![7; bytes].into(), version: Version(0) }
    }

    #[test]
    fn what_no_store_takes_is_refused() {
        assert_eq!(refusal(put("/a/b-1_c", VALUE_BYTES_MAX)), None);
        for key in ["", "/", "a", "/a/", "/a//b", "/a b", "/.", "/a/..", "/\u{e9}"] {
            assert!(refusal(put(key, 1)).is_some_and(|problem| problem.contains("not a key")), "{key:?}");
        }
        for bytes in [0, VALUE_BYTES_MAX + 1] {
            assert!(refusal(put("/a", bytes)).is_some_and(|problem| problem.contains("/a: a value has")));
        }
        let check = Op::Check { key: "/a".to_owned(), version: Version(3) };
        assert_eq!(check_limits(&vec![check.clone(); OPS_MAX]), Ok(()));
        assert!(check_limits(&vec![check; OPS_MAX + 1]).is_err());
        assert!(check_limits(&[put("/a", VALUE_BYTES_MAX), put("/b", VALUE_BYTES_MAX)]).is_err());
    }
}
