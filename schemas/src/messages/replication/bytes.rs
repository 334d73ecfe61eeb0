//! From stream messages to flatbuffers and back.
//!
//! Owns: the mapping, field by field. A head is verified first; then entries are counted before any is read.

use flatbuffers::{Follow, Push, Vector, WIPOffset};

use super::{
    STREAM_ENTRIES_MAX, StreamAnswer, StreamBatch, StreamFollow, StreamHello, StreamHelloAnswer, StreamMark,
    StreamMessage, StreamRange, StreamReadRange, StreamReport, StreamVerdict,
};
use crate::codec::{Builder, DecodeError, root};
use crate::error::ErrorCode;
use crate::messages::{failure_fields, failure_of, id_field, id_of, owned, read_tables, tables, text, wire};

/// Writes a head and finishes it.
pub(super) fn build(message: &StreamMessage, b: &mut Builder) {
    match message {
        StreamMessage::Hello(hello) => build_hello(b, hello),
        StreamMessage::HelloAnswer(answer) => build_hello_answer(b, answer),
        StreamMessage::Follow(follows) => {
            let follows = Some(tables(b, follows, build_follow));
            let root = wire::StreamFollows::create(b, &wire::StreamFollowsArgs { follows });
            b.finish_minimal(root);
        }
        StreamMessage::Answer(answers) => {
            let answers = Some(tables(b, answers, build_answer));
            let root = wire::StreamAnswers::create(b, &wire::StreamAnswersArgs { answers });
            b.finish_minimal(root);
        }
        StreamMessage::Batches(batches) => {
            let batches = Some(structs(b, batches, batch_to_wire));
            let root = wire::StreamBatches::create(b, &wire::StreamBatchesArgs { batches });
            b.finish_minimal(root);
        }
        StreamMessage::Marks(marks) => {
            let marks = Some(structs(b, marks, mark_to_wire));
            let root = wire::StreamMarks::create(b, &wire::StreamMarksArgs { marks });
            b.finish_minimal(root);
        }
        StreamMessage::Reports { reports, credit_bytes } => {
            let reports = Some(structs(b, reports, report_to_wire));
            let args = wire::StreamReportsArgs { reports, credit_bytes: *credit_bytes };
            let root = wire::StreamReports::create(b, &args);
            b.finish_minimal(root);
        }
        StreamMessage::Unfollow(streams) => {
            let streams = Some(b.create_vector(streams));
            let root = wire::StreamUnfollow::create(b, &wire::StreamUnfollowArgs { streams });
            b.finish_minimal(root);
        }
        StreamMessage::Leave => {
            let root = wire::StreamLeave::create(b, &wire::StreamLeaveArgs {});
            b.finish_minimal(root);
        }
        StreamMessage::ReadRange(request) => build_read_range(b, request),
        StreamMessage::Range(range) => build_range(b, range),
    }
}

