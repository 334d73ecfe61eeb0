//! The control thread with shards that the test plays itself: topics come, change, go, and survive restarts.
//!
//! Setup: a node opened on temporary directories; each fake shard applies snapshots, keeps directories as a real one
//! would, or fails or sulks when told to.
//! Must never happen: an answer before the shards have it, a deleted topic that comes back, a lost partition that is
//! made anew, a mistake of a client that changes anything.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use corelog_engine::{Offset, TimestampMs, TopicPartition};
use corelog_replication::Role;
use corelog_replication::cluster::Endpoint;
use corelog_schemas::messages::*;
use corelog_schemas::{ErrorCode, Failure};
use corelog_server::config::{self, Config, Sources};
use corelog_server::control::messages::Answer;
use corelog_server::control::{
    self, AdminRequest, ControlError, ControlHandle, ControlThread, DataDirIndex, DataDirState, MadeLog,
    NodeId, PartitionFailure, PartitionStats, ShardAddress, ShardCommand, ShardId, ShardLink, ShardReport,
    ShardStats, Snapshot, StartError, Stopped, link_shards,
};

/// What the fake shards are told to do wrong.
#[derive(Default)]
struct Mischief {
    /// Take snapshots and never act on them.
    sulk: AtomicBool,
    /// Report every new partition as failed.
    fail: AtomicBool,
    /// Stop without having synced the first data directory.
    unclean: AtomicBool,
}

struct Node {
    handle: ControlHandle,
    reports: flume::Sender<ShardReport>,
    mischief: Arc<Mischief>,
    newest: Arc<std::sync::Mutex<Option<Arc<Snapshot>>>>,
}

