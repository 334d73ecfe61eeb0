//! One connection, from its first byte to its last.
//!
//! Owns: reading, calling the backend, and writing, as two halves of one future: nothing is spawned.
//! Invariant: requests reach the backend in their order, and answers leave in the same order.
//! Invariant: memory is bounded: a receive buffer of one frame, `in_flight_*_max` requests that are not answered, and
//! `answer_bytes_max` of answers that have not left. At a limit the reading half stops, so the peer's window fills. What
//! all peers together have not taken is limited too: beyond `unsent_bytes_max` no fetch begins.
//! Crash story: a peer dies in the middle of a frame, or stops reading. The first ends the session with what it had
//! asked answered; the second is seen by `Sessions::expire_overdue`, and everybody else is served meanwhile.
//! Copies: the kernel puts bytes into the receive buffer, the backend copies records from there; answers are not copied.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use corelog_schemas::messages::{HandshakeRequest, HandshakeResponse};
use corelog_schemas::{
    Api, Encoder, ErrorCode, FRAME_PREFIX_BYTES, Failure, Features, Frame, FrameError, FrameLimits,
    FramePrefix, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, decode, parse_frame,
};

use super::answers::{Account, Answers, Done, Encoded, Owed, Work};
use super::backend::{Backend, Caller, Principal};
use super::budget::Grant;
use super::dispatch::{Refusal, read_call};
use super::options::{HANDSHAKE_BYTES_MAX, READ_AHEAD_BYTES_MAX, READ_AHEAD_BYTES_MIN};
use super::outbox::Outbox;
use super::receive::ReceiveBuffer;
use super::sessions::{Seat, Sessions};
use super::transport::{Transport, WRITE_PARTS_MAX};

/// After so many request bytes in one go the session lets the shard do something else.
const TURN_BYTES: usize = 256 << 10;

/// A closed peer is read for so many bytes more, so that it can read why before its own sending fails.
const LINGER_BYTES_MAX: usize = 1 << 20;

/// Where a connection came from.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Name of the listener that accepted it.
    pub listener: Rc<str>,
    /// Its address, for logs.
    pub address: String,
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// The peer sent all it had to, and got all its answers.
    PeerClosed,
    /// The peer was gone in the middle of a frame.
    PeerClosedMidFrame,
    /// Reading or writing failed.
    TransportFailed(io::ErrorKind),
    /// The bytes made no sense; the peer was told.
    Garbage(ErrorCode),
    /// The first request was not a handshake, or there is no version in common; the peer was told.
    HandshakeRefused,
    /// No handshake came.
    HandshakeTimeout,
    /// A frame began and did not end.
    FrameTimeout,
    /// No request for a long time.
    IdleTimeout,
    /// The peer does not take its answers.
    WriteTimeout,
    /// A produce with acks=0 failed; closing is the only answer there is.
    UnackedFailure,
    /// `connections_max` were open; the peer was told.
    TooManyConnections,
    /// The shard is stopping.
    Shutdown,
}

/// Serves a connection to its end. Dropping the future closes it at once.
///
/// The transport is closed when this returns. Memory and counters are those of `sessions`.
pub async fn serve<T: Transport, B: Backend>(
    sessions: &Sessions,
    transport: T,
    backend: Rc<B>,
    peer: Peer,
) -> SessionEnd {
    let Some(seat) = sessions.admit(&peer.address) else {
        refuse(&transport).await;
        return SessionEnd::TooManyConnections;
    };
    let session = Session {
        answers: RefCell::new(Answers::new()),
        is_reader_paused: Cell::new(false),
        is_reader_done: Cell::new(false),
        has_unacked_failure: Cell::new(false),
        seat,
        transport,
        backend,
        peer,
    };
    let end = session.run().await;
    session.seat.end(end);
    let was_told =
        matches!(end, SessionEnd::Garbage(_) | SessionEnd::HandshakeRefused | SessionEnd::Shutdown);
    if was_told && session.seat.link.closed_by.get().is_none() {
        session.linger().await;
    }
    tracing::debug!(
        connection = session.seat.link.connection,
        peer = session.peer.address,
        ?end,
        "session ended"
    );
    end
}

