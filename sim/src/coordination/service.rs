//! The service: keys, sessions, and everybody who is to be told.
//!
//! Owns: what is stored. Invariant: a commit is all or nothing, in one instant of virtual time; versions grow by one.
//! Invariant: a session of which nothing was heard for its time-out is over, and its keys with it. While there is no
//! quorum nothing is stored and no session ends; afterwards each has its whole time again.
//! One connection has two ordered ways back, for answers and for events, each with delays of its own.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use corelog_replication::coordination::{CommitError, Entry, Event, Key, Op, Value, Version};

use super::{Answer, Client, Message};
use crate::executor::Handle;
use crate::network::Machine;

/// How the service behaves.
#[derive(Clone, Debug)]
pub struct SimCoordinationOptions {
    /// A session of which nothing was heard for this long is over.
    pub session_timeout_ms: u64,
    /// A message takes 100 to this many virtual microseconds; one event in twenty takes up to a hundred times as long.
    pub latency_us_max: u64,
}

impl Default for SimCoordinationOptions {
    fn default() -> Self {
        Self { session_timeout_ms: 2_000, latency_us_max: 2_000 }
    }
}

/// A simulated coordination service. Cheap to clone.
#[derive(Clone)]
pub struct SimCoordinationService(Rc<Service>);

struct Service {
    /// Outside of all processes.
    handle: Handle,
    options: SimCoordinationOptions,
    keys: RefCell<BTreeMap<Key, Stored>>,
    sessions: RefCell<BTreeMap<u64, Session>>,
    next_session: Cell<u64>,
    has_quorum: Cell<bool>,
    cut: RefCell<BTreeSet<(Machine, Way)>>,
    commits: Cell<u64>,
    /// Number of the last change of each key, and of all.
    changed: RefCell<BTreeMap<Key, u64>>,
    changes: Cell<u64>,
    observers: RefCell<Vec<Observer>>,
}

type Observer = Box<dyn Fn(&Key, Option<&Value>)>;

/// A direction between a machine and the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    There,
    Back,
}

/// What a key becomes.
type Change = (Key, Option<Stored>);

#[derive(Clone)]
struct Stored {
    value: Value,
    version: Version,
    owner: Option<u64>,
}

struct Session {
    machine: Machine,
    heard_us: u64,
    connection: Option<Connected>,
}

#[derive(Clone)]
struct Connected {
    client: Weak<Client>,
    machine: Machine,
    connection: u64,
    answers_last_us: Rc<Cell<u64>>,
    events_last_us: Rc<Cell<u64>>,
    requests_last_us: Rc<Cell<u64>>,
    /// Number of the last change of each key that was told.
    told: Rc<RefCell<BTreeMap<Key, u64>>>,
}

impl SimCoordinationService {
    /// An empty service with a quorum.
    pub fn new(handle: Handle, options: SimCoordinationOptions) -> Self {
        let service = Self(Rc::new(Service {
            handle: handle.clone(),
            options,
            keys: RefCell::default(),
            sessions: RefCell::default(),
            next_session: Cell::new(1),
            has_quorum: Cell::new(true),
            cut: RefCell::default(),
            commits: Cell::new(0),
            changed: RefCell::default(),
            changes: Cell::new(0),
            observers: RefCell::default(),
        }));
        let expiring = service.clone();
        handle.spawn(async move { expiring.expire_sessions().await });
        service
    }

    /// How it behaves.
    pub fn options(&self) -> &SimCoordinationOptions {
        &self.0.options
    }

    /// Calls `observer` with each change of a key (`None`: removed), for whoever watches the whole simulation.
    pub fn observe(&self, observer: impl Fn(&Key, Option<&Value>) + 'static) {
        self.0.observers.borrow_mut().push(Box::new(observer));
    }

    /// All that is stored.
    pub fn entries(&self) -> Vec<Entry> {
        let keys = self.0.keys.borrow();
        keys.iter()
            .map(|(key, s)| Entry { key: key.clone(), value: s.value.clone(), version: s.version })
            .collect()
    }

    /// Commits that were stored so far.
    pub fn commits(&self) -> u64 {
        self.0.commits.get()
    }

    /// Cuts a machine off: nothing goes there, and nothing comes back.
    pub fn cut(&self, machine: Machine) {
        self.0.cut.borrow_mut().extend([(machine, Way::There), (machine, Way::Back)]);
    }

