//! Where replicas go: which node, which of its shards, which of its data directories.
//!
//! Owns: the rule. Never two replicas of a partition on one node. Nodes, then shards, are chosen by what they have of
//! the same topic first (a topic is the unit of heat), then by what they have in all; leaders are counted by who is
//! preferred, not by who leads now. A data directory is chosen by its free bytes.
//! Seam: racks are known of each site and not looked at yet.
//! Not here: moving replicas that have a place.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use corelog_engine::{LogId, TopicId};

use super::standing::{Reluctance, exists};
use crate::cluster::{ClusterState, DataDirId, DataDirRecord, PartitionRecord, ReplicaRecord};
use crate::replica::NodeId;

/// What each replica that a data directory has, or gets, is taken to need there in the end. Free bytes are known as of
/// a node's registration, so that many new partitions would otherwise all go to one disk.
const RESERVE_BYTES: i128 = 1 << 30;

/// What is counted of a node or shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Load {
    /// Partitions of the topic that is placed which prefer it as their leader.
    topic_leaders: usize,
    /// Replicas of the topic that is placed.
    topic_replicas: usize,
    /// Partitions that prefer it as their leader.
    leaders: usize,
    /// Replicas.
    replicas: usize,
}

impl Load {
    fn as_leader(self) -> (usize, usize, usize, usize) {
        (self.topic_leaders, self.leaders, self.topic_replicas, self.replicas)
    }

    fn as_follower(self) -> (usize, usize, usize) {
        (self.topic_replicas, self.replicas, self.leaders)
    }

    fn add(&mut self, is_leader: bool) {
        self.replicas += 1;
        self.leaders += usize::from(is_leader);
    }

    fn add_of_topic(&mut self, is_leader: bool) {
        self.topic_replicas += 1;
        self.topic_leaders += usize::from(is_leader);
    }

    fn forget_topic(&mut self) {
        (self.topic_leaders, self.topic_replicas) = (0, 0);
    }
}

/// One data directory.
#[derive(Clone, Debug)]
struct Dir {
    id: DataDirId,
    free_bytes: i128,
    replicas: usize,
}

/// One node that takes replicas.
#[derive(Clone, Debug)]
struct Site {
    node: NodeId,
    reluctance: Reluctance,
    load: Load,
    shards: Vec<Load>,
    dirs: Vec<Dir>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Fewer nodes run, or have a usable data directory, than replicas are asked for.
    #[error(
        "{wanted} replicas need {wanted} running nodes with a usable data directory, there are {available}; start \
         more nodes, or ask for fewer replicas"
    )]
    TooFewNodes {
        /// Replicas asked for.
        wanted: usize,
        /// Nodes that could take one.
        available: usize,
    },
}

/// Everywhere that replicas can be placed.
#[derive(Clone, Debug)]
pub(super) struct Sites {
    sites: BTreeMap<NodeId, Site>,
    /// How often the second node is the first to follow the first one: it inherits the leadership.
    heirs: BTreeMap<(NodeId, NodeId), usize>,
}

impl Sites {
    /// All live nodes with a data directory, with what they have.
    pub(super) fn of(state: &ClusterState) -> Self {
        let sites = state.nodes.iter().filter(|(node, _)| state.is_live(**node)).map(|(node, record)| {
            let dir =
                |dir: &DataDirRecord| Dir { id: dir.id, free_bytes: i128::from(dir.free_bytes), replicas: 0 };
            let site = Site {
                node: *node,
                reluctance: Reluctance::of(state, *node),
                load: Load::default(),
                shards: vec![Load::default(); record.shards.len()],
                // One that is below its watermark is registered with none.
                dirs: record.data_dirs.iter().filter(|dir| dir.free_bytes > 0).map(dir).collect(),
            };
            (*node, site)
        });
        let sites = sites.filter(|(_, site)| !site.dirs.is_empty()).collect();
        let mut sites = Self { sites, heirs: BTreeMap::new() };
        for (_, record) in state.partitions.iter().filter(|(id, _)| exists(state, **id)) {
            for (at, replica) in record.replicas.iter().enumerate() {
                let Some(site) = sites.sites.get_mut(&replica.node) else { continue };
                site.loads_of(replica).for_each(|load| load.add(at == 0));
                if let Some(dir) = site.dirs.iter_mut().find(|dir| dir.id == replica.dir) {
                    dir.take();
                }
            }
            sites.note_heir(&record.replicas);
        }
        sites
    }

    /// Turns to one topic: what follows is placed for it.
    pub(super) fn see_topic(&mut self, state: &ClusterState, topic: TopicId) {
        for site in self.sites.values_mut() {
            site.shards.iter_mut().chain([&mut site.load]).for_each(Load::forget_topic);
        }
        for (_, record) in state.partitions_of(topic).filter(|(id, _)| exists(state, *id)) {
            for (at, replica) in record.replicas.iter().enumerate() {
                if let Some(site) = self.sites.get_mut(&replica.node) {
                    site.loads_of(replica).for_each(|load| load.add_of_topic(at == 0));
                }
            }
        }
    }

