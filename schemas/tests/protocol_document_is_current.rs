//! `docs/protocol.md` says what the code does: every error code, every request, and example frames byte for byte.
//!
//! Must never happen: somebody writes a client from the document, and the server does not understand it.

use std::path::Path;

use corelog_schemas::messages::{
    Acks, FoundOffset, HandshakeRequest, ListOffsetsPartition, ListOffsetsRequest, ListOffsetsResponse,
    OffsetSpec, PartitionRef, ProducePartition, ProduceRequest, ProduceResponse, Produced,
};
use corelog_schemas::{Api, Encoder, ErrorCode, Failure, Features};

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/protocol.md");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_error_code_has_its_row() {
    let document = document();
    for &code in ErrorCode::ALL {
        let retriable = if code.is_retriable() { "yes" } else { "no" };
        let row = format!("| {} | {} | {retriable} |", code.number(), code.name());
        assert!(document.contains(&row), "docs/protocol.md lacks the row {row}");
    }
}

#[test]
fn every_request_has_its_row() {
    let document = document();
    for &api in Api::ALL {
        let row = format!("| {} | {} |", api.number(), api.name());
        assert!(document.contains(&row), "docs/protocol.md lacks the row {row}");
    }
}

/// As the document prints bytes: 16 a line.
fn hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    bytes.chunks(16).map(line).collect::<Vec<_>>().join("\n")
}

fn check_example(name: &str, write: impl FnOnce(&mut Encoder, &mut Vec<u8>)) {
    let mut frame = Vec::new();
    write(&mut Encoder::default(), &mut frame);
    let expected = hex(&frame);
    assert!(document().contains(&expected), "docs/protocol.md must show {name} as\n{expected}");
}

#[test]
fn example_frames_are_byte_for_byte() {
    let hello = HandshakeRequest {
        protocol_version_min: 1,
        protocol_version_max: 1,
        features: Features::default(),
        client_id: "doc".to_owned(),
        software: String::new(),
    };
    check_example("a handshake", |encoder, out| encoder.request(out, 1, &hello));
    let produce = ProduceRequest {
        acks: Acks::All,
        timeout_ms: 30_000,
        partitions: vec![ProducePartition {
            to: PartitionRef::by_name("t", 0),
            records_bytes: 68,
            leader_epoch: None,
        }],
    };
    check_example("a produce without its payload", |encoder, out| encoder.request(out, 2, &produce));
    let produced = Produced { base_offset: 42, append_time_ms: None, log_start_offset: 0 };
    let response = ProduceResponse { throttle_ms: 0, partitions: vec![Ok(produced)] };
    check_example("its response", |encoder, out| encoder.response(out, Api::Produce, 2, &response));
    let refused = Failure::new(ErrorCode::UnsupportedApi, "no");
    check_example("an error", |encoder, out| encoder.failure(out, 3, &refused));
}

#[test]
fn latest_is_the_default_of_a_lookup() {
    // The document says that a lookup which says nothing else means the end.
    let request = ListOffsetsRequest {
        partitions: vec![ListOffsetsPartition {
            of: PartitionRef::by_id(1, 0),
            spec: OffsetSpec::Latest,
            leader_epoch: None,
        }],
    };
    let (mut short, mut long) = (Vec::new(), Vec::new());
    let mut encoder = Encoder::default();
    encoder.request(&mut short, 1, &request);
    let earliest = ListOffsetsPartition { spec: OffsetSpec::Earliest, ..request.partitions[0].clone() };
    encoder.request(&mut long, 1, &ListOffsetsRequest { partitions: vec![earliest] });
    assert!(short.len() < long.len(), "defaults are left out");
    let nothing = FoundOffset { offset: None, timestamp_ms: None, leader_epoch: None };
    let mut out = Vec::new();
    encoder.response(&mut out, Api::ListOffsets, 1, &ListOffsetsResponse { partitions: vec![Ok(nothing)] });
    assert!(out.len() < 80, "absent fields are left out: {} bytes", out.len());
}
