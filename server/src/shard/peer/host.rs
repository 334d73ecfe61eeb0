//! The shard as its replication streams see it: tasks, time, connections, and the way to the control thread.
//!
//! Owns: in which queue a task of a stream runs, and the reports that wait for the control thread.
//! Invariant: a report never blocks a stream. One about the same thing replaces one that still waits, so at most one
//! for each partition, node and replica waits.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use corelog_engine::TimestampMs;
use corelog_engine::TopicPartition;
use corelog_engine::notify::Notify;
use corelog_replication::cluster::Endpoint;
use corelog_replication::stream::{ConnectError, Host, Priority};
use corelog_replication::{NodeId, ReplicaId, Report};
use glommio::TaskQueueHandle;
use rustc_hash::FxHashMap;

use super::super::clock::Clock;
use super::link::TcpLink;
use super::socket::{DialError, dial};
use super::traffic::Traffic;
use crate::control::ShardReport;

/// A shard. Cheap to clone; all clones are the same one.
#[derive(Clone)]
pub(in super::super) struct ShardHost(Rc<Inner>);

struct Inner {
    clock: Clock,
    latency: TaskQueueHandle,
    background: TaskQueueHandle,
    outbox: Outbox,
    traffic: Rc<Traffic>,
}

impl ShardHost {
    /// Streams run in these two queues.
    pub(in super::super) fn new(clock: Clock, latency: TaskQueueHandle, background: TaskQueueHandle) -> Self {
        let (outbox, traffic) = (Outbox::default(), Rc::default());
        Self(Rc::new(Inner { clock, latency, background, outbox, traffic }))
    }

    /// What its streams have carried.
    pub(in super::super) fn traffic(&self) -> &Rc<Traffic> {
        &self.0.traffic
    }

    /// Passes reports on as they come, for as long as the control thread is there.
    pub(in super::super) async fn pass_on(self, reports: flume::Sender<ShardReport>) {
        loop {
            let report = self.0.outbox.next().await;
            if reports.send_async(ShardReport::Replication(report)).await.is_err() {
                return;
            }
        }
    }
}

impl Host for ShardHost {
    type Link = TcpLink;

    fn now_ms(&self) -> u64 {
        self.0.clock.elapsed_ms()
    }

    fn wall(&self) -> TimestampMs {
        self.0.clock.now()
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static, priority: Priority) {
        let queue = match priority {
            Priority::Stream => self.0.latency,
            Priority::Background => self.0.background,
        };
        // Joined by nobody: streams are told to end, and the executor drops what is left with the shard.
        glommio::spawn_local_into(task, queue).expect("the queue lives as long as the executor").detach();
    }

    async fn sleep(&self, ms: u64) {
        glommio::timer::sleep(Duration::from_millis(ms)).await;
    }

    async fn connect(&self, to: &Endpoint) -> Result<TcpLink, ConnectError> {
        match dial(to).await {
            Ok(transport) => Ok(TcpLink::new(transport, self.0.traffic.clone())),
            Err(DialError::Refused { .. }) => Err(ConnectError::Refused),
            Err(error @ DialError::Unreachable { .. }) => Err(ConnectError::Unreachable(error.to_string())),
        }
    }

    fn report(&self, report: Report) {
        self.0.outbox.put(report);
    }
}

/// What a report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum About {
    Isr(TopicPartition),
    Node(NodeId),
    Replica(ReplicaId),
}

fn about(report: &Report) -> About {
    match report {
        Report::Isr(proposal) => About::Isr(proposal.partition),
        Report::Seen { node, .. } => About::Node(*node),
        Report::Verified { replica } => About::Replica(*replica),
    }
}

/// Reports that wait, the oldest thing first.
#[derive(Default)]
struct Outbox {
    waiting: RefCell<Waiting>,
    filled: Notify,
}

#[derive(Default)]
struct Waiting {
    order: VecDeque<About>,
    reports: FxHashMap<About, Report>,
}

impl Outbox {
    fn put(&self, report: Report) {
        let about = about(&report);
        let mut waiting = self.waiting.borrow_mut();
        if waiting.reports.insert(about, report).is_none() {
            waiting.order.push_back(about);
        }
        drop(waiting);
        self.filled.notify_all();
    }

    async fn next(&self) -> Report {
        loop {
            let filled = self.filled.notified();
            if let Some(report) = self.take() {
                return report;
            }
            filled.await;
        }
    }

    fn take(&self) -> Option<Report> {
        let mut waiting = self.waiting.borrow_mut();
        let about = waiting.order.pop_front()?;
        Some(waiting.reports.remove(&about).expect("each in the order has its report"))
    }
}

#[cfg(test)]
mod tests {
    use corelog_replication::Sighting;

    use super::*;

    #[test]
    fn a_newer_report_about_the_same_thing_takes_the_place_of_one_that_waits() {
        let outbox = Outbox::default();
        let seen = |node, sighting| Report::Seen {
            node: NodeId(node),
            incarnation: corelog_replication::cluster::Incarnation(1),
            sighting,
        };
        outbox.put(seen(1, Sighting::Refused));
        outbox.put(seen(2, Sighting::Refused));
        outbox.put(seen(1, Sighting::Connected));
        assert_eq!(outbox.take(), Some(seen(1, Sighting::Connected)));
        assert_eq!(outbox.take(), Some(seen(2, Sighting::Refused)));
        assert_eq!(outbox.take(), None);
        outbox.put(seen(1, Sighting::Refused));
        assert_eq!(outbox.take(), Some(seen(1, Sighting::Refused)));
    }
}
