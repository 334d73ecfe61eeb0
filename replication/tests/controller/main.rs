//! Random lives of clusters against the controller's invariants (C1 to C5 of `controller/mod.rs`).
//!
//! Setup: nodes that come, go, restart, lose disks and suspect each other; leaders that change their ISR; operators; two
//! controllers with pictures of different age, whose commits get lost. One store in memory. Every commit is judged.
//! Must never happen: two leaders in one epoch, a leader from outside the ISR without an operator's order, an empty ISR,
//! a change by a deposed controller; and, once the faults end, a cluster that does not come to rest, or that rests with
//! a partition that has no leader although somebody has everything.

mod steps;
mod store;
mod world;

use std::collections::BTreeMap;

use corelog_engine::{TimestampMs, TopicId};
use corelog_replication::NodeId;
use corelog_replication::cluster::keys::Subject;
use corelog_replication::controller::admin::{self, NewTopic};
use proptest::prelude::*;

use steps::{Step, step};
use world::{By, OPTIONS, World};

/// Ends all faults: everybody runs, nobody is suspected, drained or broken. What is lost stays lost.
fn heal(world: &mut World) {
    let nodes: Vec<NodeId> = world.nodes.keys().copied().collect();
    nodes.iter().for_each(|node| world.start(*node));
    let suspicions: Vec<_> = world.newest.suspicions.keys().copied().collect();
    suspicions.into_iter().for_each(|(by, node)| world.suspect(by, node, false));
    for node in nodes {
        for ops in admin::drain(&world.newest, node, false).expect("all nodes run") {
            world.commit(By::Operator, &ops).expect("the picture is the newest");
        }
    }
    world.take_seat(0);
}

/// Lets time pass until the controller wants nothing for longer than any of its delays.
fn settle(world: &mut World) {
    let mut quiet_since_ms = world.now_ms;
    for _ in 0..400 {
        world.see(0, usize::MAX);
        if world.plan(0, 0) > 0 {
            quiet_since_ms = world.now_ms;
        }
        let partitions: Vec<_> = world.newest.partitions.keys().copied().collect();
        partitions.into_iter().for_each(|id| world.grow(id));
        let removals: Vec<_> = world.newest.removals.keys().copied().collect();
        removals.into_iter().for_each(|id| world.forget(&Subject::Removal(id)));
        world.now_ms += 100;
        if world.now_ms - quiet_since_ms > OPTIONS.balance_delay_ms + OPTIONS.unmade_topic_ms {
            return;
        }
    }
    panic!("the controller finds no rest");
}

/// What holds of a cluster at rest, all of whose nodes run.
fn check_settled(world: &World) {
    let picture = &world.newest;
    assert!(picture.deletions.is_empty(), "{:?}", picture.deletions);
    for (id, record) in &picture.partitions {
        assert!(picture.topics.contains_key(&id.topic), "{id:?} belongs to no topic");
        let holds_all = |replica: &corelog_replication::ReplicaId| {
            record.replica(*replica).is_some_and(|place| world.can_follow(*replica, place.dir))
        };
        // Of an unverified sole member only an operator can say whether it will do.
        let is_electable =
            |r: &corelog_replication::ReplicaId| holds_all(r) && !picture.faults.contains_key(r);
        if record.isr.iter().any(is_electable) {
            assert!(record.leader.is_some(), "{id:?} has no leader: {record:?}");
            assert_eq!(record.isr.len(), record.replicas.len(), "{id:?} is not in sync: {record:?}");
            assert_eq!(record.leader.map(|leader| leader.replica), Some(record.replicas[0].id()));
        } else {
            assert!(record.leader.is_none(), "{id:?} is led by nobody who could: {record:?}");
        }
    }
    for topic in picture.topics.values().filter(|topic| topic.is_internal) {
        let wanted = picture.nodes.len().min(3);
        let is_grown = picture
            .partitions_of(topic.id)
            .all(|(_, record)| record.leader.is_none() || record.replicas.len() >= wanted);
        assert!(is_grown, "{topic:?} has not grown with the cluster");
    }
}

fn create(world: &mut World, name: &str, partitions: u32, replicas: u16) -> TopicId {
    let mut ids = world.ids();
    let new = NewTopic {
        id: TopicId(ids()),
        name: name.to_owned(),
        partitions,
        replicas,
        is_internal: false,
        options: BTreeMap::new(),
        created: TimestampMs(0),
    };
    for ops in admin::create_topic(&world.newest, &new, &mut ids).expect("there are nodes enough") {
        world.commit(By::Operator, &ops).expect("the picture is the newest");
    }
    new.id
}

/// Leaders of each node.
fn leaders(world: &World) -> BTreeMap<NodeId, usize> {
    let mut counts: BTreeMap<NodeId, usize> = world.nodes.keys().map(|node| (*node, 0)).collect();
    for leader in world.newest.partitions.values().filter_map(|record| record.leader) {
        *counts.entry(leader.replica.node).or_default() += 1;
    }
    counts
}

