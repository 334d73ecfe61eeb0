//! The loop of the agent: events in, commits out.
//!
//! Owns: which commits are under way, and what their answers mean. At most one for each own key, one for the seat,
//! one round of the controller's plan, and one for each partition's ISR.
//! Invariant: the controller plans only when everything that this node has committed has come back as an event, so
//! that it does not decide twice about what it has just decided.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::{Pin, pin};

use futures_util::future::{FutureExt, join_all};
use futures_util::select_biased;
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::own::There;
use super::{Agent, Clock, State, isr, seat};
use crate::assignment::IsrProposal;
use crate::cluster::keys::{CONTROLLER_EPOCH, Subject};
use crate::cluster::{Changed, ReplicaRecord};
use crate::controller::Controller;
use crate::coordination::{CommitError, Coordination, Entry, Event, Key, Op, Version};
use crate::replica::ReplicaId;

type Committed = Result<Vec<Version>, CommitError>;

/// A commit that was answered.
enum Done {
    Own { key: Key, session: u64, ops: Vec<Op>, result: Committed },
    Seat { ops: Vec<Op>, result: Committed },
    Plan { results: Vec<(Vec<Op>, Committed)> },
    Isr { proposals: Vec<IsrProposal>, ops: Vec<Op>, result: Committed },
    SignOfLife { result: Committed },
}

type Work = FuturesUnordered<Pin<Box<dyn Future<Output = Done>>>>;

/// Events taken in one go before anybody is told.
const EVENTS_MAX: usize = 4_096;

/// A suspicion that has not been confirmed by the end of the session, so many times over, was wrong.
const SUSPICION_SESSIONS_MAX: u64 = 2;

impl<C: Coordination, K: Clock> Agent<C, K> {
    /// Talks to the service until it is dropped.
    pub async fn run(&self) {
        let mut under_way = Work::new();
        loop {
            let woken = self.0.work.notified();
            let wake_in_ms = self.begin(&mut under_way);
            let mut sleep = pin!(self.0.clock.sleep(wake_in_ms).fuse());
            let mut next = pin!(self.0.store.next().fuse());
            let mut woken = pin!(woken.fuse());
            select_biased! {
                event = next => {
                    self.absorb(event);
                }
                done = under_way.select_next_some() => self.finish(done),
                () = woken => {}
                () = sleep => {}
            }
        }
    }

    /// Takes an event, and all that are there already.
    fn absorb(&self, first: Event) {
        self.apply(first);
        for _ in 0..EVENTS_MAX {
            let Some(event) = self.0.store.next().now_or_never() else { break };
            self.apply(event);
        }
        self.look_for_usurper();
        self.0.changed.notify_all();
    }

    fn apply(&self, event: Event) {
        let now_ms = self.0.clock.now_ms();
        let state = &mut *self.0.state.borrow_mut();
        if state.cluster.apply(&event) != Changed::Nothing {
            state.plan.is_due = true;
        }
        match event {
            Event::State { session, entries } => {
                state.session = Some(session);
                state.contact.answered(now_ms);
                state.awaited.clear();
                let stored = |e: Entry| (e.key, There { value: e.value, version: e.version });
                state.stored = entries.into_iter().map(stored).collect();
            }
            Event::Changed(Entry { key, value, version }) => {
                let is_awaited = state.awaited.get(&key).is_some_and(|awaited| version >= *awaited);
                if is_awaited {
                    state.awaited.remove(&key);
                }
                state.stored.insert(key, There { value, version });
            }
            Event::Removed { key } => {
                state.awaited.remove(&key);
                state.stored.remove(&key);
            }
            Event::Suspended => state.contact.suspended(now_ms),
            Event::Expired => {
                state.session = None;
                state.contact.expired();
            }
        }
    }

    /// Another process under this node's number, after this one had registered and seen itself registered: what the
    /// picture shows before that is its own former life.
    fn look_for_usurper(&self) {
        let usurper = {
            let state = &mut *self.0.state.borrow_mut();
            let me = &state.registration;
            let there = state.cluster.nodes.get(&me.node);
            if there.is_some_and(|node| node.incarnation == me.incarnation) {
                state.seen_in_session = state.session;
            }
            let was_registered = state.session.is_some() && state.seen_in_session == state.session;
            let there = there.filter(|node| node.incarnation != me.incarnation);
            there.filter(|_| was_registered && !state.is_leaving).cloned()
        };
        if let Some(by) = usurper {
            self.0.listener.replaced(&by);
        }
    }

