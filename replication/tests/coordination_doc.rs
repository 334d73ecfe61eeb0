//! `docs/coordination.md` shows what is really stored.
//!
//! Setup: the key and value pairs of its examples, taken as a store's content.
//! Must never happen: an example that is no record, a kind of key without example, a value that would be written
//! differently.

use std::collections::BTreeSet;
use std::fs;
use std::rc::Rc;

use corelog_replication::cluster::keys::Subject;
use corelog_replication::cluster::{ClusterState, Stored};
use corelog_replication::coordination::{Entry, Event, Version};

/// Kinds of keys that a cluster has.
const KINDS: usize = 12;

fn examples() -> Vec<(String, String)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/coordination.md");
    let text = fs::read_to_string(path).expect("docs/coordination.md is there");
    let block = text.split("```\n").nth(1).expect("it has a block of examples");
    let lines: Vec<&str> = block.lines().collect();
    lines.chunks(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
}

#[test]
fn the_examples_are_records() {
    let entry = |(key, value): (String, String)| Entry {
        key,
        value: Rc::from(value.into_bytes()),
        version: Version(0),
    };
    let mut state = ClusterState::default();
    state.apply(&Event::State { session: 1, entries: examples().into_iter().map(entry).collect() });
    assert!(state.problems.is_empty(), "{:?}", state.problems);
    let written: BTreeSet<String> = [
        state.cluster.map(|r| r.record.encode()),
        state.controller.map(|r| r.record.encode()),
        state.controller_epoch.map(|r| r.record.encode()),
        state.nodes.values().next().map(|r| r.record.encode()),
        state.intents.values().next().map(|r| r.record.encode()),
        state.names.values().next().map(|r| r.record.encode()),
        state.topics.values().next().map(|r| r.record.encode()),
        state.partitions.values().next().map(|r| r.record.encode()),
        state.deletions.values().next().map(|r| r.record.encode()),
        state.removals.values().next().map(|r| r.record.encode()),
        state.faults.values().next().map(|r| r.record.encode()),
        state.suspicions.values().next().map(|r| r.record.encode()),
    ]
    .into_iter()
    .flatten()
    .map(|value| String::from_utf8(value.to_vec()).expect("JSON is text"))
    .collect();
    let shown: BTreeSet<String> = examples().into_iter().map(|(_, value)| value).collect();
    assert_eq!(written, shown);
}

#[test]
fn every_kind_of_key_has_an_example() {
    let kinds: BTreeSet<_> = examples()
        .into_iter()
        .map(|(key, _)| std::mem::discriminant(&Subject::parse(&key).expect("a key of the layout")))
        .map(|kind| format!("{kind:?}"))
        .collect();
    assert_eq!(kinds.len(), KINDS);
}
