//! The partitions of a shard, open or not.
//!
//! Owns: which partitions there are and what state each is in. Invariant: a partition is in it exactly if the last
//! snapshot that was acted on places it here, or its log is just being closed or deleted.
//! Not here: what to do about a difference to a snapshot (`plan.rs`), doing it (`reconcile.rs`, `work.rs`).

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use corelog_engine::{LogId, LogOptions, TopicPartition};
use corelog_replication::Partition;
use corelog_schemas::Failure;
use rustc_hash::FxHashMap;

use super::disk::ShardDisk;
use super::plan::Told;
use crate::control::DataDirIndex;

/// A partition on the real disk.
pub(super) type ShardPartition = Partition<ShardDisk>;

/// One partition of this shard.
#[derive(Clone)]
pub(super) struct Entry {
    /// On which disk its log is.
    pub(super) data_dir: DataDirIndex,
    /// In which directory.
    pub(super) dir: Rc<Path>,
    /// Which log it is.
    pub(super) log_id: LogId,
    /// The options that its log has, or will be opened with.
    pub(super) options: LogOptions,
    /// Whether it serves.
    pub(super) state: State,
    /// A snapshot has said that its log is on the node's durable list: it may take a role.
    pub(super) is_confirmed: bool,
    /// The part in the leadership that it was told last.
    pub(super) told: Option<Told>,
}

impl Entry {
    /// Why it is not open, if it is not and will not be by itself.
    pub(super) fn failure(&self) -> Option<&Failure> {
        match &self.state {
            State::Failed(trouble) => Some(&trouble.failure),
            State::Opening | State::Open(_) | State::Leaving => None,
        }
    }

    /// Whether it is time to try again to open it.
    pub(super) fn is_due(&self, now_ms: u64) -> bool {
        match &self.state {
            State::Failed(trouble) => trouble.retry_at_ms.is_some_and(|at| at <= now_ms),
            State::Opening | State::Open(_) | State::Leaving => false,
        }
    }
}

/// Why a log is not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// What clients are told.
    pub(super) failure: Failure,
    /// When it is tried again, on the shard's clock; `None`: it does not mend itself.
    pub(super) retry_at_ms: Option<u64>,
}

/// What can be asked of a partition now.
#[derive(Clone)]
pub(super) enum State {
    /// Its log is being opened: ask again.
    Opening,
    /// It serves.
    Open(ShardPartition),
    /// It does not.
    Failed(Trouble),
    /// Its log is being closed or deleted.
    Leaving,
}

/// Partitions and what is known of them.
pub(super) type Entries = FxHashMap<TopicPartition, Entry>;

/// All partitions of a shard.
#[derive(Default)]
pub(super) struct Registry(RefCell<Entries>);

impl Registry {
    /// Looks at one.
    pub(super) fn with<R>(&self, id: TopicPartition, look: impl FnOnce(Option<&Entry>) -> R) -> R {
        look(self.0.borrow().get(&id))
    }

    /// Adds or replaces one.
    pub(super) fn put(&self, id: TopicPartition, entry: Entry) {
        self.0.borrow_mut().insert(id, entry);
    }

    /// Changes the state of one that is there.
    pub(super) fn set_state(&self, id: TopicPartition, state: State) {
        self.change(id, |entry| entry.state = state);
    }

    /// Changes one that is there.
    pub(super) fn change(&self, id: TopicPartition, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.0.borrow_mut().get_mut(&id) {
            change(entry);
        }
    }

    /// Changes the options of one, and of its log if it is open.
    pub(super) fn set_options(&self, id: TopicPartition, options: LogOptions) {
        let open = match self.0.borrow_mut().get_mut(&id) {
            Some(entry) => {
                entry.options = options;
                match &entry.state {
                    State::Open(partition) => Some(partition.clone()),
                    State::Opening | State::Failed(_) | State::Leaving => None,
                }
            }
            None => None,
        };
        if let Some(partition) = open {
            partition.set_options(options);
        }
    }

    /// Forgets one.
    pub(super) fn remove(&self, id: TopicPartition) {
        self.0.borrow_mut().remove(&id);
    }

    /// Looks at all of them.
    pub(super) fn with_all<R>(&self, look: impl FnOnce(&Entries) -> R) -> R {
        look(&self.0.borrow())
    }

    /// Those that it is time to try to open again.
    pub(super) fn due(&self, now_ms: u64) -> Vec<TopicPartition> {
        let entries = self.0.borrow();
        entries.iter().filter(|(_, entry)| entry.is_due(now_ms)).map(|(id, _)| *id).collect()
    }

    /// The open ones, in no order.
    pub(super) fn open(&self) -> Vec<ShardPartition> {
        let entries = self.0.borrow();
        let open = entries.values().filter_map(|entry| match &entry.state {
            State::Open(partition) => Some(partition.clone()),
            State::Opening | State::Failed(_) | State::Leaving => None,
        });
        open.collect()
    }
}
