//! A single node becomes the first of a cluster: its topics, ids and records come along, and the next node takes copies.
//! Setup: the real binary, one ZooKeeper.
//! What must never happen: a record or topic that does not come along, a second life of the old metadata, a node that
//! mixes the data of two clusters.

mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use corelog_schemas::messages::{
    Acks, MetadataRequest, MetadataResponse, MetadataTopics, PartitionRef, ProducePartition, ProduceRequest,
};
use support::zookeeper::Ensemble;
use support::{Node, PATIENCE, Setup, batch, directory};

fn produce(node: &Node, partition: u32) -> Option<u64> {
    let records = batch(&["v"]);
    let to = PartitionRef::by_name("orders", partition);
    let part = ProducePartition { to, records_bytes: records.len() as u32, leader_epoch: None };
    let request = ProduceRequest { acks: Acks::All, timeout_ms: 10_000, partitions: vec![part] };
    let (response, _) = node.shard(0).ask(&request, &records);
    response.partitions[0].as_ref().ok().map(|produced| produced.base_offset)
}

fn metadata(node: &Node) -> MetadataResponse {
    let request = MetadataRequest { topics: MetadataTopics::All };
    node.shard(0).ask(&request, &[]).0
}

/// Tries until it is so.
fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn in_cluster(dir: &Path, node: u32, ensemble: &Ensemble, root: &str) -> Setup {
    Setup::new(dir, "0")
        .set("CORELOG_NODE_ID", &node.to_string())
        .set("CORELOG_ZOOKEEPER_CONNECT", &ensemble.connect())
        .set("CORELOG_ZOOKEEPER_ROOT", root)
        .set("CORELOG_ZOOKEEPER_SESSION_TIMEOUT", "2s")
        .set("CORELOG_REPLICATION_ADDRESS", "127.0.0.1:0")
}

#[tokio::test]
async fn a_single_node_takes_everything_along_and_a_second_one_copies_it() {
    let dir = directory();
    let ensemble = Ensemble::start(1);
    let data = dir.path().join("first");
    let alone = Setup::new(&data, "0");
    let node = alone.start();
    node.create_topic("orders", 2).await;
    node.create_topic("many", 600).await;
    assert_eq!([produce(&node, 0), produce(&node, 1)], [Some(0), Some(0)]);
    let before = metadata(&node);
    let (status, _) = node.stop();
    assert!(status.success());

    let first = in_cluster(&data, 1, &ensemble, "/grown").start();
    let after = metadata(&first);
    assert_eq!(after.cluster_id, before.cluster_id);
    let ids = |metadata: &MetadataResponse| -> Vec<_> {
        metadata.topics.iter().map(|t| (t.name.clone(), t.topic_id, t.partitions.len())).collect()
    };
    assert_eq!(ids(&after), ids(&before));
    let epoch = |metadata: &MetadataResponse| metadata.topics[1].partitions[0].leader_epoch;
    assert!(epoch(&after) > epoch(&before), "it leads under a new epoch");
    assert_eq!([produce(&first, 0), produce(&first, 1)], [Some(1), Some(1)]);

    // A second node joins with empty directories and takes a copy of each partition.
    let second = in_cluster(&dir.path().join("second"), 2, &ensemble, "/grown").start();
    assert_eq!(metadata(&second).cluster_id, before.cluster_id);
    let admin = first.client().await;
    let unchanged = admin.admin().set_replicas("orders", 2).await.expect("stored").is_unchanged;
    assert!(!unchanged);
    await_that("both replicas in sync", || {
        let topics = metadata(&second).topics;
        let orders = topics.iter().find(|topic| topic.name == "orders").expect("it is there");
        orders.partitions.iter().all(|partition| partition.in_sync.len() == 2)
    });
    first.kill();
    await_that("the second node leads", || produce(&second, 0) == Some(2));
    drop(second);

    // The old metadata do not come back to life, and the data fit no other cluster.
    let (status, said) = alone.fail();
    assert!(!status.success() && said.contains("set zookeeper.connect"), "{said}");
    let (_, said) = in_cluster(&data, 1, &ensemble, "/wrong").fail();
    assert!(said.contains("of which the coordination service knows nothing"), "{said}");
    let other = in_cluster(&dir.path().join("other"), 3, &ensemble, "/other").start();
    drop(other);
    let (_, said) = in_cluster(&data, 1, &ensemble, "/other").fail();
    assert!(said.contains("holds cluster"), "{said}");
}
