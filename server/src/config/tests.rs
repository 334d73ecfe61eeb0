//! The configuration, as a person gets it wrong. Setup: files in a temporary directory.
//! Must never happen: a mistake that is not reported, or reported without its place and what to do.

use std::path::PathBuf;

use super::*;

fn load_text(text: &str) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("corelog.toml");
    std::fs::write(&file, text).expect("the file can be written");
    load(&Sources { file: Some(file), ..Sources::default() })
}

fn problems(text: &str) -> Vec<String> {
    match load_text(text) {
        Err(ConfigError::Problems(problems)) => problems.iter().map(Problem::to_string).collect(),
        other => panic!("{text:?} should be refused, not {other:?}"),
    }
}

/// Each problem of `text`, in order, must contain the words.
fn check(text: &str, words: &[&str]) {
    let found = problems(text);
    assert_eq!(found.len(), words.len(), "{found:#?}");
    for (problem, words) in found.iter().zip(words) {
        assert!(problem.contains(words), "{problem:?} does not say {words:?}");
    }
}

#[test]
fn the_defaults_stand_alone() {
    let config = load(&Sources::default()).expect("defaults are right");
    assert_eq!(config.listen.address.to_string(), "127.0.0.1:9700");
    assert_eq!(config.topic.options, TopicOptions::default());
    assert_eq!(config.cores.data, None);
}

#[test]
fn a_misspelt_key_is_named_with_its_line_and_the_nearest_right_one() {
    check(
        "\n[limits]\nframe_byte_max = 5\n",
        &["corelog.toml:3: unknown key limits.frame_byte_max; did you mean limits.frame_bytes_max?"],
    );
    check("[lisen]\naddress = \"127.0.0.1:1\"\n", &["did you mean listen.address?"]);
    check("[node]\nconnections_max = 5\n", &["did you mean limits.connections_max?"]);
    check("rack = \"a\"\n", &["did you mean node.rack?"]);
    check("[listen]\nhttp = \"127.0.0.1:1\"\n", &["unknown key listen.http; did you mean http.address?"]);
    check("listen = \"127.0.0.1:1\"\n", &["did you mean listen.address?"]);
    check("[zzz]\nqqq = 1\n", &["config reference"]);
}

#[test]
fn all_problems_come_at_once() {
    let text = "[node]\nid = -1\n[limits]\nconnections_max = \"many\"\nidle_timeout = 5.5\n[topic]\nflush = \"never\"\n\
                [cores]\ndata = [1, 2]\ncontrol = 2\n";
    let mut found = problems(text);
    found.sort();
    assert_eq!(found.len(), 5, "{found:#?}");
    let expected =
        ["cores.control: core 2", "node.id: -1 is negative", "connections_max", "a fraction", "\"never\""];
    for words in expected {
        assert!(found.iter().any(|problem| problem.contains(words)), "{words:?} in {found:#?}");
    }
}

#[test]
fn broken_toml_is_reported_with_its_line() {
    check("[node]\nid = 1\nrack = \"open\n", &["corelog.toml:3: not valid TOML"]);
}

#[test]
fn broken_toml_makes_no_unknown_keys_of_what_it_spoils() {
    for text in
        ["[node]\nid 1\n", "[node\nid = 1\n", "node]\nid = 1\n", "[topic]\npartitions = = 4\n", "zzz\n"]
    {
        let found = problems(text);
        assert!(found.iter().all(|problem| problem.contains("not valid TOML")), "{text:?}: {found:#?}");
    }
    check("[node\n[topic]\npartitions = 0\n", &["corelog.toml:1: not valid TOML", "out of range"]);
}

#[test]
fn advice_is_told_apart_from_what_is_wrong() {
    let parts = |text: &str| {
        let problem = Problem { origin: Origin::Default, text: text.to_owned() };
        let (text, advice) = problem.text_and_advice();
        (text.to_owned(), advice.map(str::to_owned))
    };
    let advice = Some("write 5s".to_owned());
    assert_eq!(parts("\"a; b\" is none; write 5s"), ("\"a; b\" is none".to_owned(), advice));
    assert_eq!(parts("\"a; b\" is none"), ("\"a; b\" is none".to_owned(), None));
}

#[test]
fn contradictions_are_found() {
    check("[listen]\naddress = \"10.0.0.1:9700\"\n", &["listen.insecure = true"]);
    check("[listen]\naddress = \"0.0.0.0:9700\"\ninsecure = true\n", &["listen.advertised_host"]);
    check("[http]\naddress = \"[::]:9690\"\n", &["http.insecure = true"]);
    check(
        "[zookeeper]\nconnect = \"z:2181\"\n[replication]\naddress = \"10.0.0.1:1\"\n",
        &["replication.insecure"],
    );
    check(
        "[zookeeper]\nconnect = \"z:2181, y\"\nroot = \"/a/\"\n",
        &["\"y\" is no address", "no path of a znode"],
    );
    check("[zookeeper]\nuser = \"u\"\n", &["set zookeeper.auth as well"]);
    check("[zookeeper]\ntls = true\n", &["set zookeeper.tls_ca_file as well"]);
    check(
        "[cores]\ndata = [1, 2]\n[zookeeper]\nconnect = \"z:1\"\n[replication]\naddress = \"127.0.0.1:9701\"\n",
        &["belongs to shard 1 of listen.address"],
    );
    check("[topic]\nbatch_bytes_max = \"100MiB\"\n", &["raise limits.frame_bytes_max"]);
    check("[limits]\nin_flight_bytes_max = \"1MiB\"\n", &["less than one frame"]);
    check("[memory]\nper_shard = \"16MiB\"\n", &["does not hold two frames"]);
    check("[topic]\npartitions = 2000\n", &["limits.partitions_per_topic_max"]);
    check("[limits]\npartitions_max = 10\n", &["which counts those of all topics"]);
    check("[topic]\nflush_interval_ms = 5\n", &["topic.flush = \"interval\""]);
    check(
        "[topic]\ncleanup_policy = \"keep\"\nretention_ms = \"1d\"\n",
        &["topic.cleanup_policy = \"delete\""],
    );
    check("[data]\ndirs = [\"/a/b\", \"/a/./b/\"]\n", &["named twice"]);
    check("[data]\ndirs = [\"/a/b\", \"/a\"]\n", &["one inside the other"]);
    check("[cores]\ndata = [1, 2]\n[http]\naddress = \"127.0.0.1:9701\"\n", &["belongs to shard 1"]);
    check("[cores]\ndata = [1, 2]\n[listen]\naddress = \"127.0.0.1:65535\"\n", &["none above 65535"]);
}

