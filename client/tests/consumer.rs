//! The consumer against the server in memory: positions, order, moves, damage, limits.
//!
//! Must never happen: a record twice or left out without a seek, a damaged record, a silent gap.

mod support;

use corelog_client::{
    Client, ConsumeError, Consumer, ConsumerConfig, ErrorCode, Offset, OutOfRange, PollLimits,
    ProducerConfig, ProducerRecord, StartAt, TimestampMs,
};
use corelog_schemas::Api;
use support::FakeServer;

/// A topic whose partition p holds the values "p:0" .. "p:n-1", one batch for each ten, timestamp = offset.
async fn filled(shards: u16, partitions: u32, records: u64) -> (FakeServer, Client) {
    let server = FakeServer::start(shards).await;
    server.create("t", partitions);
    let client = server.client().await;
    let producer =
        client.producer(ProducerConfig { linger_ms: 60_000, ..ProducerConfig::default() }).expect("ok");
    for i in 0..records {
        for partition in 0..partitions {
            let text = format!("{partition}:{i}");
            let record = ProducerRecord {
                value: Some(text.as_bytes()),
                partition: Some(partition),
                timestamp: Some(TimestampMs(i as i64)),
                ..ProducerRecord::default()
            };
            producer.send("t", record).await.expect("taken");
        }
        if i % 10 == 9 {
            producer.flush().await;
        }
    }
    producer.close().await;
    (server, client)
}

fn quick() -> PollLimits {
    PollLimits { wait_ms: 300, ..PollLimits::default() }
}

/// Polls until nothing more comes; yields (partition, offset), checking that values fit.
async fn drain(consumer: &mut Consumer) -> Vec<(u32, u64)> {
    let mut seen = Vec::new();
    loop {
        let records = consumer.poll(quick()).await.expect("reads");
        if records.is_empty() {
            return seen;
        }
        for record in records {
            let expected = format!("{}:{}", record.partition, record.offset);
            assert_eq!(record.value.as_deref(), Some(expected.as_bytes()));
            seen.push((record.partition, record.offset.0));
        }
    }
}

fn of(seen: &[(u32, u64)], partition: u32) -> Vec<u64> {
    seen.iter().filter(|row| row.0 == partition).map(|row| row.1).collect()
}

#[tokio::test]
async fn every_start_leads_to_its_offset() {
    let (_server, client) = filled(2, 4, 50).await;
    let mut consumer = client.consumer(ConsumerConfig::default());
    let starts = [
        (0, StartAt::Earliest),
        (1, StartAt::Offset(Offset(33))),
        (2, StartAt::TimestampMs(25)),
        (3, StartAt::Latest),
    ];
    consumer.assign("t", &starts).await.expect("known");
    let seen = drain(&mut consumer).await;
    assert_eq!(of(&seen, 0), (0..50).collect::<Vec<_>>());
    assert_eq!(of(&seen, 1), (33..50).collect::<Vec<_>>());
    assert_eq!(of(&seen, 2), (20..50).collect::<Vec<_>>(), "the batch that holds timestamp 25 begins at 20");
    assert_eq!(of(&seen, 3), []);
    assert_eq!(consumer.position("t", 3).expect("assigned"), Some(Offset(50)));
    assert_eq!(consumer.high_watermark("t", 0).expect("assigned"), Some(Offset(50)));
    let error = consumer.assign("t", &[(4, StartAt::Latest)]).await.expect_err("there are four");
    assert!(matches!(error, ConsumeError::NoSuchPartition { partition: 4, partitions: 4, .. }));
}

