//! One non-blocking connection under load: frames out without copies, frames in without keeping their payload.
//!
//! Owns: what is queued to be sent, and the place in the stream of responses.
//! Invariant: nothing here allocates or copies per request once warm, but for the decoding of response heads.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use corelog_schemas::{Encoder, FRAME_PREFIX_BYTES, FramePrefix, Request};

use crate::error::{BenchError, BenchResult};
use crate::wire::LIMITS;

/// Frames handed to the kernel in one call: two slices each.
const FRAMES_PER_WRITE: usize = 64;

/// Bytes read from the socket in one call.
const READ_BYTES: usize = 1 << 20;

/// Largest answer to a produce that makes sense in Kafka's protocol.
const KAFKA_ANSWER_BYTES_MAX: usize = 1 << 20;

/// A request made before the run: everything but its correlation id.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    /// Prefix and head.
    pub(crate) head: Vec<u8>,
    /// Record batches; shared by all templates of a run.
    pub(crate) payload: Arc<[u8]>,
}

/// Where the correlation id lies in a frame: here (`corelog_schemas::frame`) little-endian, in Kafka's big-endian.
const CORRELATION_ID_AT: std::ops::Range<usize> = 8..12;

struct Outgoing {
    head: Vec<u8>,
    payload: Arc<[u8]>,
}

/// A frame that arrived, without its payload.
#[derive(Debug)]
pub(crate) enum Incoming<'a> {
    /// Of our protocol.
    Native {
        /// Its fixed part.
        prefix: FramePrefix,
        /// Its head.
        head: &'a [u8],
    },
    /// Of Kafka's.
    Kafka {
        /// Which request it answers.
        correlation_id: u32,
        /// All that comes after it.
        body: &'a [u8],
    },
}

impl Incoming<'_> {
    /// Which request it answers.
    pub(crate) fn correlation_id(&self) -> u32 {
        match self {
            Self::Native { prefix, .. } => prefix.correlation_id,
            Self::Kafka { correlation_id, .. } => *correlation_id,
        }
    }
}

/// Whose frames a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Ours.
    Native,
    /// Kafka's.
    Kafka,
}

/// Who looks at the responses of a connection, piece by piece as they arrive.
pub(crate) trait Receiver {
    /// A head has arrived whole.
    fn head(&mut self, frame: &Incoming<'_>) -> BenchResult<()>;
    /// Some bytes of its payload have arrived, in order.
    fn payload(&mut self, bytes: &[u8]);
    /// All of it has arrived.
    fn end(&mut self);
}

/// A connection.
pub(crate) struct Connection {
    stream: TcpStream,
    address: String,
    protocol: Protocol,
    outgoing: VecDeque<Outgoing>,
    /// Head buffers of sent requests, to be used again.
    spare_heads: Vec<Vec<u8>>,
    /// The payload of requests without one.
    nothing: Arc<[u8]>,
    /// Bytes of the first outgoing frame that the kernel has.
    sent_bytes: usize,
    buffer: Box<[u8]>,
    /// Bytes at the front of the buffer that are not consumed yet: the beginning of a prefix or head.
    kept_bytes: usize,
    /// Payload bytes of the current frame that are still to come; `None` between frames.
    payload_left: Option<u64>,
}

impl Connection {
    /// Takes over a connected socket.
    pub(crate) fn new(stream: TcpStream, address: &str, protocol: Protocol) -> BenchResult<Self> {
        stream.set_nonblocking(true).map_err(BenchError::io("making a socket non-blocking"))?;
        Ok(Self {
            stream,
            address: address.to_owned(),
            protocol,
            outgoing: VecDeque::new(),
            spare_heads: Vec::new(),
            nothing: Arc::from([]),
            sent_bytes: 0,
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            kept_bytes: 0,
            payload_left: None,
        })
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Whose connection it is.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Whether bytes wait for the kernel to take them.
    pub(crate) fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Queues a request; [`Connection::send`] sends it.
    pub(crate) fn queue(&mut self, template: &Template, correlation_id: u32) {
        let mut head = self.spare_heads.pop().unwrap_or_default();
        head.clear();
        head.extend_from_slice(&template.head);
        let bytes = match self.protocol {
            Protocol::Native => correlation_id.to_le_bytes(),
            Protocol::Kafka => correlation_id.to_be_bytes(),
        };
        head[CORRELATION_ID_AT].copy_from_slice(&bytes);
        self.outgoing.push_back(Outgoing { head, payload: template.payload.clone() });
    }

    /// Queues a request without payload that is made now.
    pub(crate) fn queue_request<R: Request>(
        &mut self,
        encoder: &mut Encoder,
        correlation_id: u32,
        request: &R,
    ) {
        let mut head = self.spare_heads.pop().unwrap_or_default();
        head.clear();
        encoder.request(&mut head, correlation_id, request);
        self.outgoing.push_back(Outgoing { head, payload: self.nothing.clone() });
    }

    /// Hands queued bytes to the kernel until there are none or it has no room. Returns how many frames left whole.
    pub(crate) fn send(&mut self) -> BenchResult<usize> {
        let mut frames = 0;
        while !self.outgoing.is_empty() {
            match self.write_some() {
                Ok(0) => return Err(self.closed()),
                Ok(written) => frames += self.advance(written),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.broke(e)),
            }
        }
        Ok(frames)
    }

