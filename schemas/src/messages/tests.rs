//! Every message comes back as it went, and random bytes are errors, not panics.

use super::*;
use crate::{Encoder, Features, FrameLimits, Request, decode, parse_frame};

const LIMITS: FrameLimits = FrameLimits { frame_bytes_max: 1 << 20, head_bytes_max: 1 << 20 };

fn check<M: Message + PartialEq + std::fmt::Debug>(message: &M) {
    let mut builder = Builder::new();
    message.build(&mut builder);
    let read =
        decode::<M>(builder.finished_data(), message.payload_bytes()).expect("what was built can be read");
    assert_eq!(&read, message);
}

fn failure() -> Failure {
    Failure::new(ErrorCode::NotLeader, "shard 3 leads it")
}

#[test]
fn produce_comes_back() {
    let request = ProduceRequest {
        acks: Acks::Leader,
        timeout_ms: 1,
        partitions: vec![
            ProducePartition {
                to: PartitionRef::by_id(7 << 100, 0),
                records_bytes: 70,
                leader_epoch: Some(0),
            },
            ProducePartition {
                to: PartitionRef::by_name("t", u32::MAX),
                records_bytes: 1,
                leader_epoch: None,
            },
        ],
    };
    assert_eq!(request.payload_bytes(), 71);
    check(&request);
    let produced = Produced { base_offset: 0, append_time_ms: Some(-1), log_start_offset: 3 };
    check(&ProduceResponse { throttle_ms: 9, partitions: vec![Ok(produced), Err(failure())] });
}

#[test]
fn fetch_comes_back() {
    check(&FetchRequest {
        min_bytes: 0,
        max_wait_ms: 0,
        max_bytes: 5,
        partitions: vec![FetchPartition {
            from: PartitionRef::by_name("t", 1),
            fetch_offset: u64::MAX,
            max_bytes: 3,
            leader_epoch: Some(8),
            last_epoch: Some(7),
        }],
    });
    let partitions = vec![
        FetchPartitionResult {
            failure: None,
            records_bytes: 100,
            high_watermark: Some(0),
            log_start_offset: Some(0),
            leader_epoch: Some(0),
            diverged: Some(Divergence { epoch: 0, end_offset: 9 }),
        },
        FetchPartitionResult { failure: Some(failure()), ..Default::default() },
    ];
    check(&FetchResponse { throttle_ms: 0, partitions });
}

#[test]
fn handshakes_come_back() {
    check(&HandshakeRequest {
        protocol_version_min: 1,
        protocol_version_max: 2,
        features: Features(6),
        client_id: "app".into(),
        software: String::new(),
    });
    check(&HandshakeResponse {
        protocol_version: Err(failure()),
        protocol_version_min: 1,
        protocol_version_max: 1,
        features: Features(0),
        node: 1,
        shard: 2,
        software: "s".into(),
        frame_bytes_max: 3,
        in_flight_bytes_max: 4,
        in_flight_requests_max: 5,
        idle_timeout_ms: 6,
    });
}

#[test]
fn metadata_and_the_rest_come_back() {
    check(&MetadataRequest { topics: MetadataTopics::All });
    check(&MetadataRequest { topics: MetadataTopics::These(vec![]) });
    check(&MetadataRequest { topics: MetadataTopics::These(vec![TopicRef::Id(1), "a".into()]) });
    check(&MetadataResponse {
        version: 1,
        cluster_id: "c".into(),
        shards: vec![ShardAddress { node: 1, shard: 0, host: "127.0.0.1".into(), port: 9700 }],
        topics: vec![TopicMetadata {
            failure: None,
            topic_id: Some(u128::MAX),
            name: "t".into(),
            partitions: vec![PartitionMetadata {
                partition: 0,
                error: Some(ErrorCode::PartitionOffline),
                leader_node: 1,
                leader_shard: 0,
                leader_epoch: 4,
                log_start_offset: Some(0),
                replicas: vec![3, 1],
                in_sync: vec![1],
            }],
        }],
        controller_node: Some(0),
    });
    check(&DescribeNodeRequest);
    check(&DescribeNodeResponse {
        node: 1,
        cluster_id: "c".into(),
        software: "s".into(),
        started_ms: 1,
        metadata_version: 2,
        shards: vec![ShardDescription {
            shard: 0,
            core: 1,
            host: "h".into(),
            port: 1,
            partitions: 2,
            connections: 3,
            buffer_bytes: 4,
            buffer_bytes_max: 5,
            produce_bytes: 6,
            fetch_bytes: 7,
            requests: 8,
        }],
        data_dirs: vec![DataDirDescription {
            path: "/d".into(),
            state: Err(failure()),
            total_bytes: 9,
            free_bytes: 8,
            partitions: 1,
        }],
    });
    check(&ErrorResponse { failure: failure() });
}

