//! What is asked of batches that come back from a disk or from a peer.
//!
//! Owns: the checks that tell a batch of this log from damage, from a batch of another log, and from space that
//! was never used. The checksum covers the header from its attributes on; the 21 bytes before (base offset,
//! length, leader epoch, magic) are checked by continuity.
//! Unlike `validate` this lets through what brokers write: gaps between offsets, control batches, log append time.
//! Crash story: power fails in the middle of several writes. A batch may be whole, torn, zeroes, or an older
//! batch of a recycled segment; `StoredScan` stops at the first that is not the next one, and says why.

use crate::batch::header::{BatchHeader, CRC_START, HEADER_BYTES, HeaderError};
use crate::types::{LeaderEpoch, Offset, TimestampMs};

/// How the base offset of a batch must follow the batch before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continuity {
    /// It must be the expected one: a log that is only appended to.
    Exact,
    /// It may be higher: compaction left gaps.
    GapsAllowed,
}

/// What the next batch must look like. Copy it to try a batch, [`HeaderCheck::advance`] to accept one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderCheck {
    /// Expected base offset.
    pub next_offset: Offset,
    /// Whether a higher one will do.
    pub continuity: Continuity,
    /// Lowest leader epoch: that of the batch before. `None` if any will do, even none.
    pub epoch_min: Option<LeaderEpoch>,
    /// Highest leader epoch: that of the current term. `None` if any will do.
    pub epoch_max: Option<LeaderEpoch>,
    /// Largest batch that this log can hold.
    pub batch_bytes_max: usize,
}

/// Why bytes are not the next batch of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoredError {
    /// The bytes end within a batch.
    #[error("the batch needs {need} bytes, {have} are there")]
    Incomplete {
        /// Bytes that it needs, as far as known.
        need: usize,
        /// Bytes that are there.
        have: usize,
    },
    /// Zeroes, or a header that cannot be.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Another offset than the log goes on with: a batch of an older life of this space, of another log, or a
    /// lost write.
    #[error("base offset {found}, expected {expected}")]
    BaseOffset {
        /// What follows the batch before.
        expected: Offset,
        /// What stands there.
        found: Offset,
    },
    /// An epoch that goes back, is beyond the current term, or is missing.
    #[error("leader epoch {found:?} is outside [{min:?}, {max:?}]")]
    LeaderEpoch {
        /// What stands there.
        found: Option<LeaderEpoch>,
        /// Lowest allowed.
        min: Option<LeaderEpoch>,
        /// Highest allowed.
        max: Option<LeaderEpoch>,
    },
    /// Larger than any batch of this log.
    #[error("a batch of {size_bytes} bytes, the limit is {bytes_max}")]
    TooLarge {
        /// Its size.
        size_bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// More records than offsets.
    #[error("{record_count} records over {offset_count} offsets")]
    RecordCount {
        /// Records that it says it has.
        record_count: u32,
        /// Offsets that it spans.
        offset_count: u64,
    },
    /// Torn, or rotten.
    #[error("checksum {actual:#010x}, the header says {expected:#010x}")]
    Checksum {
        /// What the header says.
        expected: u32,
        /// What the bytes say.
        actual: u32,
    },
}

impl HeaderCheck {
    /// Anything from `next_offset` on, without gaps.
    pub fn exact(next_offset: Offset, batch_bytes_max: usize) -> Self {
        let continuity = Continuity::Exact;
        Self { next_offset, continuity, epoch_min: None, epoch_max: None, batch_bytes_max }
    }

    /// Decides whether a header can be that of the next batch.
    pub fn check(&self, header: &BatchHeader) -> Result<(), StoredError> {
        let fits = match self.continuity {
            Continuity::Exact => header.base_offset == self.next_offset,
            Continuity::GapsAllowed => header.base_offset >= self.next_offset,
        };
        if !fits {
            return Err(StoredError::BaseOffset { expected: self.next_offset, found: header.base_offset });
        }
        let (found, min, max) = (header.leader_epoch, self.epoch_min, self.epoch_max);
        // `None` is below any epoch, so a batch that was never stamped fails a set minimum.
        if found < min || max.is_some_and(|max| found > Some(max)) {
            return Err(StoredError::LeaderEpoch { found, min, max });
        }
        let size_bytes = header.size();
        if size_bytes > self.batch_bytes_max {
            return Err(StoredError::TooLarge { size_bytes, bytes_max: self.batch_bytes_max });
        }
        let (record_count, offset_count) = (header.record_count, header.offset_count());
        if u64::from(record_count) > offset_count {
            return Err(StoredError::RecordCount { record_count, offset_count });
        }
        Ok(())
    }

