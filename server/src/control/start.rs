//! The start of a node: lock and identify the data directories, open the store, begin a new epoch, re-spread the
//! partitions over the shards, finish deletions, report what belongs to nobody.
//!
//! Owns: the order of these steps. When it is done, nothing that a crash could take back has been shown to a shard.
//! Invariant: the first data directory holds `meta.redb`, and no other one does.
//! Crash story: killed anywhere in here, the next start finds the same topics; the epoch may have been skipped, and
//! clean markers may be gone, which costs a scan.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use corelog_engine::{TimestampMs, TopicId};

use super::cleanup;
use super::data_dir::{self, DataDir, DataDirError, DataDirId, IfNew, TOPICS_DIR};
use super::placement::respread;
use super::snapshot::{DataDirState, NodeId, ShardId};
use super::state::{DataDirEntry, State, StateStart};
use super::store::{Change, Coordination, EmbeddedStore, StoreError, Stored};
use crate::config::Config;

/// File of the store in the first data directory.
pub const STORE_FILE: &str = "meta.redb";

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A data directory is wrong in a way that going on without it could make worse, or it is the first one.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The store cannot be opened or written.
    #[error(transparent)]
    Store(#[from] StoreError),
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
    /// The store is another node's.
    #[error(
        "the metadata belong to node {found}, and this is node {expected}; set node.id = {found}, or name another directory"
    )]
    OtherNode {
        /// Whose it is.
        found: NodeId,
        /// Who we are.
        expected: NodeId,
    },
}

/// A node that has been opened and shown to nobody yet.
pub struct Opened {
    /// What it knows.
    pub state: State,
    /// Where it keeps it.
    pub store: EmbeddedStore,
    /// Directories below `topics/` that belong to no topic.
    pub orphans: Vec<PathBuf>,
}

/// Opens a node for a run on `shards` shards.
pub fn open(config: &Config, shards: u16, now: TimestampMs) -> Result<Opened, StartError> {
    let node = config.node.id;
    let (first, mut store) = open_first(config)?;
    let stored = store.load()?;
    if stored.node != node {
        return Err(StartError::OtherNode { found: stored.node, expected: node });
    }
    let data_dirs = open_others(config, first, &stored)?;
    remember_data_dirs(&mut store, &data_dirs, &stored)?;
    let leader_epoch = store.begin_incarnation()?;
    let moved = respread_topics(&stored, shards);
    store.write(&moved)?;
    let stored = store.load()?;
    let mut state = State::new(StateStart {
        cluster_id: stored.cluster_id,
        node,
        leader_epoch,
        started: now,
        data_dirs,
        deleted: stored.deleted,
        defaults: config.topic.options.clone(),
    });
    for topic in stored.topics {
        state.put_topic(topic);
    }
    cleanup::finish_deletions(&mut state, &mut store)?;
    let orphans = cleanup::find_orphans(&state);
    for entry in &mut state.data_dirs {
        // A directory that cannot be written to is as good as failed.
        if let Some(Err(error)) = entry.open.as_ref().map(DataDir::begin_run) {
            entry.state = DataDirState::Offline { reason: error.to_string() };
        }
    }
    measure_space(&mut state, config.data.free_bytes_min);
    Ok(Opened { state, store, orphans })
}

/// Opens the first data directory and the store in it. Neither can be done without.
fn open_first(config: &Config) -> Result<(DataDir, EmbeddedStore), StartError> {
    let [first, others @ ..] = config.data.dirs.as_slice() else {
        unreachable!("the configuration names at least one data directory");
    };
    if let Some(other) = others.iter().find(|dir| dir.join(STORE_FILE).exists()) {
        return Err(StartError::StoreElsewhere { path: other.clone() });
    }
    let if_new = IfNew::Initialize { cluster_id: format!("{:032x}", uuid::Uuid::new_v4().as_u128()) };
    let dir = DataDir::open(first, config.node.id, &if_new)?;
    let store = first.join(STORE_FILE);
    if !store.exists() && has_topics(first) {
        return Err(StartError::StoreLost { path: first.clone() });
    }
    let store = EmbeddedStore::open(&store, config.node.id, &dir.cluster_id)?;
    Ok((dir, store))
}

fn has_topics(data_dir: &Path) -> bool {
    std::fs::read_dir(data_dir.join(TOPICS_DIR)).is_ok_and(|mut entries| entries.next().is_some())
}

/// Opens all other configured directories; adds entries for those that hold partitions and are configured no more.
fn open_others(config: &Config, first: DataDir, stored: &Stored) -> Result<Vec<DataDirEntry>, StartError> {
    let cluster_id = first.cluster_id.clone();
    if cluster_id != stored.cluster_id {
        let path = first.path.clone();
        let (found, expected) = (cluster_id, stored.cluster_id.clone());
        return Err(DataDirError::OtherCluster { path, found, expected }.into());
    }
    let mut entries = vec![online(first)];
    for path in &config.data.dirs[1..] {
        if let Some(same) = entries.iter().find(|entry| is_same(&entry.path, path)) {
            return Err(DataDirError::Twice { first: same.path.clone(), second: path.clone() }.into());
        }
        let known = known_at(stored, path);
        let if_new = match known {
            Some(_) => IfNew::Refuse,
            None => IfNew::Initialize { cluster_id: cluster_id.clone() },
        };
        match DataDir::open(path, config.node.id, &if_new) {
            Ok(dir) if dir.cluster_id != cluster_id => {
                let (path, found) = (dir.path, dir.cluster_id);
                return Err(DataDirError::OtherCluster { path, found, expected: cluster_id }.into());
            }
            Ok(dir) => entries.push(online(dir)),
            Err(error) if error.is_offline() => entries.push(offline(path.clone(), known, error.to_string())),
            Err(error) => return Err(error.into()),
        }
    }
    let named: BTreeSet<DataDirId> = stored
        .topics
        .iter()
        .flat_map(|topic| &topic.partitions)
        .map(|partition| partition.data_dir)
        .collect();
    for id in named {
        if entries.iter().all(|entry| entry.id != Some(id)) {
            let path = stored.data_dirs.get(&id).map_or_else(PathBuf::new, PathBuf::from);
            let reason = format!(
                "data directory {id} (last seen at {}) is not in data.dirs; put it back, or delete its topics",
                path.display()
            );
            entries.push(offline(path, Some(id), reason));
        }
    }
    Ok(entries)
}

