//! Async client of the native protocol: producer, consumer, admin.
//!
//! It lives at the top level, beside `net` and not inside it, because a program that only talks to Corelog must
//! not build the server: no glommio, no io_uring, no engine threads. It runs on tokio (sockets and timers),
//! which is what the programs around it run on; it is the one library of the house that spawns tasks and reads
//! a clock, since a client has no server above it to do so. All decisions are pure and tested as such:
//! `partitioner`, `producer::accumulator`, `retry`, `compression`.

pub mod admin;
mod client;
mod cluster;
pub mod compression;
mod connection;
pub mod consumer;
pub mod error;
mod offsets;
pub mod partitioner;
mod pool;
pub mod producer;
pub mod retry;
mod servers;

pub use admin::Admin;
pub use client::{Client, ClientConfig};
pub use cluster::{Partition, Topic};
pub use compression::Compression;
pub use consumer::{Consumer, ConsumerConfig, ConsumerRecord, OutOfRange, PollLimits, StartAt};
pub use corelog_engine::batch::RecordHeader;
pub use corelog_engine::{Offset, TimestampMs, TopicId};
pub use corelog_schemas::messages::Acks;
pub use corelog_schemas::{ErrorCode, Failure};
pub use error::{ConnectError, ConsumeError, DeliveryError, RequestError, SendError};
pub use partitioner::KeylessRule;
pub use producer::{
    Delivery, DeliveryReport, Producer, ProducerConfig, ProducerRecord, RecordMetadata, RetryNotice,
};
pub use retry::RetryPolicy;
