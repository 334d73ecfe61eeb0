//! The durable list of logs that a data directory has held: what tells a lost log from one that was never made.
//!
//! Owns: the file `logs.list` of a data directory. A log stands on it before it is used for the first time, so one that is
//! on it and whose directory is missing is lost: it must never be made anew, because it has forgotten what it acked.
//! Layout: lines of ASCII. `+ID CRC\n`: made; `-ID CRC\n`: deleted on purpose. ID: 32 hexadecimal digits; CRC: CRC-32C of
//! what stands before the space, 8 hexadecimal digits. The file is appended to, and written anew (aside, then renamed)
//! when most of it is about logs that are gone.
//! Crash story: power fails in mid-append. The torn last line is cut off by the next opening: nothing rested on it,
//! because no log is used before the append has been synced. A broken line with sound ones behind it is damage, and the
//! directory is not used.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use corelog_engine::LogId;

use super::data_dir::replace_file;

/// The file, in its data directory.
pub const LOG_LIST_FILE: &str = "logs.list";

/// Bytes of one line.
const LINE_BYTES: usize = 1 + 32 + 1 + 8 + 1;
/// Lines about logs that are gone which are not worth writing the file anew.
const GONE_LINES_MAX: usize = 1_000;

/// Why the list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogListError {
    /// A line in the middle makes no sense.
    #[error("line {line} of {LOG_LIST_FILE} is damaged; restore the file from a copy")]
    Damaged {
        /// From 1.
        line: usize,
    },
    /// The system refused.
    #[error("cannot {action} {LOG_LIST_FILE}: {error}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why not.
        error: io::Error,
    },
}

fn failed(action: &'static str) -> impl Fn(io::Error) -> LogListError {
    move |error| LogListError::Io { action, error }
}

/// The list of one data directory, open.
#[derive(Debug)]
pub struct LogList {
    file: File,
    made: BTreeSet<LogId>,
}

impl LogList {
    /// Makes a list of these logs, durably. Leaves one that is there alone.
    pub fn make(data_dir: &Path, logs: impl IntoIterator<Item = LogId>) -> io::Result<()> {
        if path_of(data_dir).exists() {
            return Ok(());
        }
        let text: Vec<u8> = logs.into_iter().flat_map(|log| line(b'+', log)).collect();
        replace_file(&path_of(data_dir), &text)
    }

    /// Opens the list of a data directory and cuts a torn last line off. `None`: there is no list; directories of older
    /// versions have none.
    pub fn open(data_dir: &Path) -> Result<Option<Self>, LogListError> {
        let path = path_of(data_dir);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed("read"))?,
        };
        let Parsed { made, lines } = parse(&bytes)?;
        if lines > 2 * made.len() + GONE_LINES_MAX {
            let text: Vec<u8> = made.iter().flat_map(|log| line(b'+', *log)).collect();
            replace_file(&path, &text).map_err(failed("write"))?;
        }
        let mut file = OpenOptions::new().write(true).open(&path).map_err(failed("open"))?;
        let whole = file.metadata().map_err(failed("look at"))?.len() / LINE_BYTES as u64 * LINE_BYTES as u64;
        let end = whole.min((lines * LINE_BYTES) as u64);
        file.set_len(end)
            .and_then(|()| file.sync_all())
            .and_then(|()| file.seek(SeekFrom::End(0)))
            .map_err(failed("cut the end of"))?;
        Ok(Some(Self { file, made }))
    }

    /// Whether a log was made here and not deleted on purpose.
    pub fn holds(&self, log: LogId) -> bool {
        self.made.contains(&log)
    }

    /// Adds logs that were made. Durability: synced when it returns.
    ///
    /// Errors: nothing may be used that is not on the list; the directory is as good as failed.
    pub fn add(&mut self, logs: impl IntoIterator<Item = LogId>) -> Result<(), LogListError> {
        let new: Vec<LogId> = logs.into_iter().filter(|log| !self.made.contains(log)).collect();
        self.append(b'+', &new)?;
        self.made.extend(new);
        Ok(())
    }

    /// Takes logs off that were deleted on purpose. Durability: synced when it returns.
    pub fn remove(&mut self, logs: impl IntoIterator<Item = LogId>) -> Result<(), LogListError> {
        let gone: Vec<LogId> = logs.into_iter().filter(|log| self.made.contains(log)).collect();
        self.append(b'-', &gone)?;
        for log in gone {
            self.made.remove(&log);
        }
        Ok(())
    }

    fn append(&mut self, sign: u8, logs: &[LogId]) -> Result<(), LogListError> {
        if logs.is_empty() {
            return Ok(());
        }
        let text: Vec<u8> = logs.iter().flat_map(|log| line(sign, *log)).collect();
        self.file.write_all(&text).and_then(|()| self.file.sync_data()).map_err(failed("append to"))
    }
}

