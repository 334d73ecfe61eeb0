//! What a node is by itself: its shards, its data directories and what lies in them.
//!
//! Owns: the open data directories with their lists of logs, their free space, and what the node registers of itself.
//! Invariant: an index of a data directory never changes while the node runs; directories that only partitions name come
//! after those that are configured.

use std::path::PathBuf;

use corelog_engine::{LogId, TimestampMs};
use corelog_replication::cluster::{
    DataDirId, DataDirRecord, Endpoint, Incarnation, NodeRecord, ShardRecord,
};

use super::data_dir::{self, DataDir, id_text};
use super::known_dirs::KnownDirs;
use super::log_list::{LogList, LogListError};
use super::snapshot::{DataDirIndex, DataDirMetadata, DataDirState, NodeId, ShardAddress};

/// A data directory, as the control thread sees it.
#[derive(Debug)]
pub struct DataDirEntry {
    /// Its path; for one that is configured no more, its last one.
    pub path: PathBuf,
    /// Its identity; unknown if it could not be opened and never was.
    pub id: Option<DataDirId>,
    /// Whether it can be used.
    pub state: DataDirState,
    /// Whether its last stop was clean.
    pub was_clean: bool,
    /// Size of its file system, as last measured.
    pub total_bytes: u64,
    /// What is free of it.
    pub free_bytes: u64,
    /// The directory, locked; `None` while offline from the start.
    pub open: Option<DataDir>,
}

impl DataDirEntry {
    /// One that can be used.
    pub fn online(dir: DataDir) -> Self {
        Self {
            path: dir.path.clone(),
            id: Some(dir.id),
            state: DataDirState::Online,
            was_clean: dir.was_clean,
            total_bytes: 0,
            free_bytes: 0,
            open: Some(dir),
        }
    }

    /// One that cannot.
    pub fn offline(path: PathBuf, id: Option<DataDirId>, reason: String) -> Self {
        let state = DataDirState::Offline { reason };
        Self { path, id, state, was_clean: false, total_bytes: 0, free_bytes: 0, open: None }
    }

    /// Whether it can be read.
    pub fn is_online(&self) -> bool {
        self.open.is_some() && !matches!(self.state, DataDirState::Offline { .. })
    }
}

/// A node, without what it knows of the cluster.
#[derive(Debug)]
pub struct Local {
    /// Its number.
    pub node: NodeId,
    /// This start of it.
    pub incarnation: Incarnation,
    /// When it was started.
    pub started: TimestampMs,
    /// Its cluster.
    pub cluster_id: String,
    /// Its failure domain.
    pub rack: String,
    /// Its shards, by number.
    pub shards: Vec<ShardAddress>,
    /// Where its metrics are.
    pub http: Option<Endpoint>,
    /// Its data directories, by index.
    pub data_dirs: Vec<DataDirEntry>,
    /// Where directories were that are configured no more.
    pub known_dirs: KnownDirs,
}

impl Local {
    /// What it registers.
    pub fn registration(&self) -> NodeRecord {
        NodeRecord {
            node: self.node,
            incarnation: self.incarnation,
            started: self.started,
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            rack: self.rack.clone(),
            shards: self.shards.iter().map(shard_record).collect(),
            data_dirs: self.usable_dirs(),
            is_stopping: false,
            http: self.http.clone(),
        }
    }

    /// The data directories that can be used now. A full one has nothing to offer to new logs.
    pub fn usable_dirs(&self) -> Vec<DataDirRecord> {
        let online = self.data_dirs.iter().filter(|entry| entry.is_online());
        let records = online.filter_map(|entry| {
            let is_full = matches!(entry.state, DataDirState::Full { .. });
            Some(DataDirRecord { id: entry.id?, free_bytes: if is_full { 0 } else { entry.free_bytes } })
        });
        records.collect()
    }

