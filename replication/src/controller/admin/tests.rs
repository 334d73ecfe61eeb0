//! Tests of what operators ask for: pictures before and after, and refusals.

use std::collections::BTreeMap;
use std::fmt::Debug;

use corelog_engine::{TimestampMs, TopicId};

use super::*;
use crate::controller::fixture::{TOPIC, cluster, commit, id, log, show};
use crate::controller::placement::PlacementError;
use crate::coordination::{OPS_MAX, Op, check_limits};
use crate::replica::{NodeId, ReplicaId};

fn ids() -> impl FnMut() -> u128 {
    let mut next = 554;
    move || {
        next += 1;
        next
    }
}

/// Decides, commits, and shows the first partition.
fn check<E: Debug>(
    nodes: &str,
    before: &str,
    decide: impl Fn(&ClusterState) -> Result<Vec<Vec<Op>>, E>,
    after: Result<&str, &str>,
) {
    let mut state = cluster(nodes, &[before]);
    let found = decide(&state).map_err(|error| format!("{error:?}"));
    let found = found.map(|commits| {
        commit(&mut state, &commits, &mut BTreeMap::new());
        show(&state, 0)
    });
    match (found, after) {
        (Ok(found), Ok(after)) => assert_eq!(found, after, "{before} with {nodes}"),
        (Err(found), Err(after)) => assert!(found.contains(after), "{before} with {nodes}: {found}"),
        (found, after) => panic!("{before} with {nodes}: {found:?}, not {after:?}"),
    }
}

#[test]
fn a_replica_is_added_where_asked_or_where_there_is_least() {
    let add =
        |on: Option<u32>| move |state: &ClusterState| add_replica(state, id(0), on.map(NodeId), &mut ids());
    check("1.1 2.1 3.1", "1* 2* / 1.1 e5", add(None), Ok("1* 2* 3@555 / 1.1 e5"));
    check("1.1 2.1 3.1 4.1", "1* 2* / 1.1 e5", add(Some(4)), Ok("1* 2* 4@555 / 1.1 e5"));
    check("1.1 2.1 3.1", "1* 2* / 1.1 e5", add(Some(2)), Err("HasOne"));
    check("1.1 2.1", "1* 2* / 1.1 e5", add(Some(3)), Err("NodeUnavailable"));
    check("1.1 2.1", "1* 2* / 1.1 e5", add(None), Err("TooFewNodes { wanted: 3, available: 2 }"));
}

#[test]
fn a_replica_is_removed_unless_it_is_needed() {
    let remove = |node| move |state: &ClusterState| remove_replica(state, id(0), NodeId(node));
    check("1.1 2.1 3.1", "1* 2* 3* / 1.1 e5", remove(2), Ok("1* 3* / 1.1 e5"));
    check("1.1 2.1 3.1", "1* 2* 3* / 1.1 e5", remove(1), Ok("2* 3* / 2.1 e6"));
    check("1.1 2.1:drained 3.1", "1* 2* 3* / 1.1 e5", remove(1), Ok("2* 3* / 3.1 e6"));
    check("1.1 2.1", "1* 2* 3 / 1.1 e5", remove(3), Ok("1* 2* / 1.1 e5"));
    check("1.1 2.1", "1* 2 / 1.1 e5", remove(1), Err("LastInSync"));
    check("1.1", "1* / 1.1 e5", remove(1), Err("LastReplica"));
    check("1.1", "1* 2* / 1.1 e5", remove(1), Err("NoSuccessor"));
    check("1.1 2.1", "1* 2* / 1.1 e5", remove(3), Err("NoReplica"));
    check("2.1", "1* 2* / - e5", remove(1), Ok("2* / - e5"));
}

#[test]
fn a_removed_replica_leaves_an_order_to_delete_its_log() {
    let mut state = cluster("1.1 2.1", &["1* 2* / 1.1 e5"]);
    let commits = remove_replica(&state, id(0), NodeId(2)).expect("1 is in sync");
    commit(&mut state, &commits, &mut BTreeMap::new());
    let (_, removal) = state.removals_of(NodeId(2)).next().expect("node 2 has something to delete");
    assert_eq!((removal.topic, removal.name.as_str()), (TOPIC, "t"));
    assert_eq!(removal.logs.iter().map(|removed| removed.log).collect::<Vec<_>>(), [log(2)]);
    assert_eq!(state.removals_of(NodeId(1)).count(), 0);
}