fn config(dirs: &[&Path], changes: &[(&'static str, &str)]) -> Config {
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let mut sources = Sources::default().flag("data.dirs", dirs.join(","), "--data");
    // The machine of a test may be nearly full.
    sources = sources.flag("data.free_bytes_min", "0B", "test");
    for (key, value) in changes {
        sources = sources.flag(key, *value, "test");
    }
    config::load(&sources).expect("the test's configuration is right")
}

fn start(config: Config, shards: u16) -> Result<Node, StartError> {
    let found = control::look(&config)?;
    let (link, links) = link_shards(shards);
    let reports = links[0].reports.clone();
    let (mischief, newest) = (Arc::new(Mischief::default()), Arc::new(std::sync::Mutex::new(None)));
    for link in links {
        let (mischief, newest) = (mischief.clone(), newest.clone());
        std::thread::spawn(move || play_shard(&link, &mischief, &newest));
    }
    let addresses = (0..shards).map(|shard| ShardAddress {
        node: NodeId(1),
        shard: ShardId(shard),
        core: 0,
        host: "127.0.0.1".to_owned(),
        port: 9700 + shard,
        replication: Endpoint { host: "127.0.0.1".to_owned(), port: 0 },
    });
    let (ready, is_ready) = flume::bounded(1);
    let thread = ControlThread {
        config: Arc::new(config),
        found,
        started: TimestampMs(1),
        shards: addresses.collect(),
        link,
        http: None,
        core: None,
        handle_signals: false,
        watcher: Some(Box::new(move |mut observer| {
            Box::pin(async move {
                let _ = ready.send(observer.wait_until_ready().await);
            })
        })),
    };
    let handle = thread.spawn().expect("the thread starts");
    if is_ready.recv() == Ok(true) {
        return Ok(Node { handle, reports, mischief, newest });
    }
    match handle.join() {
        Err(ControlError::Start(error)) => Err(error),
        other => panic!("it did not become ready: {other:?}"),
    }
}

/// Keeps one directory per partition, as a real shard keeps a log.
fn play_shard(link: &ShardLink, mischief: &Mischief, newest: &std::sync::Mutex<Option<Arc<Snapshot>>>) {
    let mut open: BTreeSet<PathBuf> = BTreeSet::new();
    let mut served: Vec<TopicPartition> = Vec::new();
    for command in link.commands.iter() {
        match command {
            ShardCommand::Apply(_) if mischief.sulk.load(Ordering::SeqCst) => {}
            ShardCommand::Apply(snapshot) => {
                let (mut failures, mut made) = (Vec::new(), Vec::new());
                let mut wanted = BTreeSet::new();
                served.clear();
                for (topic, partition, local) in snapshot.partitions_of(link.shard) {
                    let directory = snapshot.log_directory(topic, partition.id, local);
                    let of = TopicPartition { topic: topic.id, partition: partition.id };
                    if matches!(snapshot.data_dir(local.data_dir).state, DataDirState::Offline { .. }) {
                        continue;
                    }
                    let fails = local.is_new && mischief.fail.load(Ordering::SeqCst);
                    if fails || (!local.is_new && !directory.exists()) {
                        let failure = Failure::new(ErrorCode::StorageFailed, "the log is missing");
                        failures.push(PartitionFailure { partition: of, failure });
                        continue;
                    }
                    fs::create_dir_all(&directory).expect("the directory can be made");
                    wanted.insert(directory);
                    if local.is_new {
                        made.push(MadeLog { partition: of, log: local.log_id, data_dir: local.data_dir });
                    } else if local.assignment.role == Role::Lead {
                        served.push(of);
                    }
                }
                for gone in open.difference(&wanted) {
                    let _ = fs::remove_dir_all(gone);
                }
                open = wanted;
                let version = snapshot.version;
                *newest.lock().expect("no panic") = Some(snapshot);
                let _ = link.reports.send(ShardReport::LogsMade(made));
                let _ = link.reports.send(ShardReport::Applied { shard: link.shard, version, failures });
            }
            ShardCommand::Stats(answer) => {
                let mut stats = ShardStats::new(link.shard);
                stats.partitions = served.iter().map(|of| partition_stats(*of)).collect();
                answer.send(stats);
            }
            ShardCommand::IsrRefused { .. } | ShardCommand::Leave => {}
            ShardCommand::Stop => {
                let is_unclean = mischief.unclean.load(Ordering::SeqCst);
                let unclean = if is_unclean { vec![DataDirIndex(0)] } else { Vec::new() };
                let _ = link.reports.send(ShardReport::Stopped { shard: link.shard, unclean });
                return;
            }
        }
    }
}

fn partition_stats(partition: TopicPartition) -> PartitionStats {
    PartitionStats {
        partition,
        log_start: Offset(0),
        high_watermark: Offset(5),
        log_end: Offset(6),
        durable_end: Offset(5),
        log_bytes: 100,
        segments: 1,
        produce_bytes: 0,
        produce_records: 0,
        fetch_bytes: 0,
        replica: Default::default(),
        failure: None,
    }
}

impl Node {
    fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> AdminRequest) -> T {
        let (answer, response) = Answer::new();
        self.reports.send(ShardReport::Admin(request(answer))).expect("the control thread listens");
        response.recv().expect("it answers")
    }

    fn create(&self, name: &str, partitions: u32) -> TopicResult {
        self.create_with(name, partitions, &[], 5_000)
    }

    fn create_with(
        &self,
        name: &str,
        partitions: u32,
        options: &[(&str, &str)],
        timeout_ms: u32,
    ) -> TopicResult {
        let options = options.iter().map(|(key, value)| option(key, Some(value))).collect();
        let new = NewTopic { name: name.to_owned(), partitions, replication_factor: 0, options };
        let request = CreateTopicsRequest { topics: vec![new], validate_only: false, timeout_ms };
        self.ask(|answer| AdminRequest::CreateTopics(request, answer)).results.remove(0)
    }

    fn delete(&self, name: &str) -> TopicResult {
        let request = DeleteTopicsRequest { topics: vec![name.into()], timeout_ms: 5_000 };
        self.ask(|answer| AdminRequest::DeleteTopics(request, answer)).results.remove(0)
    }

    fn alter(&self, name: &str, key: &str, value: Option<&str>) -> TopicResult {
        let options = vec![option(key, value)];
        let request =
            AlterTopicOptionsRequest { topic: name.into(), options, validate_only: false, timeout_ms: 5_000 };
        self.ask(|answer| AdminRequest::AlterTopicOptions(request, answer)).results.remove(0)
    }

    fn add_partitions(&self, name: &str, partitions_total: u32) -> TopicResult {
        let request = CreatePartitionsRequest {
            topic: name.into(),
            partitions_total,
            validate_only: false,
            timeout_ms: 5_000,
        };
        self.ask(|answer| AdminRequest::CreatePartitions(request, answer)).results.remove(0)
    }

    fn names(&self) -> Vec<String> {
        let request = ListTopicsRequest { name_prefix: String::new() };
        let topics = self.ask(|answer| AdminRequest::ListTopics(request, answer)).topics;
        topics.into_iter().map(|topic| topic.name).collect()
    }

    fn describe(&self, name: &str) -> TopicDescription {
        let request = DescribeTopicsRequest { topics: vec![name.into()] };
        self.ask(|answer| AdminRequest::DescribeTopics(request, answer)).topics.remove(0)
    }

    fn snapshot(&self) -> Arc<Snapshot> {
        self.newest.lock().expect("no panic").clone().expect("one was applied")
    }

    fn stop(self) -> Stopped {
        self.handle.stop();
        self.handle.join().expect("no panic")
    }
}

fn option(key: &str, value: Option<&str>) -> TopicOption {
    TopicOption { key: key.to_owned(), value: value.map(str::to_owned), is_default: false }
}

#[track_caller]
fn ok(result: &TopicResult) {
    assert_eq!(result.failure, None);
}

#[track_caller]
fn refused(result: &TopicResult, code: ErrorCode, words: &str) {
    let failure = result.failure.as_ref().expect("it is refused");
    assert_eq!(failure.code, code, "{failure}");
    assert!(failure.message.contains(words), "{:?} does not say {words:?}", failure.message);
}

/// Names of all directories of topics in a data directory.
fn topic_dirs(data: &Path) -> Vec<String> {
    let entries = fs::read_dir(data.join("topics")).expect("there is a topics directory");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_topic_lives_through_creation_alteration_growth_restart_and_deletion() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let data = temp.path();
    let node = start(config(&[data], &[]), 2).expect("it starts");
    let created = node.create_with("orders", 3, &[("retention_ms", "1h")], 5_000);
    ok(&created);
    assert_eq!((created.partitions, created.topic_id.is_some()), (3, true));
    let directory = topic_dirs(data).remove(0);
    assert!(data.join("topics").join(&directory).join("2").is_dir());
    ok(&node.alter("orders", "segment_bytes_max", Some("2MiB")));
    ok(&node.alter("orders", "retention_ms", None));
    ok(&node.add_partitions("orders", 5));
    let described = node.describe("orders");
    assert!(described.partitions.iter().all(|p| p.failure.is_none() && p.log_end_offset == Some(6)));
    let find = |key: &str| described.options.iter().find(|option| option.key == key).cloned().expect(key);
    assert_eq!(find("segment_bytes_max").value.as_deref(), Some("2MiB"));
    assert!(!find("segment_bytes_max").is_default && find("retention_ms").is_default);
    assert_eq!(described.partitions.len(), 5);
    let epoch = described.partitions[0].leader_epoch;
    assert_eq!(node.stop(), Stopped::Clean);

    // Again, on another number of shards.
    let node = start(config(&[data], &[]), 3).expect("it starts again");
    let again = node.describe("orders");
    assert_eq!(again.topic_id, created.topic_id);
    assert_eq!(again.options, described.options);
    assert_eq!(again.partitions.len(), 5);
    assert!(again.partitions[0].leader_epoch > epoch, "each start leads under a new epoch");
    let shards: BTreeSet<u16> = again.partitions.iter().map(|p| p.leader_shard).collect();
    assert_eq!(shards, BTreeSet::from([0, 1, 2]));
    assert!(node.snapshot().data_dirs[0].was_clean);
    ok(&node.delete("orders"));
    assert_eq!(node.names(), Vec::<String>::new());
    assert_eq!(topic_dirs(data), Vec::<String>::new());
    // The same name is another topic.
    let new = node.create("orders", 1);
    ok(&new);
    assert_ne!(new.topic_id, created.topic_id);
    assert_ne!(topic_dirs(data), [directory]);
    assert_eq!(node.stop(), Stopped::Clean);
}

#[test]
fn mistakes_are_refused_with_their_code_and_change_nothing() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let limits = [
        ("limits.partitions_max", "10"),
        ("limits.partitions_per_topic_max", "6"),
        ("limits.frame_bytes_max", "2MiB"),
    ];
    let node = start(config(&[temp.path()], &limits), 1).expect("it starts");
    ok(&node.create("taken", 4));
    refused(&node.create("taken", 1), ErrorCode::TopicAlreadyExists, "delete it first");
    refused(&node.create("a/b", 1), ErrorCode::InvalidTopicName, "'/'");
    refused(&node.create("__mine", 1), ErrorCode::InvalidTopicName, "belong to the server");
    refused(
        &node.create("many", 7),
        ErrorCode::InvalidPartitionCount,
        "limits.partitions_per_topic_max is 6",
    );
    ok(&node.create_with("tried", 6, &[], 5_000));
    refused(&node.create("more", 1), ErrorCode::InvalidPartitionCount, "limits.partitions_max");
    ok(&node.delete("tried"));
    let option = |key, value| node.create_with("x", 1, &[(key, value)], 5_000);
    refused(&option("retention", "1"), ErrorCode::InvalidTopicOption, "did you mean");
    refused(&option("flush", "now"), ErrorCode::InvalidTopicOption, "\"commit\" or \"interval\"");
    refused(&option("batch_bytes_max", "4MiB"), ErrorCode::InvalidTopicOption, "limits.frame_bytes_max");
    refused(&node.alter("none", "flush", None), ErrorCode::UnknownTopicOrPartition, "topic list");
    refused(&node.alter("taken", "flash", None), ErrorCode::InvalidTopicOption, "\"flush\"");
    refused(&node.add_partitions("taken", 4), ErrorCode::InvalidPartitionCount, "cannot shrink");
    refused(&node.delete("none"), ErrorCode::UnknownTopicOrPartition, "there is no topic");
    let new = NewTopic { name: "r".to_owned(), partitions: 1, replication_factor: 3, options: Vec::new() };
    let request = CreateTopicsRequest { topics: vec![new], validate_only: true, timeout_ms: 0 };
    let mut response = node.ask(|answer| AdminRequest::CreateTopics(request, answer));
    refused(&response.results.remove(0), ErrorCode::InvalidReplicationFactor, "ask for fewer");
    assert_eq!(node.names(), ["taken"]);
    let unknown = node.describe("none");
    assert_eq!(unknown.failure.map(|f| f.code), Some(ErrorCode::UnknownTopicOrPartition));
    node.stop();
}

