//! Tests of the picture: events in, answers out.

use super::*;
use crate::cluster::{DataDirId, PartitionLeader, ShardRecord};
use corelog_engine::{LeaderEpoch, TimestampMs};

const TOPIC: TopicId = TopicId(0xa);
const PARTITION: TopicPartition = TopicPartition { topic: TOPIC, partition: PartitionId(0) };

fn entry(subject: &Subject, record: &impl Stored, version: i64) -> Entry {
    Entry { key: subject.key(), value: record.encode(), version: Version(version) }
}

fn node(number: u32, incarnation: u64, shards: u16) -> Entry {
    let endpoint = |port| Endpoint { host: format!("n{number}"), port };
    let record = NodeRecord {
        node: NodeId(number),
        incarnation: Incarnation(incarnation),
        started: TimestampMs(0),
        program_version: String::new(),
        rack: String::new(),
        shards: (0..shards)
            .map(|shard| ShardRecord {
                core: shard,
                client: endpoint(shard),
                replication: endpoint(100 + shard),
            })
            .collect(),
        data_dirs: vec![],
        is_stopping: false,
        http: None,
    };
    entry(&Subject::Node(NodeId(number)), &record, 0)
}

fn replica(node: u32, shard: u16) -> ReplicaRecord {
    ReplicaRecord { node: NodeId(node), log: LogId(u128::from(node)), dir: DataDirId(1), shard }
}

fn partition() -> PartitionRecord {
    PartitionRecord {
        replicas: vec![replica(1, 3), replica(2, 0)],
        isr: vec![replica(1, 3).id(), replica(2, 0).id()],
        leader: Some(PartitionLeader { replica: replica(1, 3).id(), incarnation: Incarnation(1) }),
        leader_epoch: LeaderEpoch(2),
        unclean_epoch: None,
    }
}

fn topic() -> Entry {
    let record = TopicRecord {
        id: TOPIC,
        name: "t".to_owned(),
        created: TimestampMs(0),
        partitions: 1,
        replicas: 2,
        is_internal: false,
        options: BTreeMap::from([(MIN_INSYNC_REPLICAS.to_owned(), "2".to_owned())]),
    };
    entry(&Subject::Topic(TOPIC), &record, 0)
}

fn state() -> ClusterState {
    let mut state = ClusterState::default();
    let entries = vec![
        node(1, 1, 2),
        node(2, 1, 1),
        node(3, 1, 1),
        topic(),
        entry(&Subject::Name("t".to_owned()), &NamedTopic(TOPIC), 0),
        entry(&Subject::Partition(PARTITION), &partition(), 7),
    ];
    assert_eq!(state.apply(&Event::State { session: 1, entries }), Changed::All);
    assert!(state.problems.is_empty(), "{:?}", state.problems);
    state
}

fn role(state: &ClusterState, node: u32, incarnation: u64) -> Option<Role> {
    state.assignment(NodeId(node), Incarnation(incarnation), PARTITION).map(|assignment| assignment.role)
}

#[test]
fn each_replica_has_its_part() {
    let state = state();
    let leader = replica(1, 3).id();
    assert_eq!(role(&state, 1, 1), Some(Role::Lead));
    assert_eq!(role(&state, 2, 1), Some(Role::Follow { leader, shard: 1 }), "shard 3 of 2 is shard 1");
    assert_eq!(role(&state, 3, 1), None);
    let assignment = state.assignment(NodeId(2), Incarnation(1), PARTITION).expect("node 2 has a replica");
    assert_eq!(assignment.version, Version(7));
    assert_eq!(assignment.min_insync_replicas, 2);
    assert_eq!(assignment.isr, partition().isr);
    assert_eq!(state.leader_location(PARTITION), Some((NodeId(1), 1)));
    assert_eq!(state.replication_endpoint(NodeId(1), 1).map(|endpoint| endpoint.port), Some(101));
    assert_eq!(state.topic_named("t").map(|topic| topic.id), Some(TOPIC));
    assert_eq!(state.partitions_of(TOPIC).count(), 1);
    assert_eq!(state.partitions_of(TopicId(TOPIC.0 + 1)).count(), 0);
}

