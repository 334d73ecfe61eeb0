//! Walks through record batches that arrive in pieces, looking at their headers alone.

use corelog_engine::batch::{BatchHeader, HEADER_BYTES, HeaderError};

/// The place in one partition's part of a response.
#[derive(Debug)]
pub(super) struct BatchCursor {
    header: [u8; HEADER_BYTES],
    header_filled: usize,
    /// Bytes of the current batch that are still to come after its header.
    skip: usize,
    /// Offset after the last batch seen; `None` before the first.
    pub(super) next_offset: Option<u64>,
    /// Records of the batches seen.
    pub(super) records: u64,
}

impl Default for BatchCursor {
    fn default() -> Self {
        Self { header: [0; HEADER_BYTES], header_filled: 0, skip: 0, next_offset: None, records: 0 }
    }
}

impl BatchCursor {
    /// Takes the next piece.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), HeaderError> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let copied = (HEADER_BYTES - self.header_filled).min(bytes.len());
            self.header[self.header_filled..][..copied].copy_from_slice(&bytes[..copied]);
            self.header_filled += copied;
            bytes = &bytes[copied..];
            if self.header_filled == HEADER_BYTES {
                let header = BatchHeader::parse(&self.header)?;
                self.header_filled = 0;
                self.skip = header.size_bytes as usize - HEADER_BYTES;
                self.records += u64::from(header.record_count);
                self.next_offset =
                    Some(header.base_offset.advance(u64::from(header.last_offset_delta) + 1).0);
            }
        }
        Ok(())
    }

    /// Whether it stands between two batches.
    pub(super) fn is_between(&self) -> bool {
        self.skip == 0 && self.header_filled == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::produce::build_batch;

    #[test]
    fn pieces_of_any_size_yield_the_same() {
        let mut bytes = build_batch(100, 3).expect("a small batch");
        bytes.extend_from_slice(&build_batch(1, 1).expect("a small batch"));
        for piece_bytes in [1, 7, 61, 62, 400, bytes.len()] {
            let mut cursor = BatchCursor::default();
            for piece in bytes.chunks(piece_bytes) {
                cursor.feed(piece).expect("sound batches");
            }
            assert!(cursor.is_between(), "pieces of {piece_bytes}");
            assert_eq!((cursor.records, cursor.next_offset), (4, Some(1)), "pieces of {piece_bytes}");
        }
        let mut cursor = BatchCursor::default();
        cursor.feed(&bytes[..bytes.len() - 1]).expect("sound so far");
        assert!(!cursor.is_between());
        assert!(BatchCursor::default().feed(&[0; 200]).is_err());
    }
}
