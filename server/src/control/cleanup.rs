//! Directories that should not be there: what is left of deleted topics goes, what belongs to nobody is reported.
//!
//! Owns: removal below `topics/`. Only directories of topics that the store says were deleted are ever removed.
//! Invariant: a deleted topic is forgotten only when each of its data directories has been seen without it, so one
//! on a disk that was away is removed when the disk comes back, and never rises again.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use corelog_engine::TopicId;

use super::data_dir::{DataDirId, TOPICS_DIR, sync_dir};
use super::snapshot::{DataDirState, topic_directory_name};
use super::state::State;
use super::store::{Change, Coordination, DeletedTopic, StoreError};

/// Removes what is left of deleted topics on the directories that are online, and forgets those that are gone.
///
/// Errors: of the store alone. A directory that cannot be removed is reported and tried again at the next start.
pub fn finish_deletions<S: Coordination>(state: &mut State, store: &mut S) -> Result<(), StoreError> {
    let ids: Vec<TopicId> = state.deleted.iter().map(|topic| topic.id).collect();
    finish_deletions_of(state, store, &ids)
}

/// The same for some topics.
pub fn finish_deletions_of<S: Coordination>(
    state: &mut State,
    store: &mut S,
    ids: &[TopicId],
) -> Result<(), StoreError> {
    let wanted = state.deleted.iter().filter(|topic| ids.contains(&topic.id));
    let gone: Vec<(TopicId, Vec<DataDirId>)> = wanted
        .map(|topic| (topic.id, remove_topic(state, topic)))
        .filter(|(_, dirs)| !dirs.is_empty())
        .collect();
    if gone.is_empty() {
        return Ok(());
    }
    let changes: Vec<Change> =
        gone.iter().map(|(id, dirs)| Change::ForgetDeleted { id: *id, data_dirs: dirs.clone() }).collect();
    store.write(&changes)?;
    for (id, dirs) in gone {
        for topic in state.deleted.iter_mut().filter(|topic| topic.id == id) {
            topic.data_dirs.retain(|dir| !dirs.contains(dir));
        }
    }
    state.deleted.retain(|topic| !topic.data_dirs.is_empty());
    Ok(())
}

/// Removes the directories of a topic; returns the data directories that hold nothing of it any more.
fn remove_topic(state: &State, topic: &DeletedTopic) -> Vec<DataDirId> {
    let name = topic_directory_name(&topic.name, topic.id);
    let mut gone = Vec::new();
    for id in &topic.data_dirs {
        let entry = state.data_dirs.iter().find(|entry| entry.id == Some(*id));
        let Some(entry) = entry.filter(|entry| !matches!(entry.state, DataDirState::Offline { .. })) else {
            continue;
        };
        let directory = entry.path.join(TOPICS_DIR).join(&name);
        match remove_durably(&directory) {
            Ok(()) => gone.push(*id),
            Err(error) => tracing::error!(
                directory = %directory.display(), %error,
                "cannot remove a deleted topic; it will be tried again at the next start"
            ),
        }
    }
    gone
}

fn remove_durably(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => directory.parent().map_or(Ok(()), sync_dir),
    }
}

/// Directories that belong to no topic, or to a partition that lives elsewhere. Nothing is done to them.
pub fn find_orphans(state: &State) -> Vec<PathBuf> {
    let mut orphans = Vec::new();
    for entry in state.data_dirs.iter().filter(|entry| entry.open.is_some()) {
        let mut known: BTreeSet<PathBuf> = BTreeSet::new();
        for topic in state.topics() {
            let directory = PathBuf::from(topic_directory_name(&topic.name, topic.id));
            for (number, partition) in topic.partitions.iter().enumerate() {
                if Some(partition.data_dir) == entry.id {
                    known.insert(directory.join(number.to_string()));
                    known.insert(directory.clone());
                }
            }
        }
        // Deleted topics that could not be removed have been reported already.
        known.extend(state.deleted.iter().map(|topic| topic_directory_name(&topic.name, topic.id).into()));
        let topics = entry.path.join(TOPICS_DIR);
        for directory in list(&topics) {
            if !known.contains(&PathBuf::from(directory.file_name().unwrap_or_default())) {
                orphans.push(directory);
                continue;
            }
            let of_topic = list(&directory).into_iter().filter(|partition| {
                let relative = partition.strip_prefix(&topics).unwrap_or(partition);
                let is_partition = relative.file_name().is_some_and(|name| {
                    name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
                });
                is_partition && !known.contains(relative)
            });
            orphans.extend(of_topic);
        }
    }
    // Inside a topic that is being removed everything is expected.
    let removed: Vec<String> =
        state.deleted.iter().map(|topic| topic_directory_name(&topic.name, topic.id)).collect();
    orphans.retain(|orphan| {
        !orphan.components().any(|part| removed.iter().any(|name| part.as_os_str() == name.as_str()))
    });
    orphans
}

/// What lies in a directory; an unreadable one is reported and counts as empty.
fn list(directory: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(directory).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let mut paths: Vec<PathBuf> = entries.unwrap_or_else(|error| {
        tracing::warn!(directory = %directory.display(), %error, "cannot list a directory");
        Vec::new()
    });
    paths.sort();
    paths
}
