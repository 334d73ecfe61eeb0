//! Small files beside a log that say what is known of it, replaced whole and checked when they are read.
//!
//! Owns: their common frame, and the kinds there are (`log`, with its table of `epochs`, and the `markers` of work under way). Text, so that an operator can read
//! them; with a checksum, so that nobody edits them by accident.
//! Invariant: a file is believed whole or not at all, and what is wrong with it is said.
//! Not here: what to do without one (`log`).
//!
//! Crash story: power fails while a file is replaced. `Disk::replace_file` leaves the old or the new contents,
//! whole; a file that is neither is damage.

mod epochs;
mod log;
mod markers;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;

pub use epochs::{EpochError, EpochStart, EpochTable};
pub use log::{BootId, LogCheckpoint};
pub use markers::{RepairMarker, ResetMarker};

use crate::disk::Disk;

/// What is kept in a checkpoint file.
pub trait Checkpoint: Sized {
    /// Name of the kind, one word: the files of two kinds are not mistaken for each other.
    const KIND: &'static str;
    /// Version of the body's format. Older ones are read for ever, newer ones never.
    const VERSION: u32;
    /// Largest file that is read: something else may lie there under that name.
    const FILE_BYTES_MAX: usize;

    /// Lines of the body, each ended by a newline.
    fn body(&self) -> String;

    /// Reads the body; `None` if it is not one.
    fn from_body(body: &str) -> Option<Self>;
}

/// Why the contents of a checkpoint file are not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than it says, or empty: do without it.
    #[error("the {kind} checkpoint is cut short")]
    Truncated {
        /// What was looked for.
        kind: &'static str,
    },
    /// Not what was written: do without it, and report the damage.
    #[error("the {kind} checkpoint is damaged")]
    Corrupt {
        /// What was looked for.
        kind: &'static str,
    },
    /// Sound, but of another kind: files were mixed up by hand.
    #[error("this is a {found} checkpoint, not a {kind} one")]
    WrongKind {
        /// What was looked for.
        kind: &'static str,
        /// What it is.
        found: String,
    },
    /// Written by a newer version of this software: stop, and start that version.
    #[error("the {kind} checkpoint has format {version}, this version reads up to {version_max}")]
    Newer {
        /// What was looked for.
        kind: &'static str,
        /// Its format.
        version: u32,
        /// The newest that is understood.
        version_max: u32,
    },
}

/// Why a checkpoint file was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The disk failed: the log cannot be opened.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The contents are not believed.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// Contents of the file of a checkpoint.
///
/// Shape: one line `corelog KIND VERSION BYTES CRC`, then the body of BYTES bytes. CRC is the CRC-32C, in eight hex
/// digits, of the line up to it (with the space) and of the body.
pub fn encode<C: Checkpoint>(checkpoint: &C) -> Vec<u8> {
    let body = checkpoint.body();
    frame(C::KIND, C::VERSION, &body)
}

fn frame(kind: &str, version: u32, body: &str) -> Vec<u8> {
    let head = format!("corelog {kind} {version} {} ", body.len());
    let crc = crc_of(&head, body.as_bytes());
    format!("{head}{crc:08x}\n{body}").into_bytes()
}

/// Reads the contents of a checkpoint file.
///
/// Errors: [`DecodeError`]; nothing of the contents is believed.
pub fn decode<C: Checkpoint>(contents: &[u8]) -> Result<C, DecodeError> {
    let kind = C::KIND;
    let corrupt = || DecodeError::Corrupt { kind };
    let Some(line_bytes) = contents.iter().take(HEAD_BYTES_MAX).position(|&byte| byte == b'\n') else {
        return Err(if contents.len() < HEAD_BYTES_MAX {
            DecodeError::Truncated { kind }
        } else {
            corrupt()
        });
    };
    let (line, body) = (&contents[..line_bytes], &contents[line_bytes + 1..]);
    let line = std::str::from_utf8(line).map_err(|_| corrupt())?;
    let (head, crc) = line.rsplit_once(' ').ok_or_else(corrupt)?;
    let head = &line[..head.len() + 1];
    let crc = u32::from_str_radix(crc, 16).map_err(|_| corrupt())?;
    let mut words = head.split(' ');
    let (Some("corelog"), Some(found), Some(version), Some(bytes)) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(corrupt());
    };
    let version: u32 = version.parse().map_err(|_| corrupt())?;
    let bytes: usize = bytes.parse().map_err(|_| corrupt())?;
    if body.len() < bytes {
        return Err(DecodeError::Truncated { kind });
    }
    if body.len() > bytes || crc_of(head, body) != crc {
        return Err(corrupt());
    }
    if found != kind {
        return Err(DecodeError::WrongKind { kind, found: found.to_owned() });
    }
    if version > C::VERSION {
        return Err(DecodeError::Newer { kind, version, version_max: C::VERSION });
    }
    std::str::from_utf8(body).ok().and_then(C::from_body).ok_or_else(corrupt)
}

/// Longest first line: kinds are short words, numbers have at most 20 digits.
const HEAD_BYTES_MAX: usize = 128;

fn crc_of(head: &str, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head.as_bytes()), body)
}

/// Reads a checkpoint file; `None` if it is not there.
pub async fn load<C: Checkpoint, D: Disk>(disk: &D, path: &Path) -> Result<Option<C>, LoadError> {
    match disk.read_file(path, C::FILE_BYTES_MAX).await {
        Ok(contents) => Ok(Some(decode(&contents)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(DecodeError::Corrupt { kind: C::KIND }.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Replaces a checkpoint file. Durable on return; if the future is dropped, the old or the new contents are there.
pub async fn store<C: Checkpoint, D: Disk>(disk: &D, path: &Path, checkpoint: &C) -> io::Result<()> {
    disk.replace_file(path, encode(checkpoint)).await
}
