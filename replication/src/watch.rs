//! Who wants to know, at once and without a task of its own, that a partition has changed.
//!
//! Owns: the list of watchers of one partition. A stream that carries a thousand partitions notes the token of each
//! that changed and wakes one task, so that a change costs nothing for the others.
//! Invariant: no borrow is held while a watcher is called; it may look at the partition, but only notes and wakes.
//! Not here: what changed. The watcher compares ends, marks and role with what it knows.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

/// Whoever is told of changes.
pub trait Watcher {
    /// Something about the partition with this token changed: an end, the high watermark, the log start, the role.
    fn changed(&self, token: u32);
}

/// The watchers of one partition. Cheap to clone; all clones are the same list.
#[derive(Clone, Default)]
pub struct Watchers(Rc<List>);

#[derive(Default)]
struct List {
    watchers: RefCell<Vec<Entry>>,
    number_next: Cell<u64>,
}

struct Entry {
    number: u64,
    token: u32,
    watcher: Weak<dyn Watcher>,
}

/// Being told of changes; ends when dropped.
pub struct Watching {
    list: Weak<List>,
    number: u64,
}

impl Watchers {
    /// Tells `watcher` of each change from now on, with `token`. Does not keep it alive.
    pub fn add(&self, watcher: &Rc<dyn Watcher>, token: u32) -> Watching {
        let number = self.0.number_next.get();
        self.0.number_next.set(number + 1);
        let entry = Entry { number, token, watcher: Rc::downgrade(watcher) };
        self.0.watchers.borrow_mut().push(entry);
        Watching { list: Rc::downgrade(&self.0), number }
    }

    /// Tells all. Synchronous; costs a call for each watcher (one for each follower).
    pub fn tell(&self) {
        let mut at = 0;
        loop {
            let next = self.0.watchers.borrow().get(at).map(|e| (e.watcher.upgrade(), e.token));
            match next {
                Some((Some(watcher), token)) => watcher.changed(token),
                Some((None, _)) => {}
                None => return,
            }
            at += 1;
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(list) = self.list.upgrade() {
            list.watchers.borrow_mut().retain(|entry| entry.number != self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Notes(RefCell<Vec<u32>>);

    impl Watcher for Notes {
        fn changed(&self, token: u32) {
            self.0.borrow_mut().push(token);
        }
    }

    #[test]
    fn watchers_are_told_until_their_guard_is_dropped() {
        let notes = Rc::new(Notes::default());
        let watcher: Rc<dyn Watcher> = notes.clone();
        let watchers = Watchers::default();
        let first = watchers.add(&watcher, 1);
        let second = watchers.add(&watcher, 2);
        watchers.tell();
        drop(first);
        watchers.tell();
        drop(second);
        watchers.tell();
        assert_eq!(*notes.0.borrow(), [1, 2, 2]);
    }

    #[test]
    fn a_watcher_that_is_gone_is_not_kept_alive() {
        let watchers = Watchers::default();
        let watcher: Rc<dyn Watcher> = Rc::new(Notes::default());
        let _watching = watchers.add(&watcher, 1);
        drop(watcher);
        watchers.tell();
    }
}
