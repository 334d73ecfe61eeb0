//! One waker in place of many.
//!
//! Owns: a waker that many waits of one future share. Why: glommio counts the wakers of a task in 15 bits and aborts
//! the process beyond, so a fetch of 40,000 partitions that registered its session's waker with each of them would
//! let a stranger end the node. The relay is one of the task's wakers, however often it is cloned itself.

use std::sync::Arc;
use std::task::{Context, Wake, Waker};

/// Passes a wake on to the task that polled last.
#[derive(Default)]
pub(super) struct Relay(Option<(Waker, Waker)>);

struct Target(Waker);

impl Wake for Target {
    fn wake(self: Arc<Self>) {
        self.0.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake_by_ref();
    }
}

impl Relay {
    /// The waker to register in place of the context's own; the same one for as long as the same task polls.
    pub(super) fn of(&mut self, cx: &Context<'_>) -> Waker {
        match &self.0 {
            Some((task, relay)) if task.will_wake(cx.waker()) => relay.clone(),
            _ => {
                let relay = Waker::from(Arc::new(Target(cx.waker().clone())));
                self.0 = Some((cx.waker().clone(), relay.clone()));
                relay
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct Counting(AtomicUsize);

    impl Wake for Counting {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn many_clones_are_few_wakers_of_the_task_and_each_wakes_it() {
        let task = Arc::new(Counting(AtomicUsize::new(0)));
        let waker = Waker::from(task.clone());
        let cx = Context::from_waker(&waker);
        let mut relay = Relay::default();
        let clones: Vec<Waker> = (0..50_000).map(|_| relay.of(&cx)).collect();
        assert!(Arc::strong_count(&task) <= 4, "{} wakers of the task", Arc::strong_count(&task));
        assert!(clones[0].will_wake(&clones[49_999]));
        clones[7].wake_by_ref();
        assert_eq!(task.0.load(Ordering::Relaxed), 1);
    }
}
