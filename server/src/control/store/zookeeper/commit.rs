//! A commit as a multi of ZooKeeper.
//!
//! Owns: the translation, and what an answer means.
//! Invariant: whatever is not known to have been refused is unknown. A state follows: an answer is missing only because
//! the connection broke.

use std::rc::Rc;

use corelog_replication::coordination::{CommitError, Op, Version, check_limits};
use futures_util::future::join_all;
use zookeeper_client::{Acls, Client, CreateMode, Error, MultiWriteError, MultiWriteResult, MultiWriter};

use super::Shared;

/// Most commits without an answer. More are refused.
const UNDER_WAY_MAX: usize = 1024;
/// How often a commit is sent anew because a parent was swept away just then.
const ATTEMPTS: usize = 5;

/// Counts a commit as under way.
struct UnderWay(Rc<Shared>);

impl UnderWay {
    fn begin(shared: &Rc<Shared>) -> Result<Self, CommitError> {
        let count = shared.under_way.get();
        if count >= UNDER_WAY_MAX {
            return Err(CommitError::Refused(format!("{count} commits are under way; try again")));
        }
        shared.under_way.set(count + 1);
        Ok(Self(shared.clone()))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
    }
}

/// What became of one try.
enum Outcome {
    Done(Result<Vec<Version>, CommitError>),
    /// A parent is not there, though it was when we looked.
    ParentGone,
}

/// Sends a commit at the first poll and waits for the answer.
pub(super) async fn commit(shared: Rc<Shared>, ops: Vec<Op>) -> Result<Vec<Version>, CommitError> {
    check_limits(&ops)?;
    let client = shared.ready.borrow().clone().ok_or(CommitError::NoSession)?;
    let _under_way = UnderWay::begin(&shared)?;
    for attempt in 1..=ATTEMPTS {
        if attempt > 1 {
            shared.tree.borrow_mut().forget_parents(&ops);
        }
        let missing = shared.tree.borrow_mut().missing_parents(&ops);
        let emptied = shared.tree.borrow_mut().emptied_parents(&ops);
        let parents = Parents { missing: &missing, emptied: &emptied };
        match send(&client, shared.options.acls(), &ops, parents).await {
            Outcome::Done(result) => return result,
            Outcome::ParentGone => {}
        }
    }
    Err(CommitError::Refused("a parent of its keys is removed again and again".to_owned()))
}

struct Parents<'a> {
    missing: &'a [String],
    emptied: &'a [String],
}

/// Sends everything before it waits for anything.
async fn send(client: &Client, acls: Acls<'static>, ops: &[Op], parents: Parents<'_>) -> Outcome {
    let persistent = CreateMode::Persistent.with_acls(acls);
    let made: Vec<_> = parents.missing.iter().map(|path| client.create(path, b"", &persistent)).collect();
    let mut writer = client.new_multi_writer();
    if let Err(error) = ops.iter().try_for_each(|op| add(&mut writer, op, acls)) {
        return Outcome::Done(Err(CommitError::Refused(error.to_string())));
    }
    let answer = writer.commit();
    // One that has got another child meanwhile stays: the server refuses. Nobody needs the answer.
    parents.emptied.iter().for_each(|path| drop(client.delete(path, None)));
    for made in join_all(made).await {
        match made {
            Ok(_) | Err(Error::NodeExists | Error::NoNode) => {}
            // The multi fails for the lack of it, and tells less.
            Err(error) => return Outcome::Done(Err(failure(&error))),
        }
    }
    match answer.await {
        Ok(results) => Outcome::Done(Ok(versions(ops, &results))),
        Err(MultiWriteError::OperationFailed { index, source }) => part_failed(ops, index, &source),
        Err(MultiWriteError::RequestFailed { source }) => Outcome::Done(Err(failure(&source))),
    }
}

/// Versions of a part are 32 bits wide in ZooKeeper; one that is not cannot be there.
fn version_of(version: Version) -> Result<i32, Error> {
    // A negative one would mean any version.
    i32::try_from(version.0).ok().filter(|version| *version >= 0).ok_or(Error::BadVersion)
}

fn add(writer: &mut MultiWriter<'_>, op: &Op, acls: Acls<'static>) -> Result<(), Error> {
    match op {
        Op::Check { key, version } => writer.add_check_version(key, version_of(*version)?),
        Op::Create { key, value, is_ephemeral } => {
            let mode = if *is_ephemeral { CreateMode::Ephemeral } else { CreateMode::Persistent };
            writer.add_create(key, value, &mode.with_acls(acls))
        }
        Op::Put { key, value, version } => writer.add_set_data(key, value, Some(version_of(*version)?)),
        Op::Delete { key, version } => writer.add_delete(key, Some(version_of(*version)?)),
    }
}

fn versions(ops: &[Op], results: &[MultiWriteResult]) -> Vec<Version> {
    let version = |(op, result): (&Op, &MultiWriteResult)| match (op, result) {
        (Op::Check { version, .. }, _) => *version,
        (_, MultiWriteResult::SetData { stat }) => Version(stat.version.into()),
        _ => Version(0),
    };
    ops.iter().zip(results).map(version).collect()
}

fn part_failed(ops: &[Op], index: usize, error: &Error) -> Outcome {
    let Some(op) = ops.get(index) else { return Outcome::Done(Err(failure(error))) };
    match (op, error) {
        (Op::Create { .. }, Error::NoNode) => Outcome::ParentGone,
        (_, Error::NoNode | Error::NodeExists | Error::BadVersion) => {
            Outcome::Done(Err(CommitError::Conflict { key: op.key().to_owned() }))
        }
        (_, Error::SessionMoved) => Outcome::Done(Err(CommitError::NoSession)),
        // The server has judged it, so nothing was changed.
        _ => Outcome::Done(Err(CommitError::Refused(format!("{}: {}", op.key(), explain(error))))),
    }
}

fn explain(error: &Error) -> String {
    match error {
        Error::NoAuth | Error::InvalidAcl => format!(
            "{error}; all nodes must use the same zookeeper.user and password, and the root must be theirs"
        ),
        _ => error.to_string(),
    }
}

/// What a request without an answer of its own came to.
fn failure(error: &Error) -> CommitError {
    match error {
        Error::NoAuth
        | Error::InvalidAcl
        | Error::BadArguments(_)
        | Error::NoChildrenForEphemerals
        | Error::NotReadOnly
        | Error::QuotaExceeded
        | Error::Throttled
        | Error::MarshallingError
        | Error::Unimplemented => CommitError::Refused(explain(error)),
        _ => CommitError::Unknown,
    }
}