/// Verifies and reads a head.
pub(super) fn read(kind: u16, head: &[u8]) -> Result<StreamMessage, DecodeError> {
    Ok(match kind {
        1 => StreamMessage::Hello(read_hello(head)?),
        2 => StreamMessage::HelloAnswer(read_hello_answer(head)?),
        3 => {
            let follows = root::<wire::StreamFollows<'_>>(head)?.follows();
            bounded(&follows)?;
            StreamMessage::Follow(read_tables(follows, read_follow)?)
        }
        4 => {
            let answers = root::<wire::StreamAnswers<'_>>(head)?.answers();
            bounded(&answers)?;
            StreamMessage::Answer(read_tables(answers, read_answer)?)
        }
        5 => StreamMessage::Batches(read_structs(
            root::<wire::StreamBatches<'_>>(head)?.batches(),
            batch_from_wire,
        )?),
        6 => {
            StreamMessage::Marks(read_structs(root::<wire::StreamMarks<'_>>(head)?.marks(), mark_from_wire)?)
        }
        7 => {
            let t = root::<wire::StreamReports<'_>>(head)?;
            let reports = read_structs(t.reports(), report_from_wire)?;
            StreamMessage::Reports { reports, credit_bytes: t.credit_bytes() }
        }
        8 => {
            let streams = root::<wire::StreamUnfollow<'_>>(head)?.streams();
            bounded(&streams)?;
            StreamMessage::Unfollow(streams.map(|s| s.iter().collect()).unwrap_or_default())
        }
        9 => {
            root::<wire::StreamLeave<'_>>(head)?;
            StreamMessage::Leave
        }
        10 => StreamMessage::ReadRange(read_read_range(head)?),
        11 => StreamMessage::Range(read_range(head)?),
        _ => return Err(DecodeError::OutOfRange { field: "the kind of message", value: i64::from(kind) }),
    })
}

/// A vector of structs.
fn structs<T, W: Push + Copy>(
    b: &mut Builder,
    items: &[T],
    to_wire: impl Fn(&T) -> W,
) -> WIPOffset<Vector<'static, W::Output>> {
    b.create_vector_from_iter(items.iter().map(to_wire))
}

fn read_structs<'a, W: Follow<'a, Inner = &'a W> + 'a, T>(
    vector: Option<Vector<'a, W>>,
    from_wire: impl Fn(&W) -> T,
) -> Result<Vec<T>, DecodeError> {
    bounded(&vector)?;
    Ok(vector.map(|entries| entries.iter().map(from_wire).collect()).unwrap_or_default())
}

fn bounded<T>(vector: &Option<Vector<'_, T>>) -> Result<(), DecodeError> {
    let entries = vector.as_ref().map_or(0, Vector::len);
    if entries > STREAM_ENTRIES_MAX {
        return Err(DecodeError::OutOfRange { field: "the number of entries", value: entries as i64 });
    }
    Ok(())
}

fn build_hello(b: &mut Builder, hello: &StreamHello) {
    let cluster_id = text(b, &hello.cluster_id);
    let args = wire::StreamHelloArgs {
        protocol_version_min: hello.version_min,
        protocol_version_max: hello.version_max,
        cluster_id,
        node: hello.node,
        shard: hello.shard,
        incarnation: hello.incarnation,
        to_node: hello.to_node,
        to_shard: hello.to_shard,
        credit_bytes: hello.credit_bytes,
    };
    let root = wire::StreamHello::create(b, &args);
    b.finish_minimal(root);
}

fn read_hello(head: &[u8]) -> Result<StreamHello, DecodeError> {
    let t = root::<wire::StreamHello<'_>>(head)?;
    Ok(StreamHello {
        version_min: t.protocol_version_min(),
        version_max: t.protocol_version_max(),
        cluster_id: owned(t.cluster_id()),
        node: t.node(),
        shard: t.shard(),
        incarnation: t.incarnation(),
        to_node: t.to_node(),
        to_shard: t.to_shard(),
        credit_bytes: t.credit_bytes(),
    })
}

fn build_hello_answer(b: &mut Builder, answer: &StreamHelloAnswer) {
    let (error, message) = failure_fields(b, &answer.version);
    let args = wire::StreamHelloAnswerArgs {
        error,
        message,
        protocol_version: *answer.version.as_ref().unwrap_or(&0),
        incarnation: answer.incarnation,
    };
    let root = wire::StreamHelloAnswer::create(b, &args);
    b.finish_minimal(root);
}

fn read_hello_answer(head: &[u8]) -> Result<StreamHelloAnswer, DecodeError> {
    let t = root::<wire::StreamHelloAnswer<'_>>(head)?;
    let version = failure_of(t.error(), t.message()).map_or(Ok(t.protocol_version()), Err);
    Ok(StreamHelloAnswer { version, incarnation: t.incarnation() })
}

fn build_follow(b: &mut Builder, follow: &StreamFollow) -> WIPOffset<wire::StreamFollow<'static>> {
    let args = wire::StreamFollowArgs {
        stream: follow.stream,
        topic_id: Some(&id_field(follow.topic_id)),
        partition: follow.partition,
        leader_epoch: follow.leader_epoch,
        log_id: Some(&wire::LogId::new(follow.log_id as u64, (follow.log_id >> 64) as u64)),
        newest_epoch: follow.newest_epoch,
        log_start_offset: follow.log_start_offset,
        log_end_offset: follow.log_end_offset,
    };
    wire::StreamFollow::create(b, &args)
}

fn read_follow(t: wire::StreamFollow<'_>) -> Result<StreamFollow, DecodeError> {
    let log_id = t.log_id().ok_or(DecodeError::Missing("whose log it is"))?;
    Ok(StreamFollow {
        stream: t.stream(),
        topic_id: topic_id(t.topic_id())?,
        partition: t.partition(),
        leader_epoch: t.leader_epoch(),
        log_id: u128::from(log_id.high()) << 64 | u128::from(log_id.low()),
        newest_epoch: t.newest_epoch(),
        log_start_offset: t.log_start_offset(),
        log_end_offset: t.log_end_offset(),
    })
}

fn topic_id(id: Option<&wire::TopicId>) -> Result<u128, DecodeError> {
    id.map(id_of).ok_or(DecodeError::Missing("which topic it means"))
}

fn build_answer(b: &mut Builder, answer: &StreamAnswer) -> WIPOffset<wire::StreamAnswer<'static>> {
    let mut args = wire::StreamAnswerArgs {
        stream: answer.stream,
        leader_epoch: answer.leader_epoch,
        high_watermark: answer.high_watermark,
        log_start_offset: answer.log_start_offset,
        log_end_offset: answer.log_end_offset,
        ..wire::StreamAnswerArgs::default()
    };
    match answer.verdict {
        StreamVerdict::Start { from_offset } => {
            (args.kind, args.offset) = (wire::StreamAnswerKind::Start, from_offset);
        }
        StreamVerdict::EpochEnd { epoch, end_offset } => {
            (args.kind, args.offset) = (wire::StreamAnswerKind::EpochEnd, end_offset);
            args.epoch = epoch;
        }
        StreamVerdict::Reset { from_offset } => {
            (args.kind, args.offset) = (wire::StreamAnswerKind::Reset, from_offset);
        }
        StreamVerdict::Refuse { error } => {
            args.kind = wire::StreamAnswerKind::Refuse;
            args.error = wire::ErrorCode(error.number());
        }
    }
    wire::StreamAnswer::create(b, &args)
}

