//! Sessions over real sockets of this machine: what a pipe in memory cannot show, namely resets.
//!
//! Setup: a thread serves each connection of a loopback listener with a transport that asks the kernel again and again.
//! Must never happen: a peer that still sends loses the answer that says why it is closed, or the acks it is owed.

mod support;

use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::pin;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use corelog_net::native::{Peer, SessionEnd, SessionOptions, Sessions, Transport, serve};
use corelog_schemas::messages::{Acks, ErrorResponse, HandshakeResponse, ProduceResponse};
use corelog_schemas::{Encoder, ErrorCode, FrameLimits, decode, parse_frame};
use support::{FakeBackend, hello, produce};

/// What a test asks of the thread that serves.
struct Script {
    /// Milliseconds on the session's clock for each one that passes: deadlines come sooner.
    clock_speed: u64,
    /// A message begins the shutdown; it is answered once that is done.
    stop: Option<(Receiver<()>, Sender<()>)>,
}

struct Socket(TcpStream);

fn ask<T>(answer: io::Result<T>) -> Poll<io::Result<T>> {
    match answer {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Poll::Pending,
        answer => Poll::Ready(answer),
    }
}

impl Transport for Socket {
    async fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        poll_fn(|_| ask((&self.0).read(into))).await
    }

    async fn write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        poll_fn(|_| ask((&self.0).write_vectored(parts))).await
    }

    async fn shutdown(&self) -> io::Result<()> {
        self.0.shutdown(std::net::Shutdown::Write)
    }
}

/// Serves one connection to its end.
fn serve_one(script: Script) -> (SocketAddr, JoinHandle<SessionEnd>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
    let address = listener.local_addr().expect("it is bound");
    let thread = std::thread::spawn(move || {
        let (socket, peer) = listener.accept().expect("the test connects");
        socket.set_nonblocking(true).expect("sockets can");
        let sessions = Sessions::new(SessionOptions::default(), 0).expect("the options of a test are good");
        let backend = Rc::new(FakeBackend::default());
        backend.acks_at_once.set(true);
        let peer = Peer { listener: "plain".into(), address: peer.to_string() };
        let mut session = pin!(serve(&sessions, Socket(socket), backend, peer));
        let mut passed_ms = 0;
        loop {
            if let Poll::Ready(end) = session.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return end;
            }
            std::thread::sleep(Duration::from_millis(1));
            passed_ms += script.clock_speed;
            sessions.expire_overdue(passed_ms);
            if let Some((asked, begun)) = &script.stop
                && asked.try_recv().is_ok()
            {
                sessions.begin_shutdown();
                begun.send(()).expect("the test waits for it");
            }
        }
    });
    (address, thread)
}

fn plain() -> Script {
    Script { clock_speed: 1, stop: None }
}

/// All that the server sends until it says that nothing more comes. A reset is a failure.
fn read_all(mut socket: &TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    socket.read_to_end(&mut all).expect("no reset before the end");
    all
}

/// Splits frames off: (correlation id, api, head). There is nothing behind the last.
fn frames(bytes: &[u8]) -> Vec<(u32, u16, Vec<u8>)> {
    let (all, rest) = split_frames(bytes);
    assert_eq!(rest, 0, "whole frames");
    all
}

/// As `frames`, and how many bytes are left behind the last whole frame.
fn split_frames(mut bytes: &[u8]) -> (Vec<(u32, u16, Vec<u8>)>, usize) {
    let limits = FrameLimits { frame_bytes_max: u32::MAX, head_bytes_max: u32::MAX };
    let mut all = Vec::new();
    while let Some(frame) = parse_frame(bytes, &limits).expect("the server sends frames") {
        all.push((frame.prefix.correlation_id, frame.prefix.api, frame.head.to_vec()));
        bytes = &bytes[frame.prefix.frame_bytes as usize..];
    }
    (all, bytes.len())
}

fn requests(count: u32) -> Vec<u8> {
    let mut encoder = Encoder::default();
    let mut bytes = Vec::new();
    encoder.request(&mut bytes, 0, &hello());
    for correlation_id in 1..=count {
        encoder.request(&mut bytes, correlation_id, &produce(Acks::All, 1_000));
        bytes.extend_from_slice(&[7; 1_000]);
    }
    bytes
}

#[test]
fn a_pipelined_connection_is_served_to_the_end() {
    let (address, server) = serve_one(plain());
    let socket = TcpStream::connect(address).unwrap();
    (&socket).write_all(&requests(2_000)).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let answers = frames(&read_all(&socket));
    assert_eq!(answers.len(), 2_001);
    assert_eq!(decode::<HandshakeResponse>(&answers[0].2, 0).unwrap().protocol_version, Ok(1));
    for (i, (correlation_id, _, head)) in answers.iter().enumerate().skip(1) {
        assert_eq!(*correlation_id, i as u32);
        let produced = decode::<ProduceResponse>(head, 0).unwrap().partitions.remove(0).unwrap();
        assert_eq!(produced.base_offset, i as u64 - 1);
    }
    assert_eq!(server.join().unwrap(), SessionEnd::PeerClosed);
}

#[test]
fn a_peer_that_sends_on_after_garbage_can_read_why_it_is_closed() {
    let (address, server) = serve_one(plain());
    let socket = TcpStream::connect(address).unwrap();
    let mut bytes = requests(3);
    bytes.extend_from_slice(&[0xff; 300_000]);
    (&socket).write_all(&bytes).unwrap();
    let answers = frames(&read_all(&socket));
    assert_eq!(answers.len(), 5, "a handshake, three acks, and why");
    let failure = decode::<ErrorResponse>(&answers[4].2, 0).unwrap().failure;
    assert_eq!((answers[4].1, failure.code), (0, ErrorCode::CorruptFrame));
    drop(socket);
    assert_eq!(server.join().unwrap(), SessionEnd::Garbage(ErrorCode::CorruptFrame));
}

#[test]
fn a_stopping_shard_does_not_lose_the_acks_of_a_peer_that_sends_on() {
    let ((stop, asked), (begun, is_begun)) = (channel(), channel());
    let (address, server) = serve_one(Script { clock_speed: 1, stop: Some((asked, begun)) });
    let socket = TcpStream::connect(address).unwrap();
    (&socket).write_all(&requests(10)).unwrap();
    let mut answers = Vec::new();
    while split_frames(&answers).0.len() < 11 {
        let mut piece = [0; 100];
        let count = (&socket).read(&mut piece).unwrap();
        answers.extend_from_slice(&piece[..count]);
    }
    stop.send(()).unwrap();
    is_begun.recv().unwrap();
    // The server takes these no more as requests, but they must not turn its close into a reset.
    (&socket).write_all(&[1; 10_000]).unwrap();
    answers.extend(read_all(&socket));
    assert_eq!(frames(&answers).len(), 11, "and no reset");
    drop(socket);
    assert_eq!(server.join().unwrap(), SessionEnd::Shutdown);
}

#[test]
fn a_peer_that_never_reads_is_closed() {
    let (address, server) = serve_one(Script { clock_speed: 20, stop: None });
    let socket = TcpStream::connect(address).unwrap();
    socket.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    let burst = requests(100);
    let one = &burst[requests(0).len()..];
    (&socket).write_all(&burst).unwrap();
    // Acks pile up in the kernel until it takes no more; then the server stops reading, and later closes.
    let mut sent = 0u64;
    while (&socket).write_all(one).is_ok() {
        sent += one.len() as u64;
        assert!(sent < 20_000_000_000, "the server takes requests for ever");
    }
    assert_eq!(server.join().unwrap(), SessionEnd::WriteTimeout);
}
