//! One connection to one shard: handshake, many requests on their way, answers in their order.
//!
//! Owns: the socket, by two tasks (one writes, one reads), and the requests that await an answer.
//! Invariant: the server answers in request order, so the oldest waiting request gets the next frame; a
//! correlation id that does not fit ends the connection.
//! Invariant: once broken, a connection stays broken: everyone who waits is told, and the pool makes a new one.
//! Limits: `QUEUE_REQUESTS_MAX` requests wait for the writer, then the sender waits; an answer larger than
//! `response_bytes_max` ends the connection.
//! Not here: which shard to talk to (`cluster`), whether to try again (`retry`).

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use corelog_schemas::api::API_ERROR;
use corelog_schemas::messages::{ErrorResponse, HandshakeRequest, HandshakeResponse};
use corelog_schemas::{
    Encoder, FRAME_PREFIX_BYTES, Features, FrameLimits, FramePrefix, Message, PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN, Request, decode,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{ConnectError, RequestError};

/// Requests that may wait for the writer. Few: they hold memory, and pipelining needs no more.
const QUEUE_REQUESTS_MAX: usize = 64;
/// What the reader makes room for at a time while it does not know the size of the next answer.
const READ_BYTES: usize = 64 * 1024;

/// How to connect.
#[derive(Clone, Debug)]
pub(crate) struct ConnectOptions {
    pub client_id: Arc<str>,
    pub connect_timeout_ms: u64,
    pub request_timeout_ms: u64,
    pub response_bytes_max: u32,
}

/// An answer: the message, and the payload behind it.
#[derive(Debug)]
pub(crate) struct Answer<R> {
    pub message: R,
    pub payload: Bytes,
}

struct RawAnswer {
    prefix: FramePrefix,
    head: Bytes,
    payload: Bytes,
}

type Reply = oneshot::Sender<Result<RawAnswer, RequestError>>;

struct Outgoing {
    head: Vec<u8>,
    payload: Vec<Bytes>,
    expects: Expects,
}

enum Expects {
    /// An answer with this correlation id.
    Answer(u32, Reply),
    /// No answer: told once the bytes are with the kernel.
    Written(oneshot::Sender<Result<(), RequestError>>),
}

struct Pending {
    correlation_id: u32,
    reply: Reply,
}

#[derive(Default)]
struct State {
    pending: VecDeque<Pending>,
    broken: Option<RequestError>,
}

struct Shared {
    address: Arc<str>,
    state: Mutex<State>,
    /// True once broken: ends both tasks, also those that wait for a silent peer.
    broken: watch::Sender<bool>,
    encoder: Mutex<(Encoder, u32)>,
}

/// A live connection; clones share it. The socket closes when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    outgoing: mpsc::Sender<Outgoing>,
    request_timeout_ms: u64,
    frame_bytes_max: u32,
}

impl Connection {
    /// Connects and shakes hands.
    pub(crate) async fn open(address: &Arc<str>, options: &ConnectOptions) -> Result<Self, ConnectError> {
        let limit = Duration::from_millis(options.connect_timeout_ms);
        match tokio::time::timeout(limit, Self::open_unbounded(address, options)).await {
            Ok(connection) => connection,
            Err(_) => Err(ConnectError::TimedOut {
                address: Arc::clone(address),
                timeout_ms: options.connect_timeout_ms,
            }),
        }
    }

    async fn open_unbounded(address: &Arc<str>, options: &ConnectOptions) -> Result<Self, ConnectError> {
        let unreachable = |error: io::Error| ConnectError::Unreachable {
            address: Arc::clone(address),
            reason: error.to_string().into(),
        };
        let stream = TcpStream::connect(&**address).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let (read, write) = stream.into_split();
        let shared = Arc::new(Shared {
            address: Arc::clone(address),
            state: Mutex::default(),
            broken: watch::Sender::new(false),
            encoder: Mutex::default(),
        });
        let (outgoing, queue) = mpsc::channel(QUEUE_REQUESTS_MAX);
        tokio::spawn(write_requests(Arc::clone(&shared), write, queue));
        tokio::spawn(read_answers(Arc::clone(&shared), read, options.response_bytes_max));
        let mut connection = Self {
            shared,
            outgoing,
            request_timeout_ms: options.request_timeout_ms.max(options.connect_timeout_ms),
            frame_bytes_max: u32::MAX,
        };
        let hello = connection.shake_hands(options).await?;
        connection.request_timeout_ms = options.request_timeout_ms;
        connection.frame_bytes_max = hello.frame_bytes_max;
        Ok(connection)
    }

