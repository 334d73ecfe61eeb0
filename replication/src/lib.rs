//! Leadership of a partition: from the ends that replicas report to what readers may see and producers are told.
//!
//! Owns: the high watermark, who waits for it, and the rules under which it moves. Knows the engine alone: no
//! sockets, no clock, no executor; whoever calls says what time it is and polls the futures.
//!
//! Invariants, by number (`ARCHITECTURE.md` and tests refer to them):
//! R1. The high watermark never goes back while a replica leads, and is never above the leader's log end.
//! R2. It moves only on what members of the ISR have reported *in this epoch*: a member without a report holds it.
//! R3. A report of another epoch, or of a replica outside the ISR, moves nothing.
//! R4. What counts as reported follows the topic's flush: the durable end with `flush = commit`, the written end
//!     with `flush = interval`.
//! R5. While a change of the ISR is being stored, the larger ISR counts: the caller steps to it before it stores a
//!     growth, and after it has stored a shrinkage.
//! R6. Readers see only what is below the high watermark; an offset between it and the log end is waited for, not
//!     an error.
//! R7. `acks = all` is answered at the high watermark, `acks = 1` at the leader's own end of the stage that the
//!     flush names. Waiters are woken in the order of what they wait for.
//! R8. "Latest" is answered only once the high watermark has reached the start of the leader's epoch (KIP-207).
//! R9. A failed log answers every waiter with the failure, at once; other partitions are not touched.
//!
//! Not here: electing leaders, copying to followers, deciding who is in sync. They come beside `leader.rs`, as
//! machines of their own, and feed it events.

pub mod agent;
mod assignment;
pub mod cluster;
pub mod coordination;
mod errors;
mod leader;
mod partition;
mod progress;
mod replica;
pub mod stream;
mod waiters;
mod watch;

pub use assignment::{Assignment, IsrProposal, Report, Role, Sighting};
pub use errors::{DeleteRecordsError, EpochError, FetchError, ListOffsetsError, ProduceError};
pub use leader::{Action, Event, Leader, LeaderStart, ReplicaEnds};
pub use partition::{Ack, Fetched, Partition, PartitionStats, ProduceChecks, Produced};
pub use progress::Advanced;
pub use replica::{NodeId, ReplicaId};
pub use watch::{Watcher, Watchers, Watching};
