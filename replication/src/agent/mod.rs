//! The part of a node that talks to the coordination service.
//!
//! Owns: this node's picture of the cluster, its registration and what it says of itself and others, the seat of the
//! controller, and every commit of this node. Runtime-neutral: server and simulation poll [`Agent::run`].
//! The decisions are pure and stand beside: `session.rs` (contact), `own.rs` (ephemeral keys), `seat.rs`
//! (controller), `isr.rs` (wishes of leaders), `crate::controller` (elections, placement, balance).
//! Invariant: nothing is shown to shards that is not stored: the picture changes by events of the store alone.
//! Invariant: whatever is decided is decided again on the newest picture after a conflict; a commit whose outcome is
//! unknown is looked for in the next picture, never assumed.
//! Crash story: the process dies between a commit and its event. Everything that it did is in the store, and the
//! next incarnation begins from there.

mod change;
mod isr;
mod own;
mod run;
mod seat;
mod session;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;

use corelog_engine::TopicPartition;
use corelog_engine::notify::{Notified, Notify};

pub use change::ChangeError;

use crate::assignment::{IsrProposal, Report, Sighting};
use crate::cluster::keys::Subject;
use crate::cluster::{ClusterState, FaultKind, Incarnation, NodeRecord, ReplicaFault, Stored, Suspicion};
use crate::controller::{Controller, ControllerOptions};
use crate::coordination::{Coordination, Key, Version};
use crate::replica::{NodeId, ReplicaId};
use own::{OwnKeys, There};
use seat::Candidate;
use session::Session;

/// Time, as the agent needs it.
pub trait Clock: Clone + 'static {
    /// Milliseconds since any fixed moment; never goes back.
    fn now_ms(&self) -> u64;

    /// Ready after so many milliseconds.
    fn sleep(&self, ms: u64) -> impl Future<Output = ()>;
}

/// Who is told what the picture does not show. Called without a borrow held.
pub trait AgentListener {
    /// A leader's change of the ISR was not stored: it may look again.
    fn isr_refused(&self, partition: TopicPartition, version: Version);

    /// The coordination service refused a change for a reason that no retry mends: a person should look.
    fn store_refused(&self, key: &str, reason: &str);

    /// Another process has registered under this node's number: this one must stop serving.
    fn replaced(&self, by: &NodeRecord);
}

/// Limits and times of an agent.
#[derive(Clone, Copy, Debug)]
pub struct AgentOptions {
    /// How this node goes about it when it is the controller.
    pub controller: ControllerOptions,
    /// Of the session with the coordination service; bounds how long an isolated leader serves reads and `acks = 1`.
    pub session_timeout_ms: u64,
    /// How soon a commit that lost a race is tried again if no event comes before.
    pub retry_ms: u64,
    /// Wishes for another ISR in one commit: one that lost its race fails its neighbours, which go again.
    pub proposals_max: usize,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            controller: ControllerOptions::default(),
            session_timeout_ms: 6_000,
            retry_ms: 50,
            proposals_max: 100,
        }
    }
}

/// The agent of one node. Cheap to clone; all clones are the same agent.
pub struct Agent<C: Coordination, K: Clock>(Rc<Inner<C, K>>);

impl<C: Coordination, K: Clock> Clone for Agent<C, K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<C, K> {
    store: C,
    clock: K,
    options: AgentOptions,
    listener: Rc<dyn AgentListener>,
    state: RefCell<State>,
    /// The picture, or whether this node is isolated, has changed.
    changed: Notify,
    /// There may be something to do.
    work: Notify,
}

struct State {
    cluster: ClusterState,
    /// Everything that is stored, as it is stored.
    stored: BTreeMap<Key, There>,
    /// The present session; `None` before the first and after an expiry.
    session: Option<u64>,
    /// In which session the picture has shown this process as registered.
    seen_in_session: Option<u64>,
    contact: Session,
    registration: NodeRecord,
    own: OwnKeys,
    plan: Plan,
    /// What this node has committed and not seen come back yet.
    awaited: BTreeMap<Key, Version>,
    /// Since when there has been something of that at each look.
    awaited_since_ms: Option<u64>,
    proposals: Vec<IsrProposal>,
    /// Since when a process is suspected.
    suspected: BTreeMap<NodeId, (Incarnation, u64)>,
    under_way: UnderWay,
    retry_at_ms: Option<u64>,
    /// When the service may be asked for a sign of life again.
    ask_at_ms: u64,
    /// First key of each commit that the service refused outright, and why; told to the listener.
    store_refusals: Vec<(Key, String)>,
    /// Its registration may be stored.
    is_announced: bool,
    is_leaving: bool,
}