#[test]
fn trying_alone_changes_nothing() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let node = start(config(&[temp.path()], &[]), 1).expect("it starts");
    let new = |name: &str| NewTopic {
        name: name.to_owned(),
        partitions: 0,
        replication_factor: 1,
        options: Vec::new(),
    };
    let request =
        CreateTopicsRequest { topics: vec![new("a"), new("..")], validate_only: true, timeout_ms: 5_000 };
    let results = node.ask(|answer| AdminRequest::CreateTopics(request, answer)).results;
    assert_eq!((results[0].failure.is_none(), results[0].partitions), (true, 1));
    refused(&results[1], ErrorCode::InvalidTopicName, "directory");
    assert_eq!(node.names(), Vec::<String>::new());
    node.stop();
}

#[test]
fn a_client_is_told_when_the_shards_do_not_follow_or_fail() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let node = start(config(&[temp.path()], &[("limits.stop_timeout", "200ms")]), 2).expect("it starts");
    node.mischief.fail.store(true, Ordering::SeqCst);
    refused(&node.create("broken", 2), ErrorCode::StorageFailed, "the log is missing");
    assert_eq!(
        node.describe("broken").partitions[1].failure.as_ref().map(|f| f.code),
        Some(ErrorCode::StorageFailed)
    );
    node.mischief.fail.store(false, Ordering::SeqCst);
    node.mischief.sulk.store(true, Ordering::SeqCst);
    refused(&node.create_with("late", 1, &[], 50), ErrorCode::RequestTimedOut, "is stored");
    ok(&node.create_with("impatient", 1, &[], 0));
    assert_eq!(node.names(), ["broken", "impatient", "late"]);
    // The next snapshot that they take is the newest.
    node.mischief.sulk.store(false, Ordering::SeqCst);
    ok(&node.create("after", 1));
    assert_eq!(node.snapshot().topics().len(), 4);
    assert_eq!(node.stop(), Stopped::Clean);
}

