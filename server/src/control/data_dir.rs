//! One data directory: identity, exclusive lock, clean marker, free space.
//!
//! Owns: `DIR/corelog.json` (format, cluster, node, id), `DIR/lock`, `DIR/clean`. The list of logs (`log_list.rs`), the logs
//! and the store lie beside them.
//! Invariant: a directory that was ours is never made anew: if its `corelog.json` is gone, the disk is not mounted
//! or was wiped, and its partitions are offline rather than empty.
//! Crash story: power fails while `corelog.json` is written. It is written aside, synced and renamed, so that there
//! is either none (the next start makes it) or a whole one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use corelog_replication::cluster::DataDirId;
use serde::{Deserialize, Serialize};

use super::log_list::{LOG_LIST_FILE, LogList, LogListError};
use super::snapshot::NodeId;

/// Layout of data directories that this code reads and writes.
pub const FORMAT: u32 = 1;

const IDENTITY_FILE: &str = "corelog.json";
const LOCK_FILE: &str = "lock";
const CLEAN_FILE: &str = "clean";
/// Directory below a data directory that holds all topics.
pub const TOPICS_DIR: &str = "topics";
/// Largest identity file: ours has some 150 bytes.
const IDENTITY_BYTES_MAX: u64 = 64 << 10;

/// An id as text: 32 hexadecimal digits.
pub fn id_text(id: DataDirId) -> String {
    format!("{:032x}", id.0)
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error("data directory {} is in use by another corelog process; stop that one, or give this node another directory", path.display())]
    Locked {
        /// Which.
        path: PathBuf,
    },
    /// Written by a newer version.
    #[error("data directory {} has format {found}, and this version of corelog knows formats up to {FORMAT}; run the newer version that wrote it", path.display())]
    NewerFormat {
        /// Which.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// It belongs to another node.
    #[error("data directory {} belongs to node {found}, and this is node {expected}; set node.id = {found}, or name another directory", path.display())]
    OtherNode {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who we are.
        expected: NodeId,
    },
    /// It belongs to another cluster.
    #[error("data directory {} belongs to cluster {found}, and this node to cluster {expected}; name the directories of one node together, or look whether zookeeper.connect and zookeeper.root name the right cluster", path.display())]
    OtherCluster {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose the metadata are.
        expected: String,
    },
    /// Two paths lead to one directory.
    #[error("data directories {} and {} are the same one; name it once", first.display(), second.display())]
    Twice {
        /// One path.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// Its identity cannot be understood.
    #[error("{}: {problem}; restore the file from a copy, or move the directory away", path.join(IDENTITY_FILE).display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with the file.
        problem: String,
    },
    /// It was ours and is empty now.
    #[error("data directory {} has lost its {IDENTITY_FILE}; is its disk mounted? If the disk was replaced, name a directory of another name on the new one in data.dirs, and delete the topics that were lost", path.display())]
    Lost {
        /// Which.
        path: PathBuf,
    },
    /// Something else lies there.
    #[error("{} is not empty and no data directory of corelog (it has no {IDENTITY_FILE}); name an empty directory", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
    },
    /// The list of its logs cannot be used.
    #[error("data directory {}: {error}", path.display())]
    LogList {
        /// Which.
        path: PathBuf,
        /// Why.
        error: LogListError,
    },
    /// The system refused.
    #[error("data directory {}: cannot {action}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        error: io::Error,
    },
}

impl DataDirError {
    /// Whether the node may start without this directory, its partitions offline. Others are mistakes of the
    /// operator, and going on could make them worse.
    pub fn is_offline(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::Damaged { .. } | Self::LogList { .. } | Self::Io { .. } => true,
            Self::Locked { .. }
            | Self::NewerFormat { .. }
            | Self::OtherNode { .. }
            | Self::OtherCluster { .. }
            | Self::Twice { .. }
            | Self::Foreign { .. } => false,
        }
    }
}

/// `corelog.json`. Unknown fields are kept out of the way: a newer version of the same format may add some.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Identity {
    format: u32,
    cluster_id: String,
    node_id: u32,
    data_dir_id: String,
}

/// The format alone: read first, because a newer format may have changed everything else.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// A data directory that is ours and locked.
#[derive(Debug)]
pub struct DataDir {
    /// Its path.
    pub path: PathBuf,
    /// Its identity.
    pub id: DataDirId,
    /// Its cluster.
    pub cluster_id: String,
    /// Whether the last stop was clean.
    pub was_clean: bool,
    /// Logs that were made in it. `None`: there is no list.
    pub logs: Option<LogList>,
    /// Holds the lock as long as it is open.
    _lock: File,
}

/// What is to be done with a directory that has no identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IfNew {
    /// Make it ours, in this cluster.
    Initialize {
        /// The cluster.
        cluster_id: String,
    },
    /// It was ours: report it lost.
    Refuse,
}