    /// Cuts the way back alone: what the machine sends arrives, answers are lost.
    pub fn cut_answers(&self, machine: Machine) {
        self.0.cut.borrow_mut().insert((machine, Way::Back));
    }

    /// Ends the cuts of a machine.
    pub fn heal(&self, machine: Machine) {
        self.0.cut.borrow_mut().retain(|(cut, _)| *cut != machine);
    }

    /// Ends all cuts, and brings the quorum back.
    pub fn heal_all(&self) {
        self.0.cut.borrow_mut().clear();
        self.restore_quorum();
    }

    /// The majority of the service is gone: connections break, nothing is stored.
    pub fn lose_quorum(&self) {
        if self.0.has_quorum.replace(false) {
            for session in self.0.sessions.borrow_mut().values_mut() {
                if let Some(connected) = session.connection.take() {
                    self.send(&connected, &connected.answers_last_us, Message::Closed);
                }
            }
        }
    }

    /// The service answers again; every session has its whole time.
    pub fn restore_quorum(&self) {
        if !self.0.has_quorum.replace(true) {
            let now_us = self.0.handle.now_us();
            for session in self.0.sessions.borrow_mut().values_mut() {
                session.heard_us = now_us;
            }
        }
    }

    /// Ends the sessions of a machine now, as if it had been silent.
    pub fn expire(&self, machine: Machine) {
        let sessions = self.0.sessions.borrow();
        let its: Vec<u64> = sessions.iter().filter(|(_, s)| s.machine == machine).map(|(n, _)| *n).collect();
        drop(sessions);
        for session in its {
            self.end(session);
        }
    }

    async fn expire_sessions(&self) {
        let every_ms = (self.0.options.session_timeout_ms / 8).max(1);
        loop {
            self.0.handle.sleep(Duration::from_millis(every_ms)).await;
            if !self.0.has_quorum.get() {
                continue;
            }
            let limit_us = self.0.options.session_timeout_ms * 1000;
            let now_us = self.0.handle.now_us();
            let sessions = self.0.sessions.borrow();
            let over: Vec<u64> =
                sessions.iter().filter(|(_, s)| now_us - s.heard_us > limit_us).map(|(n, _)| *n).collect();
            drop(sessions);
            for session in over {
                self.end(session);
            }
        }
    }

    fn end(&self, number: u64) {
        let Some(session) = self.0.sessions.borrow_mut().remove(&number) else { return };
        self.0.handle.note(format_args!("coordination: session {number} of {} is over", session.machine.0));
        let keys = self.0.keys.borrow();
        let gone: Vec<Key> =
            keys.iter().filter(|(_, s)| s.owner == Some(number)).map(|(k, _)| k.clone()).collect();
        drop(keys);
        for key in gone {
            self.0.keys.borrow_mut().remove(&key);
            self.tell_all(&key);
        }
        if let Some(connected) = session.connection {
            self.send(&connected, &connected.answers_last_us, Message::Closed);
        }
    }

    /// A client asks for its session, or a new one.
    pub(super) fn connect(&self, client: &Rc<Client>) {
        let connected = Connected {
            client: Rc::downgrade(client),
            machine: client.machine,
            connection: client.connection.get(),
            answers_last_us: Rc::default(),
            events_last_us: Rc::default(),
            requests_last_us: Rc::default(),
            told: Rc::default(),
        };
        let wanted = client.session.get();
        let service = self.clone();
        self.request(&connected.clone(), move || service.welcome(connected, wanted));
    }

    fn welcome(&self, connected: Connected, wanted: Option<u64>) {
        let number = match wanted {
            Some(number) if !self.0.sessions.borrow().contains_key(&number) => {
                return self.send(&connected, &connected.answers_last_us, Message::SessionExpired);
            }
            Some(number) => number,
            None => {
                let number = self.0.next_session.get();
                self.0.next_session.set(number + 1);
                number
            }
        };
        let (machine, heard_us) = (connected.machine, self.0.handle.now_us());
        self.0.handle.note(format_args!("coordination: session {number} of {} connects", machine.0));
        let state = Event::State { session: number, entries: self.entries() };
        self.send(&connected, &connected.events_last_us, Message::Welcome(state));
        let session = Session { machine, heard_us, connection: Some(connected) };
        self.0.sessions.borrow_mut().insert(number, session);
    }

