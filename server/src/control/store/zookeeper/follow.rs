//! Follows what changes below the root while a session lasts.
//!
//! Owns: the one watch of this node (persistent and recursive), and from it the events, in their order.
//! Invariant: a watch says which znode has changed, not to what, and not when. What is told is therefore read: all
//! znodes that are known to have changed, again and again until nothing has changed during the last reading. A server
//! shows a change only after its watch event, so what was read is then the state of one moment, and it is told in the
//! order of the last changes. Several changes of one key in short succession are told as one.
//! Invariant: events stay in the client library until they are looked at, also while something is read; how many
//! changes wait here is bounded by the number of keys, because the next ones are read when the node has taken the last.
//! Crash story: the connection breaks, and changes go unseen until it is back. Then the watch is set and everything read
//! anew. (The client library, 0.11.2, sets other watches anew by itself, but forgets persistent ones.)
//! Source: ZooKeeper Programmer's Guide, "What ZooKeeper guarantees about watches"; ZOOKEEPER-4698 (persistent watches
//! miss what happens during a reconnection).

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use corelog_replication::coordination::Event;
use futures_util::FutureExt;
use zookeeper_client::{
    AddWatchMode, Client, CreateMode, Error, EventType, PersistentWatcher, SessionState, WatchedEvent,
};

use super::Shared;
use super::read::{read, read_all};
use super::tree::Znode;

/// Readings before what was read is told although more has changed meanwhile: two changes that follow each other
/// faster than a server answers, all the time, may then be told in the wrong order.
const READINGS_MAX: usize = 50;
/// Pause before a reading that failed is tried again.
const PAUSE: Duration = Duration::from_millis(300);

/// Why a session is followed no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// No server has answered for longer than a session lasts, or one says that it is gone.
    Lost,
    /// The store is closed.
    Closing,
}

/// Tells what there is and what changes, until the session is lost.
pub(super) async fn follow(shared: &Rc<Shared>, client: Client) -> Ended {
    let (client, watcher) = loop {
        match prepare(shared, &client).await {
            Ok(prepared) => break prepared,
            Err(_) if client.state().is_terminated() => return Ended::Lost,
            Err(error) => warn(shared, &error),
        }
        tokio::time::sleep(PAUSE).await;
    };
    let mut follower = Follower {
        shared,
        client,
        watcher,
        dirty: HashMap::new(),
        events: 0,
        is_connected: true,
        is_watching: true,
        is_told: false,
        is_lost: false,
    };
    follower.run().await
}

fn warn(shared: &Shared, error: &Error) {
    let root = &shared.options.root;
    match error {
        Error::NoAuth | Error::InvalidAcl => tracing::warn!(
            root, %error,
            "ZooKeeper does not let us use the root: all nodes need the same zookeeper.user and password, the root must be \
             theirs; trying on"
        ),
        Error::Unimplemented => {
            tracing::warn!(root, %error, "ZooKeeper is too old: 3.6 or newer is needed; trying on");
        }
        // The connection broke; that is told as such.
        _ => tracing::debug!(root, %error, "cannot read from ZooKeeper"),
    }
}

/// Makes the root if it is not there and watches it.
async fn prepare(shared: &Shared, client: &Client) -> Result<(Client, PersistentWatcher), Error> {
    let root = &shared.options.root;
    if client.check_stat(root).await?.is_none() {
        client.mkdir(root, &CreateMode::Persistent.with_acls(shared.options.acls())).await?;
    }
    let client = client.clone().chroot(root).map_err(|_| Error::BadArguments(&"the root is no path"))?;
    let watcher = client.watch("/", AddWatchMode::PersistentRecursive).await?;
    Ok((client, watcher))
}

struct Follower<'a> {
    shared: &'a Rc<Shared>,
    client: Client,
    watcher: PersistentWatcher,
    /// Znodes that have changed since they were read, with the number of the last event about each.
    dirty: HashMap<String, u64>,
    events: u64,
    is_connected: bool,
    /// Whether the server has our watch.
    is_watching: bool,
    /// Whether the node knows everything but what is dirty.
    is_told: bool,
    is_lost: bool,
}

