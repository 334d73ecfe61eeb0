//! The real text that the demo streams: finds it, cuts it into keyed records.
//!
//! Owns: where a large real text is likely to lie on a machine (the package index of Debian first), and how it
//! becomes records: a package's paragraph with its maintainer as key, or the lines of any other text with their
//! file as key. Many records share a key, so that order per key means something.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Less than this is no load worth watching: look further.
const ENOUGH_BYTES: u64 = 16 << 20;
/// Lines of other texts that are longer are cut.
const LINE_BYTES_MAX: usize = 64 << 10;

/// A record of the text, borrowed from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TextRecord<'a> {
    pub key: &'a [u8],
    pub value: &'a [u8],
}

/// One source of text.
pub(super) struct Source {
    name: String,
    bytes: Vec<u8>,
}

/// All the text, in memory.
pub(super) struct Text {
    sources: Vec<Source>,
    /// For people: where it came from.
    pub description: String,
}

impl Text {
    /// The given file, or the largest real text of this machine, at most `bytes_max` of it.
    pub(super) fn find(file: Option<&Path>, bytes_max: u64) -> io::Result<Self> {
        if let Some(path) = file {
            let source = read(path, bytes_max)?;
            if source.bytes.is_empty() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the file is empty"));
            }
            return Ok(Self { description: path.display().to_string(), sources: vec![source] });
        }
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let places: [(&str, PathBuf, &[&str]); 5] = [
            (
                "the package index of this machine",
                "/var/lib/apt/lists".into(),
                &["_Packages", "_Packages.lz4"],
            ),
            (
                "the package database of this machine",
                "/var/lib/dpkg".into(),
                &["status", ".list", ".md5sums"],
            ),
            ("the sources of Rust packages", home.join(".cargo/registry/src"), &[".rs", ".md"]),
            ("the sources of this checkout", ".".into(), &[".rs", ".md", ".lock"]),
            (
                "the shared files of this machine",
                "/usr/share".into(),
                &[".txt", ".pm", ".py", ".html", "copyright"],
            ),
        ];
        let mut sources = Vec::new();
        let mut descriptions: Vec<&str> = Vec::new();
        let mut total = 0;
        for (description, dir, suffixes) in places {
            if total >= ENOUGH_BYTES {
                break;
            }
            let before = total;
            for path in files(&dir, suffixes) {
                if total >= bytes_max {
                    break;
                }
                // A file that cannot be read or unpacked is left out: any text will do.
                if let Ok(source) = read(&path, bytes_max - total) {
                    total += source.bytes.len() as u64;
                    sources.push(source);
                }
            }
            if total > before {
                descriptions.push(description);
            }
        }
        if total == 0 {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no text found on this machine; name one with --file",
            ));
        }
        Ok(Self { sources, description: descriptions.join(", ") })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.sources.iter().map(|source| source.bytes.len() as u64).sum()
    }

    /// The records, in order; the same each time.
    pub(super) fn records(&self) -> impl Iterator<Item = TextRecord<'_>> {
        self.sources.iter().flat_map(|source| {
            let paragraphs = is_package_index(&source.bytes);
            Pieces { rest: &source.bytes, paragraphs, name: source.name.as_bytes() }
        })
    }
}

fn read(path: &Path, bytes_max: u64) -> io::Result<Source> {
    let file = File::open(path)?;
    let mut bytes = Vec::new();
    if path.extension().is_some_and(|extension| extension == "lz4") {
        lz4_flex::frame::FrameDecoder::new(file).take(bytes_max).read_to_end(&mut bytes)?;
    } else {
        file.take(bytes_max).read_to_end(&mut bytes)?;
    }
    Ok(Source { name: path.display().to_string(), bytes })
}

/// Files below `dir` with one of these endings, in order of their names.
fn files(dir: &Path, suffixes: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if kind.is_dir() && name != "target" && !name.starts_with('.') {
                left.push(path);
            } else if kind.is_file() && suffixes.iter().any(|suffix| name.ends_with(suffix)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn is_package_index(bytes: &[u8]) -> bool {
    bytes.starts_with(b"Package: ")
}

/// Cuts one source: paragraphs keyed by their maintainer, or lines keyed by the source's name.
struct Pieces<'a> {
    rest: &'a [u8],
    paragraphs: bool,
    name: &'a [u8],
}

impl<'a> Iterator for Pieces<'a> {
    type Item = TextRecord<'a>;

    fn next(&mut self) -> Option<TextRecord<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        if !self.paragraphs {
            let end = self.rest.iter().position(|byte| *byte == b'\n').map_or(self.rest.len(), |at| at + 1);
            let (line, rest) = self.rest.split_at(end.min(LINE_BYTES_MAX));
            self.rest = rest;
            return Some(TextRecord { key: self.name, value: line });
        }
        let end = find(self.rest, b"\n\n").map_or(self.rest.len(), |at| at + 2);
        let (paragraph, rest) = self.rest.split_at(end);
        self.rest = rest;
        let key = field(paragraph, b"\nMaintainer: ").unwrap_or(self.name);
        Some(TextRecord { key, value: paragraph })
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

/// The rest of the line behind `name`.
fn field<'a>(paragraph: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let value = &paragraph[find(paragraph, name)? + name.len()..];
    value.split(|byte| *byte == b'\n').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> Text {
        let source = Source { name: "f".into(), bytes: bytes.to_vec() };
        Text { sources: vec![source], description: String::new() }
    }

    #[test]
    fn paragraphs_are_keyed_by_their_maintainer() {
        let bytes = b"Package: a\nMaintainer: X <x@y>\n\nPackage: b\nSize: 1\nMaintainer: Z\n\nPackage: c\n";
        let text = text(bytes);
        let keys: Vec<&[u8]> = text.records().map(|record| record.key).collect();
        assert_eq!(keys, [&b"X <x@y>"[..], b"Z", b"f"]);
        assert_eq!(text.records().flat_map(|record| record.value.to_vec()).collect::<Vec<_>>(), bytes);
    }

    #[test]
    fn other_texts_are_cut_into_lines_without_a_loss() {
        let long = "x".repeat(LINE_BYTES_MAX + 10);
        let bytes = format!("one\n\ntwo\n{long}\nend");
        let text = text(bytes.as_bytes());
        assert_eq!(text.records().count(), 6);
        assert!(text.records().all(|record| record.key == b"f"));
        assert_eq!(text.records().flat_map(|r| r.value.to_vec()).collect::<Vec<_>>(), bytes.as_bytes());
    }
}
