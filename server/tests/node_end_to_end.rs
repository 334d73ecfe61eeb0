//! The real binary, from start to end: kill -9 under load, clean stops, other numbers of shards, lost directories, a
//! disk that is nearly full. What must never happen: an acked record that is not there, or that is somewhere else.

mod support;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use corelog_client::{ConsumerConfig, PollLimits, ProducerConfig, ProducerRecord, StartAt};
use corelog_schemas::messages::{
    Acks, FetchPartition, FetchRequest, PartitionRef, ProducePartition, ProduceRequest,
};
use corelog_schemas::{ErrorCode, messages::ProduceResponse};
use support::{Bare, Node, Setup, batch, directory};

/// What was acked: value by (partition, offset).
type Acked = BTreeMap<(u32, u64), String>;

/// Produces until the node dies or `count` records are acked; returns what was.
async fn produce(node: &Node, topic: &str, first: u32, count: u32) -> Acked {
    let client = node.client().await;
    let config = ProducerConfig { delivery_timeout_ms: 2_000, linger_ms: 1, ..ProducerConfig::default() };
    let producer = client.producer(config).expect("a producer");
    let acked = Arc::new(Mutex::new(Acked::new()));
    let mut waits = Vec::new();
    for i in first..first + count {
        let value = format!("value-{i}");
        let key = format!("key-{}", i % 97);
        let record = ProducerRecord {
            key: Some(key.as_bytes()),
            value: Some(value.as_bytes()),
            ..ProducerRecord::default()
        };
        let Ok(delivery) = producer.send(topic, record).await else { break };
        let acked = acked.clone();
        waits.push(tokio::spawn(async move {
            if let Ok(metadata) = delivery.wait().await {
                let offset = metadata.offset.expect("acks = all tells the offset");
                acked.lock().unwrap().insert((metadata.partition, offset.0), value);
            }
        }));
    }
    producer.flush().await;
    for wait in waits {
        wait.await.expect("it does not panic");
    }
    Arc::into_inner(acked).expect("nobody else is left").into_inner().unwrap()
}

/// Reads everything and checks that each acked record stands at its offset.
async fn check_all_there(node: &Node, topic: &str, acked: &Acked) {
    let client = node.client().await;
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_all(topic, StartAt::Earliest).await.expect("assigned");
    let mut missing = acked.clone();
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    while !missing.is_empty() {
        let limits = PollLimits { wait_ms: 5_000, ..PollLimits::default() };
        let records = consumer.poll(limits).await.expect("readable");
        assert!(
            !records.is_empty(),
            "{} acked records are missing: {:?}",
            missing.len(),
            missing.first_key_value()
        );
        for record in records {
            let expected = next.entry(record.partition).or_default();
            assert_eq!(record.offset.0, *expected, "a gap or a repeat in partition {}", record.partition);
            *expected += 1;
            let value = String::from_utf8(record.value.expect("a value").to_vec()).unwrap();
            if let Some(acked) = missing.remove(&(record.partition, record.offset.0)) {
                assert_eq!(value, acked, "partition {} offset {}", record.partition, record.offset);
            }
        }
    }
}

#[tokio::test]
async fn acked_records_survive_sigkill_and_other_numbers_of_shards() {
    let dir = directory();
    let data = dir.path().join("data");
    let mut acked = Acked::new();
    for (round, cores) in ["0", "0,1", "0", "0,1"].into_iter().enumerate() {
        let node = Setup::new(&data, cores).start();
        if round == 0 {
            node.create_topic("t", 6).await;
        }
        check_all_there(&node, "t", &acked).await;
        let address = node.address;
        // The kill falls into the load at a time that differs from round to round.
        let kill = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(150 + 70 * round as u64)).await;
            node.kill();
        });
        let more = produce_at(address, "t", round as u32 * 1_000_000).await;
        kill.await.expect("killed");
        acked.extend(more);
    }
    assert!(acked.len() > 100, "only {} records were acked: the test tests nothing", acked.len());
    let node = Setup::new(&data, "1").start();
    check_all_there(&node, "t", &acked).await;
}

/// Produces in small waves until the node is gone.
async fn produce_at(address: std::net::SocketAddr, topic: &str, first: u32) -> Acked {
    let config = corelog_client::ClientConfig::new([address.to_string()]);
    let client = corelog_client::Client::connect(config).await.expect("it answers");
    let config = ProducerConfig { delivery_timeout_ms: 1_000, ..ProducerConfig::default() };
    let producer = client.producer(config).expect("a producer");
    let mut acked = Acked::new();
    for wave in 0.. {
        let mut deliveries = Vec::new();
        for i in 0..100 {
            let value = format!("value-{}", first + wave * 100 + i);
            let record = ProducerRecord { value: Some(value.as_bytes()), ..ProducerRecord::default() };
            match producer.send(topic, record).await {
                Ok(delivery) => deliveries.push((value, delivery)),
                Err(_) => return acked,
            }
        }
        for (value, delivery) in deliveries {
            match delivery.wait().await {
                Ok(metadata) => {
                    let offset = metadata.offset.expect("acks = all tells the offset");
                    acked.insert((metadata.partition, offset.0), value);
                }
                Err(_) => return acked,
            }
        }
    }
    acked
}