    /// Starts what there is to do; returns when to look again, in milliseconds from now.
    fn begin(&self, work: &mut Work) -> u64 {
        let now_ms = self.0.clock.now_ms();
        self.look_at_clock(now_ms, work);
        let mut refused = Vec::new();
        let wake_in_ms = {
            let state = &mut *self.0.state.borrow_mut();
            let mut wake_in_ms = state.contact.look_interval_ms();
            match state.session {
                Some(session) if state.contact.is_connected() => {
                    self.forget_suspicions(state, now_ms);
                    self.forget_faults(state);
                    self.forget_awaited(state, now_ms);
                    self.begin_own(state, session, work);
                    self.begin_seat(state, work);
                    self.begin_isr(state, work, &mut refused);
                    self.begin_plan(state, now_ms, work);
                    if let Some(at_ms) = state.retry_at_ms.take_if(|at_ms| *at_ms > now_ms) {
                        wake_in_ms = wake_in_ms.min(at_ms - now_ms);
                        state.retry_at_ms = Some(at_ms);
                    }
                    let controller = state.plan.controller.as_ref();
                    if let Some(at_ms) = controller.and_then(|(_, controller)| controller.next_wake_ms()) {
                        let in_ms = at_ms.saturating_sub(now_ms).max(self.0.options.retry_ms);
                        wake_in_ms = wake_in_ms.min(in_ms);
                    }
                }
                _ => refused = std::mem::take(&mut state.proposals),
            }
            wake_in_ms
        };
        for proposal in refused {
            self.0.listener.isr_refused(proposal.partition, proposal.version);
        }
        wake_in_ms.max(1)
    }

    fn look_at_clock(&self, now_ms: u64, work: &mut Work) {
        let (ask, changed, ops) = {
            let mut state = self.0.state.borrow_mut();
            let before = state.contact.is_isolated();
            let slept = state.contact.look(now_ms);
            let isolated = state.contact.is_isolated();
            // Waking from a long sleep, or waiting for an answer to the question asked then.
            let is_time = now_ms >= state.ask_at_ms && !state.under_way.sign_of_life;
            let ask = (slept || (isolated && state.session.is_some())) && is_time;
            let key = Subject::Node(state.registration.node).key();
            let version = state.stored.get(&key).map_or(Version(0), |stored| stored.version);
            state.under_way.sign_of_life |= ask;
            (ask, before != isolated, vec![Op::Check { key, version }])
        };
        if ask {
            let store = self.0.store.clone();
            work.push(Box::pin(async move { Done::SignOfLife { result: store.commit(ops).await } }));
        }
        if changed {
            self.0.changed.notify_all();
        }
    }

    /// What has not come back after so long never will: the key has gone, or was made anew, before the answer came.
    /// Planning on an old picture is only in vain, never wrong.
    fn forget_awaited(&self, state: &mut State, now_ms: u64) {
        if state.awaited.is_empty() {
            state.awaited_since_ms = None;
            return;
        }
        let since_ms = *state.awaited_since_ms.get_or_insert(now_ms);
        if now_ms.saturating_sub(since_ms) >= self.0.options.session_timeout_ms {
            state.awaited.clear();
            state.awaited_since_ms = None;
        }
    }

    fn forget_suspicions(&self, state: &mut State, now_ms: u64) {
        let age_max_ms = self.0.options.session_timeout_ms * SUSPICION_SESSIONS_MAX;
        let (cluster, own) = (&state.cluster, &mut state.own);
        let by = state.registration.node;
        state.suspected.retain(|node, (incarnation, since_ms)| {
            let is_same = cluster.nodes.get(node).is_some_and(|there| there.incarnation == *incarnation);
            let keep = is_same && now_ms.saturating_sub(*since_ms) < age_max_ms;
            if !keep {
                own.drop(&Subject::Suspicion { by, node: *node }.key());
            }
            keep
        });
    }

    /// A replica that is no replica any more is nobody's fault. Costs a look at all partitions while there are faults.
    fn forget_faults(&self, state: &mut State) {
        let me = state.registration.node;
        let faulty = state.cluster.faults.keys().filter(|replica| replica.node == me);
        let mut gone: BTreeSet<ReplicaId> = faulty.copied().collect();
        if gone.is_empty() {
            return;
        }
        for stored in state.cluster.partitions.values() {
            let placed = stored.record.on_node(me).map(ReplicaRecord::id);
            for replica in placed.into_iter().chain(stored.record.isr.iter().copied()) {
                gone.remove(&replica);
            }
        }
        for replica in gone {
            state.own.drop(&Subject::Fault(replica).key());
        }
    }