#[test]
fn an_unclean_shard_gets_no_marker() {
    let (one, two) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
    let dirs = [one.path(), two.path()];
    let node = start(config(&dirs, &[]), 1).expect("it starts");
    node.mischief.unclean.store(true, Ordering::SeqCst);
    assert_eq!(node.stop(), Stopped::Unclean);
    let node = start(config(&dirs, &[]), 1).expect("it starts");
    ok(&node.create("t", 1));
    let were_clean: Vec<bool> = node.snapshot().data_dirs.iter().map(|dir| dir.was_clean).collect();
    assert_eq!(were_clean, [false, true]);
    node.stop();
}

#[test]
fn partitions_spread_over_disks_and_a_lost_disk_takes_only_its_own() {
    let (one, two) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
    let dirs = [one.path(), two.path()];
    let node = start(config(&dirs, &[]), 1).expect("it starts");
    ok(&node.create("t", 4));
    ok(&node.create("doomed", 4));
    let of = |node: &Node, dir: &Path| {
        let shown = dir.display().to_string();
        node.describe("t").partitions.iter().filter(|p| p.data_dir == shown).count()
    };
    assert_eq!((of(&node, dirs[0]), of(&node, dirs[1])), (2, 2));
    node.stop();

    // The second disk is not mounted: its mount point is empty.
    let away = tempfile::tempdir().expect("elsewhere");
    let hidden = away.path().join("disk");
    fs::rename(dirs[1], &hidden).expect("moved");
    fs::create_dir(dirs[1]).expect("an empty mount point");
    let node = start(config(&dirs, &[]), 1).expect("the others go on");
    ok(&node.create("new", 2));
    for partition in node.describe("t").partitions {
        let is_lost = partition.data_dir == dirs[1].display().to_string();
        let expected = is_lost.then_some(ErrorCode::PartitionOffline);
        assert_eq!(
            partition.failure.map(|failure| failure.code),
            expected,
            "partition {}",
            partition.partition
        );
        assert_eq!(partition.high_watermark, (!is_lost).then_some(5));
    }
    let described = node.ask(AdminRequest::DescribeNode);
    assert!(described.data_dirs[0].state.is_ok());
    let reason = described.data_dirs[1].state.as_ref().expect_err("offline").message.clone();
    assert!(reason.contains("is its disk mounted?"), "{reason}");
    assert!(node.describe("new").partitions.iter().all(|p| p.data_dir == dirs[0].display().to_string()));
    node.delete("doomed");
    node.stop();
    assert_eq!(fs::read_dir(dirs[1]).expect("there").count(), 0, "nothing was made on the mount point");

    // It comes back: what was deleted meanwhile does not.
    fs::remove_dir(dirs[1]).expect("still empty");
    fs::rename(&hidden, dirs[1]).expect("moved back");
    assert!(topic_dirs(dirs[1]).iter().any(|name| name.starts_with("doomed-")));
    let node = start(config(&dirs, &[]), 1).expect("it starts");
    assert_eq!(node.names(), ["new", "t"]);
    assert!(!topic_dirs(dirs[1]).iter().any(|name| name.starts_with("doomed-")));
    assert_eq!(of(&node, dirs[1]), 2);
    node.stop();
}