#[tokio::test]
async fn a_clean_stop_is_quick_marked_and_skips_the_scan() {
    let dir = directory();
    let data = dir.path().join("data");
    let node = Setup::new(&data, "0,1").start();
    node.create_topic("t", 3).await;
    let acked = produce(&node, "t", 0, 2_000).await;
    assert_eq!(acked.len(), 2_000);
    // A fetch that waits must not hold the stop up.
    let mut waiting = node.shard(0);
    let end = acked.keys().filter(|(partition, _)| *partition == 0).count() as u64;
    waiting.send(&long_poll("t", end), &[]);
    let (status, took) = node.stop();
    let (answer, records) = waiting.receive::<FetchRequest>();
    assert!(answer.partitions[0].failure.is_none() && records.is_empty(), "it was waiting: {answer:?}");
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    assert!(data.join("clean").exists(), "no clean marker");
    let node = Setup::new(&data, "0").start();
    assert!(!data.join("clean").exists(), "a running node has no clean marker");
    check_all_there(&node, "t", &acked).await;
    let opened = node.log();
    let opened =
        opened.lines().rev().find(|line| line.contains("partitions are open")).expect("it is logged");
    assert!(opened.contains("scanned_bytes=0"), "{opened}");
}

fn long_poll(topic: &str, offset: u64) -> FetchRequest {
    let partition = FetchPartition {
        from: PartitionRef::by_name(topic, 0),
        fetch_offset: offset,
        max_bytes: 1 << 20,
        leader_epoch: None,
        last_epoch: None,
    };
    FetchRequest { min_bytes: 1, max_wait_ms: 60_000, max_bytes: 1 << 20, partitions: vec![partition] }
}

#[test]
fn a_second_server_on_the_same_directory_is_refused_with_advice() {
    let dir = directory();
    let setup = Setup::new(&dir.path().join("data"), "0");
    let node = setup.start();
    let (status, said) = setup.fail();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("in use by another corelog process"), "{said}");
    drop(node);
    drop(setup.start());
}

#[test]
fn wrong_cores_and_taken_ports_are_usage_errors_that_name_them() {
    let dir = directory();
    let (status, said) = Setup::new(&dir.path().join("data"), "999").fail();
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.contains("core 999"), "{said}");
    let node = Setup::new(&dir.path().join("data"), "0").start();
    let taken = std::process::Command::new(env!("CARGO_BIN_EXE_corelog"))
        .args(["serve", "--listen", &node.address.to_string(), "--data"])
        .arg(dir.path().join("other"))
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&taken.stderr);
    assert_eq!(taken.status.code(), Some(2), "{said}");
    assert!(said.contains(&node.address.port().to_string()), "{said}");
}

fn try_produce(bare: &mut Bare, topic: &str, partition: u32) -> Result<u64, ErrorCode> {
    let batch = batch(&["v"]);
    let to = PartitionRef::by_name(topic, partition);
    let part = ProducePartition { to, records_bytes: batch.len() as u32, leader_epoch: None };
    let request = ProduceRequest { acks: Acks::All, timeout_ms: 10_000, partitions: vec![part] };
    let (response, _): (ProduceResponse, _) = bare.ask(&request, &batch);
    match &response.partitions[0] {
        Ok(produced) => Ok(produced.base_offset),
        Err(failure) => Err(failure.code),
    }
}

#[tokio::test]
async fn below_the_free_space_watermark_produce_is_refused_and_reads_go_on() {
    let dir = directory();
    let data = dir.path().join("data");
    let node = Setup::new(&data, "0").start();
    node.create_topic("t", 1).await;
    assert_eq!(try_produce(&mut node.shard(0), "t", 0), Ok(0));
    drop(node);
    let node = Setup::new(&data, "0").set("CORELOG_DATA_FREE_BYTES_MIN", "1000TiB").start();
    let mut bare = node.shard(0);
    assert_eq!(try_produce(&mut bare, "t", 0), Err(ErrorCode::DiskFull));
    let (answer, records) = bare.ask(&long_poll("t", 0), &[]);
    assert_eq!((answer.partitions[0].failure.as_ref(), records.is_empty()), (None, false));
    drop(node);
    let node = Setup::new(&data, "0").start();
    assert_eq!(try_produce(&mut node.shard(0), "t", 0), Ok(1));
}

