//! Pipelining: what is asked in one go is done in that order and answered in that order, whatever finishes first.
//!
//! Setup: one session over a pipe in memory, a backend that answers when told. Must never happen: an answer out of its
//! place, an append out of its place, an answer to acks=0.

mod support;

use bytes::Bytes;
use corelog_engine::buffer::BufferPool;
use corelog_net::native::{Records, SessionEnd, SessionOptions};
use corelog_schemas::messages::*;
use corelog_schemas::{ErrorCode, Failure};
use support::backend::produced;
use support::{Shard, fetch, produce};

const WINDOW: usize = 8 << 20;

#[test]
fn produces_are_appended_at_once_and_answered_in_order() {
    let shard = Shard::new(SessionOptions::default());
    let mut connection = shard.connect(WINDOW);
    for id in 0..5u8 {
        connection.produce(u32::from(id), Acks::All, &[id; 100]);
    }
    shard.run();
    assert_eq!(shard.backend.appended_count(), 5, "all are appended before any is acked");
    let mut acks = std::mem::take(&mut *shard.backend.acks.borrow_mut());
    acks.pop_back().unwrap().fulfil(Ok(produced(4)));
    acks.remove(1).unwrap().fulfil(Ok(produced(1)));
    shard.run();
    assert_eq!(connection.replied(), [], "the first is not acked");
    acks.pop_front().unwrap().fulfil(Ok(produced(0)));
    shard.run();
    assert_eq!(connection.replied(), [0, 1]);
    acks.drain(..).for_each(|ack| ack.fulfil(Ok(produced(2))));
    shard.run();
    assert_eq!(connection.replied(), [2, 3, 4]);
    for (id, records) in shard.backend.appended.borrow().iter().enumerate() {
        assert_eq!(records, &[id as u8; 100]);
    }
}

#[test]
fn a_burst_is_answered_by_one_write() {
    let shard = Shard::new(SessionOptions::default());
    shard.backend.acks_at_once.set(true);
    let mut connection = shard.connect(WINDOW);
    let mut burst = Vec::new();
    (0..64).for_each(|id| burst.extend(connection.produce_frame(id, Acks::All, &[1; 1_000])));
    let writes_before = connection.end.server_writes();
    let traffic_before = shard.sessions.traffic();
    connection.end.send_all(&burst);
    shard.run();
    assert_eq!(connection.replied(), (0..64).collect::<Vec<_>>());
    assert!(connection.end.server_writes() - writes_before <= 3, "64 answers in a few writes");
    let traffic = shard.sessions.traffic();
    assert!(traffic.reads - traffic_before.reads <= 4, "64 requests in a few reads: {traffic:?}");
    assert_eq!((traffic.requests, traffic.produce_bytes), (65, 64_000));
}

#[test]
fn a_long_poll_holds_back_answers_but_not_appends() {
    let shard = Shard::new(SessionOptions::default());
    shard.backend.acks_at_once.set(true);
    let mut connection = shard.connect(WINDOW);
    connection.send(1, &fetch(1_000));
    connection.produce(2, Acks::All, b"new");
    shard.run();
    assert_eq!(shard.backend.appended_count(), 1, "the fetch in front does not stop the append");
    assert_eq!(connection.replied(), [], "the ack waits for its turn");
    shard.backend.answer_fetch(Records::Owned(Bytes::from_static(b"new")));
    shard.run();
    let reply = connection.reply();
    assert_eq!((reply.prefix.correlation_id, &reply.payload[..]), (1, &b"new"[..]));
    assert_eq!(reply.fetched().partitions[0].high_watermark, Some(9));
    assert_eq!(connection.replied(), [2]);
}

#[test]
fn fetches_of_one_connection_run_together() {
    let shard = Shard::new(SessionOptions::default());
    let mut connection = shard.connect(WINDOW);
    (1..=3).for_each(|id| connection.send(id, &fetch(1_000)));
    shard.run();
    assert_eq!(shard.backend.fetches.borrow().len(), 3);
    let (_, last) = shard.backend.fetches.borrow_mut().pop_back().unwrap();
    last.fulfil(Err(Failure::new(ErrorCode::Overloaded, "later")));
    shard.run();
    assert_eq!(connection.replied(), []);
    shard.backend.answer_fetch(Records::Empty);
    shard.backend.answer_fetch(Records::Owned(Bytes::from_static(b"x")));
    shard.run();
    assert_eq!((connection.reply().prefix.correlation_id, connection.reply().payload), (1, b"x".to_vec()));
    assert_eq!(connection.failure(), Failure::new(ErrorCode::Overloaded, "later"));
}

#[test]
fn slices_of_the_shards_buffers_leave_as_they_are() {
    let shard = Shard::new(SessionOptions::default());
    let pool = BufferPool::new(4 << 20);
    let mut connection = shard.connect(1_000);
    connection.send(1, &fetch(100_000));
    shard.run();
    let mut buffer = pool.try_allocate(64 << 10).unwrap();
    let bytes: Vec<u8> = (0..60_000u32).map(|i| i as u8).collect();
    buffer.append(&bytes);
    let slices = vec![buffer.slice(0..10), buffer.slice(10..10), buffer.slice(10..60_000)];
    drop(buffer);
    shard.backend.answer_fetch(Records::Shared(slices));
    shard.run();
    assert!(pool.used_bytes() > 0, "the socket has not taken all");
    let reply = loop {
        match connection.try_reply() {
            Some(reply) => break reply,
            None => shard.run(),
        }
    };
    shard.run();
    assert_eq!(reply.payload, bytes);
    assert_eq!(pool.used_bytes(), 0, "memory is given back once it is sent");
    assert_eq!(shard.sessions.traffic().fetch_bytes, 60_000);
}

