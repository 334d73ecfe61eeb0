//! Servers that fall silent, refuse connections or hand their partitions over, while producers and consumers work.
//!
//! Must never happen: a client waits for a silent server while others know better, hears an error of what it could
//! wait out, or is not told of records that are gone.

mod support;

use std::time::Duration;

use corelog_client::{
    Client, ClientConfig, ConsumeError, ConsumerConfig, Offset, PollLimits, ProducerConfig, ProducerRecord,
    StartAt,
};
use corelog_schemas::messages::Divergence;
use support::FakeServer;
use tokio::time::Instant;

fn value(text: &str) -> ProducerRecord<'_> {
    ProducerRecord { value: Some(text.as_bytes()), ..ProducerRecord::default() }
}

/// A client that knows the addresses of two shards, with limits that no test waits for.
async fn client(server: &FakeServer) -> Client {
    let mut config = ClientConfig::new([server.address_of(0), server.address_of(1)]);
    config.request_timeout_ms = 60_000;
    Client::connect(config).await.expect("the fake server answers")
}

#[tokio::test]
async fn a_silent_leader_is_left_as_soon_as_there_is_another_one() {
    let server = FakeServer::start(3).await;
    server.create("t", 2);
    let producer = client(&server).await.producer(ProducerConfig::default()).expect("sound settings");
    let to = |partition| ProducerRecord { partition: Some(partition), ..value("v") };
    producer.send("t", to(0)).await.expect("taken").wait().await.expect("acked");
    server.world().silent.push(0);
    let first = producer.send("t", to(0)).await.expect("taken");
    let second = producer.send("t", to(0)).await.expect("taken");
    let other = producer.send("t", to(1)).await.expect("taken");
    let started = Instant::now();
    other.wait().await.expect("another leader is not waited for");
    assert!(started.elapsed() < Duration::from_millis(200), "{:?}", started.elapsed());
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    server.with("t", 0, |log| log.leader = 2);
    let moved = Instant::now();
    assert_eq!(first.wait().await.expect("acked").offset, Some(Offset(1)));
    assert_eq!(second.wait().await.expect("acked").offset, Some(Offset(2)));
    assert!(moved.elapsed() < Duration::from_millis(500), "{:?} after the move", moved.elapsed());
}

#[tokio::test]
async fn a_consumer_leaves_a_silent_leader_and_reads_others_meanwhile() {
    let server = FakeServer::start(3).await;
    server.create("t", 2);
    let client = client(&server).await;
    let producer = client.producer(ProducerConfig::default()).expect("sound settings");
    let mut consumer =
        client.consumer(ConsumerConfig { fetch_max_wait_ms: 100, ..ConsumerConfig::default() });
    consumer.assign_all("t", StartAt::Earliest).await.expect("a known topic");
    let limits = PollLimits { wait_ms: 50, ..PollLimits::default() };
    while consumer.position("t", 0).expect("assigned").is_none() {
        assert!(consumer.poll(limits).await.expect("nothing is wrong").is_empty());
    }
    server.world().silent.push(0);
    for partition in [1, 1] {
        let record = ProducerRecord { partition: Some(partition), ..value("v") };
        producer.send("t", record).await.expect("taken").wait().await.expect("acked");
    }
    let mut seen = 0;
    while seen < 2 {
        seen += consumer.poll(limits).await.expect("nothing is told of what passes").len();
    }
    server.with("t", 0, |log| log.leader = 2);
    let moved = Instant::now();
    let record = ProducerRecord { partition: Some(0), ..value("v") };
    producer.send("t", record).await.expect("taken").wait().await.expect("acked");
    while consumer.poll(limits).await.expect("nothing is told").is_empty() {
        assert!(moved.elapsed() < Duration::from_secs(2), "the new leader is not asked");
    }
}

#[tokio::test]
async fn one_live_server_among_the_given_ones_is_enough() {
    let server = FakeServer::start(2).await;
    server.create("t", 1);
    server.world().silent.push(0);
    server.with("t", 0, |log| log.leader = 1);
    // Nobody listens on port 1.
    let mut config =
        ClientConfig::new(["127.0.0.1:1".to_owned(), server.address_of(0), server.address_of(1)]);
    config.request_timeout_ms = 60_000;
    let started = Instant::now();
    let client = Client::connect(config).await.expect("the last one answers");
    let producer = client.producer(ProducerConfig::default()).expect("sound settings");
    producer.send("t", value("v")).await.expect("taken").wait().await.expect("acked");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_reader_is_told_once_of_records_that_were_given_up_and_goes_on() {
    let server = FakeServer::start(1).await;
    server.create("t", 1);
    let client = server.client().await;
    let producer = client.producer(ProducerConfig::default()).expect("sound settings");
    for i in 0..5 {
        producer.send("t", value(&i.to_string())).await.expect("taken").wait().await.expect("acked");
    }
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_all("t", StartAt::Earliest).await.expect("a known topic");
    let limits = PollLimits { wait_ms: 2_000, ..PollLimits::default() };
    let mut seen = 0;
    while seen < 5 {
        seen += consumer.poll(limits).await.expect("records").len();
    }
    // The leader has batches of one record each; three of them are left.
    server.with("t", 0, |log| {
        log.batches.truncate(3);
        log.diverged = Some(Divergence { epoch: 1, end_offset: 3 });
    });
    producer.send("t", value("again")).await.expect("taken").wait().await.expect("acked");
    let told = loop {
        match consumer.poll(limits).await {
            Ok(records) => assert!(records.is_empty(), "not before the reader is told: {records:?}"),
            Err(error) => break error,
        }
    };
    match &told {
        ConsumeError::Truncated { position, reset_to, .. } => {
            assert_eq!((*position, *reset_to), (Offset(5), Offset(3)));
        }
        other => panic!("{other}"),
    }
    assert!(told.to_string().contains("was reset to 3"), "{told}");
    let records = consumer.poll(limits).await.expect("it goes on by itself");
    assert_eq!(records[0].offset, Offset(3));
    assert_eq!(records[0].value.as_deref(), Some(&b"again"[..]));
}
