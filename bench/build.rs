//! Tells the program which commit it is built from, so that a report can name it.

use std::process::Command;

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn main() {
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=CORELOG_COMMIT={commit}");
    // The log of HEAD grows with every commit and checkout; without it only this file decides.
    match git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        Some(path) if std::path::Path::new(&path).exists() => println!("cargo:rerun-if-changed={path}"),
        _ => println!("cargo:rerun-if-changed=build.rs"),
    }
}
