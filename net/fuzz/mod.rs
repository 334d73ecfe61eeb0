//! Fuzzing, shared by the test that replays cases and the program that looks for new ones; see `README.md`.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod memory;
pub mod mutate;
pub mod samples;
#[path = "../tests/support/mod.rs"]
pub mod support;
pub mod targets;

use std::path::{Path, PathBuf};

pub use targets::{TARGETS, Target};

/// Where found cases are kept.
pub fn corpus_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// Cases of a target in the corpus, with their file names.
pub fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(corpus_dir()).expect("the corpus folder is there") {
        let path = entry.expect("it can be listed").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if name.starts_with(&format!("{target}-")) && name.ends_with(".bin") {
            cases.push((name, std::fs::read(&path).expect("a case can be read")));
        }
    }
    cases.sort();
    cases
}
