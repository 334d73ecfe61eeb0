//! Walks batches that lie back to back in a list of buffers, without copying them.
//!
//! Owns: where each batch begins and ends. A header may straddle buffers; only then are its 61 bytes gathered,
//! on the stack.
//! Not here: whether the bytes are sound (`stored`).

use std::ops::{Deref, Range};

use crate::batch::header::{BatchHeader, HEADER_BYTES, HeaderError};

/// Where one batch lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSpan {
    /// Its header, not checked against its checksum.
    pub header: BatchHeader,
    /// Where it begins, counted in bytes from the front of the first buffer.
    pub position: usize,
}

impl BatchSpan {
    /// The bytes of the batch.
    pub fn range(&self) -> Range<usize> {
        self.position..self.position + self.header.size()
    }

    /// The pieces of the batch in the buffers that were walked.
    pub fn pieces<'a, B: Deref<Target = [u8]>>(&self, parts: &'a [B]) -> impl Iterator<Item = &'a [u8]> {
        let range = self.range();
        let mut start = 0;
        parts.iter().filter_map(move |part| {
            let part_start = start;
            start += part.len();
            let from = range.start.max(part_start);
            let to = range.end.min(start);
            (from < to).then(|| &part[from - part_start..to - part_start])
        })
    }
}

/// Why a walk cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalkError {
    /// The buffers end within a batch: what was walked before is whole.
    #[error("batch at byte {position} needs {need} bytes, {have} are left")]
    Incomplete {
        /// Where the batch begins.
        position: usize,
        /// Bytes from there that it needs, as far as known.
        need: usize,
        /// Bytes that are left.
        have: usize,
    },
    /// What stands there is not a batch.
    #[error("batch at byte {position}: {error}")]
    Header {
        /// Where it should begin.
        position: usize,
        /// What is wrong with it.
        error: HeaderError,
    },
}

/// Iterator over the batches of a list of buffers. After an error it ends.
#[derive(Debug)]
pub struct BatchWalk<'a, B> {
    parts: &'a [B],
    /// Buffer in which the next batch begins, and where in it.
    part: usize,
    within: usize,
    position: usize,
    left: usize,
    ended: bool,
}

impl<'a, B: Deref<Target = [u8]>> BatchWalk<'a, B> {
    /// From the front of the first buffer.
    pub fn new(parts: &'a [B]) -> Self {
        let left = parts.iter().map(|part| part.len()).sum();
        Self { parts, part: 0, within: 0, position: 0, left, ended: false }
    }

    /// Bytes before the next batch: all that was walked whole.
    pub fn position(&self) -> usize {
        self.position
    }

    fn step(&mut self) -> Result<BatchSpan, WalkError> {
        let (position, have) = (self.position, self.left);
        let mut gathered = [0; HEADER_BYTES];
        if have < HEADER_BYTES {
            return Err(WalkError::Incomplete { position, need: HEADER_BYTES, have });
        }
        let header = BatchHeader::parse(self.header_bytes(&mut gathered))
            .map_err(|error| WalkError::Header { position, error })?;
        if header.size() > have {
            return Err(WalkError::Incomplete { position, need: header.size(), have });
        }
        self.skip(header.size());
        Ok(BatchSpan { header, position })
    }

    /// The header's bytes, borrowed where they lie in one buffer.
    fn header_bytes<'b>(&self, gathered: &'b mut [u8; HEADER_BYTES]) -> &'b [u8]
    where
        'a: 'b,
    {
        let parts: &'a [B] = self.parts;
        let first = &parts[self.part][self.within..];
        if first.len() >= HEADER_BYTES {
            return &first[..HEADER_BYTES];
        }
        let mut filled = 0;
        let mut within = self.within;
        for part in &parts[self.part..] {
            let piece = &part[within..];
            let count = piece.len().min(HEADER_BYTES - filled);
            gathered[filled..filled + count].copy_from_slice(&piece[..count]);
            filled += count;
            within = 0;
        }
        gathered
    }

    fn skip(&mut self, mut bytes: usize) {
        self.position += bytes;
        self.left -= bytes;
        while self.part < self.parts.len() {
            let rest = self.parts[self.part].len() - self.within;
            if bytes < rest {
                self.within += bytes;
                return;
            }
            bytes -= rest;
            self.part += 1;
            self.within = 0;
        }
        assert!(bytes == 0, "a walk skipped {bytes} bytes beyond its buffers");
    }
}

impl<B: Deref<Target = [u8]>> Iterator for BatchWalk<'_, B> {
    type Item = Result<BatchSpan, WalkError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended || self.left == 0 {
            return None;
        }
        let step = self.step();
        self.ended = step.is_err();
        Some(step)
    }
}
