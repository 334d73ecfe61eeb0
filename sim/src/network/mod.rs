//! A network that behaves as badly as TCP allows, from the executor's seed.
//!
//! Owns: machines, who listens, what is cut or slow, connections (`pipe.rs` has one direction of one).
//! Invariant: a connection carries whole messages in order, or breaks; nothing is lost in the middle, changed or repeated.
//! Cut: packets from one machine to another do not arrive. What was sent waits, as TCP sends again, and the sender
//! gives up after `retransmit_ms`; who only receives is told nothing (half-open).
//! A process that dies closes or resets its connections. A machine without power says nothing at all; once it is
//! back, what reaches an old connection of it is answered with a reset.
//! A process that stands still (SIGSTOP) is still accepted for by its kernel, up to the backlog and the window.

mod pipe;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::{Rc, Weak};
use std::time::Duration;

use corelog_engine::notify::Notify;

use crate::executor::Handle;
use pipe::Pipe;

/// A place in the network: one node's machine, or one client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Machine(pub u32);

/// Where somebody may listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// On which machine.
    pub machine: Machine,
    /// At which port.
    pub port: u16,
}

/// What connections carry.
pub trait Parcel: 'static {
    /// Its size, for the window.
    fn bytes(&self) -> usize;
}

/// How a network behaves.
#[derive(Clone, Debug)]
pub struct SimNetworkOptions {
    /// A message takes 20 to this many virtual microseconds; one in fifty takes up to a hundred times as long.
    pub latency_us_max: u64,
    /// Who connects to a machine that does not answer gives up after this long.
    pub connect_timeout_ms: u64,
    /// A sender whose bytes are not acknowledged for this long gives the connection up.
    pub retransmit_ms: u64,
    /// Bytes sent and not read, above which the sender waits.
    pub window_bytes: usize,
    /// Connections that wait to be accepted; more are refused.
    pub backlog: usize,
}

impl Default for SimNetworkOptions {
    fn default() -> Self {
        Self {
            latency_us_max: 200,
            connect_timeout_ms: 2_000,
            retransmit_ms: 10_000,
            window_bytes: 256 << 10,
            backlog: 128,
        }
    }
}

/// Why a connection carries nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The other side closed it; all that it sent before was received.
    #[error("closed by the peer")]
    Closed,
    /// The other side, or its kernel, reset it.
    #[error("reset by the peer")]
    Reset,
    /// What was sent was not acknowledged.
    #[error("timed out")]
    TimedOut,
    /// This side closed it.
    #[error("closed here")]
    ClosedHere,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unconnected {
    /// The machine answers, and nobody listens.
    #[error("refused")]
    Refused,
    /// Nobody answers.
    #[error("timed out")]
    TimedOut,
}

/// A simulated network. Cheap to clone; all clones are one network.
pub struct SimNetwork<M: Parcel>(Rc<Shared<M>>);

struct Shared<M: Parcel> {
    handle: Handle,
    options: SimNetworkOptions,
    listeners: RefCell<BTreeMap<Address, Weak<Queue<M>>>>,
    links: RefCell<Links>,
    pipes: RefCell<Vec<Weak<Pipe<M>>>>,
    next_connection: Cell<u64>,
}

/// What is wrong with the network now.
#[derive(Default)]
struct Links {
    cut: BTreeSet<(Machine, Machine)>,
    slow_us: BTreeMap<(Machine, Machine), u64>,
    off: BTreeSet<Machine>,
}

impl Links {
    fn is_cut(&self, from: Machine, to: Machine) -> bool {
        self.cut.contains(&(from, to)) || self.off.contains(&from) || self.off.contains(&to)
    }
}

struct Queue<M: Parcel> {
    waiting: RefCell<VecDeque<Connection<M>>>,
    changed: Notify,
}

/// Somebody who listens. Dropping it refuses who comes, and resets who waits.
pub struct Listener<M: Parcel>(Rc<Queue<M>>);

/// One end of a connection. Dropping it closes the connection.
pub struct Connection<M: Parcel> {
    number: u64,
    peer: Machine,
    outgoing: Rc<Pipe<M>>,
    incoming: Rc<Pipe<M>>,
}

impl<M: Parcel> Clone for SimNetwork<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Parcel> SimNetwork<M> {
    /// A network without faults whose chance and time come from `handle`.
    pub fn new(handle: Handle, options: SimNetworkOptions) -> Self {
        Self(Rc::new(Shared {
            handle,
            options,
            listeners: RefCell::default(),
            links: RefCell::default(),
            pipes: RefCell::default(),
            next_connection: Cell::new(1),
        }))
    }

    /// Listens at an address.
    ///
    /// # Panics
    /// If somebody does already.
    pub fn listen(&self, at: Address) -> Listener<M> {
        let queue = Rc::new(Queue { waiting: RefCell::default(), changed: Notify::default() });
        let before = self.0.listeners.borrow_mut().insert(at, Rc::downgrade(&queue));
        assert!(before.is_none_or(|queue| queue.strong_count() == 0), "{at:?} is in use");
        Listener(queue)
    }

    /// Connects; ready when the other kernel has accepted.
    ///
    /// Cancel: the other side may see a connection that is closed at once.
    pub async fn connect(&self, from: Machine, to: Address) -> Result<Connection<M>, Unconnected> {
        let give_up_us = self.0.handle.now_us() + self.0.options.connect_timeout_ms * 1000;
        let mut wait_us = 200_000;
        loop {
            let round_trip_us = self.latency_us(from, to.machine) + self.latency_us(to.machine, from);
            self.0.handle.sleep(Duration::from_micros(round_trip_us)).await;
            let lost = {
                let links = self.0.links.borrow();
                links.is_cut(from, to.machine) || links.is_cut(to.machine, from)
            };
            if !lost {
                return self.accept(from, to).ok_or(Unconnected::Refused);
            }
            // The kernel sends its request again, each time after twice as long.
            let now_us = self.0.handle.now_us();
            if now_us >= give_up_us {
                return Err(Unconnected::TimedOut);
            }
            self.0.handle.sleep(Duration::from_micros(wait_us.min(give_up_us - now_us))).await;
            wait_us *= 2;
        }
    }

