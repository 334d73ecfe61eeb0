//! A replication stream's connection on TCP: messages in frames.
//!
//! Owns: the way from a message to a frame and back, and the end of a connection on request.
//! Invariant: what a peer sends is verified before a byte of it is believed; what is wrong ends the connection alone.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use corelog_engine::buffer::DmaSlice;
use corelog_replication::stream::{Link, LinkError, STREAM_FRAME_LIMITS, StreamMessage};
use corelog_schemas::Encoder;

use super::super::transport::TcpTransport;
use super::frames::{Frames, FramesError};
use super::traffic::Traffic;

/// One connection to a shard of another node.
pub(in super::super) struct TcpLink {
    frames: Frames<TcpTransport>,
    encoder: RefCell<Encoder>,
    is_closed: Cell<bool>,
    traffic: Rc<Traffic>,
}

impl TcpLink {
    /// Takes a connection over; its bytes are counted in `traffic`.
    pub(super) fn new(transport: TcpTransport, traffic: Rc<Traffic>) -> Self {
        traffic.opened();
        let frames = Frames::new(transport, STREAM_FRAME_LIMITS);
        Self { frames, encoder: RefCell::default(), is_closed: Cell::new(false), traffic }
    }

    fn error(&self, error: FramesError) -> LinkError {
        match error {
            FramesError::Closed => LinkError::Closed,
            // It broke because it was closed here.
            FramesError::Io(_) if self.is_closed.get() => LinkError::Closed,
            FramesError::Io(error) => LinkError::Broken(error.to_string()),
            FramesError::Frame(error) => LinkError::Frame(error),
        }
    }
}

impl Link for TcpLink {
    type Payload = Bytes;

    async fn send(&self, message: &StreamMessage, payload: &[DmaSlice]) -> Result<(), LinkError> {
        if self.is_closed.get() {
            return Err(LinkError::Closed);
        }
        let encode = |out: &mut Vec<u8>| message.encode(&mut self.encoder.borrow_mut(), out);
        let sent = self.frames.send(encode, payload).await.map_err(|error| self.error(error))?;
        self.traffic.sent(sent);
        Ok(())
    }

    async fn recv(&self) -> Result<(StreamMessage, Bytes), LinkError> {
        if self.is_closed.get() {
            return Err(LinkError::Closed);
        }
        let frame = self.frames.receive().await.map_err(|error| self.error(error))?;
        self.traffic.received(frame.prefix.frame_bytes);
        let message = StreamMessage::decode(frame.prefix.api, &frame.head, frame.payload.len() as u64)?;
        Ok((message, frame.payload))
    }

    fn close(&self) {
        if !self.is_closed.replace(true) {
            self.frames.transport().close();
        }
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.traffic.closed();
    }
}
