//! What streams need of the world: connections, tasks, time, and somebody to report to.
//!
//! Owns: the two traits and their contract. The server implements them on glommio and TCP, the simulation on its
//! executor and network.

use std::future::Future;
use std::ops::Deref;
use std::rc::Rc;

use corelog_engine::TimestampMs;
use corelog_engine::buffer::DmaSlice;
use corelog_schemas::DecodeError;
use corelog_schemas::FrameError;
use corelog_schemas::messages::StreamMessage;

use crate::assignment::Report;
use crate::cluster::{Endpoint, Incarnation};
use crate::replica::NodeId;

/// One connection between two shards: whole messages, in order, both ways.
///
/// At most one `send` and one `recv` are under way at a time, from two tasks, so one must not block the other.
/// Neither future is dropped before it is ready, except with the link itself.
pub trait Link: 'static {
    /// The payload of a message that was received, in one piece: batches go from here into the tail of their log,
    /// which is the one copy. Given back to the link, or freed, when dropped.
    type Payload: Deref<Target = [u8]> + 'static;

    /// Sends a message, `payload` behind its head (all of [`StreamMessage::payload_bytes`]), without copying the
    /// payload. Ready when the transport has taken everything; what is sent one after the other need not leave
    /// at once, but must not wait for a timer.
    fn send(
        &self,
        message: &StreamMessage,
        payload: &[DmaSlice],
    ) -> impl Future<Output = Result<(), LinkError>>;

    /// The next message, verified. Empty payload for messages without.
    fn recv(&self) -> impl Future<Output = Result<(StreamMessage, Self::Payload), LinkError>>;

    /// Ends the connection both ways, at once. What is under way or called later fails with [`LinkError::Closed`].
    fn close(&self);
}

/// Why a link carries nothing any more. Close it; the follower connects again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Closed by this side, or by the peer between two messages.
    #[error("the connection was closed")]
    Closed,
    /// It broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The peer sent what is not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer sent a frame that is not a message.
    #[error(transparent)]
    Message(#[from] DecodeError),
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The host answers, and nobody listens there (ECONNREFUSED): evidence that the process has ended.
    #[error("connection refused")]
    Refused,
    /// Nobody answers, the name is not known, or anything else: says nothing about the process.
    #[error("cannot connect: {0}")]
    Unreachable(String),
}

/// How urgent a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// A produce waits for it: the same as sessions of clients.
    Stream,
    /// Catching up, repair, scrubbing.
    Background,
}

/// The shard on which streams run. Cheap to clone; all clones are the same shard.
pub trait Host: Clone + 'static {
    /// Its connections.
    type Link: Link;

    /// Milliseconds of a clock that never steps. For limits in time, not for safety.
    fn now_ms(&self) -> u64;

    /// The time of day.
    fn wall(&self) -> TimestampMs;

    /// Runs a task on this shard. Every task ends soon after `Replicas::stop`.
    fn spawn(&self, task: impl Future<Output = ()> + 'static, priority: Priority);

    /// Ready after that time.
    fn sleep(&self, ms: u64) -> impl Future<Output = ()>;

    /// Connects to the replication port of a shard, giving up within a few seconds.
    fn connect(&self, to: &Endpoint) -> impl Future<Output = Result<Self::Link, ConnectError>>;

    /// Tells whoever talks to the coordination service. Never blocks; a report of the same kind about the same thing
    /// replaces one that is still queued.
    fn report(&self, report: Report);
}

/// Who this shard is, for its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster; a peer of another one is turned away.
    pub cluster_id: Rc<str>,
    /// The node.
    pub node: NodeId,
    /// The shard of it.
    pub shard: u16,
    /// This start of the node.
    pub incarnation: Incarnation,
}