    fn begin_own(&self, state: &mut State, session: u64, work: &mut Work) {
        let missing = state.own.missing(session, |key| state.stored.get(key).cloned());
        let registration = Subject::Node(state.registration.node).key();
        // What must not lead is known before the node can be elected: its faults are stored before its registration.
        let is_held = !state.is_announced
            || missing.iter().any(|(key, _)| is_fault(key))
            || state.under_way.own.iter().any(|key| is_fault(key));
        for (key, ops) in missing {
            let waits = is_held && key == registration && !state.is_leaving;
            if waits || state.awaited.contains_key(&key) || !state.under_way.own.insert(key.clone()) {
                continue;
            }
            let store = self.0.store.clone();
            work.push(Box::pin(async move {
                let result = store.commit(ops.clone()).await;
                Done::Own { key, session, ops, result }
            }));
        }
    }

    fn begin_seat(&self, state: &mut State, work: &mut Work) {
        if state.under_way.seat || is_awaited(state, CONTROLLER_EPOCH) {
            return;
        }
        let Some(ops) = seat::change(&state.cluster, state.candidate()) else { return };
        state.under_way.seat = true;
        let store = self.0.store.clone();
        work.push(Box::pin(async move { Done::Seat { result: store.commit(ops.clone()).await, ops } }));
    }

    /// Sends the wishes that may be sent, many in a commit.
    fn begin_isr(&self, state: &mut State, work: &mut Work, refused: &mut Vec<IsrProposal>) {
        let (mut proposals, mut ops) = (Vec::new(), Vec::new());
        let mut later = Vec::new();
        for proposal in std::mem::take(&mut state.proposals) {
            if state.under_way.isr.contains(&proposal.partition)
                || proposals.len() >= self.0.options.proposals_max
            {
                later.push(proposal);
                continue;
            }
            match isr::change(&state.cluster, &proposal) {
                Ok(op) => {
                    state.under_way.isr.insert(proposal.partition);
                    ops.push(op);
                    proposals.push(proposal);
                }
                Err(_) => refused.push(proposal),
            }
        }
        state.proposals = later;
        if proposals.is_empty() {
            return;
        }
        if !state.proposals.is_empty() {
            self.0.work.notify_all();
        }
        let store = self.0.store.clone();
        work.push(Box::pin(async move {
            let result = store.commit(ops.clone()).await;
            Done::Isr { proposals, ops, result }
        }));
    }

    fn begin_plan(&self, state: &mut State, now_ms: u64, work: &mut Work) {
        let held = state.cluster.controller.as_ref().map(|stored| *stored.record);
        let term = held.filter(|_| !state.is_leaving && seat::is_held(&state.cluster, state.candidate()));
        let Some(term) = term else {
            state.plan.controller = None;
            return;
        };
        let random = state.plan.random.clone();
        let (_, controller) = match state.plan.controller.take() {
            Some(known) if known.0 == term.epoch => state.plan.controller.insert(known),
            _ => {
                state.plan.is_due = true;
                let random = Box::new(move || (random.borrow_mut())());
                let controller = Controller::new(self.0.options.controller, term, random);
                state.plan.controller.insert((term.epoch, controller))
            }
        };
        let is_waiting = state.retry_at_ms.is_some_and(|at_ms| at_ms > now_ms);
        let is_due = state.plan.is_due || controller.next_wake_ms().is_some_and(|at_ms| at_ms <= now_ms);
        if state.under_way.plan || is_waiting || !is_due || !state.awaited.is_empty() {
            return;
        }
        state.plan.is_due = false;
        let commits = controller.plan(&state.cluster, now_ms);
        if commits.is_empty() {
            return;
        }
        state.under_way.plan = true;
        let store = self.0.store.clone();
        work.push(Box::pin(async move {
            let results = join_all(commits.into_iter().map(|ops| {
                let store = store.clone();
                async move {
                    let result = store.commit(ops.clone()).await;
                    (ops, result)
                }
            }));
            Done::Plan { results: results.await }
        }));
    }