#[tokio::test]
async fn a_lost_log_is_reported_and_never_replaced_by_an_empty_one() {
    let dir = directory();
    let data = dir.path().join("data");
    let node = Setup::new(&data, "0").start();
    node.create_topic("t", 2).await;
    let mut bare = node.shard(0);
    assert_eq!((try_produce(&mut bare, "t", 0), try_produce(&mut bare, "t", 1)), (Ok(0), Ok(0)));
    node.kill();
    let topic = std::fs::read_dir(data.join("topics")).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_dir_all(topic.join("1")).unwrap();
    let node = Setup::new(&data, "0").start();
    let mut bare = node.shard(0);
    assert_eq!(try_produce(&mut bare, "t", 1), Err(ErrorCode::PartitionOffline));
    assert_eq!(try_produce(&mut bare, "t", 0), Ok(1), "the other partition goes on");
    assert!(!topic.join("1").exists());
    assert!(node.log().contains("is missing"), "{}", node.log());
}

/// Keeps others from opening a file: whoever tries waits until this is dropped (at most 45 s).
fn lease(path: &std::path::Path) -> std::fs::File {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    let descriptor = std::os::fd::AsRawFd::as_raw_fd(&file);
    // SAFETY: the descriptor is open; no memory is involved. The signal that somebody waits is ignored.
    let taken = unsafe {
        libc::signal(libc::SIGIO, libc::SIG_IGN);
        libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_WRLCK)
    };
    assert_eq!(taken, 0, "{}", std::io::Error::last_os_error());
    file
}

#[tokio::test]
async fn a_log_whose_opening_hangs_holds_up_no_other() {
    let dir = directory();
    let data = dir.path().join("data");
    let node = Setup::new(&data, "0").start();
    node.create_topic("t", 2).await;
    let mut bare = node.shard(0);
    assert_eq!((try_produce(&mut bare, "t", 0), try_produce(&mut bare, "t", 1)), (Ok(0), Ok(0)));
    let (status, _) = node.stop();
    assert!(status.success());
    let topic = std::fs::read_dir(data.join("topics")).unwrap().next().unwrap().unwrap().path();
    let lease = lease(&topic.join("0").join("log.checkpoint"));
    let node = Setup::new(&data, "0").start();
    let mut bare = node.shard(0);
    assert_eq!(try_produce(&mut bare, "t", 0), Err(ErrorCode::PartitionOffline));
    // The node takes its leaderships up only now that it waits for the log no longer.
    await_produced(&mut bare, "t", 1, 1);
    node.create_topic("later", 1).await;
    assert_eq!(try_produce(&mut bare, "later", 0), Ok(0));
    assert_eq!(try_produce(&mut bare, "t", 0), Err(ErrorCode::PartitionOffline), "it hangs still");
    drop(lease);
    await_produced(&mut bare, "t", 0, 1);
}

