//! Tasks that wait for an end of a partition to pass a point.
//!
//! Owns: their wakers, in the order of what they wait for, so that an advance touches those it satisfies and no
//! others, and answers go out in order.
//! Invariant: a waiter is in the queue only between two of its polls; dropping its future takes it out.
//! Limits: one entry for each waiting future. The session bounds how many of those there are.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::task::Waker;

/// Who waits for one end.
#[derive(Debug, Default)]
pub(crate) struct Waiters(RefCell<Queue>);

#[derive(Debug, Default)]
struct Queue {
    by_goal: BTreeMap<Place, Waker>,
    number_next: u64,
}

/// A place in the queue: the goal, and a number that makes it unique.
pub(crate) type Place = (u64, u64);

impl Waiters {
    /// Wakes all whose goal is at or below `reached`, the lowest goal first.
    pub(crate) fn reached(&self, reached: u64) {
        loop {
            // Taken out one by one: a waker may run code that queues up again.
            let Some(waker) = self.pop_reached(reached) else { return };
            waker.wake();
        }
    }

    /// Wakes everybody.
    pub(crate) fn wake_all(&self) {
        let all = std::mem::take(&mut self.0.borrow_mut().by_goal);
        for waker in all.into_values() {
            waker.wake();
        }
    }

    fn pop_reached(&self, reached: u64) -> Option<Waker> {
        let mut queue = self.0.borrow_mut();
        let first = queue.by_goal.first_entry()?;
        (first.key().0 <= reached).then(|| first.remove())
    }

    /// Puts a waker at its place, a new one if it has none.
    pub(crate) fn put(&self, place: Option<Place>, goal: u64, waker: &Waker) -> Place {
        let mut queue = self.0.borrow_mut();
        let place = place.unwrap_or_else(|| {
            queue.number_next += 1;
            (goal, queue.number_next)
        });
        match queue.by_goal.get_mut(&place) {
            Some(known) if known.will_wake(waker) => {}
            Some(known) => known.clone_from(waker),
            None => {
                queue.by_goal.insert(place, waker.clone());
            }
        }
        place
    }

    pub(crate) fn remove(&self, place: Place) {
        self.0.borrow_mut().by_goal.remove(&place);
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.0.borrow().by_goal.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::task::Wake;

    use super::*;

    /// Writes its name down when it is woken.
    struct Named(&'static str, Arc<Mutex<Vec<&'static str>>>);

    impl Wake for Named {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().push(self.0);
        }
    }

    #[test]
    fn an_advance_wakes_whom_it_satisfies_lowest_goal_first() {
        let woken = Arc::new(Mutex::new(Vec::new()));
        let waker = |name| Waker::from(Arc::new(Named(name, woken.clone())));
        let waiters = Waiters::default();
        for (name, goal) in [("c", 30), ("a", 10), ("b", 20), ("a2", 10)] {
            waiters.put(None, goal, &waker(name));
        }
        waiters.reached(9);
        assert!(woken.lock().unwrap().is_empty());
        waiters.reached(20);
        assert_eq!(*woken.lock().unwrap(), ["a", "a2", "b"]);
        waiters.wake_all();
        assert_eq!(*woken.lock().unwrap(), ["a", "a2", "b", "c"]);
        assert_eq!(waiters.len(), 0);
    }

    #[test]
    fn a_second_poll_keeps_the_place_and_a_dropped_future_leaves_it() {
        let waiters = Waiters::default();
        let place = waiters.put(None, 5, Waker::noop());
        assert_eq!(waiters.put(Some(place), 5, Waker::noop()), place);
        assert_eq!(waiters.len(), 1);
        waiters.remove(place);
        assert_eq!(waiters.len(), 0);
    }
}
