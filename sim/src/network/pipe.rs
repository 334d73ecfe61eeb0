//! One direction of one connection.
//!
//! Owns: what was sent and has not arrived, what has arrived and was not read, how either end is broken.
//! Invariant: messages arrive in the order of sending, each at its own time but never before one sent earlier.
//! The state of an end (open, or broken and how) is kept in the pipe that it sends on.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use corelog_engine::notify::Notify;

use super::{Broken, Machine, Parcel, SimNetwork};

pub(super) struct Pipe<M: Parcel> {
    network: SimNetwork<M>,
    from: Machine,
    to: Machine,
    /// The other direction: what the receiving end sends on.
    reverse: RefCell<Weak<Pipe<M>>>,
    sent: RefCell<VecDeque<Sent<M>>>,
    arrived: RefCell<VecDeque<M>>,
    /// Bytes sent and not read.
    unread_bytes: Cell<usize>,
    last_arrival_us: Cell<u64>,
    pump_set: Cell<bool>,
    /// Since when the first message sent finds no way.
    blocked_since_us: Cell<Option<u64>>,
    /// The sender closed, and all that it sent before has arrived.
    finished: Cell<bool>,
    /// Why the sending end is no more.
    broken: Cell<Option<Broken>>,
    changed: Notify,
}

struct Sent<M> {
    at_us: u64,
    what: What<M>,
}

enum What<M> {
    Parcel(M),
    /// The sender has closed.
    Finish,
    /// The sender does not know this connection.
    Reset,
}

impl<M: Parcel> Pipe<M> {
    pub(super) fn new(network: &SimNetwork<M>, from: Machine, to: Machine) -> Rc<Self> {
        Rc::new(Self {
            network: network.clone(),
            from,
            to,
            reverse: RefCell::default(),
            sent: RefCell::default(),
            arrived: RefCell::default(),
            unread_bytes: Cell::new(0),
            last_arrival_us: Cell::new(0),
            pump_set: Cell::new(false),
            blocked_since_us: Cell::new(None),
            finished: Cell::new(false),
            broken: Cell::new(None),
            changed: Notify::default(),
        })
    }

    pub(super) fn set_reverse(&self, reverse: &Rc<Pipe<M>>) {
        *self.reverse.borrow_mut() = Rc::downgrade(reverse);
    }

    pub(super) fn goes(&self, from: Machine, to: Machine) -> bool {
        (self.from, self.to) == (from, to)
    }

    pub(super) fn is_from(&self, machine: Machine) -> bool {
        self.from == machine
    }

    pub(super) async fn send(self: &Rc<Self>, parcel: M) -> Result<(), Broken> {
        let window = self.network.0.options.window_bytes;
        while self.unread_bytes.get() > window && self.broken.get().is_none() {
            self.changed.notified().await;
        }
        if let Some(broken) = self.broken.get() {
            return Err(broken);
        }
        self.unread_bytes.set(self.unread_bytes.get() + parcel.bytes());
        self.put(What::Parcel(parcel));
        Ok(())
    }

    pub(super) async fn recv(&self) -> Result<M, Broken> {
        loop {
            let changed = self.changed.notified();
            if let Some(broken) = self.receiver_broken() {
                return Err(broken);
            }
            let next = self.arrived.borrow_mut().pop_front();
            if let Some(parcel) = next {
                self.unread_bytes.set(self.unread_bytes.get() - parcel.bytes());
                self.changed.notify_all();
                return Ok(parcel);
            }
            if self.finished.get() {
                return Err(Broken::Closed);
            }
            changed.await;
        }
    }

    /// Messages that have arrived and were not read.
    #[cfg(test)]
    pub(super) fn arrived(&self) -> usize {
        self.arrived.borrow().len()
    }

    fn receiver_broken(&self) -> Option<Broken> {
        self.reverse.borrow().upgrade().and_then(|reverse| reverse.broken.get())
    }

    fn put(self: &Rc<Self>, what: What<M>) {
        let now_us = self.network.0.handle.now_us();
        let at_us = (now_us + self.network.latency_us(self.from, self.to)).max(self.last_arrival_us.get());
        self.last_arrival_us.set(at_us);
        self.sent.borrow_mut().push_back(Sent { at_us, what });
        self.pump();
    }

