//! The load generators against a server of a hundred lines: what they count is what was sent.
//!
//! Setup: one thread for each connection, std sockets, one topic with two partitions, all in memory.
//! Must never happen: a generator that counts what was not answered, or that hangs when the server goes away.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use clap::Parser;
use corelog_engine::batch::{BatchBuilder, BatchFields, NewRecord};
use corelog_schemas::messages::*;
use corelog_schemas::*;

const LIMITS: FrameLimits = FrameLimits { frame_bytes_max: 64 << 20, head_bytes_max: 1 << 20 };
const TOPIC_ID: u128 = 77;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    bench: corelog_bench::BenchArgs,
}

#[derive(Default)]
struct FakeServer {
    port: u16,
    produces: AtomicU64,
    /// Whether the topic is there.
    has_topic: AtomicBool,
    /// Refuse every produce.
    is_full: AtomicBool,
    /// Hang up at the first produce.
    hangs_up: AtomicBool,
}

/// Serves until the test's process ends.
fn start() -> Arc<FakeServer> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("it is bound").port();
    let server = Arc::new(FakeServer { port, ..FakeServer::default() });
    let shared = server.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let shared = shared.clone();
            thread::spawn(move || shared.serve(stream));
        }
    });
    server
}

impl FakeServer {
    fn serve(&self, mut stream: TcpStream) {
        let (mut buffer, mut encoder) = (Vec::new(), Encoder::default());
        let mut piece = vec![0; 1 << 16];
        loop {
            while let Ok(Some(frame)) = parse_frame(&buffer, &LIMITS) {
                let mut out = Vec::new();
                if !self.answer(&mut encoder, &frame, &mut out) {
                    return;
                }
                let used = frame.prefix.frame_bytes as usize;
                buffer.drain(..used);
                if stream.write_all(&out).is_err() {
                    return;
                }
            }
            match stream.read(&mut piece) {
                Ok(0) | Err(_) => return,
                Ok(received) => buffer.extend_from_slice(&piece[..received]),
            }
        }
    }

    fn answer(&self, encoder: &mut Encoder, frame: &Frame<'_>, out: &mut Vec<u8>) -> bool {
        let id = frame.prefix.correlation_id;
        let api = Api::from_number(frame.prefix.api).expect("the generator asks for what exists");
        match api {
            Api::Handshake => encoder.response(out, api, id, &handshake()),
            Api::Metadata => encoder.response(out, api, id, &self.metadata()),
            Api::CreateTopics | Api::DeleteTopics => {
                self.has_topic.store(api == Api::CreateTopics, Ordering::SeqCst);
                let result =
                    TopicResult { failure: None, name: "t".into(), topic_id: Some(TOPIC_ID), partitions: 2 };
                encoder.response(out, api, id, &TopicResultsResponse { results: vec![result] });
            }
            Api::DescribeNode => encoder.response(out, api, id, &node()),
            Api::ListOffsets => {
                let request: ListOffsetsRequest = decode(frame.head, 0).expect("a sound request");
                let found = |spec| FoundOffset {
                    offset: Some(if spec == OffsetSpec::Latest { 4 } else { 0 }),
                    timestamp_ms: None,
                    leader_epoch: None,
                };
                let partitions = request.partitions.iter().map(|p| Ok(found(p.spec))).collect();
                encoder.response(out, api, id, &ListOffsetsResponse { partitions });
            }
            Api::Produce => return self.produce(encoder, frame, out),
            Api::Fetch => fetch(encoder, frame, out),
            _ => panic!("the generator asks for {api:?}"),
        }
        true
    }

    fn metadata(&self) -> MetadataResponse {
        let partition = |partition| PartitionMetadata {
            partition,
            error: None,
            leader_node: 1,
            leader_shard: 0,
            leader_epoch: 1,
            log_start_offset: Some(0),
            replicas: vec![1],
            in_sync: vec![1],
        };
        let is_there = self.has_topic.load(Ordering::SeqCst);
        MetadataResponse {
            version: 1,
            cluster_id: "fake".into(),
            shards: vec![ShardAddress { node: 1, shard: 0, host: "127.0.0.1".into(), port: self.port }],
            topics: vec![TopicMetadata {
                failure: (!is_there).then(|| ErrorCode::UnknownTopicOrPartition.into()),
                topic_id: Some(TOPIC_ID),
                name: "t".into(),
                partitions: vec![partition(0), partition(1)],
            }],
            controller_node: None,
        }
    }

