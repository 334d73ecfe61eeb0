//! Record batches: the one byte format of Corelog (Kafka's RecordBatch v2), in the client, on the wire, on disk
//! and between replicas.
//!
//! Owns: the layout of a batch (`header`), of its records (`record`, `varint`), what is asked of a stranger's
//! bytes (`validate`) and of bytes that come back from a disk (`stored`) or from a leader (`stamped`), where batches begin and end
//! in a list of buffers (`walk`), and how new ones are made (`builder`).
//! Invariant: nothing here allocates per batch on the append path, and the checksum is computed once.
//! Not here: compression (a caller gives the codec), where a batch goes (`log`).
//!
//! Source: Kafka documentation, "Message Format", magic 2.

mod attributes;
mod builder;
mod header;
mod record;
mod stamped;
mod stored;
mod validate;
pub mod varint;
mod walk;

pub use attributes::{Attributes, Compression, TimestampType};
pub use builder::{BatchBuilder, BatchFields, BuildError, FinishError, NewRecord, RECORD_BYTES_MAX};
pub use header::{
    BatchHeader, CRC_START, HEADER_BYTES, HeaderError, NO_PRODUCER_ID, SIZE_PREFIX_BYTES, Stamp, stamp,
    stamp_producer,
};
pub use record::{HeaderIter, Record, RecordError, RecordHeader, RecordIter};
pub use stamped::{StampedBatches, StampedError, StampedLimits};
pub use stored::{
    Continuity, CrcCheck, HeaderCheck, StoredError, StoredScan, StoredSummary, TailState, check_stored,
    find_plausible_header,
};
pub use validate::{BatchError, BatchLimits, BatchSummary, validate};
pub use walk::{BatchSpan, BatchWalk, WalkError};

#[cfg(test)]
mod tests;
