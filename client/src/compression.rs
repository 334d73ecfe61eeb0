//! Compression of the records part of a batch: none, lz4 (frame format), zstd.
//!
//! Owns: calling the codecs, and the bound on what a batch may unpack to. The server never decompresses, so
//! this is the only place where a batch that unpacks to a thousand times its size can do harm: `decompress`
//! stops at its limit before it has allocated more.
//! Not here: where the codec's number stands in a batch header (`engine::batch`).

use std::io::{self, Read, Write};

use corelog_engine::batch;

/// zstd's own default level: 3.
const ZSTD_LEVEL: i32 = 3;
/// How much `decompress` reads at a time: one lz4 block.
const DECOMPRESS_STEP_BYTES: usize = 64 * 1024;

/// Codec of a record batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Records as they are.
    #[default]
    None,
    /// LZ4 frames with independent blocks, as Kafka's clients write and demand them.
    Lz4,
    /// Zstandard frames.
    Zstd,
}

impl Compression {
    /// The codec as batch headers name it.
    pub fn in_batch(self) -> batch::Compression {
        match self {
            Self::None => batch::Compression::None,
            Self::Lz4 => batch::Compression::Lz4,
            Self::Zstd => batch::Compression::Zstd,
        }
    }

    /// The codec of a batch; `None` for those that we do not read (gzip, snappy).
    pub fn of_batch(compression: batch::Compression) -> Option<Self> {
        match compression {
            batch::Compression::None => Some(Self::None),
            batch::Compression::Lz4 => Some(Self::Lz4),
            batch::Compression::Zstd => Some(Self::Zstd),
            batch::Compression::Gzip | batch::Compression::Snappy => None,
        }
    }

    /// Its name on command lines and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

impl std::str::FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "none" => Ok(Self::None),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd),
            other => Err(UnknownCompression { name: other.to_owned() }),
        }
    }
}

/// A codec's name that we do not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown compression {name:?}: use none, lz4 or zstd")]
pub struct UnknownCompression {
    /// What was given.
    pub name: String,
}

/// Why records could not be unpacked. The batch is bad or hostile: skip it or stop, asking again is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecompressError {
    /// The batch unpacks to more than the limit; raise the limit if the producer is trusted.
    #[error("the records unpack to more than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// The codec refused the bytes.
    #[error("not a valid {codec} stream: {reason}")]
    Invalid {
        /// The codec's name.
        codec: &'static str,
        /// What it said.
        reason: String,
    },
}

/// Packs the records part of a batch and appends it to `out`: the codec that `BatchBuilder::finish_compressed`
/// asks for.
///
/// Cost: no allocation besides the growth of `out` and what the codec needs inside.
pub fn compress(compression: Compression, records: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    match compression {
        Compression::None => out.extend_from_slice(records),
        Compression::Lz4 => {
            let mut frame = lz4_flex::frame::FrameEncoder::new(out);
            frame.write_all(records)?;
            frame.finish().map_err(io::Error::other)?;
        }
        Compression::Zstd => {
            let mut frame = zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?;
            frame.set_pledged_src_size(Some(records.len() as u64))?;
            frame.write_all(records)?;
            frame.finish()?;
        }
    }
    Ok(())
}

/// Unpacks the records part of a batch, to at most `bytes_max` bytes.
///
/// Cost: memory grows with what was really unpacked, never with what a header claims.
pub fn decompress(
    compression: Compression,
    packed: &[u8],
    bytes_max: usize,
) -> Result<Vec<u8>, DecompressError> {
    match compression {
        Compression::None if packed.len() > bytes_max => Err(DecompressError::TooLarge { bytes_max }),
        Compression::None => Ok(packed.to_vec()),
        Compression::Lz4 => {
            let reader = lz4_flex::frame::FrameDecoder::new(packed);
            read_bounded(reader, compression.name(), bytes_max)
        }
        Compression::Zstd => {
            let reader = zstd::stream::read::Decoder::with_buffer(packed)
                .map_err(|error| invalid(compression.name(), &error))?;
            read_bounded(reader, compression.name(), bytes_max)
        }
    }
}

fn read_bounded(
    mut reader: impl Read,
    codec: &'static str,
    bytes_max: usize,
) -> Result<Vec<u8>, DecompressError> {
    let mut records = Vec::new();
    loop {
        let filled = records.len();
        // One byte above the limit tells "just fits" from "there is more".
        let room = (bytes_max + 1 - filled).min(DECOMPRESS_STEP_BYTES);
        records.resize(filled + room, 0);
        let read = match reader.read(&mut records[filled..]) {
            Ok(read) => read,
            Err(error) => return Err(invalid(codec, &error)),
        };
        records.truncate(filled + read);
        if records.len() > bytes_max {
            return Err(DecompressError::TooLarge { bytes_max });
        }
        if read == 0 {
            return Ok(records);
        }
    }
}

fn invalid(codec: &'static str, error: &io::Error) -> DecompressError {
    DecompressError::Invalid { codec, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Compression; 3] = [Compression::None, Compression::Lz4, Compression::Zstd];

    fn text(bytes: usize) -> Vec<u8> {
        b"the quick brown fox jumps over the lazy dog, ".iter().copied().cycle().take(bytes).collect()
    }

    fn pack(compression: Compression, records: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        compress(compression, records, &mut packed).expect("packs");
        packed
    }

    #[test]
    fn what_is_packed_unpacks_to_the_same_bytes() {
        for compression in ALL {
            for bytes in [0, 1, 63, 64 * 1024, 64 * 1024 + 1, 300_000] {
                let records = text(bytes);
                let packed = pack(compression, &records);
                let unpacked = decompress(compression, &packed, bytes).expect("unpacks");
                assert_eq!(unpacked, records, "{} of {bytes} bytes", compression.name());
            }
        }
    }

    #[test]
    fn unpacking_stops_at_the_limit() {
        for compression in ALL {
            let packed = pack(compression, &text(100_000));
            let outcome = decompress(compression, &packed, 99_999);
            assert_eq!(
                outcome,
                Err(DecompressError::TooLarge { bytes_max: 99_999 }),
                "{}",
                compression.name()
            );
        }
    }

    #[test]
    fn garbage_and_cut_streams_are_errors_or_short_but_never_a_panic() {
        for compression in [Compression::Lz4, Compression::Zstd] {
            assert!(matches!(
                decompress(compression, b"this is no frame", 1000),
                Err(DecompressError::Invalid { .. })
            ));
            let whole = pack(compression, &text(10_000));
            for cut in 0..whole.len() {
                if let Ok(records) = decompress(compression, &whole[..cut], 10_000) {
                    // Only the end mark may be missing without a loss.
                    assert!(text(10_000).starts_with(&records), "{} cut at {cut}", compression.name());
                }
            }
        }
    }

    #[test]
    fn batch_codecs_and_names_lead_back_to_the_codec() {
        for compression in ALL {
            assert_eq!(Compression::of_batch(compression.in_batch()), Some(compression));
            assert_eq!(compression.name().parse(), Ok(compression));
        }
        assert_eq!(Compression::of_batch(batch::Compression::Gzip), None);
        assert!("gzip".parse::<Compression>().is_err());
    }
}
