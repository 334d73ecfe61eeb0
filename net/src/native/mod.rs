//! The native protocol, server side. The bytes are described in `docs/protocol.md`.
//!
//! Owns: sessions ([`serve`]), their limits ([`SessionOptions`]) and counters, and the two seams: [`Transport`] below,
//! [`Backend`] above.

mod answers;
pub mod backend;
mod budget;
pub mod counters;
mod dispatch;
pub mod options;
mod outbox;
mod receive;
pub mod session;
pub mod sessions;
pub mod transport;
mod unsent;

pub use backend::{
    Access, Answer, Backend, Caller, ClusterChange, FetchAnswer, FetchedPartition, Operation, Principal,
    Records, Resource,
};
pub use counters::{ConnectionStats, Connections, Traffic};
pub use options::{SessionOptions, SessionOptionsError};
pub use session::{Peer, SessionEnd, serve};
pub use sessions::Sessions;
pub use transport::Transport;