    pub(super) fn sign_of_life(&self, client: &Client) {
        let Some(number) = client.session.get() else { return };
        let Some(connected) = self.connected(number, client) else { return };
        let service = self.clone();
        self.request(&connected.clone(), move || {
            if let Some(session) = service.0.sessions.borrow_mut().get_mut(&number) {
                session.heard_us = service.0.handle.now_us();
                service.send(&connected, &connected.answers_last_us, Message::Alive);
            }
        });
    }

    pub(super) fn submit(&self, client: &Client, number: u64, commit: u64, ops: Vec<Op>) {
        let Some(connected) = self.connected(number, client) else { return };
        let service = self.clone();
        self.request(&connected.clone(), move || {
            match service.0.sessions.borrow_mut().get_mut(&number) {
                Some(session) => session.heard_us = service.0.handle.now_us(),
                None => return,
            }
            let answer = service.commit(number, &ops);
            service.send(&connected, &connected.answers_last_us, Message::Answer { commit, answer });
        });
    }

    /// The connection of a session, if it is still this one. A client that does not know yet that it is broken
    /// sends into the void.
    fn connected(&self, number: u64, client: &Client) -> Option<Connected> {
        let sessions = self.0.sessions.borrow();
        let connected = sessions.get(&number)?.connection.as_ref()?;
        (connected.connection == client.connection.get() && std::ptr::eq(connected.client.as_ptr(), client))
            .then(|| connected.clone())
    }

    fn commit(&self, session: u64, ops: &[Op]) -> Answer {
        let (changed, versions) = self.decide(session, ops)?;
        self.0.commits.set(self.0.commits.get() + 1);
        for (key, stored) in changed {
            self.0.handle.note(format_args!(
                "coordination: {session} stores {key} {:?} {}",
                stored.as_ref().map(|s| s.version),
                stored.as_ref().map(|s| String::from_utf8_lossy(&s.value)).unwrap_or_default()
            ));
            match stored {
                Some(stored) => self.0.keys.borrow_mut().insert(key.clone(), stored),
                None => self.0.keys.borrow_mut().remove(&key),
            };
            self.tell_all(&key);
        }
        Ok(versions)
    }

    /// What a commit would change (in the order of its parts, each key once), and its answer.
    fn decide(&self, session: u64, ops: &[Op]) -> Result<(Vec<Change>, Vec<Version>), CommitError> {
        let keys = self.0.keys.borrow();
        let mut changed: Vec<Change> = Vec::new();
        let mut versions = Vec::with_capacity(ops.len());
        for op in ops {
            let conflict = || CommitError::Conflict { key: op.key().to_owned() };
            let before = changed.iter().position(|(key, _)| key == op.key());
            let now = match before {
                Some(at) => changed[at].1.clone(),
                None => keys.get(op.key()).cloned(),
            };
            let known = match op {
                Op::Check { version, .. } | Op::Put { version, .. } | Op::Delete { version, .. } => {
                    Some(now.as_ref().filter(|stored| stored.version == *version).ok_or_else(conflict)?)
                }
                Op::Create { .. } if now.is_some() => return Err(conflict()),
                Op::Create { .. } => None,
            };
            let (after, version) = match (op, known) {
                (Op::Put { value, .. }, Some(stored)) => {
                    let version = Version(stored.version.0 + 1);
                    (Some(Stored { value: value.clone(), version, owner: stored.owner }), version)
                }
                (Op::Create { value, is_ephemeral, .. }, _) => {
                    let owner = is_ephemeral.then_some(session);
                    (Some(Stored { value: value.clone(), version: Version(0), owner }), Version(0))
                }
                (Op::Delete { .. }, _) => (None, Version(0)),
                (_, stored) => {
                    versions.push(stored.map_or(Version(0), |stored| stored.version));
                    continue;
                }
            };
            versions.push(version);
            match before {
                Some(at) => changed[at].1 = after,
                None => changed.push((op.key().to_owned(), after)),
            }
        }
        Ok((changed, versions))
    }

