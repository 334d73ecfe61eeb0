//! What the replication code needs of the world, simulated: time, tasks, links.
//!
//! Owns: the clocks of a machine, and frames on simulated connections (the real codec, both ways).
//! Invariant: the monotonic clock of a machine never steps, whatever its wall clock does; it may be a little fast or slow.

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;
use std::time::Duration;

use corelog_engine::TimestampMs;
use corelog_engine::buffer::DmaSlice;
use corelog_replication::Report;
use corelog_replication::cluster::Endpoint;
use corelog_replication::stream::{
    ConnectError, Host, Link, LinkError, Priority, STREAM_FRAME_LIMITS, StreamMessage,
};
use corelog_schemas::{Encoder, parse_frame};

use super::packet::Packet;
use crate::executor::Handle;
use crate::network::{Address, Broken, Connection, Machine, SimNetwork, Unconnected};

/// The clocks of one machine.
pub struct MachineClock {
    /// How fast its seconds pass, in thousandths.
    rate: u64,
    wall_offset_ms: Cell<i64>,
}

/// Wall clock of every machine at the start.
const WALL_START_MS: i64 = 1_800_000_000_000;

impl MachineClock {
    /// A clock that runs at `rate` thousandths of true time.
    pub fn new(rate: u64) -> Self {
        Self { rate, wall_offset_ms: Cell::new(0) }
    }

    /// Steps the wall clock.
    pub fn step_wall(&self, ms: i64) {
        self.wall_offset_ms.set(self.wall_offset_ms.get() + ms);
    }

    /// Milliseconds of its monotonic clock.
    pub fn now_ms(&self, handle: &Handle) -> u64 {
        handle.now_us() * self.rate / 1_000_000
    }

    /// Ready after that time on this clock.
    pub async fn sleep(&self, handle: &Handle, ms: u64) {
        handle.sleep(Duration::from_micros(ms.saturating_mul(1_000_000) / self.rate)).await;
    }

    /// The time of day there.
    pub fn wall(&self, handle: &Handle) -> TimestampMs {
        TimestampMs(WALL_START_MS + self.now_ms(handle) as i64 + self.wall_offset_ms.get())
    }
}

/// One shard of one process. Cheap to clone.
#[derive(Clone)]
pub(super) struct SimHost(Rc<Shard>);

struct Shard {
    handle: Handle,
    machine: Machine,
    clock: Rc<MachineClock>,
    network: SimNetwork<Packet>,
    report: Box<dyn Fn(Report)>,
}

impl SimHost {
    /// A shard whose tasks run in `handle`'s group and whose reports go to `report`.
    pub(super) fn new(
        handle: Handle,
        machine: Machine,
        clock: Rc<MachineClock>,
        network: SimNetwork<Packet>,
        report: impl Fn(Report) + 'static,
    ) -> Self {
        Self(Rc::new(Shard { handle, machine, clock, network, report: Box::new(report) }))
    }
}

impl Host for SimHost {
    type Link = SimLink;

    fn now_ms(&self) -> u64 {
        self.0.clock.now_ms(&self.0.handle)
    }

    fn wall(&self) -> TimestampMs {
        self.0.clock.wall(&self.0.handle)
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static, _priority: Priority) {
        self.0.handle.spawn(task);
    }

    async fn sleep(&self, ms: u64) {
        self.0.clock.sleep(&self.0.handle, ms).await;
    }

    async fn connect(&self, to: &Endpoint) -> Result<SimLink, ConnectError> {
        let to = address_of(to).ok_or_else(|| ConnectError::Unreachable(format!("no host {}", to.host)))?;
        match self.0.network.connect(self.0.machine, to).await {
            Ok(connection) => Ok(SimLink::new(connection)),
            Err(Unconnected::Refused) => Err(ConnectError::Refused),
            Err(Unconnected::TimedOut) => Err(ConnectError::Unreachable("timed out".to_owned())),
        }
    }

    fn report(&self, report: Report) {
        (self.0.report)(report);
    }
}

/// The name of a machine in endpoints.
pub(super) fn host_name(machine: Machine) -> String {
    format!("machine-{}", machine.0)
}

fn address_of(endpoint: &Endpoint) -> Option<Address> {
    let machine = endpoint.host.strip_prefix("machine-")?.parse().ok()?;
    Some(Address { machine: Machine(machine), port: endpoint.port })
}

/// A replication stream over a simulated connection.
pub(super) struct SimLink {
    connection: Connection<Packet>,
    encoder: RefCell<Encoder>,
}

impl SimLink {
    /// The stream on a connection.
    pub(super) fn new(connection: Connection<Packet>) -> Self {
        Self { connection, encoder: RefCell::default() }
    }
}

/// What follows the head of a frame.
pub(super) struct FramePayload {
    frame: Vec<u8>,
    at: usize,
}

impl Deref for FramePayload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.frame[self.at..]
    }
}

impl Link for SimLink {
    type Payload = FramePayload;

    async fn send(&self, message: &StreamMessage, payload: &[DmaSlice]) -> Result<(), LinkError> {
        let mut frame = Vec::new();
        message.encode(&mut self.encoder.borrow_mut(), &mut frame);
        for slice in payload {
            frame.extend_from_slice(slice);
        }
        self.connection.send(Packet::Frame(frame)).await.map_err(broken)
    }

    async fn recv(&self) -> Result<(StreamMessage, FramePayload), LinkError> {
        let frame = match self.connection.recv().await.map_err(broken)? {
            Packet::Frame(frame) => frame,
            Packet::Request(_) | Packet::Response(_) => {
                return Err(LinkError::Broken("not a replication stream".to_owned()));
            }
        };
        let (message, at) = {
            let parsed = parse_frame(&frame, &STREAM_FRAME_LIMITS)?.expect("a packet is a whole frame");
            let payload_bytes = parsed.payload.len();
            let message = StreamMessage::decode(parsed.prefix.api, parsed.head, payload_bytes as u64)?;
            (message, frame.len() - payload_bytes)
        };
        Ok((message, FramePayload { frame, at }))
    }

    fn close(&self) {
        self.connection.close();
    }
}

fn broken(why: Broken) -> LinkError {
    match why {
        Broken::Closed | Broken::ClosedHere => LinkError::Closed,
        Broken::Reset | Broken::TimedOut => LinkError::Broken(why.to_string()),
    }
}
