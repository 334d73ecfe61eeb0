//! The command line against a real node: topics, records in and out, refusals, a crash in between.
//!
//! Must never happen: a record that comes out other than it went in, exit code 0 for a refusal.

mod cli;

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use cli::binary;
use cli::node::Node;
use serde_json::{Value, json};

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn topics_live_from_creation_to_deletion() {
    let node = Node::start();
    let created =
        node.run(&["topic", "create", "orders", "-p", "3", "-o", "retention_ms=1h", "--json"]).json();
    assert_eq!((&created["topic"], &created["partitions"]), (&json!("orders"), &json!(3)));
    node.run(&["topic", "create", "orders"]).fails(5, &["exists", "--if-not-exists"]);
    assert!(node.run(&["topic", "create", "orders", "--if-not-exists"]).exits(0).contains("exists"));
    node.run(&["topic", "create", "only-checked", "--validate-only"]).exits(0);
    let listed = node.run(&["topic", "list", "--json"]).json();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");

    node.run(&["topic", "alter", "orders", "--set", "flush=interval", "--reset", "retention_ms"]).exits(0);
    let described = node.run(&["topic", "describe", "orders", "--json"]).json();
    let options = &described[0]["options"];
    assert_eq!(options["flush"], json!({ "value": "interval", "is_default": false }), "{described}");
    assert_eq!(options["retention_ms"]["is_default"], json!(true));
    node.run(&["topic", "add-partitions", "orders", "--total", "5"]).exits(0);
    node.run(&["topic", "add-partitions", "orders", "--total", "2"]).fails(5, &["InvalidPartitionCount"]);

    node.run(&["topic", "create", "../x"]).fails(5, &["InvalidTopicName"]);
    node.run(&["topic", "create", "y", "-o", "no_such=1"]).fails(5, &["no_such", "config reference"]);
    node.run(&["topic", "alter", "orders", "--set", "retention_ms=soon"]).fails(5, &["retention_ms"]);
    node.run(&["topic", "alter", "orders"]).fails(2, &["--set"]);
    node.run(&["topic", "describe", "nothing"]).fails(4, &["nothing", "topic list"]);
    node.run(&["topic", "delete", "nothing"]).fails(4, &["nothing"]);
    node.run(&["topic", "delete", "nothing", "orders", "--if-exists"]).exits(0);
    assert_eq!(node.run(&["topic", "list", "--json"]).json(), json!([]));
    let shards = node.run(&["node", "describe", "--json"]).json();
    assert!(shards["shards"].as_array().is_some_and(|shards| !shards.is_empty()), "{shards}");
    // A node alone is a cluster of one, and well.
    let status = node.run(&["cluster", "status", "--check", "--json"]).json();
    assert_eq!(
        (status["nodes"].as_array().map(Vec::len), &status["offline"]),
        (Some(1), &json!(0)),
        "{status}"
    );
    node.run(&["topic", "create", "three", "--replicas", "3"]).fails(5, &["InvalidReplicationFactor"]);
}

#[test]
fn records_go_in_and_come_out_in_every_format() {
    let node = Node::start();
    node.run(&["topic", "create", "t", "-p", "2"]).exits(0);
    let input = "k1\tone\nk2\ttwo\nk1\tthree\n";
    let args = ["produce", "t", "--format", "key-value", "--compression", "zstd", "--json"];
    let summary = node.run_with(&args, input.as_bytes()).json();
    assert_eq!((&summary["acked"], &summary["failed"]), (&json!(3), &json!(0)), "{summary}");
    let out = node.run(&["consume", "t", "--format", "key-value", "--quiet"]).exits(0);
    assert_eq!(sorted(&out), sorted(input.trim_end()));
    let values: Vec<String> =
        node.run(&["consume", "t", "--quiet"]).exits(0).lines().map(str::to_owned).collect();
    let place = |value: &str| values.iter().position(|line| line == value);
    assert!(place("one") < place("three"), "records of a key stay in order: {values:?}");

    node.run(&["topic", "create", "copy"]).exits(0);
    let json_lines = node.run(&["consume", "t", "--json", "--quiet"]).exits(0);
    let tricky =
        r#"{"key_hex": "00ff", "value": null, "headers": {"h": "1"}, "timestamp": 5, "partition": 0}"#;
    let args = ["produce", "copy", "--format", "json", "--partition", "0", "--quiet"];
    node.run_with(&args, format!("{json_lines}{tricky}\n").as_bytes()).exits(0);
    let copied = node.run(&["consume", "copy", "--json", "--quiet"]).exits(0);
    let last: Value = serde_json::from_str(copied.lines().last().expect("lines")).expect("JSON");
    let expected = json!({
        "topic": "copy", "partition": 0, "offset": 3, "timestamp": 5,
        "key_hex": "00ff", "value": null, "headers": { "h": "1" },
    });
    assert_eq!(last, expected);
    let raw = ["consume", "copy", "--format", "raw", "--record-separator", "|", "-n", "2", "--quiet"];
    assert_eq!(node.run(&raw).exits(0).matches('|').count(), 2);
}