    fn produce(&self, encoder: &mut Encoder, frame: &Frame<'_>, out: &mut Vec<u8>) -> bool {
        let request: ProduceRequest =
            decode(frame.head, frame.payload.len() as u64).expect("head and payload agree");
        if self.hangs_up.load(Ordering::SeqCst) {
            return false;
        }
        self.produces.fetch_add(1, Ordering::SeqCst);
        let produced = Produced { base_offset: 0, append_time_ms: None, log_start_offset: 0 };
        let result = if self.is_full.load(Ordering::SeqCst) {
            Err(Failure::from(ErrorCode::DiskFull))
        } else {
            Ok(produced)
        };
        let partitions = request.partitions.iter().map(|_| result.clone()).collect();
        if request.acks != Acks::None {
            let id = frame.prefix.correlation_id;
            encoder.response(out, Api::Produce, id, &ProduceResponse { throttle_ms: 0, partitions });
        }
        true
    }
}

/// Four records at offsets 0 to 3, in two batches; a fetch gets the batch at its offset.
fn fetch(encoder: &mut Encoder, frame: &Frame<'_>, out: &mut Vec<u8>) {
    let request: FetchRequest = decode(frame.head, 0).expect("a sound request");
    let mut payload = Vec::new();
    let mut partitions = Vec::new();
    for partition in &request.partitions {
        let mut builder = BatchBuilder::new(1 << 20);
        for value in [b"one", b"two"] {
            builder.push(&NewRecord { value: Some(value), ..NewRecord::default() }).expect("it fits");
        }
        let base_offset = corelog_engine::Offset(partition.fetch_offset);
        let batch =
            builder.finish(&BatchFields { base_offset, ..BatchFields::default() }).expect("two records");
        partitions.push(FetchPartitionResult {
            failure: None,
            records_bytes: batch.len() as u32,
            high_watermark: Some(4),
            log_start_offset: Some(0),
            leader_epoch: Some(1),
            diverged: None,
        });
        assert!(partition.fetch_offset == 0 || partition.fetch_offset == 2, "the cursor follows the batches");
        payload.extend_from_slice(&batch);
    }
    encoder.response(
        out,
        Api::Fetch,
        frame.prefix.correlation_id,
        &FetchResponse { throttle_ms: 0, partitions },
    );
    out.extend_from_slice(&payload);
}

fn handshake() -> HandshakeResponse {
    HandshakeResponse {
        protocol_version: Ok(1),
        protocol_version_min: 1,
        protocol_version_max: 1,
        features: Features::default(),
        node: 1,
        shard: 0,
        software: "fake".into(),
        frame_bytes_max: 8 << 20,
        in_flight_bytes_max: 1 << 30,
        in_flight_requests_max: 1000,
        idle_timeout_ms: 0,
    }
}

fn node() -> DescribeNodeResponse {
    DescribeNodeResponse {
        node: 1,
        cluster_id: "fake".into(),
        software: "fake".into(),
        started_ms: 0,
        metadata_version: 1,
        shards: Vec::new(),
        data_dirs: Vec::new(),
    }
}

/// Runs a verb against the server and returns its JSON report.
fn bench(
    server: &FakeServer,
    verb: &str,
    flags: &[&str],
) -> Result<serde_json::Value, corelog_bench::BenchError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let json = dir.path().join("report.json");
    let address = format!("127.0.0.1:{}", server.port);
    let mut line = vec!["bench", verb, "--server", &address, "--warmup", "50ms", "--duration", "300ms"];
    let json_path = json.display().to_string();
    line.extend(["--json", &json_path]);
    line.extend(flags);
    corelog_bench::run(Cli::parse_from(line).bench)?;
    let text = std::fs::read_to_string(json).expect("the report was written");
    Ok(serde_json::from_str(&text).expect("the report is JSON"))
}

