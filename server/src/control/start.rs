//! The data directories of a node at its start: lock and identify those that are there, make the new ones, and keep away
//! from what is another node's, another cluster's, or lost.
//!
//! Owns: the order of these steps, and where the embedded store lies. Which cluster this is, is found out between
//! [`look`] and [`Found::adopt`] (`join.rs`).
//! Invariant: the embedded store lies in the first data directory and in no other one; a node of a cluster has none.
//! Crash story: killed anywhere in here, the next start finds the same directories; clean markers may be gone, which
//! costs a scan.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use corelog_engine::{LogId, TimestampMs};
use corelog_replication::cluster::{DataDirId, Endpoint, Incarnation};

use super::data_dir::{self, DataDir, DataDirError, IfNew, TOPICS_DIR, sync_dir};
use super::join::{JoinError, Seal};
use super::known_dirs::KnownDirs;
use super::local::{DataDirEntry, Local};
use super::log_list::{LOG_LIST_FILE, LogList};
use super::snapshot::{DataDirState, NodeId, ShardAddress};
use super::store::StoreError;
use super::store::zookeeper::ZookeeperOptionsError;
use crate::config::Config;

/// File of the embedded store in the first data directory.
pub const STORE_FILE: &str = "meta.redb";
/// What it is called from the moment that its contents are in a cluster, until the cluster is known to be whole.
pub const MOVING_STORE_FILE: &str = "meta.redb.moving";
/// What it is called once its contents were carried over to a cluster.
pub const MOVED_STORE_FILE: &str = "meta.redb.moved";

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A data directory is wrong in a way that going on without it could make worse, or it is the first one.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The store cannot be opened or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cluster cannot be joined.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The first directory has topics and no store.
    #[error("data directory {} holds topics but no {STORE_FILE}; name the data directory with {STORE_FILE} first in data.dirs, or restore that file", path.display())]
    StoreLost {
        /// The first directory.
        path: PathBuf,
    },
    /// Another directory has a store.
    #[error("data directory {} holds {STORE_FILE}; name it first in data.dirs", path.display())]
    StoreElsewhere {
        /// Which.
        path: PathBuf,
    },
    /// The metadata were carried over to a cluster.
    #[error("the metadata of this node were moved to a ZooKeeper ensemble ({MOVED_STORE_FILE} in {} shows what they were then); set zookeeper.connect (--zookeeper) again: what was written since is known there alone", path.display())]
    Moved {
        /// The first directory.
        path: PathBuf,
    },
    /// No configured directory is there.
    #[error("none of the data directories of this node can be used; the first one: {reason}")]
    NoDataDir {
        /// What is wrong with the first.
        reason: String,
    },
    /// The options of ZooKeeper make no sense.
    #[error(transparent)]
    Zookeeper(#[from] ZookeeperOptionsError),
    /// The password of ZooKeeper cannot be read.
    #[error("zookeeper.password_file: cannot read {}: {error}", path.display())]
    PasswordFile {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The embedded store cannot be put aside.
    #[error(
        "cannot rename {STORE_FILE}, whose contents have been carried over: {error}; mend that, then start again"
    )]
    Seal {
        /// Why not.
        error: io::Error,
    },
    /// It was told to stop before it had found its cluster.
    #[error("stopped while waiting for the coordination service")]
    Stopped,
}

/// The data directories that are there, before anything was made.
#[derive(Debug)]
pub struct Found {
    node: NodeId,
    dirs: Vec<FoundDir>,
    known: KnownDirs,
    /// The cluster that they name, if any of them has an identity.
    pub cluster_id: Option<String>,
    is_cluster: bool,
}

#[derive(Debug)]
enum FoundDir {
    Entry(DataDirEntry),
    New(PathBuf),
}

/// Looks at the configured data directories: locks and opens those that have an identity.
pub fn look(config: &Config) -> Result<Found, StartError> {
    let node = config.node.id;
    let is_cluster = config.zookeeper.is_some();
    let [first, others @ ..] = config.data.dirs.as_slice() else {
        unreachable!("the configuration names at least one data directory");
    };
    if let Some(other) = others.iter().find(|dir| dir.join(STORE_FILE).exists()) {
        return Err(StartError::StoreElsewhere { path: other.clone() });
    }
    let known = KnownDirs::read(config.data.dirs.iter().map(PathBuf::as_path));
    let mut found = Found { node, dirs: Vec::new(), known, cluster_id: None, is_cluster };
    for path in &config.data.dirs {
        found.look_at(path)?;
    }
    if !is_cluster {
        check_store(first)?;
    }
    Ok(found)
}