fn path_of(data_dir: &Path) -> PathBuf {
    data_dir.join(LOG_LIST_FILE)
}

fn line(sign: u8, log: LogId) -> Vec<u8> {
    let what = format!("{}{:032x}", char::from(sign), log.0);
    let crc = crc32c::crc32c(what.as_bytes());
    format!("{what} {crc:08x}\n").into_bytes()
}

struct Parsed {
    made: BTreeSet<LogId>,
    /// Whole lines from the beginning.
    lines: usize,
}

/// Reads the lines. The last one may be torn, or a whole block of them that was never synced: whatever follows the first
/// broken line is cut if no line behind it is sound.
fn parse(bytes: &[u8]) -> Result<Parsed, LogListError> {
    let mut made = BTreeSet::new();
    let mut lines = 0;
    let mut chunks = bytes.chunks(LINE_BYTES);
    for chunk in chunks.by_ref() {
        match parse_line(chunk) {
            Some((b'+', log)) => made.insert(log),
            Some((_, log)) => made.remove(&log),
            None => {
                return match chunks.any(|chunk| parse_line(chunk).is_some()) {
                    true => Err(LogListError::Damaged { line: lines + 1 }),
                    false => Ok(Parsed { made, lines }),
                };
            }
        };
        lines += 1;
    }
    Ok(Parsed { made, lines })
}

fn parse_line(bytes: &[u8]) -> Option<(u8, LogId)> {
    let sign = *bytes.first().filter(|sign| matches!(sign, b'+' | b'-'))?;
    let id = std::str::from_utf8(bytes.get(1..33)?).ok()?;
    let log = LogId(u128::from_str_radix(id, 16).ok()?);
    (line(sign, log) == bytes).then_some((sign, log))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn opened(dir: &Path) -> LogList {
        LogList::open(dir).expect("it opens").expect("it is there")
    }

    #[test]
    fn what_was_added_is_there_after_opening_again() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        LogList::make(dir.path(), []).expect("made");
        let mut list = opened(dir.path());
        list.add([LogId(1), LogId(2), LogId(u128::MAX)]).expect("added");
        list.remove([LogId(2), LogId(7)]).expect("removed");
        LogList::make(dir.path(), []).expect("left alone");
        for list in [list, opened(dir.path())] {
            let held = [1, 2, u128::MAX, 7].map(|log| list.holds(LogId(log)));
            assert_eq!(held, [true, false, true, false]);
        }
    }

    #[test]
    fn a_torn_end_is_cut_and_appended_to() {
        for cut in 1..2 * LINE_BYTES {
            let dir = tempfile::tempdir().expect("a temporary directory");
            LogList::make(dir.path(), []).expect("made");
            opened(dir.path()).add([1, 2, 3].map(LogId)).expect("added");
            let path = dir.path().join(LOG_LIST_FILE);
            let mut bytes = fs::read(&path).expect("read");
            let length = bytes.len();
            // What was not synced may be gone, or may be zeroes.
            bytes[length - cut..].fill(0);
            fs::write(&path, &bytes).expect("written");
            let mut list = opened(dir.path());
            assert!(list.holds(LogId(1)) && !list.holds(LogId(3)));
            assert_eq!(list.holds(LogId(2)), cut <= LINE_BYTES);
            list.add([LogId(9)]).expect("added");
            assert!(opened(dir.path()).holds(LogId(9)));
        }
    }

    #[test]
    fn damage_before_sound_lines_is_an_error() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        LogList::make(dir.path(), []).expect("made");
        opened(dir.path()).add([1, 2, 3].map(LogId)).expect("added");
        let path = dir.path().join(LOG_LIST_FILE);
        let mut bytes = fs::read(&path).expect("read");
        bytes[LINE_BYTES + 5] ^= 1;
        fs::write(&path, &bytes).expect("written");
        let error = LogList::open(dir.path()).expect_err("it is damaged");
        assert!(matches!(error, LogListError::Damaged { line: 2 }), "{error}");
    }

    #[test]
    fn a_list_of_what_is_gone_is_written_anew() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        LogList::make(dir.path(), []).expect("made");
        let mut list = opened(dir.path());
        let many: Vec<LogId> = (0..2_000).map(LogId).collect();
        list.add(many.clone()).expect("added");
        list.remove(many.into_iter().skip(1)).expect("removed");
        let mut list = opened(dir.path());
        list.add([LogId(5_000)]).expect("added");
        let length = fs::metadata(dir.path().join(LOG_LIST_FILE)).expect("there").len();
        assert_eq!(length, 2 * LINE_BYTES as u64);
        assert!(opened(dir.path()).holds(LogId(0)) && opened(dir.path()).holds(LogId(5_000)));
    }
}
