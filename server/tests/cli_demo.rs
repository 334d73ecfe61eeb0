//! `corelog demo`, whole and interrupted.
//!
//! Must never happen: an acked record that is lost, a process or a file that is left behind.

mod cli;

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use cli::binary;

/// A text of some thousand lines.
fn text(dir: &Path) -> String {
    let path = dir.join("text.txt");
    let lines: String = (0..20_000).map(|i| format!("line {i} of a text that is not very long\n")).collect();
    std::fs::write(&path, lines).expect("written");
    path.display().to_string()
}

fn start(dir: &Path, more: &[&str]) -> Child {
    let mut command = binary();
    command
        .args(["demo", "--file", &text(dir), "--partitions", "2", "--dir"])
        .arg(dir)
        .args(more)
        .env("CORELOG_MEMORY_PER_SHARD", "64MiB")
        .env("CORELOG_DATA_FREE_BYTES_MIN", "0B")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().expect("the binary was built")
}

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("corelog-cli-").tempdir_in("/var/tmp").expect("a directory")
}

/// What the demo has made in `dir`.
fn left_behind(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a directory");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name != "text.txt").collect()
}

/// Processes whose command line names `dir`.
fn processes_of(dir: &Path) -> Vec<u32> {
    let wanted = dir.display().to_string();
    let entries = std::fs::read_dir("/proc").expect("procfs").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&wanted)
    })
    .collect()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(20), "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn the_whole_story_ends_well_and_leaves_nothing() {
    let dir = directory();
    let output = start(dir.path(), &["--json"]).wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&results["write"]["records"], &results["keys"]), (&20_000.into(), &1.into()));
    assert_eq!(results["write"]["bytes"], results["read"]["bytes"]);
    let crash = &results["crash"];
    assert!(crash["acked"].as_u64() > crash["acked_before"].as_u64(), "{results}");
    assert!(crash["readable"].as_u64() >= crash["acked"].as_u64(), "{results}");
    assert!(left_behind(dir.path()).is_empty(), "{:?}", left_behind(dir.path()));
    assert!(processes_of(dir.path()).is_empty());
}

#[test]
fn an_interrupted_demo_ends_its_node_and_removes_its_files() {
    for (signal, code) in [(libc::SIGINT, Some(130)), (libc::SIGTERM, Some(130)), (libc::SIGKILL, None)] {
        let dir = directory();
        let mut demo = start(dir.path(), &[]);
        // The demo itself and its node.
        until("the node starts", || processes_of(dir.path()).len() >= 2);
        let pid = libc::pid_t::try_from(demo.id()).expect("process ids are positive 32-bit numbers");
        // SAFETY: no memory is involved; the child has not been waited for, so the id is still its own.
        unsafe { libc::kill(pid, signal) };
        assert_eq!(demo.wait().expect("it ends").code(), code);
        until("the node ends", || processes_of(dir.path()).is_empty());
        if code.is_some() {
            assert!(left_behind(dir.path()).is_empty(), "{:?}", left_behind(dir.path()));
        }
    }
}
