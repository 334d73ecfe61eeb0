//! A connection in memory, with a window in each direction.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::rc::Rc;
use std::task::{Poll, Waker};

use corelog_net::native::Transport;

struct Direction {
    bytes: VecDeque<u8>,
    window_bytes: usize,
    is_closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    writes: usize,
}

type Shared = Rc<RefCell<Direction>>;

/// The test's end: never waits.
pub struct ClientEnd {
    to_server: Shared,
    to_client: Shared,
}

/// The session's end.
pub struct ServerEnd {
    to_server: Shared,
    to_client: Shared,
}

pub fn pair(window_bytes: usize) -> (ClientEnd, ServerEnd) {
    let direction = || {
        Rc::new(RefCell::new(Direction {
            bytes: VecDeque::new(),
            window_bytes,
            is_closed: false,
            reader: None,
            writer: None,
            writes: 0,
        }))
    };
    let (to_server, to_client) = (direction(), direction());
    (
        ClientEnd { to_server: to_server.clone(), to_client: to_client.clone() },
        ServerEnd { to_server, to_client },
    )
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl ClientEnd {
    /// Sends what fits the window; returns how much.
    pub fn send(&self, bytes: &[u8]) -> usize {
        let mut to = self.to_server.borrow_mut();
        let count = bytes.len().min(to.window_bytes - to.bytes.len());
        to.bytes.extend(&bytes[..count]);
        wake(&mut to.reader);
        count
    }

    pub fn send_all(&self, bytes: &[u8]) {
        assert_eq!(self.send(bytes), bytes.len(), "the window is too small for this test");
    }

    /// Takes all that is there.
    pub fn receive(&self) -> Vec<u8> {
        let mut from = self.to_client.borrow_mut();
        wake(&mut from.writer);
        from.bytes.drain(..).collect()
    }

    /// Sends no more.
    pub fn close(&self) {
        let mut to = self.to_server.borrow_mut();
        to.is_closed = true;
        wake(&mut to.reader);
    }

    /// Whether the server sends no more.
    pub fn is_server_done(&self) -> bool {
        self.to_client.borrow().is_closed
    }

    /// Bytes that the server has not read.
    pub fn unread_by_server(&self) -> usize {
        self.to_server.borrow().bytes.len()
    }

    /// How often the server has written.
    pub fn server_writes(&self) -> usize {
        self.to_client.borrow().writes
    }
}

impl Transport for ServerEnd {
    async fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        assert!(!into.is_empty(), "a read of nothing looks like the end");
        poll_fn(|cx| {
            let mut from = self.to_server.borrow_mut();
            if from.bytes.is_empty() {
                if from.is_closed {
                    return Poll::Ready(Ok(0));
                }
                from.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let count = from.bytes.len().min(into.len());
            for (to, byte) in into.iter_mut().zip(from.bytes.drain(..count)) {
                *to = byte;
            }
            Poll::Ready(Ok(count))
        })
        .await
    }

    async fn write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        poll_fn(|cx| {
            let mut to = self.to_client.borrow_mut();
            let mut room = to.window_bytes - to.bytes.len();
            if room == 0 {
                to.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            to.writes += 1;
            let mut count = 0;
            for part in parts {
                let taken = part.len().min(room);
                to.bytes.extend(&part[..taken]);
                (room, count) = (room - taken, count + taken);
            }
            wake(&mut to.reader);
            Poll::Ready(Ok(count))
        })
        .await
    }

    async fn shutdown(&self) -> io::Result<()> {
        self.to_client.borrow_mut().is_closed = true;
        Ok(())
    }
}

impl Drop for ServerEnd {
    fn drop(&mut self) {
        self.to_client.borrow_mut().is_closed = true;
    }
}