/// Without a cluster the first directory has the store, or is new.
fn check_store(first: &Path) -> Result<(), StartError> {
    let path = first.to_owned();
    if first.join(STORE_FILE).exists() {
        return Ok(());
    }
    if [MOVING_STORE_FILE, MOVED_STORE_FILE].iter().any(|name| first.join(name).exists()) {
        return Err(StartError::Moved { path });
    }
    if has_topics(first) { Err(StartError::StoreLost { path }) } else { Ok(()) }
}

fn has_topics(data_dir: &Path) -> bool {
    std::fs::read_dir(data_dir.join(TOPICS_DIR)).is_ok_and(|mut entries| entries.next().is_some())
}

fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

impl Found {
    fn look_at(&mut self, path: &Path) -> Result<(), StartError> {
        let same = self.dirs.iter().map(FoundDir::path).find(|known| is_same(known, path));
        if let Some(same) = same {
            return Err(DataDirError::Twice { first: same.to_owned(), second: path.to_owned() }.into());
        }
        let known = self.known.at(path);
        if known.is_none() && !data_dir::has_identity(path) {
            self.dirs.push(FoundDir::New(path.to_owned()));
            return Ok(());
        }
        match DataDir::open(path, self.node, &IfNew::Refuse) {
            Ok(dir) => {
                match &self.cluster_id {
                    Some(expected) if *expected != dir.cluster_id => {
                        let (path, found) = (dir.path, dir.cluster_id);
                        let expected = expected.clone();
                        return Err(DataDirError::OtherCluster { path, found, expected }.into());
                    }
                    Some(_) => {}
                    None => self.cluster_id = Some(dir.cluster_id.clone()),
                }
                self.dirs.push(FoundDir::Entry(DataDirEntry::online(dir)));
                Ok(())
            }
            // The embedded store lies in the first one: without it there is nothing to go on with.
            Err(error) if error.is_offline() && (self.is_cluster || !self.dirs.is_empty()) => {
                let entry = DataDirEntry::offline(path.to_owned(), known, error.to_string());
                self.dirs.push(FoundDir::Entry(entry));
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The directories that are there, or should be.
    pub fn entries(&mut self) -> Vec<&mut DataDirEntry> {
        let entries = self.dirs.iter_mut().filter_map(|dir| match dir {
            FoundDir::Entry(entry) => Some(entry),
            FoundDir::New(_) => None,
        });
        entries.collect()
    }

    /// Adds the directories that an older version knew. One that is known and has no identity is not new: its disk is
    /// not there.
    pub fn learn(&mut self, dirs: &BTreeMap<DataDirId, String>) {
        self.known.learn(dirs);
        for dir in &mut self.dirs {
            let FoundDir::New(path) = dir else { continue };
            if let Some(id) = self.known.at(path) {
                let reason = DataDirError::Lost { path: path.clone() }.to_string();
                *dir = FoundDir::Entry(DataDirEntry::offline(path.clone(), Some(id), reason));
            }
        }
    }

    /// Makes the new directories in this cluster, and begins a run in all that can be used.
    pub fn adopt(self, cluster_id: &str) -> Result<(Vec<DataDirEntry>, KnownDirs), StartError> {
        let Self { node, dirs, mut known, is_cluster, .. } = self;
        let if_new = IfNew::Initialize { cluster_id: cluster_id.to_owned() };
        let mut entries: Vec<DataDirEntry> = Vec::with_capacity(dirs.len());
        for dir in dirs {
            entries.push(match dir {
                FoundDir::Entry(entry) => entry,
                FoundDir::New(path) => match DataDir::open(&path, node, &if_new) {
                    Ok(dir) => DataDirEntry::online(dir),
                    Err(error) if error.is_offline() && (is_cluster || !entries.is_empty()) => {
                        DataDirEntry::offline(path, None, error.to_string())
                    }
                    Err(error) => return Err(error.into()),
                },
            });
        }
        for entry in &mut entries {
            // A directory that cannot be written to is as good as failed.
            if let Some(Err(error)) = entry.open.as_ref().map(DataDir::begin_run) {
                entry.state = DataDirState::Offline { reason: error.to_string() };
            }
        }
        if !entries.iter().any(DataDirEntry::is_online) {
            return Err(StartError::NoDataDir { reason: reason_of(&entries) });
        }
        let online = entries.iter().filter(|entry| entry.is_online());
        let now: Vec<(DataDirId, &Path)> =
            online.filter_map(|entry| Some((entry.id?, entry.path.as_path()))).collect();
        known.remember(&now).map_err(|error| DataDirError::Io {
            path: entries[0].path.clone(),
            action: "note which data directories there are",
            error,
        })?;
        Ok((entries, known))
    }
}

/// Gives directories that have no list of logs one: empty ones, and those of an older version, whose store knew the logs.
/// Without a list a lost log could not be told from a new one, so any other directory is not used.
pub fn make_lists<'a>(entries: impl IntoIterator<Item = &'a mut DataDirEntry>, made: &[(DataDirId, LogId)]) {
    for entry in entries {
        let Some(dir) = entry.open.as_mut().filter(|dir| dir.logs.is_none()) else { continue };
        let logs: Vec<LogId> = made.iter().filter(|(of, _)| *of == dir.id).map(|(_, log)| *log).collect();
        let is_known = !logs.is_empty() || !has_topics(&dir.path);
        let opened = match is_known {
            true => LogList::make(&dir.path, logs)
                .map_err(|error| error.to_string())
                .and_then(|()| LogList::open(&dir.path).map_err(|error| error.to_string())),
            false => Err(format!("its {LOG_LIST_FILE} is missing; restore it from a copy")),
        };
        match opened {
            Ok(list) => dir.logs = list,
            Err(reason) => entry.state = DataDirState::Offline { reason },
        }
    }
}

impl FoundDir {
    fn path(&self) -> &Path {
        match self {
            Self::Entry(entry) => &entry.path,
            Self::New(path) => path,
        }
    }
}

fn reason_of(entries: &[DataDirEntry]) -> String {
    match entries.first().map(|entry| &entry.state) {
        Some(DataDirState::Offline { reason }) => reason.clone(),
        _ => "it is gone".to_owned(),
    }
}

/// Puts the embedded store aside. Durability: synced when it returns.
pub fn seal_embedded_store(first: &Path, seal: Seal) -> io::Result<()> {
    let (from, to): (&[&str], &str) = match seal {
        Seal::Moving => (&[STORE_FILE], MOVING_STORE_FILE),
        Seal::Done => (&[STORE_FILE, MOVING_STORE_FILE], MOVED_STORE_FILE),
    };
    for name in from {
        match std::fs::rename(first.join(name), first.join(to)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    sync_dir(first)
}

/// The embedded store whose contents are to be carried over, if there is one. One that is known to be in a cluster is
/// not: if that cluster is lost, its old contents must not come back as if they were new.
pub fn embedded_store_to_move(first: &Path) -> Option<PathBuf> {
    [STORE_FILE, MOVING_STORE_FILE].map(|name| first.join(name)).into_iter().find(|path| path.exists())
}

/// What a node is by itself, once its directories are open.
pub fn local(
    config: &Config,
    cluster_id: String,
    (data_dirs, known_dirs): (Vec<DataDirEntry>, KnownDirs),
    (shards, http): (Vec<ShardAddress>, Option<Endpoint>),
    now: TimestampMs,
) -> Local {
    let mut local = Local {
        node: config.node.id,
        incarnation: Incarnation(uuid::Uuid::new_v4().as_u64_pair().0),
        started: now,
        cluster_id,
        rack: config.node.rack.clone(),
        shards,
        http,
        data_dirs,
        known_dirs,
    };
    local.measure_space(config.data.free_bytes_min);
    local
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_an_older_version_knew_is_not_made_anew() {
        let (new, old) = (PathBuf::from("/data/new"), PathBuf::from("/data/old"));
        let dirs = vec![FoundDir::New(new), FoundDir::New(old.clone())];
        let known = KnownDirs::default();
        let mut found = Found { node: NodeId(1), dirs, known, cluster_id: None, is_cluster: false };
        let of_older = [(DataDirId(7), "/data/old".to_owned()), (DataDirId(8), "/data/elsewhere".to_owned())];
        found.learn(&BTreeMap::from(of_older));
        let entries = found.entries();
        let seen: Vec<_> =
            entries.iter().map(|entry| (entry.path.clone(), entry.id, entry.is_online())).collect();
        assert_eq!(seen, [(old, Some(DataDirId(7)), false)]);
        assert_eq!(found.known.path_of(DataDirId(8)), Some(Path::new("/data/elsewhere")));
    }
}
