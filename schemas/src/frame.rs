//! Cuts a byte stream into frames.
//!
//! Shape (little-endian):
//! ```text
//! @0   u32  frame_bytes     bytes that follow this field: 12 + head_bytes + payload bytes
//! @4   u32  head_bytes      length of the flatbuffer head
//! @8   u32  correlation_id  chosen by the client, returned in the response
//! @12  u16  api             which request this is; in a response the same, or 0 if it failed as a whole
//! @14  u8   frame_version   1
//! @15  u8   flags           0
//! @16  head, a flatbuffer
//! @16 + head_bytes  payload: record batches of produce and fetch, as they are
//! ```
//! The prefix is checked as soon as it is there, so a stranger's length never makes us wait for or reserve more
//! than the limits allow.

use crate::error::{ErrorCode, Failure};

/// Length of the fixed part of a frame.
pub const FRAME_PREFIX_BYTES: usize = 16;

/// Bytes of a frame that its own length field does not count.
const LENGTH_FIELD_BYTES: usize = 4;

/// The only frame layout there is.
const FRAME_VERSION: u8 = 1;

/// What a receiver accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Largest frame in all, length field included.
    pub frame_bytes_max: u32,
    /// Largest head: it is the part that is verified and decoded into structs.
    pub head_bytes_max: u32,
}

/// Why bytes are not a frame. The stream cannot be read on after any of these: close it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame layout is another one: not a client of ours, or garbage.
    #[error("frame version {version} with flags {flags:#x}, expected version {FRAME_VERSION} with flags 0")]
    NotAFrame {
        /// Byte 14.
        version: u8,
        /// Byte 15.
        flags: u8,
    },
    /// Longer than the receiver allows.
    #[error("a frame of {frame_bytes} bytes is larger than the limit of {frame_bytes_max}")]
    TooLarge {
        /// Its length in all.
        frame_bytes: u64,
        /// The limit.
        frame_bytes_max: u32,
    },
    /// Its head is longer than the receiver allows.
    #[error("a head of {head_bytes} bytes is larger than the limit of {head_bytes_max}")]
    HeadTooLarge {
        /// Length of the head.
        head_bytes: u32,
        /// The limit.
        head_bytes_max: u32,
    },
    /// The head does not fit in the frame, or the frame not around its own prefix.
    #[error("a head of {head_bytes} bytes does not fit in a frame of {frame_bytes} bytes")]
    HeadBeyondFrame {
        /// Length of the head.
        head_bytes: u32,
        /// Length of the frame in all.
        frame_bytes: u64,
    },
}

impl FrameError {
    /// What to tell the peer before closing.
    pub fn failure(&self) -> Failure {
        let code = match self {
            Self::TooLarge { .. } | Self::HeadTooLarge { .. } => ErrorCode::FrameTooLarge,
            Self::NotAFrame { .. } | Self::HeadBeyondFrame { .. } => ErrorCode::CorruptFrame,
        };
        Failure::new(code, self.to_string())
    }
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FramePrefix {
    /// Length of the frame in all, this prefix included.
    pub frame_bytes: u64,
    /// Length of the head.
    pub head_bytes: u32,
    /// Chosen by the client.
    pub correlation_id: u32,
    /// Which request; see [`crate::Api`].
    pub api: u16,
}

impl FramePrefix {
    /// Reads a prefix. The correlation id of a refused one is in [`FramePrefix::correlation_id_of`].
    pub fn parse(bytes: &[u8; FRAME_PREFIX_BYTES], limits: &FrameLimits) -> Result<Self, FrameError> {
        let [version, flags] = [bytes[14], bytes[15]];
        if version != FRAME_VERSION || flags != 0 {
            return Err(FrameError::NotAFrame { version, flags });
        }
        let frame_bytes = u64::from(u32_at(bytes, 0)) + LENGTH_FIELD_BYTES as u64;
        let head_bytes = u32_at(bytes, 4);
        if frame_bytes > u64::from(limits.frame_bytes_max) {
            return Err(FrameError::TooLarge { frame_bytes, frame_bytes_max: limits.frame_bytes_max });
        }
        if head_bytes > limits.head_bytes_max {
            return Err(FrameError::HeadTooLarge { head_bytes, head_bytes_max: limits.head_bytes_max });
        }
        if FRAME_PREFIX_BYTES as u64 + u64::from(head_bytes) > frame_bytes {
            return Err(FrameError::HeadBeyondFrame { head_bytes, frame_bytes });
        }
        let api = u16::from_le_bytes([bytes[12], bytes[13]]);
        Ok(Self { frame_bytes, head_bytes, correlation_id: u32_at(bytes, 8), api })
    }

    /// The correlation id that a prefix holds, whatever else it is.
    pub fn correlation_id_of(bytes: &[u8; FRAME_PREFIX_BYTES]) -> u32 {
        u32_at(bytes, 8)
    }