fn assert_even(world: &World) {
    let counts = leaders(world);
    let (least, most) = (counts.values().min(), counts.values().max());
    assert!(least.zip(most).is_some_and(|(least, most)| most - least <= 1), "{counts:?}");
}

/// One life of a cluster, to its good end.
fn live(nodes: u32, steps: Vec<Step>) {
    let mut world = World::new(nodes, 2);
    steps.into_iter().for_each(|step| world.take(step));
    heal(&mut world);
    settle(&mut world);
    check_settled(&world);
}

fn life() -> impl Strategy<Value = (u32, Vec<Step>)> {
    (1_u32..6, prop::collection::vec(step(), 1..150))
}

/// So many cases, or as many as `PROPTEST_CASES` asks for.
fn cases(few: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_some() {
        config
    } else {
        ProptestConfig { cases: few, ..config }
    }
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn whatever_happens_the_rules_hold_and_it_heals((nodes, steps) in life()) {
        live(nodes, steps);
    }

}

proptest! {
    #![proptest_config(cases(20))]

    #[test]
    fn leaders_are_even_again_after_any_failures(
        nodes in 2_u32..6,
        partitions in 1_u32..40,
        steps in prop::collection::vec((0_u32..6, any::<bool>()), 0..20),
    ) {
        let mut world = World::new(nodes, 1);
        create(&mut world, "all", partitions, u16::try_from(nodes).expect("few"));
        world.take_seat(0);
        for (node, starts) in steps {
            world.take(if starts { Step::Start(node) } else { Step::Stop(node) });
            world.see(0, usize::MAX);
            world.plan(0, 0);
        }
        heal(&mut world);
        settle(&mut world);
        check_settled(&world);
        assert_even(&world);
    }
}

#[test]
fn a_settled_cluster_is_left_alone() {
    let mut world = World::new(3, 1);
    create(&mut world, "t", 12, 3);
    world.take_seat(0);
    settle(&mut world);
    check_settled(&world);
    assert_even(&world);
    assert_eq!(world.elections, 12, "each partition was led by its preferred leader from the first");
    world.see(0, usize::MAX);
    for _ in 0..100 {
        world.now_ms += 1_000;
        assert_eq!(world.plan(0, 0), 0);
    }
}

#[test]
fn a_node_alone_grows_into_a_cluster_with_even_leaders() {
    let mut world = World::new(3, 1);
    [2, 3].map(NodeId).into_iter().for_each(|node| world.stop(node));
    let topic = create(&mut world, "t", 9, 0);
    assert_eq!(world.newest.topics[&topic].replicas, 1, "one node, one replica");
    world.take_seat(0);
    settle(&mut world);
    assert_eq!(leaders(&world)[&NodeId(1)], 9);
    heal(&mut world);
    let mut ids = world.ids();
    for ops in admin::set_replicas(&world.newest, topic, 3, &mut ids).expect("three nodes run") {
        world.commit(By::Operator, &ops).expect("the picture is the newest");
    }
    settle(&mut world);
    check_settled(&world);
    assert_even(&world);
}

#[test]
fn a_dead_node_is_replaced_by_one_more_replica() {
    let mut world = World::new(4, 1);
    create(&mut world, "t", 1, 3);
    world.take_seat(0);
    settle(&mut world);
    let (id, before) = world.newest.partitions.iter().next().map(|(id, r)| (*id, r.clone())).expect("one");
    let dead = before.replicas[1].node;
    world.stop(dead);
    let mut ids = world.ids();
    for ops in admin::add_replica(&world.newest, id, None, &mut ids).expect("a fourth node runs") {
        world.commit(By::Operator, &ops).expect("the picture is the newest");
    }
    settle(&mut world);
    let after = world.newest.partitions[&id].clone();
    assert!(after.on_node(dead).is_none(), "{after:?}");
    assert_eq!((after.replicas.len(), after.isr.len()), (3, 3));
    let forgotten = admin::forget_node(&world.newest, dead).expect("it has no replica any more");
    assert!(!forgotten.is_empty());
}

#[cfg(feature = "canary")]
#[test]
fn planted_bugs_are_found() {
    use corelog_replication::canary::{Canary, plant};
    use proptest::test_runner::{Config, TestRunner};
    for canary in [Canary::ElectOutsideIsr, Canary::WipedReplicaInSync] {
        plant(Some(canary));
        let config =
            Config { cases: 2_000, max_shrink_iters: 0, failure_persistence: None, ..Config::default() };
        let verdict = TestRunner::new(config).run(&life(), |(nodes, steps)| {
            live(nodes, steps);
            Ok(())
        });
        plant(None);
        assert!(verdict.is_err(), "{canary:?} was not found");
    }
}
