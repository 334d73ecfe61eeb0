//! What sessions did, counted.
//!
//! Owns: one set of counters for each connection; the shard's are their sum, and that of the connections that ended.
//! They only grow, except the gauges of [`ConnectionStats`].

/// Counts since the start of the shard or of the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests read.
    pub requests: u64,
    /// Answers that said that the whole request failed.
    pub failed_requests: u64,
    /// Bytes read from the socket.
    pub received_bytes: u64,
    /// Bytes written to the socket.
    pub sent_bytes: u64,
    /// Record bytes that came in.
    pub produce_bytes: u64,
    /// Record bytes that went out.
    pub fetch_bytes: u64,
    /// Reads that brought something: one system call or more each.
    pub reads: u64,
    /// Writes that took something.
    pub writes: u64,
    /// Bytes moved within receive buffers, because a frame did not fit behind another: copies beyond the one.
    pub moved_bytes: u64,
    /// How often reading stopped because too much was unanswered.
    pub pauses: u64,
}

impl Traffic {
    /// Adds the counts of another connection.
    pub(crate) fn add(&mut self, more: &Self) {
        self.requests += more.requests;
        self.failed_requests += more.failed_requests;
        self.received_bytes += more.received_bytes;
        self.sent_bytes += more.sent_bytes;
        self.produce_bytes += more.produce_bytes;
        self.fetch_bytes += more.fetch_bytes;
        self.reads += more.reads;
        self.writes += more.writes;
        self.moved_bytes += more.moved_bytes;
        self.pauses += more.pauses;
    }
}

/// How connections began and ended, since the start of the shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Open now.
    pub open: usize,
    /// Accepted.
    pub accepted: u64,
    /// Refused because `connections_max` were open.
    pub refused: u64,
    /// Closed by the server because bytes made no sense.
    pub garbage: u64,
    /// Closed by the server because a time ran out.
    pub timed_out: u64,
    /// Ended by the peer in the middle of a frame, or by a broken connection.
    pub broken: u64,
}

/// One open connection.
#[derive(Clone, Debug)]
pub struct ConnectionStats {
    /// Its number.
    pub connection: u64,
    /// Address of the peer.
    pub peer: String,
    /// What the client calls itself; empty before the handshake.
    pub client_id: String,
    /// Requests read and not answered.
    pub in_flight_requests: u32,
    /// Bytes of those.
    pub in_flight_bytes: u64,
    /// Memory of its receive buffer.
    pub receive_buffer_bytes: usize,
    /// Counts.
    pub traffic: Traffic,
}
