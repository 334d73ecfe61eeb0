//! Listeners: what strangers' bytes become, and how answers leave.
//!
//! Owns: sessions of the native protocol. Knows the engine's buffers and the schemas, not replication or the server:
//! what requests do is behind [`native::Backend`], what carries bytes behind [`native::Transport`].
//! Invariant: nothing here spawns, sleeps or reads a clock; the shard runs the futures and says what time it is.
//! Invariant: everything that a peer can make grow has a limit in [`native::SessionOptions`].

pub mod native;
