//! The content of a test record: it says who wrote it, which of his it is, and whether it is whole.
//!
//! Shape (ASCII): `check <producer> <sequence> ` and then letters that follow from both numbers, up to the length wanted.

use std::fmt;

/// Which record of which producer. Each attempt to produce takes new sequence numbers, a retry too: so a record that
/// is stored twice is a fault of the log and not of a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordTag {
    /// Who wrote it.
    pub producer: u32,
    /// Which of his, from 0, in the order of sending.
    pub sequence: u64,
}

impl fmt::Display for RecordTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p{}#{}", self.producer, self.sequence)
    }
}

/// Shortest value that holds any tag.
pub const VALUE_BYTES_MIN: usize = 48;

/// Why bytes are not a test record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Nobody of this test wrote it.
    #[error("not a test record")]
    Foreign,
    /// The tag is there, the rest is not what it should be.
    #[error("the record {tag} is damaged at byte {at} of its value")]
    Damaged {
        /// What it says it is.
        tag: RecordTag,
        /// First wrong byte.
        at: usize,
    },
}

impl RecordTag {
    /// A value of `bytes` bytes (at least [`VALUE_BYTES_MIN`]).
    pub fn value(self, bytes: usize) -> Vec<u8> {
        let mut value = format!("check {} {} ", self.producer, self.sequence).into_bytes();
        for at in value.len()..bytes.max(VALUE_BYTES_MIN) {
            value.push(self.letter(at));
        }
        value
    }

    /// The tag of a value, if every byte of it is as written.
    pub fn parse(value: &[u8]) -> Result<Self, RecordError> {
        let mut words = value.split(|&byte| byte == b' ');
        let number = |word: Option<&[u8]>| -> Option<u64> { std::str::from_utf8(word?).ok()?.parse().ok() };
        if words.next() != Some(b"check") || value.len() < VALUE_BYTES_MIN {
            return Err(RecordError::Foreign);
        }
        let producer =
            number(words.next()).and_then(|n| u32::try_from(n).ok()).ok_or(RecordError::Foreign)?;
        let sequence = number(words.next()).ok_or(RecordError::Foreign)?;
        let tag = Self { producer, sequence };
        let expected = tag.value(value.len());
        match value.iter().zip(&expected).position(|(found, written)| found != written) {
            None => Ok(tag),
            Some(at) => Err(RecordError::Damaged { tag, at }),
        }
    }

    /// The filling letter at a byte of the value.
    fn letter(self, at: usize) -> u8 {
        let mixed = (u64::from(self.producer) << 40 ^ self.sequence ^ (at as u64) << 20)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        b'a' + ((mixed >> 32) % 26) as u8
    }
}