#[test]
fn a_restarted_leader_does_not_resume() {
    let mut state = state();
    assert_eq!(state.apply(&Event::Changed(node(1, 2, 2))), Changed::Subject(Subject::Node(NodeId(1))));
    assert_eq!(role(&state, 1, 2), Some(Role::Wait));
    assert_eq!(role(&state, 2, 1), Some(Role::Wait));
    assert_eq!(state.leader_location(PARTITION), None);
}

#[test]
fn a_leader_without_registration_goes_on_and_its_followers_wait() {
    let mut state = state();
    state.apply(&Event::Removed { key: "/nodes/1".to_owned() });
    assert_eq!(role(&state, 1, 1), Some(Role::Lead));
    assert_eq!(role(&state, 2, 1), Some(Role::Wait));
    assert!(!state.is_live(NodeId(1)));
}

#[test]
fn a_deleted_topic_gives_nobody_work() {
    let mut state = state();
    state.apply(&Event::Removed { key: Subject::Topic(TOPIC).key() });
    assert_eq!(role(&state, 1, 1), None);
    assert!(state.topic_named("t").is_none());
}

#[test]
fn suspicions_count_against_the_present_start_alone() {
    let mut state = state();
    let suspicion = |incarnation| Suspicion { by: NodeId(2), node: NodeId(1), incarnation };
    let subject = Subject::Suspicion { by: NodeId(2), node: NodeId(1) };
    state.apply(&Event::Changed(entry(&subject, &suspicion(Incarnation(1)), 0)));
    assert!(!state.is_live(NodeId(1)) && state.is_suspected(NodeId(1)));
    state.apply(&Event::Changed(node(1, 2, 2)));
    assert!(state.is_live(NodeId(1)), "it was started again");
    state.apply(&Event::Changed(entry(&subject, &suspicion(Incarnation(2)), 1)));
    assert!(!state.is_live(NodeId(1)));
    state.apply(&Event::Removed { key: subject.key() });
    assert!(state.is_live(NodeId(1)));
}

#[test]
fn a_bad_value_is_a_problem_and_counts_as_absent() {
    let mut state = state();
    let key = Subject::Partition(PARTITION).key();
    let bad = Entry { key: key.clone(), value: Rc::from(&b"{}"[..]), version: Version(8) };
    assert_eq!(state.apply(&Event::Changed(bad)), Changed::Subject(Subject::Partition(PARTITION)));
    assert!(state.problems.contains_key(&key));
    assert_eq!(role(&state, 1, 1), None);
    state.apply(&Event::Changed(entry(&Subject::Partition(PARTITION), &partition(), 9)));
    assert!(state.problems.is_empty());
    assert_eq!(role(&state, 1, 1), Some(Role::Lead));
    let misplaced = Entry { key: "/nodes/9".to_owned(), ..node(1, 1, 1) };
    state.apply(&Event::Changed(misplaced));
    assert!(state.problems.contains_key("/nodes/9") && !state.nodes.contains_key(&NodeId(9)));
    state.apply(&Event::Removed { key: "/nodes/9".to_owned() });
    assert!(state.problems.is_empty());
}

#[test]
fn a_new_picture_replaces_the_old_one() {
    let mut state = state();
    assert_eq!(state.apply(&Event::Suspended), Changed::Nothing);
    assert_eq!(state.apply(&Event::Expired), Changed::Nothing);
    assert_eq!(state.nodes.len(), 3, "without a session the last picture stays");
    state.apply(&Event::State { session: 2, entries: vec![topic()] });
    assert_eq!((state.nodes.len(), state.partitions.len(), state.topics.len()), (0, 0, 1));
    assert_eq!(
        state.apply(&Event::Changed(Entry {
            key: "/elections/1".to_owned(),
            value: Rc::from(&b""[..]),
            version: Version(0)
        })),
        Changed::Nothing
    );
}
