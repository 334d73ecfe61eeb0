//! Printing: results to standard output, progress to standard error.
//!
//! Owns: tables, sizes and rates for people, JSON for programs, the progress line. Everything goes through
//! [`Output`], because `println!` would end the process when the reader closes the pipe.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::time::{Duration, Instant};

use super::{CliError, CliResult};

/// How often the progress line is drawn.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Standard output, buffered.
pub struct Output {
    out: BufWriter<io::StdoutLock<'static>>,
}

impl Output {
    /// Takes standard output for this thread.
    pub fn stdout() -> Self {
        Self { out: BufWriter::with_capacity(64 << 10, io::stdout().lock()) }
    }

    /// One line of text.
    pub fn line(&mut self, text: impl AsRef<str>) -> CliResult {
        self.bytes(text.as_ref().as_bytes())?;
        self.bytes(b"\n")
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> CliResult {
        self.out.write_all(bytes).map_err(CliError::output)
    }

    /// One JSON document, indented.
    pub fn json(&mut self, value: &serde_json::Value) -> CliResult {
        let text = serde_json::to_string_pretty(value).map_err(|error| CliError::output(error.into()))?;
        self.line(text)
    }

    /// Passes everything on.
    pub fn flush(&mut self) -> CliResult {
        self.out.flush().map_err(CliError::output)
    }

    /// Columns under their heads; `rows` have as many cells as `heads`. Cells that look like numbers stand right.
    pub fn table(&mut self, heads: &[&str], rows: &[Vec<String>]) -> CliResult {
        let widths: Vec<usize> = (0..heads.len())
            .map(|column| {
                let cells = rows.iter().map(|row| row[column].chars().count());
                cells.chain([heads[column].len()]).max().unwrap_or(0)
            })
            .collect();
        let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
        for row in std::iter::once(&heads).chain(rows) {
            let mut text = String::new();
            for (cell, &width) in row.iter().zip(&widths) {
                let number = cell.starts_with(|c: char| c.is_ascii_digit()) || cell == "-";
                let padded = if number { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
                text.push_str(&padded);
                text.push_str("  ");
            }
            self.line(text.trim_end())?;
        }
        Ok(())
    }
}

/// Bytes for people: `12.3 MB` (powers of ten, as rates are given).
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1_000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A number with its thousands apart: `1,234,567`.
pub fn count_text(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// So many of a thing whose plural ends in s: `1 record`, `1,234 records`.
pub fn counted(count: u64, thing: &str) -> String {
    format!("{} {thing}{}", count_text(count), if count == 1 { "" } else { "s" })
}

/// Per second, of something counted over a time.
pub fn per_second(count: u64, elapsed: Duration) -> u64 {
    let seconds = elapsed.as_secs_f64().max(1e-3);
    (count as f64 / seconds) as u64
}

/// A line on standard error that is drawn again and again; silent if nobody watches (no terminal).
pub struct Progress {
    shown: bool,
    drawn: Instant,
    width: usize,
}

impl Progress {
    /// `wanted` is false with `--quiet`.
    pub fn new(wanted: bool) -> Self {
        Self { shown: wanted && io::stderr().is_terminal(), drawn: Instant::now(), width: 0 }
    }

    /// Draws the line if it is time to; `text` is only called then.
    pub fn tick(&mut self, text: impl FnOnce() -> String) {
        if self.shown && self.drawn.elapsed() >= PROGRESS_INTERVAL {
            self.draw(&text());
        }
    }

    /// Draws the line now.
    pub fn draw(&mut self, text: &str) {
        if self.shown {
            eprint!("\r{text:<width$}", width = self.width);
            self.width = text.chars().count();
            self.drawn = Instant::now();
        }
    }

    /// Takes the line away.
    pub fn clear(&mut self) {
        if self.shown && self.width > 0 {
            eprint!("\r{:<width$}\r", "", width = self.width);
            self.width = 0;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_counts_read_well() {
        let sizes =
            [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (1_234_567, "1.2 MB"), (999_960, "1.0 MB")];
        for (bytes, text) in sizes {
            assert_eq!(bytes_text(bytes), text);
        }
        assert_eq!(count_text(0), "0");
        assert_eq!(count_text(999), "999");
        assert_eq!(count_text(1_234_567), "1,234,567");
        assert_eq!([0, 1, 2_000].map(|n| counted(n, "record")), ["0 records", "1 record", "2,000 records"]);
        assert_eq!(per_second(500, Duration::from_millis(250)), 2_000);
    }
}
