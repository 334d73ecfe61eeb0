//! The door for the replication streams of other nodes.
//!
//! Owns: accepting, and how many connections others may hold open. Who they are is asked by the stream itself (its hello
//! names the cluster and a node); what is no hello, or comes too late, ends its own connection alone.
//! Limits: [`INBOUND_MAX`] connections; beyond, a new one is closed at once. With no descriptors left the loop waits a
//! little instead of spinning.

use std::net::TcpListener as StdListener;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::time::Duration;

use glommio::net::TcpListener;

use super::host::ShardHost;
use super::link::{Side, TcpLink};
use super::socket::prepare;

/// Connections that others may hold open: 30 nodes of 32 shards each, and some that break off and come again.
const INBOUND_MAX: u32 = 1024;

/// Pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Accepts connections and hands each to `take_in`, until it is dropped.
pub(in super::super) async fn accept_peers(
    host: ShardHost,
    listener: StdListener,
    take_in: impl Fn(TcpLink),
) {
    // SAFETY: the descriptor was just given up by its owner.
    let listener = unsafe { TcpListener::from_raw_fd(listener.into_raw_fd()) };
    let traffic = host.traffic().clone();
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a replication stream; is `ulimit -n` too low?");
                glommio::timer::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        if traffic.inbound() >= INBOUND_MAX {
            traffic.refused();
            continue;
        }
        // One that is gone before it was let in has no options to set.
        if let Ok(transport) = prepare(stream) {
            take_in(TcpLink::new(transport, Side::There, traffic.clone()));
        }
    }
}