impl DataDir {
    /// Locks and identifies a directory; makes it if it is new and may be. The clean marker stays until
    /// [`DataDir::begin_run`].
    ///
    /// Durability: what was made is synced when this returns.
    pub fn open(path: &Path, node: NodeId, if_new: &IfNew) -> Result<Self, DataDirError> {
        let failed = |action| move |error| DataDirError::Io { path: path.to_owned(), action, error };
        if *if_new != IfNew::Refuse {
            fs::create_dir_all(path).map_err(failed("create it"))?;
        }
        let found = read_identity(path)?;
        if found.is_none() {
            if *if_new == IfNew::Refuse {
                return Err(DataDirError::Lost { path: path.to_owned() });
            }
            refuse_foreign(path)?;
        }
        let lock = lock(path)?;
        // Read again: whoever held the lock a moment ago may have made it.
        let identity = match (read_identity(path)?, if_new) {
            (Some(identity), _) => identity,
            (None, IfNew::Initialize { cluster_id }) => initialize(path, node, cluster_id)?,
            (None, IfNew::Refuse) => return Err(DataDirError::Lost { path: path.to_owned() }),
        };
        if identity.node_id != node.0 {
            let found = NodeId(identity.node_id);
            return Err(DataDirError::OtherNode { path: path.to_owned(), found, expected: node });
        }
        let id = u128::from_str_radix(&identity.data_dir_id, 16)
            .map_err(|error| DataDirError::Damaged { path: path.to_owned(), problem: error.to_string() })?;
        let topics = path.join(TOPICS_DIR);
        fs::create_dir_all(&topics)
            .and_then(|()| sync_dir(path))
            .map_err(failed("create its topics directory"))?;
        let was_clean = is_clean(path);
        let logs =
            LogList::open(path).map_err(|error| DataDirError::LogList { path: path.to_owned(), error })?;
        Ok(Self {
            path: path.to_owned(),
            id: DataDirId(id),
            cluster_id: identity.cluster_id,
            was_clean,
            logs,
            _lock: lock,
        })
    }

