//! `docs/operations.md` explains every log line that wants attention, and no line that is not there.
//!
//! Setup: finds the calls of `tracing::error!`, `warn!` and `info!` in the sources of the server and what it runs.
//! Must never happen: an ERROR or WARN without a word for the operator who meets it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Crates whose lines a node prints.
const CRATES: &[&str] = &["engine", "net", "replication", "server", "tuning"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tidy lies below the workspace root").to_path_buf()
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.expect("a directory entry is readable").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// The string literals of a macro call whose arguments begin at the front of `text`, in order.
fn literals(text: &str) -> Vec<String> {
    let (mut found, mut depth, mut chars) = (Vec::new(), 1, text.chars());
    while let Some(c) = chars.next() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            '"' => found.push(literal(&mut chars)),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    found
}

/// The rest of a string literal; a backslash at the end of a line joins it with the next.
fn literal(chars: &mut std::str::Chars<'_>) -> String {
    let mut text = String::new();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => match chars.next() {
                Some('\n') => {
                    let rest = chars.as_str().trim_start();
                    *chars = rest.chars();
                }
                // A line end reads as a space in a table.
                Some('n') => text.push(' '),
                Some(escaped) => text.push(escaped),
                None => break,
            },
            c => text.push(c),
        }
    }
    text
}

/// Level and text of every line in the sources.
fn lines_in_code() -> BTreeSet<(String, String)> {
    let mut files = Vec::new();
    for name in CRATES {
        rust_files(&root().join(name).join("src"), &mut files);
    }
    let mut lines = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        // Unit tests stand at the end of a file.
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for level in ["error", "warn", "info"] {
            for call in text.split(&format!("tracing::{level}!(")).skip(1) {
                let message = literals(call).pop();
                let message =
                    message.unwrap_or_else(|| panic!("{}: a log line without text", file.display()));
                lines.insert((level.to_owned(), message));
            }
        }
    }
    lines
}

/// Level and text of every row of the table.
fn lines_in_document() -> BTreeSet<(String, String)> {
    let text = fs::read_to_string(root().join("docs/operations.md")).expect("docs/operations.md is there");
    text.lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            let (level, message) = (cells.next()?.trim(), cells.next()?.trim());
            ["error", "warn", "info"].contains(&level).then(|| (level.to_owned(), message.to_owned()))
        })
        .collect()
}

#[test]
fn the_document_explains_every_error_and_warning() {
    let (code, document) = (lines_in_code(), lines_in_document());
    assert!(code.len() > 10, "only {} log lines found: is the search broken?", code.len());
    let missing: Vec<_> = code.iter().filter(|line| line.0 != "info" && !document.contains(*line)).collect();
    let stale: Vec<_> = document.difference(&code).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "docs/operations.md, table of log lines:\nadd rows for {missing:#?}\nremove rows for {stale:#?}"
    );
}

#[test]
fn texts_are_found_behind_fields_and_over_several_lines() {
    let call = "core, path = %p.display(), note = \"a (b\",\n  \"two \\\n     halves; {}\",\n  x.y(\"z\".len())\n); other(\"no\")";
    assert_eq!(literals(call), ["a (b", "two halves; {}", "z"]);
}
