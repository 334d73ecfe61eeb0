//! Async client of the native protocol: producer, consumer, admin.
//!
//! It lives at the top level, beside `net` and not inside it, because a program that only talks to Corelog must
//! not build the server: no glommio, no io_uring, no engine threads. It runs on tokio (sockets and timers),
//! which is what the programs around it run on; it is the one library of the house that spawns tasks and reads
//! a clock, since a client has no server above it to do so. All decisions are pure and tested as such:
//! `partitioner`, `retry`, `compression`.

pub mod compression;
pub mod partitioner;
pub mod retry;

pub use compression::Compression;
pub use partitioner::KeylessRule;
pub use retry::RetryPolicy;
