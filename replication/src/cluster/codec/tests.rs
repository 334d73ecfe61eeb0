//! Tests of the stored form: golden text, round trips, and what is refused.

use proptest::prelude::*;

use super::*;

fn check<R: Stored + PartialEq + fmt::Debug>(record: &R, text: &str) {
    let value = record.encode();
    assert_eq!(std::str::from_utf8(&value).expect("JSON is text"), text);
    assert_eq!(&R::decode(&value).expect("what was encoded decodes"), record);
}

fn replica(node: u32, log: u128) -> ReplicaRecord {
    ReplicaRecord { node: NodeId(node), log: LogId(log), dir: DataDirId(5), shard: 1 }
}

fn partition() -> PartitionRecord {
    PartitionRecord {
        replicas: vec![replica(1, 10), replica(2, 11)],
        isr: vec![replica(2, 11).id()],
        leader: Some(PartitionLeader { replica: replica(2, 11).id(), incarnation: Incarnation(0xfe) }),
        leader_epoch: LeaderEpoch(3),
        unclean_epoch: None,
    }
}

#[test]
fn small_records_look_so() {
    check(&ClusterRecord { cluster_id: "c1".to_owned(), format: 1 }, r#"{"cluster_id":"c1","format":1}"#);
    check(&ControllerEpoch(u64::MAX), r#"{"epoch":18446744073709551615}"#);
    check(&NamedTopic(TopicId(1)), r#"{"topic":"00000000000000000000000000000001"}"#);
    check(&NodeIntent { node: NodeId(4), is_drained: true }, r#"{"node":4,"is_drained":true}"#);
    check(
        &ControllerRecord { node: NodeId(4), incarnation: Incarnation(u64::MAX), epoch: 9 },
        r#"{"node":4,"incarnation":"ffffffffffffffff","epoch":9}"#,
    );
    check(
        &Suspicion { by: NodeId(1), node: NodeId(2), incarnation: Incarnation(1) },
        r#"{"by":1,"node":2,"incarnation":"0000000000000001"}"#,
    );
    check(
        &Deletion { topic: TopicId(2), name: "t".to_owned() },
        r#"{"topic":"00000000000000000000000000000002","name":"t"}"#,
    );
    let kinds =
        [(FaultKind::Lost, "lost"), (FaultKind::Failed, "failed"), (FaultKind::Unverified, "unverified")];
    for (kind, word) in kinds {
        check(
            &ReplicaFault { replica: replica(1, 10).id(), kind, reason: "disk \"a\"".to_owned() },
            &format!(
                r#"{{"replica":"1/0000000000000000000000000000000a","kind":"{word}","reason":"disk \"a\""}}"#
            ),
        );
    }
}

#[test]
fn large_records_look_so() {
    let endpoint = |port| Endpoint { host: "n1".to_owned(), port };
    check(
        &NodeRecord {
            node: NodeId(1),
            incarnation: Incarnation(7),
            started: TimestampMs(1_700_000_000_000),
            program_version: "0.1.0".to_owned(),
            rack: String::new(),
            shards: vec![ShardRecord { core: 2, client: endpoint(1), replication: endpoint(2) }],
            data_dirs: vec![DataDirRecord { id: DataDirId(3), free_bytes: 100 }],
            is_stopping: false,
            http: Some(endpoint(3)),
        },
        concat!(
            r#"{"node":1,"incarnation":"0000000000000007","started_ms":1700000000000,"program_version":"0.1.0","#,
            r#""rack":"","shards":[{"core":2,"client":{"host":"n1","port":1},"replication":{"host":"n1","port":2}}],"#,
            r#""data_dirs":[{"id":"00000000000000000000000000000003","free_bytes":100}],"is_stopping":false,"#,
            r#""http":{"host":"n1","port":3}}"#
        ),
    );
    check(
        &TopicRecord {
            id: TopicId(1),
            name: "t".to_owned(),
            created: TimestampMs(5),
            partitions: 2,
            replicas: 3,
            is_internal: false,
            options: BTreeMap::from([("flush".to_owned(), "commit".to_owned())]),
        },
        concat!(
            r#"{"id":"00000000000000000000000000000001","name":"t","created_ms":5,"partitions":2,"replicas":3,"#,
            r#""is_internal":false,"options":{"flush":"commit"}}"#
        ),
    );
    check(
        &partition(),
        concat!(
            r#"{"replicas":[{"node":1,"log":"0000000000000000000000000000000a","dir":"00000000000000000000000000000005","shard":1},"#,
            r#"{"node":2,"log":"0000000000000000000000000000000b","dir":"00000000000000000000000000000005","shard":1}],"#,
            r#""isr":["2/0000000000000000000000000000000b"],"#,
            r#""leader":{"replica":"2/0000000000000000000000000000000b","incarnation":"00000000000000fe"},"leader_epoch":3}"#
        ),
    );
    check(
        &Removal {
            node: NodeId(1),
            topic: TopicId(1),
            name: "t".to_owned(),
            logs: vec![RemovedLog { partition: 4, log: LogId(1), dir: DataDirId(2) }],
        },
        concat!(
            r#"{"node":1,"topic":"00000000000000000000000000000001","name":"t","logs":[{"partition":4,"#,
            r#""log":"00000000000000000000000000000001","dir":"00000000000000000000000000000002"}]}"#
        ),
    );
}

#[test]
fn a_later_version_may_add_fields() {
    let text = br#"{"node":4,"is_drained":true,"zone":{"name":"b"}}"#;
    assert_eq!(NodeIntent::decode(text), Ok(NodeIntent { node: NodeId(4), is_drained: true }));
}

#[test]
fn contradictions_are_refused() {
    let refuse = |change: fn(&mut PartitionRecord), words: &str| {
        let mut record = partition();
        change(&mut record);
        let error = PartitionRecord::decode(&record.encode()).expect_err(words);
        assert!(error.reason.contains(words), "{error}");
    };
    refuse(|r| r.isr.clear(), "never empty");
    refuse(|r| r.replicas.clear(), "at least one replica");
    refuse(|r| r.replicas.push(replica(1, 12)), "two replicas on node 1");
    refuse(|r| r.isr.push(replica(2, 11).id()), "twice");
    refuse(|r| r.isr.push(replica(3, 12).id()), "is no replica");
    refuse(|r| r.isr = vec![replica(1, 10).id()], "not in the ISR");
    refuse(|r| r.leader_epoch = LeaderEpoch(i32::MAX.unsigned_abs()), "out of range");
    let ids = br#"{"topic":"0000000000000000000000000000000A"}"#;
    assert!(NamedTopic::decode(ids).is_err(), "one id, one text");
}

proptest! {
    #[test]
    fn damaged_records_never_panic(position in 0_usize..400, byte: u8, length in 0_usize..400) {
        let mut value = partition().encode().to_vec();
        let at = position % value.len();
        value[at] = byte;
        value.truncate(length);
        if let Ok(record) = PartitionRecord::decode(&value) {
            prop_assert_eq!(PartitionRecord::decode(&record.encode()), Ok(record));
        }
    }
}
