//! A blocking connection for what happens before and after a run: topics, metadata, handshakes.
//!
//! Owns: the frame limits of the generators. Not here: the load itself (`load`), which never blocks.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use corelog_schemas::messages::{
    CreateTopicsRequest, DeleteTopicsRequest, DescribeNodeRequest, DescribeNodeResponse, HandshakeRequest,
    HandshakeResponse, ListOffsetsPartition, ListOffsetsRequest, MetadataRequest, MetadataResponse,
    MetadataTopics, NewTopic, OffsetSpec, PartitionRef, TopicOption, TopicRef,
};
use corelog_schemas::{
    Api, Encoder, ErrorCode, FRAME_PREFIX_BYTES, Features, FrameLimits, FramePrefix, Message,
    PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Request, decode,
};

use crate::error::{BenchError, BenchResult};

/// What the generators accept: heads of a metadata response with many partitions, frames of any fetch they ask for.
pub(crate) const LIMITS: FrameLimits = FrameLimits { frame_bytes_max: u32::MAX, head_bytes_max: 64 << 20 };

/// Longest wait for a connection or an answer before a run.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection that has shaken hands.
pub(crate) struct Wire {
    stream: TcpStream,
    address: String,
    encoder: Encoder,
    correlation_id: u32,
    /// What the server said about itself and its limits.
    pub(crate) handshake: HandshakeResponse,
}

