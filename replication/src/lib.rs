//! A partition as its replicas have it: who leads, who copies, what is committed, and how that is agreed upon.
//!
//! Owns: the roles of a replica, the high watermark and who waits for it, the ISR, the streams between replicas, and
//! who decides in the cluster. Decisions are pure machines; the rest is generic over the disk and over what it needs
//! of the world, so that the same code runs in the server and in simulation. No sockets, no clock, no executor.
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
//! R10. What a follower has reported counts only on the connection on which it last asked to follow, after it was told
//!     to copy: it may have lost a part of its log since it reported on an older one.
//! R11. The ISR grows only by a follower that has reached, in this epoch, both the high watermark and the log end that
//!     the leader had when the epoch began.
//! R12. A member leaves the ISR when it has not had all that the leader had at any moment of the last `lag_max_ms`,
//!     when its connection has been broken for `disconnect_max_ms`, or when it says that it stops. The leader never
//!     leaves; a pause of the leader itself is nobody's lag.
//! R13. One change of the ISR is under way at a time. Until a newer version of what is stored is seen, every set that
//!     may have been stored counts: a refused or unanswered proposal takes nobody away.
//! R14. A follower copies only after the epoch handshake of this epoch, and after each cut it asks again. It cuts where
//!     the newest epoch that both have ended, never at the high watermark.
//! R15. An answer, batches or marks of another epoch than the one followed change nothing.
//! R16. A follower of which nothing is left in the leader's log begins a new log at the leader's log start: it has no
//!     gap, and nothing below that start.
//! R17. A replica remembers the highest epoch that it has seen, and takes no role in a lower one. In one epoch it does
//!     not both lead and follow. After a start the epochs of its log are that memory.
//! R18. A leadership begins only after every cut that this replica had begun as a follower has ended.
//! R19. A batch of an idempotent producer that is in the log is not appended again, whoever leads now, and is answered
//!     once its original offset meets the acks asked for.

pub mod agent;
mod assignment;
#[cfg(feature = "canary")]
pub mod canary;
pub mod cluster;
pub mod controller;
pub mod coordination;
pub mod derived;
mod errors;
mod follower;
mod isr;
mod leader;
mod partition;
mod progress;
mod replica;
mod replicas;
pub mod stream;
mod waiters;
mod watch;

pub use assignment::{Assignment, IsrProposal, Report, Role, Sighting};
pub use errors::{
    DeleteRecordsError, FetchError, FollowError, FollowerError, LeaderError, ListOffsetsError, ProduceError,
    RoleError, WaitError,
};
pub use follower::{
    Cut, EpochEnd, FollowAction, FollowAnswer, FollowPhase, FollowRequest, FollowVerdict, Follower,
    HandshakeError, LogView, answer, cut_for,
};
pub use isr::{ConnectionId, Followed, Isr, IsrOptions, IsrStart, LeaderView};
pub use leader::{Action, Event, Leader, LeaderStart, ReplicaEnds};
pub use partition::{
    Ack, CurrentRole, Fetched, LeaderTerm, Marks, Partition, PartitionStats, ProduceChecks, Produced,
};
pub use progress::Advanced;
pub use replica::{NodeId, ReplicaId};
pub use replicas::Replicas;
pub use watch::{Watcher, Watchers, Watching};
