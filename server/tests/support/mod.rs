//! What the end-to-end tests share: the real binary as a node, and a bare client that talks to the shard it chooses.

// Each test binary uses a part of it.
#![allow(dead_code, reason = "shared by several test binaries")]

pub(crate) mod nodes;
pub(crate) mod zookeeper;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use corelog_client::{Client, ClientConfig};
use corelog_engine::TimestampMs;
use corelog_engine::batch::{BatchBuilder, BatchFields, NewRecord};
use corelog_schemas::messages::{
    ErrorResponse, HandshakeRequest, HandshakeResponse, MetadataRequest, MetadataTopics, NewTopic,
    PartitionRef,
};
use corelog_schemas::{Encoder, ErrorCode, Features, FrameLimits, Request, decode, parse_frame};

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

const LIMITS: FrameLimits = FrameLimits { frame_bytes_max: 64 << 20, head_bytes_max: 8 << 20 };

/// A directory on a file system with direct I/O, removed when dropped.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory")
}

/// How a node is started.
#[derive(Clone)]
pub(crate) struct Setup {
    dirs: Vec<PathBuf>,
    cores: &'static str,
    listen: SocketAddr,
    environment: Vec<(&'static str, String)>,
}

impl Setup {
    pub(crate) fn new(dir: &Path, cores: &'static str) -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { dirs: vec![dir.to_owned()], cores, listen, environment: Vec::new() }
    }

    #[must_use]
    pub(crate) fn data_dir(mut self, dir: &Path) -> Self {
        self.dirs.push(dir.to_owned());
        self
    }

    /// Where shard 0 listens.
    #[must_use]
    pub(crate) fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Sets a configuration value by its environment variable.
    #[must_use]
    pub(crate) fn set(mut self, variable: &'static str, value: &str) -> Self {
        self.environment.push((variable, value.to_owned()));
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_corelog"));
        let listen = self.listen.to_string();
        command.args(["serve", "--listen", &listen, "--http", "127.0.0.1:0", "--cores", self.cores]);
        for dir in &self.dirs {
            command.arg("--data").arg(dir);
        }
        // Several nodes run at a time in tests: keep them small.
        command.env("CORELOG_MEMORY_PER_SHARD", "64MiB");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null());
        command
    }

