//! The ends of the node's agent on the control thread: its clock, and who hears what the picture does not show.
//!
//! Owns: the way from the agent to the control loop. The listener is called while the agent works, so it only puts notes
//! down; the loop reads them in its next turn.

use std::time::Duration;

use corelog_engine::TopicPartition;
use corelog_replication::agent::{AgentListener, Clock};
use corelog_replication::cluster::NodeRecord;
use corelog_replication::coordination::Version;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::thread::Note;

/// The clock of the tokio runtime.
#[derive(Clone, Copy, Debug)]
pub(super) struct ControlClock {
    started: Instant,
}

impl ControlClock {
    /// A clock that begins now.
    pub(super) fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Clock for ControlClock {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).expect("a node runs for less than ages")
    }

    async fn sleep(&self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }
}

/// Puts down what the agent says. Unbounded, because the agent cannot wait; what it says is bounded by what shards propose.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    pub(super) notes: mpsc::UnboundedSender<Note>,
}

impl AgentListener for Listener {
    fn isr_refused(&self, partition: TopicPartition, version: Version) {
        // A loop that has ended needs no notes.
        let _ = self.notes.send(Note::IsrRefused { partition, version });
    }

    fn store_refused(&self, key: &str, reason: &str) {
        tracing::error!(
            key,
            reason,
            "the coordination service refused a change; look at its permissions and limits"
        );
    }

    fn replaced(&self, by: &NodeRecord) {
        let _ = self.notes.send(Note::Replaced { started: by.started });
    }
}
