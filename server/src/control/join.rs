//! How a node finds its cluster, or founds one, before anything else is done.
//!
//! Owns: the picture of the store before the agent has one, and the decision what to do about the cluster's identity.
//! Invariant: a data directory is never served under another cluster's identity than its own.
//! Invariant: a cluster is founded in one commit, in an empty place; a node that finds the place half full waits, because
//! another node is carrying its metadata over (`grow.rs`).
//! Crash story: killed between the founding and the making of the data directories, the next start finds a cluster and
//! empty directories, and joins.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use corelog_replication::cluster::keys::{CLUSTER, CONTROLLER_EPOCH};
use corelog_replication::cluster::{ClusterRecord, ControllerEpoch, Stored};
use corelog_replication::coordination::{CommitError, Coordination, Entry, Event, Key, Op, Version};

use super::grow::{self, GrowError};

/// Format of everything that is stored beside `/cluster`.
pub const CLUSTER_FORMAT: u32 = 1;

/// How often a node that waits says so.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a node cannot be part of the cluster that it was pointed at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Its data are another cluster's.
    #[error(
        "the data directories of this node belong to cluster {expected}, and the coordination service holds cluster {found}; look at zookeeper.connect and zookeeper.root, or give this node empty data directories"
    )]
    OtherCluster {
        /// What the store says.
        found: String,
        /// What the data directories say.
        expected: String,
    },
    /// The store has nothing of the cluster that the data belong to.
    #[error(
        "the data directories of this node belong to cluster {cluster_id}, of which the coordination service knows nothing; look at zookeeper.connect and zookeeper.root: if they are right, its metadata have been lost and must be restored"
    )]
    MetadataLost {
        /// What the data directories say.
        cluster_id: String,
    },
    /// Written by a newer version.
    #[error(
        "the cluster's metadata have format {found}, and this version of corelog knows formats up to {CLUSTER_FORMAT}; run the newer version"
    )]
    NewerFormat {
        /// Theirs.
        found: u32,
    },
    /// The identity makes no sense.
    #[error("{CLUSTER} in the coordination service is damaged: {problem}; restore it")]
    Damaged {
        /// Why.
        problem: String,
    },
    /// The metadata of this node cannot be carried over.
    #[error("cannot carry the metadata of this node over: {0}")]
    Grow(#[from] GrowError),
    /// The store refused.
    #[error("the coordination service refused: {0}")]
    Refused(String),
}

/// Everything that is stored, as events tell.
#[derive(Debug, Default)]
struct View {
    session: Option<u64>,
    entries: BTreeMap<Key, Entry>,
}

impl View {
    fn apply(&mut self, event: Event) {
        match event {
            Event::State { session, entries } => {
                self.session = Some(session);
                self.entries = entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect();
            }
            Event::Changed(entry) => {
                self.entries.insert(entry.key.clone(), entry);
            }
            Event::Removed { key } => {
                self.entries.remove(&key);
            }
            Event::Suspended | Event::Expired => self.session = None,
        }
    }
}

/// What a node brings along.
#[derive(Clone, Debug)]
pub struct Newcomer {
    /// The cluster that its data directories name, if any of them does.
    pub cluster_id: Option<String>,
    /// Contents of its embedded store, if it is to be carried over.
    pub source: Option<Vec<Entry>>,
    /// Whether this store is the embedded one: empty is then no reason for alarm, the start has looked already.
    pub is_embedded: bool,
    /// Identity of the cluster if this node founds it.
    pub new_cluster_id: String,
}

/// How far the embedded store has been carried over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seal {
    /// All of it is there but the cluster's identity: no start may serve from it any more, one may go on carrying.
    Moving,
    /// The cluster has it all: it is of no more use.
    Done,
}

/// What is to be done next about the cluster's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// All is there.
    Done(String),
    /// One commit.
    Commit(Vec<Op>),
    /// All but `/cluster` was carried over: put the embedded store aside, then commit.
    Seal(Vec<Op>),
    /// Another node is at it.
    Wait,
}

