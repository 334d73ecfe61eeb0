//! kill -9 of a process that writes metadata, again and again, at whatever instant it happens to be.
//!
//! Setup: this test runs itself as a child that creates, grows and deletes topics as fast as it can and prints each
//! change after the store has accepted it; the parent kills it and opens the store.
//! Must never happen: a change that was accepted and is gone, half a change, an epoch that comes twice.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use corelog_replication::NodeId;
use corelog_replication::coordination::{Coordination, Entry, Op, Version};
use corelog_server::control::store::KvStore;
use tokio::runtime::Builder;
use tokio::task::LocalSet;

const CHILD_DIR: &str = "CORELOG_TEST_KILL_DIR";
/// Kills; each costs some tens of milliseconds.
const ROUNDS: u32 = 25;

fn open(dir: &Path) -> KvStore {
    KvStore::open(&dir.join("meta.redb"), NodeId(1), "c").expect("the store opens after a kill")
}

const EPOCH: &str = "/controller_epoch";

fn key(number: u64) -> String {
    format!("/topics/{number:032x}")
}

fn text(entry: &Entry) -> u64 {
    std::str::from_utf8(&entry.value).expect("text").parse().expect("a number")
}

/// What is stored: the epoch and the partitions of each topic.
fn stored(store: &KvStore) -> (u64, BTreeMap<u64, u64>) {
    let entries = store.entries();
    let epoch = entries.iter().find(|entry| entry.key == EPOCH).map_or(0, text);
    let topics = entries.iter().filter_map(|entry| {
        let id = entry.key.strip_prefix("/topics/")?;
        Some((u64::from_str_radix(id, 16).expect("a number"), text(entry)))
    });
    (epoch, topics.collect())
}

/// The child: prints what is accepted, until it is killed. Does nothing when run as a test of its own.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD_DIR).map(PathBuf::from) else { return };
    let say = |line: String| {
        // Past the test harness, which captures `println!`.
        let mut out = std::io::stderr().lock();
        writeln!(out, "{line}").and_then(|()| out.flush()).expect("the parent reads");
    };
    let value = |number: u64| number.to_string().into_bytes().into();
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let store = open(&dir);
        let (before, topics) = stored(&store);
        let epoch = before + 1;
        let version = store.entries().iter().find(|entry| entry.key == EPOCH).map(|entry| entry.version);
        let begin = match version {
            Some(version) => Op::Put { key: EPOCH.to_owned(), value: value(epoch), version },
            None => Op::Create { key: EPOCH.to_owned(), value: value(epoch), is_ephemeral: false },
        };
        store.commit(vec![begin]).await.expect("begun");
        say(format!("epoch {epoch}"));
        for number in topics.keys().max().map_or(1, |last| last + 1).. {
            let (key, check) =
                (key(number), Op::Check { key: EPOCH.to_owned(), version: version_of(&store) });
            let create = Op::Create { key: key.clone(), value: value(3), is_ephemeral: false };
            store.commit(vec![check, create]).await.expect("written");
            say(format!("put {number} 3"));
            let grown = Op::Put { key: key.clone(), value: value(50), version: Version(0) };
            let versions = store.commit(vec![grown]).await.expect("written");
            say(format!("put {number} 50"));
            if number % 2 == 0 {
                store.commit(vec![Op::Delete { key, version: versions[0] }]).await.expect("written");
                say(format!("delete {number}"));
            }
        }
    });
}

fn version_of(store: &KvStore) -> Version {
    let entries = store.entries();
    entries.iter().find(|entry| entry.key == EPOCH).expect("an epoch was begun").version
}

/// What a child has said, and the one change that may have happened without a word.
#[derive(Default)]
struct Model {
    /// Partitions of each topic that exists.
    topics: BTreeMap<u64, u64>,
    epoch: u64,
}

impl Model {
    fn take(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["epoch", epoch] => self.epoch = epoch.parse().expect("a number"),
            ["put", number, partitions] => {
                let (number, partitions) =
                    (number.parse().expect("a number"), partitions.parse().expect("a number"));
                self.topics.insert(number, partitions);
            }
            ["delete", number] => {
                self.topics.remove(&number.parse().expect("a number"));
            }
            _ => {}
        }
    }

    /// The stored topics must be those of the model, but for one step that was accepted and not yet said.
    fn check(&self, stored: &BTreeMap<u64, u64>) {
        if self.topics == *stored {
            return;
        }
        let numbers = self.topics.keys().chain(stored.keys());
        let last = numbers.max().copied().expect("there is a difference, so there is a topic");
        let before = |topics: &BTreeMap<u64, u64>| -> BTreeMap<u64, u64> {
            topics.iter().filter(|(number, _)| **number != last).map(|(n, p)| (*n, *p)).collect()
        };
        assert_eq!(before(&self.topics), before(stored), "an older change was lost");
        let step = (self.topics.get(&last), stored.get(&last));
        let is_next = matches!(step, (None, Some(3)) | (Some(3), Some(50)) | (Some(50), None));
        assert!(is_next, "topic {last}: said {:?}, stored {:?}", step.0, step.1);
    }
}

fn spawn_child(dir: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the child starts")
}

#[test]
fn a_store_killed_while_it_is_made_can_be_opened() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut met = 0;
    for round in 0..40_u64 {
        let dir = dir.path().join(round.to_string());
        std::fs::create_dir(&dir).expect("made");
        let mut child = spawn_child(&dir);
        // From the first file on, and a little later each time.
        let started = std::time::Instant::now();
        while std::fs::read_dir(&dir).expect("readable").count() == 0 {
            assert!(started.elapsed().as_secs() < 30, "the child does nothing");
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_micros(round * 150));
        child.kill().expect("killed");
        child.wait().expect("reaped");
        met += u32::from(!dir.join("meta.redb").exists());
        let node = open(&dir).node_local().expect("readable");
        assert_eq!((node.cluster_id.as_str(), node.node), ("c", NodeId(1)));
    }
    assert!(met > 0, "no kill came before the store was in place");
}

#[test]
fn metadata_survives_kill_9_at_any_instant() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut model = Model::default();
    let mut lines_total = 0;
    for round in 0..ROUNDS {
        let mut child = spawn_child(dir.path());
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let epoch_before = model.epoch;
        // A different number of changes each time, then a kill that lands anywhere in the next ones.
        let wanted = 1 + (round * 7) % 23;
        for line in lines.by_ref().take(wanted as usize) {
            lines_total += 1;
            model.take(&line.expect("text"));
        }
        std::thread::sleep(std::time::Duration::from_micros(u64::from(round * 613 % 4_000)));
        child.kill().expect("killed");
        for line in lines.map_while(Result::ok) {
            lines_total += 1;
            model.take(&line);
        }
        child.wait().expect("reaped");
        assert!(model.epoch > epoch_before, "an epoch came twice");
        let (epoch, topics) = stored(&open(dir.path()));
        // One that was begun and not said counts as well: the next is higher.
        assert!((model.epoch..=model.epoch + 1).contains(&epoch), "said {}, stored {epoch}", model.epoch);
        model.check(&topics);
        model.topics = topics;
    }
    assert!(lines_total > ROUNDS, "the children did something");
}