#[test]
fn offsets_come_back() {
    let specs = [OffsetSpec::Latest, OffsetSpec::Earliest, OffsetSpec::Timestamp(-5)];
    let partitions =
        specs.map(|spec| ListOffsetsPartition { of: PartitionRef::by_id(1, 2), spec, leader_epoch: None });
    check(&ListOffsetsRequest { partitions: partitions.to_vec() });
    let found = FoundOffset { offset: None, timestamp_ms: None, leader_epoch: Some(1) };
    check(&ListOffsetsResponse { partitions: vec![Ok(found), Err(failure())] });
    check(&DeleteRecordsRequest {
        timeout_ms: 0,
        partitions: vec![
            DeleteRecordsPartition { of: PartitionRef::by_id(1, 2), before_offset: Some(0) },
            DeleteRecordsPartition { of: PartitionRef::by_id(1, 3), before_offset: None },
        ],
    });
    check(&DeleteRecordsResponse { partitions: vec![Ok(5), Err(failure())] });
}

#[test]
fn topics_come_back() {
    let option = |value: Option<&str>| TopicOption {
        key: "flush".into(),
        value: value.map(Into::into),
        is_default: false,
    };
    let options = vec![option(Some("")), option(None)];
    check(&CreateTopicsRequest {
        topics: vec![NewTopic {
            name: "t".into(),
            partitions: 0,
            replication_factor: 1,
            options: options.clone(),
        }],
        validate_only: true,
        timeout_ms: 5,
    });
    check(&DeleteTopicsRequest { topics: vec!["t".into()], timeout_ms: 0 });
    check(&AlterTopicOptionsRequest {
        topic: "t".into(),
        options: options.clone(),
        validate_only: false,
        timeout_ms: 30_000,
    });
    check(&CreatePartitionsRequest {
        topic: TopicRef::Id(3),
        partitions_total: 9,
        validate_only: false,
        timeout_ms: 1,
    });
    let result = TopicResult { failure: Some(failure()), name: "t".into(), topic_id: Some(0), partitions: 9 };
    check(&TopicResultsResponse { results: vec![result] });
    check(&ListTopicsRequest { name_prefix: String::new() });
    let listing = TopicListing { topic_id: 1, name: "t".into(), partitions: 2, replication_factor: 1 };
    check(&ListTopicsResponse { topics: vec![listing] });
    check(&DescribeTopicsRequest { topics: vec![TopicRef::Id(1)] });
    check(&DescribeTopicsResponse {
        topics: vec![TopicDescription {
            failure: None,
            topic_id: None,
            name: "t".into(),
            replication_factor: 1,
            created_ms: 77,
            options,
            partitions: vec![PartitionDescription {
                log_end_offset: Some(0),
                data_dir: "/d".into(),
                replicas: vec![ReplicaDescription {
                    node: 1,
                    lag_ms: Some(0),
                    trouble: "lost".into(),
                    ..Default::default()
                }],
                ..Default::default()
            }],
        }],
    });
}

#[test]
fn the_cluster_comes_back() {
    check(&DescribeClusterRequest { partitions_max: 0 });
    let node = |state| ClusterNode {
        node: 1,
        state,
        is_drained: true,
        software: "s".into(),
        started_ms: 1,
        host: "h".into(),
        port: 2,
        shards: 3,
        data_dirs: 4,
        replicas: 5,
        replicas_in_sync: 6,
        leaders: 7,
    };
    let states = [NodeState::Live, NodeState::Stopping, NodeState::Suspected, NodeState::Gone];
    let health = PartitionHealth {
        topic_id: 9,
        topic: "t".into(),
        partition: 1,
        leader_node: None,
        leader_epoch: 2,
        replicas: vec![1, 2],
        in_sync: vec![],
        min_insync_replicas: 2,
        troubles: vec![ReplicaTrouble { node: 2, kind: "lost".into(), reason: "r".into() }],
    };
    check(&DescribeClusterResponse {
        cluster_id: "c".into(),
        version: 1,
        answering_node: 2,
        is_isolated: true,
        controller_node: None,
        controller_epoch: 3,
        nodes: states.map(node).to_vec(),
        topics: 4,
        partitions: 5,
        offline: 6,
        under_replicated: 7,
        below_min_insync: 8,
        not_preferred: 9,
        unhealthy: vec![health],
        topics_with_one_replica: vec!["t".into(), "u".into()],
        problems: vec!["p".into()],
    });
    let topic = || TopicRef::Id(1);
    check(&DrainNodeRequest { node: 0, is_drained: false });
    check(&DrainNodeRequest { node: 1, is_drained: true });
    check(&ForgetNodeRequest { node: 1 });
    check(&AddReplicaRequest { topic: topic(), partition: 0, node: None });
    check(&AddReplicaRequest { topic: topic(), partition: 0, node: Some(0) });
    check(&RemoveReplicaRequest { topic: topic(), partition: 3, node: 0 });
    check(&SetReplicasRequest { topic: topic(), replicas: 3 });
    check(&ClusterChangeResponse { failure: Some(failure()), is_unchanged: false, node: None });
    check(&ClusterChangeResponse { failure: None, is_unchanged: true, node: Some(0) });
    for kind in [ElectionKind::Preferred, ElectionKind::Unclean] {
        let partitions = vec![ElectLeader { topic: topic(), partition: 1, node: Some(2) }];
        check(&ElectLeadersRequest { kind, partitions });
    }
    let result = ElectionResult {
        failure: Some(failure()),
        topic: "t".into(),
        partition: 1,
        leader_node: Some(0),
        is_unchanged: true,
    };
    check(&ElectLeadersResponse { results: vec![result] });
}

