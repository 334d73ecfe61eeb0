//! Three nodes, one ZooKeeper, the real binary: a topic with three replicas lives through the death of its leaders.
//! What must never happen: an acked record that is not there, or that is somewhere else; a produce that stays without
//! a leader.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use corelog_client::{
    Client, ClientConfig, ConsumerConfig, PollLimits, ProducerConfig, ProducerRecord, StartAt,
};
use corelog_schemas::ErrorCode;
use corelog_schemas::messages::{
    Acks, FetchPartition, FetchRequest, PartitionMetadata, PartitionRef, ProducePartition, ProduceRequest,
};
use support::nodes::Nodes;
use support::zookeeper::Ensemble;
use support::{Node, batch, directory};

/// Partitions of the topic under load.
const PARTITIONS: usize = 4;

/// What was acked: value by (partition, offset).
type Acked = BTreeMap<(u32, u64), String>;

/// A producer on a thread of its own that goes on until it is told to stop.
struct Load {
    acked: Arc<Mutex<Acked>>,
    is_stopping: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Load {
    async fn start(nodes: &Nodes, topic: &'static str) -> Self {
        let (acked, is_stopping) = (Arc::new(Mutex::new(Acked::new())), Arc::new(AtomicBool::new(false)));
        let addresses: Vec<String> = nodes.running().map(|node| node.address.to_string()).collect();
        let (of_thread, stopping) = (acked.clone(), is_stopping.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(produce(addresses, topic, of_thread, stopping));
        });
        Self { acked, is_stopping, thread }
    }

    fn counts(&self) -> [usize; PARTITIONS] {
        let mut counts = [0; PARTITIONS];
        self.acked.lock().unwrap().keys().for_each(|(partition, _)| counts[*partition as usize] += 1);
        counts
    }