    fn tell_all(&self, key: &Key) {
        let stored = self.0.keys.borrow().get(key).cloned();
        for observer in self.0.observers.borrow().iter() {
            observer(key, stored.as_ref().map(|stored| &stored.value));
        }
        let sessions: Vec<Connected> =
            self.0.sessions.borrow().values().filter_map(|session| session.connection.clone()).collect();
        let number = self.0.changes.get() + 1;
        self.0.changes.set(number);
        self.0.changed.borrow_mut().insert(key.clone(), number);
        for connected in sessions {
            let (event, key) = (event_of(key, stored.as_ref()), key.clone());
            self.send_if(&connected, &connected.events_last_us, move |service, connected| {
                service.news(connected, &key, event, number).map(Message::Event)
            });
        }
    }

    /// Takes a request to the service, in order.
    fn request(&self, connected: &Connected, action: impl FnOnce() + 'static) {
        let (at_us, service) = (self.arrival_us(&connected.requests_last_us, 1_000), self.clone());
        let machine = connected.machine;
        self.0.handle.at(at_us, move || {
            if service.0.has_quorum.get() && !service.is_cut(machine, Way::There) {
                action();
            }
        });
    }

    /// Takes a message to a client, in the order of its kind. What is lost breaks the connection: nothing follows it.
    fn send(&self, connected: &Connected, last_us: &Rc<Cell<u64>>, message: Message) {
        self.send_if(connected, last_us, move |_, _| Some(message));
    }

    /// The same with a message that is made when it arrives, or is none by then.
    fn send_if(
        &self,
        connected: &Connected,
        last_us: &Rc<Cell<u64>>,
        message: impl FnOnce(&Self, &Connected) -> Option<Message> + 'static,
    ) {
        let at_us = self.arrival_us(last_us, 20);
        let (service, connected) = (self.clone(), connected.clone());
        self.0.handle.at(at_us, move || {
            if service.is_cut(connected.machine, Way::Back) {
                return service.disconnect(&connected);
            }
            let Some(message) = message(&service, &connected) else { return };
            let is_current =
                matches!(message, Message::Welcome(_) | Message::SessionExpired | Message::Closed)
                    || service.is_connected(&connected);
            if let (true, Some(client)) = (is_current, connected.client.upgrade()) {
                client.arrive(connected.connection, message);
            }
        });
    }

    /// What a client is told of a change: half of the time the key is read again by then, and what was told already is
    /// not told after it.
    fn news(&self, connected: &Connected, key: &Key, event: Event, number: u64) -> Option<Event> {
        let is_read_again = matches!(event, Event::Changed(_)) && self.0.handle.one_in(2);
        let (event, number) = if is_read_again {
            let newest = self.0.changed.borrow().get(key).copied();
            (event_of(key, self.0.keys.borrow().get(key)), newest.unwrap_or(number))
        } else {
            (event, number)
        };
        let mut told = connected.told.borrow_mut();
        if told.get(key).is_some_and(|told| *told >= number) {
            return None;
        }
        told.insert(key.clone(), number);
        Some(event)
    }

    fn is_connected(&self, connected: &Connected) -> bool {
        self.0.sessions.borrow().values().filter_map(|session| session.connection.as_ref()).any(|current| {
            current.connection == connected.connection && current.client.ptr_eq(&connected.client)
        })
    }

    fn disconnect(&self, connected: &Connected) {
        for session in self.0.sessions.borrow_mut().values_mut() {
            let is_it = session.connection.as_ref().is_some_and(|current| {
                current.connection == connected.connection && current.client.ptr_eq(&connected.client)
            });
            if is_it {
                session.connection = None;
            }
        }
    }

    fn is_cut(&self, machine: Machine, way: Way) -> bool {
        self.0.cut.borrow().contains(&(machine, way))
    }

    fn arrival_us(&self, last_us: &Cell<u64>, slow_one_in: u64) -> u64 {
        let handle = &self.0.handle;
        let mut us = handle.random(100..self.0.options.latency_us_max.max(101));
        if handle.one_in(slow_one_in) {
            us *= handle.random(1..100);
        }
        let at_us = (handle.now_us() + us).max(last_us.get());
        last_us.set(at_us);
        at_us
    }
}

fn event_of(key: &Key, stored: Option<&Stored>) -> Event {
    match stored {
        Some(stored) => {
            Event::Changed(Entry { key: key.clone(), value: stored.value.clone(), version: stored.version })
        }
        None => Event::Removed { key: key.clone() },
    }
}
