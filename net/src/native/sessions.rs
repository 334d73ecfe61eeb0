//! All native sessions of one shard.
//!
//! Owns: how many there may be, their counters, the memory for large frames, and their deadlines.
//! Invariant: no clock is read and no timer is set. The shard calls [`Sessions::expire_overdue`] with the time, about
//! once a second; deadlines are that much coarser, and an idle connection costs nothing in between.
//! Not here: what a session does with bytes (`session.rs`).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::task::Waker;

use super::budget::ByteBudget;
use super::counters::{ConnectionStats, Connections, Traffic};
use super::options::{READ_AHEAD_BYTES_MIN, SLOW_PEER_MS, SessionOptions, SessionOptionsError};
use super::session::SessionEnd;
use super::unsent::UnsentBytes;

/// The sessions of a shard. Cheap to clone.
#[derive(Clone)]
pub struct Sessions(Rc<Shared>);

struct Shared {
    options: SessionOptions,
    /// Of the connections that have ended.
    ended_traffic: Cell<Traffic>,
    counts: Cell<Connections>,
    large_frames: ByteBudget,
    open: RefCell<BTreeMap<u64, Rc<Link>>>,
    next_connection: Cell<u64>,
    now_ms: Cell<u64>,
    stopping: Cell<bool>,
    unsent: UnsentBytes,
}

impl Sessions {
    /// No sessions yet. `now_ms` is any clock that does not go back, the same as for [`Sessions::expire_overdue`].
    pub fn new(options: SessionOptions, now_ms: u64) -> Result<Self, SessionOptionsError> {
        options.check()?;
        let large_frames = ByteBudget::new(options.large_frames_bytes_max);
        let unsent = UnsentBytes::new(options.unsent_bytes_max);
        Ok(Self(Rc::new(Shared {
            options,
            ended_traffic: Cell::default(),
            counts: Cell::default(),
            large_frames,
            open: RefCell::default(),
            next_connection: Cell::new(1),
            now_ms: Cell::new(now_ms),
            stopping: Cell::new(false),
            unsent,
        })))
    }

    /// The limits.
    pub fn options(&self) -> &SessionOptions {
        &self.0.options
    }

    /// Closes what is overdue, and lets idle connections give memory back. Call it about once a second.
    pub fn expire_overdue(&self, now_ms: u64) {
        self.0.now_ms.set(now_ms.max(self.0.now_ms.get()));
        let now_ms = self.0.now_ms.get();
        for link in self.0.open.borrow().values() {
            if let Some(end) = overdue(&link.waits(), &self.0.options, now_ms) {
                link.close(end);
            } else if link.receive_buffer_bytes.get() > READ_AHEAD_BYTES_MIN && link.is_resting(now_ms) {
                link.trim_asked.set(true);
                link.wake();
            }
        }
        self.close_slowest(now_ms);
    }

    /// When fetches wait because peers do not take what was read for them, the slowest of those must go.
    fn close_slowest(&self, now_ms: u64) {
        if !self.0.unsent.is_pressed() {
            return;
        }
        let open = self.0.open.borrow();
        let sending = open.values().filter_map(|link| Some((link.sending_since_ms.get()?, link)));
        if let Some((since_ms, link)) = sending.min_by_key(|(since_ms, _)| *since_ms)
            && now_ms.saturating_sub(since_ms) >= SLOW_PEER_MS
        {
            link.close(SessionEnd::WriteTimeout);
        }
    }

    /// Lets every session answer what it has read, and end. New connections are refused.
    pub fn begin_shutdown(&self) {
        self.0.stopping.set(true);
        for link in self.0.open.borrow().values() {
            link.wake();
        }
    }

    /// Ends every session now.
    pub fn close_all(&self) {
        self.0.stopping.set(true);
        for link in self.0.open.borrow().values() {
            link.close(SessionEnd::Shutdown);
        }
    }

    /// How connections began and ended.
    pub fn connections(&self) -> Connections {
        Connections { open: self.0.open.borrow().len(), ..self.0.counts.get() }
    }

    /// What all sessions did, since the start.
    pub fn traffic(&self) -> Traffic {
        let mut all = self.0.ended_traffic.get();
        self.0.open.borrow().values().for_each(|link| all.add(&link.traffic.get()));
        all
    }

    /// Memory granted to large frames now.
    pub fn large_frames_bytes(&self) -> usize {
        self.0.large_frames.used_bytes()
    }

    /// Record bytes that were read for peers and that they have not taken.
    pub fn unsent_bytes(&self) -> u64 {
        self.0.unsent.bytes()
    }

    /// Every open connection.
    pub fn connection_stats(&self) -> Vec<ConnectionStats> {
        self.0.open.borrow().values().map(|link| link.stats()).collect()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.0.stopping.get()
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.0.now_ms.get()
    }

