//! The places of a connection that have something to do, each once.
//!
//! Owns: their order (first come, first served) and the one wake-up for all of them. A thousand quiet partitions cost
//! nothing; a busy one costs a bit and an entry.

use std::cell::RefCell;
use std::collections::VecDeque;

use corelog_engine::notify::Notify;

use crate::watch::Watcher;

/// Places that have something to do.
#[derive(Default)]
pub(crate) struct DirtyList {
    state: RefCell<State>,
    wake: Notify,
}

#[derive(Default)]
struct State {
    queue: VecDeque<u32>,
    is_queued: Vec<bool>,
}

impl DirtyList {
    /// Queues a place, without waking anybody.
    pub(super) fn add(&self, place: u32) -> bool {
        let mut state = self.state.borrow_mut();
        let at = place as usize;
        if at >= state.is_queued.len() {
            state.is_queued.resize(at + 1, false);
        }
        if std::mem::replace(&mut state.is_queued[at], true) {
            return false;
        }
        state.queue.push_back(place);
        true
    }

    /// The place that waits longest.
    pub(super) fn pop(&self) -> Option<u32> {
        let mut state = self.state.borrow_mut();
        let place = state.queue.pop_front()?;
        state.is_queued[place as usize] = false;
        Some(place)
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.state.borrow().queue.len()
    }

    /// Wakes whoever works on the list.
    pub(super) fn wake(&self) {
        self.wake.notify_all();
    }

    /// Ready after the next wake-up.
    pub(super) fn woken(&self) -> impl Future<Output = ()> + 'static {
        self.wake.notified()
    }
}

impl Watcher for DirtyList {
    fn changed(&self, token: u32) {
        if self.add(token) {
            self.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_queued_once_until_it_is_taken() {
        let list = DirtyList::default();
        for place in [7, 2, 7, 0, 2] {
            list.changed(place);
        }
        assert_eq!(list.len(), 3);
        assert_eq!([list.pop(), list.pop()], [Some(7), Some(2)]);
        list.changed(7);
        assert_eq!([list.pop(), list.pop(), list.pop()], [Some(0), Some(7), None]);
    }
}