fn is_same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn known_at(stored: &Stored, path: &Path) -> Option<DataDirId> {
    stored.data_dirs.iter().find(|(_, known)| Path::new(known) == path).map(|(id, _)| *id)
}

fn online(dir: DataDir) -> DataDirEntry {
    DataDirEntry {
        path: dir.path.clone(),
        id: Some(dir.id),
        state: DataDirState::Online,
        was_clean: dir.was_clean,
        total_bytes: 0,
        free_bytes: 0,
        open: Some(dir),
    }
}

fn offline(path: PathBuf, id: Option<DataDirId>, reason: String) -> DataDirEntry {
    let state = DataDirState::Offline { reason };
    DataDirEntry { path, id, state, was_clean: false, total_bytes: 0, free_bytes: 0, open: None }
}

/// Stores the directories of this start, so that the next one knows which paths must not be made anew.
fn remember_data_dirs(
    store: &mut EmbeddedStore,
    entries: &[DataDirEntry],
    stored: &Stored,
) -> Result<(), StoreError> {
    let changes: Vec<Change> = entries
        .iter()
        .filter(|entry| entry.open.is_some())
        .filter_map(|entry| Some((entry.id?, entry.path.display().to_string())))
        .filter(|(id, path)| stored.data_dirs.get(id) != Some(path))
        .map(|(id, path)| Change::PutDataDir { id, path })
        .collect();
    store.write(&changes)?;
    Ok(())
}

/// The writes that spread all partitions over `shards` shards.
fn respread_topics(stored: &Stored, shards: u16) -> Vec<Change> {
    // In the order of ids, so that two starts with the same shards decide alike.
    let topics: BTreeMap<TopicId, _> = stored.topics.iter().map(|topic| (topic.id, topic)).collect();
    let current: Vec<ShardId> = topics.values().flat_map(|t| &t.partitions).map(|p| p.shard).collect();
    let mut spread = respread(&current, shards).into_iter();
    let mut changes = Vec::new();
    for topic in topics.values() {
        let mut moved = (*topic).clone();
        for partition in &mut moved.partitions {
            partition.shard = spread.next().expect("as many as there are partitions");
        }
        if moved != **topic {
            changes.push(Change::PutTopic { topic: moved, expected: Some(topic.version) });
        }
    }
    changes
}

/// Measures the free space of every open directory; says whether the state of any has changed.
///
/// A directory that is full comes back a tenth above the watermark, so that it does not flap around it.
pub fn measure_space(state: &mut State, free_bytes_min: u64) -> bool {
    let mut has_changed = false;
    for entry in state.data_dirs.iter_mut().filter(|entry| entry.open.is_some()) {
        let next = match data_dir::space(&entry.path) {
            Ok((total_bytes, free_bytes)) => {
                (entry.total_bytes, entry.free_bytes) = (total_bytes, free_bytes);
                space_state(&entry.state, free_bytes, free_bytes_min)
            }
            Err(error) => DataDirState::Offline { reason: format!("cannot measure its free space: {error}") },
        };
        let is_same_kind = std::mem::discriminant(&entry.state) == std::mem::discriminant(&next);
        if matches!(entry.state, DataDirState::Offline { .. }) || is_same_kind {
            continue;
        }
        match &next {
            DataDirState::Online => tracing::info!(dir = %entry.path.display(), "enough free space again"),
            DataDirState::Full { free_bytes } => tracing::error!(
                dir = %entry.path.display(), free_bytes, free_bytes_min,
                "free space is below data.free_bytes_min: produce is refused until there is more"
            ),
            DataDirState::Offline { reason } => {
                tracing::error!(dir = %entry.path.display(), reason, "data directory is offline");
            }
        }
        entry.state = next;
        has_changed = true;
    }
    has_changed
}

fn space_state(current: &DataDirState, free_bytes: u64, free_bytes_min: u64) -> DataDirState {
    let enough = match current {
        DataDirState::Full { .. } => free_bytes_min + free_bytes_min / 10,
        DataDirState::Online | DataDirState::Offline { .. } => free_bytes_min,
    };
    if free_bytes < enough { DataDirState::Full { free_bytes } } else { DataDirState::Online }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_directory_does_not_flap() {
        let full = DataDirState::Full { free_bytes: 90 };
        assert_eq!(space_state(&DataDirState::Online, 100, 100), DataDirState::Online);
        assert_eq!(space_state(&DataDirState::Online, 90, 100), full);
        assert_eq!(space_state(&full, 105, 100), DataDirState::Full { free_bytes: 105 });
        assert_eq!(space_state(&full, 110, 100), DataDirState::Online);
    }
}
