//! One valid frame or more of each message, and some record batches: what mutation starts from.

use corelog_engine::TimestampMs;
use corelog_engine::batch::{BatchBuilder, BatchFields, NewRecord, RecordHeader};
use corelog_schemas::messages::*;
use corelog_schemas::{Api, Encoder, ErrorCode, Failure, Features, Message, Request};

/// A frame of a request.
pub fn request<R: Request>(request: &R, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    Encoder::default().request(&mut frame, 7, request);
    frame.extend_from_slice(payload);
    frame
}

fn response<M: Message>(api: Api, response: &M, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    Encoder::default().response(&mut frame, api, 7, response);
    frame.extend_from_slice(payload);
    frame
}

/// A record batch of `count` records.
pub fn batch(count: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::new(1 << 20);
    let headers = [RecordHeader { key: b"kind", value: Some(b"sample") }];
    for i in 0..count {
        let record = NewRecord {
            timestamp: TimestampMs(1_700_000_000_000 + i as i64),
            key: Some(b"key"),
            value: (i % 3 != 0).then_some(b"some value"),
            headers: if i % 2 == 0 { &headers } else { &[] },
        };
        builder.push(&record).expect("a small record fits");
    }
    builder.finish(&BatchFields::default()).expect("it holds records")
}

fn failure() -> Failure {
    Failure::new(ErrorCode::NotLeader, "shard 3 leads it")
}

fn option() -> TopicOption {
    TopicOption { key: "flush".into(), value: Some("commit".into()), is_default: true }
}

/// Frames of every request.
pub fn requests() -> Vec<Vec<u8>> {
    let records = [batch(1), batch(4)].concat();
    let first_bytes = batch(1).len();
    let produce = ProduceRequest {
        acks: Acks::All,
        timeout_ms: 30_000,
        partitions: vec![
            ProducePartition {
                to: PartitionRef::by_id(u128::MAX / 3, 5),
                records_bytes: first_bytes as u32,
                leader_epoch: Some(2),
            },
            ProducePartition {
                to: PartitionRef::by_name("events", 0),
                records_bytes: (records.len() - first_bytes) as u32,
                leader_epoch: None,
            },
        ],
    };
    let fetch = FetchRequest {
        min_bytes: 1,
        max_wait_ms: 10,
        max_bytes: 1_000,
        partitions: [0, 1]
            .map(|partition| FetchPartition {
                from: PartitionRef::by_name("events", partition),
                fetch_offset: 44,
                max_bytes: 1_000,
                leader_epoch: Some(1),
                last_epoch: Some(1),
            })
            .to_vec(),
    };
    let hello = HandshakeRequest {
        protocol_version_min: 1,
        protocol_version_max: 3,
        features: Features(1),
        client_id: "fuzz".into(),
        software: "fuzz 1".into(),
    };
    let mut all = vec![request(&hello, &[]), request(&produce, &records), request(&fetch, &[])];
    all.extend(admin_requests());
    all
}

