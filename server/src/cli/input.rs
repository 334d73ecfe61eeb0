//! Input of `produce`: reads files or standard input on a thread of its own, cuts them into lines.
//!
//! Owns: the reading thread. It blocks where the client's runtime must not, and hands over what it has as soon as
//! there is no more to read at once, so that a line typed at a terminal leaves at once.
//! Limits: a chunk holds up to `CHUNK_BYTES` and few wait; a line longer than `LINE_BYTES_MAX` is an error.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;

use tokio::sync::mpsc;

/// Lines are handed over in chunks of about this size.
const CHUNK_BYTES: usize = 256 << 10;
/// Chunks that may wait: reading runs ahead a little, memory stays bounded.
const CHUNKS_MAX: usize = 4;
/// Longest line. 16 MiB: beyond any batch that a topic takes by default.
pub const LINE_BYTES_MAX: usize = 16 << 20;

/// Lines of one source, without their ends.
#[derive(Debug, Default)]
pub struct Chunk {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Number of the first line in its source, from 1.
    pub first_line: u64,
    /// Which source, as an index into the files given.
    pub source: usize,
}

impl Chunk {
    /// The lines, in order.
    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.bytes[start..end])
    }

    fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

/// Why the input ended before its end. `source` is a file's name, or "standard input".
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// It cannot be opened or read.
    #[error("cannot read {source_name}: {error}")]
    Io {
        /// Which.
        source_name: String,
        /// What the system said.
        error: io::Error,
    },
    /// A line beyond the limit.
    #[error("line {line} of {source_name} is longer than {LINE_BYTES_MAX} bytes")]
    LineTooLong {
        /// Which.
        source_name: String,
        /// From 1.
        line: u64,
    },
}

/// The name of a source in messages.
pub fn source_name(files: &[PathBuf], source: usize) -> String {
    files.get(source).map_or_else(|| "standard input".to_owned(), |path| path.display().to_string())
}

/// Starts to read the files one after the other, or standard input if there are none ("-" is standard input too).
///
/// All files are opened first, so that a misspelt name is found before anything is sent. The thread ends when the
/// receiver is dropped, at the next line that it reads.
pub fn read_lines(files: Vec<PathBuf>) -> Result<mpsc::Receiver<Result<Chunk, InputError>>, InputError> {
    let mut sources: Vec<Box<dyn Read + Send>> = Vec::new();
    for (index, path) in files.iter().enumerate() {
        if path.as_os_str() == "-" {
            sources.push(Box::new(io::stdin()));
            continue;
        }
        let io_error = |error| InputError::Io { source_name: source_name(&files, index), error };
        let file = File::open(path).map_err(io_error)?;
        if file.metadata().map_err(io_error)?.is_dir() {
            return Err(io_error(io::ErrorKind::IsADirectory.into()));
        }
        sources.push(Box::new(file));
    }
    if sources.is_empty() {
        sources.push(Box::new(io::stdin()));
    }
    let (chunks, receiver) = mpsc::channel(CHUNKS_MAX);
    std::thread::spawn(move || {
        for (index, source) in sources.into_iter().enumerate() {
            let name = source_name(&files, index);
            match read_source(source, index, &name, &chunks) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    // Without a receiver nobody wants to know.
                    let _ = chunks.blocking_send(Err(error));
                    return;
                }
            }
        }
    });
    Ok(receiver)
}

/// Reads one source to its end; false if nobody listens any more.
fn read_source(
    source: Box<dyn Read + Send>,
    index: usize,
    name: &str,
    chunks: &mpsc::Sender<Result<Chunk, InputError>>,
) -> Result<bool, InputError> {
    let mut reader = BufReader::with_capacity(CHUNK_BYTES, source);
    let mut line = 1;
    let mut chunk = Chunk { first_line: line, source: index, ..Chunk::default() };
    loop {
        let start = chunk.bytes.len();
        let mut limited = (&mut reader).take(LINE_BYTES_MAX as u64 + 1);
        let read = limited.read_until(b'\n', &mut chunk.bytes);
        let read = read.map_err(|error| InputError::Io { source_name: name.to_owned(), error })?;
        let ended = read == 0;
        if !ended {
            if chunk.bytes.last() == Some(&b'\n') {
                chunk.bytes.pop();
            } else if read > LINE_BYTES_MAX {
                return Err(InputError::LineTooLong { source_name: name.to_owned(), line });
            }
            if chunk.bytes.len() > start && chunk.bytes.last() == Some(&b'\r') {
                chunk.bytes.pop();
            }
            chunk.ends.push(chunk.bytes.len());
            line += 1;
        }
        let pause = reader.buffer().is_empty();
        if !chunk.is_empty() && (ended || pause || chunk.bytes.len() >= CHUNK_BYTES) {
            let full =
                std::mem::replace(&mut chunk, Chunk { first_line: line, source: index, ..Chunk::default() });
            if chunks.blocking_send(Ok(full)).is_err() {
                return Ok(false);
            }
        }
        if ended {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(text: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let (chunks, mut receiver) = mpsc::channel(100);
        assert!(read_source(Box::new(io::Cursor::new(text.to_vec())), 0, "x", &chunks).expect("reads"));
        drop(chunks);
        let mut seen = Vec::new();
        while let Some(chunk) = receiver.blocking_recv() {
            let chunk = chunk.expect("sound");
            let numbered = chunk.lines().enumerate();
            seen.extend(numbered.map(|(i, line)| (chunk.first_line + i as u64, line.to_vec())));
        }
        seen
    }

    #[test]
    fn lines_lose_their_ends_and_keep_their_numbers() {
        assert_eq!(lines_of(b""), []);
        let expected: Vec<(u64, Vec<u8>)> =
            vec![(1, b"a".into()), (2, b"".into()), (3, b"b\rc".into()), (4, b"d".into())];
        assert_eq!(lines_of(b"a\n\nb\rc\r\nd"), expected);
        assert_eq!(lines_of(b"a\n"), [(1, b"a".to_vec())]);
        let many = b"0123456789\n".repeat(100_000);
        let seen = lines_of(&many);
        assert_eq!((seen.len(), seen.last().map(|row| row.0)), (100_000, Some(100_000)));
    }

    #[test]
    fn an_endless_line_is_an_error_and_missing_files_are_found_at_once() {
        let (chunks, _receiver) = mpsc::channel(1);
        let endless = io::repeat(b'x');
        let error = read_source(Box::new(endless), 0, "x", &chunks).expect_err("endless");
        assert!(matches!(error, InputError::LineTooLong { line: 1, .. }));
        assert!(matches!(read_lines(vec!["/nonexistent".into()]), Err(InputError::Io { .. })));
        assert!(matches!(read_lines(vec!["/".into()]), Err(InputError::Io { .. })));
    }
}
