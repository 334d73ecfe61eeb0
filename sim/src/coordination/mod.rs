//! A simulated coordination service: the contract of `corelog_replication::coordination`, kept as badly as it allows.
//!
//! Owns: the connection of one process to the service: its session, what is under way, what it is told when.
//! `service.rs` is the service itself.
//! Invariant: events of one session come in order; between nodes they come at different times. A change may be told
//! with the newest value instead of its own, as by a client that reads again what it was told has changed.
//! Invariant: a commit whose answer is lost is answered `Unknown`, once the connection is known to be broken.
//! The connection runs in the group of its process: a process that stands still sends no sign of life and its session
//! ends; when it wakes up it believes in it until the service's answer says otherwise.

mod service;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use corelog_engine::notify::Notify;
use corelog_replication::coordination::{CommitError, Coordination, Event, Op, Version, check_limits};
use futures_util::future::{Either, select};

pub use service::{SimCoordinationOptions, SimCoordinationService};

use crate::executor::Handle;
use crate::network::Machine;

/// One process's connection to the simulated service. Cheap to clone; all clones are one session.
#[derive(Clone)]
pub struct SimCoordination(Rc<Client>);

struct Client {
    service: SimCoordinationService,
    machine: Machine,
    /// Of the process.
    handle: Handle,
    /// Number of the connection; what belongs to an older one is dropped.
    connection: Cell<u64>,
    is_connected: Cell<bool>,
    session: Cell<Option<u64>>,
    incoming: RefCell<VecDeque<Message>>,
    arrived: Notify,
    events: RefCell<VecDeque<Event>>,
    told: Notify,
    commits: RefCell<BTreeMap<u64, Option<Answer>>>,
    next_commit: Cell<u64>,
    answered: Notify,
}

type Answer = Result<Vec<Version>, CommitError>;

/// What the service sends.
enum Message {
    Welcome(Event),
    SessionExpired,
    Alive,
    Event(Event),
    Answer { commit: u64, answer: Answer },
    Closed,
}

impl Coordination for SimCoordination {
    async fn next(&self) -> Event {
        loop {
            let told = self.0.told.notified();
            if let Some(event) = self.0.events.borrow_mut().pop_front() {
                return event;
            }
            told.await;
        }
    }

    fn commit(&self, ops: Vec<Op>) -> impl Future<Output = Result<Vec<Version>, CommitError>> {
        let submitted = self.submit(ops);
        let client = self.0.clone();
        async move {
            let commit = submitted?;
            loop {
                let answered = client.answered.notified();
                let answer = client.commits.borrow_mut().get_mut(&commit).and_then(Option::take);
                if let Some(answer) = answer {
                    client.commits.borrow_mut().remove(&commit);
                    return answer;
                }
                answered.await;
            }
        }
    }
}

impl SimCoordination {
    /// Connects the process of `handle`'s group.
    pub fn new(service: &SimCoordinationService, handle: &Handle, machine: Machine) -> Self {
        let client = Rc::new(Client {
            service: service.clone(),
            machine,
            handle: handle.clone(),
            connection: Cell::new(0),
            is_connected: Cell::new(false),
            session: Cell::new(None),
            incoming: RefCell::default(),
            arrived: Notify::default(),
            events: RefCell::default(),
            told: Notify::default(),
            commits: RefCell::default(),
            next_commit: Cell::new(0),
            answered: Notify::default(),
        });
        let running = client.clone();
        handle.spawn(async move { running.run().await });
        Self(client)
    }

    /// Sends a commit, so that commits are done in the order of the calls.
    fn submit(&self, ops: Vec<Op>) -> Result<u64, CommitError> {
        check_limits(&ops)?;
        let client = &self.0;
        let session = client.session.get().filter(|_| client.is_connected.get());
        let session = session.ok_or(CommitError::NoSession)?;
        let commit = client.next_commit.get();
        client.next_commit.set(commit + 1);
        client.commits.borrow_mut().insert(commit, None);
        client.service.submit(client, session, commit, ops);
        Ok(commit)
    }

    /// The session, if there has been one.
    pub fn session(&self) -> Option<u64> {
        self.0.session.get()
    }
}

impl Client {
    async fn run(self: Rc<Self>) {
        let timeout_ms = self.service.options().session_timeout_ms;
        loop {
            self.connection.set(self.connection.get() + 1);
            self.incoming.borrow_mut().clear();
            self.service.connect(&self);
            match self.receive(timeout_ms / 3).await {
                Some(Message::Welcome(state)) => {
                    if let Event::State { session, .. } = &state {
                        self.session.set(Some(*session));
                    }
                    self.is_connected.set(true);
                    self.tell(state);
                    self.converse(timeout_ms).await;
                    self.is_connected.set(false);
                    self.give_up_commits();
                    self.tell(Event::Suspended);
                }
                Some(Message::SessionExpired) => {
                    self.session.set(None);
                    self.tell(Event::Expired);
                    continue;
                }
                _ => {}
            }
            let pause_ms = self.handle.random(50..500);
            self.handle.sleep(Duration::from_millis(pause_ms)).await;
        }
    }

    /// Until the connection breaks, or two signs of life stay without an answer.
    async fn converse(&self, timeout_ms: u64) {
        let every_us = timeout_ms * 1000 / 3;
        let mut due_us = self.handle.now_us() + every_us;
        let mut unanswered = 0;
        loop {
            let now_us = self.handle.now_us();
            if now_us >= due_us {
                if unanswered == 2 {
                    return;
                }
                unanswered += 1;
                due_us = now_us + every_us;
                self.service.sign_of_life(self);
            }
            match self.receive((due_us - now_us.min(due_us)).div_ceil(1000).max(1)).await {
                None => {}
                Some(Message::Closed) => return,
                Some(Message::Event(event)) => self.tell(event),
                Some(Message::Answer { commit, answer }) => {
                    if let Some(slot) = self.commits.borrow_mut().get_mut(&commit) {
                        *slot = Some(answer);
                    }
                    self.answered.notify_all();
                }
                Some(Message::Alive) => unanswered = 0,
                Some(Message::Welcome(_) | Message::SessionExpired) => {}
            }
        }
    }

    /// The next message; `None` after a while without.
    async fn receive(&self, ms: u64) -> Option<Message> {
        let mut silence = pin!(self.handle.sleep(Duration::from_millis(ms)));
        loop {
            let arrived = self.arrived.notified();
            if let Some(message) = self.incoming.borrow_mut().pop_front() {
                return Some(message);
            }
            if let Either::Right(_) = select(arrived, silence.as_mut()).await {
                return None;
            }
        }
    }

    fn tell(&self, event: Event) {
        self.events.borrow_mut().push_back(event);
        self.told.notify_all();
    }

    fn give_up_commits(&self) {
        for slot in self.commits.borrow_mut().values_mut() {
            slot.get_or_insert(Err(CommitError::Unknown));
        }
        self.answered.notify_all();
    }

    /// A message has come over the network.
    fn arrive(&self, connection: u64, message: Message) {
        if connection == self.connection.get() {
            self.incoming.borrow_mut().push_back(message);
            self.arrived.notify_all();
        }
    }
}
