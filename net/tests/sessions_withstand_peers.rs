//! RELIABILITY row 31: half-open, slow, silent, garbage, oversized, over-many connections.
//!
//! Setup: sessions over pipes in memory; the test moves time. Must never happen: a panic, memory or queues beyond the
//! limits, a session that outlives its deadline, a good neighbour that waits.

mod support;

use bytes::Bytes;
use corelog_net::native::options::{HANDSHAKE_BYTES_MAX, READ_AHEAD_BYTES_MAX, READ_AHEAD_BYTES_MIN};
use corelog_net::native::{Records, SessionEnd, SessionOptions};
use corelog_schemas::messages::*;
use corelog_schemas::{ErrorCode, FramePrefix};
use support::{Connection, Shard, fetch, hello};

const WINDOW: usize = 4 << 20;

/// The shard still serves others.
fn check_neighbour(shard: &Shard, neighbour: &mut Connection) {
    neighbour.send(77, &MetadataRequest { topics: MetadataTopics::All });
    shard.run();
    assert_eq!(neighbour.replied(), [77], "a neighbour is served");
}

#[test]
fn a_silent_peer_is_closed_after_the_handshake_timeout() {
    let shard = Shard::new(SessionOptions::default());
    let silent = shard.connect_silent(WINDOW);
    let mut half_said = shard.connect_silent(WINDOW);
    let frame = half_said.frame(0, &hello(), &[]);
    half_said.end.send_all(&frame[..20]);
    shard.pass_ms(9_000);
    assert_eq!((silent.ended(), half_said.ended()), (None, None));
    shard.pass_ms(1_000);
    assert_eq!(silent.ended(), Some(SessionEnd::HandshakeTimeout));
    assert_eq!(half_said.ended(), Some(SessionEnd::HandshakeTimeout));
    assert_eq!((shard.sessions.connections().open, shard.sessions.connections().timed_out), (0, 2));
}

