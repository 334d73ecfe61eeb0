//! Plain TCP of a shard: what carries a session's bytes.
//!
//! Owns: one connected socket. Reads go straight into the session's buffer, vectored writes straight from the
//! buffers of the log: no copy in user space on either way.
//! How: glommio's own read is a non-blocking `recv` with a readiness poll behind it. It has no vectored write, so that
//! is a non-blocking `sendmsg` on the raw descriptor; only when the socket takes nothing, glommio's plain write waits
//! for readiness (and then sends from the first part alone; the next call is vectored again).

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::task::Poll;

use corelog_net::native::Transport;
use futures_util::io::{AsyncRead, AsyncWrite};
use glommio::GlommioError;
use glommio::net::TcpStream;

/// A connection. Closed when dropped.
pub(super) struct TcpTransport(RefCell<TcpStream>);

impl TcpTransport {
    /// Takes a socket over. Small answers leave at once (TCP_NODELAY): the session already joins what it can.
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true).map_err(io_error)?;
        Ok(Self(RefCell::new(stream)))
    }
}

impl TcpTransport {
    /// Ends the connection both ways, at once; what is under way ends with it.
    pub(super) fn close(&self) {
        // SAFETY: the descriptor is open as long as `self`; the call has no other precondition. A connection that is
        // gone already needs no end.
        unsafe { libc::shutdown(self.0.borrow().as_raw_fd(), libc::SHUT_RDWR) };
    }
}

/// The system's error inside glommio's.
pub(super) fn io_error(error: GlommioError<()>) -> io::Error {
    io::Error::from(error)
}

/// Sends what the socket takes now; `None` if that is nothing.
fn send_now(stream: &TcpStream, parts: &[IoSlice<'_>]) -> Option<io::Result<usize>> {
    // SAFETY: all bytes zero is a valid empty message header.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_ptr().cast::<libc::iovec>().cast_mut();
    message.msg_iovlen = parts.len() as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    loop {
        // SAFETY: the descriptor is open as long as `stream`; `IoSlice` has the layout of `iovec`, and the kernel
        // only reads from the parts, which outlive the call.
        let sent = unsafe { libc::sendmsg(stream.as_raw_fd(), &message, flags) };
        if sent >= 0 {
            return Some(Ok(sent as usize));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return None,
            _ => return Some(Err(error)),
        }
    }
}

impl Transport for TcpTransport {
    async fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| Pin::new(&mut *self.0.borrow_mut()).poll_read(cx, into)).await
    }

    async fn write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let first = parts.iter().find(|part| !part.is_empty()).map_or(&[][..], |part| part);
        let mut is_first_poll = true;
        poll_fn(|cx| {
            let mut stream = self.0.borrow_mut();
            if std::mem::take(&mut is_first_poll)
                && let Some(sent) = send_now(&stream, parts)
            {
                return Poll::Ready(sent);
            }
            Pin::new(&mut *stream).poll_write(cx, first)
        })
        .await
    }

    async fn shutdown(&self) -> io::Result<()> {
        // SAFETY: the descriptor is open as long as `self`; the call has no other precondition.
        let result = unsafe { libc::shutdown(self.0.borrow().as_raw_fd(), libc::SHUT_WR) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener as StdListener, TcpStream as StdStream};
    use std::os::fd::{FromRawFd, IntoRawFd};

    use glommio::LocalExecutorBuilder;

    use super::*;

    #[test]
    fn vectored_writes_arrive_in_order_even_when_the_socket_is_full() {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let peer = StdStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        let reader = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            let mut all = Vec::new();
            (&peer).read_to_end(&mut all).unwrap();
            (&peer).write_all(b"done").unwrap();
            all
        });
        let executor = LocalExecutorBuilder::default().io_memory(64 << 10).make().unwrap();
        executor.run(async move {
            // SAFETY: the descriptor was just given up by its owner.
            let stream = unsafe { TcpStream::from_raw_fd(ours.into_raw_fd()) };
            let transport = TcpTransport::new(stream).unwrap();
            let body: Vec<u8> = (0..16_000_000u32).map(|i| (i % 251) as u8).collect();
            let mut sent = 0;
            while sent < body.len() {
                let rest = &body[sent..];
                let middle = rest.len() / 3;
                let parts = [IoSlice::new(&[]), IoSlice::new(&rest[..middle]), IoSlice::new(&rest[middle..])];
                sent += transport.write_vectored(&parts).await.unwrap();
            }
            transport.shutdown().await.unwrap();
            let mut answer = [0; 16];
            let count = transport.read(&mut answer).await.unwrap();
            assert_eq!(&answer[..count], b"done");
            assert_eq!(transport.read(&mut answer).await.unwrap(), 0, "the end of the stream");
        });
        let all = reader.join().unwrap();
        assert_eq!(all.len(), 16_000_000);
        assert!(all.iter().zip(0u32..).all(|(&byte, i)| byte == (i % 251) as u8));
    }
}
