//! From heads to structs and back.
//!
//! Owns: verification limits, the encoder with its reused memory. Each message says in `messages` how it is laid out.
//! Invariant: a head is verified before a byte of it is believed, and memory made by decoding is bounded by a fixed
//! multiple of the head's length (tables are counted, and what several offsets share is counted each time).

use flatbuffers::{
    FlatBufferBuilder, Follow, ForwardsUOffset, InvalidFlatbuffer, Verifiable, VerifierOptions,
};

use crate::api::{API_ERROR, Api};
use crate::error::{ErrorCode, Failure};
use crate::frame::{FRAME_PREFIX_BYTES, FramePrefix};
use crate::messages::ErrorResponse;

/// Where heads are built.
pub type Builder = FlatBufferBuilder<'static>;

/// Why a head is not the message that its frame says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not a flatbuffer of that message, or one that breaks a limit. The stream is out of step: close it.
    #[error("the head is not a valid message: {0}")]
    Head(#[from] InvalidFlatbuffer),
    /// The payload is not as long as the head says. The stream is out of step: close it.
    #[error("the head announces {announced} payload bytes, the frame has {present}")]
    PayloadLength {
        /// Sum of the lengths in the head.
        announced: u64,
        /// What the frame holds.
        present: u64,
    },
    /// A well-formed head without something that must be there. Answer it and go on.
    #[error("the request does not say {0}")]
    Missing(&'static str),
    /// A well-formed head with a value outside its range. Answer it and go on.
    #[error("{field} is {value}, which is out of range")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What it holds.
        value: i64,
    },
}

impl DecodeError {
    /// What to tell the peer.
    pub fn failure(&self) -> Failure {
        let code = match self {
            Self::Head(_) | Self::PayloadLength { .. } => ErrorCode::CorruptFrame,
            Self::OutOfRange { field: "acks", .. } => ErrorCode::InvalidAcks,
            Self::Missing(_) | Self::OutOfRange { .. } => ErrorCode::InvalidRequest,
        };
        Failure::new(code, self.to_string())
    }

    /// Whether the connection cannot go on.
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Head(_) | Self::PayloadLength { .. })
    }
}

/// A message: a head, and for some a payload that the head measures.
pub trait Message: Sized {
    /// Writes the head and finishes it.
    fn build(&self, builder: &mut Builder);

    /// Verifies and reads a head.
    fn read(head: &[u8]) -> Result<Self, DecodeError>;

    /// Length of the payload that follows.
    fn payload_bytes(&self) -> u64 {
        0
    }
}

/// A message that a client sends.
pub trait Request: Message {
    /// Its number in the frame.
    const API: Api;
    /// What answers it.
    type Response: Message;
}

/// Reads a message: the head of a frame, checked against the length of its payload.
pub fn decode<M: Message>(head: &[u8], payload_bytes: u64) -> Result<M, DecodeError> {
    let message = M::read(head)?;
    let announced = message.payload_bytes();
    if announced != payload_bytes {
        return Err(DecodeError::PayloadLength { announced, present: payload_bytes });
    }
    Ok(message)
}

/// Tables in tables in tables: the deepest message has three levels.
const DEPTH_MAX: usize = 8;

/// An honest table takes at least 8 bytes (the offset to it and the one to its layout).
const TABLE_BYTES_MIN: usize = 8;

/// How often bytes may be shared by several offsets; honest heads share layouts of tables, and perhaps strings.
const SHARING_MAX: usize = 16;

/// A verified root table.
pub(crate) fn root<'a, T>(head: &'a [u8]) -> Result<T::Inner, InvalidFlatbuffer>
where
    T: Follow<'a> + Verifiable + 'a,
    ForwardsUOffset<T>: Verifiable,
{
    let options = VerifierOptions {
        max_depth: DEPTH_MAX,
        max_tables: head.len() / TABLE_BYTES_MIN + 1,
        max_apparent_size: head.len().saturating_mul(SHARING_MAX).saturating_add(64),
        ignore_missing_null_terminator: false,
    };
    flatbuffers::root_with_opts::<T>(&options, head)
}

/// Above this the builder's memory is given back after use, so that one large answer is not kept by every connection.
const BUILDER_BYTES_KEPT_MAX: usize = 64 << 10;

/// Makes frames, in memory that it reuses.
#[derive(Default)]
pub struct Encoder {
    builder: Builder,
}

impl Encoder {
    /// Appends prefix and head of a request to `out`; the caller sends `payload_bytes()` of payload after it.
    ///
    /// Cost: one copy of the head; no allocation once `out` and the encoder are warm.
    ///
    /// # Panics
    /// If the frame would pass 4 GiB.
    pub fn request<R: Request>(&mut self, out: &mut Vec<u8>, correlation_id: u32, request: &R) {
        let payload_bytes = request.payload_bytes();
        self.frame(out, R::API.number(), correlation_id, payload_bytes, |builder| request.build(builder));
    }

    /// Appends prefix and head of the response to a request of kind `api` to `out`, as [`Encoder::request`].
    pub fn response<M: Message>(&mut self, out: &mut Vec<u8>, api: Api, correlation_id: u32, response: &M) {
        let payload_bytes = response.payload_bytes();
        self.frame(out, api.number(), correlation_id, payload_bytes, |builder| response.build(builder));
    }

    /// Appends the response to a request that failed as a whole.
    pub fn failure(&mut self, out: &mut Vec<u8>, correlation_id: u32, failure: &Failure) {
        let response = ErrorResponse { failure: failure.clone() };
        self.frame(out, API_ERROR, correlation_id, 0, |builder| response.build(builder));
    }

    pub(crate) fn frame(
        &mut self,
        out: &mut Vec<u8>,
        api: u16,
        correlation_id: u32,
        payload_bytes: u64,
        build: impl FnOnce(&mut Builder),
    ) {
        self.builder.reset();
        build(&mut self.builder);
        let head = self.builder.finished_data();
        let head_bytes = u32::try_from(head.len()).expect("flatbuffers are smaller than 2 GiB");
        let frame_bytes = FRAME_PREFIX_BYTES as u64 + u64::from(head_bytes) + payload_bytes;
        out.extend_from_slice(&FramePrefix { frame_bytes, head_bytes, correlation_id, api }.to_bytes());
        out.extend_from_slice(head);
        if head.len() > BUILDER_BYTES_KEPT_MAX {
            self.builder = Builder::new();
        }
    }
}
