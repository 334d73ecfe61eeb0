//! What the replication streams of a shard have carried: counters of one core, for metrics.

use std::cell::Cell;

/// Bytes and connections of all streams of a shard, since it began.
#[derive(Debug, Default)]
pub(in super::super) struct Traffic {
    sent_bytes: Cell<u64>,
    received_bytes: Cell<u64>,
    open: Cell<u32>,
}

impl Traffic {
    pub(super) fn sent(&self, bytes: u64) {
        self.sent_bytes.set(self.sent_bytes.get() + bytes);
    }

    pub(super) fn received(&self, bytes: u64) {
        self.received_bytes.set(self.received_bytes.get() + bytes);
    }

    pub(super) fn opened(&self) {
        self.open.set(self.open.get() + 1);
    }

    pub(super) fn closed(&self) {
        self.open.set(self.open.get() - 1);
    }

    /// Bytes sent and received, heads included.
    pub(in super::super) fn bytes(&self) -> (u64, u64) {
        (self.sent_bytes.get(), self.received_bytes.get())
    }

    /// Connections that are open now, of both directions.
    pub(in super::super) fn connections(&self) -> u32 {
        self.open.get()
    }
}