fn admin_requests() -> Vec<Vec<u8>> {
    let these = vec![TopicRef::Id(5), TopicRef::from("events")];
    let topic = || TopicRef::from("events");
    let of = || PartitionRef::by_id(5, 1);
    let specs = [OffsetSpec::Latest, OffsetSpec::Earliest, OffsetSpec::Timestamp(77)];
    let lookups = specs.map(|spec| ListOffsetsPartition { of: of(), spec, leader_epoch: None });
    let new_topic =
        NewTopic { name: "events".into(), partitions: 3, replication_factor: 1, options: vec![option()] };
    vec![
        request(&MetadataRequest { topics: MetadataTopics::All }, &[]),
        request(&MetadataRequest { topics: MetadataTopics::These(these.clone()) }, &[]),
        request(&ListOffsetsRequest { partitions: lookups.to_vec() }, &[]),
        request(&CreateTopicsRequest { topics: vec![new_topic], validate_only: true, timeout_ms: 1 }, &[]),
        request(&DeleteTopicsRequest { topics: these.clone(), timeout_ms: 1 }, &[]),
        request(&ListTopicsRequest { name_prefix: "e".into() }, &[]),
        request(&DescribeTopicsRequest { topics: these }, &[]),
        request(
            &AlterTopicOptionsRequest {
                topic: topic(),
                options: vec![option(), option()],
                validate_only: false,
                timeout_ms: 1,
            },
            &[],
        ),
        request(
            &CreatePartitionsRequest {
                topic: topic(),
                partitions_total: 9,
                validate_only: false,
                timeout_ms: 1,
            },
            &[],
        ),
        request(
            &DeleteRecordsRequest {
                timeout_ms: 1,
                partitions: vec![DeleteRecordsPartition { of: of(), before_offset: Some(3) }],
            },
            &[],
        ),
        request(&DescribeNodeRequest, &[]),
        request(&DescribeClusterRequest { partitions_max: 5 }, &[]),
        request(&DrainNodeRequest { node: 2, is_drained: false }, &[]),
        request(&ForgetNodeRequest { node: 2 }, &[]),
        request(&AddReplicaRequest { topic: topic(), partition: 1, node: Some(3) }, &[]),
        request(&RemoveReplicaRequest { topic: topic(), partition: 1, node: 3 }, &[]),
        request(&SetReplicasRequest { topic: topic(), replicas: 3 }, &[]),
        request(
            &ElectLeadersRequest {
                kind: ElectionKind::Unclean,
                partitions: vec![ElectLeader { topic: topic(), partition: 1, node: Some(3) }],
            },
            &[],
        ),
    ]
}

/// Frames of every response.
pub fn responses() -> Vec<Vec<u8>> {
    let records = batch(2);
    let produced = Produced { base_offset: 4, append_time_ms: Some(5), log_start_offset: 0 };
    let fetched = FetchPartitionResult {
        failure: Some(failure()),
        records_bytes: records.len() as u32,
        high_watermark: Some(5),
        log_start_offset: Some(0),
        leader_epoch: Some(1),
        diverged: Some(Divergence { epoch: 1, end_offset: 3 }),
    };
    let found = FoundOffset { offset: Some(4), timestamp_ms: Some(5), leader_epoch: Some(1) };
    let topic = TopicResult { failure: None, name: "events".into(), topic_id: Some(5), partitions: 3 };
    let election = ElectionResult {
        failure: Some(failure()),
        topic: "events".into(),
        partition: 1,
        leader_node: Some(3),
        is_unchanged: false,
    };
    let listing = TopicListing { topic_id: 5, name: "events".into(), partitions: 3, replication_factor: 1 };
    vec![
        response(
            Api::Produce,
            &ProduceResponse { throttle_ms: 1, partitions: vec![Ok(produced), Err(failure())] },
            &[],
        ),
        response(Api::Fetch, &FetchResponse { throttle_ms: 1, partitions: vec![fetched] }, &records),
        response(Api::ListOffsets, &ListOffsetsResponse { partitions: vec![Ok(found), Err(failure())] }, &[]),
        response(Api::DeleteRecords, &DeleteRecordsResponse { partitions: vec![Ok(4), Err(failure())] }, &[]),
        response(Api::CreateTopics, &TopicResultsResponse { results: vec![topic] }, &[]),
        response(Api::ListTopics, &ListTopicsResponse { topics: vec![listing] }, &[]),
        response(Api::Metadata, &metadata(), &[]),
        response(Api::DescribeTopics, &description(), &[]),
        response(Api::DescribeNode, &node(), &[]),
        response(Api::DescribeCluster, &cluster(), &[]),
        response(
            Api::AddReplica,
            &ClusterChangeResponse { failure: Some(failure()), is_unchanged: true, node: Some(3) },
            &[],
        ),
        response(Api::ElectLeaders, &ElectLeadersResponse { results: vec![election] }, &[]),
        response(Api::Handshake, &handshake(), &[]),
    ]
}