#[test]
fn the_number_of_replicas_is_set_for_a_whole_topic() {
    let mut state = cluster("1.1 2.1 3.1", &["1* 2 / 1.1 e5", "3* 1* / 3.1 e1"]);
    let mut stored = BTreeMap::new();
    let commits = set_replicas(&state, TOPIC, 3, &mut ids()).expect("three nodes run");
    commit(&mut state, &commits, &mut stored);
    assert_eq!(show(&state, 0), "1* 2 3@555 / 1.1 e5");
    assert_eq!(state.topics[&TOPIC].replicas, 3);
    assert_eq!(set_replicas(&state, TOPIC, 3, &mut ids()), Ok(vec![]), "it is so already");
    let commits = set_replicas(&state, TOPIC, 1, &mut ids()).expect("each has a member of its ISR");
    commit(&mut state, &commits, &mut stored);
    assert_eq!([0, 1].map(|number| show(&state, number)), ["1* / 1.1 e5", "3* / 3.1 e1"]);
    assert_eq!(state.removals.len(), 4);
    assert_eq!(set_replicas(&state, TOPIC, 0, &mut ids()), Err(SetReplicasError::None));
    let few = PlacementError::TooFewNodes { wanted: 4, available: 3 };
    assert_eq!(set_replicas(&state, TOPIC, 4, &mut ids()), Err(SetReplicasError::Placement(few)));
}

#[test]
fn the_preferred_leader_leads_on_request() {
    let elect = |state: &ClusterState| elect_preferred(state, id(0));
    check("1.1 2.1", "1* 2* / 2.1 e5", elect, Ok("1* 2* / 1.1 e6"));
    check("1.1 2.1", "1* 2* / 1.1 e5", elect, Ok("1* 2* / 1.1 e5"));
    check("1.1 2.1", "1 2* / 2.1 e5", elect, Err("Unfit { node: NodeId(1) }"));
    check("1.1:drained 2.1", "1* 2* / 2.1 e5", elect, Err("Unfit"));
    check("2.1", "1* 2 / - e5", elect, Err("Offline"));
    let all = |state: &ClusterState| Ok::<_, ()>(elect_all_preferred(state, Some(TOPIC)));
    check("1.1 2.1", "1* 2* / 2.1 e5", all, Ok("1* 2* / 1.1 e6"));
    let none = |state: &ClusterState| Ok::<_, ()>(elect_all_preferred(state, Some(TopicId(9))));
    check("1.1 2.1", "1* 2* / 2.1 e5", none, Ok("1* 2* / 2.1 e5"));
}

#[test]
fn records_are_given_up_only_if_nobody_has_them() {
    let elect =
        |on: Option<u32>| move |state: &ClusterState| elect_unclean(state, id(0), on.map(NodeId), &mut ids());
    check("2.1 3.1", "1* 2 3 / - e5", elect(None), Ok("1 2* 3 / 2.1 e6 u6"));
    check("2.1 3.1", "1* 2 3 / 1.1 e5", elect(Some(3)), Ok("1 2 3* / 3.1 e6 u6"));
    check("1.1 2.1", "1* 2 3 / 1.1 e5", elect(None), Err("CleanPossible"));
    check("1.2 2.1", "1* 2 3 / - e5", elect(None), Err("CleanPossible"));
    check("1.1:unverified 2.1", "1* 2 / - e5", elect(None), Ok("1* 2 / 1.1 e6 u6"));
    check("1.1:failed 2.1", "1* 2 / - e5", elect(None), Ok("1 2* / 2.1 e6 u6"));
    check("1.1:failed 2.1", "1* 2 / - e5", elect(Some(1)), Err("Unfit"));
    check("2.1", "1* 2 / - e5", elect(Some(4)), Err("NoReplica"));
    check("4.1", "1* 2 / - e5", elect(None), Err("NobodyRuns"));
}

#[test]
fn a_lost_log_begins_anew_on_request() {
    let elect = |state: &ClusterState| elect_unclean(state, id(0), None, &mut ids());
    check("1.2:nodir", "1* / - e5", elect, Ok("1@555* / 1@555.2 e6 u6"));
    check("1.2:lost", "1* 2 / - e5", elect, Ok("1@555* 2 / 1@555.2 e6 u6"));
    check("1.2:lost 2.1", "1* 2 / - e5", elect, Ok("1 2* / 2.1 e6 u6"));
}

#[test]
fn nodes_are_drained_and_forgotten() {
    let mut state = cluster("1.1 2.1", &["1* 2* / 1.1 e5"]);
    let mut stored = BTreeMap::new();
    assert_eq!(leaders_on(&state, NodeId(1)), 1);
    assert_eq!(drain(&state, NodeId(9), true), Err(DrainError::UnknownNode { node: NodeId(9) }));
    assert_eq!(drain(&state, NodeId(1), false), Ok(vec![]));
    let commits = drain(&state, NodeId(1), true).expect("node 1 is known");
    commit(&mut state, &commits, &mut stored);
    assert!(state.is_drained(NodeId(1)));
    let runs = ForgetNodeError::Runs { node: NodeId(1) };
    assert_eq!(forget_node(&state, NodeId(1)), Err(runs));
    let left = Op::Delete { key: "/nodes/1".to_owned(), version: crate::coordination::Version(0) };
    commit(&mut state, &[vec![left]], &mut stored);
    let has = ForgetNodeError::HasReplicas { node: NodeId(1), replicas: 1 };
    assert_eq!(forget_node(&state, NodeId(1)), Err(has));
    assert_eq!(forget_node(&state, NodeId(9)), Err(ForgetNodeError::UnknownNode { node: NodeId(9) }));
}