#[test]
fn a_missing_log_is_a_loss_and_orphans_are_left_alone() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let data = temp.path();
    let node = start(config(&[data], &[]), 1).expect("it starts");
    ok(&node.create("t", 2));
    node.stop();
    let topic = data.join("topics").join(topic_dirs(data).remove(0));
    fs::remove_dir(topic.join("1")).expect("removed");
    fs::create_dir(topic.join("7")).expect("made");
    fs::create_dir(data.join("topics/stranger-00000000")).expect("made");
    let node = start(config(&[data], &[]), 1).expect("it starts");
    // When this is answered, the shard has said what it thinks of the first snapshot.
    ok(&node.create("u", 1));
    let codes: Vec<Option<ErrorCode>> =
        node.describe("t").partitions.iter().map(|p| p.failure.as_ref().map(|f| f.code)).collect();
    assert_eq!(codes, [None, Some(ErrorCode::StorageFailed)]);
    assert!(!topic.join("1").exists(), "a lost log is not replaced by an empty one");
    assert!(topic.join("7").exists() && data.join("topics/stranger-00000000").exists());
    node.stop();
}

#[test]
fn starts_that_cannot_be_right_are_refused() {
    let (one, two) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
    let (a, b) = (one.path(), two.path());
    let check = |config: Config, words: &str| {
        let error = control::look(&config).map(|_| ()).expect_err(words).to_string();
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    };
    let node = start(config(&[a], &[]), 1).expect("it starts");
    ok(&node.create("t", 1));
    check(config(&[a], &[]), "in use by another corelog process");
    node.stop();
    check(config(&[a], &[("node.id", "2")]), "set node.id = 1");
    check(config(&[b, a], &[]), "name it first");
    let other = start(config(&[b], &[]), 1).expect("it starts");
    other.stop();
    check(config(&[a, b], &[]), "name it first");
    fs::remove_file(b.join("meta.redb")).expect("removed");
    check(config(&[a, b], &[]), "belongs to cluster");
    fs::remove_file(a.join("meta.redb")).expect("removed");
    check(config(&[a], &[]), "no meta.redb");
    let identity = fs::read_to_string(a.join("corelog.json")).expect("there is one");
    fs::write(a.join("corelog.json"), identity.replace("\"format\": 1", "\"format\": 9")).expect("written");
    check(config(&[a], &[]), "run the newer version");
}