/// The next step. Pure.
fn step(newcomer: &Newcomer, there: &BTreeMap<Key, Entry>) -> Result<Step, JoinError> {
    let create = |key: String, value| Op::Create { key, value, is_ephemeral: false };
    let found = |cluster_id: &str| {
        let record = ClusterRecord { cluster_id: cluster_id.to_owned(), format: CLUSTER_FORMAT };
        create(CLUSTER.to_owned(), record.encode())
    };
    if let Some(entry) = there.get(CLUSTER) {
        let record = ClusterRecord::decode(&entry.value)
            .map_err(|error| JoinError::Damaged { problem: error.to_string() })?;
        if record.format > CLUSTER_FORMAT {
            return Err(JoinError::NewerFormat { found: record.format });
        }
        if let Some(expected) = newcomer.cluster_id.as_ref().filter(|ours| **ours != record.cluster_id) {
            return Err(JoinError::OtherCluster { found: record.cluster_id, expected: expected.clone() });
        }
        return Ok(Step::Done(record.cluster_id));
    }
    match (&newcomer.cluster_id, &newcomer.source) {
        (Some(cluster_id), Some(source)) => Ok(match grow::next_commit(source, there)? {
            Some(ops) => Step::Commit(ops),
            None => Step::Seal(vec![found(cluster_id)]),
        }),
        (Some(cluster_id), None) if !newcomer.is_embedded => {
            Err(JoinError::MetadataLost { cluster_id: cluster_id.clone() })
        }
        _ if !there.is_empty() && !newcomer.is_embedded => Ok(Step::Wait),
        (ours, _) => {
            let mut ops = vec![found(ours.as_ref().unwrap_or(&newcomer.new_cluster_id))];
            if !there.contains_key(CONTROLLER_EPOCH) {
                // Conflicts with a node that begins to carry its metadata over at the same moment.
                ops.push(create(CONTROLLER_EPOCH.to_owned(), ControllerEpoch(0).encode()));
            }
            Ok(Step::Commit(ops))
        }
    }
}

/// Finds or founds the cluster; returns its identity. Waits as long as the store does not answer.
///
/// `seal` puts the embedded store aside, durably, when its contents are being carried over.
pub async fn join<C: Coordination, E: From<JoinError>>(
    store: &Replayed<C>,
    newcomer: &Newcomer,
    seal: impl Fn(Seal) -> Result<(), E>,
) -> Result<String, E> {
    let mut view = View::default();
    let cluster_id = loop {
        let what = match view.session {
            None => "the coordination service",
            Some(_) => match step(newcomer, &view.entries)? {
                Step::Done(cluster_id) => {
                    if newcomer.source.is_some() {
                        seal(Seal::Done)?;
                    }
                    break cluster_id;
                }
                Step::Commit(ops) => {
                    commit(store, ops).await?;
                    "the coordination service to show what was stored"
                }
                Step::Seal(ops) => {
                    seal(Seal::Moving)?;
                    commit(store, ops).await?;
                    "the coordination service to show the cluster"
                }
                Step::Wait => "another node that is carrying its metadata over",
            },
        };
        absorb(store, &mut view, what).await;
    };
    store.replay(view.session, view.entries);
    Ok(cluster_id)
}

/// Whatever came of it shows in the next events.
async fn commit<C: Coordination>(store: &Replayed<C>, ops: Vec<Op>) -> Result<(), JoinError> {
    match store.commit(ops).await {
        Ok(_) | Err(CommitError::Conflict { .. } | CommitError::Unknown | CommitError::NoSession) => Ok(()),
        Err(CommitError::Refused(reason)) => Err(JoinError::Refused(reason)),
    }
}

/// Takes one event, and those that follow at once. What was committed has come back by then, or is decided upon again.
async fn absorb<C: Coordination>(store: &Replayed<C>, view: &mut View, what: &str) {
    loop {
        match tokio::time::timeout(PATIENCE, store.next()).await {
            Ok(event) => {
                view.apply(event);
                break;
            }
            Err(_) => tracing::warn!(waiting_for = what, "this node cannot start yet"),
        }
    }
    while let Ok(event) = tokio::time::timeout(Duration::from_millis(5), store.next()).await {
        view.apply(event);
    }
}

/// A store whose first event is the picture that was found before. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Replayed<C> {
    store: C,
    first: Rc<RefCell<Option<Event>>>,
}

