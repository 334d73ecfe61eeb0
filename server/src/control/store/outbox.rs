//! Events that a store has for its node and the node has not taken yet.
//!
//! Owns: their order, and what replaces what.
//! Invariant: bounded. A state replaces everything before it but the news that a session has expired, a repeated
//! suspension is one, and who adds changes waits first until the node has taken the last ones ([`Outbox::drained`]).

use std::cell::RefCell;
use std::collections::VecDeque;

use corelog_replication::coordination::Event;
use tokio::sync::Notify;

#[derive(Default)]
pub(super) struct Outbox {
    events: RefCell<VecDeque<Event>>,
    filled: Notify,
    taken: Notify,
}

impl Outbox {
    pub(super) fn push(&self, event: Event) {
        let mut events = self.events.borrow_mut();
        match &event {
            Event::State { .. } => events.retain(|event| matches!(event, Event::Expired)),
            // The session after it has ended as well before anybody looked: only the last end matters.
            Event::Expired => events.clear(),
            Event::Suspended if matches!(events.back(), Some(Event::Suspended | Event::Expired)) => return,
            Event::Suspended | Event::Changed(_) | Event::Removed { .. } => {}
        }
        events.push_back(event);
        drop(events);
        self.filled.notify_one();
    }

    /// The next event. One caller at a time.
    ///
    /// Cancel: loses nothing.
    pub(super) async fn next(&self) -> Event {
        loop {
            let event = self.events.borrow_mut().pop_front();
            if let Some(event) = event {
                self.taken.notify_one();
                return event;
            }
            self.filled.notified().await;
        }
    }

    /// Ready when the node has taken everything. One caller at a time.
    pub(super) async fn drained(&self) {
        while !self.events.borrow().is_empty() {
            self.taken.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use corelog_replication::coordination::Event;
    use futures_util::FutureExt;

    use super::Outbox;

    fn state(session: u64) -> Event {
        Event::State { session, entries: Vec::new() }
    }

    fn removed(key: &str) -> Event {
        Event::Removed { key: key.to_owned() }
    }

    fn taken(pushed: impl IntoIterator<Item = Event>) -> Vec<Event> {
        let outbox = Outbox::default();
        pushed.into_iter().for_each(|event| outbox.push(event));
        std::iter::from_fn(|| outbox.next().now_or_never()).collect()
    }

    #[test]
    fn a_state_replaces_what_came_before() {
        assert_eq!(
            taken([removed("/a"), Event::Suspended, state(1), removed("/b")]),
            [state(1), removed("/b")]
        );
        assert_eq!(taken([state(1), Event::Expired, state(2)]), [Event::Expired, state(2)]);
        assert_eq!(taken([state(1), Event::Suspended, Event::Expired, Event::Suspended]), [Event::Expired]);
        assert_eq!(
            taken([removed("/a"), Event::Suspended, Event::Suspended]),
            [removed("/a"), Event::Suspended]
        );
    }

    #[test]
    fn drained_waits_until_everything_is_taken() {
        let outbox = Outbox::default();
        outbox.push(state(1));
        assert_eq!(outbox.drained().now_or_never(), None);
        assert_eq!(outbox.next().now_or_never(), Some(state(1)));
        assert_eq!(outbox.drained().now_or_never(), Some(()));
    }
}