/// What this node decides as the controller, in one term.
struct Plan {
    /// The controller of the term that this node has, with the term's number.
    controller: Option<(u64, Controller)>,
    random: Rc<RefCell<Box<dyn FnMut() -> u128>>>,
    /// The picture has changed since it was last looked at, or a commit has failed.
    is_due: bool,
}

/// Commits without an answer, by what they are for.
#[derive(Default)]
struct UnderWay {
    own: BTreeSet<Key>,
    seat: bool,
    plan: bool,
    isr: BTreeSet<TopicPartition>,
    sign_of_life: bool,
}

impl State {
    fn candidate(&self) -> Candidate {
        Candidate {
            node: self.registration.node,
            incarnation: self.registration.incarnation,
            is_leaving: self.is_leaving,
        }
    }

    fn register(&mut self) {
        let key = Subject::Node(self.registration.node).key();
        self.own.want(key, self.registration.encode());
    }
}

impl<C: Coordination, K: Clock> Agent<C, K> {
    /// An agent that has not spoken to anybody. It registers `registration` once it is announced. `random`:
    /// source of the ids of new logs.
    pub fn new(
        store: C,
        clock: K,
        registration: NodeRecord,
        random: Box<dyn FnMut() -> u128>,
        listener: Rc<dyn AgentListener>,
        options: AgentOptions,
    ) -> Self {
        let mut state = State {
            cluster: ClusterState::default(),
            stored: BTreeMap::new(),
            session: None,
            seen_in_session: None,
            contact: Session::new(options.session_timeout_ms, clock.now_ms()),
            registration,
            own: OwnKeys::default(),
            plan: Plan { controller: None, random: Rc::new(RefCell::new(random)), is_due: false },
            awaited: BTreeMap::new(),
            awaited_since_ms: None,
            proposals: Vec::new(),
            suspected: BTreeMap::new(),
            under_way: UnderWay::default(),
            retry_at_ms: None,
            ask_at_ms: 0,
            store_refusals: Vec::new(),
            is_announced: false,
            is_leaving: false,
        };
        state.register();
        Self(Rc::new(Inner {
            store,
            clock,
            options,
            listener,
            state: RefCell::new(state),
            changed: Notify::default(),
            work: Notify::default(),
        }))
    }

    /// Has the node registered from now on. The caller has opened its logs before and reported the faults that it
    /// found: they are stored first, so that no replica is elected that would have said that it must not lead.
    pub fn announce(&self) {
        self.0.state.borrow_mut().is_announced = true;
        self.0.work.notify_all();
    }

    /// Looks at the picture of the cluster.
    pub fn cluster<R>(&self, look: impl FnOnce(&ClusterState) -> R) -> R {
        look(&self.0.state.borrow().cluster)
    }

    /// Ready when the picture or the isolation has changed since this was called.
    pub fn changed(&self) -> Notified {
        self.0.changed.notified()
    }

    /// Whether a picture has been seen at all.
    pub fn has_state(&self) -> bool {
        self.0.state.borrow().session.is_some() || !self.0.state.borrow().stored.is_empty()
    }

    /// Whether this node has a session and its registration is stored.
    pub fn is_registered(&self) -> bool {
        let state = self.0.state.borrow();
        let me = &state.registration;
        state.session.is_some()
            && state.cluster.nodes.get(&me.node).is_some_and(|node| node.incarnation == me.incarnation)
    }

