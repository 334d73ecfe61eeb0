//! A small server in memory: some shards on loopback ports, topics as lists of record batches, faults on demand.
//!
//! Owns: just enough of the native protocol to test the client against. It is honest about offsets, leaders and
//! order of answers, and dishonest only where a test asks for a [`Fault`].

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use corelog_client::{Client, ClientConfig};
use corelog_engine::batch::{BatchLimits, BatchWalk, Stamp, stamp, validate};
use corelog_engine::{LeaderEpoch, Offset};
use corelog_schemas::messages::*;
use corelog_schemas::{
    Api, Encoder, ErrorCode, Failure, Features, Frame, FrameLimits, PROTOCOL_VERSION, decode, parse_frame,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What goes wrong with the next produce that names a partition.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The partition answers with this code; nothing is appended.
    Refuse(ErrorCode),
    /// The connection closes before anything is appended.
    CloseBefore,
    /// The batches are appended, then the connection closes: a lost ack.
    CloseAfter,
    /// The answer takes so long.
    DelayMs(u64),
}

/// One partition.
#[derive(Default)]
pub struct Log {
    pub leader: u16,
    pub start: u64,
    pub batches: Vec<Vec<u8>>,
    pub faults: VecDeque<Fault>,
    /// Faults of fetches.
    pub fetch_faults: VecDeque<ErrorCode>,
    /// What the next fetch that names an epoch is told.
    pub diverged: Option<Divergence>,
}

impl Log {
    /// The offset after the last record.
    pub fn end(&self) -> u64 {
        let parts: Vec<&[u8]> = self.batches.iter().map(|batch| &batch[..]).collect();
        let last = BatchWalk::new(&parts).map(|span| span.expect("a batch").header.next_offset().0).last();
        last.unwrap_or(self.start)
    }

    fn append(&mut self, batches: &[u8]) -> Result<u64, Failure> {
        let limits = BatchLimits { batch_bytes_max: 1 << 20, ..BatchLimits::default() };
        validate(batches, &limits)
            .map_err(|error| Failure::new(ErrorCode::InvalidBatch, error.to_string()))?;
        let base = self.end();
        let mut next = base;
        let mut rest = batches.to_vec();
        while !rest.is_empty() {
            let header = corelog_engine::batch::BatchHeader::parse_unstamped(&rest).expect("validated");
            let tail = rest.split_off(header.size());
            let leader_epoch = LeaderEpoch(1);
            stamp(&mut rest, Stamp { base_offset: Offset(next), leader_epoch, append_time: None });
            next += header.offset_count();
            self.batches.push(rest);
            rest = tail;
        }
        Ok(base)
    }
}

#[derive(Default)]
pub struct World {
    pub ports: Vec<u16>,
    pub topics: BTreeMap<String, (u128, Vec<Log>)>,
    pub version: u64,
    /// Requests by api, for counting.
    pub requests: BTreeMap<u16, u32>,
    pub frame_bytes_max: u32,
    /// Shards that take requests and answer nothing.
    pub silent: Vec<u16>,
    next_id: u128,
}

/// The server; it ends with the runtime of the test.
#[derive(Clone)]
pub struct FakeServer {
    world: Arc<Mutex<World>>,
    appended: Arc<Notify>,
}

impl FakeServer {
    /// Starts `shards` listeners.
    pub async fn start(shards: u16) -> Self {
        let server = Self { world: Arc::default(), appended: Arc::default() };
        server.world().frame_bytes_max = 8 << 20;
        for shard in 0..shards {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            server.world().ports.push(listener.local_addr().expect("bound").port());
            let accepting = server.clone();
            tokio::spawn(async move {
                while let Ok((socket, _)) = listener.accept().await {
                    tokio::spawn(accepting.clone().serve(socket, shard));
                }
            });
        }
        server
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no test panics while it holds the world")
    }