#[test]
fn environment_wins_over_the_file_and_flags_over_both() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("corelog.toml");
    std::fs::write(&file, "[node]\nid = 2\nrack = \"file\"\n[log]\nlevel = \"warn\"\n").expect("written");
    let environment =
        [("CORELOG_NODE_ID", "3"), ("CORELOG_LOG_LEVEL", "debug"), ("CORELOG_DATA_DIRS", "/a,/b")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let sources = Sources { file: Some(file), environment, flags: Vec::new() };
    let config = load(&sources.flag("node.id", "4", "--node")).expect("all is right");
    assert_eq!(config.node.id, NodeId(4));
    assert_eq!(config.node.rack, "file");
    assert_eq!(config.log.level, "debug");
    assert_eq!(config.data.dirs, [PathBuf::from("/a"), PathBuf::from("/b")]);
    assert_eq!(*config.values.origin("node.id"), Origin::Flag("--node"));
    let printed = to_toml(&config);
    assert!(printed.contains("id = 4 # flag --node"), "{printed}");
    assert!(printed.contains("level = \"debug\" # environment variable CORELOG_LOG_LEVEL"), "{printed}");
}

#[test]
fn a_misspelt_variable_is_an_error_and_a_foreign_one_is_not() {
    let load_with = |name: &str| {
        load(&Sources { environment: vec![(name.to_owned(), "1".to_owned())], ..Sources::default() })
    };
    assert!(load_with("CORELOG_SERVER").is_ok());
    assert!(load_with("CORELOG_HOME_DIR").is_ok());
    for wrong in ["CORELOG_NODE_IDD", "CORELOG_NODES_ID"] {
        let error = load_with(wrong).expect_err("it is misspelt").to_string();
        assert!(error.contains("did you mean CORELOG_NODE_ID?"), "{error}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = load(&Sources { file: Some("/no/such/corelog.toml".into()), ..Sources::default() });
    assert!(error.expect_err("there is no file").to_string().contains("/no/such/corelog.toml"));
}

#[test]
fn what_is_printed_loads_again_to_the_same() {
    let text = "[cores]\ndata = \"1-3\"\n[listen]\naddress = \"[::1]:9000\"\n[data]\ndirs = '/a \"b\"'\n\
                [topic]\nretention_ms = \"none\"\nretention_bytes = 12345\n[limits]\nidle_timeout = \"none\"\n";
    let once = load_text(text).expect("right");
    let again = load_text(&to_toml(&once)).expect("what we print is right");
    assert_eq!(to_json(&once), to_json(&again));
    assert_eq!(again.cores.data, Some(vec![1, 2, 3]));
    assert_eq!(again.limits.idle_timeout_ms, None);
}

#[test]
fn the_reference_in_docs_is_the_one_of_this_code() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let stored = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        stored == reference(),
        "run `cargo run -q -p corelog-server -- config reference > docs/configuration.md`"
    );
}

#[test]
fn the_example_of_the_reference_loads() {
    let reference = reference();
    let example = reference.split("```toml").nth(1).and_then(|rest| rest.split("```").next());
    let config = load_text(example.expect("there is one")).expect("it is right");
    assert_eq!(config.data.dirs.len(), 2);
}

mod properties {
    use proptest::prelude::*;

    use super::super::keys;
    use super::super::value::{Kind, Or, Raw, Value};
    use super::*;

    fn read(kind: Kind, text: String) -> Result<Value, String> {
        kind.parse(&Raw::Text(text))
    }

    proptest! {
        #[test]
        fn sizes_and_durations_print_as_they_are_read(number in 0_u64..1 << 50) {
            let kinds = [
                (Kind::Bytes { min: 0, max: u64::MAX, or: Or::Nothing }, Value::Bytes(number)),
                (Kind::Millis { min: 0, max: u64::MAX, or: Or::Nothing }, Value::Millis(number)),
                (Kind::Micros { min: 0, max: u64::MAX }, Value::Micros(number)),
            ];
            for (kind, value) in kinds {
                prop_assert_eq!(read(kind, value.to_string()), Ok(value));
            }
        }

        #[test]
        fn no_text_panics_any_kind(text in ".{0,40}") {
            for key in keys::all() {
                if let Ok(value) = read(key.kind, text.clone()) {
                    prop_assert_eq!(read(key.kind, value.to_string()), Ok(value));
                }
            }
        }

        #[test]
        fn no_file_panics(text in "(\\[[a-z]{0,8}\\]\n|[a-z_]{1,12} = [-0-9a-z\".\\[\\]{}]{0,10}\n){0,12}") {
            let _ = load_text(&text);
        }
    }
}