impl Follower<'_> {
    async fn run(&mut self) -> Ended {
        while !self.is_lost {
            if self.is_connected && !self.is_told {
                let told = self.tell_everything().await;
                self.after(told).await;
                continue;
            }
            let shared = self.shared;
            let has_changes = self.is_told && !self.dirty.is_empty();
            let event = tokio::select! {
                biased;
                event = self.watcher.changed() => Some(event),
                () = shared.outbox.drained(), if has_changes => None,
            };
            match event {
                Some(event) => self.see(event),
                None => {
                    let told = self.tell_changes().await;
                    self.after(told).await;
                }
            }
        }
        Ended::Lost
    }

    /// What was not told because of a failure is told with everything else, later.
    async fn after(&mut self, told: Result<(), Error>) {
        let Err(error) = told else { return };
        self.is_told = false;
        self.shared.ready.borrow_mut().take();
        if self.is_connected {
            warn(self.shared, &error);
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn see(&mut self, event: WatchedEvent) {
        match event.event_type {
            EventType::Session => self.see_state(event.session_state),
            EventType::NodeCreated | EventType::NodeDeleted | EventType::NodeDataChanged => {
                if event.path != "/" && !event.path.is_empty() {
                    self.events += 1;
                    self.dirty.insert(event.path, self.events);
                }
            }
            // A recursive watch does not send it: each child has an event of its own.
            EventType::NodeChildrenChanged => {}
        }
    }

    fn see_state(&mut self, state: SessionState) {
        if state == SessionState::SyncConnected {
            self.is_connected = true;
            return;
        }
        self.is_lost = state.is_terminated();
        if std::mem::replace(&mut self.is_connected, false) {
            tracing::warn!("the connection to ZooKeeper is lost; trying to get it back");
            self.is_watching = false;
            self.is_told = false;
            self.shared.ready.borrow_mut().take();
            self.shared.outbox.push(Event::Suspended);
        }
    }

    /// Looks at the events that are there.
    ///
    /// Errors: the connection is lost.
    fn see_all(&mut self) -> Result<(), Error> {
        while !self.is_lost {
            match self.watcher.changed().now_or_never() {
                Some(event) => self.see(event),
                None => break,
            }
        }
        if self.is_connected { Ok(()) } else { Err(Error::ConnectionLoss) }
    }

    /// Waits for a reading, while it looks at the events; then no event before the reading is left.
    ///
    /// Errors: also as soon as the connection is lost, because what is asked then waits for the next one.
    async fn reading<T>(&mut self, reading: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let mut reading = pin!(reading);
        let read = loop {
            tokio::select! {
                biased;
                event = self.watcher.changed() => self.see(event),
                read = &mut reading => break read?,
            }
            if !self.is_connected {
                return Err(Error::ConnectionLoss);
            }
        };
        self.see_all()?;
        Ok(read)
    }

    async fn tell_everything(&mut self) -> Result<(), Error> {
        let client = self.client.clone();
        if !self.is_watching {
            self.watcher = self.reading(client.watch("/", AddWatchMode::PersistentRecursive)).await?;
            self.is_watching = true;
        }
        self.dirty.clear();
        // Whatever became of commits that were never answered has been decided by now, and is seen.
        self.reading(client.sync("/")).await?;
        let mut znodes = self.reading(read_all(&client)).await?;
        for (path, _, znode) in self.read_changes(&client).await? {
            match znode {
                Some(znode) => znodes.insert(path, znode),
                None => znodes.remove(&path),
            };
        }
        let entries = self.shared.tree.borrow_mut().replace(znodes);
        let session = u64::from_ne_bytes(client.session_id().0.to_ne_bytes());
        tracing::info!(keys = entries.len(), "everything has been read from ZooKeeper");
        self.shared.outbox.push(Event::State { session, entries });
        *self.shared.ready.borrow_mut() = Some(client);
        self.is_told = true;
        Ok(())
    }

    async fn tell_changes(&mut self) -> Result<(), Error> {
        let client = self.client.clone();
        let mut changes = self.read_changes(&client).await?;
        changes.sort_by_key(|(_, event, _)| *event);
        for (path, _, znode) in changes {
            let event = self.shared.tree.borrow_mut().update(path, znode);
            if let Some(event) = event {
                self.shared.outbox.push(event);
            }
        }
        Ok(())
    }

    /// Reads what has changed, until nothing has changed during the last reading: path, last event, what is there.
    async fn read_changes(&mut self, client: &Client) -> Result<Vec<(String, u64, Option<Znode>)>, Error> {
        let mut changes: BTreeMap<String, (u64, Option<Znode>)> = BTreeMap::new();
        for _ in 0..READINGS_MAX {
            self.see_all()?;
            if self.dirty.is_empty() {
                break;
            }
            let (paths, events): (Vec<String>, Vec<u64>) =
                std::mem::take(&mut self.dirty).into_iter().unzip();
            let znodes = self.reading(read(client, &paths)).await?;
            for ((path, event), znode) in paths.into_iter().zip(events).zip(znodes) {
                changes.insert(path, (event, znode));
            }
        }
        Ok(changes.into_iter().map(|(path, (event, znode))| (path, event, znode)).collect())
    }
}
