//! Tests of placement: who gets what, and how evenly.

use std::rc::Rc;

use corelog_engine::{LeaderEpoch, PartitionId, TimestampMs, TopicPartition};

use super::*;
use crate::cluster::{Endpoint, Incarnation, NodeIntent, NodeRecord, ShardRecord, TopicRecord, Versioned};
use crate::coordination::{Entry, Event, Version};

const TOPIC: TopicId = TopicId(1);

fn versioned<R>(record: R) -> Versioned<R> {
    Versioned { version: Version(0), record: Rc::new(record) }
}

/// Nodes from 1, each with these shards and free bytes of data directories (ids `node * 10 + index`).
fn cluster(nodes: &[(usize, &[u64])]) -> ClusterState {
    use crate::cluster::Stored;
    use crate::cluster::keys::Subject;
    let endpoint = || Endpoint { host: "n".to_owned(), port: 1 };
    let entry = |(number, (shards, dirs)): (u32, &(usize, &[u64]))| {
        let dir = |(at, free): (u128, &u64)| DataDirRecord {
            id: DataDirId(u128::from(number) * 10 + at),
            free_bytes: *free,
        };
        let record = NodeRecord {
            node: NodeId(number),
            incarnation: Incarnation(1),
            started: TimestampMs(0),
            program_version: String::new(),
            rack: String::new(),
            shards: vec![ShardRecord { core: 0, client: endpoint(), replication: endpoint() }; *shards],
            data_dirs: (0..).zip(*dirs).map(dir).collect(),
            is_stopping: false,
            http: None,
        };
        let key = Subject::Node(NodeId(number)).key();
        Entry { key, value: record.encode(), version: Version(0) }
    };
    let mut state = ClusterState::default();
    state.apply(&Event::State { session: 1, entries: (1..).zip(nodes).map(entry).collect() });
    state
}

fn counter() -> impl FnMut() -> u128 {
    let mut next = 0;
    move || {
        next += 1;
        next
    }
}

/// Places a topic and stores it in the picture.
fn place(
    state: &mut ClusterState,
    topic: TopicId,
    partitions: u32,
    replicas: u16,
) -> Vec<Vec<ReplicaRecord>> {
    let mut sites = Sites::of(state);
    sites.see_topic(state, topic);
    let mut random = counter();
    let record = TopicRecord {
        id: topic,
        name: format!("t{}", topic.0),
        created: TimestampMs(0),
        partitions,
        replicas,
        is_internal: false,
        options: BTreeMap::new(),
    };
    state.topics.insert(topic, versioned(record));
    (0..partitions)
        .map(|number| {
            let places = sites.place_partition(replicas, &mut random).expect("there are nodes enough");
            let record = PartitionRecord {
                isr: places.iter().map(ReplicaRecord::id).collect(),
                replicas: places.clone(),
                leader: None,
                leader_epoch: LeaderEpoch(0),
                unclean_epoch: None,
            };
            record.check().expect("no node has two replicas");
            let id = TopicPartition { topic, partition: PartitionId(number) };
            state.partitions.insert(id, versioned(record));
            places
        })
        .collect()
}

/// How often each node (from 1) is chosen by `pick`.
fn counts(
    places: &[Vec<ReplicaRecord>],
    pick: impl Fn(&[ReplicaRecord]) -> Vec<u32>,
) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    places.iter().flat_map(|replicas| pick(replicas)).for_each(|who| *counts.entry(who).or_default() += 1);
    counts
}

fn is_even(counts: &BTreeMap<u32, usize>, kinds: usize) -> bool {
    let (least, most) = (counts.values().min(), counts.values().max());
    counts.len() == kinds && least.zip(most).is_some_and(|(least, most)| most - least <= 1)
}

