//! The door for the replication streams of other nodes.
//!
//! Owns: accepting. Who they are is asked by the stream itself (its hello names the cluster and a node), which also
//! bounds how many may be there; what is no hello, or comes too late, ends its own connection alone.
//! With no descriptors left the loop waits a little instead of spinning.

use std::net::TcpListener as StdListener;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::time::Duration;

use glommio::net::TcpListener;

use super::host::ShardHost;
use super::link::TcpLink;
use super::socket::prepare;

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
        // One that is gone before it was let in has no options to set.
        if let Ok(transport) = prepare(stream) {
            take_in(TcpLink::new(transport, traffic.clone()));
        }
    }
}
