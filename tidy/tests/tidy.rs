//! The source tree keeps its own rules: who may import whom, how a file opens, how long it gets.
//!
//! Setup: reads every tracked kind of file below the workspace root, and `cargo metadata`.
//! Must never happen: a failure that does not name the file, the line and what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Lines after which a source file must be split: a reader holds no more in the head.
const FILE_LINES_MAX: usize = 800;

/// Who may depend on whom in a normal build. Imports point down only; a crate that is not listed fails the test.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("schemas", &[]),
    ("engine", &[]),
    ("tuning", &[]),
    ("tidy", &[]),
    ("replication", &["engine", "schemas"]),
    ("net", &["engine", "schemas"]),
    ("client", &["engine", "schemas"]),
    ("bench", &["engine", "schemas", "tuning"]),
    ("sim", &["engine", "replication", "schemas"]),
    ("server", &["engine", "schemas", "tuning", "replication", "net", "client", "bench"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tidy lies below the workspace root").to_path_buf()
}

/// Every file below `dir` that people write, without build output and version control.
fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    for entry in entries {
        let path = entry.expect("a directory entry is readable").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "target" | ".git" | ".cache" | "corpus" | "artifacts") {
                files(&path, found);
            }
        } else {
            found.push(path);
        }
    }
}

/// Text files with their contents, by path relative to the root.
fn sources(extensions: &[&str]) -> BTreeMap<String, String> {
    let root = root();
    let mut found = Vec::new();
    files(&root, &mut found);
    found
        .into_iter()
        .filter(|path| {
            let extension = path.extension().unwrap_or_default().to_string_lossy();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            extensions.contains(&extension.as_ref()) || extensions.contains(&name.as_ref())
        })
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let name = path.strip_prefix(&root).expect("found below the root").display().to_string();
            (name, text)
        })
        .collect()
}

fn is_generated(text: &str) -> bool {
    text.lines().take(5).any(|line| line.contains("automatically generated") || line.contains("@generated"))
}

/// Fails with all complaints at once, so that one run shows the whole work.
fn check(complaints: &[String]) {
    assert!(complaints.is_empty(), "{} complaint(s):\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn imports_point_down_only() {
    let metadata = corelog_metadata();
    let packages = metadata["packages"].as_array().expect("cargo metadata lists packages");
    let mut complaints = Vec::new();
    let mut seen = BTreeSet::new();
    for package in packages {
        let name = short(package["name"].as_str().expect("a package has a name"));
        seen.insert(name.to_owned());
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(crate_name, _)| *crate_name == name) else {
            complaints
                .push(format!("crate {name}: not in MAY_IMPORT of tidy/tests/tidy.rs; say whom it may use"));
            continue;
        };
        for dependency in package["dependencies"].as_array().expect("a package lists dependencies") {
            let full = dependency["name"].as_str().expect("a dependency has a name");
            // Tests may look further: the engine's run on the simulated disk, for one.
            let is_test_only = dependency["kind"].as_str() == Some("dev");
            if full.starts_with("corelog-") && !is_test_only && !allowed.contains(&short(full)) {
                complaints.push(format!("crate {name} imports {}; allowed: {allowed:?}", short(full)));
            }
        }
    }
    for (name, _) in MAY_IMPORT {
        assert!(seen.contains(*name), "MAY_IMPORT names {name}, which is no crate of this workspace");
    }
    check(&complaints);
}

#[test]
fn every_source_file_opens_with_its_answers() {
    let complaints: Vec<String> = sources(&["rs"])
        .into_iter()
        .filter(|(_, text)| !is_generated(text) && !text.starts_with("//! "))
        .map(|(name, _)| format!("{name}: opens without `//!`; say what it owns and what always holds"))
        .collect();
    check(&complaints);
}

#[test]
fn source_files_fit_a_head() {
    let complaints: Vec<String> = sources(&["rs"])
        .into_iter()
        .filter(|(_, text)| !is_generated(text) && text.lines().count() > FILE_LINES_MAX)
        .map(|(name, text)| {
            format!("{name}: {} lines, limit {FILE_LINES_MAX}; split it", text.lines().count())
        })
        .collect();
    check(&complaints);
}

#[test]
fn text_is_ascii() {
    let mut complaints = Vec::new();
    for (name, text) in sources(&["rs", "toml", "md", "sh", "fbs", "yml", "Makefile"]) {
        for (number, line) in text.lines().enumerate() {
            if let Some(odd) = line.chars().find(|c| !c.is_ascii()) {
                complaints.push(format!("{name}:{}: {odd:?} is not ASCII", number + 1));
            }
        }
    }
    check(&complaints);
}

#[test]
fn nothing_is_left_for_later() {
    // Written in two halves, so that this file does not find itself.
    let banned = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("X", "XX"),
        concat!("place", "holder\n"),
    ];
    let mut complaints = Vec::new();
    for (name, text) in sources(&["rs", "md", "sh", "fbs"]) {
        if is_generated(&text) {
            continue;
        }
        for word in banned {
            if contains_word(&text, word) {
                complaints.push(format!("{name}: contains {:?}; do it or file an issue", word.trim_end()));
            }
        }
    }
    check(&complaints);
}

/// Whether `word` stands in `text` by itself, not as a part of a longer one (`mktemp` wants a row of X).
fn contains_word(text: &str, word: &str) -> bool {
    let joins = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (text[..at].chars().next_back(), text[at + word.len()..].chars().next());
        let ends_as_word = word.ends_with(|c: char| c.is_ascii_alphanumeric());
        let is_joined = joins(before) || (ends_as_word && joins(after));
        !is_joined
    })
}

#[test]
fn no_path_of_one_machine() {
    let banned = [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/wo", "rk/")];
    let mut complaints = Vec::new();
    for (name, text) in sources(&["rs", "toml", "md", "sh", "fbs", "Makefile"]) {
        for (number, line) in text.lines().enumerate() {
            if banned.iter().any(|path| line.contains(path)) {
                complaints.push(format!("{name}:{}: names a path of one machine", number + 1));
            }
        }
    }
    check(&complaints);
}

fn short(name: &str) -> &str {
    name.strip_prefix("corelog-").unwrap_or(name)
}

/// The workspace's own packages, without those it depends on.
fn corelog_metadata() -> serde_json::Value {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

#[test]
fn links_in_documents_lead_somewhere() {
    let root = root();
    let mut complaints = Vec::new();
    for (name, text) in sources(&["md"]) {
        let dir = root.join(&name).parent().expect("a file lies in a directory").to_path_buf();
        for (number, line) in text.lines().enumerate() {
            for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                let path = target.split('#').next().unwrap_or_default();
                let is_elsewhere = path.is_empty() || path.contains("://") || path.starts_with("mailto:");
                if !is_elsewhere && !dir.join(path).exists() {
                    complaints.push(format!("{name}:{}: {target} does not exist", number + 1));
                }
            }
        }
    }
    check(&complaints);
}

#[test]
fn every_crate_keeps_the_workspace_lints() {
    let complaints: Vec<String> = sources(&["Cargo.toml"])
        .into_iter()
        .filter(|(name, text)| name != "Cargo.toml" && !text.contains("[lints]\nworkspace = true"))
        .map(|(name, _)| format!("{name}: add [lints] workspace = true"))
        .collect();
    check(&complaints);
}