#[test]
fn produce_counts_what_was_answered_and_removes_its_topic() {
    let server = start();
    let flags = ["--record-bytes", "100", "--batch-records", "10", "--partitions", "2", "--connections", "3"];
    let report = bench(&server, "produce", &flags).expect("the fake server takes all");
    let results = &report["results"];
    let requests = results["requests"].as_u64().expect("a count");
    assert!(requests > 0 && requests <= server.produces.load(Ordering::SeqCst), "{results}");
    assert_eq!(results["records"].as_u64(), Some(requests * 10));
    assert_eq!(results["bytes"].as_u64(), Some(requests * 1000));
    assert!(results["latency"]["p50_us"].as_f64().expect("a latency") > 0.0);
    assert!(results["server_cpu_seconds"].is_number(), "the fake server is this process: {results}");
    assert_eq!(report["kind"], "produce");
    assert!(report["environment"]["kernel"].is_string());
    assert!(!server.has_topic.load(Ordering::SeqCst), "the topic of the run is gone");
}

#[test]
fn a_set_rate_is_kept() {
    let server = start();
    let flags = ["--rate", "1000", "--batch-records", "10", "--record-bytes", "10"];
    let report = bench(&server, "produce", &flags).expect("the fake server takes all");
    let count = report["results"]["latency"]["count"].as_u64().expect("a count");
    assert!((25..=31).contains(&count), "100 requests a second for 0.3 s are 30: {}", report["results"]);
    assert_eq!(report["results"]["unsent"].as_u64(), Some(0));
}

#[test]
fn without_acks_nothing_is_waited_for() {
    let server = start();
    let report = bench(&server, "produce", &["--acks", "0", "--batch-records", "1"]).expect("it takes all");
    assert!(report["results"]["requests"].as_u64().expect("a count") > 0);
}

#[test]
fn refusals_are_counted_by_code_and_not_as_throughput() {
    let server = start();
    server.is_full.store(true, Ordering::SeqCst);
    let report = bench(&server, "produce", &["--batch-records", "1"]).expect("refusals do not end a run");
    assert_eq!(report["results"]["requests"].as_u64(), Some(0));
    assert_eq!(report["results"]["errors"][0]["code"], "DiskFull");
}

#[test]
fn a_server_that_hangs_up_ends_the_run_with_its_address() {
    let server = start();
    server.hangs_up.store(true, Ordering::SeqCst);
    let error = bench(&server, "produce", &[]).expect_err("nobody answers").to_string();
    assert!(error.contains(&format!("127.0.0.1:{}", server.port)), "{error}");
}

#[test]
fn fetch_follows_the_batches_and_begins_again() {
    let server = start();
    server.has_topic.store(true, Ordering::SeqCst);
    let report = bench(&server, "fetch", &["--topic", "t", "--connections", "1"]).expect("batches are there");
    let results = &report["results"];
    let requests = results["requests"].as_u64().expect("a count");
    // Two partitions, one batch of two records each.
    assert!(requests > 2 && results["records"].as_u64() == Some(requests * 4), "{results}");
    assert!(results["errors"].as_array().expect("a list").is_empty(), "{results}");
}

#[test]
fn wrong_targets_say_what_to_do() {
    let server = start();
    let error = bench(&server, "fetch", &["--topic", "missing"]).expect_err("no such topic").to_string();
    assert!(error.contains("missing"), "{error}");
    server.has_topic.store(true, Ordering::SeqCst);
    let error = bench(&server, "produce", &["--topic", "t"]).expect_err("it is there").to_string();
    assert!(error.contains("--existing"), "{error}");
    let error = bench(&server, "produce", &["--topic", "t", "--existing", "--record-bytes", "20000"])
        .expect_err("the frame is too large")
        .to_string();
    assert!(error.contains("frame"), "{error}");
    let nobody = FakeServer { port: 1, ..FakeServer::default() };
    let error = bench(&nobody, "produce", &[]).expect_err("nobody listens there").to_string();
    assert!(error.contains("127.0.0.1:1"), "{error}");
}