fn read_answer(t: wire::StreamAnswer<'_>) -> Result<StreamAnswer, DecodeError> {
    let verdict = match t.kind() {
        wire::StreamAnswerKind::Start => StreamVerdict::Start { from_offset: t.offset() },
        wire::StreamAnswerKind::EpochEnd => {
            StreamVerdict::EpochEnd { epoch: t.epoch(), end_offset: t.offset() }
        }
        wire::StreamAnswerKind::Reset => StreamVerdict::Reset { from_offset: t.offset() },
        wire::StreamAnswerKind::Refuse => StreamVerdict::Refuse { error: error_code(t.error()) },
        other => {
            return Err(DecodeError::OutOfRange { field: "the kind of answer", value: i64::from(other.0) });
        }
    };
    Ok(StreamAnswer {
        stream: t.stream(),
        leader_epoch: t.leader_epoch(),
        high_watermark: t.high_watermark(),
        log_start_offset: t.log_start_offset(),
        log_end_offset: t.log_end_offset(),
        verdict,
    })
}

/// A refusal without a code is still one.
fn error_code(code: wire::ErrorCode) -> ErrorCode {
    ErrorCode::from_number(code.0).unwrap_or(ErrorCode::Unknown)
}

fn build_read_range(b: &mut Builder, request: &StreamReadRange) {
    let args = wire::StreamReadRangeArgs {
        request: request.request,
        topic_id: Some(&id_field(request.topic_id)),
        partition: request.partition,
        from_offset: request.from_offset,
        end_offset: request.end_offset,
        bytes_max: request.bytes_max,
    };
    let root = wire::StreamReadRange::create(b, &args);
    b.finish_minimal(root);
}

fn read_read_range(head: &[u8]) -> Result<StreamReadRange, DecodeError> {
    let t = root::<wire::StreamReadRange<'_>>(head)?;
    Ok(StreamReadRange {
        request: t.request(),
        topic_id: topic_id(t.topic_id())?,
        partition: t.partition(),
        from_offset: t.from_offset(),
        end_offset: t.end_offset(),
        bytes_max: t.bytes_max(),
    })
}

fn build_range(b: &mut Builder, range: &StreamRange) {
    let (next_offset, records_bytes) = range.outcome.unwrap_or_default();
    let args = wire::StreamRangeArgs {
        request: range.request,
        error: range.outcome.err().map_or(wire::ErrorCode::None, |code| wire::ErrorCode(code.number())),
        next_offset,
        records_bytes,
    };
    let root = wire::StreamRange::create(b, &args);
    b.finish_minimal(root);
}

fn read_range(head: &[u8]) -> Result<StreamRange, DecodeError> {
    let t = root::<wire::StreamRange<'_>>(head)?;
    let outcome = ErrorCode::from_number(t.error().0).map_or(Ok((t.next_offset(), t.records_bytes())), Err);
    Ok(StreamRange { request: t.request(), outcome })
}

fn batch_to_wire(batch: &StreamBatch) -> wire::StreamBatch {
    wire::StreamBatch::new(
        batch.base_offset,
        batch.high_watermark,
        batch.log_start_offset,
        batch.stream,
        batch.leader_epoch,
        batch.records_bytes,
        0,
    )
}

fn batch_from_wire(batch: &wire::StreamBatch) -> StreamBatch {
    StreamBatch {
        stream: batch.stream(),
        leader_epoch: batch.leader_epoch(),
        base_offset: batch.base_offset(),
        high_watermark: batch.high_watermark(),
        log_start_offset: batch.log_start_offset(),
        records_bytes: batch.records_bytes(),
    }
}

fn mark_to_wire(mark: &StreamMark) -> wire::StreamMark {
    wire::StreamMark::new(mark.high_watermark, mark.log_start_offset, mark.stream, mark.leader_epoch)
}

fn mark_from_wire(mark: &wire::StreamMark) -> StreamMark {
    StreamMark {
        stream: mark.stream(),
        leader_epoch: mark.leader_epoch(),
        high_watermark: mark.high_watermark(),
        log_start_offset: mark.log_start_offset(),
    }
}

fn report_to_wire(report: &StreamReport) -> wire::StreamReport {
    wire::StreamReport::new(report.written, report.durable, report.stream, report.leader_epoch)
}

fn report_from_wire(report: &wire::StreamReport) -> StreamReport {
    StreamReport {
        stream: report.stream(),
        leader_epoch: report.leader_epoch(),
        written: report.written(),
        durable: report.durable(),
    }
}