fn new_topic(partitions: u32, replicas: u16) -> NewTopic {
    NewTopic {
        id: TopicId(7),
        name: "new".to_owned(),
        partitions,
        replicas,
        is_internal: false,
        options: BTreeMap::new(),
        created: TimestampMs(5),
    }
}

#[test]
fn a_topic_is_created_enlarged_and_deleted() {
    let mut state = cluster("1.1 2.1 3.1", &[]);
    let mut stored = BTreeMap::new();
    let commits = create_topic(&state, &new_topic(2, 0), &mut ids()).expect("three nodes run");
    assert_eq!(commits.len(), 1, "one commit if it fits");
    commit(&mut state, &commits, &mut stored);
    let topic = state.topic_named("new").expect("it exists").clone();
    assert_eq!((topic.partitions, topic.replicas), (2, 3));
    assert!(
        state
            .partitions_of(topic.id)
            .all(|(_, record)| record.replicas.len() == 3 && record.leader.is_none())
    );
    assert_eq!(create_topic(&state, &new_topic(2, 0), &mut ids()), Ok(vec![]), "asked for again by the same");
    let other = NewTopic { id: TopicId(8), ..new_topic(1, 1) };
    let exists = CreateTopicError::Exists { name: "new".to_owned() };
    assert_eq!(create_topic(&state, &other, &mut ids()), Err(exists));

    let commits = create_partitions(&state, topic.id, 5, &mut ids()).expect("more than there are");
    commit(&mut state, &commits, &mut stored);
    assert_eq!(state.partitions_of(topic.id).count(), 5);
    assert_eq!(create_partitions(&state, topic.id, 5, &mut ids()), Ok(vec![]));
    let fewer = CreatePartitionsError::Fewer { existing: 5, requested: 4 };
    assert_eq!(create_partitions(&state, topic.id, 4, &mut ids()), Err(fewer));

    let options = BTreeMap::from([("flush".to_owned(), "interval".to_owned())]);
    let commits = alter_options(&state, topic.id, &options).expect("it exists");
    commit(&mut state, &commits, &mut stored);
    assert_eq!(state.topics[&topic.id].options, options);

    let commits = delete_topic(&state, topic.id).expect("it exists");
    commit(&mut state, &commits, &mut stored);
    assert!(state.topic_named("new").is_none() && state.names.is_empty());
    assert_eq!(state.deletions.len(), 1);
    assert_eq!(delete_topic(&state, topic.id), Err(UnknownTopic { topic: topic.id }));
}

#[test]
fn a_large_topic_is_made_in_steps_that_can_be_taken_up_again() {
    let mut state = cluster("1.1 2.1 3.1", &[]);
    let mut stored = BTreeMap::new();
    let new = new_topic(1_000, 3);
    let commits = create_topic(&state, &new, &mut ids()).expect("three nodes run");
    assert!(commits.len() > 1000 / OPS_MAX);
    commits.iter().for_each(|ops| check_limits(ops).expect("each commit fits"));
    commit(&mut state, &commits[..3], &mut stored);
    assert!(state.topic_named("new").is_none(), "not before its last partition");
    let other = NewTopic { id: TopicId(8), ..new_topic(1, 1) };
    let in_use = CreateTopicError::NameInUse { name: "new".to_owned() };
    assert_eq!(create_topic(&state, &other, &mut ids()), Err(in_use));
    let made = state.partitions.len();
    assert!(made > 0 && made < 1_000);
    let rest = create_topic(&state, &new, &mut ids()).expect("it goes on");
    commit(&mut state, &rest, &mut stored);
    assert_eq!(state.partitions_of(new.id).count(), 1_000);
    assert_eq!(state.topic_named("new").map(|topic| topic.id), Some(new.id));
}

#[test]
fn what_cannot_be_is_refused() {
    let state = cluster("1.1 2.1", &["1* / 1.1 e1"]);
    let few = PlacementError::TooFewNodes { wanted: 3, available: 2 };
    assert_eq!(create_topic(&state, &new_topic(1, 3), &mut ids()), Err(few.into()));
    assert_eq!(create_topic(&state, &new_topic(0, 1), &mut ids()), Err(CreateTopicError::NoPartitions));
    let unknown = UnknownPartition { partition: id(1) };
    assert_eq!(elect_preferred(&state, id(1)), Err(unknown.into()));
    assert!(unknown.to_string().starts_with("there is no partition 1 of the topic with the id 0000"));
    let replica = ReplicaId { node: NodeId(1), log: log(1) };
    assert_eq!(
        elect_unclean(&state, id(0), None, &mut ids()),
        Err(ElectUncleanError::CleanPossible { replica })
    );
}