    pub(crate) fn unsent(&self) -> &UnsentBytes {
        &self.0.unsent
    }

    pub(crate) fn large_frames(&self) -> &ByteBudget {
        &self.0.large_frames
    }

    /// A place for a new connection, if there is one.
    pub(crate) fn admit(&self, peer: &str) -> Option<Seat> {
        let is_full = self.0.open.borrow().len() >= self.0.options.connections_max;
        let mut counts = self.0.counts.get();
        if is_full || self.is_stopping() {
            counts.refused += 1;
            self.0.counts.set(counts);
            return None;
        }
        counts.accepted += 1;
        self.0.counts.set(counts);
        let connection = self.0.next_connection.get();
        self.0.next_connection.set(connection + 1);
        let link = Rc::new(Link::new(connection, peer, self.now_ms()));
        self.0.open.borrow_mut().insert(connection, link.clone());
        Some(Seat { sessions: self.clone(), link })
    }

    fn count_end(&self, end: SessionEnd) {
        let mut counts = self.0.counts.get();
        match end {
            SessionEnd::Garbage(_) | SessionEnd::HandshakeRefused => counts.garbage += 1,
            SessionEnd::HandshakeTimeout
            | SessionEnd::FrameTimeout
            | SessionEnd::IdleTimeout
            | SessionEnd::WriteTimeout => counts.timed_out += 1,
            SessionEnd::PeerClosedMidFrame | SessionEnd::TransportFailed(_) => counts.broken += 1,
            SessionEnd::PeerClosed
            | SessionEnd::UnackedFailure
            | SessionEnd::TooManyConnections
            | SessionEnd::Shutdown => {}
        }
        self.0.counts.set(counts);
    }
}

/// A connection's place among the sessions; free again when dropped.
pub(crate) struct Seat {
    pub(crate) sessions: Sessions,
    pub(crate) link: Rc<Link>,
}

impl Seat {
    pub(crate) fn count(&self, change: impl FnOnce(&mut Traffic)) {
        let mut traffic = self.link.traffic.get();
        change(&mut traffic);
        self.link.traffic.set(traffic);
    }

    pub(crate) fn end(&self, end: SessionEnd) {
        self.sessions.count_end(end);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut ended = self.sessions.0.ended_traffic.get();
        ended.add(&self.link.traffic.get());
        self.sessions.0.ended_traffic.set(ended);
        self.sessions.0.open.borrow_mut().remove(&self.link.connection);
    }
}

/// What a session shares with the shard's view of it. Cells: all on one core, none held across an await.
pub(crate) struct Link {
    pub(crate) connection: u64,
    peer: String,
    pub(crate) client_id: RefCell<String>,
    traffic: Cell<Traffic>,
    waker: RefCell<Option<Waker>>,
    pub(crate) in_flight_requests: Cell<u32>,
    pub(crate) in_flight_bytes: Cell<u64>,
    pub(crate) answer_bytes: Cell<u64>,
    pub(crate) receive_buffer_bytes: Cell<usize>,
    pub(crate) has_greeted: Cell<bool>,
    pub(crate) opened_ms: u64,
    /// When the last byte came, or the last answer left.
    pub(crate) active_ms: Cell<u64>,
    /// Since when the peer owes the rest of a frame, while we are ready to read it.
    pub(crate) frame_due_since_ms: Cell<Option<u64>>,
    /// Since when the peer has taken nothing of what we want to write.
    pub(crate) write_stuck_since_ms: Cell<Option<u64>>,
    /// Since when the peer has been at the batch of answers that is being sent, if it holds records.
    pub(crate) sending_since_ms: Cell<Option<u64>>,
    /// Since when the session lingers, so that the peer can read why it was closed.
    pub(crate) linger_since_ms: Cell<Option<u64>>,
    pub(crate) trim_asked: Cell<bool>,
    pub(crate) closed_by: Cell<Option<SessionEnd>>,
}

impl Link {
    fn new(connection: u64, peer: &str, now_ms: u64) -> Self {
        Self {
            connection,
            peer: peer.to_owned(),
            client_id: RefCell::default(),
            traffic: Cell::default(),
            waker: RefCell::new(None),
            in_flight_requests: Cell::new(0),
            in_flight_bytes: Cell::new(0),
            answer_bytes: Cell::new(0),
            receive_buffer_bytes: Cell::new(0),
            has_greeted: Cell::new(false),
            opened_ms: now_ms,
            active_ms: Cell::new(now_ms),
            frame_due_since_ms: Cell::new(None),
            write_stuck_since_ms: Cell::new(None),
            sending_since_ms: Cell::new(None),
            linger_since_ms: Cell::new(None),
            trim_asked: Cell::new(false),
            closed_by: Cell::new(None),
        }
    }

