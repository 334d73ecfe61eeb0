//! One connection, whichever end: what both sides need of it.
//!
//! Owns: the link, when something was last sent and received, and the list of places with something to send. One
//! task writes, one reads; whoever has something to say queues it and wakes the writer.
//! Invariant: after `close` nothing is sent or received any more, and both tasks end.

use std::cell::Cell;
use std::rc::Rc;

use corelog_engine::buffer::DmaSlice;
use corelog_schemas::messages::StreamMessage;

use super::dirty::DirtyList;
use super::link::{Host, Link, LinkError};
use super::ranges::Ranges;

pub(crate) struct Session<H: Host> {
    host: H,
    link: H::Link,
    /// Places with something to send; wakes the writer.
    pub(super) dirty: Rc<DirtyList>,
    /// Ranges for repair, either way.
    pub(super) ranges: Ranges,
    is_closed: Cell<bool>,
    heartbeat_is_due: Cell<bool>,
    last_sent_ms: Cell<u64>,
    last_received_ms: Cell<u64>,
}

impl<H: Host> Session<H> {
    pub(crate) fn new(host: H, link: H::Link, dirty: Rc<DirtyList>) -> Self {
        let now_ms = host.now_ms();
        Self {
            host,
            link,
            dirty,
            ranges: Ranges::default(),
            is_closed: Cell::new(false),
            heartbeat_is_due: Cell::new(false),
            last_sent_ms: Cell::new(now_ms),
            last_received_ms: Cell::new(now_ms),
        }
    }

    /// Ends it, both ways.
    pub(crate) fn close(&self) {
        if !self.is_closed.replace(true) {
            self.link.close();
            self.ranges.close();
            self.dirty.wake();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// Sends a message; an error ends the session.
    pub(super) async fn send(&self, message: &StreamMessage, payload: &[DmaSlice]) -> Result<(), LinkError> {
        self.heartbeat_is_due.set(false);
        let sent = self.link.send(message, payload).await;
        self.last_sent_ms.set(self.host.now_ms());
        sent.inspect_err(|_| self.close())
    }

    /// The next message; an error ends the session.
    pub(super) async fn recv(&self) -> Result<Received<H>, LinkError> {
        let received = if self.is_closed() { Err(LinkError::Closed) } else { self.link.recv().await };
        self.last_received_ms.set(self.host.now_ms());
        received.inspect_err(|_| self.close())
    }

    /// Looks at the time: asks the writer for a sign of life, gives a silent peer up.
    pub(crate) fn tick(&self, now_ms: u64, heartbeat_ms: u64, silence_ms_max: u64) {
        if now_ms.saturating_sub(self.last_received_ms.get()) > silence_ms_max {
            self.close();
        } else if now_ms.saturating_sub(self.last_sent_ms.get()) >= heartbeat_ms {
            self.heartbeat_is_due.set(true);
            self.dirty.wake();
        }
    }

    /// Whether a sign of life is due.
    pub(super) fn heartbeat_is_due(&self) -> bool {
        self.heartbeat_is_due.get()
    }
}

/// A message with its payload.
pub(super) type Received<H> = (StreamMessage, <<H as Host>::Link as Link>::Payload);
