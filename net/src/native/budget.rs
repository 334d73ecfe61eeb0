//! Memory of one shard for large frames while they arrive.
//!
//! Owns: who holds how much, and who waits. First come, first served.
//! Invariant: grants never pass `bytes_max` together. Nobody waits while holding a grant, so the wait always ends: who
//! holds one either receives its frame or is closed when `frame_timeout_ms` is over.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

#[derive(Clone)]
pub(crate) struct ByteBudget(Rc<State>);

struct State {
    bytes_max: usize,
    used_bytes: Cell<usize>,
    next_ticket: Cell<u64>,
    waiting: RefCell<VecDeque<(u64, Option<Waker>)>>,
}

/// Bytes of the budget; given back when dropped.
pub(crate) struct Grant {
    budget: ByteBudget,
    bytes: usize,
}

impl ByteBudget {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self(Rc::new(State {
            bytes_max,
            used_bytes: Cell::new(0),
            next_ticket: Cell::new(0),
            waiting: RefCell::default(),
        }))
    }

    pub(crate) fn used_bytes(&self) -> usize {
        self.0.used_bytes.get()
    }

    pub(crate) fn is_contended(&self) -> bool {
        !self.0.waiting.borrow().is_empty()
    }

    /// Waits for its turn and for the bytes. Dropping the future gives up the place.
    ///
    /// # Panics
    /// If `bytes` can never be granted.
    pub(crate) fn acquire(&self, bytes: usize) -> Acquire {
        assert!(bytes <= self.0.bytes_max, "{bytes} of {} bytes", self.0.bytes_max);
        let ticket = self.0.next_ticket.get();
        self.0.next_ticket.set(ticket + 1);
        self.0.waiting.borrow_mut().push_back((ticket, None));
        Acquire { budget: self.clone(), bytes, ticket }
    }

    fn wake_first(&self) {
        let first = self.0.waiting.borrow_mut().front_mut().and_then(|(_, waker)| waker.take());
        if let Some(waker) = first {
            waker.wake();
        }
    }
}

pub(crate) struct Acquire {
    budget: ByteBudget,
    bytes: usize,
    ticket: u64,
}

impl Future for Acquire {
    type Output = Grant;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Grant> {
        let state = &self.budget.0;
        let mut waiting = state.waiting.borrow_mut();
        let is_first = waiting.front().is_some_and(|(ticket, _)| *ticket == self.ticket);
        if is_first && state.used_bytes.get() + self.bytes <= state.bytes_max {
            state.used_bytes.set(state.used_bytes.get() + self.bytes);
            return Poll::Ready(Grant { budget: self.budget.clone(), bytes: self.bytes });
        }
        if let Some((_, waker)) = waiting.iter_mut().find(|(ticket, _)| *ticket == self.ticket) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        self.budget.0.waiting.borrow_mut().retain(|(ticket, _)| *ticket != self.ticket);
        self.budget.wake_first();
    }
}

impl Grant {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let used = &self.budget.0.used_bytes;
        used.set(used.get() - self.bytes);
        self.budget.wake_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;

    fn poll<F: Future>(future: Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    #[test]
    fn grants_come_in_order_and_never_pass_the_budget() {
        let budget = ByteBudget::new(100);
        let mut first = Box::pin(budget.acquire(60));
        let held = poll(first.as_mut()).expect("the budget is free");
        drop(first);
        let mut large = Box::pin(budget.acquire(50));
        let mut small = pin!(budget.acquire(10));
        assert!(poll(large.as_mut()).is_none(), "only 40 are left");
        assert!(poll(small.as_mut()).is_none(), "10 would fit, but another one was first");
        assert_eq!(budget.used_bytes(), 60);
        drop(held);
        let large_held = poll(large.as_mut()).expect("its turn");
        assert_eq!((large_held.bytes(), budget.used_bytes()), (50, 50));
        drop(large);
        assert!(poll(small.as_mut()).is_some(), "its turn");
    }

    #[test]
    fn who_gives_up_holds_up_nobody() {
        let budget = ByteBudget::new(100);
        let mut first = Box::pin(budget.acquire(100));
        let held = poll(first.as_mut()).expect("the budget is free");
        drop(first);
        let mut second = Box::pin(budget.acquire(100));
        let mut third = pin!(budget.acquire(1));
        assert!(poll(second.as_mut()).is_none() && poll(third.as_mut()).is_none());
        drop(second);
        drop(held);
        assert!(poll(third.as_mut()).is_some());
    }
}
