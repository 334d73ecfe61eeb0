//! TCP connections between nodes: how they are made, and when a silent one is given up.
//!
//! Owns: name look-up, the time-out of a connection attempt, and what tells "nobody listens there" (the process is
//! gone: evidence) from "no answer" (the network, or a host that is down: no evidence).
//! Invariant: a connection on which sent bytes are not acknowledged for [`UNACKED_MS_MAX`] breaks, so that a host that
//! vanished without a word is noticed by the kernel even if nobody looks.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use corelog_replication::cluster::Endpoint;
use glommio::net::TcpStream;
use socket2::{SockRef, TcpKeepalive};

use super::super::transport::{TcpTransport, io_error};

/// How long one address is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long sent bytes may stay unacknowledged by the peer's host.
const UNACKED_MS_MAX: u64 = 10_000;

/// When an idle connection is first probed, and how often then.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    /// The host is up, and nobody listens on the port.
    #[error("nobody listens on {host}:{port}")]
    Refused {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// Anything else; says nothing about the process that should be there.
    #[error("cannot connect to {host}:{port}: {source}")]
    Unreachable {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
}

/// Connects to a shard of another node.
pub(super) async fn dial(to: &Endpoint) -> Result<TcpTransport, DialError> {
    let (host, port) = (to.host.clone(), to.port);
    match connect(to).await {
        Ok(transport) => Ok(transport),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Err(DialError::Refused { host, port })
        }
        Err(source) => Err(DialError::Unreachable { host, port, source }),
    }
}

async fn connect(to: &Endpoint) -> io::Result<TcpTransport> {
    let mut last = None;
    for address in look_up(to).await? {
        match TcpStream::connect_timeout(address, CONNECT_TIMEOUT).await.map_err(io_error) {
            Ok(stream) => return prepare(stream),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
}

/// The addresses of a name; IPv4 first, as listeners prefer it. A name is looked up on a thread of its own, because
/// the system's resolver blocks.
async fn look_up(to: &Endpoint) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = to.host.parse() {
        return Ok(vec![SocketAddr::new(address, to.port)]);
    }
    let (host, port) = (to.host.clone(), to.port);
    let resolve = move || (host.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
    let mut addresses = glommio::executor().spawn_blocking(resolve).await?;
    addresses.sort_by_key(SocketAddr::is_ipv6);
    Ok(addresses)
}

/// Makes a connection ready for a stream: no delay, and an end when the other host is gone.
pub(super) fn prepare(stream: TcpStream) -> io::Result<TcpTransport> {
    // SAFETY: the descriptor is open as long as `stream`, which outlives the borrow.
    let descriptor = unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) };
    let socket = SockRef::from(&descriptor);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(Duration::from_millis(UNACKED_MS_MAX)))?;
    TcpTransport::new(stream)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use glommio::LocalExecutorBuilder;

    use super::*;

    fn endpoint(host: &str, port: u16) -> Endpoint {
        Endpoint { host: host.to_owned(), port }
    }

    #[test]
    fn a_refusal_is_told_from_silence_and_names_are_looked_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let executor = LocalExecutorBuilder::default().io_memory(64 << 10).make().unwrap();
        executor.run(async move {
            assert!(dial(&endpoint("127.0.0.1", port)).await.is_ok());
            assert!(dial(&endpoint("localhost", port)).await.is_ok());
            let refused = dial(&endpoint("127.0.0.1", free)).await;
            assert!(matches!(refused, Err(DialError::Refused { .. })));
            let unknown = dial(&endpoint("no-such-host.invalid", port)).await;
            assert!(matches!(unknown, Err(DialError::Unreachable { .. })));
        });
    }
}