#[test]
fn acks_0_has_no_answer_and_a_failure_closes() {
    let shard = Shard::new(SessionOptions::default());
    shard.backend.acks_at_once.set(true);
    let mut connection = shard.connect(WINDOW);
    connection.produce(1, Acks::None, b"quiet");
    connection.produce(2, Acks::Leader, b"loud");
    shard.run();
    assert_eq!(connection.replied(), [2]);
    shard.backend.acks_at_once.set(false);
    connection.produce(3, Acks::Leader, b"before");
    connection.produce(4, Acks::None, b"fails");
    shard.run();
    shard.backend.ack(3);
    shard
        .backend
        .acks
        .borrow_mut()
        .pop_front()
        .unwrap()
        .fulfil(Ok(ProduceResponse { throttle_ms: 0, partitions: vec![Err(ErrorCode::DiskFull.into())] }));
    shard.run();
    assert_eq!(connection.replied(), [3], "what came before is answered");
    assert_eq!(connection.ended(), Some(SessionEnd::UnackedFailure));
}

#[test]
fn every_request_reaches_the_backend_and_asks_for_permission() {
    let shard = Shard::new(SessionOptions::default());
    *shard.backend.forbidden.borrow_mut() = "secret".to_owned();
    let mut connection = shard.connect(WINDOW);
    connection.send(1, &MetadataRequest { topics: MetadataTopics::All });
    connection.send(2, &ListOffsetsRequest { partitions: vec![] });
    connection.send(3, &CreateTopicsRequest { topics: vec![], validate_only: false, timeout_ms: 1 });
    connection.send(4, &DeleteTopicsRequest { topics: vec!["t".into()], timeout_ms: 1 });
    connection.send(5, &ListTopicsRequest { name_prefix: String::new() });
    connection.send(6, &DescribeTopicsRequest { topics: vec![TopicRef::Id(5)] });
    let topic = || TopicRef::from("t");
    connection.send(
        7,
        &AlterTopicOptionsRequest { topic: topic(), options: vec![], validate_only: true, timeout_ms: 1 },
    );
    connection.send(
        8,
        &CreatePartitionsRequest { topic: topic(), partitions_total: 2, validate_only: true, timeout_ms: 1 },
    );
    connection.send(9, &DeleteRecordsRequest { timeout_ms: 1, partitions: vec![] });
    connection.send(10, &DescribeNodeRequest);
    connection.send(11, &DeleteTopicsRequest { topics: vec!["t".into(), "secret".into()], timeout_ms: 1 });
    shard.run();
    let metadata: MetadataResponse = connection.reply().read();
    assert_eq!(metadata.version, 7);
    for id in 2..=9 {
        let reply = connection.reply();
        assert_eq!((reply.prefix.correlation_id, reply.prefix.api != 0), (id, true));
    }
    assert_eq!(connection.failure().code, ErrorCode::MetadataUnavailable);
    assert_eq!(connection.failure().code, ErrorCode::NotAuthorized);
    let asked = shard.backend.asked.borrow();
    for expected in [
        "Describe AllTopics via plain",
        "Delete Topic(Name(\"t\")) via plain",
        "Describe Topic(Id(5)) via plain",
        "Alter Topic(Name(\"t\")) via plain",
        "Describe Cluster via plain",
    ] {
        assert!(asked.iter().any(|line| line == expected), "{expected} is missing: {asked:?}");
    }
}

#[test]
fn bad_values_are_answered_and_the_connection_goes_on() {
    let shard = Shard::new(SessionOptions::default());
    shard.backend.acks_at_once.set(true);
    let mut connection = shard.connect(WINDOW);
    connection.send(1, &ProduceRequest { acks: Acks::All, timeout_ms: 0, partitions: vec![] });
    connection.send(2, &support::hello());
    let mut unknown = connection.frame(3, &DescribeNodeRequest, &[]);
    unknown[12..14].copy_from_slice(&999u16.to_le_bytes());
    connection.end.send_all(&unknown);
    let frame = connection.frame(4, &produce(Acks::All, 1), b"r");
    connection.end.send_all(&frame);
    shard.run();
    assert_eq!(connection.failure().code, ErrorCode::InvalidRequest);
    assert_eq!(connection.failure().code, ErrorCode::InvalidRequest);
    let unknown = connection.failure();
    assert_eq!(unknown.code, ErrorCode::UnsupportedApi);
    assert!(unknown.message.contains("999"), "{unknown}");
    assert_eq!(connection.replied(), [4]);
}

#[test]
fn a_fetch_is_cut_to_the_limits() {
    let options =
        SessionOptions { fetch_bytes_max: 5_000, fetch_wait_ms_max: 70, ..SessionOptions::default() };
    let shard = Shard::new(options);
    let mut connection = shard.connect(WINDOW);
    let greedy = FetchRequest { min_bytes: u32::MAX, max_wait_ms: u32::MAX, ..fetch(u32::MAX) };
    connection.send(1, &greedy);
    shard.run();
    let (request, _) = &shard.backend.fetches.borrow()[0];
    assert_eq!((request.min_bytes, request.max_bytes, request.max_wait_ms), (5_000, 5_000, 70));
}
