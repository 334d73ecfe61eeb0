//! Notes what clients see, for the checker.
//!
//! Owns: the history of one run, and the faults that only the simulation can see (an isolated node that serves).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use corelog_engine::TopicPartition;

use crate::checker::{Event, History, LeaderSeen, PartitionKey};
use crate::executor::Handle;

/// The notes of one run. Cheap to clone.
#[derive(Clone)]
pub struct Recorder(Rc<Notes>);

struct Notes {
    handle: Handle,
    history: RefCell<History>,
    leaders: RefCell<BTreeSet<(TopicPartition, u32, String, u64)>>,
    complaints: RefCell<Vec<String>>,
}

impl Recorder {
    /// Nothing yet.
    pub fn new(handle: Handle) -> Self {
        Self(Rc::new(Notes {
            handle,
            history: RefCell::default(),
            leaders: RefCell::default(),
            complaints: RefCell::default(),
        }))
    }

    /// Notes an operation.
    pub fn note(&self, event: Event) {
        self.0.history.borrow_mut().events.push(event);
    }

    /// Notes that a replica acted as leader.
    pub fn led(&self, partition: TopicPartition, epoch: u32, replica: &str, incarnation: u64) {
        let seen = (partition, epoch, replica.to_owned(), incarnation);
        if self.0.leaders.borrow_mut().insert(seen) {
            let partition = key(partition);
            self.note(Event::Leader(LeaderSeen { partition, epoch, replica: replica.into(), incarnation }));
        }
    }

    /// Notes something that must not happen and that no history shows.
    pub fn complain(&self, what: String) {
        self.0.handle.note(format_args!("COMPLAINT {what}"));
        self.0.complaints.borrow_mut().push(what);
    }

    /// What was complained of.
    pub fn complaints(&self) -> Vec<String> {
        self.0.complaints.borrow().clone()
    }

    /// Looks at the history, or completes it.
    pub fn with<R>(&self, look: impl FnOnce(&mut History) -> R) -> R {
        look(&mut self.0.history.borrow_mut())
    }

    /// Microseconds since the start.
    pub fn now_us(&self) -> u64 {
        self.0.handle.now_us()
    }
}

/// A partition as the checker names it.
pub fn key(partition: TopicPartition) -> PartitionKey {
    PartitionKey { topic: partition.topic.to_string().into(), partition: partition.partition.0 }
}