impl Wire {
    /// Connects and shakes hands.
    pub(crate) fn connect(address: &str) -> BenchResult<Self> {
        let unreachable = |source| BenchError::Unreachable { address: address.to_owned(), source };
        let resolved = address.to_socket_addrs().map_err(unreachable)?.next().ok_or_else(|| {
            unreachable(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"))
        })?;
        let stream = TcpStream::connect_timeout(&resolved, PATIENCE).map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(unreachable)?;
        let mut encoder = Encoder::default();
        let mut stream = stream;
        let request = HandshakeRequest {
            protocol_version_min: PROTOCOL_VERSION_MIN,
            protocol_version_max: PROTOCOL_VERSION,
            features: Features::default(),
            client_id: "bench".into(),
            software: concat!("corelog-bench ", env!("CARGO_PKG_VERSION")).into(),
        };
        let handshake = exchange(&mut stream, &mut encoder, 0, &request, address)?;
        if let Err(failure) = &handshake.protocol_version {
            return Err(BenchError::Refused { what: "the handshake".into(), failure: failure.clone() });
        }
        Ok(Self { stream, address: address.to_owned(), encoder, correlation_id: 1, handshake })
    }

    /// Sends one request and waits for its response.
    pub(crate) fn call<R: Request>(&mut self, request: &R) -> BenchResult<R::Response> {
        let id = self.correlation_id;
        self.correlation_id += 1;
        exchange(&mut self.stream, &mut self.encoder, id, request, &self.address)
    }

    /// Gives up the socket, for a run.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// Where the partitions of a topic are; `None` if there is no such topic.
    pub(crate) fn metadata(&mut self, topic: &str) -> BenchResult<Option<MetadataResponse>> {
        let topics = MetadataTopics::These(vec![topic.into()]);
        let response = self.call(&MetadataRequest { topics })?;
        match response.topics.first().and_then(|topic| topic.failure.clone()) {
            None => Ok(Some(response)),
            Some(failure) if failure.code == ErrorCode::UnknownTopicOrPartition => Ok(None),
            Some(failure) => {
                Err(BenchError::Refused { what: format!("metadata of topic {topic:?}"), failure })
            }
        }
    }

    /// Creates a topic and waits until it can be used.
    pub(crate) fn create_topic(
        &mut self,
        name: &str,
        partitions: u32,
        replicas: u16,
        options: &[(String, String)],
    ) -> BenchResult<()> {
        let options = options
            .iter()
            .map(|(key, value)| TopicOption {
                key: key.clone(),
                value: Some(value.clone()),
                is_default: false,
            })
            .collect();
        let topic = NewTopic { name: name.to_owned(), partitions, replication_factor: replicas, options };
        let timeout_ms = PATIENCE.as_millis() as u32;
        let request = CreateTopicsRequest { topics: vec![topic], validate_only: false, timeout_ms };
        let response = self.call(&request)?;
        match response.results.into_iter().next().and_then(|result| result.failure) {
            None => Ok(()),
            Some(failure) => Err(BenchError::Refused { what: format!("creating topic {name:?}"), failure }),
        }
    }

    /// Deletes a topic.
    pub(crate) fn delete_topic(&mut self, name: &str) -> BenchResult<()> {
        let request =
            DeleteTopicsRequest { topics: vec![name.into()], timeout_ms: PATIENCE.as_millis() as u32 };
        match self.call(&request)?.results.into_iter().next().and_then(|result| result.failure) {
            None => Ok(()),
            Some(failure) => Err(BenchError::Refused { what: format!("deleting topic {name:?}"), failure }),
        }
    }

    /// An offset of each of the partitions, in their order.
    pub(crate) fn offsets(
        &mut self,
        topic: &TopicRef,
        partitions: &[u32],
        spec: OffsetSpec,
    ) -> BenchResult<Vec<u64>> {
        let partitions = partitions
            .iter()
            .map(|&partition| ListOffsetsPartition {
                of: PartitionRef { topic: topic.clone(), partition },
                spec,
                leader_epoch: None,
            })
            .collect();
        let response = self.call(&ListOffsetsRequest { partitions })?;
        response
            .partitions
            .into_iter()
            .map(|result| match result {
                Ok(found) => Ok(found.offset.unwrap_or(0)),
                Err(failure) => Err(BenchError::Refused { what: format!("offsets of {topic}"), failure }),
            })
            .collect()
    }

    /// The node's shards and disks.
    pub(crate) fn describe_node(&mut self) -> BenchResult<DescribeNodeResponse> {
        self.call(&DescribeNodeRequest)
    }
}

fn exchange<R: Request>(
    stream: &mut TcpStream,
    encoder: &mut Encoder,
    correlation_id: u32,
    request: &R,
    address: &str,
) -> BenchResult<R::Response> {
    let broke = |source| BenchError::Io { what: format!("the connection to {address} broke"), source };
    let mut frame = Vec::new();
    encoder.request(&mut frame, correlation_id, request);
    stream.write_all(&frame).map_err(broke)?;
    let mut prefix = [0; FRAME_PREFIX_BYTES];
    stream.read_exact(&mut prefix).map_err(broke)?;
    let prefix = FramePrefix::parse(&prefix, &LIMITS).map_err(|e| BenchError::protocol(address, e))?;
    let mut head = vec![0; prefix.head_bytes as usize];
    stream.read_exact(&mut head).map_err(broke)?;
    if prefix.correlation_id != correlation_id || prefix.payload_bytes() != 0 {
        return Err(BenchError::protocol(address, format!("{prefix:?} answers request {correlation_id}")));
    }
    decode_response::<R::Response>(R::API, &prefix, &head, address)
}

/// Reads the head of a response, or the failure of the whole request.
pub(crate) fn decode_response<M: Message>(
    api: Api,
    prefix: &FramePrefix,
    head: &[u8],
    address: &str,
) -> BenchResult<M> {
    if prefix.api == corelog_schemas::api::API_ERROR {
        let error: corelog_schemas::messages::ErrorResponse =
            decode(head, 0).map_err(|e| BenchError::protocol(address, e))?;
        return Err(BenchError::Refused { what: api.name().into(), failure: error.failure });
    }
    if prefix.api != api.number() {
        return Err(BenchError::protocol(address, format!("api {} answers {}", prefix.api, api.name())));
    }
    decode(head, prefix.payload_bytes()).map_err(|e| BenchError::protocol(address, e))
}
