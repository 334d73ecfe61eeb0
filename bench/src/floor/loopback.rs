//! The loopback: two threads, one blocking connection, nothing else.
//!
//! Owns: the receiving thread of each measurement; it ends when the connection does, and is joined.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::affinity::pin_to;
use crate::cpu::thread_cpu_seconds;
use crate::error::{BenchError, BenchResult};
use crate::latency::{Latencies, Percentiles};

/// Longest message.
const MESSAGE_BYTES_MAX: u64 = 64 << 20;

/// A message there and back.
#[derive(Clone, Debug, Serialize)]
pub struct RoundTripFloor {
    /// Bytes each way.
    pub message_bytes: u64,
    /// Trips a second asked for; `None` means one after the other.
    pub rate: Option<f64>,
    /// Trips a second done.
    pub trips_per_second: f64,
    /// Of one trip, from its intended time.
    pub latency: Percentiles,
}

/// Bytes one way.
#[derive(Clone, Debug, Serialize)]
pub struct StreamFloor {
    /// Bytes of one `write`.
    pub message_bytes: u64,
    /// Millions of bytes a second.
    pub megabytes_per_second: f64,
    /// The most that one core could take in, if it did nothing else.
    pub megabytes_per_receiver_cpu_second: f64,
    /// The most that one core could send.
    pub megabytes_per_sender_cpu_second: f64,
}

/// Measures round trips of `message_bytes` between two cores.
pub fn round_trip(
    message_bytes: u64,
    rate: Option<f64>,
    duration: Duration,
    receiver: usize,
    sender: usize,
) -> BenchResult<RoundTripFloor> {
    let length = check(message_bytes)?;
    let echo = move |mut stream: TcpStream| {
        let mut message = vec![0; length];
        while stream.read_exact(&mut message).is_ok() && stream.write_all(&message).is_ok() {}
    };
    let ((latencies, seconds), ()) = with_peer(receiver, sender, echo, |stream| {
        let mut message = vec![0x5a; length];
        let mut latencies = Latencies::default();
        let start = Instant::now();
        for i in 0u64.. {
            let intended = match rate {
                Some(rate) => start + Duration::from_secs_f64(i as f64 / rate),
                None => Instant::now(),
            };
            if intended >= start + duration {
                break;
            }
            thread::sleep(intended.saturating_duration_since(Instant::now()));
            stream.write_all(&message).and_then(|()| stream.read_exact(&mut message)).map_err(lost)?;
            latencies.record(intended.elapsed());
        }
        Ok((latencies, start.elapsed().as_secs_f64()))
    })?;
    let latency = latencies.percentiles();
    Ok(RoundTripFloor { message_bytes, rate, trips_per_second: latency.count as f64 / seconds, latency })
}

/// Measures how fast bytes go one way between two cores, in writes of `message_bytes`.
pub fn stream(
    message_bytes: u64,
    duration: Duration,
    receiver: usize,
    sender: usize,
) -> BenchResult<StreamFloor> {
    let length = check(message_bytes)?;
    let sink = |mut stream: TcpStream| {
        let before = thread_cpu_seconds();
        let mut buffer = vec![0; 1 << 20];
        while stream.read(&mut buffer).is_ok_and(|received| received > 0) {}
        thread_cpu_seconds() - before
    };
    let ((bytes, seconds, sender_cpu), receiver_cpu) = with_peer(receiver, sender, sink, |stream| {
        let message = vec![0x5a; length];
        let (start, cpu, mut bytes) = (Instant::now(), thread_cpu_seconds(), 0u64);
        while start.elapsed() < duration {
            stream.write_all(&message).map_err(lost)?;
            bytes += length as u64;
        }
        Ok((bytes, start.elapsed().as_secs_f64(), thread_cpu_seconds() - cpu))
    })?;
    let megabytes = bytes as f64 / 1e6;
    Ok(StreamFloor {
        message_bytes,
        megabytes_per_second: megabytes / seconds,
        megabytes_per_receiver_cpu_second: megabytes / receiver_cpu.max(1e-9),
        megabytes_per_sender_cpu_second: megabytes / sender_cpu.max(1e-9),
    })
}

fn check(message_bytes: u64) -> BenchResult<usize> {
    if (1..=MESSAGE_BYTES_MAX).contains(&message_bytes) {
        Ok(message_bytes as usize)
    } else {
        Err(BenchError::Usage(format!(
            "a message of {message_bytes} bytes is not in 1 to {MESSAGE_BYTES_MAX}"
        )))
    }
}

fn lost(source: std::io::Error) -> BenchError {
    BenchError::io("the loopback connection broke")(source)
}

/// Runs `peer` on one core and `work` on another, joined by a connection that closes when `work` is done.
fn with_peer<P: Send, W: Send>(
    receiver: usize,
    sender: usize,
    peer: impl FnOnce(TcpStream) -> P + Send,
    work: impl FnOnce(&mut TcpStream) -> BenchResult<W> + Send,
) -> BenchResult<(W, P)> {
    let listen = || BenchError::io("a connection over the loopback");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(listen())?;
    // Connected before either thread exists, so that none can wait for an end that never comes.
    let near = TcpStream::connect(listener.local_addr().map_err(listen())?).map_err(listen())?;
    let (far, _) = listener.accept().map_err(listen())?;
    near.set_nodelay(true).and_then(|()| far.set_nodelay(true)).map_err(listen())?;
    thread::scope(|scope| {
        let peer = scope.spawn(move || pin_to(receiver).map(|()| peer(far)));
        let worker = scope.spawn(move || {
            let mut near = near;
            pin_to(sender)?;
            work(&mut near)
        });
        let work = worker.join().expect("a thread of ours does not panic");
        let peer = peer.join().expect("a thread of ours does not panic");
        Ok((work?, peer?))
    })
}