    /// Starts a node that has to fail; yields how it ended and what it said.
    pub(crate) fn fail(&self) -> (ExitStatus, String) {
        let output = self.command().output().expect("the binary runs");
        (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Starts a node and waits until it is ready.
    pub(crate) fn start(&self) -> Node {
        let log = self.dirs[0].with_extension("log");
        let stderr = std::fs::File::options().create(true).append(true).open(&log).expect("a log file");
        let mut child = self.command().stdout(Stdio::piped()).stderr(stderr).spawn().expect("it starts");
        let stdout = child.stdout.take().expect("it was piped");
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).expect("readable");
        let field = |name: &str| {
            let prefix = format!("{name}=");
            let found = line.split_whitespace().find_map(|word| word.strip_prefix(&prefix));
            found.unwrap_or_else(|| panic!("no {name} in {line:?}; log: {}", read(&log))).to_owned()
        };
        let address: SocketAddr = field("listen").parse().expect("an address");
        let shards = field("shards").parse().expect("a number");
        Node { address, http: field("http"), replication: field("replication"), shards, child, log }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A running node; killed when dropped.
pub(crate) struct Node {
    /// Of shard 0.
    pub(crate) address: SocketAddr,
    pub(crate) http: String,
    replication: String,
    shards: u16,
    child: Child,
    log: PathBuf,
}

impl Node {
    pub(crate) async fn client(&self) -> Client {
        Client::connect(ClientConfig::new([self.address.to_string()])).await.expect("it answers")
    }

    /// Creates a topic and waits until it can be used.
    pub(crate) async fn create_topic(&self, name: &str, partitions: u32) {
        let topic =
            NewTopic { name: name.to_owned(), partitions, replication_factor: 1, options: Vec::new() };
        let created = self.client().await.admin().create_topics(vec![topic], false).await.expect("answered");
        created.into_iter().next().expect("one result").expect("created");
    }

    pub(crate) fn shard(&self, shard: u16) -> Bare {
        Bare::connect(SocketAddr::new(self.address.ip(), self.address.port() + shard))
    }

    /// Opens a connection; why it was turned away, or `None` if it was not.
    pub(crate) fn refused_with(&self) -> Option<ErrorCode> {
        let stream = TcpStream::connect(self.address).expect("connected");
        let mut bare = Bare { stream, encoder: Encoder::default(), correlation_id: 0, shard: 0 };
        bare.stream.set_read_timeout(Some(PATIENCE)).expect("set");
        // Sent or not: who is turned away may be gone already.
        let mut hello = Vec::new();
        bare.encoder.request(&mut hello, 1, &Bare::hello());
        let _ = bare.stream.write_all(&hello);
        let (api, head, _) = bare.receive_frame();
        (api == corelog_schemas::api::API_ERROR)
            .then(|| decode::<ErrorResponse>(&head, 0).expect("a failure").failure.code)
    }

    /// Sends bytes on a connection of their own and waits until the server has closed it.
    pub(crate) fn send_raw(&self, bytes: &[u8]) {
        let mut stream = TcpStream::connect(self.address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.write_all(bytes).expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("shut down");
        // What comes back is the server's answer; that it ends is what matters. A reset is an end as well.
        let _ = stream.read_to_end(&mut Vec::new());
    }

    /// Where its shards take replication streams; none if it is alone.
    pub(crate) fn replication(&self) -> Vec<SocketAddr> {
        let Ok(first) = self.replication.parse::<SocketAddr>() else { return Vec::new() };
        (0..self.shards).map(|shard| SocketAddr::new(first.ip(), first.port() + shard)).collect()
    }

    /// What `/metrics` says now.
    pub(crate) fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(&self.http).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.http);
        stream.write_all(request.as_bytes()).expect("sent");
        let mut response = String::new();
        stream.read_to_string(&mut response).expect("an answer");
        response
    }

    pub(crate) fn log(&self) -> String {
        read(&self.log)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: nothing is told, nothing is synced.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for");
    }

    /// SIGTERM; yields how it ended and how long that took.
    pub(crate) fn stop(mut self) -> (ExitStatus, Duration) {
        let pid = libc::pid_t::try_from(self.child.id()).expect("a process id");
        let began = Instant::now();
        // SAFETY: no memory is involved; the child has not been waited for, so the id is still its own.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().expect("waited for") {
                return (status, began.elapsed());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it does not stop; log: {}", self.log());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One connection to one shard, one request at a time unless told otherwise.
pub(crate) struct Bare {
    stream: TcpStream,
    encoder: Encoder,
    correlation_id: u32,
    pub(crate) shard: u16,
}

impl Bare {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut bare = Self { stream, encoder: Encoder::default(), correlation_id: 0, shard: 0 };
        let (welcome, _): (HandshakeResponse, _) = bare.ask(&Self::hello(), &[]);
        bare.shard = welcome.shard;
        bare
    }

    fn hello() -> HandshakeRequest {
        HandshakeRequest {
            protocol_version_min: 1,
            protocol_version_max: 1,
            features: Features::default(),
            client_id: "test".to_owned(),
            software: "test".to_owned(),
        }
    }

    /// Sends a request without waiting for its answer.
    pub(crate) fn send<R: Request>(&mut self, request: &R, payload: &[u8]) {
        self.correlation_id += 1;
        let mut frame = Vec::new();
        self.encoder.request(&mut frame, self.correlation_id, request);
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame).expect("sent");
    }

    /// Sends bytes as they are, and gives the connection away.
    pub(crate) fn begin(mut self, bytes: &[u8]) -> TcpStream {
        self.stream.write_all(bytes).expect("sent");
        self.stream
    }

    /// Receives the next answer and its payload.
    pub(crate) fn receive<R: Request>(&mut self) -> (R::Response, Vec<u8>) {
        let (api, head, payload) = self.receive_frame();
        assert_eq!(api, R::API.number(), "it was refused as a whole");
        let response = decode(&head, payload.len() as u64).expect("a response");
        (response, payload)
    }

    /// Receives the next frame: what it answers, its head, its payload.
    fn receive_frame(&mut self) -> (u16, Vec<u8>, Vec<u8>) {
        let mut frame = vec![0; 4];
        self.stream.read_exact(&mut frame).expect("an answer");
        let length = u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
        frame.resize(4 + length, 0);
        self.stream.read_exact(&mut frame[4..]).expect("a whole answer");
        let parsed = parse_frame(&frame, &LIMITS).expect("a frame").expect("a whole frame");
        let payload = frame[frame.len() - parsed.prefix.payload_bytes() as usize..].to_vec();
        (parsed.prefix.api, parsed.head.to_vec(), payload)
    }

    pub(crate) fn ask<R: Request>(&mut self, request: &R, payload: &[u8]) -> (R::Response, Vec<u8>) {
        self.send(request, payload);
        self.receive::<R>()
    }

    /// For each shard, a partition of the topic that it owns.
    pub(crate) fn partition_of_shard(&mut self, topic: &str, shard: u16) -> PartitionRef {
        let request = MetadataRequest { topics: MetadataTopics::These(vec![topic.into()]) };
        let (metadata, _) = self.ask(&request, &[]);
        let found = metadata.topics[0].partitions.iter().find(|p| p.leader_shard == shard);
        PartitionRef::by_name(topic, found.expect("the shard has a partition of it").partition)
    }
}

/// A batch with one record for each value.
pub(crate) fn batch(values: &[&str]) -> Vec<u8> {
    let mut builder = BatchBuilder::new(1 << 20);
    for value in values {
        let value = Some(value.as_bytes());
        let record = NewRecord { key: None, value, timestamp: TimestampMs(1_000), headers: &[] };
        builder.push(&record).expect("it fits");
    }
    builder.finish(&BatchFields::default()).expect("it has records")
}
