//! Whole frames over one TCP connection, both ways at a time.
//!
//! Owns: the order of frames (one sender at a time), partial writes, and the end of a connection. What is sent leaves
//! from where it lies: the head from a scratch buffer, batches from the log's own buffers, in one `sendmsg`.
//! Invariant: after a failure, or a send that was given up half-way, nothing more is sent: the peer would read garbage.
//! Limits: at most [`PARTS_MAX`] parts in one system call; what is received is bounded by the frame limits.
//! Not here: what messages mean (`corelog_replication::stream`).

use std::cell::Cell;
use std::io::{self, IoSlice};

use corelog_engine::buffer::DmaSlice;
use corelog_engine::notify::Turnstile;
use corelog_net::native::Transport;
use corelog_schemas::FrameLimits;
use corelog_schemas::frame::FrameError;

use super::receive::{FrameReceiver, ReceivedFrame};

/// Parts of one `sendmsg`; the kernel takes 1024.
const PARTS_MAX: usize = 256;

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum FramesError {
    /// The peer has closed it, between two frames.
    #[error("the peer has closed the connection")]
    Closed,
    /// It broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// What came is no frame.
    #[error("what came is not a frame: {0}")]
    Frame(#[from] FrameError),
}

/// A connection that carries frames.
pub(super) struct Frames<T> {
    transport: T,
    /// `None` while somebody receives.
    receiver: Cell<Option<FrameReceiver>>,
    /// Head of the frame being sent.
    scratch: Cell<Vec<u8>>,
    sending: Turnstile,
    /// The stream of sent bytes ends within a frame.
    is_cut: Cell<bool>,
}

/// Scratch memory kept between two sends.
const SCRATCH_BYTES_MAX: usize = 64 << 10;

impl<T: Transport> Frames<T> {
    pub(super) fn new(transport: T, limits: FrameLimits) -> Self {
        Self {
            transport,
            receiver: Cell::new(Some(FrameReceiver::new(limits))),
            scratch: Cell::default(),
            sending: Turnstile::default(),
            is_cut: Cell::new(false),
        }
    }

    /// What carries the bytes.
    pub(super) fn transport(&self) -> &T {
        &self.transport
    }

    /// Sends one frame: `encode` writes prefix and head, `payload` follows. Ready when the kernel has all of it;
    /// yields how many bytes that were.
    ///
    /// Cancel: the connection is of no use any more if the frame had begun.
    pub(super) async fn send(
        &self,
        encode: impl FnOnce(&mut Vec<u8>),
        payload: &[DmaSlice],
    ) -> Result<u64, FramesError> {
        let _turn = self.sending.enter().await;
        if self.is_cut.replace(true) {
            return Err(FramesError::Io(io::ErrorKind::BrokenPipe.into()));
        }
        let mut head = self.scratch.take();
        head.clear();
        encode(&mut head);
        let bytes = (head.len() + payload.iter().map(|slice| slice.len()).sum::<usize>()) as u64;
        self.send_all(&head, payload).await?;
        if head.capacity() <= SCRATCH_BYTES_MAX {
            self.scratch.set(head);
        }
        self.is_cut.set(false);
        Ok(bytes)
    }

    async fn send_all(&self, head: &[u8], payload: &[DmaSlice]) -> Result<(), FramesError> {
        let part = |index: usize| if index == 0 { head } else { &payload[index - 1][..] };
        // The first part that is not sent whole, and how much of it is.
        let (mut first, mut done) = (0, 0);
        while first <= payload.len() {
            let until = (payload.len() + 1).min(first + PARTS_MAX);
            let sent = if until == first + 1 {
                self.transport.write_vectored(&[IoSlice::new(&part(first)[done..])]).await?
            } else {
                let parts =
                    (first..until).map(|i| IoSlice::new(if i == first { &part(i)[done..] } else { part(i) }));
                let parts: Vec<IoSlice<'_>> = parts.collect();
                self.transport.write_vectored(&parts).await?
            };
            done += sent;
            while first < until && done >= part(first).len() {
                done -= part(first).len();
                first += 1;
            }
        }
        Ok(())
    }

    /// The next frame. One caller at a time.
    ///
    /// Cancel: loses nothing.
    ///
    /// # Panics
    /// If somebody else waits for the next frame already.
    pub(super) async fn receive(&self) -> Result<ReceivedFrame, FramesError> {
        let mut turn = Receiving::begin(&self.receiver);
        let receiver = turn.receiver();
        loop {
            if let Some(frame) = receiver.next_frame()? {
                return Ok(frame);
            }
            let count = self.transport.read(receiver.window()?).await?;
            if count == 0 {
                return Err(FramesError::Closed);
            }
            receiver.received(count);
        }
    }
}

/// The receiver in the hands of one caller; it goes back when that one is done or gives up.
struct Receiving<'a> {
    home: &'a Cell<Option<FrameReceiver>>,
    receiver: Option<FrameReceiver>,
}

impl<'a> Receiving<'a> {
    fn begin(home: &'a Cell<Option<FrameReceiver>>) -> Self {
        let receiver = home.take();
        assert!(receiver.is_some(), "two tasks receive from one connection");
        Self { home, receiver }
    }

