//! Two shards, one node: requests that reach the wrong shard, long polls, several partitions at once. What must never
//! happen: another answer than the right shard would give, or another order than the connection's.

mod support;

use std::time::{Duration, Instant};

use corelog_schemas::ErrorCode;
use corelog_schemas::messages::{
    Acks, DeleteRecordsPartition, DeleteRecordsRequest, FetchPartition, FetchRequest, ListOffsetsPartition,
    ListOffsetsRequest, OffsetSpec, PartitionRef, ProducePartition, ProduceRequest, ProduceResponse,
};
use support::{Bare, Node, Setup, batch, directory};

fn produce_to(to: &[(&PartitionRef, usize)], acks: Acks) -> ProduceRequest {
    let partitions = to.iter().map(|(to, bytes)| ProducePartition {
        to: (*to).clone(),
        records_bytes: *bytes as u32,
        leader_epoch: None,
    });
    ProduceRequest { acks, timeout_ms: 10_000, partitions: partitions.collect() }
}

fn fetch_from(from: &[(&PartitionRef, u64)], min_bytes: u32, max_wait_ms: u32) -> FetchRequest {
    let partitions = from.iter().map(|(from, offset)| FetchPartition {
        from: (*from).clone(),
        fetch_offset: *offset,
        max_bytes: 1 << 20,
        leader_epoch: None,
        last_epoch: None,
    });
    FetchRequest { min_bytes, max_wait_ms, max_bytes: 8 << 20, partitions: partitions.collect() }
}

fn bases(response: &ProduceResponse) -> Vec<u64> {
    response.partitions.iter().map(|p| p.as_ref().expect("produced").base_offset).collect()
}

/// A node of two shards with a topic of four partitions, a connection to each shard, and a partition of each.
async fn two_shards(dir: &tempfile::TempDir) -> (Node, Bare, Bare, PartitionRef, PartitionRef) {
    let node = Setup::new(&dir.path().join("data"), "0,1").start();
    node.create_topic("t", 4).await;
    let (mut first, second) = (node.shard(0), node.shard(1));
    assert_eq!((first.shard, second.shard), (0, 1));
    let (of_first, of_second) = (first.partition_of_shard("t", 0), first.partition_of_shard("t", 1));
    (node, first, second, of_first, of_second)
}

#[tokio::test]
async fn the_wrong_shard_answers_as_the_right_one_would() {
    let dir = directory();
    let (_node, mut first, mut second, of_first, of_second) = two_shards(&dir).await;
    let (a, b) = (batch(&["a1", "a2"]), batch(&["b1"]));
    let both = [a.clone(), b.clone()].concat();
    let request = produce_to(&[(&of_first, a.len()), (&of_second, b.len())], Acks::All);
    for (round, bare) in [&mut first, &mut second].into_iter().enumerate() {
        let (response, _) = bare.ask(&request, &both);
        assert_eq!(bases(&response), [2 * round as u64, round as u64]);
    }
    let fetch = fetch_from(&[(&of_first, 0), (&of_second, 0)], 1, 0);
    let (from_first, records_first) = first.ask(&fetch, &[]);
    let (from_second, records_second) = second.ask(&fetch, &[]);
    assert_eq!(records_first, records_second);
    assert_eq!(from_first, from_second);
    assert_eq!(from_first.partitions[0].high_watermark, Some(4));
    assert_eq!(records_first.len(), 2 * both.len());

    let spec = |of: &PartitionRef, spec| ListOffsetsPartition { of: of.clone(), spec, leader_epoch: None };
    let lookups = vec![
        spec(&of_second, OffsetSpec::Latest),
        spec(&of_first, OffsetSpec::Latest),
        spec(&of_second, OffsetSpec::Timestamp(0)),
        spec(&PartitionRef::by_name("t", 99), OffsetSpec::Latest),
    ];
    let (found, _) = first.ask(&ListOffsetsRequest { partitions: lookups }, &[]);
    let offsets: Vec<_> = found.partitions[..3].iter().map(|f| f.as_ref().unwrap().offset).collect();
    assert_eq!(offsets, [Some(2), Some(4), Some(0)]);
    assert_eq!(found.partitions[3].as_ref().unwrap_err().code, ErrorCode::UnknownTopicOrPartition);

    let deletion = DeleteRecordsPartition { of: of_second.clone(), before_offset: Some(1) };
    let (deleted, _) =
        first.ask(&DeleteRecordsRequest { timeout_ms: 10_000, partitions: vec![deletion] }, &[]);
    assert_eq!(deleted.partitions, [Ok(1)]);
    let (gone, _) = first.ask(&fetch_from(&[(&of_second, 0)], 1, 0), &[]);
    assert_eq!(gone.partitions[0].failure.as_ref().unwrap().code, ErrorCode::OffsetOutOfRange);
}

#[tokio::test]
async fn the_byte_limit_of_a_fetch_holds_over_all_shards() {
    let dir = directory();
    let (_node, mut first, _second, of_first, of_second) = two_shards(&dir).await;
    let bytes = batch(&["a record that is larger than the limit"]);
    let to = [(&of_first, bytes.len()), (&of_second, bytes.len())];
    first.ask(&produce_to(&to, Acks::All), &[bytes.clone(), bytes.clone()].concat());
    let turns = [(&of_first, 0), (&of_second, 0), (&of_first, 0), (&of_second, 0)];
    let mut fetch = fetch_from(&turns, 1, 0);
    fetch.max_bytes = 10;
    let (_, records) = first.ask(&fetch, &[]);
    assert_eq!(records.len(), bytes.len(), "the first batch comes whole, and no other");
}