    /// Index of a directory that a replica here names. One that is not there gets an entry, offline.
    pub fn data_dir_index(&mut self, id: DataDirId) -> DataDirIndex {
        let found = self.data_dirs.iter().position(|entry| entry.id == Some(id));
        let index = found.unwrap_or_else(|| {
            let path = self.known_dirs.path_of(id).map_or_else(PathBuf::new, PathBuf::from);
            let reason = format!(
                "data directory {} (last seen at {}) is not in data.dirs; put it back, or replace the replicas that it held",
                id_text(id),
                path.display()
            );
            self.data_dirs.push(DataDirEntry::offline(path, Some(id), reason));
            self.data_dirs.len() - 1
        });
        DataDirIndex(u16::try_from(index).expect("data directories are counted in 16 bits"))
    }

    /// Whether a log was made in a directory. What cannot be looked up counts as made: it must not be made anew.
    pub fn is_made(&self, dir: DataDirIndex, log: LogId) -> bool {
        let open = self.data_dirs.get(dir.index()).and_then(|entry| entry.open.as_ref());
        open.and_then(|open| open.logs.as_ref()).is_none_or(|logs| logs.holds(log))
    }

    /// Puts logs on the list of a directory. Durability: synced when it returns.
    pub fn add_logs(
        &mut self,
        dir: DataDirIndex,
        logs: impl IntoIterator<Item = LogId>,
    ) -> Result<(), LogListError> {
        self.list(dir).map_or(Ok(()), |list| list.add(logs))
    }

    /// Takes logs off the list of a directory that were deleted on purpose. Durability: synced when it returns.
    pub fn remove_logs(
        &mut self,
        dir: DataDirId,
        logs: impl IntoIterator<Item = LogId>,
    ) -> Result<(), LogListError> {
        let dir = self.data_dir_index(dir);
        self.list(dir).map_or(Ok(()), |list| list.remove(logs))
    }

    fn list(&mut self, dir: DataDirIndex) -> Option<&mut LogList> {
        self.data_dirs.get_mut(dir.index())?.open.as_mut()?.logs.as_mut()
    }

    /// The directories as shards see them.
    pub fn data_dir_metadata(&self) -> Vec<DataDirMetadata> {
        let entries = self.data_dirs.iter().map(|entry| DataDirMetadata {
            path: entry.path.clone(),
            state: entry.state.clone(),
            was_clean: entry.was_clean,
        });
        entries.collect()
    }

    /// Measures the free space of every open directory; says whether the state of any has changed.
    ///
    /// A directory that is full comes back a tenth above the watermark, so that it does not flap around it.
    pub fn measure_space(&mut self, free_bytes_min: u64) -> bool {
        let mut has_changed = false;
        for entry in self.data_dirs.iter_mut().filter(|entry| entry.open.is_some()) {
            let next = match data_dir::space(&entry.path) {
                Ok((total_bytes, free_bytes)) => {
                    (entry.total_bytes, entry.free_bytes) = (total_bytes, free_bytes);
                    space_state(&entry.state, free_bytes, free_bytes_min)
                }
                Err(error) => {
                    DataDirState::Offline { reason: format!("cannot measure its free space: {error}") }
                }
            };
            let is_same_kind = std::mem::discriminant(&entry.state) == std::mem::discriminant(&next);
            if matches!(entry.state, DataDirState::Offline { .. }) || is_same_kind {
                continue;
            }
            tell_space(entry, &next, free_bytes_min);
            entry.state = next;
            has_changed = true;
        }
        has_changed
    }
}

fn shard_record(address: &ShardAddress) -> ShardRecord {
    ShardRecord {
        core: address.core,
        client: Endpoint { host: address.host.clone(), port: address.port },
        replication: address.replication.clone(),
    }
}

fn tell_space(entry: &DataDirEntry, next: &DataDirState, free_bytes_min: u64) {
    let dir = entry.path.display();
    match next {
        DataDirState::Online => tracing::info!(%dir, "enough free space again"),
        DataDirState::Full { free_bytes } => tracing::error!(
            %dir, free_bytes, free_bytes_min,
            "free space is below data.free_bytes_min: produce is refused until there is more"
        ),
        DataDirState::Offline { reason } => tracing::error!(%dir, reason, "data directory is offline"),
    }
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
