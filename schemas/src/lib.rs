//! The native protocol's bytes: schemas, frames, typed messages.
//!
//! Owns: what `docs/protocol.md` describes. `generated` comes from `*.fbs` by `regenerate.sh`; `frame` cuts a byte
//! stream into frames; `messages` are plain structs with an encoder and a decoder each; `error` is every way to fail.
//! Invariant: no stranger's bytes panic here, or make more memory than a fixed multiple of their own length.
//! Invariant: record bytes are never looked at, wrapped or copied: a frame's payload is the caller's.
//! Not here: sockets, limits of a connection (`corelog_net`), what a record batch looks like (`corelog_engine::batch`).

pub mod api;
pub mod codec;
pub mod error;
pub mod frame;
pub mod messages;

/// What flatc made of the schemas. Used by `messages` alone; public so that other tools can read heads raw.
#[allow(missing_docs, unreachable_pub, clippy::all, mismatched_lifetime_syntaxes, unsafe_op_in_unsafe_fn)]
#[allow(clippy::undocumented_unsafe_blocks)]
#[rustfmt::skip]
#[path = "generated/protocol_generated.rs"]
pub mod generated;

pub use api::{Api, Features, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN};
pub use codec::{DecodeError, Encoder, Message, Request, decode};
pub use error::{ErrorCode, Failure};
pub use frame::{FRAME_PREFIX_BYTES, Frame, FrameError, FrameLimits, FramePrefix, parse_frame};