    /// The prefix as bytes.
    ///
    /// # Panics
    /// If the frame is longer than its length field can say: the sender keeps to the peer's limit.
    pub fn to_bytes(&self) -> [u8; FRAME_PREFIX_BYTES] {
        let counted = u32::try_from(self.frame_bytes - LENGTH_FIELD_BYTES as u64)
            .expect("a frame is shorter than 4 GiB: the sender keeps to the limits");
        let mut bytes = [0; FRAME_PREFIX_BYTES];
        bytes[0..4].copy_from_slice(&counted.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.head_bytes.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.correlation_id.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.api.to_le_bytes());
        bytes[14] = FRAME_VERSION;
        bytes
    }

    /// Bytes behind the head.
    pub fn payload_bytes(&self) -> u64 {
        self.frame_bytes - FRAME_PREFIX_BYTES as u64 - u64::from(self.head_bytes)
    }
}

fn u32_at(bytes: &[u8; FRAME_PREFIX_BYTES], position: usize) -> u32 {
    u32::from_le_bytes([bytes[position], bytes[position + 1], bytes[position + 2], bytes[position + 3]])
}

/// One whole frame in the receiver's buffer.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Its fixed part.
    pub prefix: FramePrefix,
    /// The flatbuffer, not verified yet: [`crate::decode`] does that.
    pub head: &'a [u8],
    /// What follows the head.
    pub payload: &'a [u8],
}

/// The frame at the front of `bytes`; `None` if more bytes are needed (with a whole prefix there,
/// [`FramePrefix::parse`] says how many). Borrows, allocates nothing.
pub fn parse_frame<'a>(bytes: &'a [u8], limits: &FrameLimits) -> Result<Option<Frame<'a>>, FrameError> {
    let Some(prefix) = bytes.first_chunk::<FRAME_PREFIX_BYTES>() else { return Ok(None) };
    let prefix = FramePrefix::parse(prefix, limits)?;
    // `frame_bytes` is at most `frame_bytes_max`, a u32.
    let Some(frame) = bytes.get(..prefix.frame_bytes as usize) else { return Ok(None) };
    let (head, payload) = frame[FRAME_PREFIX_BYTES..].split_at(prefix.head_bytes as usize);
    Ok(Some(Frame { prefix, head, payload }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FrameLimits = FrameLimits { frame_bytes_max: 1000, head_bytes_max: 100 };

    fn prefix(frame_bytes: u64, head_bytes: u32) -> FramePrefix {
        FramePrefix { frame_bytes, head_bytes, correlation_id: 7, api: 2 }
    }

    #[test]
    fn layout_is_the_documented_one() {
        let bytes = prefix(0x0104 + 4, 0x20).to_bytes();
        assert_eq!(bytes, [0x04, 1, 0, 0, 0x20, 0, 0, 0, 7, 0, 0, 0, 2, 0, 1, 0]);
    }

    #[test]
    fn frames_are_cut_at_every_split() {
        let mut bytes = prefix(16 + 3 + 2, 3).to_bytes().to_vec();
        bytes.extend_from_slice(b"hdrpl");
        bytes.extend_from_slice(&prefix(16, 0).to_bytes());
        for cut in 0..21 {
            assert!(parse_frame(&bytes[..cut], &LIMITS).unwrap().is_none(), "{cut} bytes are not a frame");
        }
        let first = parse_frame(&bytes, &LIMITS).unwrap().unwrap();
        assert_eq!((first.head, first.payload), (&b"hdr"[..], &b"pl"[..]));
        assert_eq!(first.prefix.payload_bytes(), 2);
        let second = parse_frame(&bytes[21..], &LIMITS).unwrap().unwrap();
        assert_eq!((second.head.len(), second.payload.len()), (0, 0));
    }

    #[test]
    fn refuses_what_breaks_a_limit_before_the_rest_is_there() {
        let check = |prefix: [u8; 16], expected: ErrorCode| {
            let error = parse_frame(&prefix, &LIMITS).unwrap_err();
            assert_eq!(error.failure().code, expected, "{error}");
        };
        check(prefix(1001, 10).to_bytes(), ErrorCode::FrameTooLarge);
        check(prefix(u64::from(u32::MAX) + 4, 10).to_bytes(), ErrorCode::FrameTooLarge);
        check(prefix(1000, 101).to_bytes(), ErrorCode::FrameTooLarge);
        check(prefix(50, 50).to_bytes(), ErrorCode::CorruptFrame);
        check(*b"GET / HTTP/1.1\r\n", ErrorCode::CorruptFrame);
        let mut zeroes = [0; 16];
        check(zeroes, ErrorCode::CorruptFrame);
        zeroes[14] = 1;
        check(zeroes, ErrorCode::CorruptFrame);
        zeroes[0] = 12;
        assert!(parse_frame(&zeroes, &LIMITS).unwrap().is_some(), "an empty head is the decoder's matter");
    }
}