    /// Accepts a batch: the next one must follow it.
    pub fn advance(&mut self, header: &BatchHeader) {
        self.next_offset = header.next_offset();
        self.epoch_min = header.leader_epoch.or(self.epoch_min);
    }
}

/// Checksum of one batch whose bytes come in pieces.
#[derive(Clone, Copy, Debug)]
pub struct CrcCheck {
    expected: u32,
    actual: u32,
    skip: usize,
    left: usize,
}

impl CrcCheck {
    /// For the batch that `header` begins; its bytes are fed from the first one of the header on.
    pub fn new(header: &BatchHeader) -> Self {
        Self { expected: header.crc, actual: 0, skip: CRC_START, left: header.size() }
    }

    /// Takes in what belongs to the batch; returns how many bytes that were.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.left);
        let skipped = count.min(self.skip);
        self.actual = crc32c::crc32c_append(self.actual, &bytes[skipped..count]);
        self.skip -= skipped;
        self.left -= count;
        count
    }

    /// Bytes that are still to come.
    pub fn left(&self) -> usize {
        self.left
    }

    /// The verdict.
    ///
    /// # Panics
    /// If not all bytes were fed.
    pub fn finish(&self) -> Result<(), StoredError> {
        assert!(self.left == 0, "{} bytes of the batch were not fed", self.left);
        if self.actual == self.expected {
            return Ok(());
        }
        Err(StoredError::Checksum { expected: self.expected, actual: self.actual })
    }
}

/// What was found sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredSummary {
    /// How many batches.
    pub batches: u64,
    /// Their bytes: where the first unsound one begins.
    pub bytes: u64,
    /// Offset after the last of them.
    pub next_offset: Offset,
    /// Latest timestamp of them.
    pub max_timestamp: Option<TimestampMs>,
}

/// Checks batches that lie back to back in one buffer, as a peer sent them; all of it must be sound.
///
/// Errors: the position of the first unsound batch and what is wrong with it.
/// Cost: one checksum pass, no allocation.
pub fn check_stored(batches: &[u8], check: HeaderCheck) -> Result<StoredSummary, (usize, StoredError)> {
    let mut scan = StoredScan::new(check);
    let fed = scan.feed(batches, |_, _| {});
    let summary = scan.summary();
    let at = summary.bytes as usize;
    fed.map_err(|error| (at, error))?;
    match scan.tail() {
        TailState::Whole => Ok(summary),
        TailState::Partial { need, have } => Err((at, StoredError::Incomplete { need, have })),
    }
}

/// Where the bytes that were fed end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailState {
    /// Behind a whole batch.
    Whole,
    /// Within one.
    Partial {
        /// Bytes that it needs, as far as known.
        need: usize,
        /// Bytes of it that came.
        have: usize,
    },
}

/// Checks batches whose bytes come in pieces of any size: recovery feeds it one device read after the other.
///
/// After an error nothing more can be fed; [`StoredScan::summary`] still says what was sound before.
#[derive(Clone, Debug)]
pub struct StoredScan {
    check: HeaderCheck,
    summary: StoredSummary,
    /// First bytes of a batch whose header has not come whole.
    gathered: [u8; HEADER_BYTES],
    gathered_bytes: usize,
    /// The batch whose records are coming.
    current: Option<(BatchHeader, CrcCheck)>,
    failed: bool,
}

impl StoredScan {
    /// Before the batch that `check` expects.
    pub fn new(check: HeaderCheck) -> Self {
        let summary =
            StoredSummary { batches: 0, bytes: 0, next_offset: check.next_offset, max_timestamp: None };
        Self { check, summary, gathered: [0; HEADER_BYTES], gathered_bytes: 0, current: None, failed: false }
    }

