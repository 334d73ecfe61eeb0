//! The producer against the server in memory: order, retries, limits, reports.
//!
//! Must never happen: a record of a partition before an earlier one, a report out of order, memory beyond the limit.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use corelog_client::{
    Acks, Compression, Consumer, ConsumerConfig, DeliveryError, ErrorCode, KeylessRule, Offset, PollLimits,
    ProducerConfig, ProducerRecord, RetryPolicy, SendError, StartAt,
};
use corelog_schemas::Api;
use support::{FakeServer, Fault};

fn value(text: &str) -> ProducerRecord<'_> {
    ProducerRecord { value: Some(text.as_bytes()), ..ProducerRecord::default() }
}

/// Reads a whole topic back, as (partition, value), in order per partition.
async fn read_all(server: &FakeServer, topic: &str, expected: usize) -> Vec<(u32, String)> {
    let mut consumer: Consumer = server.client().await.consumer(ConsumerConfig::default());
    consumer.assign_all(topic, StartAt::Earliest).await.expect("a known topic");
    let mut seen = Vec::new();
    while seen.len() < expected {
        let records =
            consumer.poll(PollLimits { wait_ms: 2_000, ..PollLimits::default() }).await.expect("reads");
        assert!(!records.is_empty(), "only {} of {expected} records came", seen.len());
        for record in records {
            let value = record.value.expect("a value");
            seen.push((record.partition, String::from_utf8(value.to_vec()).expect("text")));
        }
    }
    seen
}

#[tokio::test]
async fn records_arrive_with_their_offsets_and_every_codec() {
    let server = FakeServer::start(2).await;
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let topic = compression.name();
        server.create(topic, 3);
        let config = ProducerConfig { compression, ..ProducerConfig::default() };
        let producer = server.client().await.producer(config).expect("sound settings");
        let mut deliveries = Vec::new();
        for i in 0..300 {
            let text = format!("{compression:?} {i} {}", "x".repeat(50));
            let record = ProducerRecord { partition: Some(i % 3), ..value(&text) };
            deliveries.push(producer.send(topic, record).await.expect("taken"));
        }
        for (i, delivery) in deliveries.into_iter().enumerate() {
            let metadata = delivery.wait().await.expect("acked");
            assert_eq!((metadata.partition, metadata.offset), (i as u32 % 3, Some(Offset(i as u64 / 3))));
        }
        producer.close().await;
        assert_eq!(read_all(&server, topic, 300).await.len(), 300);
    }
}