/// Produces until it is taken; it must get this offset.
fn await_produced(bare: &mut Bare, topic: &str, partition: u32, offset: u64) {
    let began = std::time::Instant::now();
    loop {
        match try_produce(bare, topic, partition) {
            Ok(base_offset) => return assert_eq!(base_offset, offset),
            Err(code) => assert!(began.elapsed() < support::PATIENCE, "{code:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test]
async fn the_only_replica_is_served_with_what_damage_has_left_of_it() {
    let dir = directory();
    let data = dir.path().join("data");
    let node = Setup::new(&data, "0").start();
    node.create_topic("t", 1).await;
    let mut bare = node.shard(0);
    for offset in 0..3 {
        assert_eq!(try_produce(&mut bare, "t", 0), Ok(offset));
    }
    node.kill();
    let topic = std::fs::read_dir(data.join("topics")).unwrap().next().unwrap().unwrap().path();
    let segment = topic.join("0").join("00000000000000000000.log");
    let mut bytes = std::fs::read(&segment).unwrap();
    let batch_bytes = batch(&["x"]).len();
    bytes[batch_bytes + batch_bytes / 2 + 30] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    for offset in 1..3 {
        let node = Setup::new(&data, "0").start();
        assert!(node.log().contains("damaged, not torn"), "{}", node.log());
        assert_eq!(
            try_produce(&mut node.shard(0), "t", 0),
            Ok(offset),
            "it goes on where the sound ones end"
        );
        node.kill();
    }
}

#[tokio::test]
async fn a_missing_data_directory_takes_only_its_own_partitions_offline() {
    let dir = directory();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let setup = Setup::new(&first, "0").data_dir(&second);
    let node = setup.start();
    node.create_topic("t", 8).await;
    let mut bare = node.shard(0);
    for partition in 0..8 {
        assert_eq!(try_produce(&mut bare, "t", partition), Ok(0));
    }
    let (status, _) = node.stop();
    assert!(status.success());
    let away = dir.path().join("away");
    std::fs::rename(&second, &away).unwrap();
    let node = setup.start();
    let mut bare = node.shard(0);
    let results: Vec<_> = (0..8).map(|partition| try_produce(&mut bare, "t", partition)).collect();
    let offline = results.iter().filter(|result| **result == Err(ErrorCode::PartitionOffline)).count();
    let served = results.iter().filter(|result| **result == Ok(1)).count();
    assert!(offline > 0 && served > 0 && offline + served == 8, "{results:?}");
    drop(node);
    std::fs::remove_dir_all(&second).ok();
    std::fs::rename(&away, &second).unwrap();
    let node = setup.start();
    let mut bare = node.shard(0);
    for (partition, before) in (0..8).zip(results) {
        let expected = if before.is_ok() { 2 } else { 1 };
        assert_eq!(try_produce(&mut bare, "t", partition), Ok(expected));
    }
}

#[tokio::test]
async fn a_topic_is_deleted_with_its_files_and_its_name_can_be_used_again() {
    let dir = directory();
    let data = dir.path().join("data");
    let node = Setup::new(&data, "0,1").start();
    node.create_topic("t", 4).await;
    let mut bare = node.shard(0);
    for partition in 0..4 {
        assert_eq!(try_produce(&mut bare, "t", partition), Ok(0));
    }
    let deleted = node.client().await.admin().delete_topics(&["t"]).await.expect("answered");
    deleted.into_iter().next().unwrap().expect("deleted");
    assert_eq!(try_produce(&mut bare, "t", 0), Err(ErrorCode::UnknownTopicOrPartition));
    assert_eq!(std::fs::read_dir(data.join("topics")).unwrap().count(), 0, "its files are gone");
    node.create_topic("t", 1).await;
    assert_eq!(try_produce(&mut bare, "t", 0), Ok(0), "a new topic begins at 0");
}

#[tokio::test]
async fn a_produce_creates_its_topic_if_that_is_allowed() {
    let dir = directory();
    let setup = Setup::new(&dir.path().join("data"), "0,1");
    let node = setup.clone().set("CORELOG_TOPIC_AUTO_CREATE", "true").start();
    assert_eq!(try_produce(&mut node.shard(1), "new", 0), Ok(0));
    assert_eq!(try_produce(&mut node.shard(0), "new", 0), Ok(1));
    drop(node);
    let node = setup.start();
    assert_eq!(try_produce(&mut node.shard(0), "other", 0), Err(ErrorCode::UnknownTopicOrPartition));
}

#[tokio::test]
async fn connections_above_the_limit_are_turned_away_and_a_freed_place_is_given_again() {
    let dir = directory();
    let setup = Setup::new(&dir.path().join("data"), "0").set("CORELOG_LIMITS_CONNECTIONS_MAX", "2");
    let node = setup.start();
    let (first, second) = (node.shard(0), node.shard(0));
    assert_eq!(node.refused_with(), Some(ErrorCode::Overloaded));
    drop((first, second));
    for _ in 0..200 {
        if node.refused_with().is_none() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("both connections have ended, and there is still no place");
}

#[tokio::test]
async fn garbage_and_half_frames_end_their_own_connection_and_nothing_else() {
    let dir = directory();
    let node = Setup::new(&dir.path().join("data"), "0").start();
    node.create_topic("t", 1).await;
    let mut bare = node.shard(0);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0; 64], b"\x10"] {
        node.send_raw(garbage);
    }
    assert_eq!(try_produce(&mut bare, "t", 0), Ok(0));
    assert_eq!(try_produce(&mut node.shard(0), "t", 0), Ok(1));
}

#[tokio::test]
async fn metrics_tell_what_a_shard_did() {
    let dir = directory();
    let node = Setup::new(&dir.path().join("data"), "0,1").start();
    node.create_topic("t", 2).await;
    let mut bare = node.shard(0);
    for partition in [0, 1] {
        assert_eq!(try_produce(&mut bare, "t", partition), Ok(0));
        bare.ask(&long_poll("t", 0), &[]);
    }
    let metrics = node.metrics();
    let of = |name: &str| -> f64 {
        let lines = metrics.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    assert_eq!(of("corelog_produce_latency_seconds_count"), 2.0);
    assert_eq!(of("corelog_requests_forwarded_total"), 1.0, "one partition is the other shard's");
    assert!(of("corelog_fetch_latency_seconds_count") >= 2.0);
    assert!(of("corelog_sync_latency_seconds_count") >= 2.0);
    assert!(of("corelog_sync_latency_seconds_sum") > 0.0);
    assert!(of("corelog_syncs_total") >= 2.0);
}
