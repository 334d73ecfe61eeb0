//! Record bytes that were read for peers and that the peers have not taken.
//!
//! Owns: how many there are on the shard, and which fetches wait until there are fewer. They lie in the buffers that
//! producers need too, so slow consumers must not pile them up.
//! Invariant: in each lane at most half of `bytes_max` and one fetch more is held.
//! Why lanes: an answer behind an unfinished one cannot leave. If such answers could use up all, the fetches in front of
//! them would wait for memory that only they can free. So fetches at the front of their connection have a half of their
//! own: what is held there is being sent, and ends when the peer takes it or is closed for being slow.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

/// Where in its connection's queue a fetch stands when it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Its answer is the next to leave.
    Front = 0,
    /// Others leave before.
    Behind = 1,
}

#[derive(Clone)]
pub(crate) struct UnsentBytes(Rc<State>);

struct State {
    lane_bytes_max: u64,
    lane_bytes: [Cell<u64>; 2],
    waiting: RefCell<Vec<Waker>>,
}

/// Record bytes that are held; released when dropped.
pub(crate) struct Held {
    unsent: UnsentBytes,
    lane: Lane,
    bytes: u64,
}

impl UnsentBytes {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self(Rc::new(State {
            lane_bytes_max: bytes_max.div_ceil(2),
            lane_bytes: Default::default(),
            waiting: RefCell::default(),
        }))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.lane_bytes.iter().map(Cell::get).sum()
    }

    /// Fetches wait at the front because peers are slow.
    pub(crate) fn is_pressed(&self) -> bool {
        !self.is_below(Lane::Front) && !self.0.waiting.borrow().is_empty()
    }

    /// Whether a fetch in that lane may read. If not, the waker is woken when it is worth asking again.
    pub(crate) fn is_open(&self, lane: Lane, cx: &Context<'_>) -> bool {
        if self.is_below(lane) {
            return true;
        }
        let mut waiting = self.0.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        false
    }

    /// A fetch in that lane has read so many bytes.
    pub(crate) fn hold(&self, lane: Lane, bytes: u64) -> Held {
        let held = &self.0.lane_bytes[lane as usize];
        held.set(held.get() + bytes);
        Held { unsent: self.clone(), lane, bytes }
    }

    fn is_below(&self, lane: Lane) -> bool {
        self.0.lane_bytes[lane as usize].get() < self.0.lane_bytes_max
    }
}

impl Held {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let held = &self.unsent.0.lane_bytes[self.lane as usize];
        held.set(held.get() - self.bytes);
        if self.bytes > 0 && self.unsent.is_below(self.lane) {
            let waiting = std::mem::take(&mut *self.unsent.0.waiting.borrow_mut());
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_behind_never_shuts_the_front() {
        let unsent = UnsentBytes::new(100);
        let cx = Context::from_waker(Waker::noop());
        let behind = unsent.hold(Lane::Behind, 500);
        assert!(!unsent.is_open(Lane::Behind, &cx) && unsent.is_open(Lane::Front, &cx));
        assert!(!unsent.is_pressed(), "nobody at a front waits");
        let front = unsent.hold(Lane::Front, 50);
        assert!(!unsent.is_open(Lane::Front, &cx) && unsent.is_pressed());
        assert_eq!(unsent.bytes(), 550);
        drop((front, behind));
        assert!(unsent.is_open(Lane::Front, &cx) && unsent.is_open(Lane::Behind, &cx));
        assert_eq!(unsent.bytes(), 0);
    }
}