#[tokio::test]
async fn order_holds_through_refusals_moves_and_broken_connections() {
    let server = FakeServer::start(2).await;
    server.create("t", 1);
    let faults = [
        Fault::Refuse(ErrorCode::Overloaded),
        Fault::CloseBefore,
        Fault::Refuse(ErrorCode::NotLeader),
        Fault::DelayMs(30),
        Fault::CloseBefore,
    ];
    server.with("t", 0, |log| log.faults.extend(faults));
    let retry = RetryPolicy { backoff_ms: 5, backoff_ms_max: 20, ..RetryPolicy::default() };
    let config = ProducerConfig { retry, batch_bytes: 300, ..ProducerConfig::default() };
    let producer = server.client().await.producer(config).expect("sound settings");
    let mut deliveries = Vec::new();
    for i in 0..500u64 {
        let text = i.to_string();
        deliveries.push(producer.send("t", value(&text)).await.expect("taken"));
        if i == 250 {
            server.with("t", 0, |log| log.leader = 1);
        }
        if i % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    for (i, delivery) in deliveries.into_iter().enumerate() {
        let offset = delivery.wait().await.expect("acked in the end").offset;
        assert_eq!(offset, Some(Offset(i as u64)), "nothing was lost before an append, so nothing is twice");
    }
    let seen: Vec<String> = read_all(&server, "t", 500).await.into_iter().map(|(_, value)| value).collect();
    let expected: Vec<String> = (0..500).map(|i| i.to_string()).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_lost_ack_makes_copies_but_never_disorder() {
    let server = FakeServer::start(1).await;
    server.create("t", 1);
    server.with("t", 0, |log| log.faults.extend([Fault::CloseAfter, Fault::CloseAfter]));
    let config = ProducerConfig { batch_bytes: 200, ..ProducerConfig::default() };
    let producer = server.client().await.producer(config).expect("sound settings");
    for i in 0..100 {
        producer.send("t", value(&format!("{i:03}"))).await.expect("taken");
    }
    producer.close().await;
    let end = server.with("t", 0, |log| log.end()) as usize;
    assert!(end > 100, "the batches with lost acks were sent again");
    let seen: Vec<String> = read_all(&server, "t", end).await.into_iter().map(|(_, value)| value).collect();
    let mut first_seen = Vec::new();
    for value in &seen {
        if !first_seen.contains(value) {
            first_seen.push(value.clone());
        }
    }
    assert!(first_seen.is_sorted(), "{first_seen:?}");
    assert_eq!(first_seen.len(), 100);
}

#[tokio::test]
async fn reports_come_once_and_in_order_whatever_their_outcome() {
    let server = FakeServer::start(1).await;
    server.create("t", 2);
    server.with("t", 0, |log| {
        log.faults.extend([Fault::Refuse(ErrorCode::Overloaded), Fault::Refuse(ErrorCode::InvalidTimestamp)]);
    });
    let reports: Arc<Mutex<Vec<(u32, u64, bool)>>> = Arc::default();
    let seen = Arc::clone(&reports);
    let config = ProducerConfig {
        batch_bytes: 150,
        on_delivery: Some(Arc::new(move |report| {
            let rows = report.tags.iter().map(|tag| (report.partition, *tag, report.outcome.is_ok()));
            seen.lock().expect("not poisoned").extend(rows);
        })),
        ..ProducerConfig::default()
    };
    let producer = server.client().await.producer(config).expect("sound settings");
    for tag in 0..200 {
        let record = ProducerRecord { tag, partition: Some((tag % 2) as u32), ..value("some value") };
        producer.send("t", record).await.expect("taken");
    }
    producer.close().await;
    let reports = reports.lock().expect("not poisoned");
    assert_eq!(reports.len(), 200);
    for partition in 0..2 {
        let tags: Vec<u64> = reports.iter().filter(|r| r.0 == partition).map(|r| r.1).collect();
        assert!(tags.is_sorted(), "partition {partition}: {tags:?}");
    }
    assert!(reports.iter().any(|report| !report.2), "the refused batch was reported");
    assert!(reports.iter().all(|report| report.0 == 0 || report.2), "and only that");
}

#[tokio::test]
async fn send_waits_for_memory_and_goes_on_when_acks_free_it() {
    let server = FakeServer::start(1).await;
    server.create("t", 1);
    server.with("t", 0, |log| log.faults.push_back(Fault::DelayMs(300)));
    let config = ProducerConfig {
        buffer_bytes_max: 4_000,
        batch_bytes: 1_000,
        partition_request_bytes_max: 1_000,
        linger_ms: 60_000,
        ..ProducerConfig::default()
    };
    let producer = server.client().await.producer(config).expect("sound settings");
    let started = tokio::time::Instant::now();
    let text = "x".repeat(468);
    for _ in 0..20 {
        producer.send("t", value(&text)).await.expect("taken");
    }
    assert!(started.elapsed() >= Duration::from_millis(290), "8 records fit, so the ninth had to wait");
    producer.close().await;
    assert_eq!(server.with("t", 0, |log| log.end()), 20);
    let error = producer.send("t", value("late")).await.expect_err("closed");
    assert!(matches!(error, SendError::Closed));
}

#[tokio::test]
async fn what_cannot_be_delivered_fails_by_its_deadline_and_says_so() {
    let server = FakeServer::start(1).await;
    server.create("t", 1);
    server.with("t", 0, |log| log.faults.extend(vec![Fault::Refuse(ErrorCode::DiskFull); 1_000]));
    let config = ProducerConfig { delivery_timeout_ms: 200, ..ProducerConfig::default() };
    let producer = server.client().await.producer(config).expect("sound settings");
    let delivery = producer.send("t", value("a")).await.expect("taken");
    match delivery.wait().await.expect_err("the disk stays full") {
        DeliveryError::GaveUp { attempts, maybe_appended, last } => {
            assert!(attempts > 1);
            assert!(!maybe_appended, "a refusal is an answer");
            assert!(last.contains("DiskFull"), "{last}");
        }
        other => panic!("{other}"),
    }
    let config = ProducerConfig {
        retry: RetryPolicy { retries_max: 0, ..RetryPolicy::default() },
        ..ProducerConfig::default()
    };
    let producer = server.client().await.producer(config).expect("sound settings");
    let delivery = producer.send("t", value("a")).await.expect("taken");
    let error = delivery.wait().await.expect_err("no retries");
    assert!(matches!(error, DeliveryError::GaveUp { attempts: 1, .. }), "{error}");
}

#[tokio::test]
async fn without_acks_records_leave_and_have_no_offset() {
    let server = FakeServer::start(1).await;
    server.create("t", 1);
    let config = ProducerConfig { acks: Acks::None, ..ProducerConfig::default() };
    let producer = server.client().await.producer(config).expect("sound settings");
    let delivery = producer.send("t", value("a")).await.expect("taken");
    assert_eq!(delivery.wait().await.expect("sent").offset, None);
    for i in 0..100 {
        producer.send("t", value(&i.to_string())).await.expect("taken");
    }
    producer.close().await;
    assert_eq!(read_all(&server, "t", 101).await.len(), 101);
}

#[tokio::test]
async fn requests_are_cut_to_the_frames_of_the_server_and_a_larger_batch_fails_alone() {
    let server = FakeServer::start(1).await;
    server.create("t", 1);
    server.world().frame_bytes_max = (64 << 10) + 20_000;
    let config = ProducerConfig { batch_bytes: 4_000, linger_ms: 20, ..ProducerConfig::default() };
    let producer = server.client().await.producer(config).expect("sound settings");
    let mut deliveries = Vec::new();
    let (small, huge) = ("s".repeat(1_000), "h".repeat(50_000));
    for i in 0..60 {
        let text = if i == 30 { &huge } else { &small };
        deliveries.push(producer.send("t", value(text)).await.expect("taken"));
    }
    for (i, delivery) in deliveries.into_iter().enumerate() {
        match delivery.wait().await {
            Ok(_) => assert_ne!(i, 30),
            Err(DeliveryError::Refused(failure)) => {
                assert_eq!((i, failure.code), (30, ErrorCode::BatchTooLarge));
            }
            Err(other) => panic!("record {i}: {other}"),
        }
    }
}

#[tokio::test]
async fn keyless_records_go_round_and_keys_stay_together() {
    let server = FakeServer::start(2).await;
    server.create("t", 4);
    let config = ProducerConfig { keyless_rule: KeylessRule::RoundRobin, ..ProducerConfig::default() };
    let producer = server.client().await.producer(config).expect("sound settings");
    for _ in 0..40 {
        producer.send("t", value("v")).await.expect("taken");
    }
    producer.flush().await;
    for partition in 0..4 {
        assert_eq!(server.with("t", partition, |log| log.end()), 10);
    }
    // murmur2("abc") = 479470107.
    let record = ProducerRecord { key: Some(b"abc"), ..value("v") };
    let metadata = producer.send("t", record).await.expect("taken").wait().await.expect("acked");
    assert_eq!(metadata.partition, 479_470_107 % 4);
    let error =
        producer.send("t", ProducerRecord { partition: Some(4), ..value("v") }).await.expect_err("none");
    assert!(matches!(error, SendError::NoSuchPartition { partition: 4, partitions: 4, .. }));
    let error = producer.send("nothing", value("v")).await.expect_err("unknown");
    assert!(matches!(error, SendError::Metadata { .. }), "{error}");
}

#[tokio::test]
async fn sticky_batches_are_few_and_visit_all_partitions() {
    let server = FakeServer::start(1).await;
    server.create("t", 4);
    let config = ProducerConfig { batch_bytes: 1_000, linger_ms: 5, ..ProducerConfig::default() };
    let producer = server.client().await.producer(config).expect("sound settings");
    for _ in 0..400 {
        producer.send("t", value("0123456789")).await.expect("taken");
    }
    producer.close().await;
    assert!(server.requests(Api::Produce) < 40, "{} requests", server.requests(Api::Produce));
    for partition in 0..4 {
        assert!(server.with("t", partition, |log| log.end()) >= 50, "partition {partition}");
    }
}

#[tokio::test]
async fn a_dropped_producer_tells_those_who_wait() {
    let server = FakeServer::start(1).await;
    server.create("t", 1);
    let config = ProducerConfig { linger_ms: 60_000, ..ProducerConfig::default() };
    let producer = server.client().await.producer(config).expect("sound settings");
    let delivery = producer.send("t", value("a")).await.expect("taken");
    drop(producer);
    assert!(matches!(delivery.wait().await, Err(DeliveryError::Closed)));
}
