//! Who uses the simulated cluster: producers, consumers, and an operator.
//!
//! Owns: the load, its end, and what the operator has asked to be deleted. What clients see goes to the recorder.

mod client;
mod consumer;
mod operator;
mod producer;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use corelog_engine::{TimestampMs, TopicPartition};

pub use client::{Client, ClientConnection, Leader};
pub use operator::{Operator, TopicPlan};

use crate::cluster::SimCluster;

/// Producers and consumers that run until they are told to end.
pub struct Workload {
    cluster: Rc<SimCluster>,
    is_loading: Cell<bool>,
    pause_ms_max: u64,
    producers: Cell<usize>,
    acks: Cell<u64>,
    /// Where most of the load goes for now.
    focus: Cell<Option<TopicPartition>>,
    /// Highest log start that was asked for.
    deleted: RefCell<BTreeMap<TopicPartition, u64>>,
}

impl Workload {
    /// Starts producers and consumers.
    pub fn start(cluster: &Rc<SimCluster>, producers: u32, consumers: u32, pause_ms_max: u64) -> Rc<Self> {
        let workload = Rc::new(Self {
            cluster: cluster.clone(),
            is_loading: Cell::new(true),
            pause_ms_max,
            producers: Cell::new(producers as usize),
            acks: Cell::new(0),
            focus: Cell::new(None),
            deleted: RefCell::default(),
        });
        let handle = &cluster.world.handle;
        for number in 0..producers {
            let client = workload.client(number);
            handle.spawn(producer::produce(workload.clone(), client, number));
        }
        for number in 0..consumers {
            let client = workload.client(100 + number);
            handle.spawn(consumer::consume(workload.clone(), client, number));
        }
        workload
    }

    /// A client of its own.
    pub fn client(&self, number: u32) -> Rc<Client> {
        let nodes = self.cluster.nodes.iter().map(|node| node.id).collect();
        Client::new(&self.cluster.world, number, nodes)
    }

    /// Ends the load: who is in the middle of something finishes it.
    pub fn end(&self) {
        self.is_loading.set(false);
    }

    /// Whether all producers have ended.
    pub fn has_ended(&self) -> bool {
        self.producers.get() == 0
    }

    /// Produce requests that were acked.
    pub fn acks(&self) -> u64 {
        self.acks.get()
    }

    /// Notes that records below an offset may be deleted from now on.
    pub fn may_delete(&self, partition: TopicPartition, before: u64) {
        let mut deleted = self.deleted.borrow_mut();
        let known = deleted.entry(partition).or_insert(0);
        *known = (*known).max(before);
    }

    /// Highest log start that was asked for.
    pub fn deleted(&self, partition: TopicPartition) -> u64 {
        self.deleted.borrow().get(&partition).copied().unwrap_or(0)
    }

    /// Lets most of the load go to one partition, faster, or to all again.
    pub fn focus(&self, partition: Option<TopicPartition>) {
        self.focus.set(partition);
    }

    fn is_loading(&self) -> bool {
        self.is_loading.get()
    }

    /// Longest pause of a client between two turns.
    fn pause_ms_max(&self) -> u64 {
        if self.focus.get().is_some() { self.pause_ms_max / 4 } else { self.pause_ms_max }
    }

    fn producer_ended(&self) {
        self.producers.set(self.producers.get() - 1);
    }

    fn count_ack(&self) {
        self.acks.set(self.acks.get() + 1);
    }

    fn wall(&self) -> TimestampMs {
        TimestampMs(1_800_000_000_000 + (self.cluster.world.recorder.now_us() / 1000) as i64)
    }
}
