//! The handshake.

use super::{Builder, DecodeError, Failure, Message, failure_fields, failure_of, owned, root, text, wire};
use crate::api::{Api, Features};
use crate::codec::Request;

/// The first request of every connection: what the client speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeRequest {
    /// Oldest protocol version that the client speaks.
    pub protocol_version_min: u16,
    /// Newest protocol version that the client speaks.
    pub protocol_version_max: u16,
    /// Optional features that it knows.
    pub features: Features,
    /// Names the application in logs and metrics.
    pub client_id: String,
    /// Library and version.
    pub software: String,
}

/// What the connection speaks from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeResponse {
    /// The version agreed on; an error closes the connection.
    pub protocol_version: Result<u16, Failure>,
    /// Oldest protocol version that the server speaks.
    pub protocol_version_min: u16,
    /// Newest protocol version that the server speaks.
    pub protocol_version_max: u16,
    /// What both know.
    pub features: Features,
    /// The node that was reached.
    pub node: u32,
    /// The shard that was reached.
    pub shard: u16,
    /// Server and version.
    pub software: String,
    /// Largest frame that the server reads.
    pub frame_bytes_max: u32,
    /// Beyond so many unanswered bytes the server stops reading.
    pub in_flight_bytes_max: u64,
    /// Beyond so many unanswered requests the server stops reading.
    pub in_flight_requests_max: u32,
    /// The server closes after so long without a request. 0: never.
    pub idle_timeout_ms: u64,
}

impl Request for HandshakeRequest {
    const API: Api = Api::Handshake;
    type Response = HandshakeResponse;
}

impl Message for HandshakeRequest {
    fn build(&self, b: &mut Builder) {
        let (client_id, software) = (text(b, &self.client_id), text(b, &self.software));
        let args = wire::HandshakeRequestArgs {
            protocol_version_min: self.protocol_version_min,
            protocol_version_max: self.protocol_version_max,
            features: self.features.0,
            client_id,
            software,
        };
        let root = wire::HandshakeRequest::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::HandshakeRequest<'_>>(head)?;
        Ok(Self {
            protocol_version_min: t.protocol_version_min(),
            protocol_version_max: t.protocol_version_max(),
            features: Features(t.features()),
            client_id: owned(t.client_id()),
            software: owned(t.software()),
        })
    }
}

impl Message for HandshakeResponse {
    fn build(&self, b: &mut Builder) {
        let (error, message) = failure_fields(b, &self.protocol_version);
        let software = text(b, &self.software);
        let args = wire::HandshakeResponseArgs {
            error,
            message,
            protocol_version: *self.protocol_version.as_ref().unwrap_or(&0),
            protocol_version_min: self.protocol_version_min,
            protocol_version_max: self.protocol_version_max,
            features: self.features.0,
            node: self.node,
            shard: self.shard,
            software,
            frame_bytes_max: self.frame_bytes_max,
            in_flight_bytes_max: self.in_flight_bytes_max,
            in_flight_requests_max: self.in_flight_requests_max,
            idle_timeout_ms: self.idle_timeout_ms,
        };
        let root = wire::HandshakeResponse::create(b, &args);
        b.finish_minimal(root);
    }

    fn read(head: &[u8]) -> Result<Self, DecodeError> {
        let t = root::<wire::HandshakeResponse<'_>>(head)?;
        Ok(Self {
            protocol_version: failure_of(t.error(), t.message()).map_or(Ok(t.protocol_version()), Err),
            protocol_version_min: t.protocol_version_min(),
            protocol_version_max: t.protocol_version_max(),
            features: Features(t.features()),
            node: t.node(),
            shard: t.shard(),
            software: owned(t.software()),
            frame_bytes_max: t.frame_bytes_max(),
            in_flight_bytes_max: t.in_flight_bytes_max(),
            in_flight_requests_max: t.in_flight_requests_max(),
            idle_timeout_ms: t.idle_timeout_ms(),
        })
    }
}