    fn note_heir(&mut self, replicas: &[ReplicaRecord]) {
        if let [first, second, ..] = replicas {
            *self.heirs.entry((first.node, second.node)).or_default() += 1;
        }
    }

    /// Places the replicas of a new partition, preferred leader first, and takes them into account.
    ///
    /// Errors: [`PlacementError`]; nothing has changed.
    pub(super) fn place_partition(
        &mut self,
        replicas: u16,
        random: &mut dyn FnMut() -> u128,
    ) -> Result<Vec<ReplicaRecord>, PlacementError> {
        let wanted = usize::from(replicas);
        if self.sites.len() < wanted {
            return Err(PlacementError::TooFewNodes { wanted, available: self.sites.len() });
        }
        let leader = self
            .sites
            .values()
            .min_by_key(|site| (site.reluctance, site.load.as_leader()))
            .map(|site| site.node);
        let mut followers: Vec<&Site> =
            self.sites.values().filter(|site| Some(site.node) != leader).collect();
        followers.sort_by_key(|site| (site.reluctance, site.load.as_follower()));
        followers.truncate(wanted.saturating_sub(1));
        let heirs = |node| leader.and_then(|leader| self.heirs.get(&(leader, node))).copied().unwrap_or(0);
        followers.sort_by_key(|site| (site.reluctance, heirs(site.node)));
        let nodes: Vec<NodeId> = leader.into_iter().chain(followers.iter().map(|site| site.node)).collect();
        let places = nodes
            .iter()
            .enumerate()
            .map(|(at, node)| self.settle(*node, at == 0, random))
            .collect::<Vec<_>>();
        self.note_heir(&places);
        Ok(places)
    }

    /// Places one more replica of a partition that has some, and takes it into account.
    ///
    /// `on`: the node that it must go to, if that was asked for. Errors: [`PlacementError`]; nothing has changed.
    pub(super) fn place_replica(
        &mut self,
        record: &PartitionRecord,
        on: Option<NodeId>,
        random: &mut dyn FnMut() -> u128,
    ) -> Result<ReplicaRecord, PlacementError> {
        let is_free =
            |site: &&Site| record.on_node(site.node).is_none() && on.is_none_or(|node| node == site.node);
        let best = self.sites.values().filter(is_free).min_by_key(|s| (s.reluctance, s.load.as_follower()));
        let Some(node) = best.map(|site| site.node) else {
            let wanted = record.replicas.len() + 1;
            return Err(PlacementError::TooFewNodes { wanted, available: self.sites.len() });
        };
        Ok(self.settle(node, false, random))
    }

    /// The data directory of a node with the most room; counts as used by one more replica.
    pub(super) fn take_dir(&mut self, node: NodeId) -> Option<DataDirId> {
        Some(self.sites.get_mut(&node)?.take_dir())
    }

    fn settle(&mut self, node: NodeId, is_leader: bool, random: &mut dyn FnMut() -> u128) -> ReplicaRecord {
        let site = self.sites.get_mut(&node).expect("only nodes with a site are chosen");
        let shard = site.best_shard(is_leader);
        let replica = ReplicaRecord { node, log: LogId(random()), dir: site.take_dir(), shard };
        site.loads_of(&replica).for_each(|load| {
            load.add(is_leader);
            load.add_of_topic(is_leader);
        });
        replica
    }
}

impl Dir {
    fn take(&mut self) {
        self.free_bytes -= RESERVE_BYTES;
        self.replicas += 1;
    }
}

impl Site {
    /// What counts a replica: the node and the shard.
    fn loads_of(&mut self, replica: &ReplicaRecord) -> impl Iterator<Item = &mut Load> {
        let shard = usize::from(replica.shard) % self.shards.len();
        [&mut self.load, &mut self.shards[shard]].into_iter()
    }

    fn best_shard(&self, is_leader: bool) -> u16 {
        let load = |shard: &Load| {
            if is_leader {
                (shard.as_leader(), Default::default())
            } else {
                (Default::default(), shard.as_follower())
            }
        };
        let best = self.shards.iter().enumerate().min_by_key(|(_, shard)| load(shard));
        let (at, load) = best.expect("decoding holds a node to at least one shard");
        // Counted on round by round, so that they are spread as evenly over any other number of shards.
        let shards = self.shards.len();
        let rounds = (usize::from(u16::MAX) + 1) / shards;
        u16::try_from(at + load.replicas % rounds * shards).expect("below the last round's end")
    }

    fn take_dir(&mut self) -> DataDirId {
        // Among equals the one with fewer replicas, then the first.
        let best = self.dirs.iter_mut().rev().max_by_key(|dir| (dir.free_bytes, Reverse(dir.replicas)));
        let dir = best.expect("a site has a data directory");
        dir.take();
        dir.id
    }
}

#[cfg(test)]
mod tests;
