//! Every decoder that sees a stranger's bytes, and what must hold for any bytes at all.
//!
//! Invariant of all: no panic, no endless loop, and memory bounded by a multiple of the input.

use corelog_engine::batch::{BatchHeader, BatchLimits, BatchWalk, HEADER_BYTES, RecordIter, validate};
use corelog_net::native::SessionOptions;
use corelog_schemas::messages::*;
use corelog_schemas::{FrameLimits, Message, decode, parse_frame};

use super::memory::peak_bytes;
use super::samples;
use super::support::{Shard, hello};

/// A target: its name, which is also the prefix of its corpus files; what it does with the bytes; what to start from.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: &[Target] = &[
    Target { name: "heads", run: heads, seeds: head_seeds },
    Target { name: "frames", run: frames, seeds: frame_seeds },
    Target { name: "batches", run: batches, seeds: batch_seeds },
    Target { name: "session", run: session, seeds: samples::requests },
];

/// Decoding makes at most so many bytes out of one: an empty table takes 8 bytes on the wire and up to some 250 as a
/// struct, in a vector that may have grown to twice what it needs.
const DECODED_BYTES_MAX: usize = 100;

/// What any target may allocate, whatever its input.
const FIXED_BYTES_MAX: usize = 16 << 10;

/// The bytes as the head of each message.
fn heads(bytes: &[u8]) {
    macro_rules! each {
        ($($message:ty),* $(,)?) => { $(head::<$message>(bytes);)* };
    }
    each!(
        ErrorResponse,
        HandshakeRequest,
        HandshakeResponse,
        ProduceRequest,
        ProduceResponse,
        FetchRequest,
        FetchResponse,
        MetadataRequest,
        MetadataResponse,
        ListOffsetsRequest,
        ListOffsetsResponse,
        DeleteRecordsRequest,
        DeleteRecordsResponse,
        CreateTopicsRequest,
        DeleteTopicsRequest,
        AlterTopicOptionsRequest,
        CreatePartitionsRequest,
        TopicResultsResponse,
        ListTopicsRequest,
        ListTopicsResponse,
        DescribeTopicsRequest,
        DescribeTopicsResponse,
        DescribeNodeRequest,
        DescribeNodeResponse,
    );
}

fn head<M: Message + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let mut read = None;
    let peak = peak_bytes(|| read = Some(M::read(bytes)));
    let allowed = bytes.len() * DECODED_BYTES_MAX + FIXED_BYTES_MAX;
    let name = std::any::type_name::<M>();
    assert!(peak <= allowed, "{name}: {peak} bytes of memory out of {} bytes", bytes.len());
    let Some(Ok(message)) = read else { return };
    let mut builder = corelog_schemas::codec::Builder::new();
    message.build(&mut builder);
    let again = decode::<M>(builder.finished_data(), message.payload_bytes());
    assert_eq!(again.expect("what was read can be written and read again"), message, "{name} changed");
}

fn head_seeds() -> Vec<Vec<u8>> {
    let limits = FrameLimits { frame_bytes_max: u32::MAX, head_bytes_max: u32::MAX };
    let head = |frame: Vec<u8>| {
        parse_frame(&frame, &limits).expect("a sample is a frame").expect("a sample is whole").head.to_vec()
    };
    frame_seeds().into_iter().map(head).collect()
}

/// The bytes as a stream of frames.
fn frames(bytes: &[u8]) {
    let limits = FrameLimits { frame_bytes_max: 40 << 10, head_bytes_max: 4 << 10 };
    let mut rest = bytes;
    loop {
        let mut parsed = None;
        let peak = peak_bytes(|| parsed = Some(parse_frame(rest, &limits)));
        assert_eq!(peak, 0, "cutting frames allocates nothing");
        let Some(Ok(Some(frame))) = parsed else { return };
        let frame_bytes = frame.prefix.frame_bytes as usize;
        assert!(frame_bytes <= 40 << 10 && frame.head.len() <= 4 << 10);
        assert_eq!(frame.prefix.payload_bytes(), frame.payload.len() as u64);
        heads(frame.head);
        batches(frame.payload);
        rest = &rest[frame_bytes..];
    }
}

fn frame_seeds() -> Vec<Vec<u8>> {
    [samples::requests(), samples::responses()].concat()
}

/// The bytes as record batches: what a leader checks, and what a consumer takes apart.
fn batches(bytes: &[u8]) {
    let peak = peak_bytes(|| {
        let checked = validate(bytes, &BatchLimits::default());
        let mut walked = 0;
        for span in BatchWalk::new(&[bytes]) {
            let Ok(span) = span else { break };
            walked += 1;
            let batch = &bytes[span.range()];
            let header = BatchHeader::parse(batch).expect("it was walked over");
            let mut records = 0;
            for record in RecordIter::new(&header, &batch[HEADER_BYTES..]) {
                let Ok(record) = record else { break };
                records += 1;
                assert!(records <= header.record_count, "more records than the header says");
                record.headers().for_each(|_| {});
            }
        }
        if let Ok(summary) = checked {
            assert_eq!(summary.bytes, bytes.len());
            assert!(walked <= summary.batches, "a consumer sees no more than what was checked");
        }
    });
    assert!(peak <= FIXED_BYTES_MAX, "taking batches apart allocates nothing: {peak} bytes");
}

fn batch_seeds() -> Vec<Vec<u8>> {
    vec![samples::batch(1), samples::batch(20), [samples::batch(2), samples::batch(3)].concat()]
}

/// The bytes as all that a peer ever sends, with and without a handshake before, in one piece and in small ones.
fn session(bytes: &[u8]) {
    for greets in [false, true] {
        let options = SessionOptions { in_flight_bytes_max: 1 << 20, ..SessionOptions::default() };
        let shard = Shard::new(options);
        shard.backend.acks_at_once.set(true);
        let mut connection = shard.connect_silent(1 << 20);
        if greets {
            connection.send(0, &hello());
        }
        let piece_bytes =
            if bytes.len().is_multiple_of(2) { bytes.len().max(1) } else { bytes.len() / 5 + 1 };
        for piece in bytes.chunks(piece_bytes) {
            connection.end.send(piece);
            shard.run();
            assert!(shard.sessions.large_frames_bytes() <= shard.sessions.options().large_frames_bytes_max);
        }
        while connection.try_reply().is_some() {}
        connection.end.close();
        shard.run();
        shard.backend.fetches.borrow_mut().drain(..).for_each(|(request, promise)| {
            let partitions = request.partitions.iter().map(|_| Default::default()).collect();
            promise.fulfil(Ok(corelog_net::native::FetchAnswer { throttle_ms: 0, partitions }));
        });
        shard.run();
        while connection.try_reply().is_some() {}
        assert!(connection.ended().is_some(), "the session ends when the peer is gone");
        assert_eq!((shard.sessions.connections().open, shard.sessions.large_frames_bytes()), (0, 0));
    }
}
