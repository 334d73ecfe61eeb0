//! A shard's door: its socket, and the loop that lets connections in.
//!
//! Owns: binding (before any shard runs, so that a taken port is an error at the start) and accepting.
//! Limits: `connections_max` is the sessions' own; one that is turned away is told so. With no descriptors left the
//! loop waits a little instead of spinning.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{FromRawFd, IntoRawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use corelog_net::native::{self, Peer};
use glommio::TaskQueueHandle;
use glommio::net::TcpListener;
use socket2::{Domain, Protocol, Socket, Type};

use super::backend::ShardBackend;
use super::state::SharedShard;
use super::transport::{TcpTransport, io_error};

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;

/// Pause after a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How often a free range of ports is looked for.
const RANGE_TRIES: usize = 64;

/// How long a taken port is waited for, and how often it is tried. After a SIGKILL the kernel takes the io_uring
/// rings of the last run apart in the background, and its sockets stay open for some ms after the process is gone:
/// a supervisor that restarts at once must not meet "address in use".
const TAKEN_PATIENCE: Duration = Duration::from_secs(2);
const TAKEN_RETRY: Duration = Duration::from_millis(20);

/// Binds one socket for each shard: shard i on the port plus i. Port 0: any free range of ports.
///
/// Errors: a port is taken or may not be used; the message names it. Blocks for up to `TAKEN_PATIENCE`.
pub fn bind(address: SocketAddr, shards: u16) -> io::Result<Vec<StdListener>> {
    if address.port() != 0 {
        return patiently(|| bind_range(address, shards));
    }
    let mut tries = 0;
    loop {
        let first = bind_one(address)?;
        let base = first.local_addr()?;
        let mut listeners = vec![first];
        let others = (1..shards).map(|i| match base.port().checked_add(i) {
            Some(port) => bind_one(SocketAddr::new(base.ip(), port)),
            None => Err(io::Error::from(io::ErrorKind::AddrInUse)),
        });
        match others.collect::<io::Result<Vec<_>>>() {
            Ok(others) => {
                listeners.extend(others);
                return Ok(listeners);
            }
            Err(error) if tries == RANGE_TRIES => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

/// Tries again while the address is taken, for a while.
pub fn patiently<T>(mut bind: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let started = Instant::now();
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && started.elapsed() < TAKEN_PATIENCE => {
                std::thread::sleep(TAKEN_RETRY);
            }
            other => return other,
        }
    }
}

fn bind_range(first: SocketAddr, shards: u16) -> io::Result<Vec<StdListener>> {
    (0..shards)
        .map(|i| {
            let port = first.port().checked_add(i).ok_or_else(|| {
                let message = format!("{shards} shards from port {} on pass port 65535", first.port());
                io::Error::new(io::ErrorKind::InvalidInput, message)
            })?;
            let address = SocketAddr::new(first.ip(), port);
            let named = |error: io::Error| {
                io::Error::new(error.kind(), format!("cannot listen on {address} (shard {i}): {error}"))
            };
            bind_one(address).map_err(named)
        })
        .collect()
}

fn bind_one(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for connections of the last run to time out. Not SO_REUSEPORT: a second server on
    // the same port has to fail.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts connections and serves each in a task of `queue`, until it is dropped.
pub(super) async fn accept(shard: SharedShard, listener: StdListener, queue: TaskQueueHandle) {
    // SAFETY: the descriptor was just given up by its owner.
    let listener = unsafe { TcpListener::from_raw_fd(listener.into_raw_fd()) };
    let backend = Rc::new(ShardBackend(shard.clone()));
    let name: Rc<str> = "native".into();
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(shard = shard.id.0, %error, "cannot accept a connection; is `ulimit -n` too low?");
                glommio::timer::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let address = match stream.peer_addr().map_err(io_error) {
            Ok(address) => address.to_string(),
            // Gone before it was let in.
            Err(_) => continue,
        };
        let Ok(transport) = TcpTransport::new(stream) else { continue };
        let peer = Peer { listener: name.clone(), address };
        let (sessions, backend) = (shard.sessions.clone(), backend.clone());
        // Not joined one by one: the stop waits until no session is open, and closes those that stay.
        let session = async move {
            let _ = native::serve(&sessions, transport, backend, peer).await;
        };
        match glommio::spawn_local_into(session, queue) {
            Ok(task) => drop(task.detach()),
            Err(error) => tracing::error!(%error, "cannot serve a connection"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_get_neighbouring_ports_and_a_taken_one_is_an_error_that_names_it() {
        let listeners = bind("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let ports: Vec<u16> = listeners.iter().map(|l| l.local_addr().unwrap().port()).collect();
        assert_eq!(ports, [ports[0], ports[0] + 1, ports[0] + 2]);
        let error = bind(SocketAddr::new([127, 0, 0, 1].into(), ports[1]), 1).unwrap_err();
        assert!(error.to_string().contains(&ports[1].to_string()), "{error}");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_port_that_becomes_free_is_waited_for() {
        let taken = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let address = taken[0].local_addr().unwrap();
        let freeing = std::thread::spawn(move || {
            std::thread::sleep(3 * TAKEN_RETRY);
            drop(taken);
        });
        assert_eq!(bind(address, 1).unwrap()[0].local_addr().unwrap(), address);
        freeing.join().unwrap();
    }

    #[test]
    fn ports_do_not_wrap_around() {
        let error = bind("127.0.0.1:65535".parse().unwrap(), 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
