//! What is particular to the embedded store: durability, taking over format 1, a disk that fails. The contract itself
//! is tested for all stores alike in `tests/coordination.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use corelog_engine::{LeaderEpoch, LogId, PartitionId, TimestampMs, TopicId, TopicPartition};
use corelog_replication::cluster::keys::Subject;
use corelog_replication::cluster::{ClusterRecord, PartitionRecord, Stored as _, TopicRecord};
use redb::StorageBackend;
use redb::backends::FileBackend;

use super::*;

fn on_local_set<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

fn create(key: &str, value: &str, is_ephemeral: bool) -> Op {
    Op::Create { key: key.to_owned(), value: value.as_bytes().into(), is_ephemeral }
}

fn value(store: &KvStore, key: &str) -> Option<String> {
    let entry = store.entries().into_iter().find(|entry| entry.key == key)?;
    Some(String::from_utf8(entry.value.to_vec()).expect("text"))
}

#[test]
fn what_was_answered_is_there_after_opening_again_but_ephemeral_keys() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("meta.redb");
    on_local_set(async {
        let store = KvStore::open(&path, NodeId(1), "c1").expect("made");
        let ops = vec![create("/a", "1", false), create("/b", "2", true)];
        assert_eq!(store.commit(ops).await, Ok(vec![Version(0), Version(0)]));
        let put = Op::Put { key: "/a".to_owned(), value: b"3".as_slice().into(), version: Version(0) };
        assert_eq!(store.commit(vec![put]).await, Ok(vec![Version(1)]));
        assert_eq!((value(&store, "/a"), value(&store, "/b")), (Some("3".into()), Some("2".into())));
    });
    on_local_set(async {
        let store = KvStore::open(&path, NodeId(1), "ignored").expect("opened");
        let keys: Vec<(String, i64)> =
            store.entries().into_iter().map(|entry| (entry.key, entry.version.0)).collect();
        assert_eq!(keys, [("/a".to_owned(), 1), ("/cluster".to_owned(), 0)]);
        let local = store.node_local().expect("readable");
        assert_eq!((local.node, local.cluster_id.as_str()), (NodeId(1), "c1"));
    });
}

/// A store as format 1 left it: started twice, one topic of two partitions, another one deleted.
fn write_format_1(path: &Path) {
    let text = |name| redb::TableDefinition::<&str, &str>::new(name);
    let by_id = |name| redb::TableDefinition::<u128, &str>::new(name);
    let database = Database::create(path).expect("made");
    let transaction = database.begin_write().expect("begun");
    {
        let mut node = transaction.open_table(text("node")).expect("table");
        for (key, value) in [("format", "1"), ("cluster_id", "c4"), ("node_id", "4"), ("starts", "2")] {
            node.insert(key, value).expect("inserted");
        }
        let (dir, unmade) = (format!("{:032x}", 70), format!("{:032x}", u128::MAX - 10));
        let row = format!(
            r#"{{"name":"a","created_ms":5,"version":1,"options":{{"flush":"interval"}},"partitions":[
                {{"log":"{:032x}","dir":"{dir}","shard":3,"confirmed":true}},
                {{"log":"{unmade}","dir":"{dir}","shard":3}}]}}"#,
            11
        );
        transaction.open_table(by_id("topics")).expect("table").insert(10, row.as_str()).expect("inserted");
        let names = redb::TableDefinition::<&str, u128>::new("names");
        transaction.open_table(names).expect("table").insert("a", 10).expect("inserted");
        let row = format!(r#"{{"name":"gone","dirs":["{dir}"]}}"#);
        transaction.open_table(by_id("deleted")).expect("table").insert(20, row.as_str()).expect("inserted");
        transaction.open_table(by_id("data_dirs")).expect("table").insert(70, "/d").expect("inserted");
    }
    transaction.commit().expect("committed");
}

