//! The real controller, one for each term, behind what the agent asks for.

use corelog_replication::agent::Planner;
use corelog_replication::cluster::{ClusterState, ControllerRecord};
use corelog_replication::controller::{Controller, ControllerOptions};
use corelog_replication::coordination::Op;

use crate::executor::Handle;

/// Makes a controller whenever this node begins a term.
struct Terms {
    options: ControllerOptions,
    handle: Handle,
    present: Option<(ControllerRecord, Controller)>,
    now_ms: u64,
}

/// The planner of one process.
pub(super) fn planner(options: ControllerOptions, handle: &Handle) -> Box<dyn Planner> {
    Box::new(Terms { options, handle: handle.clone(), present: None, now_ms: 0 })
}

/// A random id.
pub(super) fn random_id(handle: &Handle) -> u128 {
    u128::from(handle.random(1..u64::MAX)) << 64 | u128::from(handle.random(0..u64::MAX))
}

impl Planner for Terms {
    fn plan(&mut self, cluster: &ClusterState, now_ms: u64) -> Vec<Vec<Op>> {
        self.now_ms = now_ms;
        let Some(term) = cluster.controller.as_ref().map(|stored| *stored.record) else { return Vec::new() };
        if self.present.as_ref().is_none_or(|(present, _)| *present != term) {
            let handle = self.handle.clone();
            let controller = Controller::new(self.options, term, Box::new(move || random_id(&handle)));
            self.present = Some((term, controller));
        }
        self.present.as_mut().map(|(_, controller)| controller.plan(cluster, now_ms)).unwrap_or_default()
    }

    fn next_wake_ms(&self) -> Option<u64> {
        let at_ms = self.present.as_ref().and_then(|(_, controller)| controller.next_wake_ms())?;
        Some(at_ms.saturating_sub(self.now_ms).max(1))
    }
}