fn metadata() -> MetadataResponse {
    let partition = PartitionMetadata {
        partition: 1,
        error: Some(ErrorCode::NotLeader),
        leader_node: 1,
        leader_shard: 2,
        leader_epoch: 3,
        log_start_offset: Some(4),
        replicas: vec![1, 2],
        in_sync: vec![1],
    };
    MetadataResponse {
        version: 3,
        cluster_id: "cluster".into(),
        shards: vec![ShardAddress { node: 1, shard: 0, host: "127.0.0.1".into(), port: 9_700 }],
        topics: vec![TopicMetadata {
            failure: Some(failure()),
            topic_id: Some(5),
            name: "events".into(),
            partitions: vec![partition.clone(), partition],
        }],
        controller_node: Some(1),
    }
}

fn description() -> DescribeTopicsResponse {
    let partition = PartitionDescription {
        failure: Some(failure()),
        high_watermark: Some(7),
        data_dir: "/data".into(),
        replicas: vec![ReplicaDescription {
            node: 1,
            lag_records: Some(3),
            trouble: "lost".into(),
            ..Default::default()
        }],
        ..PartitionDescription::default()
    };
    DescribeTopicsResponse {
        topics: vec![TopicDescription {
            failure: None,
            topic_id: Some(5),
            name: "events".into(),
            replication_factor: 1,
            created_ms: 7,
            options: vec![option()],
            partitions: vec![partition],
        }],
    }
}

fn cluster() -> DescribeClusterResponse {
    let node = ClusterNode {
        node: 1,
        state: NodeState::Suspected,
        is_drained: true,
        software: "corelog".into(),
        started_ms: 5,
        host: "127.0.0.1".into(),
        port: 9_700,
        shards: 2,
        data_dirs: 1,
        replicas: 3,
        replicas_in_sync: 2,
        leaders: 1,
    };
    let unhealthy = PartitionHealth {
        topic_id: 5,
        topic: "events".into(),
        partition: 1,
        leader_node: Some(1),
        leader_epoch: 4,
        replicas: vec![1, 2],
        in_sync: vec![1],
        min_insync_replicas: 2,
        troubles: vec![ReplicaTrouble { node: 2, kind: "lost".into(), reason: "gone".into() }],
    };
    DescribeClusterResponse {
        cluster_id: "cluster".into(),
        version: 3,
        answering_node: 1,
        is_isolated: true,
        controller_node: Some(2),
        controller_epoch: 9,
        nodes: vec![node],
        topics: 1,
        partitions: 3,
        offline: 1,
        under_replicated: 1,
        below_min_insync: 1,
        not_preferred: 1,
        unhealthy: vec![unhealthy],
        topics_with_one_replica: vec!["events".into()],
        problems: vec!["strange".into()],
    }
}

fn node() -> DescribeNodeResponse {
    DescribeNodeResponse {
        node: 1,
        cluster_id: "cluster".into(),
        software: "corelog".into(),
        started_ms: 5,
        metadata_version: 3,
        shards: vec![ShardDescription {
            shard: 0,
            core: 0,
            host: "127.0.0.1".into(),
            port: 9_700,
            partitions: 4,
            connections: 5,
            buffer_bytes: 6,
            buffer_bytes_max: 7,
            produce_bytes: 8,
            fetch_bytes: 9,
            requests: 10,
        }],
        data_dirs: vec![DataDirDescription {
            path: "/data".into(),
            state: Err(failure()),
            total_bytes: 2,
            free_bytes: 1,
            partitions: 4,
        }],
    }
}

fn handshake() -> HandshakeResponse {
    HandshakeResponse {
        protocol_version: Ok(1),
        protocol_version_min: 1,
        protocol_version_max: 1,
        features: Features(0),
        node: 1,
        shard: 0,
        software: "corelog".into(),
        frame_bytes_max: 1,
        in_flight_bytes_max: 2,
        in_flight_requests_max: 3,
        idle_timeout_ms: 4,
    }
}
