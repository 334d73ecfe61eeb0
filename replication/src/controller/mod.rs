//! The controller: keeps the stored cluster as it should be, whatever happens to its nodes.
//!
//! Owns: the plan. A pure function of the newest picture and of a little memory about time: what differs from how it
//! should be becomes commits, and a settled cluster gets none. Each decision has a file of its own.
//! Invariants, by number (tests refer to them):
//! C1. At most one leader in each epoch of a partition; an epoch never goes back.
//! C2. A leader is in the ISR, the ISR is part of the replicas and never empty, no node has two replicas.
//! C3. A leader is elected from the ISR as stored before, except by an operator's explicit order (`admin/leaders.rs`).
//! C4. Each commit checks the version of the controller's term, so that a deposed controller changes nothing; each
//!     record is replaced under the version that was looked at, so that nobody's change is lost.
//! C5. Level-triggered: a plan needs no history. After a conflict, a lost answer or a takeover the next one is made of
//!     what is stored then.
//! Not here: who is the controller, and the commits themselves (`agent/`).
//! Crash story: a controller dies between two commits of one plan. Each commit leaves a sound cluster; its successor
//! plans the rest.

pub mod admin;
mod commits;
mod deletion;
mod election;
mod eviction;
#[cfg(test)]
mod fixture;
mod growth;
mod lost;
mod moves;
mod placement;
mod removal;
mod standing;
mod surplus;

use std::collections::{BTreeMap, BTreeSet};

use corelog_engine::{TopicId, TopicPartition};

use commits::Commits;
use deletion::Unmade;
pub use growth::replicas_default;
use moves::Preference;
pub use placement::PlacementError;
use placement::Sites;
use standing::exists;
pub use standing::{Reluctance, Standing};

use crate::cluster::keys::{CONTROLLER_EPOCH, Subject};
use crate::cluster::{
    ClusterState, ControllerRecord, NodeIntent, PartitionRecord, ReplicaRecord, Stored, Versioned,
};
use crate::coordination::{Op, Version};
use crate::replica::ReplicaId;

/// How a controller goes about its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerOptions {
    /// A preferred leader gets its partition back after it has been in sync and fit to lead for so long.
    pub balance_delay_ms: u64,
    /// Leaderships moved, and preferences changed, in one round of balancing at most: each costs its clients a moment.
    pub balance_moves_max: usize,
    /// Time between two rounds.
    pub balance_round_ms: u64,
    /// A topic that has its name but does not exist after so long was given up by whoever made it.
    pub unmade_topic_ms: u64,
}

impl Default for ControllerOptions {
    fn default() -> Self {
        Self {
            balance_delay_ms: 30_000,
            balance_moves_max: 50,
            balance_round_ms: 1_000,
            unmade_topic_ms: 60_000,
        }
    }
}

/// One term of one controller.
pub struct Controller {
    options: ControllerOptions,
    term: ControllerRecord,
    random: Box<dyn FnMut() -> u128>,
    /// Replicas that are not sound and have been outside the ISR since.
    absent: BTreeSet<ReplicaId>,
    /// Since when each preferred leader could lead, of those that do not.
    fit_since_ms: BTreeMap<TopicPartition, u64>,
    /// Since when some partitions could prefer others.
    uneven_since_ms: Option<u64>,
    unmade: Unmade,
    next_round_ms: u64,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("term", &self.term).finish_non_exhaustive()
    }
}

/// What becomes of one partition.
struct Change {
    record: PartitionRecord,
    /// Clients wait for it.
    is_urgent: bool,
    orders: Vec<Op>,
}

impl Controller {
    /// The controller of a term that is stored. `random`: source of log ids.
    pub fn new(options: ControllerOptions, term: ControllerRecord, random: Box<dyn FnMut() -> u128>) -> Self {
        Self {
            options,
            term,
            random,
            absent: BTreeSet::new(),
            fit_since_ms: BTreeMap::new(),
            uneven_since_ms: None,
            unmade: Unmade::default(),
            next_round_ms: 0,
        }
    }

