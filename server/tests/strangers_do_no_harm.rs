//! RELIABILITY row 31 on the real binary: garbage, half a frame, silence, resets, and other protocols, by the hundred.
//!
//! Setup: one node on one core, one good client that produces all the while. Must never happen: the node dies, the good
//! client waits or fails, memory or descriptors stay taken. Also: the client in `docs/native_client.py`, which was
//! written from the document alone, is served.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use corelog_schemas::messages::{Acks, PartitionRef, ProducePartition, ProduceRequest};
use corelog_schemas::{FrameLimits, FramePrefix, parse_frame};
use support::{Bare, Node, PATIENCE, Setup, batch, directory};

/// Strangers of each kind.
const STRANGERS: usize = 60;

fn produce_one(bare: &mut Bare, topic: &str) -> u64 {
    let records = batch(&["still here"]);
    let to = ProducePartition {
        to: PartitionRef::by_name(topic, 0),
        records_bytes: u32::try_from(records.len()).expect("small"),
        leader_epoch: None,
    };
    let request = ProduceRequest { acks: Acks::All, timeout_ms: 10_000, partitions: vec![to] };
    let (mut response, _) = bare.ask(&request, &records);
    response.partitions.remove(0).expect("it is appended").base_offset
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream
}

/// What the server says to bytes that it cannot take, until it closes.
fn answer_to(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(address);
    // It may close while we still send; what it said before is what counts.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn open_descriptors(node: &Node) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", node.pid())).expect("it runs").count()
}

fn resident_kib(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("the kernel tells it");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// A frame of 16 MiB begins, and no more of it comes.
fn largest_prefix() -> [u8; 16] {
    FramePrefix { frame_bytes: 16 << 20, head_bytes: 100, correlation_id: 1, api: 2 }.to_bytes()
}

#[tokio::test]
async fn a_good_client_is_served_among_hundreds_of_bad_ones() {
    let dir = directory();
    let node = Setup::new(dir.path(), "0").start();
    node.create_topic("t", 1).await;
    let mut good = node.shard(0);
    assert_eq!(produce_one(&mut good, "t"), 0);
    let (descriptors_before, resident_before) = (open_descriptors(&node), resident_kib(&node));

    let limits = FrameLimits { frame_bytes_max: 1 << 20, head_bytes_max: 1 << 20 };
    let mut held = Vec::new();
    for round in 0..STRANGERS {
        let http = answer_to(node.address, b"GET /metrics HTTP/1.1\r\nHost: corelog\r\n\r\n");
        let refusal = parse_frame(&http, &limits).expect("a frame").expect("a whole one");
        assert_eq!(refusal.prefix.api, 0, "a failure as a whole");
        answer_to(node.address, &vec![round as u8 | 0x80; 100_000]);
        answer_to(node.address, &[0; 16]);
        // Those stay open: silent, in the middle of a hello, in the middle of the largest frame there can be.
        held.push(connect(node.address));
        let mut half = connect(node.address);
        half.write_all(&[7, 0, 0]).expect("sent");
        held.push(half);
        held.push(node.shard(0).begin(&largest_prefix()));
        let took = Instant::now();
        assert_eq!(produce_one(&mut good, "t"), round as u64 + 1);
        assert!(took.elapsed() < Duration::from_secs(5), "the good client waited {:?}", took.elapsed());
    }
    let grown_kib = resident_kib(&node).saturating_sub(resident_before);
    assert!(grown_kib < 200 << 10, "strangers took {grown_kib} KiB");
    drop(held);
    let deadline = Instant::now() + PATIENCE;
    while open_descriptors(&node) > descriptors_before + 5 {
        assert!(Instant::now() < deadline, "{} descriptors stay open", open_descriptors(&node));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(produce_one(&mut good, "t"), STRANGERS as u64 + 1);
    let log = node.log();
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "nobody has to look at this: {log}");
    let (status, _) = node.stop();
    assert!(status.success(), "it stops cleanly: {status}");
}

#[tokio::test]
async fn a_client_written_from_the_document_is_served() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/native_client.py");
    if Command::new("python3").arg("--version").output().is_err() && std::env::var_os("CI").is_none() {
        eprintln!("SKIPPED: there is no python3, {} was NOT tried", script.display());
        return;
    }
    let dir = directory();
    let node = Setup::new(dir.path(), "0").start();
    for expected in ["at offset 0", "at offset 3"] {
        let address = node.address.to_string();
        let run = Command::new("python3").arg("-B").arg(&script).args([&address, "from-python"]).output();
        let run = run.expect("python3 runs");
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
        assert!(said.contains(expected) && said.contains("key 2 value 2"), "{said}");
    }
}