#[test]
fn leaders_heirs_and_replicas_are_even_over_nodes() {
    let mut state = cluster(&[(2, &[1 << 40]), (2, &[1 << 40]), (2, &[1 << 40])]);
    let places = place(&mut state, TOPIC, 12, 3);
    assert!(is_even(&counts(&places, |r| vec![r[0].node.0]), 3));
    assert!(is_even(&counts(&places, |r| r.iter().map(|r| r.node.0).collect()), 3));
    let heirs = counts(&places, |r| vec![r[0].node.0 * 10 + r[1].node.0]);
    assert!(is_even(&heirs, 6), "{heirs:?}");
    let shards = counts(&places, |r| vec![r[0].node.0 * 10 + u32::from(r[0].shard % 2)]);
    assert!(is_even(&shards, 6), "{shards:?}");
}

#[test]
fn one_replica_each_goes_around() {
    let mut state = cluster(&[(1, &[1 << 40]), (4, &[1 << 40])]);
    let places = place(&mut state, TOPIC, 8, 1);
    assert!(is_even(&counts(&places, |r| vec![r[0].node.0]), 2));
    let shards =
        counts(&places, |r| (r[0].node.0 == 2).then_some(u32::from(r[0].shard % 4)).into_iter().collect());
    assert!(is_even(&shards, 4), "{shards:?}");
}

#[test]
fn an_emptier_node_gets_its_share_of_a_topic_and_the_odd_ones() {
    let mut state = cluster(&[(1, &[1 << 40]), (1, &[1 << 40])]);
    place(&mut state, TOPIC, 1, 1);
    let second = place(&mut state, TopicId(2), 1, 1);
    assert_eq!(second[0][0].node, NodeId(2), "it has less");
    place(&mut state, TopicId(3), 2, 1);
    let many = place(&mut state, TopicId(4), 6, 1);
    assert!(is_even(&counts(&many, |r| vec![r[0].node.0]), 2), "a topic is spread whatever else there is");
}

#[test]
fn disks_are_filled_by_their_room() {
    const GIB: u64 = 1 << 30;
    let mut state = cluster(&[(1, &[10 * GIB, 13 * GIB])]);
    let places = place(&mut state, TOPIC, 5, 1);
    let dirs: Vec<u128> = places.iter().map(|r| r[0].dir.0).collect();
    assert_eq!(dirs, [11, 11, 11, 10, 11]);
    let next = place(&mut state, TopicId(2), 1, 1);
    assert_eq!(next[0][0].dir.0, 10, "what was placed counts although the free bytes are old");
}

#[test]
fn too_few_nodes_say_so() {
    let state = cluster(&[(1, &[1]), (1, &[])]);
    let mut sites = Sites::of(&state);
    let error = sites.place_partition(2, &mut counter()).expect_err("one node has no disk");
    assert_eq!(error, PlacementError::TooFewNodes { wanted: 2, available: 1 });
}

#[test]
fn a_drained_node_is_the_last_choice() {
    let mut state = cluster(&[(1, &[1 << 40]), (1, &[1 << 40]), (1, &[1 << 40])]);
    state.intents.insert(NodeId(1), versioned(NodeIntent { node: NodeId(1), is_drained: true }));
    let places = place(&mut state, TOPIC, 4, 2);
    assert!(places.iter().flatten().all(|replica| replica.node != NodeId(1)));
    let wide = place(&mut state, TopicId(2), 4, 3);
    assert!(wide.iter().all(|replicas| replicas[2].node == NodeId(1)));
}

#[test]
fn one_more_replica_goes_where_none_is() {
    let mut state = cluster(&[(1, &[1 << 40]), (1, &[1 << 40]), (1, &[1 << 40])]);
    place(&mut state, TOPIC, 1, 2);
    let id = TopicPartition { topic: TOPIC, partition: PartitionId(0) };
    let record = state.partitions[&id].record.clone();
    let mut sites = Sites::of(&state);
    sites.see_topic(&state, TOPIC);
    let more = sites.place_replica(&record, None, &mut counter()).expect("there is a third node");
    assert!(record.on_node(more.node).is_none());
    let taken = sites.place_replica(&record, Some(record.replicas[0].node), &mut counter());
    assert!(taken.is_err());
}
