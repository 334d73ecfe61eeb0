//! The configuration as a person meets it: the real binary, real files, exit codes.
//!
//! Must never happen: a wrong file that passes, a problem without its line, a reference that differs from the docs.

use std::process::{Command, Output};

fn corelog(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_corelog"));
    command.args(arguments);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CORELOG_") {
            command.env_remove(name);
        }
    }
    command.envs(environment.iter().copied()).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn check_reports_every_problem_with_its_line_and_exits_with_2() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("corelog.toml");
    let contents =
        "[listen]\nadress = \"127.0.0.1:9700\"\n\n[topic]\nretention_ms = \"forever\"\npartitions = 0\n";
    std::fs::write(&file, contents).expect("written");
    let output = corelog(&["config", "check", &file.display().to_string()], &[]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    for words in [
        "3 problems",
        "corelog.toml:2: unknown key listen.adress; did you mean listen.address?",
        "corelog.toml:5: topic.retention_ms: \"forever\" is no duration",
        "corelog.toml:6: topic.partitions: 0 is out of range: 1 to 100000",
    ] {
        assert!(said.contains(words), "{words:?} in:\n{said}");
    }
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn check_lists_problems_as_json() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("corelog.toml");
    let path = file.display().to_string();
    let check = |code: i32| {
        let output = corelog(&["config", "check", &path, "--json"], &[]);
        assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")["problems"].clone()
    };
    let missing = check(2);
    assert_eq!(missing[0]["place"], path.as_str(), "{missing}");
    std::fs::write(&file, "[listen]\nadress = \"127.0.0.1:9700\"\n").expect("written");
    let place = format!("{path}:2");
    let expected = serde_json::json!([{
        "place": place, "line": 2, "problem": "unknown key listen.adress", "advice": "did you mean listen.address?",
    }]);
    assert_eq!(check(2), expected);
    std::fs::write(&file, "[node]\nid = 3\n").expect("written");
    assert_eq!(check(0), serde_json::json!([]));
}

#[test]
fn check_passes_what_print_prints() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("corelog.toml");
    let printed = corelog(&["config", "print"], &[("CORELOG_TOPIC_PARTITIONS", "8")]);
    assert!(printed.status.success(), "{}", text(&printed.stderr));
    let printed = text(&printed.stdout);
    assert!(printed.contains("partitions = 8 # environment variable CORELOG_TOPIC_PARTITIONS"), "{printed}");
    std::fs::write(&file, &printed).expect("written");
    let checked = corelog(&["config", "check", &file.display().to_string()], &[]);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    let json = corelog(&["config", "print", &file.display().to_string(), "--json"], &[]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["topic"]["partitions"], 8);
    assert_eq!(json["topic"]["retention_bytes"], serde_json::Value::Null);
    assert_eq!(json["limits"]["frame_bytes_max"], 16 << 20);
}

#[test]
fn a_missing_file_is_named() {
    let output = corelog(&["config", "check", "/no/such/corelog.toml"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("/no/such/corelog.toml"));
}

#[test]
fn reference_prints_the_docs() {
    let output = corelog(&["config", "reference"], &[]);
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    assert_eq!(text(&output.stdout), std::fs::read_to_string(docs).expect("the docs"));
}

#[test]
fn a_start_that_is_refused_says_why_and_logs_as_json_if_asked_to() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let identity = r#"{"format": 1, "cluster_id": "c", "node_id": 7, "data_dir_id": "1f"}"#;
    std::fs::write(dir.path().join("corelog.json"), identity).expect("written");
    let data = dir.path().display().to_string();
    let arguments = ["serve", "--data", &data, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let environment = [("CORELOG_LOG_FORMAT", "json"), ("RUST_LOG", "info")];
    let output = corelog(&arguments, &environment);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    let (logged, others): (Vec<&str>, Vec<&str>) = said.lines().partition(|line| line.starts_with('{'));
    let starting = logged
        .iter()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|event| event["message"] == "starting");
    assert!(starting.is_some_and(|event| event["level"] == "INFO" && event["shards"].is_u64()), "{said}");
    assert!(others.iter().any(|line| line.contains("set node.id = 7")), "{said}");
}