    fn receiver(&mut self) -> &mut FrameReceiver {
        self.receiver.as_mut().expect("it goes back at the end alone")
    }
}

impl Drop for Receiving<'_> {
    fn drop(&mut self) {
        self.home.set(self.receiver.take());
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::{FromRawFd, IntoRawFd};
    use std::rc::Rc;

    use corelog_engine::buffer::BufferPool;
    use corelog_schemas::frame::{FRAME_PREFIX_BYTES, FramePrefix};
    use glommio::LocalExecutorBuilder;
    use glommio::net::TcpStream;

    use super::super::super::transport::TcpTransport;
    use super::*;

    const LIMITS: FrameLimits = FrameLimits { frame_bytes_max: 16 << 20, head_bytes_max: 1 << 20 };

    fn pair() -> (Rc<Frames<TcpTransport>>, Rc<Frames<TcpTransport>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        let frames = |socket: std::net::TcpStream| {
            // SAFETY: the descriptor was just given up by its owner.
            let stream = unsafe { TcpStream::from_raw_fd(socket.into_raw_fd()) };
            Rc::new(Frames::new(TcpTransport::new(stream).unwrap(), LIMITS))
        };
        (frames(one), frames(other))
    }

    fn encode(number: u32, payload_bytes: usize) -> impl FnOnce(&mut Vec<u8>) {
        move |out| {
            let frame_bytes = (FRAME_PREFIX_BYTES + 3 + payload_bytes) as u64;
            let prefix = FramePrefix { frame_bytes, head_bytes: 3, correlation_id: number, api: 5 };
            out.extend_from_slice(&prefix.to_bytes());
            out.extend_from_slice(b"abc");
        }
    }

    /// `slices` parts of `bytes` bytes, each filled with its number.
    fn payload(pool: &BufferPool, slices: usize, bytes: usize) -> Vec<DmaSlice> {
        let slices = (0..slices).map(|number| {
            let mut buffer = pool.try_allocate(bytes).expect("there is memory");
            buffer.append(&vec![number as u8; bytes]);
            buffer.slice(0..bytes)
        });
        slices.collect()
    }

    #[test]
    fn frames_of_many_parts_cross_a_full_socket_both_ways() {
        let executor = LocalExecutorBuilder::default().io_memory(64 << 10).make().unwrap();
        executor.run(async {
            let (one, other) = pair();
            let pool = BufferPool::new(64 << 20);
            let parts = payload(&pool, 600, 20_000);
            let expected: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
            let mut tasks = Vec::new();
            for (from, to) in [(one.clone(), other.clone()), (other, one)] {
                let (parts, sender) = (parts.clone(), from.clone());
                tasks.push(glommio::spawn_local(async move {
                    let bytes = sender.send(encode(1, 12_000_000), &parts).await.unwrap();
                    assert_eq!(bytes, 12_000_019);
                }));
                // Waits for its turn, and does not come in between.
                tasks.push(glommio::spawn_local(async move {
                    assert_eq!(from.send(encode(2, 0), &[]).await.unwrap(), 19);
                }));
                let expected = expected.clone();
                tasks.push(glommio::spawn_local(async move {
                    let first = to.receive().await.unwrap();
                    assert_eq!((first.prefix.correlation_id, &first.head[..]), (1, &b"abc"[..]));
                    assert!(first.payload == expected, "the payload is another one");
                    assert_eq!(to.receive().await.unwrap().prefix.correlation_id, 2);
                }));
            }
            for task in tasks {
                task.await;
            }
        });
    }

    #[test]
    fn a_send_that_was_given_up_ends_the_connection() {
        let executor = LocalExecutorBuilder::default().io_memory(64 << 10).make().unwrap();
        executor.run(async {
            let (one, other) = pair();
            let pool = BufferPool::new(64 << 20);
            let parts = payload(&pool, 20, 1 << 20);
            {
                let sender = one.clone();
                let task =
                    glommio::spawn_local(async move { sender.send(encode(1, 20 << 20), &parts).await });
                glommio::timer::sleep(std::time::Duration::from_millis(20)).await;
                task.cancel().await;
            }
            assert!(matches!(one.send(encode(2, 0), &[]).await, Err(FramesError::Io(_))));
            drop(one);
            assert!(matches!(other.receive().await, Err(FramesError::Frame(_))), "it is beyond the limit");
        });
    }

    #[test]
    fn a_wait_for_a_frame_that_is_given_up_loses_nothing() {
        let executor = LocalExecutorBuilder::default().io_memory(64 << 10).make().unwrap();
        executor.run(async {
            let (one, other) = pair();
            for number in 0..3 {
                let receiver = other.clone();
                let task = glommio::spawn_local(async move { receiver.receive().await.map(drop) });
                glommio::timer::sleep(std::time::Duration::from_millis(5)).await;
                task.cancel().await;
                one.send(encode(number, 0), &[]).await.unwrap();
                assert_eq!(other.receive().await.unwrap().prefix.correlation_id, number);
            }
            drop(one);
            assert!(matches!(other.receive().await, Err(FramesError::Closed)));
        });
    }
}
