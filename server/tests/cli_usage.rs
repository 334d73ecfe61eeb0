//! The command line without a server: wrong flags, wrong files, nobody there.
//!
//! Must never happen: a panic, exit code 0 for something that was not done, an error that does not say what to do.

mod cli;

use std::net::TcpListener;
use std::process::Stdio;

use cli::{binary, run, run_with};

/// An address where nobody listens: the port was ours a moment ago.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("bound").to_string()
}

#[test]
fn help_shows_examples_and_exit_codes() {
    let help = run(&["--help"]).exits(0);
    assert!(help.contains("Exit codes") && help.contains("130 interrupted"), "{help}");
    for command in ["serve", "produce", "consume", "inspect", "demo"] {
        let help = run(&[command, "--help"]).exits(0);
        assert!(help.contains("Example"), "{command}: {help}");
    }
    assert!(run(&["--version"]).exits(0).starts_with("corelog "));
}

#[test]
fn wrong_flags_are_usage_errors() {
    run(&[]).fails(2, &["Usage"]);
    run(&["produse"]).fails(2, &["produce"]);
    run(&["produce", "t", "--acks", "2"]).fails(2, &["--acks", "possible values"]);
    run(&["produce", "t", "--compression", "gzip"]).fails(2, &["none, lz4 or zstd"]);
    run(&["produce", "t", "--rate", "0"]).fails(2, &["--rate"]);
    run(&["produce", "t", "--batch-bytes", "0"]).fails(2, &["--batch-bytes"]);
    run(&["produce", "t", "--separator", ""]).fails(2, &["--separator"]);
    run(&["consume", "t", "--from", "yesterday"]).fails(2, &["--from", "earliest"]);
    run(&["consume", "t", "--from", "latest", "--to", "7"]).fails(2, &["--to"]);
    run(&["consume", "t", "--from", "7", "--to", "7"]).fails(2, &["--to 7", "--from 7"]);
    run(&["consume", "t", "--partition", "1,1"]).fails(2, &["twice"]);
    run(&["topic", "create", "t", "--option", "retention"]).fails(2, &["KEY=VALUE"]);
    run(&["topic", "create", "t", "--partitions", "0"]).fails(2, &["--partitions"]);
    run(&["topic", "delete-records", "t"]).fails(2, &["--before"]);
    run(&["topic", "list", "--server", "here"]).fails(2, &["HOST:PORT", "127.0.0.1:9700"]);
    run(&["inspect", "x", "--json", "--records"]).fails(2, &["--records"]);
    run(&["completions", "cobol"]).fails(2, &["bash"]);
}

#[test]
fn nobody_at_the_address_is_code_3_with_advice() {
    let address = nobody();
    for args in [
        &["topic", "list"][..],
        &["topic", "create", "t"],
        &["node", "describe"],
        &["consume", "t"],
        &["produce", "t"],
    ] {
        let mut args = args.to_vec();
        args.extend(["--server", &address]);
        run_with(&args, b"x\n").fails(3, &["cannot connect", &address, "corelog serve"]);
    }
}

#[test]
fn someone_else_at_the_address_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        while let Ok((mut socket, _)) = listener.accept() {
            // A client that has gone already needs no greeting.
            let _ = std::io::Write::write_all(&mut socket, b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    run(&["topic", "list", "--server", &address]).fails(3, &["native protocol"]);
}

#[test]
fn wrong_input_files_are_found_before_anything_is_sent() {
    let address = nobody();
    let args = ["produce", "t", "/nonexistent/file", "--server", &address];
    run(&args).fails(2, &["/nonexistent/file", "No such file"]);
    run(&["produce", "t", "/", "--server", &address]).fails(2, &["directory"]);
    run(&["inspect", "/nonexistent"]).fails(4, &["/nonexistent"]);
    run(&["config", "check", "/nonexistent"]).fails(2, &["/nonexistent"]);
    run(&["demo", "--file", "/nonexistent"]).fails(2, &["/nonexistent", "--file"]);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let empty = dir.path().to_str().expect("text");
    run(&["inspect", empty]).fails(2, &["neither segments nor topics", "corelog.json"]);
    let file = dir.path().join("notes.txt");
    std::fs::write(&file, "x").expect("written");
    run(&["inspect", file.to_str().expect("text")]).fails(2, &["no segment file"]);
    run(&["inspect", empty, "--export", "y"]).fails(2, &["neither"]);
}

#[test]
fn a_configuration_with_faults_names_all_of_them() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("corelog.toml");
    let path = file.to_str().expect("text");
    std::fs::write(&file, "[listen]\naddres = \"127.0.0.1:9700\"\n[topic]\npartitions = \"many\"\n")
        .expect("written");
    run(&["config", "check", path]).fails(2, &["addres", "address", "partitions"]);
    std::fs::write(&file, "[listen]\naddress = \"127.0.0.1:9900\"\n").expect("written");
    assert!(run(&["config", "check", path]).exits(0).contains("no problems"));
    assert!(run(&["config", "print", path]).exits(0).contains("127.0.0.1:9900"));
    assert!(run(&["config", "print", path, "--json"]).json().to_string().contains("127.0.0.1:9900"));
    assert!(run(&["config", "reference"]).exits(0).contains("listen"));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut command = binary();
    command.args(["config", "reference"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary was built");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn completions_are_scripts() {
    for (shell, part) in
        [("bash", "complete -F"), ("zsh", "#compdef corelog"), ("fish", "complete -c corelog")]
    {
        assert!(run(&["completions", shell]).exits(0).contains(part), "{shell}");
    }
}
