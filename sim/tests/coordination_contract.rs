//! The simulated coordination service passes the same suite as the real ones: what the simulation proves about the code
//! above it is worth as much as the likeness of what is below.

use std::cell::Cell;
use std::future::Future;

use corelog_replication::coordination::conformance::{Service, one_session, several_sessions};
use corelog_replication::coordination::{CommitError, Coordination, Event, Op, Version};
use corelog_sim::coordination::{SimCoordination, SimCoordinationOptions, SimCoordinationService};
use corelog_sim::network::Machine;
use corelog_sim::{Executor, Group};

/// One process for each session.
struct Simulated {
    executor: Executor,
    service: SimCoordinationService,
    machines: Cell<u32>,
}

#[derive(Clone)]
struct Process {
    store: SimCoordination,
    group: Group,
    machine: Machine,
}

impl Coordination for Process {
    fn next(&self) -> impl Future<Output = Event> {
        self.store.next()
    }

    fn commit(&self, ops: Vec<Op>) -> impl Future<Output = Result<Vec<Version>, CommitError>> {
        self.store.commit(ops)
    }
}

impl Service for Simulated {
    type Store = Process;

    async fn connect(&self) -> Process {
        let machine = Machine(self.machines.get());
        self.machines.set(machine.0 + 1);
        let handle = self.executor.handle().new_group();
        let store = SimCoordination::new(&self.service, &handle, machine);
        Process { store, group: handle.group(), machine }
    }

    fn tells_newest(&self) -> bool {
        true
    }

    async fn end(&self, process: Process) {
        self.executor.handle().kill_group(process.group);
        self.service.expire(process.machine);
    }
}

#[test]
fn the_simulated_service_keeps_the_contract() {
    for seed in 0..20 {
        let executor = Executor::new(seed);
        let service = SimCoordinationService::new(executor.handle(), SimCoordinationOptions::default());
        let simulated = Simulated { executor, service, machines: Cell::new(1) };
        simulated.executor.run_until(async {
            one_session(&simulated).await;
            several_sessions(&simulated).await;
        });
    }
}
