//! The simulated coordination service passes the same suite as the real ones: what the simulation proves about the code
//! above it is worth as much as the likeness of what is below.

use std::cell::Cell;
use std::time::Duration;

use corelog_replication::coordination::Coordination as _;
use corelog_replication::coordination::conformance::{Service, one_session, several_sessions};
use corelog_sim::coordination::{SimCoordination, SimCoordinationOptions, SimCoordinationService};
use corelog_sim::executor::{Executor, Group};
use corelog_sim::network::Machine;

struct Simulated {
    executor: Executor,
    service: SimCoordinationService,
    machines: Cell<u32>,
}

struct Connected {
    store: SimCoordination,
    group: Group,
}