    /// Whether the coordination service answers, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.0.state.borrow().contact.is_connected()
    }

    /// Whether reads and `acks = 1` have to be refused: the service has been silent for longer than a session lasts.
    pub fn is_isolated(&self) -> bool {
        self.0.state.borrow().contact.is_isolated()
    }

    /// Whether this node is the controller, as far as it knows.
    pub fn is_controller(&self) -> bool {
        let state = self.0.state.borrow();
        seat::is_held(&state.cluster, state.candidate())
    }

    /// Changes what is registered about this node (never its number or incarnation).
    pub fn update_registration(&self, change: impl FnOnce(&mut NodeRecord)) {
        {
            let mut state = self.0.state.borrow_mut();
            change(&mut state.registration);
            if !state.is_leaving {
                state.register();
            }
        }
        self.0.work.notify_all();
    }

    /// Takes a report of a shard.
    pub fn report(&self, report: Report) {
        match report {
            Report::Isr(proposal) => self.0.state.borrow_mut().proposals.push(proposal),
            Report::Seen { node, incarnation, sighting } => self.seen(node, incarnation, sighting),
            Report::Verified { replica } => self.clear_fault(replica, FaultKind::Unverified),
        }
        self.0.work.notify_all();
    }

    /// Says that a replica here must not lead; a worse fault replaces a lesser one.
    pub fn fault(&self, fault: &ReplicaFault) {
        let mut state = self.0.state.borrow_mut();
        state.own.want(Subject::Fault(fault.replica).key(), fault.encode());
        drop(state);
        self.0.work.notify_all();
    }

    /// Takes a fault of that kind back.
    pub fn clear_fault(&self, replica: ReplicaId, kind: FaultKind) {
        let mut state = self.0.state.borrow_mut();
        let is_that_kind = state.cluster.faults.get(&replica).is_none_or(|fault| fault.record.kind == kind);
        if is_that_kind {
            state.own.drop(&Subject::Fault(replica).key());
        }
        drop(state);
        self.0.work.notify_all();
    }

    fn seen(&self, node: NodeId, incarnation: Incarnation, sighting: Sighting) {
        let now_ms = self.0.clock.now_ms();
        let mut state = self.0.state.borrow_mut();
        let by = state.registration.node;
        match sighting {
            Sighting::Refused => {
                // A later start has registered: what was refused is the address of an earlier one.
                if state.cluster.nodes.get(&node).is_none_or(|known| known.incarnation != incarnation) {
                    return;
                }
                let since =
                    state.suspected.get(&node).filter(|known| known.0 == incarnation).map(|known| known.1);
                state.suspected.insert(node, (incarnation, since.unwrap_or(now_ms)));
                let suspicion = Suspicion { by, node, incarnation };
                state.own.want(Subject::Suspicion { by, node }.key(), suspicion.encode());
            }
            Sighting::Connected => {
                state.suspected.remove(&node);
                state.own.drop(&Subject::Suspicion { by, node }.key());
            }
        }
    }

    /// Whether this node leads anything that another replica could lead.
    pub fn leads_what_others_could(&self) -> bool {
        let state = self.0.state.borrow();
        let me = state.registration.node;
        state.cluster.partitions.values().any(|stored| {
            let leads = stored.record.leader.as_ref().is_some_and(|leader| leader.replica.node == me);
            leads
                && stored.record.isr.iter().any(|member| {
                    member.node != me
                        && state.cluster.is_live(member.node)
                        && !state.cluster.faults.contains_key(member)
                        && !state.cluster.nodes.get(&member.node).is_some_and(|node| node.is_stopping)
                })
        })
    }

    /// Begins a clean stop: the controller moves leadership away. Wait with [`Agent::changed`] until
    /// [`Agent::leads_what_others_could`] says no, or lose patience; then stop the shards, then [`Agent::leave`].
    pub fn begin_stop(&self) {
        self.update_registration(|record| record.is_stopping = true);
    }

    /// Ends the registration and everything else that this node keeps. Ready when it is gone from the store; needs
    /// [`Agent::run`] to be polled meanwhile.
    pub async fn leave(&self) {
        {
            let mut state = self.0.state.borrow_mut();
            state.is_leaving = true;
            state.own.drop_all();
            state.proposals.clear();
        }
        loop {
            let changed = self.changed();
            self.0.work.notify_all();
            if self.is_gone() {
                return;
            }
            changed.await;
        }
    }

    fn is_gone(&self) -> bool {
        let state = self.0.state.borrow();
        let me = &state.registration;
        state.session.is_none()
            || (state.cluster.incarnation(me.node) != Some(me.incarnation)
                && !seat::is_held(&state.cluster, state.candidate()))
    }
}
