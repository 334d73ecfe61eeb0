//! Waits for sockets, with deadlines finer than a millisecond.
//!
//! Owns: one epoll descriptor. Sockets are registered once, for both directions, edge-triggered: no system call to
//! change what is waited for, and whoever uses them goes on until the kernel says "would block".

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// How many events one wait yields at most; more wait for the next.
const EVENTS_MAX: usize = 256;

/// What has become possible on a socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ready {
    /// Index given at registration.
    pub(crate) index: usize,
    /// There is something to read, or the peer has closed.
    pub(crate) read: bool,
    /// There is room to write.
    pub(crate) write: bool,
}

/// A set of sockets.
pub(crate) struct Events {
    epoll: OwnedFd,
    buffer: Vec<libc::epoll_event>,
}

impl Events {
    /// An empty set.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no preconditions; a descriptor that is returned is ours alone.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and has no other owner.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { epoll, buffer: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX] })
    }

    /// Adds a socket; it leaves the set when it is closed.
    pub(crate) fn add(&self, stream: &TcpStream, index: usize) -> io::Result<()> {
        let events = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32;
        let mut event = libc::epoll_event { events, u64: index as u64 };
        // SAFETY: both descriptors are open, and `event` is a valid argument.
        let result = unsafe {
            libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, stream.as_raw_fd(), &raw mut event)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Waits until something is ready or `timeout` has passed; `None` waits for ever.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<impl Iterator<Item = Ready> + '_> {
        let time = timeout.map(|t| libc::timespec {
            tv_sec: t.as_secs() as libc::time_t,
            tv_nsec: i64::from(t.subsec_nanos()),
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the buffer has room for as many events as said, `time` is null or points to a live value, and a
        // null signal mask of size 0 is allowed (epoll_pwait2(2), Linux 5.11).
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.epoll.as_raw_fd(),
                self.buffer.as_mut_ptr(),
                EVENTS_MAX as libc::c_int,
                time,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        let count = match usize::try_from(count) {
            Ok(count) => count,
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::Interrupted => 0,
                e => return Err(e),
            },
        };
        Ok(self.buffer[..count].iter().map(|event| {
            let bits = event.events as i32;
            let broken = libc::EPOLLERR | libc::EPOLLHUP | libc::EPOLLRDHUP;
            Ready {
                index: event.u64 as usize,
                read: bits & (libc::EPOLLIN | broken) != 0,
                write: bits & (libc::EPOLLOUT | broken) != 0,
            }
        }))
    }
}

/// Lets sleeps of the calling thread end within microseconds of their time (the default slack is 50).
pub(crate) fn sharpen_timers() {
    // SAFETY: sets a number of the calling thread; no memory is involved.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong, 0, 0, 0) };
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_socket_is_ready_to_write_at_once_and_to_read_when_bytes_come() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let near = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
        let (mut far, _) = listener.accept().expect("we connected");
        let mut events = Events::new().expect("an epoll descriptor");
        events.add(&near, 7).expect("an open socket");
        let first: Vec<Ready> = events.wait(Some(Duration::from_secs(5))).expect("it waits").collect();
        assert!(first.len() == 1 && first[0].index == 7 && first[0].write && !first[0].read, "{first:?}");
        far.write_all(b"x").expect("the peer is there");
        let second: Vec<Ready> = events.wait(Some(Duration::from_secs(5))).expect("it waits").collect();
        assert!(second.len() == 1 && second[0].read, "{second:?}");
    }

    #[test]
    fn a_wait_ends_on_time_without_events() {
        sharpen_timers();
        let mut events = Events::new().expect("an epoll descriptor");
        let start = Instant::now();
        assert_eq!(events.wait(Some(Duration::from_micros(300))).expect("it waits").count(), 0);
        assert!(start.elapsed() >= Duration::from_micros(300));
    }
}