    /// Adds a topic, its partitions spread over the shards.
    pub fn create(&self, name: &str, partitions: u32) {
        let mut world = self.world();
        let shards = world.ports.len() as u32;
        world.next_id += 1;
        world.version += 1;
        let id = world.next_id;
        let logs = (0..partitions).map(|p| Log { leader: (p % shards) as u16, ..Log::default() }).collect();
        world.topics.insert(name.to_owned(), (id, logs));
    }

    /// Changes a partition.
    pub fn with<T>(&self, topic: &str, partition: u32, change: impl FnOnce(&mut Log) -> T) -> T {
        let mut world = self.world();
        let (_, logs) = world.topics.get_mut(topic).expect("created");
        let result = change(&mut logs[partition as usize]);
        world.version += 1;
        result
    }

    pub fn requests(&self, api: Api) -> u32 {
        self.world().requests.get(&api.number()).copied().unwrap_or(0)
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.world().ports[0])
    }

    /// Address of a shard.
    pub fn address_of(&self, shard: usize) -> String {
        format!("127.0.0.1:{}", self.world().ports[shard])
    }

    pub async fn client(&self) -> Client {
        let mut config = ClientConfig::new([self.address()]);
        config.request_timeout_ms = 2_000;
        Client::connect(config).await.expect("the fake server answers")
    }

    async fn serve(self, mut socket: TcpStream, shard: u16) {
        let mut buffer = Vec::new();
        let limits = FrameLimits { frame_bytes_max: u32::MAX, head_bytes_max: 1 << 20 };
        loop {
            match parse_frame(&buffer, &limits).expect("the client sends frames") {
                Some(frame) => {
                    let used = frame.prefix.frame_bytes as usize;
                    let Some(answer) = self.answer(frame, shard).await else { return };
                    if socket.write_all(&answer).await.is_err() {
                        return;
                    }
                    buffer.drain(..used);
                }
                None => match socket.read_buf(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                },
            }
        }
    }

    /// The answer's bytes, perhaps none; `None` closes the connection.
    async fn answer(&self, frame: Frame<'_>, shard: u16) -> Option<Vec<u8>> {
        *self.world().requests.entry(frame.prefix.api).or_default() += 1;
        if self.world().silent.contains(&shard) {
            std::future::pending::<()>().await;
        }
        let api = Api::from_number(frame.prefix.api).expect("a known api");
        let id = frame.prefix.correlation_id;
        let length = frame.prefix.payload_bytes();
        let mut out = Vec::new();
        let mut encoder = Encoder::default();
        match api {
            Api::Handshake => {
                decode::<HandshakeRequest>(frame.head, length).expect("a handshake");
                encoder.response(&mut out, api, id, &self.handshake(shard));
            }
            Api::Metadata => {
                let request: MetadataRequest = decode(frame.head, length).expect("a metadata request");
                encoder.response(&mut out, api, id, &self.metadata(&request));
            }
            Api::Produce => {
                let request: ProduceRequest = decode(frame.head, length).expect("a produce");
                let response = self.produce(&request, frame.payload, shard).await?;
                if request.acks != Acks::None {
                    encoder.response(&mut out, api, id, &response);
                }
            }
            Api::Fetch => {
                let request: FetchRequest = decode(frame.head, length).expect("a fetch");
                let (response, payload) = self.fetch(&request, shard).await;
                encoder.response(&mut out, api, id, &response);
                out.extend_from_slice(&payload);
            }
            Api::ListOffsets => {
                let request: ListOffsetsRequest = decode(frame.head, length).expect("a look-up");
                encoder.response(&mut out, api, id, &self.list_offsets(&request, shard));
            }
            other => {
                let failure = Failure::new(ErrorCode::UnsupportedApi, other.name());
                encoder.failure(&mut out, id, &failure);
            }
        }
        Some(out)
    }

    fn handshake(&self, shard: u16) -> HandshakeResponse {
        HandshakeResponse {
            protocol_version: Ok(PROTOCOL_VERSION),
            protocol_version_min: 1,
            protocol_version_max: 1,
            features: Features(0),
            node: 1,
            shard,
            software: "fake".into(),
            frame_bytes_max: self.world().frame_bytes_max,
            in_flight_bytes_max: 1 << 20,
            in_flight_requests_max: 100,
            idle_timeout_ms: 0,
        }
    }

    fn metadata(&self, request: &MetadataRequest) -> MetadataResponse {
        let world = self.world();
        let names: Vec<String> = match &request.topics {
            MetadataTopics::All => world.topics.keys().cloned().collect(),
            MetadataTopics::These(topics) => topics
                .iter()
                .map(|topic| match topic {
                    TopicRef::Name(name) => name.to_string(),
                    TopicRef::Id(id) => panic!("the client asks by name, not {id}"),
                })
                .collect(),
        };
        let describe = |name: String| match world.topics.get(&name) {
            None => TopicMetadata {
                failure: Some(ErrorCode::UnknownTopicOrPartition.into()),
                topic_id: None,
                name,
                partitions: Vec::new(),
            },
            Some((id, logs)) => TopicMetadata {
                failure: None,
                topic_id: Some(*id),
                name,
                partitions: (0..)
                    .zip(logs)
                    .map(|(partition, log)| describe_partition(partition, log))
                    .collect(),
            },
        };
        let shards = world.ports.iter().enumerate().map(|(shard, port)| ShardAddress {
            node: 1,
            shard: shard as u16,
            host: "127.0.0.1".into(),
            port: *port,
        });
        MetadataResponse {
            version: world.version,
            cluster_id: "fake".into(),
            shards: shards.collect(),
            topics: names.into_iter().map(describe).collect(),
            controller_node: Some(1),
        }
    }

    async fn produce(&self, request: &ProduceRequest, payload: &[u8], shard: u16) -> Option<ProduceResponse> {
        let mut partitions = Vec::new();
        let mut rest = payload;
        for partition in &request.partitions {
            let (batches, tail) = rest.split_at(partition.records_bytes as usize);
            rest = tail;
            let fault = self.world().log(&partition.to, shard).ok().and_then(|log| log.faults.pop_front());
            match fault {
                Some(Fault::CloseBefore) => return None,
                Some(Fault::Refuse(code)) => {
                    partitions.push(Err(code.into()));
                    continue;
                }
                Some(Fault::DelayMs(ms)) => tokio::time::sleep(Duration::from_millis(ms)).await,
                Some(Fault::CloseAfter) | None => {}
            }
            let result = self.world().log(&partition.to, shard).and_then(|log| {
                let base_offset = log.append(batches)?;
                Ok(Produced { base_offset, append_time_ms: None, log_start_offset: log.start })
            });
            self.appended.notify_waiters();
            if matches!(fault, Some(Fault::CloseAfter)) {
                return None;
            }
            partitions.push(result);
        }
        Some(ProduceResponse { throttle_ms: 0, partitions })
    }

    async fn fetch(&self, request: &FetchRequest, shard: u16) -> (FetchResponse, Vec<u8>) {
        let deadline = tokio::time::Instant::now() + Duration::from_millis(u64::from(request.max_wait_ms));
        loop {
            let appended = self.appended.notified();
            let mut payload = Vec::new();
            let mut partitions = Vec::new();
            for partition in &request.partitions {
                let before = payload.len();
                if let Some(diverged) = self.diverged(partition, shard) {
                    partitions.push(FetchPartitionResult {
                        diverged: Some(diverged),
                        ..FetchPartitionResult::default()
                    });
                    continue;
                }
                let failure = self.read(partition, shard, request.max_bytes, &mut payload);
                partitions.push(FetchPartitionResult {
                    failure: failure.clone().err(),
                    records_bytes: (payload.len() - before) as u32,
                    high_watermark: failure.ok(),
                    log_start_offset: None,
                    leader_epoch: Some(1),
                    diverged: None,
                });
            }
            let failed = partitions.iter().any(|p| p.failure.is_some() || p.diverged.is_some());
            if failed || !payload.is_empty() || tokio::time::Instant::now() >= deadline {
                return (FetchResponse { throttle_ms: 0, partitions }, payload);
            }
            tokio::select! {
                () = appended => {}
                () = tokio::time::sleep_until(deadline) => {}
            }
        }
    }

    fn diverged(&self, wanted: &FetchPartition, shard: u16) -> Option<Divergence> {
        wanted.last_epoch?;
        let mut world = self.world();
        world.log(&wanted.from, shard).ok()?.diverged.take()
    }

    fn read(
        &self,
        wanted: &FetchPartition,
        shard: u16,
        bytes_max: u32,
        payload: &mut Vec<u8>,
    ) -> Result<u64, Failure> {
        let mut world = self.world();
        let log = world.log(&wanted.from, shard)?;
        if let Some(code) = log.fetch_faults.pop_front() {
            return Err(code.into());
        }
        let (start, end) = (log.start, log.end());
        if !(start..=end).contains(&wanted.fetch_offset) {
            let message = format!("{} is outside [{start}, {end})", wanted.fetch_offset);
            return Err(Failure::new(ErrorCode::OffsetOutOfRange, message));
        }
        let mut taken = 0;
        for batch in &log.batches {
            let parts = [&batch[..]];
            let header = BatchWalk::new(&parts).next().expect("one").expect("sound").header;
            if header.next_offset().0 <= wanted.fetch_offset {
                continue;
            }
            let full = taken + batch.len() > wanted.max_bytes as usize
                || payload.len() + batch.len() > bytes_max as usize;
            if full && !payload.is_empty() {
                break;
            }
            payload.extend_from_slice(batch);
            taken += batch.len();
        }
        Ok(end)
    }

    fn list_offsets(&self, request: &ListOffsetsRequest, shard: u16) -> ListOffsetsResponse {
        let mut world = self.world();
        let look_up = |wanted: &ListOffsetsPartition| {
            let log = world.log(&wanted.of, shard)?;
            let offset = match wanted.spec {
                OffsetSpec::Earliest => Some(log.start),
                OffsetSpec::Latest => Some(log.end()),
                OffsetSpec::Timestamp(at) => log.batches.iter().find_map(|batch| {
                    let parts = [&batch[..]];
                    let header = BatchWalk::new(&parts).next().expect("one").expect("sound").header;
                    (header.max_timestamp.0 >= at).then_some(header.base_offset.0)
                }),
            };
            Ok(FoundOffset { offset, timestamp_ms: None, leader_epoch: Some(1) })
        };
        ListOffsetsResponse { partitions: request.partitions.iter().map(look_up).collect() }
    }
}

impl World {
    fn log(&mut self, named: &PartitionRef, shard: u16) -> Result<&mut Log, Failure> {
        let unknown = || Failure::from(ErrorCode::UnknownTopicOrPartition);
        let logs = match &named.topic {
            TopicRef::Name(name) => self.topics.get_mut(&**name).map(|(_, logs)| logs).ok_or_else(unknown)?,
            TopicRef::Id(id) => {
                let known = self.topics.values_mut().find(|(known, _)| known == id);
                known.map(|(_, logs)| logs).ok_or_else(|| Failure::from(ErrorCode::UnknownTopicId))?
            }
        };
        let log = logs.get_mut(named.partition as usize).ok_or_else(unknown)?;
        if log.leader == shard { Ok(log) } else { Err(ErrorCode::NotLeader.into()) }
    }
}

fn describe_partition(partition: u32, log: &Log) -> PartitionMetadata {
    PartitionMetadata {
        partition,
        error: None,
        leader_node: 1,
        leader_shard: log.leader,
        leader_epoch: 1,
        log_start_offset: Some(log.start),
        replicas: vec![1],
        in_sync: vec![1],
    }
}