/// Tells a peer that there is no place for it, if that can be done without waiting.
async fn refuse<T: Transport>(transport: &T) {
    let failure = Failure::new(
        ErrorCode::Overloaded,
        "this shard has as many connections as it may have, or is stopping",
    );
    let mut frame = Vec::new();
    Encoder::default().failure(&mut frame, 0, &failure);
    let parts = [IoSlice::new(&frame)];
    let mut write = pin!(transport.write_vectored(&parts));
    // A new socket takes a few bytes at once. One that does not is not worth waiting for.
    poll_fn(|cx| Poll::Ready(write.as_mut().poll(cx).is_ready())).await;
}

struct Session<T, B: Backend> {
    seat: Seat,
    transport: T,
    backend: Rc<B>,
    peer: Peer,
    answers: RefCell<Answers<B::ProduceAck>>,
    /// The reading half waits for answers to leave.
    is_reader_paused: Cell<bool>,
    is_reader_done: Cell<bool>,
    /// A produce with acks=0 failed.
    has_unacked_failure: Cell<bool>,
}

impl<T: Transport, B: Backend> Session<T, B> {
    async fn run(&self) -> SessionEnd {
        let mut reading = pin!(self.read_requests());
        let mut writing = pin!(self.write_answers());
        let mut read_end = None;
        poll_fn(|cx| {
            let link = &self.seat.link;
            link.watch(cx.waker());
            if let Some(end) = link.closed_by.get() {
                return Poll::Ready(end);
            }
            if read_end.is_none() {
                if let Poll::Ready(end) = reading.as_mut().poll(cx) {
                    read_end = Some(end);
                    self.is_reader_done.set(true);
                    link.frame_due_since_ms.set(None);
                }
                if let Some(end @ SessionEnd::TransportFailed(_)) = read_end {
                    return Poll::Ready(end);
                }
            }
            self.answers.borrow_mut().drive(cx, self.seat.sessions.unsent());
            match writing.as_mut().poll(cx) {
                Poll::Ready(Err(end)) => Poll::Ready(end),
                Poll::Ready(Ok(())) => Poll::Ready(read_end.expect("writing ends after reading")),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    // ---- The reading half ----

    async fn read_requests(&self) -> SessionEnd {
        let mut buffer = ReceiveBuffer::new();
        let mut grant = None;
        let caller = match self.greet(&mut buffer).await {
            Ok(caller) => caller,
            Err(end) => return end,
        };
        let options = self.seat.sessions.options();
        let limits =
            FrameLimits { frame_bytes_max: options.frame_bytes_max, head_bytes_max: options.head_bytes_max };
        let mut turn_bytes = 0;
        loop {
            if self.seat.sessions.is_stopping() {
                return SessionEnd::Shutdown;
            }
            match parse_frame(buffer.unread(), &limits) {
                Err(error) => return self.answer_garbage(buffer.unread(), &error),
                Ok(Some(frame)) => {
                    let frame_bytes = frame.prefix.frame_bytes as usize;
                    if let Err(end) = self.take_request(&frame, &caller).await {
                        return end;
                    }
                    buffer.consume(frame_bytes);
                    turn_bytes += frame_bytes;
                    if turn_bytes >= TURN_BYTES {
                        turn_bytes = 0;
                        yield_once().await;
                    }
                    if buffer.unread().is_empty() && self.seat.sessions.large_frames().is_contended() {
                        self.trim(&mut buffer, &mut grant);
                    }
                }
                Ok(None) => {
                    if let Err(end) = self.receive(&mut buffer, &mut grant, &limits).await {
                        return end;
                    }
                }
            }
        }
    }

    /// Receives some bytes of the frame at the front of the buffer, and perhaps of those behind it.
    async fn receive(
        &self,
        buffer: &mut ReceiveBuffer,
        grant: &mut Option<Grant>,
        limits: &FrameLimits,
    ) -> Result<(), SessionEnd> {
        let link = &self.seat.link;
        let prefix = buffer.unread().first_chunk::<FRAME_PREFIX_BYTES>();
        let frame_bytes = prefix.map(|prefix| {
            FramePrefix::parse(prefix, limits).expect("a bad prefix was answered").frame_bytes as usize
        });
        if let Some(frame_bytes) = frame_bytes.filter(|&bytes| bytes > READ_AHEAD_BYTES_MAX)
            && grant.as_ref().is_none_or(|held| held.bytes() < frame_bytes)
        {
            // Never wait while holding: all could wait for each other. The peer is not to blame for the wait.
            *grant = None;
            link.frame_due_since_ms.set(None);
            *grant = Some(self.seat.sessions.large_frames().acquire(frame_bytes).await);
        }
        if !buffer.unread().is_empty() && link.frame_due_since_ms.get().is_none() {
            link.frame_due_since_ms.set(Some(self.seat.sessions.now_ms()));
        }
        let had_part = !buffer.unread().is_empty();
        let window = buffer.window(frame_bytes);
        let received = {
            let mut read = pin!(self.transport.read(window));
            poll_fn(|cx| {
                if link.trim_asked.get() || self.seat.sessions.is_stopping() {
                    return Poll::Ready(None);
                }
                read.as_mut().poll(cx).map(Some)
            })
            .await
        };
        match received {
            None => {
                link.trim_asked.set(false);
                self.trim(buffer, grant);
            }
            Some(Ok(0)) if had_part => return Err(SessionEnd::PeerClosedMidFrame),
            Some(Ok(0)) => return Err(SessionEnd::PeerClosed),
            Some(Ok(count)) => {
                buffer.received(count);
                link.active_ms.set(self.seat.sessions.now_ms());
                self.seat.count(|t| {
                    t.reads += 1;
                    t.received_bytes += count as u64;
                    t.moved_bytes += buffer.take_moved_bytes();
                });
            }
            Some(Err(error)) => return Err(SessionEnd::TransportFailed(error.kind())),
        }
        link.receive_buffer_bytes.set(buffer.capacity());
        Ok(())
    }

    fn trim(&self, buffer: &mut ReceiveBuffer, grant: &mut Option<Grant>) {
        if buffer.unread().is_empty() {
            buffer.trim(READ_AHEAD_BYTES_MIN);
            *grant = None;
        }
        self.seat.link.receive_buffer_bytes.set(buffer.capacity());
    }

    /// Reads the handshake and answers it.
    async fn greet(&self, buffer: &mut ReceiveBuffer) -> Result<Rc<Caller>, SessionEnd> {
        let limits =
            FrameLimits { frame_bytes_max: HANDSHAKE_BYTES_MAX, head_bytes_max: HANDSHAKE_BYTES_MAX };
        let mut grant = None;
        loop {
            if self.seat.sessions.is_stopping() {
                return Err(SessionEnd::Shutdown);
            }
            let frame = match parse_frame(buffer.unread(), &limits) {
                Err(error) => return Err(self.answer_garbage(buffer.unread(), &error)),
                Ok(None) => {
                    self.receive(buffer, &mut grant, &limits).await?;
                    continue;
                }
                Ok(Some(frame)) => frame,
            };
            let frame_bytes = frame.prefix.frame_bytes;
            let caller = self.answer_handshake(&frame)?;
            buffer.consume(frame_bytes as usize);
            self.frame_is_whole();
            return Ok(Rc::new(caller));
        }
    }

    fn answer_handshake(&self, frame: &Frame<'_>) -> Result<Caller, SessionEnd> {
        let account = self.open_account(frame.prefix.correlation_id, frame.prefix.frame_bytes, 0);
        if frame.prefix.api != Api::Handshake.number() {
            self.owe(account, Work::Failed(ErrorCode::HandshakeRequired.into()));
            return Err(SessionEnd::HandshakeRefused);
        }
        let request: HandshakeRequest = match decode(frame.head, frame.prefix.payload_bytes()) {
            Ok(request) => request,
            Err(error) => {
                self.owe(account, Work::Failed(error.failure()));
                return Err(SessionEnd::Garbage(error.failure().code));
            }
        };
        let protocol_version = choose_version(request.protocol_version_min, request.protocol_version_max);
        let is_refused = protocol_version.is_err();
        let frame = self.handshake_frame(account.correlation_id, request.features, protocol_version);
        self.owe(account, Work::Encoded(Encoded { frame, is_failure: is_refused }));
        if is_refused {
            return Err(SessionEnd::HandshakeRefused);
        }
        let link = &self.seat.link;
        link.has_greeted.set(true);
        link.client_id.borrow_mut().clone_from(&request.client_id);
        Ok(Caller {
            principal: Principal::Anonymous,
            listener: self.peer.listener.clone(),
            peer: self.peer.address.clone(),
            client_id: request.client_id,
            connection: link.connection,
        })
    }

    fn handshake_frame(
        &self,
        correlation_id: u32,
        features: Features,
        protocol_version: Result<u16, Failure>,
    ) -> Vec<u8> {
        let options = self.seat.sessions.options();
        let (node, shard) = self.backend.identity();
        let response = HandshakeResponse {
            protocol_version,
            protocol_version_min: PROTOCOL_VERSION_MIN,
            protocol_version_max: PROTOCOL_VERSION,
            features: features.common(Features::SUPPORTED),
            node,
            shard,
            software: concat!("corelog ", env!("CARGO_PKG_VERSION")).to_owned(),
            frame_bytes_max: options.frame_bytes_max,
            in_flight_bytes_max: options.in_flight_bytes_max,
            in_flight_requests_max: options.in_flight_requests_max,
            idle_timeout_ms: options.idle_timeout_ms,
        };
        let mut frame = Vec::new();
        Encoder::default().response(&mut frame, Api::Handshake, correlation_id, &response);
        frame
    }

    /// Hands one request to the backend and notes what is owed for it.
    async fn take_request(&self, frame: &Frame<'_>, caller: &Rc<Caller>) -> Result<(), SessionEnd> {
        self.frame_is_whole();
        let options = self.seat.sessions.options();
        let (correlation_id, frame_bytes) = (frame.prefix.correlation_id, frame.prefix.frame_bytes);
        self.wait_for_room(frame_bytes, 0).await;
        let call = match read_call(frame, options) {
            Ok(call) => call,
            Err(refusal) => {
                let account = self.open_account(correlation_id, frame_bytes, 0);
                let (failure, end) = match refusal {
                    Refusal::Answer(failure) => (failure, Ok(())),
                    Refusal::Close(failure) => {
                        let end = SessionEnd::Garbage(failure.code);
                        (failure, Err(end))
                    }
                };
                self.owe(account, Work::Failed(failure));
                return end;
            }
        };
        let answer_bytes = call.answer_bytes();
        self.wait_for_room(frame_bytes, answer_bytes).await;
        let account = self.open_account(correlation_id, frame_bytes, answer_bytes);
        let work = match call.authorize(&*self.backend, caller) {
            Ok(()) => call.run(&*self.backend, caller, correlation_id, frame.payload).await,
            Err(failure) => Work::Failed(failure),
        };
        if matches!(work, Work::Acking { .. }) {
            self.seat.count(|t| t.produce_bytes += frame.payload.len() as u64);
        }
        self.owe(account, work);
        Ok(())
    }

    /// Waits until another request fits below the limits. One always does.
    async fn wait_for_room(&self, request_bytes: u64, answer_bytes: u64) {
        let (link, options) = (&self.seat.link, self.seat.sessions.options());
        let has_room = || {
            let requests = link.in_flight_requests.get();
            requests == 0
                || (requests < options.in_flight_requests_max
                    && link.in_flight_bytes.get() + request_bytes <= options.in_flight_bytes_max
                    && (answer_bytes == 0
                        || link.answer_bytes.get() == 0
                        || link.answer_bytes.get() + answer_bytes <= options.answer_bytes_max))
        };
        if has_room() {
            return;
        }
        self.seat.count(|t| t.pauses += 1);
        // The writing half wakes this one, which is the same task, whenever answers have left.
        poll_fn(|_| {
            let is_paused = !has_room();
            self.is_reader_paused.set(is_paused);
            if is_paused { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    fn open_account(&self, correlation_id: u32, request_bytes: u64, answer_bytes: u64) -> Account {
        let link = &self.seat.link;
        link.in_flight_requests.set(link.in_flight_requests.get() + 1);
        link.in_flight_bytes.set(link.in_flight_bytes.get() + request_bytes);
        link.answer_bytes.set(link.answer_bytes.get() + answer_bytes);
        self.seat.count(|t| t.requests += 1);
        Account { correlation_id, request_bytes, answer_bytes, held: None }
    }

    fn close_account(&self, account: &Account) {
        let link = &self.seat.link;
        link.in_flight_requests.set(link.in_flight_requests.get() - 1);
        link.in_flight_bytes.set(link.in_flight_bytes.get() - account.request_bytes);
        link.answer_bytes.set(link.answer_bytes.get() - account.answer_bytes);
    }

    fn owe(&self, account: Account, work: Work<B::ProduceAck>) {
        self.answers.borrow_mut().push(Owed { account, work });
    }

    fn frame_is_whole(&self) {
        self.seat.link.frame_due_since_ms.set(None);
    }

    /// Owes an answer to bytes that are not a frame; returns how the session ends.
    fn answer_garbage(&self, bytes: &[u8], error: &FrameError) -> SessionEnd {
        let correlation_id = bytes.first_chunk().map_or(0, FramePrefix::correlation_id_of);
        let failure = error.failure();
        let code = failure.code;
        let account = self.open_account(correlation_id, 0, 0);
        self.owe(account, Work::Failed(failure));
        SessionEnd::Garbage(code)
    }

    // ---- The writing half ----

    /// Sends answers until reading has ended and all are sent.
    async fn write_answers(&self) -> Result<(), SessionEnd> {
        let mut outbox = Outbox::default();
        let mut accounts = Vec::new();
        let link = &self.seat.link;
        loop {
            let is_over = poll_fn(|cx| {
                self.gather(cx, &mut outbox, &mut accounts);
                let is_over = self.is_reader_done.get() && self.answers.borrow().is_empty();
                if !outbox.is_empty() {
                    Poll::Ready(Ok(false))
                } else if self.has_unacked_failure.get() {
                    Poll::Ready(Err(SessionEnd::UnackedFailure))
                } else if is_over {
                    Poll::Ready(Ok(true))
                } else {
                    Poll::Pending
                }
            })
            .await?;
            if is_over {
                return Ok(());
            }
            let holds_records =
                accounts.iter().any(|a: &Account| a.held.as_ref().is_some_and(|held| held.bytes() > 0));
            link.sending_since_ms.set(holds_records.then(|| self.seat.sessions.now_ms()));
            self.send(&mut outbox).await?;
            link.sending_since_ms.set(None);
            link.active_ms.set(self.seat.sessions.now_ms());
            accounts.drain(..).for_each(|account| self.close_account(&account));
            self.wake_paused_reader();
        }
    }

    fn wake_paused_reader(&self) {
        if self.is_reader_paused.replace(false) {
            self.seat.link.wake();
        }
    }

    /// Moves finished answers from the front of the queue into the outbox.
    fn gather(&self, cx: &mut std::task::Context<'_>, outbox: &mut Outbox, accounts: &mut Vec<Account>) {
        let mut answers = self.answers.borrow_mut();
        while !self.has_unacked_failure.get() && !outbox.is_full() {
            let Some((account, done)) = answers.poll_front(cx) else { break };
            let id = account.correlation_id;
            let (mut fetch_bytes, mut is_failure) = (0, false);
            match done {
                Done::Produced(Ok(response)) => outbox.put_produced(id, &response),
                Done::Fetched(Ok(answer)) => fetch_bytes = outbox.put_fetched(id, answer),
                Done::Produced(Err(failure)) | Done::Fetched(Err(failure)) | Done::Failed(failure) => {
                    is_failure = true;
                    outbox.put_failure(id, &failure);
                }
                Done::Encoded(encoded) => {
                    is_failure = encoded.is_failure;
                    outbox.put_frame(&encoded.frame);
                }
                Done::Silent => {
                    self.close_account(&account);
                    self.wake_paused_reader();
                    continue;
                }
                Done::SilentFailure => {
                    // What was asked before is answered first.
                    self.has_unacked_failure.set(true);
                    break;
                }
            }
            self.seat.count(|t| {
                t.fetch_bytes += fetch_bytes;
                t.failed_requests += u64::from(is_failure);
            });
            accounts.push(account);
        }
    }

    async fn send(&self, outbox: &mut Outbox) -> Result<(), SessionEnd> {
        let link = &self.seat.link;
        loop {
            let mut io = [IoSlice::new(&[]); WRITE_PARTS_MAX];
            let count = outbox.unsent(&mut io);
            link.write_stuck_since_ms.set(Some(self.seat.sessions.now_ms()));
            let written = self.transport.write_vectored(&io[..count]).await;
            link.write_stuck_since_ms.set(None);
            let written = match written {
                Ok(0) => return Err(SessionEnd::TransportFailed(io::ErrorKind::WriteZero)),
                Ok(written) => written,
                Err(error) => return Err(SessionEnd::TransportFailed(error.kind())),
            };
            self.seat.count(|t| {
                t.writes += 1;
                t.sent_bytes += written as u64;
            });
            if outbox.sent(written) {
                return Ok(());
            }
        }
    }

    // ---- The end ----

    /// Says that nothing more comes, and reads a little on: closing with unread bytes would reset the connection, and
    /// the peer would lose its last answers (acks of what it will then send again, or what was wrong).
    async fn linger(&self) {
        self.seat.link.linger_since_ms.set(Some(self.seat.sessions.now_ms()));
        let discard = async {
            if self.transport.shutdown().await.is_err() {
                return;
            }
            let mut scratch = vec![0; READ_AHEAD_BYTES_MIN];
            let mut left = LINGER_BYTES_MAX;
            while left > 0 {
                match self.transport.read(&mut scratch).await {
                    Ok(0) | Err(_) => return,
                    Ok(count) => left = left.saturating_sub(count),
                }
            }
        };
        let mut discard = pin!(discard);
        poll_fn(|cx| {
            self.seat.link.watch(cx.waker());
            if self.seat.link.closed_by.get().is_some() {
                return Poll::Ready(());
            }
            discard.as_mut().poll(cx)
        })
        .await;
    }
}

/// The newest version that both speak.
fn choose_version(client_min: u16, client_max: u16) -> Result<u16, Failure> {
    let version = client_max.min(PROTOCOL_VERSION);
    if client_min <= client_max && version >= client_min.max(PROTOCOL_VERSION_MIN) {
        return Ok(version);
    }
    let message = format!(
        "the client speaks versions {client_min} to {client_max}, this server {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}"
    );
    Err(Failure::new(ErrorCode::UnsupportedVersion, message))
}

/// Lets others run once.
async fn yield_once() {
    let mut has_yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_chosen() {
        assert_eq!(choose_version(1, 1), Ok(1));
        assert_eq!(choose_version(0, 9), Ok(PROTOCOL_VERSION));
        for (min, max) in [(0, 0), (PROTOCOL_VERSION + 1, u16::MAX), (1, 0)] {
            let failure = choose_version(min, max).expect_err("nothing in common");
            assert_eq!(failure.code, ErrorCode::UnsupportedVersion);
        }
    }
}