    fn accept(&self, from: Machine, to: Address) -> Option<Connection<M>> {
        let queue = self.0.listeners.borrow().get(&to)?.upgrade()?;
        if queue.waiting.borrow().len() >= self.0.options.backlog {
            return None;
        }
        let number = self.0.next_connection.get();
        self.0.next_connection.set(number + 1);
        let there = Pipe::new(self, from, to.machine);
        let back = Pipe::new(self, to.machine, from);
        there.set_reverse(&back);
        back.set_reverse(&there);
        {
            let mut pipes = self.0.pipes.borrow_mut();
            pipes.retain(|pipe| pipe.strong_count() > 0);
            pipes.extend([Rc::downgrade(&there), Rc::downgrade(&back)]);
        }
        let served = Connection { number, peer: from, outgoing: back.clone(), incoming: there.clone() };
        queue.waiting.borrow_mut().push_back(served);
        queue.changed.notify_all();
        self.0.handle.note(format_args!("net {number} {} to {}:{}", from.0, to.machine.0, to.port));
        Some(Connection { number, peer: to.machine, outgoing: there, incoming: back })
    }

    /// Loses all that is sent from one machine to another, until it is healed.
    pub fn cut(&self, from: Machine, to: Machine) {
        self.0.links.borrow_mut().cut.insert((from, to));
    }

    /// Ends a cut.
    pub fn heal(&self, from: Machine, to: Machine) {
        self.0.links.borrow_mut().cut.remove(&(from, to));
        self.pump_all();
    }

    /// Ends all cuts and slowness.
    pub fn heal_all(&self) {
        {
            let mut links = self.0.links.borrow_mut();
            links.cut.clear();
            links.slow_us.clear();
        }
        self.pump_all();
    }

    /// Makes everything from one machine to another take this much longer (0: as before).
    pub fn slow(&self, from: Machine, to: Machine, us: u64) {
        self.0.links.borrow_mut().slow_us.insert((from, to), us);
    }

    /// Whether packets from one machine to another are lost.
    pub fn is_cut(&self, from: Machine, to: Machine) -> bool {
        self.0.links.borrow().is_cut(from, to)
    }

    /// The process of a machine is dead: its kernel closes its connections and listens for nobody.
    pub fn end_process(&self, machine: Machine) {
        self.0.listeners.borrow_mut().retain(|at, _| at.machine != machine);
        for pipe in self.pipes() {
            if pipe.is_from(machine) {
                pipe.close_sender();
            }
        }
    }

    /// Takes the power of a machine away: it answers nothing, and nobody is told. The caller kills its process after.
    pub fn power_off(&self, machine: Machine) {
        self.0.links.borrow_mut().off.insert(machine);
        for pipe in self.pipes() {
            pipe.lose_machine(machine);
        }
    }

    /// The machine answers again; its old connections are unknown to it.
    pub fn power_on(&self, machine: Machine) {
        self.0.links.borrow_mut().off.remove(&machine);
        self.pump_all();
    }

    /// Resets all connections between two machines, told to both ends, or to one alone (half-open).
    pub fn reset(&self, a: Machine, b: Machine, told: Told) {
        for pipe in self.pipes() {
            let is_between = pipe.goes(a, b) || pipe.goes(b, a);
            if is_between && (told == Told::Both || pipe.goes(a, b)) {
                pipe.reset_sender(Broken::Reset);
            }
        }
    }

    fn pipes(&self) -> Vec<Rc<Pipe<M>>> {
        self.0.pipes.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    fn pump_all(&self) {
        for pipe in self.pipes() {
            pipe.pump();
        }
    }

    fn latency_us(&self, from: Machine, to: Machine) -> u64 {
        let handle = &self.0.handle;
        let mut us = handle.random(20..self.0.options.latency_us_max.max(21));
        if handle.one_in(50) {
            us *= handle.random(1..100);
        }
        us + self.0.links.borrow().slow_us.get(&(from, to)).copied().unwrap_or(0)
    }
}

/// Who learns of a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Both ends.
    Both,
    /// Only the ends on the first machine: the other keeps half a connection.
    First,
}

impl<M: Parcel> Listener<M> {
    /// The next connection.
    ///
    /// Cancel: loses nothing.
    pub async fn accept(&self) -> Connection<M> {
        loop {
            let changed = self.0.changed.notified();
            if let Some(connection) = self.0.waiting.borrow_mut().pop_front() {
                return connection;
            }
            changed.await;
        }
    }
}

impl<M: Parcel> Connection<M> {
    /// Number of the connection, the same at both ends.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Machine {
        self.peer
    }

    /// Sends a message; ready when this side's kernel has taken it.
    pub async fn send(&self, parcel: M) -> Result<(), Broken> {
        self.outgoing.send(parcel).await
    }

    /// The next message.
    ///
    /// Cancel: loses nothing.
    pub async fn recv(&self) -> Result<M, Broken> {
        self.incoming.recv().await
    }

    /// Closes it both ways; what was sent before still arrives.
    pub fn close(&self) {
        self.outgoing.close_sender();
    }
}

impl<M: Parcel> Drop for Connection<M> {
    fn drop(&mut self) {
        self.close();
    }
}