    /// What to commit, most urgent first; empty when all is well, or when the term is over. Call it again when the
    /// picture has changed, at [`Self::next_wake_ms`], and after a commit failed, with the newest picture.
    ///
    /// Cost: looks at every partition; some milliseconds for ten thousand.
    pub fn plan(&mut self, state: &ClusterState, now_ms: u64) -> Vec<Vec<Op>> {
        let Some(term) = state.controller_epoch.as_ref().filter(|stored| stored.0 == self.term.epoch) else {
            return Vec::new();
        };
        let check = Op::Check { key: CONTROLLER_EPOCH.to_owned(), version: term.version };
        let mut urgent = Commits::new(vec![check.clone()]);
        let mut other = Commits::new(vec![check]);
        self.note_absent(state);
        let mut settled = Vec::new();
        let mut sites = LazySites { state, sites: None, topic: None };
        for (id, stored) in state.partitions.iter().filter(|(id, _)| exists(state, **id)) {
            match self.repair(state, *id, &stored.record, &mut sites) {
                Some(change) => {
                    let commits = if change.is_urgent { &mut urgent } else { &mut other };
                    let put = put_partition(*id, &change.record, stored.version);
                    commits.add([put].into_iter().chain(change.orders));
                }
                None => settled.push((*id, stored)),
            }
        }
        self.balance(state, &settled, now_ms, &mut other);
        grow_topics(state, &mut other);
        deletion::finish_deletions(state, &mut other);
        self.unmade.give_up(state, now_ms, self.options.unmade_topic_ms, &mut other);
        remember_nodes(state, &mut other);
        let mut plan = urgent.finish();
        plan.extend(other.finish());
        plan
    }

    /// When time alone may make a plan out of nothing, on the clock of `now_ms`.
    pub fn next_wake_ms(&self) -> Option<u64> {
        let delay_ms = self.options.balance_delay_ms;
        let since = self.fit_since_ms.values().chain(&self.uneven_since_ms).min();
        let balance = since.map(|since| since.saturating_add(delay_ms).max(self.next_round_ms));
        balance.into_iter().chain(self.unmade.next_ms(self.options.unmade_topic_ms)).min()
    }

    fn note_absent(&mut self, state: &ClusterState) {
        let standing = |replica: &ReplicaRecord| Standing::of(state, replica);
        let mut absent = BTreeSet::new();
        for record in state.partitions.values() {
            eviction::note_absent(record, &standing, &self.absent, &mut absent);
        }
        self.absent = absent;
    }

    /// What cannot wait, and what is broken.
    fn repair(
        &mut self,
        state: &ClusterState,
        id: TopicPartition,
        stored: &PartitionRecord,
        sites: &mut LazySites<'_>,
    ) -> Option<Change> {
        let standing = |replica: &ReplicaRecord| Standing::of(state, replica);
        let topic = state.topics.get(&id.topic)?;
        let elected = election::elect(stored, &standing);
        let mut record = elected.as_ref().unwrap_or(stored);
        let evicted = eviction::evict(record, &standing, &self.absent);
        record = evicted.as_ref().unwrap_or(record);
        let is_urgent = elected.is_some() || evicted.is_some();
        let mut orders = Vec::new();
        let mut order = |replica: &ReplicaRecord| {
            orders.push(removal::of_replica(id.topic, &topic.name, id.partition.0, replica));
        };
        let mut dir_for = |node| sites.of(id.topic).take_dir(node);
        let replaced = lost::replace_lost(record, &standing, &mut dir_for, &mut self.random);
        if let Some(replacement) = &replaced {
            replacement.old.iter().for_each(&mut order);
            record = &replacement.record;
        }
        let trimmed = surplus::surplus(record, topic.replicas, &standing).map(|replica| {
            order(&replica);
            surplus::without(record, replica.id())
        });
        record = trimmed.as_ref().unwrap_or(record);
        let is_short = topic.is_internal && record.replicas.len() < usize::from(topic.replicas);
        let grown = is_short
            .then(|| growth::grown_partition(record, topic.replicas, sites.of(id.topic), &mut self.random));
        let grown = grown.flatten();
        let record = grown.as_ref().unwrap_or(record);
        (record != stored).then(|| Change { record: record.clone(), is_urgent, orders })
    }