#[tokio::test]
async fn pipelined_produces_through_the_wrong_shard_keep_their_order() {
    let dir = directory();
    let (_node, mut first, _second, _, of_second) = two_shards(&dir).await;
    let batches: Vec<Vec<u8>> = (0..200).map(|i| batch(&[&format!("{i}")])).collect();
    for batch in &batches {
        first.send(&produce_to(&[(&of_second, batch.len())], Acks::All), batch);
    }
    for i in 0..200 {
        let (response, _) = first.receive::<ProduceRequest>();
        assert_eq!(bases(&response), [i]);
    }
}

#[tokio::test]
async fn a_long_poll_wakes_for_the_right_partition_wherever_it_is() {
    let dir = directory();
    let (node, mut first, _second, of_first, of_second) = two_shards(&dir).await;
    let mut positions = [0, 0];
    for (index, target) in [(0, &of_first), (1, &of_second)] {
        let mut writer = node.shard(0);
        let batch = batch(&["late"]);
        first.send(&fetch_from(&[(&of_first, positions[0]), (&of_second, positions[1])], 1, 20_000), &[]);
        let began = Instant::now();
        std::thread::sleep(Duration::from_millis(200));
        writer.ask(&produce_to(&[(target, batch.len())], Acks::All), &batch);
        let (answer, records) = first.receive::<FetchRequest>();
        let waited = began.elapsed();
        assert!(waited >= Duration::from_millis(200), "it came after {waited:?}, before there was anything");
        assert!(waited < Duration::from_secs(10), "it came after {waited:?}");
        assert_eq!(records.len(), batch.len());
        assert_eq!(answer.partitions[index].records_bytes as usize, batch.len());
        positions[index] += 1;
    }
}

#[tokio::test]
async fn a_long_poll_waits_for_min_bytes_or_for_its_time() {
    let dir = directory();
    let (node, mut first, _second, of_first, _) = two_shards(&dir).await;
    let batch = batch(&["some bytes"]);
    let three = 3 * batch.len() as u32;
    first.send(&fetch_from(&[(&of_first, 0)], three, 20_000), &[]);
    let mut writer = node.shard(0);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(20));
        writer.ask(&produce_to(&[(&of_first, batch.len())], Acks::All), &batch);
    }
    let (_, records) = first.receive::<FetchRequest>();
    assert_eq!(records.len(), three as usize);
    let began = Instant::now();
    let (answer, records) = first.ask(&fetch_from(&[(&of_first, 3)], 1, 300), &[]);
    let waited = began.elapsed();
    assert!(records.is_empty() && answer.partitions[0].failure.is_none());
    assert!((300..5_000).contains(&waited.as_millis()), "{waited:?}");
}

#[tokio::test]
async fn unacked_produces_are_appended_in_order_and_refused_ones_close_the_connection() {
    let dir = directory();
    let (node, mut first, _second, of_first, _) = two_shards(&dir).await;
    let batch = batch(&["x"]);
    for _ in 0..50 {
        first.send(&produce_to(&[(&of_first, batch.len())], Acks::None), &batch);
    }
    let (response, _) = first.ask(&produce_to(&[(&of_first, batch.len())], Acks::All), &batch);
    assert_eq!(bases(&response), [50]);
    let mut damaged = batch.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let refused = first.ask(&produce_to(&[(&of_first, damaged.len())], Acks::All), &damaged).0;
    assert_eq!(refused.partitions[0].as_ref().unwrap_err().code, ErrorCode::CorruptBatch);
    let (next, _) = node.shard(0).ask(&produce_to(&[(&of_first, batch.len())], Acks::Leader), &batch);
    assert_eq!(bases(&next), [51], "the refused batch took no offset");
}

#[tokio::test]
async fn fetches_that_wait_for_very_many_partitions_do_not_end_the_node() {
    let dir = directory();
    let (node, mut first, _second, of_first, of_second) = two_shards(&dir).await;
    // Each fits one frame; together they hold more waits than an executor counts wakers of one task.
    let many = vec![(&of_first, 0); 15_000];
    for _ in 0..4 {
        first.send(&fetch_from(&many, 1, 20_000), &[]);
    }
    let elsewhere = vec![(&of_second, 0); 15_000];
    for _ in 0..4 {
        first.send(&fetch_from(&elsewhere, 1, 20_000), &[]);
    }
    std::thread::sleep(Duration::from_millis(300));
    let mut writer = node.shard(0);
    let batch = batch(&["x"]);
    let both = [batch.clone(), batch.clone()].concat();
    let to = [(&of_first, batch.len()), (&of_second, batch.len())];
    writer.ask(&produce_to(&to, Acks::All), &both);
    for _ in 0..8 {
        let (answer, records) = first.receive::<FetchRequest>();
        assert_eq!(answer.partitions.len(), 15_000);
        assert!(!records.is_empty() && answer.partitions[0].failure.is_none());
    }
}
