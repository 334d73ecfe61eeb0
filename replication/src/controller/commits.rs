//! Cuts what a controller wants to store into commits.
//!
//! Owns: the sizes. Each commit begins with the check of the controller's term, so that a deposed controller changes
//! nothing, and holds few enough parts that a conflict costs little.

use crate::coordination::{OPS_MAX, Op};

/// Most parts of one commit, the check not counted. One conflict costs the whole commit, and another plan is made of the
/// newest state; one commit costs a round of the service's disks.
const PARTS_MAX: usize = 100;
/// Most bytes of values in one commit: a request to ZooKeeper ends at 1 MiB.
const BYTES_MAX: usize = 256 << 10;
const _: () = assert!(PARTS_MAX < OPS_MAX);

/// Commits under construction.
pub(super) struct Commits {
    guards: Vec<Op>,
    full: Vec<Vec<Op>>,
    open: Vec<Op>,
    open_bytes: usize,
}

impl Commits {
    /// Commits that each begin with `guards`.
    pub(super) fn new(guards: Vec<Op>) -> Self {
        Self { guards, full: vec![], open: vec![], open_bytes: 0 }
    }

    /// Adds parts that belong together: they are never split.
    pub(super) fn add(&mut self, parts: impl IntoIterator<Item = Op>) {
        let parts: Vec<Op> = parts.into_iter().collect();
        let bytes = parts.iter().map(value_bytes).sum::<usize>();
        if self.open.len() + parts.len() > PARTS_MAX || self.open_bytes + bytes > BYTES_MAX {
            self.close();
        }
        self.open.extend(parts);
        self.open_bytes += bytes;
    }

    /// Ends the commit under construction; what follows goes into another one.
    pub(super) fn close(&mut self) {
        if !self.open.is_empty() {
            let parts = std::mem::take(&mut self.open);
            self.full.push(self.guards.iter().cloned().chain(parts).collect());
        }
        self.open_bytes = 0;
    }

    /// All commits, in the order of adding.
    pub(super) fn finish(mut self) -> Vec<Vec<Op>> {
        self.close();
        self.full
    }
}

fn value_bytes(op: &Op) -> usize {
    match op {
        Op::Create { value, .. } | Op::Put { value, .. } => value.len(),
        Op::Check { .. } | Op::Delete { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::coordination::Version;

    fn check(name: &str) -> Op {
        Op::Check { key: format!("/{name}"), version: Version(1) }
    }

    fn put(bytes: usize) -> Op {
        Op::Put { key: "/p".to_owned(), value: Rc::from(vec![0; bytes]), version: Version(1) }
    }

    #[test]
    fn each_commit_begins_with_the_check() {
        let mut commits = Commits::new(vec![check("guard")]);
        assert_eq!(Commits::new(vec![check("guard")]).finish(), Vec::<Vec<Op>>::new());
        (0..PARTS_MAX + 1).for_each(|_| commits.add([put(1)]));
        let made = commits.finish();
        assert_eq!(made.iter().map(Vec::len).collect::<Vec<_>>(), [PARTS_MAX + 1, 2]);
        assert!(made.iter().all(|ops| ops[0] == check("guard")));
    }

    #[test]
    fn what_belongs_together_stays_together() {
        let mut commits = Commits::new(vec![check("guard")]);
        (0..PARTS_MAX - 1).for_each(|_| commits.add([put(1)]));
        commits.add([put(1), put(1)]);
        let made = commits.finish();
        assert_eq!(made.iter().map(Vec::len).collect::<Vec<_>>(), [PARTS_MAX, 3]);
    }

    #[test]
    fn large_values_get_commits_of_their_own() {
        let mut commits = Commits::new(vec![]);
        (0..3).for_each(|_| commits.add([put(BYTES_MAX / 2)]));
        assert_eq!(commits.finish().iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
    }
}