impl<C> Replayed<C> {
    /// Passes everything on until told otherwise.
    pub fn new(store: C) -> Self {
        Self { store, first: Rc::default() }
    }

    /// What it passes on to.
    pub fn store(&self) -> &C {
        &self.store
    }

    fn replay(&self, session: Option<u64>, entries: BTreeMap<Key, Entry>) {
        let first = session.map(|session| Event::State { session, entries: entries.into_values().collect() });
        *self.first.borrow_mut() = first;
    }
}

impl<C: Coordination> Coordination for Replayed<C> {
    async fn next(&self) -> Event {
        let first = self.first.borrow_mut().take();
        match first {
            Some(event) => event,
            None => self.store.next().await,
        }
    }

    fn commit(&self, ops: Vec<Op>) -> impl Future<Output = Result<Vec<Version>, CommitError>> {
        self.store.commit(ops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newcomer(cluster_id: Option<&str>) -> Newcomer {
        Newcomer {
            cluster_id: cluster_id.map(str::to_owned),
            source: None,
            is_embedded: false,
            new_cluster_id: "new".to_owned(),
        }
    }

    fn entry(key: &str, value: &[u8]) -> (Key, Entry) {
        (key.to_owned(), Entry { key: key.to_owned(), value: value.into(), version: Version(0) })
    }

    fn cluster(id: &str, format: u32) -> BTreeMap<Key, Entry> {
        let record = ClusterRecord { cluster_id: id.to_owned(), format };
        BTreeMap::from([entry(CLUSTER, &record.encode())])
    }

    /// Keys of the commit that is due.
    fn keys(step: Result<Step, JoinError>) -> Vec<String> {
        match step {
            Ok(Step::Commit(ops) | Step::Seal(ops)) => ops.iter().map(|op| op.key().to_owned()).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_node_founds_a_cluster_in_an_empty_place() {
        assert_eq!(keys(step(&newcomer(None), &BTreeMap::new())), [CLUSTER, CONTROLLER_EPOCH]);
        let half = BTreeMap::from([entry(CONTROLLER_EPOCH, b"0")]);
        assert_eq!(step(&newcomer(None), &half), Ok(Step::Wait));
        // What an embedded store holds beside is its own.
        let embedded = Newcomer { is_embedded: true, ..newcomer(Some("a")) };
        assert_eq!(keys(step(&embedded, &half)), [CLUSTER]);
    }

    #[test]
    fn a_node_joins_its_own_cluster_alone() {
        let there = cluster("a", 1);
        for ours in [None, Some("a")] {
            assert_eq!(step(&newcomer(ours), &there), Ok(Step::Done("a".to_owned())));
        }
        let other = JoinError::OtherCluster { found: "a".to_owned(), expected: "b".to_owned() };
        assert_eq!(step(&newcomer(Some("b")), &there), Err(other));
        assert_eq!(step(&newcomer(None), &cluster("a", 2)), Err(JoinError::NewerFormat { found: 2 }));
        let lost = JoinError::MetadataLost { cluster_id: "b".to_owned() };
        assert_eq!(step(&newcomer(Some("b")), &BTreeMap::new()), Err(lost));
        let broken = BTreeMap::from([entry(CLUSTER, b"{")]);
        assert!(matches!(step(&newcomer(None), &broken), Err(JoinError::Damaged { .. })));
    }

    #[test]
    fn a_single_node_brings_its_metadata_and_writes_the_cluster_last() {
        let source: Vec<Entry> = [entry(CONTROLLER_EPOCH, b"4"), entry("/names/a", b"t")]
            .into_iter()
            .map(|(_, entry)| entry)
            .collect();
        let growing = Newcomer { source: Some(source), ..newcomer(Some("a")) };
        let mut there = BTreeMap::new();
        for expected in [CONTROLLER_EPOCH, "/names/a"] {
            assert_eq!(keys(step(&growing, &there)), [expected]);
            let value = if expected == CONTROLLER_EPOCH { b"4" } else { b"t" };
            there.extend([entry(expected, value)]);
        }
        let last = step(&growing, &there);
        assert!(matches!(last, Ok(Step::Seal(_))), "{last:?}");
        assert_eq!(keys(last), [CLUSTER]);
    }
}