    /// Waits until so many more are acked in each partition; says how long it took.
    async fn progress(&self, more: usize) -> Duration {
        let (began, before) = (Instant::now(), self.counts());
        while (0..PARTITIONS).any(|p| self.counts()[p] < before[p] + more) {
            let now = self.counts();
            assert!(began.elapsed() < support::PATIENCE, "{now:?} are acked after {before:?}");
            assert!(!self.thread.is_finished(), "the load has ended");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        began.elapsed()
    }

    fn finish(self) -> Acked {
        self.is_stopping.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic");
        Arc::into_inner(self.acked).expect("nobody else is left").into_inner().unwrap()
    }
}

async fn produce(
    addresses: Vec<String>,
    topic: &'static str,
    acked: Arc<Mutex<Acked>>,
    is_stopping: Arc<AtomicBool>,
) {
    let client = Client::connect(ClientConfig::new(addresses)).await.expect("one of them answers");
    let config = ProducerConfig { linger_ms: 1, ..ProducerConfig::default() };
    let producer = client.producer(config).expect("a producer");
    let mut waits = Vec::new();
    for number in 0u64.. {
        if is_stopping.load(Ordering::Relaxed) {
            break;
        }
        let value = format!("value-{number}");
        let key = format!("key-{}", number % 97);
        let record = ProducerRecord {
            key: Some(key.as_bytes()),
            value: Some(value.as_bytes()),
            ..ProducerRecord::default()
        };
        let delivery = producer.send(topic, record).await.expect("taken");
        let acked = acked.clone();
        waits.push(tokio::spawn(async move {
            let metadata = delivery.wait().await.expect("delivered in the end");
            let offset = metadata.offset.expect("acks = all tells the offset");
            let before = acked.lock().unwrap().insert((metadata.partition, offset.0), value);
            assert_eq!(before, None, "two records at {} of {}", offset, metadata.partition);
        }));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    producer.flush().await;
    for wait in waits {
        wait.await.expect("it does not panic");
    }
}

/// Reads everything and checks that each acked record stands at its offset, and none twice.
async fn check_all_there(nodes: &Nodes, topic: &str, acked: &Acked) {
    let client = nodes.client().await;
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_all(topic, StartAt::Earliest).await.expect("assigned");
    let mut missing = acked.clone();
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    while !missing.is_empty() {
        let limits = PollLimits { wait_ms: 5_000, ..PollLimits::default() };
        let records = consumer.poll(limits).await.expect("readable");
        let first = missing.first_key_value();
        assert!(!records.is_empty(), "{} acked records are missing: {first:?}", missing.len());
        for record in records {
            let expected = next.entry(record.partition).or_default();
            assert_eq!(record.offset.0, *expected, "a gap or a repeat in partition {}", record.partition);
            *expected += 1;
            let value = String::from_utf8(record.value.expect("a value").to_vec()).unwrap();
            let is_new = !value.starts_with("value-") || seen.insert(value.clone());
            assert!(is_new, "{value} was sent again and taken twice");
            if let Some(acked) = missing.remove(&(record.partition, record.offset.0)) {
                assert_eq!(value, acked, "partition {} offset {}", record.partition, record.offset);
            }
        }
    }
}

/// Three nodes with different numbers of shards, a topic with three replicas.
async fn three_nodes(ensemble: &Ensemble, dir: &Path) -> Nodes {
    let nodes = Nodes::start(ensemble, dir, &["0", "0,1", "1"]);
    nodes.create_topic("t", PARTITIONS as u32, 3).await;
    nodes
}

#[tokio::test]
async fn a_killed_leader_is_replaced_and_comes_back_as_a_follower_without_losing_what_was_acked() {
    let dir = directory();
    let ensemble = Ensemble::start(1);
    let mut nodes = three_nodes(&ensemble, dir.path()).await;
    let load = Load::start(&nodes, "t").await;
    load.progress(50).await;
    for _ in 0..3 {
        let (leader, epoch) = nodes.leader("t", 0);
        nodes.kill(leader);
        let pause = load.progress(1).await;
        eprintln!("node {leader} was killed; every partition was written to again after {pause:?}");
        let (after, newer) = nodes.leader("t", 0);
        assert_ne!(after, leader);
        assert!(newer > epoch, "{newer} after {epoch}");
        nodes.restart(leader);
        nodes.await_in_sync("t", 3);
        load.progress(50).await;
    }
    let acked = load.finish();
    check_all_there(&nodes, "t", &acked).await;
}

fn signal(pid: u32, name: &str) {
    let sent = std::process::Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(sent.expect("kill is there").success(), "{name} to {pid}");
}

#[tokio::test]
async fn a_leader_that_stands_still_is_replaced_within_its_session_and_acks_nothing_when_it_wakes() {
    let dir = directory();
    let ensemble = Ensemble::start(1);
    let nodes = three_nodes(&ensemble, dir.path()).await;
    let load = Load::start(&nodes, "t").await;
    load.progress(50).await;
    for _ in 0..2 {
        let (leader, epoch) = nodes.leader("t", 0);
        let pid = nodes.node(leader).pid();
        signal(pid, "-STOP");
        let pause = load.progress(1).await;
        eprintln!("node {leader} stood still; every partition was written to again after {pause:?}");
        signal(pid, "-CONT");
        let (after, newer) = nodes.leader("t", 0);
        assert!(newer > epoch, "{newer} after {epoch}, by {after}");
        nodes.await_in_sync("t", 3);
        load.progress(20).await;
    }
    let acked = load.finish();
    check_all_there(&nodes, "t", &acked).await;
}

#[tokio::test]
async fn a_rolling_restart_loses_nothing_and_no_producer_sees_an_error() {
    let dir = directory();
    let ensemble = Ensemble::start(1);
    let mut nodes = three_nodes(&ensemble, dir.path()).await;
    let load = Load::start(&nodes, "t").await;
    load.progress(50).await;
    for number in 1..=3 {
        let took = nodes.stop(number);
        let pause = load.progress(1).await;
        eprintln!("node {number} stopped in {took:?}; every partition was written to again after {pause:?}");
        nodes.restart(number);
        nodes.await_in_sync("t", 3);
        load.progress(20).await;
    }
    let acked = load.finish();
    check_all_there(&nodes, "t", &acked).await;
}

#[tokio::test]
async fn all_nodes_killed_at_once_come_back_with_all_that_was_acked() {
    let dir = directory();
    let ensemble = Ensemble::start(1);
    let mut nodes = three_nodes(&ensemble, dir.path()).await;
    let load = Load::start(&nodes, "t").await;
    load.progress(100).await;
    for number in 1..=3 {
        nodes.kill(number);
    }
    for number in 1..=3 {
        nodes.restart(number);
    }
    nodes.await_in_sync("t", 3);
    load.progress(20).await;
    let acked = load.finish();
    check_all_there(&nodes, "t", &acked).await;
}

/// Produces one batch to whoever leads a partition; the code of the refusal if there is one.
fn produce_once(nodes: &Nodes, topic: &str, partition: u32, acks: Acks) -> Result<u64, ErrorCode> {
    let (leader, _) = nodes.leader(topic, partition);
    let (records, to) = (batch(&["once"]), PartitionRef::by_name(topic, partition));
    let part = ProducePartition { to, records_bytes: records.len() as u32, leader_epoch: None };
    let request = ProduceRequest { acks, timeout_ms: 10_000, partitions: vec![part] };
    let (response, _) = nodes.node(leader).shard(0).ask(&request, &records);
    response.partitions[0].as_ref().map(|placed| placed.base_offset).map_err(|failure| failure.code)
}

fn fetch_once(nodes: &Nodes, topic: &str, partition: u32) -> Result<usize, ErrorCode> {
    let (leader, _) = nodes.leader(topic, partition);
    let from = FetchPartition {
        from: PartitionRef::by_name(topic, partition),
        fetch_offset: 0,
        max_bytes: 1 << 20,
        leader_epoch: None,
        last_epoch: None,
    };
    let request = FetchRequest { min_bytes: 1, max_wait_ms: 0, max_bytes: 1 << 20, partitions: vec![from] };
    let (response, records) = nodes.node(leader).shard(0).ask(&request, &[]);
    match &response.partitions[0].failure {
        None => Ok(records.len()),
        Some(failure) => Err(failure.code),
    }
}

#[tokio::test]
async fn without_the_coordination_service_acks_all_goes_on_and_all_else_stops_within_its_session() {
    let dir = directory();
    let mut ensemble = Ensemble::start(1);
    let nodes = three_nodes(&ensemble, dir.path()).await;
    let load = Load::start(&nodes, "t").await;
    load.progress(20).await;
    assert!(produce_once(&nodes, "t", 0, Acks::Leader).is_ok());
    assert!(fetch_once(&nodes, "t", 0).is_ok_and(|bytes| bytes > 0));
    ensemble.kill(0);
    let killed = Instant::now();
    nodes.await_that("refusal of acks = 1", || {
        (produce_once(&nodes, "t", 0, Acks::Leader) == Err(ErrorCode::NotLeader)).then_some(())
    });
    let after = killed.elapsed();
    assert!(after < Duration::from_secs(5), "acks = 1 was taken for {after:?}, with a session of 2 s");
    assert_eq!(fetch_once(&nodes, "t", 0), Err(ErrorCode::NotLeader));
    load.progress(50).await;
    assert!(produce_once(&nodes, "t", 0, Acks::All).is_ok());
    ensemble.restart(0);
    ensemble.await_serving(0);
    nodes.await_that("acks = 1 again", || produce_once(&nodes, "t", 0, Acks::Leader).ok());
    load.progress(50).await;
    let acked = load.finish();
    check_all_there(&nodes, "t", &acked).await;
}

#[tokio::test]
async fn hundreds_of_partitions_change_their_leader_while_others_are_written_to() {
    let dir = directory();
    let ensemble = Ensemble::start(1);
    let mut nodes = Nodes::start(&ensemble, dir.path(), &["0", "0,1", "1"]);
    let began = Instant::now();
    nodes.create_topic("many", 300, 3).await;
    eprintln!("300 partitions with three replicas were created in {:?}", began.elapsed());
    nodes.create_topic("probe", 6, 1).await;
    let survivors = [1, 2].map(|number| {
        let metadata = nodes.metadata(number, "probe");
        let led = metadata.topics[0].partitions.iter().find(|p| p.leader_node == number);
        (nodes.node(number).address, led.expect("each node leads some").partition)
    });
    let is_over = Arc::new(AtomicBool::new(false));
    let probes = survivors.map(|(address, partition)| {
        let is_over = is_over.clone();
        std::thread::spawn(move || {
            let mut bare = support::Bare::connect(address);
            let (records, to) = (batch(&["probe"]), PartitionRef::by_name("probe", partition));
            let part = ProducePartition { to, records_bytes: records.len() as u32, leader_epoch: None };
            let request = ProduceRequest { acks: Acks::All, timeout_ms: 10_000, partitions: vec![part] };
            // Its log may still be opened.
            while bare.ask(&request, &records).0.partitions[0].is_err() {
                std::thread::sleep(Duration::from_millis(20));
            }
            let mut longest = Duration::ZERO;
            while !is_over.load(Ordering::Relaxed) {
                let began = Instant::now();
                let (response, _) = bare.ask(&request, &records);
                response.partitions[0].as_ref().expect("produced");
                longest = longest.max(began.elapsed());
            }
            longest
        })
    });
    std::thread::sleep(Duration::from_millis(500));
    let began = Instant::now();
    nodes.kill(3);
    nodes.await_that("leaders of all partitions", || {
        let metadata = nodes.metadata(1, "many");
        let is_led = |p: &PartitionMetadata| p.error.is_none() && p.leader_node != 3;
        metadata.topics[0].partitions.iter().all(is_led).then_some(())
    });
    eprintln!("all partitions have a leader again after {:?}", began.elapsed());
    nodes.restart(3);
    nodes.await_in_sync("many", 3);
    eprintln!("all replicas are in sync again after {:?}", began.elapsed());
    is_over.store(true, Ordering::Relaxed);
    for probe in probes {
        let longest = probe.join().expect("it does not panic");
        eprintln!("the slowest produce to another partition took {longest:?}");
        assert!(longest < Duration::from_secs(1), "others stood still for {longest:?}");
    }
}

#[tokio::test]
async fn strangers_at_the_replication_port_do_no_harm() {
    let dir = directory();
    let ensemble = Ensemble::start(1);
    let nodes = three_nodes(&ensemble, dir.path()).await;
    let load = Load::start(&nodes, "t").await;
    load.progress(20).await;
    let ports: Vec<SocketAddr> = nodes.running().flat_map(Node::replication).collect();
    assert_eq!(ports.len(), 4, "one for each shard: {ports:?}");
    let mut silent = Vec::new();
    for port in &ports {
        for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4_096], &[0; 64], b"\x10\x00\x00\x00"] {
            let mut stranger = TcpStream::connect(port).expect("connected");
            stranger.set_read_timeout(Some(support::PATIENCE)).expect("set");
            // It may be turned away at any byte.
            let _ = stranger.write_all(bytes).and_then(|()| stranger.shutdown(Shutdown::Write));
            let _ = stranger.read_to_end(&mut Vec::new());
        }
        silent.extend((0..50).map(|_| TcpStream::connect(port).expect("connected")));
    }
    load.progress(50).await;
    for mut stranger in silent {
        stranger.set_read_timeout(Some(support::PATIENCE)).expect("set");
        let ended = stranger.read(&mut [0]);
        let is_ended = ended.as_ref().is_ok_and(|bytes| *bytes == 0)
            || ended.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(is_ended, "a silent stranger is let go: {ended:?}");
    }
    let acked = load.finish();
    check_all_there(&nodes, "t", &acked).await;
}

#[tokio::test]
async fn lost_logs_and_a_lost_disk_are_filled_again_from_the_other_nodes() {
    let dir = directory();
    let ensemble = Ensemble::start(1);
    let mut nodes = three_nodes(&ensemble, dir.path()).await;
    let load = Load::start(&nodes, "t").await;
    load.progress(50).await;
    let data = dir.path().join("node-3");
    let topic = std::fs::read_dir(data.join("topics")).unwrap().next().unwrap().unwrap().path();
    // One log, then everything.
    for lost in [topic.join("2"), data] {
        nodes.kill(3);
        std::fs::remove_dir_all(&lost).unwrap();
        nodes.restart(3);
        nodes.await_in_sync("t", 3);
        load.progress(20).await;
    }
    // What it has now is enough without the others.
    let acked = load.finish();
    nodes.await_in_sync("t", 3);
    nodes.stop(1);
    nodes.stop(2);
    for partition in 0..PARTITIONS as u32 {
        assert_eq!(nodes.leader("t", partition).0, 3);
    }
    check_all_there(&nodes, "t", &acked).await;
}
