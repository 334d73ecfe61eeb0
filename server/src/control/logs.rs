//! The logs of this node as directories: made ones are listed, deleted ones removed, strange ones reported.
//!
//! Owns: when a log goes on the durable list of its data directory, and when it leaves it.
//! Invariant: a log is on the list before a snapshot lets a shard use it, and off it before its removal is forgotten.
//! Crash story: killed between the making of a log and its listing, the next start opens what is there as new. Killed
//! between the removal of a directory and the change of the record, the next start removes nothing and changes it.

use std::convert::Infallible;

use corelog_engine::LogId;
use corelog_replication::cluster::DataDirId;
use corelog_replication::cluster::keys::RemovalId;
use corelog_replication::coordination::Coordination;
use rustc_hash::FxHashSet;

use super::cleanup::{self, Removing};
use super::snapshot::DataDirIndex;
use super::thread::{Control, Note};

impl<C: Coordination> Control<C> {
    /// Puts logs on the lists of their data directories, and lets the shards use them.
    pub(super) fn record_made(&mut self) {
        let made = std::mem::take(&mut self.made);
        let dirs: FxHashSet<DataDirIndex> = made.iter().map(|made| made.data_dir).collect();
        for dir in dirs {
            let logs: Vec<LogId> =
                made.iter().filter(|made| made.data_dir == dir).map(|made| made.log).collect();
            if let Err(error) = self.local.add_logs(dir, logs) {
                self.on_data_dir_failed(dir, error.to_string());
            }
        }
        for made in made {
            self.picture.touch(made.partition.topic);
            self.is_dirty = true;
        }
    }

    /// Says what lies in the data directories and belongs to nobody.
    pub(super) fn find_orphans(&mut self) {
        let orphans = self.agent.cluster(|cluster| cleanup::find_orphans(&self.local, cluster));
        for orphan in &orphans {
            tracing::warn!(
                directory = %orphan.display(),
                "belongs to no topic of this node; nothing is done to it: move it away, or remove it, if you do not need it"
            );
        }
        self.orphans = Some(orphans.len());
    }

    /// Removes logs that are to be deleted and that no shard has open.
    pub(super) fn begin_removals(&mut self) {
        let applied = self.applied_by_all();
        if applied < self.snapshot.version || self.snapshot.removed.is_empty() {
            return;
        }
        let due: Vec<(RemovalId, Vec<Removing>)> = self.agent.cluster(|cluster| {
            let of_mine = cluster.removals_of(self.local.node);
            let due = of_mine.filter(|(id, removal)| {
                let is_shown = removal.logs.iter().all(|log| self.snapshot.removed.contains(&log.log));
                is_shown && !self.removing.contains(id)
            });
            due.map(|(id, removal)| (id, cleanup::plan_removal(&self.local, removal))).collect()
        });
        for (id, removing) in due {
            self.removing.insert(id);
            let notes = self.notes.clone();
            tokio::task::spawn_blocking(move || {
                let gone = cleanup::remove_all(removing);
                let _ = notes.send(Note::Removed { id, gone });
            });
        }
    }

    /// Logs are gone from the disks: they leave the lists, then the record.
    pub(super) fn on_removed(&mut self, id: RemovalId, gone: Vec<Removing>) {
        let dirs: FxHashSet<DataDirId> = gone.iter().map(|one| one.data_dir).collect();
        for dir in dirs {
            let logs = gone.iter().filter(|one| one.data_dir == dir).map(|one| one.log);
            if let Err(error) = self.local.remove_logs(dir, logs) {
                let index = self.local.data_dir_index(dir);
                return self.on_data_dir_failed(index, error.to_string());
            }
        }
        let gone: Vec<LogId> = gone.into_iter().map(|one| one.log).collect();
        if gone.is_empty() {
            return;
        }
        let agent = self.agent.clone();
        tokio::task::spawn_local(async move {
            let done =
                agent.change(|cluster| Ok::<_, Infallible>(cleanup::removed(cluster, id, &gone))).await;
            if let Err(error) = done {
                tracing::warn!(%error, "cannot store that logs are gone; the next start will look again");
            }
        });
    }
}