    /// Lets arrive what is due, and comes back for the rest.
    pub(super) fn pump(self: &Rc<Self>) {
        let handle = &self.network.0.handle;
        let now_us = handle.now_us();
        loop {
            let Some(due_us) = self.sent.borrow().front().map(|sent| sent.at_us) else {
                self.blocked_since_us.set(None);
                return;
            };
            if due_us > now_us {
                return self.pump_at(due_us);
            }
            if self.network.is_cut(self.from, self.to) {
                return self.blocked(now_us);
            }
            self.blocked_since_us.set(None);
            let sent = self.sent.borrow_mut().pop_front();
            let Some(sent) = sent else { return };
            self.arrive(sent.what);
        }
    }

    fn pump_at(self: &Rc<Self>, at_us: u64) {
        // What is sent later arrives later: an event that is set already comes first.
        if self.pump_set.replace(true) {
            return;
        }
        let pipe = self.clone();
        self.network.0.handle.at(at_us, move || {
            pipe.pump_set.set(false);
            pipe.pump();
        });
    }

    /// The way is cut: the sender gives up if it stays so.
    fn blocked(self: &Rc<Self>, now_us: u64) {
        if self.blocked_since_us.get().is_some() {
            return;
        }
        self.blocked_since_us.set(Some(now_us));
        let pipe = self.clone();
        self.network.0.handle.at(now_us + self.network.0.options.retransmit_ms * 1000, move || {
            if pipe.blocked_since_us.get() == Some(now_us) {
                pipe.sent.borrow_mut().clear();
                pipe.reset_sender(Broken::TimedOut);
            }
        });
    }

    fn arrive(self: &Rc<Self>, what: What<M>) {
        let reverse = self.reverse.borrow().upgrade();
        // Nobody there any more: the kernel of the receiver answers with a reset.
        let receiver = reverse.filter(|reverse| reverse.broken.get().is_none());
        match what {
            What::Parcel(parcel) => match receiver {
                Some(_) => self.arrived.borrow_mut().push_back(parcel),
                None => self.answer_with_reset(),
            },
            What::Finish => self.finished.set(true),
            What::Reset => {
                if let Some(receiver) = receiver {
                    receiver.reset_sender(Broken::Reset);
                }
            }
        }
        self.changed.notify_all();
    }

    /// The receiving end is gone: tells the sending end so.
    fn answer_with_reset(self: &Rc<Self>) {
        let pipe = self.clone();
        let network = &self.network;
        let at_us = network.0.handle.now_us() + network.latency_us(self.to, self.from);
        network.0.handle.at(at_us, move || {
            if !pipe.network.is_cut(pipe.to, pipe.from) {
                pipe.reset_sender(Broken::Reset);
            }
        });
    }

    /// The sending end closes: the peer reads what was sent before, then the end of it.
    pub(super) fn close_sender(self: &Rc<Self>) {
        if self.broken.get().is_some() {
            return;
        }
        self.broken.set(Some(Broken::ClosedHere));
        // Sockets with unread bytes are reset by their kernel, others are closed.
        let unread =
            self.reverse.borrow().upgrade().is_some_and(|reverse| !reverse.arrived.borrow().is_empty());
        self.put(if unread { What::Reset } else { What::Finish });
        self.tell();
    }

    /// The sending end is told that the connection is broken.
    pub(super) fn reset_sender(&self, why: Broken) {
        if self.broken.get().is_none() {
            self.broken.set(Some(why));
            self.tell();
        }
    }

    /// An end whose machine has lost its power ceases to be, and says nothing.
    pub(super) fn lose_machine(&self, machine: Machine) {
        if self.from == machine {
            self.sent.borrow_mut().clear();
            self.reset_sender(Broken::Reset);
        }
    }

    /// Wakes both ends: the sender in its `send`, and the receiver of the other direction, who is the same end.
    fn tell(&self) {
        self.changed.notify_all();
        if let Some(reverse) = self.reverse.borrow().upgrade() {
            reverse.changed.notify_all();
        }
    }
}
