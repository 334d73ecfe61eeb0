//! Wall clocks that jump: one for each node, by a preloaded library that adds what a file says.
//!
//! Owns: the library (`clock.c`, made with `cc`) and the files. A time namespace would not do: it moves the monotonic
//! clocks, and those never jump on a real machine.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes the library; `None` without a C compiler.
pub(crate) fn library(dir: &Path) -> Option<PathBuf> {
    let library = dir.join("clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/clock.c");
    let made =
        Command::new("cc").args(["-O2", "-shared", "-fPIC", source, "-ldl", "-o"]).arg(&library).status();
    made.is_ok_and(|status| status.success()).then_some(library)
}

/// The wall clock of one process.
pub(crate) struct Clock {
    library: PathBuf,
    path: PathBuf,
    file: File,
}

impl Clock {
    /// One that is right.
    pub(crate) fn new(library: PathBuf, path: PathBuf) -> Self {
        let file =
            File::options().create(true).truncate(false).write(true).open(&path).expect("a clock file");
        let clock = Self { library, path, file };
        clock.step_to(0);
        clock
    }

    /// Gives a command this clock.
    pub(crate) fn give(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env("CLOCK_OFFSET_FILE", &self.path);
    }

    /// Sets how many seconds it is ahead; negative: behind.
    pub(crate) fn step_to(&self, ahead_s: i64) {
        self.file.write_all_at(&(ahead_s * 1_000_000_000).to_ne_bytes(), 0).expect("written");
    }
}
