//! What the replication streams of a shard have carried: counters of one core, for metrics.

use std::cell::Cell;

use super::link::Side;

/// Bytes and connections of all streams of a shard, since it began.
#[derive(Debug, Default)]
pub(in super::super) struct Traffic {
    sent_bytes: Cell<u64>,
    received_bytes: Cell<u64>,
    open_here: Cell<u32>,
    open_there: Cell<u32>,
    refused: Cell<u64>,
}

impl Traffic {
    pub(super) fn sent(&self, bytes: u64) {
        self.sent_bytes.set(self.sent_bytes.get() + bytes);
    }

    pub(super) fn received(&self, bytes: u64) {
        self.received_bytes.set(self.received_bytes.get() + bytes);
    }

    pub(super) fn opened(&self, from: Side) {
        let open = self.open(from);
        open.set(open.get() + 1);
    }

    pub(super) fn closed(&self, from: Side) {
        let open = self.open(from);
        open.set(open.get() - 1);
    }

    fn open(&self, from: Side) -> &Cell<u32> {
        match from {
            Side::Here => &self.open_here,
            Side::There => &self.open_there,
        }
    }

    /// Connections that others have made and that are open now.
    pub(super) fn inbound(&self) -> u32 {
        self.open_there.get()
    }

    pub(super) fn refused(&self) {
        self.refused.set(self.refused.get() + 1);
    }

    /// Bytes sent and received, heads included.
    pub(in super::super) fn bytes(&self) -> (u64, u64) {
        (self.sent_bytes.get(), self.received_bytes.get())
    }

    /// Connections that are open now, both directions.
    pub(in super::super) fn connections(&self) -> u32 {
        self.open_here.get() + self.open_there.get()
    }

    /// Connections that were turned away at the limit.
    pub(in super::super) fn connections_refused(&self) -> u64 {
        self.refused.get()
    }
}
