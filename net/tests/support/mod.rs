//! A shard in miniature: one thread that runs sessions over pipes in memory, against a backend that does what the test
//! says. No clock, no socket: a test moves time and bytes itself.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod backend;
pub mod pipe;
pub mod runner;

use std::cell::Cell;
use std::rc::Rc;

use corelog_net::native::{Peer, SessionEnd, SessionOptions, Sessions, serve};
use corelog_schemas::messages::{
    Acks, ErrorResponse, FetchPartition, FetchRequest, FetchResponse, HandshakeRequest, HandshakeResponse,
    PartitionRef, ProducePartition, ProduceRequest, ProduceResponse,
};
use corelog_schemas::{
    Encoder, Failure, Features, FrameLimits, FramePrefix, Message, PROTOCOL_VERSION, Request, decode,
    parse_frame,
};

pub use backend::FakeBackend;
pub use pipe::ClientEnd;
use runner::Runner;

/// Everything a test needs.
pub struct Shard {
    pub sessions: Sessions,
    pub backend: Rc<FakeBackend>,
    runner: Runner,
    now_ms: Cell<u64>,
}

/// A connection, from the client's side.
pub struct Connection {
    pub end: ClientEnd,
    encoder: Encoder,
    received: Vec<u8>,
    ended: Rc<Cell<Option<SessionEnd>>>,
}

/// One answer, taken apart.
#[derive(Debug)]
pub struct Reply {
    pub prefix: FramePrefix,
    pub head: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Shard {
    pub fn new(options: SessionOptions) -> Self {
        Self {
            sessions: Sessions::new(options, 0).expect("the options of a test are good"),
            backend: Rc::new(FakeBackend::default()),
            runner: Runner::default(),
            now_ms: Cell::new(0),
        }
    }

    /// A connection that has said nothing yet. Each direction holds `window_bytes` that are not read.
    pub fn connect_silent(&self, window_bytes: usize) -> Connection {
        let (client, server) = pipe::pair(window_bytes);
        let ended = Rc::new(Cell::new(None));
        let (sessions, backend, out) = (self.sessions.clone(), self.backend.clone(), ended.clone());
        let peer = Peer { listener: "plain".into(), address: "memory".to_owned() };
        self.runner.spawn(async move {
            out.set(Some(serve(&sessions, server, backend, peer).await));
        });
        self.run();
        Connection { end: client, encoder: Encoder::default(), received: Vec::new(), ended }
    }

    /// A connection that has shaken hands.
    pub fn connect(&self, window_bytes: usize) -> Connection {
        let mut connection = self.connect_silent(window_bytes);
        connection.send(0, &hello());
        self.run();
        let reply = connection.reply();
        let response: HandshakeResponse = reply.read();
        assert_eq!(response.protocol_version, Ok(PROTOCOL_VERSION));
        connection
    }

    /// Runs everything until nothing moves.
    pub fn run(&self) {
        self.runner.run();
    }

    /// Lets time pass, in sweeps of a second, and runs.
    pub fn pass_ms(&self, ms: u64) {
        let until = self.now_ms.get() + ms;
        while self.now_ms.get() < until {
            self.now_ms.set((self.now_ms.get() + 1_000).min(until));
            self.sessions.expire_overdue(self.now_ms.get());
            self.run();
        }
    }
}

impl Connection {
    /// Sends a request without payload. It must fit the window.
    pub fn send<R: Request>(&mut self, correlation_id: u32, request: &R) {
        let frame = self.frame(correlation_id, request, &[]);
        self.end.send_all(&frame);
    }

    pub fn frame<R: Request>(&mut self, correlation_id: u32, request: &R, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        self.encoder.request(&mut frame, correlation_id, request);
        frame.extend_from_slice(payload);
        frame
    }

    pub fn produce_frame(&mut self, correlation_id: u32, acks: Acks, records: &[u8]) -> Vec<u8> {
        self.frame(correlation_id, &produce(acks, records.len()), records)
    }

    pub fn produce(&mut self, correlation_id: u32, acks: Acks, records: &[u8]) {
        let frame = self.produce_frame(correlation_id, acks, records);
        self.end.send_all(&frame);
    }

    /// The next whole answer, if it is there.
    pub fn try_reply(&mut self) -> Option<Reply> {
        self.received.extend(self.end.receive());
        let limits = FrameLimits { frame_bytes_max: u32::MAX, head_bytes_max: u32::MAX };
        let frame = parse_frame(&self.received, &limits).expect("the server sends frames")?;
        let reply =
            Reply { prefix: frame.prefix, head: frame.head.to_vec(), payload: frame.payload.to_vec() };
        self.received.drain(..reply.prefix.frame_bytes as usize);
        Some(reply)
    }

    pub fn reply(&mut self) -> Reply {
        self.try_reply().expect("an answer is there")
    }

    /// Correlation ids of all whole answers that are there.
    pub fn replied(&mut self) -> Vec<u32> {
        std::iter::from_fn(|| self.try_reply()).map(|reply| reply.prefix.correlation_id).collect()
    }

    /// How the session ended, if it has.
    pub fn ended(&self) -> Option<SessionEnd> {
        self.ended.get()
    }

    /// The failure that the next answer tells.
    pub fn failure(&mut self) -> Failure {
        let reply = self.reply();
        assert_eq!(reply.prefix.api, 0, "a failure as a whole: {reply:?}");
        reply.read::<ErrorResponse>().failure
    }
}

impl Reply {
    pub fn read<M: Message>(&self) -> M {
        decode(&self.head, self.payload.len() as u64).expect("the server's answers can be read")
    }

    pub fn produced(&self) -> ProduceResponse {
        self.read()
    }

    pub fn fetched(&self) -> FetchResponse {
        self.read()
    }
}

pub fn hello() -> HandshakeRequest {
    HandshakeRequest {
        protocol_version_min: 1,
        protocol_version_max: PROTOCOL_VERSION,
        features: Features::default(),
        client_id: "test".to_owned(),
        software: String::new(),
    }
}

pub fn produce(acks: Acks, records_bytes: usize) -> ProduceRequest {
    ProduceRequest {
        acks,
        timeout_ms: 1_000,
        partitions: vec![ProducePartition {
            to: PartitionRef::by_id(1, 0),
            records_bytes: u32::try_from(records_bytes).expect("small"),
            leader_epoch: None,
        }],
    }
}

pub fn fetch(max_bytes: u32) -> FetchRequest {
    FetchRequest {
        min_bytes: 1,
        max_wait_ms: 500,
        max_bytes,
        partitions: vec![FetchPartition {
            from: PartitionRef::by_id(1, 0),
            fetch_offset: 0,
            max_bytes,
            leader_epoch: None,
            last_epoch: None,
        }],
    }
}