#[tokio::test]
async fn limits_bound_each_poll_and_nothing_is_lost_between() {
    let (_server, client) = filled(2, 3, 40).await;
    let config = ConsumerConfig { prefetch_bytes_max: 500, ..ConsumerConfig::default() };
    let mut consumer = client.consumer(config);
    assert_eq!(consumer.assign_all("t", StartAt::Earliest).await.expect("known"), 3);
    let mut seen = Vec::new();
    while seen.len() < 120 {
        let records =
            consumer.poll(PollLimits { records_max: 7, bytes_max: 15, ..quick() }).await.expect("reads");
        assert!((1..=6).contains(&records.len()), "{} records of about 4 bytes", records.len());
        seen.extend(records.iter().map(|record| (record.partition, record.offset.0)));
    }
    for partition in 0..3 {
        assert_eq!(of(&seen, partition), (0..40).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn seek_pause_and_resume_hold_at_once() {
    let (_server, client) = filled(1, 2, 30).await;
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_all("t", StartAt::Earliest).await.expect("known");
    consumer.poll(PollLimits { records_max: 5, ..quick() }).await.expect("reads");
    consumer.pause("t", 0).expect("assigned");
    consumer.seek("t", 1, StartAt::Offset(Offset(28))).expect("assigned");
    assert_eq!(drain(&mut consumer).await, [(1, 28), (1, 29)]);
    let position = consumer.position("t", 0).expect("assigned").expect("known").0;
    consumer.resume("t", 0).expect("assigned");
    assert_eq!(of(&drain(&mut consumer).await, 0), (position..30).collect::<Vec<_>>());
    consumer.unassign("t", 0).expect("assigned");
    assert!(matches!(consumer.pause("t", 0), Err(ConsumeError::NotAssigned { .. })));
}

#[tokio::test]
async fn a_moved_partition_is_followed_without_loss_or_repeat() {
    let (server, client) = filled(3, 1, 30).await;
    let mut consumer = client.consumer(ConsumerConfig { prefetch_bytes_max: 1, ..ConsumerConfig::default() });
    consumer.assign_all("t", StartAt::Earliest).await.expect("known");
    let mut seen: Vec<u64> = Vec::new();
    for leader in [1, 2, 0, 1] {
        let records =
            consumer.poll(PollLimits { records_max: 8, wait_ms: 2_000, ..quick() }).await.expect("reads");
        seen.extend(records.iter().map(|record| record.offset.0));
        server.with("t", 0, |log| log.leader = leader);
    }
    seen.extend(of(&drain(&mut consumer).await, 0));
    assert_eq!(seen, (0..30).collect::<Vec<_>>());
}

#[tokio::test]
async fn what_retention_took_is_an_error_or_a_jump_by_choice() {
    let (server, client) = filled(1, 1, 30).await;
    server.with("t", 0, |log| {
        log.start = 10;
        log.batches.remove(0);
    });
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign("t", &[(0, StartAt::Offset(Offset(3)))]).await.expect("known");
    let error = consumer.poll(quick()).await.expect_err("gone");
    assert!(matches!(error, ConsumeError::OffsetOutOfRange { offset: Offset(3), .. }), "{error}");
    assert!(consumer.poll(quick()).await.expect("told once").is_empty());
    consumer.seek("t", 0, StartAt::Earliest).expect("assigned");
    assert_eq!(of(&drain(&mut consumer).await, 0), (10..30).collect::<Vec<_>>());

    let config = ConsumerConfig { out_of_range: OutOfRange::Earliest, ..ConsumerConfig::default() };
    let mut consumer = client.consumer(config);
    consumer.assign("t", &[(0, StartAt::Offset(Offset(3)))]).await.expect("known");
    assert_eq!(of(&drain(&mut consumer).await, 0), (10..30).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_damaged_batch_is_told_and_can_be_skipped() {
    let (server, client) = filled(1, 1, 30).await;
    server.with("t", 0, |log| *log.batches[1].last_mut().expect("bytes") ^= 1);
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_all("t", StartAt::Earliest).await.expect("known");
    let mut seen = Vec::new();
    let error = loop {
        match consumer.poll(quick()).await {
            Ok(records) => seen.extend(records.iter().map(|record| record.offset.0)),
            Err(error) => break error,
        }
    };
    assert_eq!(seen, (0..10).collect::<Vec<_>>());
    assert!(matches!(error, ConsumeError::BadBatch { offset: Offset(10), .. }), "{error}");
    consumer.seek("t", 0, StartAt::Offset(Offset(20))).expect("assigned");
    assert_eq!(of(&drain(&mut consumer).await, 0), (20..30).collect::<Vec<_>>());
}

#[tokio::test]
async fn passing_failures_are_waited_out_and_lasting_ones_told() {
    let (server, client) = filled(1, 1, 10).await;
    server.with("t", 0, |log| log.fetch_faults.extend([ErrorCode::NotLeader, ErrorCode::Overloaded]));
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_all("t", StartAt::Earliest).await.expect("known");
    assert_eq!(of(&drain(&mut consumer).await, 0).len(), 10);

    server.with("t", 0, |log| log.fetch_faults.extend([ErrorCode::Overloaded; 1_000]));
    let mut consumer = client.consumer(ConsumerConfig { patience_ms: 200, ..ConsumerConfig::default() });
    consumer.assign_all("t", StartAt::Earliest).await.expect("known");
    let error = consumer.poll(PollLimits { wait_ms: 5_000, ..quick() }).await.expect_err("lasts");
    assert!(matches!(error, ConsumeError::Request(_)), "{error}");

    server.with("t", 0, |log| {
        log.fetch_faults.clear();
        log.fetch_faults.push_back(ErrorCode::CorruptData);
    });
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_all("t", StartAt::Earliest).await.expect("known");
    let error = consumer.poll(quick()).await.expect_err("damage does not pass");
    assert!(matches!(error, ConsumeError::Refused { .. }), "{error}");
}

#[tokio::test]
async fn a_partition_without_a_leader_is_told_and_comes_back() {
    let (server, client) = filled(1, 1, 10).await;
    let mut consumer = client.consumer(ConsumerConfig { patience_ms: 200, ..ConsumerConfig::default() });
    consumer.assign("t", &[(0, StartAt::Offset(Offset(0)))]).await.expect("known");
    // No shard of the node has this number.
    server.with("t", 0, |log| log.leader = 99);
    let error = consumer.poll(PollLimits { wait_ms: 10_000, ..quick() }).await.expect_err("nobody leads it");
    assert!(matches!(error, ConsumeError::Request(_)), "{error}");
    server.with("t", 0, |log| log.leader = 0);
    assert_eq!(of(&drain(&mut consumer).await, 0).len(), 10);
}

#[tokio::test]
async fn a_topic_made_anew_under_the_same_name_is_not_taken_for_the_old_one() {
    let (server, client) = filled(1, 1, 10).await;
    let mut consumer = client.consumer(ConsumerConfig::default());
    consumer.assign_all("t", StartAt::Earliest).await.expect("known");
    assert_eq!(drain(&mut consumer).await.len(), 10);
    server.create("t", 1);
    let error = consumer.poll(PollLimits { wait_ms: 5_000, ..quick() }).await.expect_err("another topic");
    assert!(error.to_string().contains("created again") || error.to_string().contains("outside"), "{error}");
    consumer.seek("t", 0, StartAt::Earliest).expect("assigned");
    assert!(drain(&mut consumer).await.is_empty(), "the new one is empty");
}

#[tokio::test]
async fn an_idle_consumer_waits_at_the_server_and_hears_of_news_at_once() {
    let (server, client) = filled(1, 1, 10).await;
    let config = ConsumerConfig { fetch_max_wait_ms: 5_000, ..ConsumerConfig::default() };
    let mut consumer = client.consumer(config);
    consumer.assign_all("t", StartAt::Latest).await.expect("known");
    assert!(consumer.poll(PollLimits { wait_ms: 500, ..quick() }).await.expect("reads").is_empty());
    assert_eq!(server.requests(Api::Fetch), 1, "one long poll, no busy polling");
    let producer = client.producer(ProducerConfig::default()).expect("ok");
    let started = tokio::time::Instant::now();
    producer
        .send("t", ProducerRecord { value: Some(b"new"), ..ProducerRecord::default() })
        .await
        .expect("taken");
    let records = consumer.poll(PollLimits { wait_ms: 4_000, ..quick() }).await.expect("reads");
    assert_eq!(records[0].value.as_deref(), Some(&b"new"[..]));
    assert!(started.elapsed().as_millis() < 2_000);
}