    /// Remembers whom to wake.
    pub(crate) fn watch(&self, waker: &Waker) {
        let mut known = self.waker.borrow_mut();
        if known.as_ref().is_none_or(|known| !known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }

    pub(crate) fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    fn close(&self, end: SessionEnd) {
        self.closed_by.set(Some(end));
        self.wake();
    }

    /// Nothing under way and nothing heard since the last sweep but one.
    fn is_resting(&self, now_ms: u64) -> bool {
        self.in_flight_requests.get() == 0
            && self.frame_due_since_ms.get().is_none()
            && now_ms.saturating_sub(self.active_ms.get()) >= REST_MS
    }

    fn waits(&self) -> Waits {
        Waits {
            opened_ms: self.opened_ms,
            has_greeted: self.has_greeted.get(),
            is_idle: self.in_flight_requests.get() == 0,
            active_ms: self.active_ms.get(),
            frame_due_since_ms: self.frame_due_since_ms.get(),
            write_stuck_since_ms: self.write_stuck_since_ms.get(),
            linger_since_ms: self.linger_since_ms.get(),
        }
    }

    fn stats(&self) -> ConnectionStats {
        ConnectionStats {
            connection: self.connection,
            peer: self.peer.clone(),
            client_id: self.client_id.borrow().clone(),
            in_flight_requests: self.in_flight_requests.get(),
            in_flight_bytes: self.in_flight_bytes.get(),
            receive_buffer_bytes: self.receive_buffer_bytes.get(),
            traffic: self.traffic.get(),
        }
    }
}

/// A connection that is silent for so long gives back the memory of its last burst.
const REST_MS: u64 = 2_000;

/// How long a closed peer may take to read why.
const LINGER_MS: u64 = 2_000;

/// What a session waits for, and since when.
#[derive(Clone, Copy, Debug)]
struct Waits {
    opened_ms: u64,
    has_greeted: bool,
    is_idle: bool,
    active_ms: u64,
    frame_due_since_ms: Option<u64>,
    write_stuck_since_ms: Option<u64>,
    linger_since_ms: Option<u64>,
}

/// Whether a session has waited too long, and for what.
fn overdue(waits: &Waits, options: &SessionOptions, now_ms: u64) -> Option<SessionEnd> {
    let is_past = |since: Option<u64>, timeout_ms: u64| {
        since.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= timeout_ms)
    };
    if is_past(waits.linger_since_ms, LINGER_MS) {
        return Some(SessionEnd::PeerClosed);
    }
    if !waits.has_greeted && is_past(Some(waits.opened_ms), options.handshake_timeout_ms) {
        return Some(SessionEnd::HandshakeTimeout);
    }
    if is_past(waits.write_stuck_since_ms, options.write_timeout_ms) {
        return Some(SessionEnd::WriteTimeout);
    }
    if is_past(waits.frame_due_since_ms, options.frame_timeout_ms) {
        return Some(SessionEnd::FrameTimeout);
    }
    let can_idle_out = options.idle_timeout_ms > 0 && waits.is_idle && waits.frame_due_since_ms.is_none();
    (can_idle_out && is_past(Some(waits.active_ms), options.idle_timeout_ms))
        .then_some(SessionEnd::IdleTimeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Waits = Waits {
        opened_ms: 0,
        has_greeted: true,
        is_idle: false,
        active_ms: 0,
        frame_due_since_ms: None,
        write_stuck_since_ms: None,
        linger_since_ms: None,
    };

    #[test]
    fn every_wait_has_its_end() {
        let options = SessionOptions {
            handshake_timeout_ms: 10,
            frame_timeout_ms: 20,
            write_timeout_ms: 30,
            idle_timeout_ms: 40,
            ..SessionOptions::default()
        };
        let check = |waits: Waits, due_ms: u64, expected: SessionEnd| {
            assert_eq!(overdue(&waits, &options, due_ms - 1), None, "{waits:?}");
            assert_eq!(overdue(&waits, &options, due_ms), Some(expected), "{waits:?}");
        };
        check(Waits { has_greeted: false, ..CALM }, 10, SessionEnd::HandshakeTimeout);
        check(Waits { frame_due_since_ms: Some(5), is_idle: true, ..CALM }, 25, SessionEnd::FrameTimeout);
        check(Waits { write_stuck_since_ms: Some(5), ..CALM }, 35, SessionEnd::WriteTimeout);
        check(Waits { is_idle: true, active_ms: 7, ..CALM }, 47, SessionEnd::IdleTimeout);
        check(Waits { linger_since_ms: Some(1), ..CALM }, 1 + LINGER_MS, SessionEnd::PeerClosed);
        assert_eq!(overdue(&CALM, &options, u64::MAX), None, "a long poll is waited for");
        let options = SessionOptions { idle_timeout_ms: 0, ..options };
        assert_eq!(overdue(&Waits { is_idle: true, ..CALM }, &options, u64::MAX), None, "0: never");
    }
}
