//! HTTP against a view made by hand. Setup: a server on a free port, one shard that answers and one that does not.
//! Must never happen: ready before every shard is, or a peer that holds the server up.

use std::sync::Arc;
use std::time::Duration;

use corelog_engine::{LeaderEpoch, LogId, Offset, PartitionId, TimestampMs, TopicId, TopicPartition};
use corelog_replication::ReplicaId;
use corelog_replication::cluster::Incarnation;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::control::messages::{ControlLink, ShardCommand, ShardLink, link_shards};
use crate::control::options::TopicOptions;
use crate::control::snapshot::*;
use crate::control::stats::{FollowerStats, PartitionStats, ReplicaStats, ShardStats};
use crate::control::view::{DataDirSizes, Observer, View, ViewCluster};

const TOPIC: TopicId = TopicId(7);

fn view(applied: &[u64], is_stopping: bool) -> Arc<View> {
    let of = TopicPartition { topic: TOPIC, partition: PartitionId(0) };
    let me = ReplicaId { node: NodeId(1), log: LogId(1) };
    let partition = PartitionMetadata::led_alone(of, me, ShardId(0), DataDirIndex(0), LeaderEpoch(1));
    let topic = TopicMetadata {
        id: TOPIC,
        name: "orders".into(),
        created: TimestampMs(0),
        options: TopicOptions::default(),
        partitions: vec![partition],
    };
    let head = SnapshotHead {
        version: SnapshotVersion(3),
        cluster_id: "c1".into(),
        node: NodeId(1),
        started: TimestampMs(1_500),
        incarnation: Incarnation(1),
        shards: Vec::new(),
        nodes: Vec::new(),
        is_isolated: false,
        removed: Default::default(),
        data_dirs: vec![DataDirMetadata {
            path: "/d".into(),
            state: DataDirState::Full { free_bytes: 5 },
            was_clean: true,
        }],
    };
    Arc::new(View {
        snapshot: Arc::new(Snapshot::new(head, vec![Arc::new(topic)])),
        rack: "zone-a".into(),
        applied: applied.iter().map(|version| SnapshotVersion(*version)).collect(),
        failed_partitions: 0,
        data_dirs: vec![DataDirSizes { total_bytes: 100, free_bytes: 5 }],
        orphans: 2,
        cluster: ViewCluster { is_single: true, is_connected: true, ..ViewCluster::default() },
        is_settled: applied.iter().all(|version| *version > 0),
        is_stopping,
    })
}

/// A server, the sender of its view, and its shards' ends.
async fn serve(first: Arc<View>) -> (String, watch::Sender<Arc<View>>, Vec<ShardLink>) {
    let (ControlLink { commands, .. }, links) = link_shards(2);
    let (sender, view) = watch::channel(first);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let stats_timeout = Duration::from_millis(300);
    tokio::spawn(super::serve(listener, Observer { view, commands, stats_timeout }));
    (address, sender, links)
}

/// Status line and body of one request.
async fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut response = String::new();
    stream.read_to_string(&mut response).await.expect("answered");
    let (head, body) = response.split_once("\r\n\r\n").expect("a head and a body");
    (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
}

#[tokio::test]
async fn ready_only_when_every_shard_is_and_nobody_stops() {
    let (address, sender, _links) = serve(view(&[1, 0], false)).await;
    let check = async |words: &str, status: &str| {
        let (line, body) = get(&address, "/readyz").await;
        assert!(line.contains(status) && body.contains(words), "{line} {body}");
    };
    check("1 of 2 shards", "503").await;
    sender.send_replace(view(&[1, 1], false));
    check("ready", "200").await;
    sender.send_replace(view(&[1, 1], true));
    check("stopping", "503").await;
    assert!(get(&address, "/livez").await.0.contains("200"));
    assert!(get(&address, "/").await.1.contains("/metrics"));
    assert!(get(&address, "/admin").await.0.contains("404"));
}