#[test]
fn garbage_is_answered_once_and_closed() {
    let shard = Shard::new(SessionOptions::default());
    let mut neighbour = shard.connect(WINDOW);
    let check = |bytes: &[u8], code: ErrorCode| {
        let mut connection = shard.connect_silent(WINDOW);
        connection.end.send_all(bytes);
        shard.run();
        assert_eq!(connection.failure().code, code);
        assert!(connection.end.is_server_done(), "nothing more comes");
        connection.end.close();
        shard.run();
        connection.ended().expect("the session is over")
    };
    let garbage = SessionEnd::Garbage(ErrorCode::CorruptFrame);
    assert_eq!(check(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", ErrorCode::CorruptFrame), garbage);
    assert_eq!(check(&[0xff; 64], ErrorCode::CorruptFrame), garbage);
    assert_eq!(check(&[0; 64], ErrorCode::CorruptFrame), garbage);
    let kafka_hello = b"\0\0\0\x0e\0\x12\0\x03\0\0\0\x01\0\x04test";
    assert_eq!(check(kafka_hello, ErrorCode::CorruptFrame), garbage);
    let large = FramePrefix {
        frame_bytes: u64::from(HANDSHAKE_BYTES_MAX) + 1,
        head_bytes: 10,
        correlation_id: 5,
        api: 1,
    };
    let too_large = SessionEnd::Garbage(ErrorCode::FrameTooLarge);
    assert_eq!(check(&large.to_bytes(), ErrorCode::FrameTooLarge), too_large);
    let bad_head = FramePrefix { frame_bytes: 24, head_bytes: 8, ..large }.to_bytes();
    assert_eq!(check(&[&bad_head[..], &[0xff; 8]].concat(), ErrorCode::CorruptFrame), garbage);
    let other = FramePrefix { api: 2, ..FramePrefix { frame_bytes: 16, head_bytes: 0, ..large } };
    assert_eq!(check(&other.to_bytes(), ErrorCode::HandshakeRequired), SessionEnd::HandshakeRefused);
    assert_eq!(shard.sessions.connections().garbage, 7);
    check_neighbour(&shard, &mut neighbour);
}

#[test]
fn a_client_of_another_age_is_told_both_ranges() {
    let shard = Shard::new(SessionOptions::default());
    let mut connection = shard.connect_silent(WINDOW);
    connection.send(9, &HandshakeRequest { protocol_version_min: 50, protocol_version_max: 60, ..hello() });
    shard.run();
    let response: HandshakeResponse = connection.reply().read();
    let failure = response.protocol_version.unwrap_err();
    assert_eq!(failure.code, ErrorCode::UnsupportedVersion);
    assert!(failure.message.contains("50 to 60"), "{failure}");
    shard.pass_ms(5_000);
    assert_eq!(connection.ended(), Some(SessionEnd::HandshakeRefused), "lingering has an end");
}

#[test]
fn garbage_behind_good_requests_is_answered_in_its_place() {
    let shard = Shard::new(SessionOptions::default());
    let mut connection = shard.connect(WINDOW);
    connection.produce(1, Acks::All, b"good");
    let mut lying = connection.produce_frame(2, Acks::All, b"four");
    lying.extend_from_slice(b"more");
    let counted = u32::from_le_bytes(lying[0..4].try_into().unwrap()) + 4;
    lying[0..4].copy_from_slice(&counted.to_le_bytes());
    connection.end.send_all(&lying);
    connection.produce(3, Acks::All, b"never read");
    shard.run();
    assert_eq!(shard.backend.appended_count(), 1);
    assert_eq!(connection.replied(), [], "the garbage waits for its turn");
    shard.backend.ack(0);
    shard.run();
    assert_eq!(connection.reply().prefix.correlation_id, 1);
    assert_eq!(connection.failure().code, ErrorCode::CorruptFrame);
    connection.end.close();
    shard.run();
    assert_eq!(connection.ended(), Some(SessionEnd::Garbage(ErrorCode::CorruptFrame)));
}

#[test]
fn an_oversized_frame_takes_no_memory() {
    let shard = Shard::new(SessionOptions::default());
    let mut connection = shard.connect(WINDOW);
    let prefix = FramePrefix { frame_bytes: (16 << 20) + 1, head_bytes: 50, correlation_id: 8, api: 2 };
    connection.end.send_all(&prefix.to_bytes());
    shard.run();
    assert_eq!(shard.sessions.large_frames_bytes(), 0);
    let reply = connection.reply();
    assert_eq!(reply.prefix.correlation_id, 8, "the client learns which request it was");
    assert_eq!(reply.read::<ErrorResponse>().failure.code, ErrorCode::FrameTooLarge);
}

#[test]
fn a_peer_that_dies_in_mid_frame_leaves_nothing_behind() {
    let shard = Shard::new(SessionOptions::default());
    let mut neighbour = shard.connect(WINDOW);
    for cut in [1, 15, 16, 40, 1_000_000] {
        let mut connection = shard.connect(WINDOW);
        let frame = connection.produce_frame(1, Acks::All, &vec![7; 1_000_000]);
        connection.end.send_all(&frame[..cut]);
        connection.end.close();
        shard.run();
        assert_eq!(connection.ended(), Some(SessionEnd::PeerClosedMidFrame));
    }
    assert_eq!(shard.backend.appended_count(), 0, "half a frame is no request");
    assert_eq!((shard.sessions.large_frames_bytes(), shard.sessions.connections().open), (0, 1));
    check_neighbour(&shard, &mut neighbour);
}

#[test]
fn a_frame_that_trickles_in_is_closed_and_its_memory_goes_to_the_next() {
    let options = SessionOptions { large_frames_bytes_max: 16 << 20, ..SessionOptions::default() };
    let shard = Shard::new(options);
    shard.backend.acks_at_once.set(true);
    let slow = shard.connect(WINDOW);
    let prefix = FramePrefix { frame_bytes: 16 << 20, head_bytes: 100, correlation_id: 1, api: 2 };
    slow.end.send_all(&prefix.to_bytes());
    shard.run();
    assert_eq!(shard.sessions.large_frames_bytes(), 16 << 20);
    let mut next = shard.connect(WINDOW);
    next.produce(5, Acks::All, &vec![1; 1_000_000]);
    shard.run();
    assert_eq!(next.replied(), [], "it waits for memory");
    for _ in 0..59 {
        slow.end.send_all(b"s");
        shard.pass_ms(1_000);
        assert_eq!((slow.ended(), next.ended()), (None, None));
    }
    shard.pass_ms(1_000);
    assert_eq!(slow.ended(), Some(SessionEnd::FrameTimeout));
    assert_eq!(next.replied(), [5], "who waited is served");
}

#[test]
fn an_idle_peer_is_closed_but_not_one_in_a_long_poll() {
    let shard = Shard::new(SessionOptions::default());
    let idle = shard.connect(WINDOW);
    let mut polling = shard.connect(WINDOW);
    polling.send(1, &fetch(100));
    shard.pass_ms(600_000);
    assert_eq!(idle.ended(), Some(SessionEnd::IdleTimeout));
    assert_eq!(polling.ended(), None);
    shard.backend.answer_fetch(Records::Empty);
    shard.run();
    assert_eq!(polling.replied(), [1]);
    shard.pass_ms(599_000);
    assert_eq!(polling.ended(), None, "idle since the answer, not since the request");
    shard.pass_ms(1_000);
    assert_eq!(polling.ended(), Some(SessionEnd::IdleTimeout));
}

#[test]
fn a_peer_that_reads_nothing_is_closed_and_holds_no_more_than_its_share() {
    let options = SessionOptions { answer_bytes_max: 3_000, ..SessionOptions::default() };
    let shard = Shard::new(options);
    let mut neighbour = shard.connect(WINDOW);
    let mut deaf = shard.connect(2_000);
    (1..=10).for_each(|id| deaf.send(id, &fetch(1_000)));
    shard.run();
    assert_eq!(shard.backend.fetches.borrow().len(), 3, "only 3,000 bytes may wait for it");
    for _ in 0..3 {
        shard.backend.answer_fetch(Records::Owned(Bytes::from(vec![1; 1_000])));
    }
    shard.run();
    assert_eq!(shard.backend.fetches.borrow().len(), 0, "nothing has left in full, nothing more is read");
    shard.pass_ms(29_000);
    assert_eq!(deaf.ended(), None);
    check_neighbour(&shard, &mut neighbour);
    shard.pass_ms(1_000);
    assert_eq!(deaf.ended(), Some(SessionEnd::WriteTimeout));
}

#[test]
fn a_slow_reader_that_does_read_is_served_to_the_end() {
    let shard = Shard::new(SessionOptions::default());
    let mut slow = shard.connect(500);
    slow.send(1, &fetch(100_000));
    shard.run();
    shard.backend.answer_fetch(Records::Owned(Bytes::from(vec![1; 100_000])));
    shard.run();
    let mut passed_ms = 0;
    let reply = loop {
        shard.pass_ms(20_000);
        passed_ms += 20_000;
        if let Some(reply) = slow.try_reply() {
            break reply;
        }
    };
    assert_eq!(reply.payload.len(), 100_000);
    assert!(passed_ms > 3_000_000, "it took its time: {passed_ms}");
}

#[test]
fn unanswered_bytes_and_requests_are_limited() {
    let options = SessionOptions {
        in_flight_bytes_max: 10_000,
        in_flight_requests_max: 7,
        ..SessionOptions::default()
    };
    let shard = Shard::new(options);
    let mut connection = shard.connect(WINDOW);
    (0..100).for_each(|id| connection.produce(id, Acks::All, &[1; 3_000]));
    shard.run();
    assert_eq!(shard.backend.appended_count(), 3, "the fourth would pass 10,000 bytes");
    let stats = &shard.sessions.connection_stats()[0];
    assert_eq!(stats.in_flight_requests, 3);
    assert!(stats.in_flight_bytes <= 10_000 && stats.receive_buffer_bytes <= READ_AHEAD_BYTES_MAX);
    assert!(connection.end.unread_by_server() > 100_000, "the rest stays in the socket");
    let mut replied = Vec::new();
    for id in 0..100 {
        shard.backend.ack(id);
        shard.run();
        replied.extend(connection.replied());
        assert!(shard.backend.acks.borrow().len() <= 3);
    }
    assert_eq!(replied, (0..100).collect::<Vec<_>>());
    let small: Vec<u8> = (0..100).flat_map(|id| connection.produce_frame(id, Acks::All, b"1")).collect();
    connection.end.send_all(&small);
    shard.run();
    assert_eq!(shard.backend.acks.borrow().len(), 7, "and no more than 7 requests");
}

#[test]
fn one_request_above_the_limit_still_passes() {
    let options =
        SessionOptions { in_flight_bytes_max: 10, answer_bytes_max: 10, ..SessionOptions::default() };
    let shard = Shard::new(options);
    shard.backend.acks_at_once.set(true);
    let mut connection = shard.connect(WINDOW);
    connection.produce(1, Acks::All, &vec![1; 2_000_000]);
    connection.send(2, &fetch(1_000_000));
    shard.run();
    assert_eq!(connection.replied(), [1]);
    shard.backend.answer_fetch(Records::Owned(Bytes::from(vec![1; 1_000])));
    shard.run();
    assert_eq!(connection.replied(), [2]);
}

#[test]
fn a_full_backend_stops_reading_and_nobody_else() {
    let shard = Shard::new(SessionOptions::default());
    shard.backend.acks_at_once.set(true);
    shard.backend.is_full.set(true);
    let mut neighbour = shard.connect(WINDOW);
    let mut connection = shard.connect(WINDOW);
    (0..3_000).for_each(|id| connection.produce(id, Acks::All, &[1; 1_000]));
    shard.run();
    assert!(connection.end.unread_by_server() > 2_000_000, "the sender's window fills");
    check_neighbour(&shard, &mut neighbour);
    shard.backend.make_room();
    shard.run();
    assert_eq!(connection.replied(), (0..3_000).collect::<Vec<_>>());
}

#[test]
fn over_many_connections_are_told_and_closed() {
    let shard = Shard::new(SessionOptions { connections_max: 2, ..SessionOptions::default() });
    let first = shard.connect(WINDOW);
    let mut second = shard.connect(WINDOW);
    let mut third = shard.connect_silent(WINDOW);
    assert_eq!(third.ended(), Some(SessionEnd::TooManyConnections));
    let refusal = third.failure();
    assert_eq!(refusal.code, ErrorCode::Overloaded);
    assert!(refusal.code.is_retriable());
    check_neighbour(&shard, &mut second);
    first.end.close();
    shard.run();
    assert_eq!(first.ended(), Some(SessionEnd::PeerClosed));
    shard.connect(WINDOW);
    let counts = shard.sessions.connections();
    assert_eq!((counts.open, counts.accepted, counts.refused), (2, 3, 1));
}

#[test]
fn memory_of_a_burst_is_given_back_when_the_connection_rests() {
    let shard = Shard::new(SessionOptions::default());
    shard.backend.acks_at_once.set(true);
    let mut connection = shard.connect(WINDOW);
    connection.produce(1, Acks::All, &vec![1; 3_000_000]);
    shard.run();
    assert_eq!(connection.replied(), [1]);
    assert!(shard.sessions.connection_stats()[0].receive_buffer_bytes > 3_000_000);
    assert!(shard.sessions.large_frames_bytes() > 3_000_000);
    shard.pass_ms(3_000);
    assert_eq!(shard.sessions.connection_stats()[0].receive_buffer_bytes, READ_AHEAD_BYTES_MIN);
    assert_eq!(shard.sessions.large_frames_bytes(), 0);
    connection.produce(2, Acks::All, b"still there");
    shard.run();
    assert_eq!(connection.replied(), [2]);
}

#[test]
fn a_stopping_shard_answers_what_it_has_read() {
    let shard = Shard::new(SessionOptions::default());
    let mut busy = shard.connect(WINDOW);
    let idle = shard.connect(WINDOW);
    busy.produce(1, Acks::All, b"read");
    shard.run();
    shard.sessions.begin_shutdown();
    shard.run();
    busy.produce(2, Acks::All, b"too late");
    shard.run();
    assert_eq!(shard.backend.appended_count(), 1);
    assert!(idle.end.is_server_done() && !busy.end.is_server_done(), "an ack is owed");
    shard.backend.ack(0);
    shard.run();
    assert_eq!(busy.replied(), [1]);
    assert!(busy.end.is_server_done());
    busy.end.close();
    idle.end.close();
    shard.run();
    assert_eq!((busy.ended(), idle.ended()), (Some(SessionEnd::Shutdown), Some(SessionEnd::Shutdown)));
    let mut late = shard.connect_silent(WINDOW);
    assert_eq!(late.failure().code, ErrorCode::Overloaded);
}

#[test]
fn closing_all_ends_even_those_who_wait() {
    let shard = Shard::new(SessionOptions::default());
    let mut polling = shard.connect(WINDOW);
    polling.send(1, &fetch(100));
    shard.run();
    shard.sessions.close_all();
    shard.run();
    assert_eq!(polling.ended(), Some(SessionEnd::Shutdown));
    let (_, promise) = shard.backend.fetches.borrow_mut().pop_front().unwrap();
    assert!(promise.is_abandoned(), "the fetch was given up");
}

#[test]
fn a_half_closed_peer_gets_its_answers() {
    let shard = Shard::new(SessionOptions::default());
    let mut connection = shard.connect(WINDOW);
    connection.produce(1, Acks::All, b"last words");
    connection.end.close();
    shard.run();
    assert_eq!(connection.ended(), None, "an ack is owed");
    shard.backend.ack(0);
    shard.run();
    assert_eq!(connection.replied(), [1]);
    assert_eq!(connection.ended(), Some(SessionEnd::PeerClosed));
}

#[test]
fn slow_consumers_do_not_pile_up_the_memory_that_others_need() {
    let options =
        SessionOptions { unsent_bytes_max: 40_000, fetch_bytes_max: 10_000, ..SessionOptions::default() };
    let shard = Shard::new(options);
    shard.backend.acks_at_once.set(true);
    let mut deaf: Vec<Connection> = (0..10).map(|_| shard.connect(1_000)).collect();
    deaf.iter_mut().for_each(|connection| connection.send(1, &fetch(10_000)));
    let mut consumer = shard.connect(WINDOW);
    consumer.send(1, &fetch(10_000));
    let mut producer = shard.connect(WINDOW);
    producer.produce(1, Acks::All, b"new");
    shard.run();
    assert_eq!(producer.replied(), [1], "who needs no such memory is served");
    for _ in 0..11 {
        shard.backend.answer_fetch(Records::Owned(Bytes::from(vec![1; 10_000])));
    }
    shard.run();
    assert!(shard.sessions.unsent_bytes() <= 30_000, "half of the limit, and one more");
    assert_eq!(consumer.replied(), [], "there is no room for its records");
    shard.pass_ms(4_000);
    assert!(deaf.iter().all(|connection| connection.ended().is_none()), "they are given some time");
    shard.pass_ms(60_000);
    assert!(deaf.iter().all(|connection| connection.ended() == Some(SessionEnd::WriteTimeout)));
    assert_eq!(consumer.replied(), [1], "it has got its turn");
    assert_eq!(shard.sessions.unsent_bytes(), 0);
}

#[test]
fn answers_that_wait_behind_a_long_poll_do_not_lock_it() {
    let options = SessionOptions { unsent_bytes_max: 10_000, ..SessionOptions::default() };
    let shard = Shard::new(options);
    let mut connection = shard.connect(WINDOW);
    (1..=4).for_each(|id| connection.send(id, &fetch(5_000)));
    shard.run();
    let mut fetches = std::mem::take(&mut *shard.backend.fetches.borrow_mut());
    let records = || Ok(support::backend::fetched(Records::Owned(Bytes::from(vec![1; 5_000]))));
    let (_, first) = fetches.pop_front().unwrap();
    fetches.drain(..).for_each(|(_, later)| later.fulfil(records()));
    shard.run();
    assert_eq!(shard.sessions.unsent_bytes(), 5_000, "two that are behind wait: theirs is half of the limit");
    first.fulfil(records());
    shard.run();
    assert_eq!(connection.replied(), [1, 2, 3, 4]);
    assert_eq!(shard.sessions.unsent_bytes(), 0);
}
