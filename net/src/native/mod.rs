//! The native protocol, server side. The bytes are described in `docs/protocol.md`.

pub mod backend;
pub mod transport;

pub use backend::{
    Access, Answer, Backend, Caller, FetchAnswer, FetchedPartition, Operation, Principal, Records, Resource,
};
pub use transport::Transport;