    /// Takes in the next bytes; calls `each` with the header and the position (from where the scan began) of
    /// each batch found sound.
    ///
    /// # Panics
    /// If it has failed before.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(&BatchHeader, u64),
    ) -> Result<(), StoredError> {
        assert!(!self.failed, "a scan that has failed is over");
        while !bytes.is_empty() {
            let step = match self.current.take() {
                None => self.begin(&mut bytes, &mut each),
                Some(current) => self.go_on(current, &mut bytes, &mut each),
            };
            if let Err(error) = step {
                self.failed = true;
                return Err(error);
            }
        }
        Ok(())
    }

    fn begin(
        &mut self,
        bytes: &mut &[u8],
        each: &mut impl FnMut(&BatchHeader, u64),
    ) -> Result<(), StoredError> {
        if self.gathered_bytes == 0
            && let Some(first) = bytes.first_chunk::<HEADER_BYTES>()
        {
            let header = self.accept(first)?;
            return self.go_on((header, CrcCheck::new(&header)), bytes, each);
        }
        let count = bytes.len().min(HEADER_BYTES - self.gathered_bytes);
        let (now, rest) = bytes.split_at(count);
        self.gathered[self.gathered_bytes..self.gathered_bytes + count].copy_from_slice(now);
        self.gathered_bytes += count;
        *bytes = rest;
        if self.gathered_bytes < HEADER_BYTES {
            return Ok(());
        }
        let gathered = self.gathered;
        self.gathered_bytes = 0;
        let header = self.accept(&gathered)?;
        let mut crc = CrcCheck::new(&header);
        crc.feed(&gathered);
        self.go_on((header, crc), bytes, each)
    }

    fn accept(&self, first: &[u8; HEADER_BYTES]) -> Result<BatchHeader, StoredError> {
        let header = BatchHeader::parse(first)?;
        self.check.check(&header)?;
        Ok(header)
    }

    fn go_on(
        &mut self,
        (header, mut crc): (BatchHeader, CrcCheck),
        bytes: &mut &[u8],
        each: &mut impl FnMut(&BatchHeader, u64),
    ) -> Result<(), StoredError> {
        let count = crc.feed(bytes);
        *bytes = &bytes[count..];
        if crc.left() > 0 {
            self.current = Some((header, crc));
            return Ok(());
        }
        crc.finish()?;
        each(&header, self.summary.bytes);
        self.check.advance(&header);
        self.summary.batches += 1;
        self.summary.bytes += u64::from(header.size_bytes);
        self.summary.next_offset = header.next_offset();
        self.summary.max_timestamp = self.summary.max_timestamp.max(Some(header.max_timestamp));
        Ok(())
    }

    /// What was found sound so far.
    pub fn summary(&self) -> StoredSummary {
        self.summary
    }

    /// What the next batch must look like.
    pub fn check(&self) -> HeaderCheck {
        self.check
    }

    /// Whether the bytes so far end behind a whole batch.
    pub fn tail(&self) -> TailState {
        match &self.current {
            Some((header, crc)) => {
                TailState::Partial { need: header.size(), have: header.size() - crc.left() }
            }
            None if self.gathered_bytes > 0 => {
                TailState::Partial { need: HEADER_BYTES, have: self.gathered_bytes }
            }
            None => TailState::Whole,
        }
    }
}

/// Looks for what could be the header of a batch of this log behind damage: the first position at or after
/// `from` where a header passes `check` with gaps allowed. Its checksum is for the caller to try.
///
/// Cost: one look at a byte per position; a whole header only where the magic stands.
pub fn find_plausible_header(bytes: &[u8], from: usize, check: &HeaderCheck) -> Option<usize> {
    let check = HeaderCheck { continuity: Continuity::GapsAllowed, ..*check };
    (from..bytes.len().saturating_sub(HEADER_BYTES - 1)).find(|&at| {
        BatchHeader::has_magic(&bytes[at..])
            && BatchHeader::parse(&bytes[at..]).is_ok_and(|header| check.check(&header).is_ok())
    })
}
