//! Directories that should not be there: logs that are to be deleted go, what belongs to nobody is reported.
//!
//! Owns: removal below `topics/`. Only logs that a removal record of this node names are ever removed.
//! Invariant: a removal is forgotten only when each of its logs has been seen to be gone, so one on a disk that was away
//! goes when the disk comes back, and never rises again.
//! Crash story: killed between the removal of a directory and the change of the record, the next start finds nothing to
//! remove and changes the record.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use corelog_engine::{LogId, TopicId};
use corelog_replication::cluster::keys::{RemovalId, Subject};
use corelog_replication::cluster::{ClusterState, DataDirId, Removal, Stored};
use corelog_replication::coordination::Op;

use super::data_dir::{TOPICS_DIR, sync_dir};
use super::local::{DataDirEntry, Local};
use super::snapshot::topic_directory_name;

/// Directories to remove, and the log of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removing {
    /// Directory of a log.
    pub directory: PathBuf,
    /// Its log.
    pub log: LogId,
    /// The data directory that holds it.
    pub data_dir: DataDirId,
}

/// What of a removal can be done now: the logs whose data directories are there.
pub fn plan_removal(local: &Local, removal: &Removal) -> Vec<Removing> {
    let topic = topic_directory_name(&removal.name, removal.topic);
    let there = removal.logs.iter().filter_map(|log| {
        let entry = local.data_dirs.iter().find(|entry| entry.id == Some(log.dir))?;
        let directory = entry.path.join(TOPICS_DIR).join(&topic).join(log.partition.to_string());
        entry.is_online().then_some(Removing { directory, log: log.log, data_dir: log.dir })
    });
    there.collect()
}

/// Removes directories, durably; returns the logs that are gone. Blocks for as long as the file system takes.
///
/// What cannot be removed is reported and tried again at the next start.
pub fn remove_all(removing: Vec<Removing>) -> Vec<Removing> {
    let mut gone = Vec::with_capacity(removing.len());
    let mut parents = BTreeSet::new();
    for one in removing {
        match remove(&one.directory) {
            Ok(()) => {
                parents.extend(one.directory.parent().map(Path::to_owned));
                gone.push(one);
            }
            Err(error) => tracing::error!(
                directory = %one.directory.display(), %error,
                "cannot remove a log; it will be tried again at the next start"
            ),
        }
    }
    for topic in parents {
        // Fails while other partitions are in it: the last one takes it away.
        let emptied = fs::remove_dir(&topic).is_ok();
        let synced = if emptied { topic.parent() } else { Some(topic.as_path()) };
        match synced.map_or(Ok(()), sync_dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(directory = %topic.display(), %error, "cannot make a removal durable");
                gone.retain(|one| !one.directory.starts_with(&topic));
            }
            _ => {}
        }
    }
    gone
}

/// The commit that takes logs which are gone off a removal record, and the record away with its last one.
pub fn removed(cluster: &ClusterState, id: RemovalId, gone: &[LogId]) -> Vec<Vec<Op>> {
    let Some(stored) = cluster.removals.get(&id) else { return Vec::new() };
    let left: Vec<_> = stored.logs.iter().filter(|log| !gone.contains(&log.log)).copied().collect();
    if left.len() == stored.logs.len() {
        return Vec::new();
    }
    let (key, version) = (Subject::Removal(id).key(), stored.version);
    let op = if left.is_empty() {
        Op::Delete { key, version }
    } else {
        let record = Removal { logs: left, ..(*stored.record).clone() };
        Op::Put { key, value: record.encode(), version }
    };
    vec![vec![op]]
}

/// Removes all that is left of a topic on the directories that are there; returns those that hold nothing of it any more.
pub fn remove_topic<'a>(
    dirs: impl IntoIterator<Item = &'a DataDirEntry>,
    name: &str,
    topic: TopicId,
    wanted: &[DataDirId],
) -> Vec<DataDirId> {
    let is_wanted =
        |entry: &&DataDirEntry| entry.is_online() && entry.id.is_some_and(|id| wanted.contains(&id));
    let mut gone = Vec::new();
    for entry in dirs.into_iter().filter(is_wanted) {
        let root = entry.path.join(TOPICS_DIR);
        match remove(&root.join(topic_directory_name(name, topic))).and_then(|()| sync_dir(&root)) {
            Ok(()) => gone.extend(entry.id),
            Err(error) => tracing::error!(
                topic = name, dir = %entry.path.display(), %error,
                "cannot remove a deleted topic; it will be tried again at the next start"
            ),
        }
    }
    gone
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Directories that belong to no topic, or to a partition that has no replica here. Nothing is done to them.
pub fn find_orphans(local: &Local, cluster: &ClusterState) -> Vec<PathBuf> {
    let mut orphans = Vec::new();
    for entry in local.data_dirs.iter().filter(|entry| entry.is_online()) {
        let Expected { logs, topics } = expected(entry, local, cluster);
        let root = entry.path.join(TOPICS_DIR);
        for directory in list(&root) {
            if !topics.contains(directory.strip_prefix(&root).unwrap_or(&directory)) {
                orphans.push(directory);
                continue;
            }
            let of_topic = list(&directory).into_iter().filter(|partition| {
                let relative = partition.strip_prefix(&root).unwrap_or(partition);
                let name = relative.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let is_partition = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
                is_partition && !logs.contains(relative)
            });
            orphans.extend(of_topic);
        }
    }
    orphans
}

/// What should lie below `topics/` of a data directory.
struct Expected {
    logs: BTreeSet<PathBuf>,
    topics: BTreeSet<PathBuf>,
}

fn expected(entry: &DataDirEntry, local: &Local, cluster: &ClusterState) -> Expected {
    let mut logs = BTreeSet::new();
    for (of, partition) in &cluster.partitions {
        let Some(topic) = cluster.topics.get(&of.topic) else { continue };
        let here = partition.on_node(local.node).filter(|here| Some(here.dir) == entry.id);
        if here.is_some() {
            let directory = PathBuf::from(topic_directory_name(&topic.name, of.topic));
            logs.insert(directory.join(of.partition.to_string()));
        }
    }
    for (_, removal) in cluster.removals_of(local.node) {
        let directory = PathBuf::from(topic_directory_name(&removal.name, removal.topic));
        logs.extend(removal.logs.iter().map(|log| directory.join(log.partition.to_string())));
    }
    // Topics that go: their removals are not written yet.
    let going =
        cluster.deletions.iter().map(|(id, gone)| PathBuf::from(topic_directory_name(&gone.name, *id)));
    let going: BTreeSet<PathBuf> = going.collect();
    let mut topics: BTreeSet<PathBuf> =
        logs.iter().filter_map(|log| Some(log.parent()?.to_owned())).collect();
    for (of, partition) in &cluster.partitions {
        let Some(gone) = cluster.deletions.get(&of.topic) else { continue };
        if partition.on_node(local.node).is_some() {
            let directory = PathBuf::from(topic_directory_name(&gone.name, of.topic));
            logs.insert(directory.join(of.partition.to_string()));
        }
    }
    topics.extend(going);
    Expected { logs, topics }
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
