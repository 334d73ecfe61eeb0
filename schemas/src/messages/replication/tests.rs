//! Every message comes back as it was; what is damaged does no harm.

use proptest::prelude::*;

use super::*;
use crate::frame::parse_frame;

fn encoded(message: &StreamMessage) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(&mut Encoder::default(), &mut out);
    out.resize(out.len() + message.payload_bytes() as usize, 7);
    out
}

fn decoded(bytes: &[u8]) -> Result<StreamMessage, DecodeError> {
    let frame = parse_frame(bytes, &STREAM_FRAME_LIMITS).expect("a frame").expect("a whole one");
    StreamMessage::decode(frame.prefix.api, frame.head, frame.payload.len() as u64)
}

fn answer(stream: u32, verdict: StreamVerdict) -> StreamAnswer {
    StreamAnswer {
        stream,
        leader_epoch: 4,
        high_watermark: 90,
        log_start_offset: 10,
        log_end_offset: 100,
        verdict,
    }
}

/// One of each kind.
fn samples() -> Vec<StreamMessage> {
    let follow = StreamFollow {
        stream: 3,
        topic_id: 1 << 100 | 5,
        partition: 7,
        leader_epoch: 4,
        log_id: u128::MAX - 1,
        newest_epoch: Some(0),
        log_start_offset: 10,
        log_end_offset: 99,
    };
    let batch = StreamBatch {
        stream: 3,
        leader_epoch: 4,
        base_offset: 99,
        high_watermark: 90,
        log_start_offset: 10,
        records_bytes: 1_000,
    };
    let mark = StreamMark { stream: 3, leader_epoch: 4, high_watermark: 90, log_start_offset: 10 };
    let report = StreamReport { stream: 3, leader_epoch: 4, written: 99, durable: 98 };
    vec![
        StreamMessage::Hello(StreamHello {
            version_min: 1,
            version_max: 2,
            cluster_id: "c1".to_owned(),
            node: 2,
            shard: 1,
            incarnation: u64::MAX,
            to_node: 1,
            to_shard: 0,
            credit_bytes: 8 << 20,
        }),
        StreamMessage::HelloAnswer(StreamHelloAnswer { version: Ok(1), incarnation: 9 }),
        StreamMessage::HelloAnswer(StreamHelloAnswer {
            version: Err(Failure::new(ErrorCode::UnsupportedVersion, "no")),
            incarnation: 9,
        }),
        StreamMessage::Follow(vec![follow, StreamFollow { stream: 4, newest_epoch: None, ..follow }]),
        StreamMessage::Answer(vec![
            answer(3, StreamVerdict::Start { from_offset: 99 }),
            answer(4, StreamVerdict::EpochEnd { epoch: 2, end_offset: 80 }),
            answer(4, StreamVerdict::EpochEnd { epoch: 0, end_offset: 0 }),
            answer(5, StreamVerdict::Reset { from_offset: 50 }),
            answer(6, StreamVerdict::Refuse { error: ErrorCode::NotLeader }),
        ]),
        StreamMessage::Batches(vec![batch, StreamBatch { stream: 8, records_bytes: 0, ..batch }]),
        StreamMessage::Marks(vec![mark]),
        StreamMessage::Marks(Vec::new()),
        StreamMessage::Reports { reports: vec![report], credit_bytes: 1 << 40 },
        StreamMessage::Unfollow(vec![1, u32::MAX]),
        StreamMessage::Leave,
        StreamMessage::ReadRange(StreamReadRange {
            request: 1,
            topic_id: 9,
            partition: 0,
            from_offset: 5,
            end_offset: 50,
            bytes_max: 1 << 20,
        }),
        StreamMessage::Range(StreamRange { request: 1, outcome: Ok((50, 123)) }),
        StreamMessage::Range(StreamRange { request: 1, outcome: Err(ErrorCode::CorruptData) }),
    ]
}

#[test]
fn every_message_comes_back() {
    for message in samples() {
        assert_eq!(decoded(&encoded(&message)).as_ref(), Ok(&message));
    }
}

#[test]
fn a_thousand_entries_are_taken_and_more_are_not() {
    let mark = StreamMark { stream: 1, leader_epoch: 1, high_watermark: 1, log_start_offset: 0 };
    let most = StreamMessage::Marks(vec![mark; STREAM_ENTRIES_MAX]);
    assert_eq!(decoded(&encoded(&most)).as_ref(), Ok(&most));
    let check = |message: StreamMessage| {
        let error = decoded(&encoded(&message)).unwrap_err();
        assert!(matches!(error, DecodeError::OutOfRange { field: "the number of entries", .. }), "{error}");
    };
    check(StreamMessage::Marks(vec![mark; STREAM_ENTRIES_MAX + 1]));
    check(StreamMessage::Unfollow(vec![1; STREAM_ENTRIES_MAX + 1]));
    let refused = answer(6, StreamVerdict::Refuse { error: ErrorCode::NotLeader });
    check(StreamMessage::Answer(vec![refused; STREAM_ENTRIES_MAX + 1]));
}

#[test]
fn a_payload_of_another_length_is_refused() {
    let batches = samples().into_iter().find(|m| matches!(m, StreamMessage::Batches(_))).unwrap();
    let mut head = Vec::new();
    batches.encode(&mut Encoder::default(), &mut head);
    let error = StreamMessage::decode(batches.kind(), &head[16..], 999).unwrap_err();
    assert_eq!(error, DecodeError::PayloadLength { announced: 1_000, present: 999 });
}

#[test]
fn a_kind_that_is_not_known_is_refused() {
    for kind in [0, 12, u16::MAX] {
        assert!(StreamMessage::decode(kind, &[], 0).is_err());
    }
}

proptest! {
    /// Bytes changed anywhere, and kinds mixed up: a message or an error, never a panic.
    #[test]
    fn damaged_heads_do_no_harm(
        sample in 0..14usize,
        kind in 0..13u16,
        keep in any::<bool>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let message = samples().swap_remove(sample);
        let mut head = Vec::new();
        message.encode(&mut Encoder::default(), &mut head);
        head.drain(..16);
        for (at, byte) in damage {
            let at = at.index(head.len());
            head[at] = byte;
        }
        if !keep {
            head.truncate(cut.index(head.len()));
        }
        let kind = if keep { message.kind() } else { kind };
        if let Ok(read) = StreamMessage::decode(kind, &head, message.payload_bytes()) {
            let mut again = Vec::new();
            read.encode(&mut Encoder::default(), &mut again);
        }
    }
}