    /// Takes the clean marker away, durably: from now on only a clean stop makes the next start skip its scans.
    pub fn begin_run(&self) -> Result<(), DataDirError> {
        let removed = match fs::remove_file(self.path.join(CLEAN_FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.and_then(|()| sync_dir(&self.path)),
        };
        removed.map_err(|error| DataDirError::Io {
            path: self.path.clone(),
            action: "remove its clean marker",
            error,
        })
    }

    /// Says that every log in this directory was synced and closed. Only after that is true.
    pub fn mark_clean(&self) -> Result<(), DataDirError> {
        replace_file(&self.path.join(CLEAN_FILE), b"clean\n").map_err(|error| DataDirError::Io {
            path: self.path.clone(),
            action: "write its clean marker",
            error,
        })
    }
}

/// Refuses a directory that a newer version wrote, for those who only look. One without an identity that can be
/// read passes: to look at what is left of it is the point.
pub fn refuse_newer(path: &Path) -> Result<(), DataDirError> {
    match read_identity(path) {
        Err(error @ DataDirError::NewerFormat { .. }) => Err(error),
        _ => Ok(()),
    }
}

/// Whether a directory says whose it is, readable or not.
pub fn has_identity(path: &Path) -> bool {
    path.join(IDENTITY_FILE).exists()
}

/// Whether the last run in a directory ended with every log synced and closed, and none began since.
pub fn is_clean(path: &Path) -> bool {
    path.join(CLEAN_FILE).exists()
}

/// Size and free bytes of the file system that holds a path.
pub fn space(path: &Path) -> io::Result<(u64, u64)> {
    let stats = fs4::statvfs(path)?;
    Ok((stats.total_space(), stats.available_space()))
}

fn read_identity(path: &Path) -> Result<Option<Identity>, DataDirError> {
    let failed = |error| DataDirError::Io { path: path.to_owned(), action: "read its corelog.json", error };
    let damaged = |problem: String| DataDirError::Damaged { path: path.to_owned(), problem };
    let file = match File::open(path.join(IDENTITY_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_dir() => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(IDENTITY_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    let FormatOnly { format: found } = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    if found > FORMAT {
        return Err(DataDirError::NewerFormat { path: path.to_owned(), found });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|e| damaged(e.to_string()))
}

/// A first start takes an empty directory (or a fresh file system), never somebody's home.
fn refuse_foreign(path: &Path) -> Result<(), DataDirError> {
    let failed = |error| DataDirError::Io { path: path.to_owned(), action: "list it", error };
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        // Left by a start that died before it had an identity, or made by mkfs.
        let is_harmless = ["lost+found", LOCK_FILE, ".corelog.json.new", LOG_LIST_FILE, ".logs.list.new"]
            .iter()
            .any(|known| name == *known);
        if !is_harmless {
            return Err(DataDirError::Foreign { path: path.to_owned() });
        }
    }
    Ok(())
}

fn lock(path: &Path) -> Result<File, DataDirError> {
    let failed = |error| DataDirError::Io { path: path.to_owned(), action: "open its lock file", error };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join(LOCK_FILE))
        .map_err(failed)?;
    match fs4::fs_std::FileExt::try_lock_exclusive(&file) {
        Ok(true) => Ok(file),
        Ok(false) => Err(DataDirError::Locked { path: path.to_owned() }),
        Err(error) => Err(DataDirError::Io { path: path.to_owned(), action: "lock it", error }),
    }
}

fn initialize(path: &Path, node: NodeId, cluster_id: &str) -> Result<Identity, DataDirError> {
    let identity = Identity {
        format: FORMAT,
        cluster_id: cluster_id.to_owned(),
        node_id: node.0,
        data_dir_id: id_text(DataDirId(uuid::Uuid::new_v4().as_u128())),
    };
    let text = serde_json::to_vec_pretty(&identity).expect("plain fields serialize");
    // The identity comes last: a directory that has one is whole.
    let made = LogList::make(path, []).and_then(|()| replace_file(&path.join(IDENTITY_FILE), &text));
    made.map_err(|error| DataDirError::Io {
        path: path.to_owned(),
        action: "write its corelog.json",
        error,
    })?;
    Ok(identity)
}

/// Writes a small file so that a crash leaves the old one or the new one, whole and synced.
pub fn replace_file(path: &Path, contents: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or_else(|| io::Error::other("no parent directory"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = directory.join(format!(".{name}.new"));
    let mut file = File::create(&aside)?;
    file.write_all(contents)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&aside, path)?;
    sync_dir(directory)
}

/// Makes renames, creations and removals in a directory survive power loss.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(1);

    fn new() -> IfNew {
        IfNew::Initialize { cluster_id: "c1".to_owned() }
    }

    #[test]
    fn a_directory_keeps_its_identity_and_its_marker() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let path = temp.path().join("new/data");
        let first = DataDir::open(&path, NODE, &new()).expect("it can be made");
        assert!(!first.was_clean);
        first.mark_clean().expect("marked");
        let id = first.id;
        drop(first);
        let second = DataDir::open(&path, NODE, &IfNew::Refuse).expect("it is there");
        assert!(second.was_clean);
        assert_eq!(second.id, id);
        second.begin_run().expect("begun");
        second.begin_run().expect("twice does no harm");
        drop(second);
        assert!(!DataDir::open(&path, NODE, &new()).expect("it is there").was_clean);
    }

    #[test]
    fn a_second_process_is_refused() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let _first = DataDir::open(temp.path(), NODE, &new()).expect("it can be made");
        let error = DataDir::open(temp.path(), NODE, &new()).expect_err("it is locked");
        assert!(matches!(error, DataDirError::Locked { .. }), "{error}");
        assert!(!error.is_offline());
    }

    #[test]
    fn wrong_directories_are_refused_with_advice() {
        let check = |identity: &str, words: &str, is_offline: bool| {
            let temp = tempfile::tempdir().expect("a temporary directory");
            LogList::make(temp.path(), []).expect("made");
            fs::write(temp.path().join(IDENTITY_FILE), identity).expect("written");
            let error = DataDir::open(temp.path(), NODE, &new()).expect_err(words);
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.is_offline(), is_offline, "{error}");
        };
        check(r#"{"format": 2, "anything": []}"#, "run the newer version", false);
        check(
            r#"{"format": 1, "cluster_id": "c", "node_id": 7, "data_dir_id": "1f"}"#,
            "set node.id = 7",
            false,
        );
        check("{", "restore the file", true);
        check(r#"{"format": 1}"#, "missing field", true);
        check(
            r#"{"format": 1, "cluster_id": "c", "node_id": 1, "data_dir_id": "xyz"}"#,
            "invalid digit",
            true,
        );
    }

    #[test]
    fn a_lost_disk_is_not_made_anew_and_foreign_files_are_left_alone() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let error = DataDir::open(temp.path(), NODE, &IfNew::Refuse).expect_err("nothing is there");
        assert!(matches!(error, DataDirError::Lost { .. }) && error.is_offline(), "{error}");
        let error = DataDir::open(&temp.path().join("none"), NODE, &IfNew::Refuse).expect_err("no directory");
        assert!(matches!(error, DataDirError::Io { .. }) && error.is_offline(), "{error}");
        fs::write(temp.path().join("thesis.txt"), "text").expect("written");
        let error = DataDir::open(temp.path(), NODE, &new()).expect_err("something is there");
        assert!(matches!(error, DataDirError::Foreign { .. }), "{error}");
        assert!(!temp.path().join(LOCK_FILE).exists());
    }
}