#[test]
fn a_failed_disk_goes_offline_while_the_node_runs() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let node = start(config(&[temp.path()], &[]), 1).expect("it starts");
    ok(&node.create("t", 1));
    let reason = "input/output error".to_owned();
    node.reports.send(ShardReport::DataDirFailed { data_dir: DataDirIndex(0), reason }).expect("sent");
    let partition = node.describe("t").partitions.remove(0);
    assert_eq!(partition.failure.map(|f| f.code), Some(ErrorCode::PartitionOffline));
    refused(&node.create("u", 1), ErrorCode::DiskFull, "no data directory");
    // Nothing in it may be called clean.
    assert_eq!(node.stop(), Stopped::Unclean);
}

#[test]
fn a_full_disk_takes_no_new_partitions_and_keeps_its_old_ones() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let node = start(config(&[temp.path()], &[]), 1).expect("it starts");
    ok(&node.create("t", 1));
    node.stop();
    let node = start(config(&[temp.path()], &[("data.free_bytes_min", "1024TiB")]), 1).expect("it starts");
    refused(&node.create("u", 1), ErrorCode::DiskFull, "free space");
    refused(&node.add_partitions("t", 2), ErrorCode::DiskFull, "free space");
    let partition = node.describe("t").partitions.remove(0);
    assert_eq!(partition.failure, None, "reads go on");
    let node_description = node.ask(AdminRequest::DescribeNode);
    let code = node_description.data_dirs[0].state.as_ref().map_err(|failure| failure.code);
    assert_eq!(code, Err(ErrorCode::DiskFull));
    ok(&node.delete("t"));
    assert_eq!(node.stop(), Stopped::Clean);
}