    async fn shake_hands(&self, options: &ConnectOptions) -> Result<HandshakeResponse, ConnectError> {
        let address = || Arc::clone(&self.shared.address);
        let request = HandshakeRequest {
            protocol_version_min: PROTOCOL_VERSION_MIN,
            protocol_version_max: PROTOCOL_VERSION,
            features: Features::SUPPORTED,
            client_id: options.client_id.to_string(),
            software: concat!("corelog-client ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        match self.call(&request, Vec::new()).await {
            Ok(Answer { message, .. }) => match message.protocol_version {
                Ok(_) => Ok(message),
                Err(failure) => Err(ConnectError::Refused { address: address(), failure }),
            },
            Err(RequestError::Connect(error)) => Err(error),
            Err(RequestError::Refused(failure)) => Err(ConnectError::Refused { address: address(), failure }),
            Err(RequestError::TimedOut { timeout_ms, .. }) => {
                Err(ConnectError::TimedOut { address: address(), timeout_ms })
            }
            Err(RequestError::Disconnected { reason, .. } | RequestError::BadAnswer { reason, .. }) => {
                Err(ConnectError::NotCorelog { address: address(), reason })
            }
        }
    }

    /// The largest frame that the server takes.
    pub(crate) fn frame_bytes_max(&self) -> u32 {
        self.frame_bytes_max
    }

    /// Whether it can still be used.
    pub(crate) fn is_open(&self) -> bool {
        self.shared.lock().broken.is_none() && !self.outgoing.is_closed()
    }

    /// Sends a request and waits for its answer. A timeout breaks the connection: answers come in order, so
    /// what is behind the late one is late too.
    ///
    /// Cancel: the request may have been sent; its answer is thrown away, the connection goes on.
    pub(crate) async fn call<R: Request>(
        &self,
        request: &R,
        payload: Vec<Bytes>,
    ) -> Result<Answer<R::Response>, RequestError> {
        self.call_within(request, payload, self.request_timeout_ms).await
    }

    /// As `call`, with a timeout of its own (a long poll waits longer than other requests).
    pub(crate) async fn call_within<R: Request>(
        &self,
        request: &R,
        payload: Vec<Bytes>,
        timeout_ms: u64,
    ) -> Result<Answer<R::Response>, RequestError> {
        let exchange = self.exchange(request, payload);
        match tokio::time::timeout(Duration::from_millis(timeout_ms), exchange).await {
            Ok(answer) => self.read_answer::<R>(answer?),
            Err(_) => {
                let error = RequestError::TimedOut { address: Arc::clone(&self.shared.address), timeout_ms };
                self.shared.break_with(error.clone());
                Err(error)
            }
        }
    }

    async fn exchange<R: Request>(
        &self,
        request: &R,
        payload: Vec<Bytes>,
    ) -> Result<RawAnswer, RequestError> {
        let (head, correlation_id) = self.encode(request);
        let (reply, answer) = oneshot::channel();
        self.submit(Outgoing { head, payload, expects: Expects::Answer(correlation_id, reply) }).await?;
        answer.await.unwrap_or_else(|_| Err(self.shared.why_broken()))
    }

    /// Sends a request that has no answer; returns once its bytes are with the kernel.
    pub(crate) async fn send_unanswered<R: Request>(
        &self,
        request: &R,
        payload: Vec<Bytes>,
    ) -> Result<(), RequestError> {
        let (head, _) = self.encode(request);
        let (told, written) = oneshot::channel();
        self.submit(Outgoing { head, payload, expects: Expects::Written(told) }).await?;
        written.await.unwrap_or_else(|_| Err(self.shared.why_broken()))
    }

    async fn submit(&self, outgoing: Outgoing) -> Result<(), RequestError> {
        let sent = self.outgoing.send(outgoing).await;
        sent.map_err(|_| self.shared.why_broken())
    }

    fn encode<R: Request>(&self, request: &R) -> (Vec<u8>, u32) {
        let mut head = Vec::with_capacity(256);
        let mut guard = self.shared.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        let (encoder, last_id) = &mut *guard;
        *last_id = last_id.wrapping_add(1);
        encoder.request(&mut head, *last_id, request);
        (head, *last_id)
    }

    fn read_answer<R: Request>(&self, raw: RawAnswer) -> Result<Answer<R::Response>, RequestError> {
        let payload_bytes = raw.prefix.payload_bytes();
        if raw.prefix.api == API_ERROR {
            let refused: ErrorResponse = self.decode(&raw.head, payload_bytes)?;
            return Err(RequestError::Refused(refused.failure));
        }
        if raw.prefix.api != R::API.number() {
            let reason = format!("api {} to a request of {}", raw.prefix.api, R::API.name());
            return Err(self.shared.nonsense(&reason));
        }
        let message = self.decode(&raw.head, payload_bytes)?;
        Ok(Answer { message, payload: raw.payload })
    }

    fn decode<M: Message>(&self, head: &[u8], payload_bytes: u64) -> Result<M, RequestError> {
        decode(head, payload_bytes).map_err(|error| {
            let error = self.shared.nonsense(&error.to_string());
            self.shared.break_with(error.clone());
            error
        })
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Breaks the connection, for the first reason given, and tells everyone who waits.
    fn break_with(&self, error: RequestError) {
        let (waiting, reason) = {
            let mut state = self.lock();
            let reason = state.broken.get_or_insert(error).clone();
            (std::mem::take(&mut state.pending), reason)
        };
        self.broken.send_replace(true);
        for pending in waiting {
            // Who no longer waits does not need to know.
            let _ = pending.reply.send(Err(reason.clone()));
        }
    }

    fn why_broken(&self) -> RequestError {
        let broken = self.lock().broken.clone();
        broken.unwrap_or_else(|| self.disconnected("it was closed"))
    }

    fn disconnected(&self, reason: &str) -> RequestError {
        RequestError::Disconnected { address: Arc::clone(&self.address), reason: reason.into() }
    }

    fn nonsense(&self, reason: &str) -> RequestError {
        RequestError::BadAnswer { address: Arc::clone(&self.address), reason: reason.into() }
    }
}

/// Writes until all clones of the connection are gone or it is broken. Then nobody can wait for an answer any
/// more (a call borrows its connection), so the reader ends too.
async fn write_requests(
    shared: Arc<Shared>,
    mut socket: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Outgoing>,
) {
    let mut broken = shared.broken.subscribe();
    loop {
        let outgoing = tokio::select! {
            biased;
            _ = broken.wait_for(|broken| *broken) => break,
            outgoing = queue.recv() => outgoing,
        };
        let Some(Outgoing { head, payload, expects }) = outgoing else { break };
        let told = match expects {
            Expects::Answer(correlation_id, reply) => {
                // Before the write, so that no answer can come before its request is known.
                shared.lock().pending.push_back(Pending { correlation_id, reply });
                None
            }
            Expects::Written(told) => Some(told),
        };
        let written = tokio::select! {
            biased;
            written = write_parts(&mut socket, &head, &payload) => written,
            _ = broken.wait_for(|broken| *broken) => break,
        };
        if let Err(error) = written {
            shared.break_with(shared.disconnected(&error.to_string()));
            break;
        }
        if let Some(told) = told {
            // Who no longer waits does not need to know.
            let _ = told.send(Ok(()));
        }
    }
    // Also tells a request that was taken from the queue after the connection had broken.
    shared.break_with(shared.disconnected("it was closed"));
    // Whether the peer still hears this changes nothing.
    let _ = socket.shutdown().await;
}

/// Writes head and payload with as few system calls as the socket allows, without joining them in memory.
async fn write_parts(socket: &mut OwnedWriteHalf, head: &[u8], payload: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = Vec::with_capacity(1 + payload.len());
    slices.push(IoSlice::new(head));
    slices.extend(payload.iter().map(|part| IoSlice::new(part)));
    let mut rest = &mut slices[..];
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let written = socket.write_vectored(rest).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}

async fn read_answers(shared: Arc<Shared>, mut socket: OwnedReadHalf, response_bytes_max: u32) {
    let limits = FrameLimits { frame_bytes_max: response_bytes_max, head_bytes_max: response_bytes_max };
    let mut broken = shared.broken.subscribe();
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    let error = loop {
        match take_frame(&mut buffer, &limits) {
            Err(reason) => break shared.nonsense(&reason),
            Ok(Some(answer)) => {
                if let Err(error) = deliver(&shared, answer) {
                    break error;
                }
            }
            Ok(None) => {
                let read = tokio::select! {
                    biased;
                    read = socket.read_buf(&mut buffer) => read,
                    _ = broken.wait_for(|broken| *broken) => return,
                };
                match read {
                    Ok(0) => break shared.disconnected("the server closed it"),
                    Ok(_) => {}
                    Err(error) => break shared.disconnected(&error.to_string()),
                }
            }
        }
    };
    shared.break_with(error);
}

/// Takes the frame at the front of `buffer`, or makes room for what is missing of it.
fn take_frame(buffer: &mut BytesMut, limits: &FrameLimits) -> Result<Option<RawAnswer>, String> {
    let Some(prefix) = buffer.first_chunk::<FRAME_PREFIX_BYTES>() else {
        buffer.reserve(READ_BYTES);
        return Ok(None);
    };
    let prefix = FramePrefix::parse(prefix, limits).map_err(|error| error.to_string())?;
    let frame_bytes = prefix.frame_bytes as usize;
    if buffer.len() < frame_bytes {
        buffer.reserve(frame_bytes - buffer.len());
        return Ok(None);
    }
    let mut frame = buffer.split_to(frame_bytes).freeze();
    frame.advance(FRAME_PREFIX_BYTES);
    let head = frame.split_to(prefix.head_bytes as usize);
    Ok(Some(RawAnswer { prefix, head, payload: frame }))
}

fn deliver(shared: &Shared, answer: RawAnswer) -> Result<(), RequestError> {
    let pending = shared.lock().pending.pop_front();
    let Some(pending) = pending else {
        if answer.prefix.api == API_ERROR
            && let Ok(refused) = decode::<ErrorResponse>(&answer.head, 0)
        {
            // What a server says before it closes: a request without an answer (acks = 0) failed, or it is full.
            return Err(RequestError::Refused(refused.failure));
        }
        return Err(shared.nonsense("an answer that nobody asked for"));
    };
    let expected = pending.correlation_id;
    let got = answer.prefix.correlation_id;
    if got != expected {
        let error = shared.nonsense(&format!("correlation id {got} where {expected} was due"));
        let _ = pending.reply.send(Err(error.clone()));
        return Err(error);
    }
    let _ = pending.reply.send(Ok(answer));
    Ok(())
}