#[test]
fn format_1_is_taken_over_whole() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("meta.redb");
    write_format_1(&path);
    let (starts, gone) = (LeaderEpoch(2), TopicId(20));

    let store = KvStore::open(&path, NodeId(4), "ignored").expect("taken over");
    let entries: BTreeMap<String, _> =
        store.entries().into_iter().map(|entry| (entry.key, entry.value)).collect();
    let partitions = [0, 1].map(|number| {
        let id = TopicPartition { topic: TopicId(10), partition: PartitionId(number) };
        Subject::Partition(id).key()
    });
    let topic_key = Subject::Topic(TopicId(10)).key();
    let names: Vec<&String> = entries.keys().collect();
    assert_eq!(names, ["/cluster", "/names/a", &partitions[0], &partitions[1], &topic_key]);
    let cluster = ClusterRecord::decode(&entries["/cluster"]).expect("a record");
    assert_eq!(cluster.cluster_id, "c4");
    let topic = TopicRecord::decode(&entries[&topic_key]).expect("a record");
    assert_eq!((topic.partitions, topic.created), (2, TimestampMs(5)));
    let second = PartitionRecord::decode(&entries[&partitions[1]]).expect("a record");
    assert_eq!((second.replicas[0].log, second.leader_epoch), (LogId(u128::MAX - 10), starts));
    let local = store.node_local().expect("readable");
    assert_eq!(local.made, [(DataDirId(70), LogId(11))]);
    assert_eq!(local.data_dirs, BTreeMap::from([(DataDirId(70), "/d".to_owned())]));
    assert_eq!((local.deleted[0].id, local.deleted[0].data_dirs.as_slice()), (gone, &[DataDirId(70)][..]));

    store.forget_deleted(gone, &[DataDirId(70)]).expect("stored");
    store.forget_made(&[DataDirId(1)]).expect("stored");
    assert_eq!(store.node_local().expect("readable").made, local.made, "it is another directory's");
    store.forget_made(&[DataDirId(70)]).expect("stored");
    store.forget_data_dirs().expect("stored");
    drop(store);
    let local = KvStore::open(&path, NodeId(4), "c4").expect("opened").node_local().expect("readable");
    assert_eq!((local.deleted, local.made, local.data_dirs), (vec![], vec![], BTreeMap::new()));
}

#[test]
fn a_newer_or_a_damaged_store_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("meta.redb");
    drop(KvStore::open(&path, NodeId(1), "c1").expect("made"));
    let database = Database::create(&path).expect("opened");
    let transaction = database.begin_write().expect("begun");
    let node = redb::TableDefinition::<&str, &str>::new("node");
    transaction.open_table(node).expect("table").insert("format", "3").expect("inserted");
    transaction.commit().expect("committed");
    drop(database);
    let error = KvStore::open(&path, NodeId(1), "c1").err().expect("it is newer");
    assert!(matches!(error, StoreError::NewerFormat { found: 3, .. }), "{error}");
    std::fs::write(&path, vec![b'x'; 4096]).expect("written");
    let error = KvStore::open(&path, NodeId(1), "c1").err().expect("it is damaged");
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}

/// A file whose syncs fail while `is_full`.
#[derive(Debug)]
struct Faulty {
    file: FileBackend,
    is_full: Arc<AtomicBool>,
}

impl Faulty {
    fn check(&self) -> Result<(), std::io::Error> {
        let is_full = self.is_full.load(Ordering::SeqCst);
        if is_full { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl StorageBackend for Faulty {
    fn len(&self) -> Result<u64, std::io::Error> {
        self.file.len()
    }
    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, std::io::Error> {
        self.file.read(offset, len)
    }
    fn set_len(&self, len: u64) -> Result<(), std::io::Error> {
        self.check()?;
        self.file.set_len(len)
    }
    fn sync_data(&self, eventual: bool) -> Result<(), std::io::Error> {
        self.check()?;
        self.file.sync_data(eventual)
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), std::io::Error> {
        self.check()?;
        self.file.write(offset, data)
    }
}

#[test]
fn after_a_full_disk_it_goes_on_with_what_was_durable() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("meta.redb");
    let is_full = Arc::new(AtomicBool::new(false));
    let shared = is_full.clone();
    let opener = move |path: &Path| {
        let file = std::fs::File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(redb::Error::from)?;
        let file = FileBackend::new(file)?;
        let backend = Faulty { file, is_full: shared.clone() };
        Ok(Database::builder().create_with_backend(backend)?)
    };
    on_local_set(async {
        let disk = Disk::with(&path, Arc::new(opener));
        let store = KvStore::open_on(disk, NodeId(1), "c1").expect("made");
        let Event::State { session, .. } = store.next().await else { panic!("a state comes first") };
        store.commit(vec![create("/kept", "1", false), create("/me", "1", true)]).await.expect("stored");
        is_full.store(true, Ordering::SeqCst);
        let first = store.commit(vec![create("/lost", "1", false)]);
        let second = store.commit(vec![create("/after", "1", false)]);
        assert_eq!(first.await, Err(CommitError::Unknown));
        assert_eq!(second.await, Err(CommitError::Unknown));
        assert_eq!(store.commit(vec![create("/x", "1", false)]).await, Err(CommitError::NoSession));
        is_full.store(false, Ordering::SeqCst);
        let entries = loop {
            if let Event::State { session: same, entries } = store.next().await {
                assert_eq!(same, session);
                break entries;
            }
        };
        let keys: Vec<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        assert_eq!(keys, ["/cluster", "/kept", "/me"]);
        store.commit(vec![create("/lost", "2", false)]).await.expect("it works again");
        assert_eq!(value(&store, "/lost"), Some("2".to_owned()));
    });
}
