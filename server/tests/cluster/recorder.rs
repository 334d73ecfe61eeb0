//! Notes what clients see, in the shapes of the checker, with one clock.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use corelog_sim::checker::{Event, History, PartitionKey, Produce, ProduceOutcome};

/// What the run was like, beside the history.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) acked: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    pub(crate) read: u64,
    /// Requests that a direct client sent to a node that did not lead, and that were turned away.
    pub(crate) turned_away: u64,
    /// Changes by the operator that went through.
    pub(crate) changes: u64,
}

/// A time without an ack in one partition.
pub(crate) struct Pause {
    pub(crate) partition: u32,
    pub(crate) length: Duration,
    /// When it ended, since the beginning.
    pub(crate) until: Duration,
}

/// Clones share what is noted.
#[derive(Clone)]
pub(crate) struct Recorder {
    began: Instant,
    history: Rc<RefCell<History>>,
    pub(crate) tally: Rc<RefCell<Tally>>,
    is_over: Rc<Cell<bool>>,
    names: Rc<RefCell<HashMap<String, Rc<str>>>>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            history: Rc::default(),
            tally: Rc::default(),
            is_over: Rc::default(),
            names: Rc::default(),
        }
    }

    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    pub(crate) fn now_us(&self) -> u64 {
        micros(self.began.elapsed())
    }

    /// A partition as the history names it.
    pub(crate) fn key(&self, topic: &str, partition: u32) -> PartitionKey {
        let mut names = self.names.borrow_mut();
        let topic = names.entry(topic.to_owned()).or_insert_with(|| topic.into()).clone();
        PartitionKey { topic, partition }
    }

    pub(crate) fn note(&self, event: Event) {
        let mut tally = self.tally.borrow_mut();
        match &event {
            Event::Produce(produce) => {
                let count = match produce.outcome {
                    ProduceOutcome::Acked { .. } => &mut tally.acked,
                    ProduceOutcome::Refused => &mut tally.refused,
                    ProduceOutcome::Unknown => &mut tally.unknown,
                };
                *count += u64::from(produce.records);
            }
            Event::Read(read) => tally.read += read.records.len() as u64,
            _ => {}
        }
        self.history.borrow_mut().events.push(event);
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut History) -> T) -> T {
        look(&mut self.history.borrow_mut())
    }

    /// Whether clients are to end.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.get()
    }

    pub(crate) fn end(&self) {
        self.is_over.set(true);
    }

    /// The longest time that one partition of a topic was without an ack.
    pub(crate) fn longest_pause(&self, topic: &str) -> Option<Pause> {
        let history = self.history.borrow();
        let acked = |event: &Event| match event {
            Event::Produce(Produce {
                partition,
                outcome: ProduceOutcome::Acked { .. },
                answered_us,
                asked_us: _,
                ..
            }) if &*partition.topic == topic => Some((partition.partition, *answered_us)),
            _ => None,
        };
        let mut at: Vec<(u32, u64)> = history.events.iter().filter_map(acked).collect();
        at.sort_unstable();
        let pauses = at.windows(2).filter(|pair| pair[0].0 == pair[1].0);
        let longest = pauses.max_by_key(|pair| pair[1].1 - pair[0].1)?;
        let ((partition, from), (_, until)) = (longest[0], longest[1]);
        let (length, until) = (Duration::from_micros(until - from), Duration::from_micros(until));
        Some(Pause { partition, length, until })
    }
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).expect("a test does not run for so long")
}
