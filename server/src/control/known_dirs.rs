//! Which data directories a node has ever had, and where: what keeps an empty mount point from being made anew.
//!
//! Owns: `known_dirs.json`, the same file in each data directory, so that any one of them that is there remembers the
//! others. Rewritten whole (aside, then renamed) when it changes.
//! Not here: what a directory says of itself (`data_dir.rs`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use corelog_replication::cluster::DataDirId;
use serde::{Deserialize, Serialize};

use super::data_dir::{id_text, replace_file};

const KNOWN_DIRS_FILE: &str = "known_dirs.json";
/// Largest file that is read: a node has tens of directories of some hundred bytes.
const BYTES_MAX: u64 = 1 << 20;

/// Last path of each data directory of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownDirs(BTreeMap<DataDirId, PathBuf>);

#[derive(Serialize, Deserialize)]
struct Row {
    dirs: BTreeMap<String, String>,
}

impl KnownDirs {
    /// What the directories at these paths remember together. One that cannot be read remembers nothing.
    pub fn read<'a>(dirs: impl IntoIterator<Item = &'a Path>) -> Self {
        let mut known = Self::default();
        for dir in dirs {
            match read_one(dir) {
                Ok(more) => known.0.extend(more),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(
                    dir = %dir.display(), %error, "cannot read {KNOWN_DIRS_FILE}; the other directories have it too"
                ),
            }
        }
        known
    }

    /// Adds what an older version knew, where nothing newer is known. Not stored before [`Self::remember`].
    pub fn learn(&mut self, dirs: &BTreeMap<DataDirId, String>) {
        for (id, path) in dirs {
            self.0.entry(*id).or_insert_with(|| PathBuf::from(path));
        }
    }

    /// The directory that was last seen at this path.
    pub fn at(&self, path: &Path) -> Option<DataDirId> {
        self.0.iter().find(|(_, known)| *known == path).map(|(id, _)| *id)
    }

    /// Where a directory was last seen.
    pub fn path_of(&self, id: DataDirId) -> Option<&Path> {
        self.0.get(&id).map(PathBuf::as_path)
    }

    /// Notes where directories are now, and stores it in each of them that does not know it.
    ///
    /// Durability: synced when it returns.
    pub fn remember(&mut self, now: &[(DataDirId, &Path)]) -> io::Result<()> {
        self.0.extend(now.iter().map(|(id, path)| (*id, path.to_path_buf())));
        let dirs = self.0.iter().map(|(id, path)| (id_text(*id), path.display().to_string()));
        let text = serde_json::to_vec_pretty(&Row { dirs: dirs.collect() }).expect("plain fields serialize");
        for (_, dir) in now {
            if read_one(dir).ok().as_ref() != Some(&self.0) {
                replace_file(&dir.join(KNOWN_DIRS_FILE), &text)?;
            }
        }
        Ok(())
    }
}

fn read_one(dir: &Path) -> io::Result<BTreeMap<DataDirId, PathBuf>> {
    let mut bytes = Vec::new();
    File::open(dir.join(KNOWN_DIRS_FILE))?.take(BYTES_MAX).read_to_end(&mut bytes)?;
    let row: Row = serde_json::from_slice(&bytes)?;
    let ids = row.dirs.into_iter().map(|(id, path)| {
        let id = u128::from_str_radix(&id, 16).map_err(io::Error::other)?;
        Ok((DataDirId(id), PathBuf::from(path)))
    });
    ids.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_directory_remembers_the_others() {
        let (one, two) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
        let mut known = KnownDirs::default();
        let now = [(DataDirId(1), one.path()), (DataDirId(u128::MAX), two.path())];
        known.remember(&now).expect("stored");
        for dir in [one.path(), two.path()] {
            let read = KnownDirs::read([dir, Path::new("/no/such/directory")]);
            assert_eq!(read, known);
            assert_eq!(read.at(two.path()), Some(DataDirId(u128::MAX)));
            assert_eq!(read.path_of(DataDirId(1)), Some(one.path()));
        }
        // One that moved is where it was seen last.
        let three = tempfile::tempdir().expect("three");
        known.remember(&[(DataDirId(1), three.path())]).expect("stored");
        assert_eq!((known.at(one.path()), known.at(three.path())), (None, Some(DataDirId(1))));
    }
}