    fn write_some(&mut self) -> io::Result<usize> {
        let mut slices = [IoSlice::new(&[]); 2 * FRAMES_PER_WRITE];
        let mut count = 0;
        let mut skip = self.sent_bytes;
        for frame in self.outgoing.iter().take(FRAMES_PER_WRITE) {
            for part in [&frame.head[..], &frame.payload[..]] {
                let skipped = skip.min(part.len());
                skip -= skipped;
                if skipped < part.len() {
                    slices[count] = IoSlice::new(&part[skipped..]);
                    count += 1;
                }
            }
        }
        self.stream.write_vectored(&slices[..count])
    }

    fn advance(&mut self, written: usize) -> usize {
        self.sent_bytes += written;
        let mut frames = 0;
        while let Some(first) = self.outgoing.front() {
            let frame_bytes = first.head.len() + first.payload.len();
            if self.sent_bytes < frame_bytes {
                break;
            }
            self.sent_bytes -= frame_bytes;
            let sent = self.outgoing.pop_front().expect("it was just seen");
            self.spare_heads.push(sent.head);
            frames += 1;
        }
        frames
    }

    /// Reads what has arrived and shows it to `receiver`. Returns false when the kernel has no more.
    pub(crate) fn receive(&mut self, receiver: &mut impl Receiver) -> BenchResult<bool> {
        let room = self.buffer.len() - self.kept_bytes;
        let received = match self.stream.read(&mut self.buffer[self.kept_bytes..]) {
            Ok(0) => return Err(self.closed()),
            Ok(received) => received,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(e) => return Err(self.broke(e)),
        };
        let end = self.kept_bytes + received;
        let consumed = self.consume(end, receiver)?;
        self.buffer.copy_within(consumed..end, 0);
        self.kept_bytes = end - consumed;
        if self.kept_bytes == self.buffer.len() {
            // A head longer than the buffer: make room for it.
            let mut longer = vec![0; self.buffer.len() * 2];
            longer[..self.kept_bytes].copy_from_slice(&self.buffer);
            self.buffer = longer.into_boxed_slice();
        }
        Ok(received == room)
    }

    /// Shows whole heads and payload pieces within the first `end` bytes; returns how many bytes that was.
    fn consume(&mut self, end: usize, receiver: &mut impl Receiver) -> BenchResult<usize> {
        let mut at = 0;
        loop {
            let rest = &self.buffer[at..end];
            if let Some(left) = self.payload_left {
                let piece = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                receiver.payload(&rest[..piece]);
                at += piece;
                let left = left - piece as u64;
                if left > 0 {
                    self.payload_left = Some(left);
                    return Ok(at);
                }
                receiver.end();
                self.payload_left = None;
                continue;
            }
            if self.protocol == Protocol::Kafka {
                let Some(length) = self.consume_kafka(&self.buffer[at..end], receiver)? else {
                    return Ok(at);
                };
                at += length;
                continue;
            }
            let Some(prefix) = rest.first_chunk::<FRAME_PREFIX_BYTES>() else { return Ok(at) };
            let prefix =
                FramePrefix::parse(prefix, &LIMITS).map_err(|e| BenchError::protocol(&self.address, e))?;
            let head_end = FRAME_PREFIX_BYTES + prefix.head_bytes as usize;
            let Some(head) = rest.get(FRAME_PREFIX_BYTES..head_end) else { return Ok(at) };
            receiver.head(&Incoming::Native { prefix, head })?;
            at += head_end;
            self.payload_left = Some(prefix.payload_bytes());
        }
    }

    /// Shows one whole answer of Kafka's protocol; returns its length, or `None` if it has not all arrived.
    fn consume_kafka(&self, rest: &[u8], receiver: &mut impl Receiver) -> BenchResult<Option<usize>> {
        let Some((length, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if !(4..=KAFKA_ANSWER_BYTES_MAX).contains(&length) {
            return Err(BenchError::protocol(&self.address, format!("an answer of {length} bytes")));
        }
        let Some((correlation_id, body)) = rest.get(..length).and_then(|answer| answer.split_first_chunk())
        else {
            return Ok(None);
        };
        receiver.head(&Incoming::Kafka { correlation_id: u32::from_be_bytes(*correlation_id), body })?;
        receiver.end();
        Ok(Some(4 + length))
    }

    fn closed(&self) -> BenchError {
        self.broke(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed it"))
    }

    fn broke(&self, source: io::Error) -> BenchError {
        BenchError::Io { what: format!("the connection to {} broke", self.address), source }
    }
}