#[test]
fn frames_follow_each_other_in_one_reused_buffer() {
    let mut encoder = Encoder::default();
    let mut out = Vec::new();
    let request = ProduceRequest {
        acks: Acks::All,
        timeout_ms: 30_000,
        partitions: vec![ProducePartition {
            to: PartitionRef::by_id(1, 0),
            records_bytes: 3,
            leader_epoch: None,
        }],
    };
    for correlation_id in 0..3 {
        encoder.request(&mut out, correlation_id, &request);
        out.extend_from_slice(b"rec");
    }
    encoder.failure(&mut out, 3, &failure());
    let mut at = 0;
    for correlation_id in 0..3 {
        let frame = parse_frame(&out[at..], &LIMITS).unwrap().unwrap();
        assert_eq!(
            (frame.prefix.correlation_id, frame.prefix.api),
            (correlation_id, ProduceRequest::API.number())
        );
        assert_eq!(frame.payload, b"rec");
        assert_eq!(decode::<ProduceRequest>(frame.head, 3).unwrap(), request);
        at += frame.prefix.frame_bytes as usize;
    }
    let frame = parse_frame(&out[at..], &LIMITS).unwrap().unwrap();
    assert_eq!((frame.prefix.correlation_id, frame.prefix.api), (3, 0));
    assert_eq!(decode::<ErrorResponse>(frame.head, 0).unwrap().failure, failure());
}

#[test]
fn a_payload_of_another_length_is_refused() {
    let mut builder = Builder::new();
    let partitions =
        vec![ProducePartition { to: PartitionRef::by_id(1, 0), records_bytes: u32::MAX, leader_epoch: None }];
    ProduceRequest { acks: Acks::All, timeout_ms: 0, partitions }.build(&mut builder);
    let error = decode::<ProduceRequest>(builder.finished_data(), 4).unwrap_err();
    assert_eq!(error, DecodeError::PayloadLength { announced: u64::from(u32::MAX), present: 4 });
    assert!(error.is_fatal(), "the stream is out of step");
}

#[test]
fn what_is_missing_or_out_of_range_is_answered_and_the_connection_goes_on() {
    let mut b = Builder::new();
    let bad =
        wire::ProduceRequest::create(&mut b, &wire::ProduceRequestArgs { acks: 2, ..Default::default() });
    b.finish_minimal(bad);
    let error = decode::<ProduceRequest>(b.finished_data(), 0).unwrap_err();
    assert_eq!((error.failure().code, error.is_fatal()), (ErrorCode::InvalidAcks, false));

    b.reset();
    let nameless = wire::TopicRef::create(&mut b, &wire::TopicRefArgs::default());
    let topics = b.create_vector(&[nameless]);
    let args = wire::DeleteTopicsRequestArgs { topics: Some(topics), timeout_ms: 0 };
    let bad = wire::DeleteTopicsRequest::create(&mut b, &args);
    b.finish_minimal(bad);
    let error = decode::<DeleteTopicsRequest>(b.finished_data(), 0).unwrap_err();
    assert_eq!((error.failure().code, error.is_fatal()), (ErrorCode::InvalidRequest, false));
}

#[test]
fn one_table_that_many_offsets_share_does_not_multiply() {
    // A vector of 1000 offsets to one table: small on the wire, large when decoded. Honest encoders never make it.
    let mut b = Builder::new();
    let name = b.create_string(&"x".repeat(4000));
    let topic = wire::TopicRef::create(&mut b, &wire::TopicRefArgs { id: None, name: Some(name) });
    let topics = b.create_vector(&vec![topic; 1000]);
    let args = wire::DeleteTopicsRequestArgs { topics: Some(topics), timeout_ms: 0 };
    let bad = wire::DeleteTopicsRequest::create(&mut b, &args);
    b.finish_minimal(bad);
    let error = decode::<DeleteTopicsRequest>(b.finished_data(), 0).unwrap_err();
    assert!(matches!(error, DecodeError::Head(_)), "4 MB of names out of 8 KB must be refused: {error}");
}