#[test]
fn reading_starts_and_ends_where_the_flags_say() {
    let node = Node::start();
    node.run(&["topic", "create", "t"]).exits(0);
    let input: String = (0..1_000).map(|i| format!("{{\"value\": \"{i}\", \"timestamp\": {i}}}\n")).collect();
    let args = ["produce", "t", "--format", "json", "--batch-bytes", "500", "--quiet"];
    node.run_with(&args, input.as_bytes()).exits(0);
    let read = |extra: &[&str]| {
        let args = [&["consume", "t", "--quiet"], extra].concat();
        let text = node.run(&args).exits(0);
        text.lines().map(|line| line.parse().expect("a number")).collect::<Vec<u64>>()
    };
    assert_eq!(read(&[]), (0..1_000).collect::<Vec<_>>());
    assert_eq!(read(&["--from", "990"]), (990..1_000).collect::<Vec<_>>());
    assert_eq!(read(&["--from", "5", "--to", "8"]), [5, 6, 7]);
    assert_eq!(read(&["--from", "5", "-n", "2"]), [5, 6]);
    assert_eq!(read(&["--from", "@700"]), (700..1_000).collect::<Vec<_>>());
    assert!(read(&["--from", "-1m"]).is_empty(), "nothing is that young");
    assert!(read(&["--from", "1000"]).is_empty());
    node.run(&["consume", "t", "--from", "1001"]).fails(4, &["1001", "1000"]);
    node.run(&["consume", "t", "--partition", "7"]).fails(4, &["7"]);

    let deleted = node.run(&["topic", "delete-records", "t", "--before", "300", "--json"]).json();
    assert_eq!(deleted[0]["log_start_offset"], 300);
    assert_eq!(read(&[]).first(), Some(&300));
    node.run(&["consume", "t", "--from", "10"]).fails(4, &["10", "--from earliest"]);
    assert_eq!(read(&["--from", "10", "--reset"]).first(), Some(&300));
}

#[test]
fn a_follower_sees_a_line_as_soon_as_it_is_typed() {
    let node = Node::start();
    node.run(&["topic", "create", "t"]).exits(0);
    let mut reading = binary();
    reading.args(["consume", "t", "--follow", "-n", "2", "--quiet", "--server", &node.address]);
    let mut reading = reading.stdout(Stdio::piped()).spawn().expect("the binary was built");
    let mut lines = BufReader::new(reading.stdout.take().expect("piped")).lines();
    let mut typing = binary();
    typing.args(["produce", "t", "--quiet", "--server", &node.address]);
    let mut typing = typing.stdin(Stdio::piped()).spawn().expect("the binary was built");
    let mut keyboard = typing.stdin.take().expect("piped");
    for word in ["first", "second"] {
        writeln!(keyboard, "{word}").expect("it reads");
        assert_eq!(lines.next().expect("a line").expect("text"), word);
    }
    drop(keyboard);
    assert!(typing.wait().expect("it ends").success());
    assert!(reading.wait().expect("two records are enough").success());
}

#[test]
fn bad_lines_stop_or_are_left_out_by_choice() {
    let node = Node::start();
    node.run(&["topic", "create", "t"]).exits(0);
    let input = b"{\"value\": \"a\"}\n{\"valeu\": \"b\"}\n{\"value\": \"c\"}\n";
    let args = ["produce", "t", "--format", "json"];
    node.run_with(&args, input).fails(2, &["line 2 of standard input", "valeu"]);
    let args = ["produce", "t", "--format", "json", "--keep-going"];
    node.run_with(&args, input).fails(1, &["line 2 of standard input", "1 line was no record"]);
    assert_eq!(node.run(&["consume", "t", "--quiet"]).exits(0), "a\na\nc\n");
    node.run_with(&["produce", "t", "--format", "key-value"], b"no tab\n").fails(2, &["line 1", "separator"]);
    let large = "x".repeat(2_000_000);
    node.run_with(&["produce", "t"], large.as_bytes()).fails(5, &["BatchTooLarge", "batch_bytes_max"]);
    node.run_with(&["produce", "t", "--partition", "3"], b"x\n").fails(4, &["partition 3"]);
    node.run_with(&["produce", "nothing"], b"x\n").fails(4, &["nothing", "topic list"]);
}

#[test]
fn what_was_acked_survives_a_kill_and_what_was_stopped_is_clean_on_disk() {
    let mut node = Node::start();
    node.run(&["topic", "create", "t", "-p", "2"]).exits(0);
    let input: String = (0..5_000).map(|i| format!("line {i}\n")).collect();
    node.run_with(&["produce", "t", "--quiet"], input.as_bytes()).exits(0);
    node.crash_and_restart();
    let out = node.run(&["consume", "t", "--quiet"]).exits(0);
    assert_eq!(sorted(&out), sorted(&input));
    node.run_with(&["produce", "t", "--quiet", "--compression", "lz4"], b"after\n").exits(0);
    node.stop();
    let data = node.data();
    let found = cli::run(&["inspect", data.to_str().expect("text"), "--json"]).json();
    assert_eq!(
        (&found["total"]["records"], &found["total"]["damages"]),
        (&json!(5_001), &json!(0)),
        "{found}"
    );
    for log in found["logs"].as_array().expect("logs") {
        assert_eq!(log["checkpoint"]["clean"], json!(true), "{log}");
        for segment in log["segments"].as_array().expect("segments") {
            assert_eq!(segment["tail"], "none", "{segment}");
        }
    }
    node.run(&["topic", "list"]).fails(3, &["corelog serve"]);
}