#[tokio::test]
async fn metrics_show_shards_that_answer_and_those_that_do_not() {
    let (address, _sender, mut links) = serve(view(&[3, 3], false)).await;
    let silent = links.pop();
    let answering = links.pop().expect("two links");
    tokio::spawn(async move {
        while let Ok(ShardCommand::Stats(answer)) = answering.commands.recv_async().await {
            let mut stats = ShardStats::new(answering.shard);
            stats.requests = 11;
            stats.produce_latency.record(150);
            stats.partitions.push(PartitionStats {
                partition: TopicPartition { topic: TOPIC, partition: PartitionId(0) },
                log_start: Offset(1),
                high_watermark: Offset(8),
                log_end: Offset(9),
                durable_end: Offset(8),
                log_bytes: 1234,
                segments: 1,
                produce_bytes: 0,
                produce_records: 0,
                fetch_bytes: 0,
                replica: ReplicaStats {
                    followers: vec![FollowerStats {
                        replica: ReplicaId { node: NodeId(2), log: LogId(2) },
                        lag_records: 4,
                        is_catching_up: false,
                    }],
                    ..ReplicaStats::default()
                },
                failure: None,
            });
            answer.send(stats);
        }
    });
    let (line, body) = get(&address, "/metrics").await;
    assert!(line.contains("200"), "{line}");
    let expected = [
        "cluster=\"c1\",rack=\"zone-a\"} 1",
        "corelog_shard_up{shard=\"0\"} 1",
        "corelog_shard_up{shard=\"1\"} 0",
        "corelog_requests_total{shard=\"0\"} 11",
        "corelog_partition_log_bytes{topic=\"orders\",partition=\"0\"} 1234",
        "corelog_partition_high_watermark_offset{topic=\"orders\",partition=\"0\"} 8",
        "corelog_produce_latency_seconds_bucket{le=\"0.0002\",shard=\"0\"} 1",
        "corelog_produce_latency_seconds_bucket{le=\"+Inf\",shard=\"0\"} 1",
        "corelog_data_dir_full{dir=\"/d\"} 1",
        "corelog_data_dir_free_bytes{dir=\"/d\"} 5",
        "corelog_orphan_directories 2",
        "corelog_partitions_single_replica 1",
        "corelog_coordination_connected 1",
        "corelog_isr_shrinks_total 0",
        "corelog_follower_lag_records{topic=\"orders\",partition=\"0\",node=\"2\"} 4",
        "process_resident_memory_bytes ",
        "process_start_time_seconds 1.5",
        "# EOF",
    ];
    for series in expected {
        assert!(body.contains(series), "{series} is missing in:\n{body}");
    }
    let (_, without) = get(&address, "/metrics?partitions=false").await;
    assert!(!without.contains("corelog_partition_log_bytes") && without.contains("corelog_requests_total"));
    drop(silent);
}

#[tokio::test]
async fn the_metrics_that_operators_are_told_to_watch_exist() {
    let (address, _sender, _links) = serve(view(&[1, 1], false)).await;
    let (_, body) = get(&address, "/metrics").await;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/operations.md");
    let docs = std::fs::read_to_string(file).expect("the docs are there");
    let named: Vec<&str> =
        docs.split('`').filter(|word| word.starts_with("corelog_") || word.starts_with("process_")).collect();
    assert!(named.len() > 10, "{named:?}");
    for name in named {
        // The type line of a counter is without its suffix.
        let family = format!("# TYPE {} ", name.strip_suffix("_total").unwrap_or(name));
        assert!(body.contains(&family), "{name} is in docs/operations.md and not in the metrics");
    }
}

#[tokio::test]
async fn silent_peers_do_not_keep_others_out() {
    let (address, _sender, _links) = serve(view(&[1, 1], false)).await;
    let mut silent = Vec::new();
    for _ in 0..super::listener::CONNECTIONS_MAX - 1 {
        silent.push(TcpStream::connect(&address).await.expect("connected"));
    }
    assert!(get(&address, "/livez").await.0.contains("200"));
    // All places taken: the next one waits, and is served when one is gone.
    silent.push(TcpStream::connect(&address).await.expect("connected"));
    let waiting = tokio::spawn({
        let address = address.clone();
        async move { get(&address, "/livez").await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    silent.clear();
    assert!(waiting.await.expect("joined").0.contains("200"));
}
