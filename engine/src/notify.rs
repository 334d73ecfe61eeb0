//! Wakes tasks of one core that wait for a change.
//!
//! Owns: the wakers. Invariant: a waiter that was made before `notify_all` becomes ready by it. There is no
//! stored permit: look at the state, make the waiter, look again only after it is ready.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// A change that tasks wait for. Cheap to clone.
#[derive(Clone, Default)]
pub struct Notify(Rc<State>);

#[derive(Default)]
struct State {
    generation: Cell<u64>,
    wakers: RefCell<Vec<Waker>>,
}

impl Notify {
    /// Wakes all who wait now.
    pub fn notify_all(&self) {
        self.0.generation.set(self.0.generation.get() + 1);
        let mut woken = self.0.wakers.take();
        for waker in woken.drain(..) {
            waker.wake();
        }
        // Give the allocation back unless somebody queued up meanwhile.
        let mut wakers = self.0.wakers.borrow_mut();
        if wakers.is_empty() {
            *wakers = woken;
        }
    }

    /// Ready after the next `notify_all`.
    pub fn notified(&self) -> Notified {
        Notified { state: self.0.clone(), generation: self.0.generation.get() }
    }
}

/// See [`Notify::notified`].
pub struct Notified {
    state: Rc<State>,
    generation: u64,
}

impl Future for Notified {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.state.generation.get() != self.generation {
            return Poll::Ready(());
        }
        let mut wakers = self.state.wakers.borrow_mut();
        if !wakers.iter().any(|w| w.will_wake(cx.waker())) {
            wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// One at a time: a lock for tasks of one core that is held across `.await`.
#[derive(Clone, Default)]
pub struct Turnstile {
    taken: Rc<Cell<bool>>,
    freed: Notify,
}

impl Turnstile {
    /// Waits until nobody is inside, then enters. Leaves when the pass is dropped.
    pub async fn enter(&self) -> Pass {
        while self.taken.get() {
            self.freed.notified().await;
        }
        self.taken.set(true);
        Pass(self.clone())
    }

    /// Whether somebody is inside.
    pub fn is_taken(&self) -> bool {
        self.taken.get()
    }
}

/// Being inside a [`Turnstile`].
pub struct Pass(Turnstile);

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.taken.set(false);
        self.0.freed.notify_all();
    }
}