    fn finish(&self, done: Done) {
        let now_ms = self.0.clock.now_ms();
        let mut refused = Vec::new();
        {
            let state = &mut *self.0.state.borrow_mut();
            match done {
                Done::Own { key, session, ops, result } => {
                    state.under_way.own.remove(&key);
                    let is_stored = self.settle(state, now_ms, &ops, &result);
                    state.own.committed(&key, session, &ops, is_stored);
                }
                Done::Seat { ops, result } => {
                    state.under_way.seat = false;
                    self.settle(state, now_ms, &ops, &result);
                }
                Done::Plan { results } => {
                    state.under_way.plan = false;
                    for (ops, result) in results {
                        state.plan.is_due |= !self.settle(state, now_ms, &ops, &result);
                    }
                }
                Done::Isr { proposals, ops, result } => {
                    let stored = self.settle(state, now_ms, &ops, &result);
                    self.finish_isr(state, proposals, stored, &result, &mut refused);
                }
                Done::SignOfLife { result } => {
                    state.under_way.sign_of_life = false;
                    // Without a connection the answer comes at once.
                    state.ask_at_ms = now_ms + state.contact.look_interval_ms();
                    if matches!(result, Ok(_) | Err(CommitError::Conflict { .. })) {
                        state.contact.answered(now_ms);
                        self.0.changed.notify_all();
                    }
                }
            }
        }
        for proposal in refused {
            self.0.listener.isr_refused(proposal.partition, proposal.version);
        }
        let refusals = std::mem::take(&mut self.0.state.borrow_mut().store_refusals);
        for (key, reason) in refusals {
            self.0.listener.store_refused(&key, &reason);
        }
    }

    /// One that lost its race is refused; its neighbours in the commit go again.
    fn finish_isr(
        &self,
        state: &mut State,
        proposals: Vec<IsrProposal>,
        stored: bool,
        result: &Committed,
        refused: &mut Vec<IsrProposal>,
    ) {
        for proposal in proposals {
            state.under_way.isr.remove(&proposal.partition);
            if stored {
                continue;
            }
            match result {
                Err(CommitError::Conflict { key })
                    if *key != Subject::Partition(proposal.partition).key() =>
                {
                    state.proposals.push(proposal);
                }
                _ => refused.push(proposal),
            }
        }
    }

    /// Notes what an answer means; returns whether the commit happened.
    fn settle(&self, state: &mut State, now_ms: u64, ops: &[Op], result: &Committed) -> bool {
        match result {
            Ok(versions) => {
                note_awaited(state, ops, versions);
                true
            }
            Err(CommitError::Refused(reason)) => {
                state
                    .store_refusals
                    .push((ops.first().map_or_else(String::new, |op| op.key().to_owned()), reason.clone()));
                state.retry_at_ms = Some(now_ms + state.contact.look_interval_ms());
                false
            }
            Err(CommitError::Conflict { .. } | CommitError::Unknown | CommitError::NoSession) => {
                state.retry_at_ms = Some(now_ms + self.0.options.retry_ms);
                false
            }
        }
    }
}

/// Whether a key holds a fault of a replica.
fn is_fault(key: &str) -> bool {
    matches!(Subject::parse(key), Some(Subject::Fault(_)))
}

fn is_awaited(state: &State, key: &str) -> bool {
    state.awaited.contains_key(key)
}

/// Remembers what has yet to come back as an event.
pub(super) fn note_awaited(state: &mut State, ops: &[Op], versions: &[Version]) {
    for (op, version) in ops.iter().zip(versions) {
        let there = state.stored.get(op.key());
        match op {
            Op::Check { .. } => {}
            Op::Create { key, value, .. } | Op::Put { key, value, .. } => {
                let is_seen = there.is_some_and(|there| there.version == *version && there.value == *value);
                // Overwritten by somebody else already counts as seen, too; a key made again begins at 0.
                let is_past =
                    there.is_some_and(|there| there.version > *version) && matches!(op, Op::Put { .. });
                if !is_seen && !is_past {
                    state.awaited.insert(key.clone(), *version);
                }
            }
            // Removed and made again in one: the new one is what comes back. Its version may be the old one's.
            Op::Delete { key, .. }
                if ops.iter().any(|op| matches!(op, Op::Create { key: made, .. } if made == key)) => {}
            Op::Delete { key, version } => {
                if there.is_some_and(|there| there.version == *version) {
                    state.awaited.insert(key.clone(), Version(i64::MAX));
                }
            }
        }
    }
}
