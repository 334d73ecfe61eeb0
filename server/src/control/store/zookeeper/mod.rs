//! The coordination service of a cluster: ZooKeeper.
//!
//! Owns: one session of this node and what it has seen. A key is a znode below a root that the operator chooses, its
//! value the znode's data, its version the znode's. Znodes without data are there for the sake of those below them and
//! are no keys; they come with the first key below them and go with the last.
//! Invariant: what the node is told is what a server showed at one moment, and later moments follow in order
//! (`follow.rs`). A session counts as expired when a server says so, never because nobody answered.
//! Invariant: a commit is one multi. Commits reach a server in the order of the calls (`commit.rs`).
//! Crash story: the process dies: its session, and its ephemeral keys with it, go after the session timeout. A clean
//! stop ends the session at once ([`ZookeeperStore::close`]).
//! Not here: what is stored, and who decides.

mod commit;
mod follow;
mod options;
mod read;
mod session;
mod tree;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use corelog_replication::coordination::{CommitError, Coordination, Event, Op, Version};
use tokio::sync::Notify;
use zookeeper_client::{Client, Connector};

pub use options::{
    Secret, TlsIdentityFiles, ZookeeperAuth, ZookeeperOptions, ZookeeperOptionsError, ZookeeperTls,
};

use super::outbox::Outbox;
use tree::Tree;

/// How long a clean stop waits for the servers to confirm the end of the session.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// The store. Runs on the control thread: a tokio `LocalSet`. Clones are one session, which ends with the last one.
#[derive(Clone)]
pub struct ZookeeperStore {
    handle: Rc<Handle>,
}

struct Handle {
    shared: Rc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

/// What the session's task and the commits share.
struct Shared {
    options: ZookeeperOptions,
    connector: Connector,
    outbox: Outbox,
    /// The session as commits may use it: from the state that was told until it is suspended.
    ready: RefCell<Option<Client>>,
    tree: RefCell<Tree>,
    /// Commits without an answer yet.
    under_way: Cell<usize>,
    is_closing: Cell<bool>,
    closing: Notify,
    closed: Notify,
}

impl ZookeeperStore {
    /// Begins to connect, and goes on trying until [`Self::close`].
    ///
    /// Errors: what is wrong with the options. That no server answers is none: it is logged, and tried again.
    /// Panics: outside of a tokio `LocalSet`.
    pub fn open(options: ZookeeperOptions) -> Result<Self, ZookeeperOptionsError> {
        let connector = options.connector()?;
        let shared = Rc::new(Shared {
            options,
            connector,
            outbox: Outbox::default(),
            ready: RefCell::default(),
            tree: RefCell::default(),
            under_way: Cell::new(0),
            is_closing: Cell::new(false),
            closing: Notify::new(),
            closed: Notify::new(),
        });
        let task = tokio::task::spawn_local(session::run(shared.clone()));
        Ok(Self { handle: Rc::new(Handle { shared, task }) })
    }

    /// Ends the session, so that its ephemeral keys go now. Later commits end with [`CommitError::NoSession`].
    pub async fn close(&self) {
        let shared = &self.handle.shared;
        shared.ready.borrow_mut().take();
        shared.is_closing.set(true);
        shared.closing.notify_one();
        if tokio::time::timeout(CLOSE_PATIENCE, shared.closed.notified()).await.is_err() {
            tracing::warn!("ZooKeeper has not confirmed the end of the session; it ends after its timeout");
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Committing = Pin<Box<dyn Future<Output = Result<Vec<Version>, CommitError>>>>;

/// A commit that has been sent.
enum Begun {
    Done(Result<Vec<Version>, CommitError>),
    Sent(Committing),
}

fn begin(shared: &Rc<Shared>, ops: Vec<Op>) -> Begun {
    let mut committing: Committing = Box::pin(commit::commit(shared.clone(), ops));
    // The first poll sends it: calls are in order, polls of their results need not be. The one who waits polls again.
    match committing.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Begun::Done(result),
        Poll::Pending => Begun::Sent(committing),
    }
}

impl Coordination for ZookeeperStore {
    async fn next(&self) -> Event {
        self.handle.shared.outbox.next().await
    }

    fn commit(&self, ops: Vec<Op>) -> impl Future<Output = Result<Vec<Version>, CommitError>> {
        let begun = begin(&self.handle.shared, ops);
        async move {
            match begun {
                Begun::Done(result) => result,
                Begun::Sent(committing) => committing.await,
            }
        }
    }
}