    /// What can wait: leaderships back to where they are preferred, then preferences.
    fn balance(
        &mut self,
        state: &ClusterState,
        settled: &[(TopicPartition, &Versioned<PartitionRecord>)],
        now_ms: u64,
        commits: &mut Commits,
    ) {
        let ControllerOptions { balance_delay_ms, balance_moves_max, balance_round_ms, .. } = self.options;
        let standing = |replica: &ReplicaRecord| Standing::of(state, replica);
        let is_due = |since: u64| now_ms >= since.saturating_add(balance_delay_ms);
        let is_round = now_ms >= self.next_round_ms;
        let mut fit_since_ms = BTreeMap::new();
        let mut changes = Vec::new();
        for (id, stored) in settled {
            let Some(next) = moves::to_preferred(stored, &standing) else { continue };
            let since = self.fit_since_ms.get(id).copied().unwrap_or(now_ms);
            fit_since_ms.insert(*id, since);
            if is_due(since) && changes.len() < balance_moves_max {
                changes.push(put_partition(*id, &next, stored.version));
            }
        }
        self.fit_since_ms = fit_since_ms;
        // While leaderships are on their way back, preferences stay: one thing after the other.
        let uneven = if self.fit_since_ms.is_empty() {
            uneven_preferences(state, settled, balance_moves_max)
        } else {
            Vec::new()
        };
        self.uneven_since_ms = (!uneven.is_empty()).then(|| self.uneven_since_ms.unwrap_or(now_ms));
        if self.uneven_since_ms.is_some_and(is_due) {
            changes.extend(uneven);
        }
        if is_round && !changes.is_empty() {
            self.next_round_ms = now_ms.saturating_add(balance_round_ms);
            changes.into_iter().for_each(|change| commits.add([change]));
        }
    }
}

/// All places, drawn only once somebody needs one.
struct LazySites<'a> {
    state: &'a ClusterState,
    sites: Option<Sites>,
    topic: Option<TopicId>,
}

impl LazySites<'_> {
    fn of(&mut self, topic: TopicId) -> &mut Sites {
        let sites = self.sites.get_or_insert_with(|| Sites::of(self.state));
        if self.topic.replace(topic) != Some(topic) {
            sites.see_topic(self.state, topic);
        }
        sites
    }
}

/// The ops that make partitions prefer other leaders, where preferences are uneven.
fn uneven_preferences(
    state: &ClusterState,
    settled: &[(TopicPartition, &Versioned<PartitionRecord>)],
    moves_max: usize,
) -> Vec<Op> {
    let preference = |(id, stored): &(TopicPartition, &Versioned<PartitionRecord>)| {
        let (preferred, others) = stored.replicas.split_first()?;
        let is_fit = |replica: &&ReplicaRecord| {
            stored.isr.contains(&replica.id()) && Standing::of(state, replica).is_willing()
        };
        let others = others.iter().filter(is_fit).map(|replica| replica.node).collect();
        Some(Preference { partition: *id, preferred: preferred.node, others })
    };
    let preferences = settled.iter().filter_map(preference).collect();
    let put = |(id, node)| {
        let stored = state.partitions.get(&id)?;
        Some(put_partition(id, &moves::preferring(stored, node)?, stored.version))
    };
    moves::spread(preferences, moves_max).into_iter().filter_map(put).collect()
}

fn grow_topics(state: &ClusterState, commits: &mut Commits) {
    for (id, stored) in &state.topics {
        if let Some(next) = growth::grown_topic(state, stored) {
            let key = Subject::Topic(*id).key();
            commits.add([Op::Put { key, value: next.encode(), version: stored.version }]);
        }
    }
}

/// Who has been here once is known when it is away.
fn remember_nodes(state: &ClusterState, commits: &mut Commits) {
    for node in state.nodes.keys().filter(|node| !state.intents.contains_key(node)) {
        let intent = NodeIntent { node: *node, is_drained: false };
        let key = Subject::Intent(*node).key();
        commits.add([Op::Create { key, value: intent.encode(), is_ephemeral: false }]);
    }
}

fn put_partition(id: TopicPartition, record: &PartitionRecord, version: Version) -> Op {
    let checked = record.check();
    assert!(checked.is_ok(), "{id:?}: {checked:?} in {record:?}");
    Op::Put { key: Subject::Partition(id).key(), value: record.encode(), version }
}
