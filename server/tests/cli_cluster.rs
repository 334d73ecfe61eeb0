//! The command line against a cluster of three real nodes and a real ZooKeeper: what an operator does, and sees.
//!
//! Must never happen: exit code 0 for a refusal, or for a cluster that is not well; a command that says it is done
//! before it is.

mod cli;
mod support;

use cli::Ran;
use corelog_client::{
    ConsumeError, Consumer, ConsumerConfig, PollLimits, ProducerConfig, ProducerRecord, StartAt,
};
use serde_json::{Value, json};
use support::directory;
use support::nodes::Nodes;
use support::zookeeper::Ensemble;

/// Runs the command line against whichever nodes run.
fn run(nodes: &Nodes, args: &[&str]) -> Ran {
    let addresses: Vec<String> = nodes.running().map(|node| node.address.to_string()).collect();
    let addresses = addresses.join(",");
    cli::run(&[args, &["--server", &addresses]].concat())
}

fn leaders(nodes: &Nodes, node: u32) -> u64 {
    let status = run(nodes, &["cluster", "status", "--json"]).json();
    let all = status["nodes"].as_array().expect("nodes").clone();
    let found = all.into_iter().find(|known| known["node"] == json!(node)).expect("a known node");
    found["leaders"].as_u64().expect("a count")
}

fn replicas(nodes: &Nodes, partition: usize) -> Vec<Value> {
    let described = run(nodes, &["topic", "describe", "t", "--json"]).json();
    described[0]["partitions"][partition]["replicas"].as_array().expect("replicas").clone()
}

#[test]
fn an_operator_sees_and_changes_a_cluster() {
    let dir = directory();
    let ensemble = Ensemble::start(1);
    let mut nodes = Nodes::start(&ensemble, dir.path(), &["0", "0,1", "1"]);
    run(&nodes, &["topic", "create", "t", "-p", "6", "--replicas", "3"]).exits(0);
    nodes.await_in_sync("t", 3);
    assert_eq!(replicas(&nodes, 0).len(), 3);
    let text = run(&nodes, &["cluster", "status", "--check"]).exits(0);
    assert!(text.contains("0 without a leader, 0 under-replicated"), "{text}");
    run(&nodes, &["topic", "create", "lonely", "-p", "1", "--replicas", "1"]).exits(0);
    let text = run(&nodes, &["cluster", "status"]).exits(0);
    assert!(text.contains("1 topic with one replica") && text.contains("lonely"), "{text}");

    // Maintenance: leadership leaves first, and comes back.
    run(&nodes, &["topic", "delete", "lonely", "--yes"]).exits(0);
    let text = run(&nodes, &["cluster", "drain", "1"]).exits(0);
    assert!(text.contains("leads nothing"), "{text}");
    assert_eq!(leaders(&nodes, 1), 0);
    run(&nodes, &["cluster", "drain", "1", "--undo"]).exits(0);
    run(&nodes, &["cluster", "rebalance"]).exits(0);
    nodes.await_that("its leaderships back", || (leaders(&nodes, 1) > 0).then_some(()));
    run(&nodes, &["cluster", "drain", "9"]).fails(4, &["9", "cluster status"]);

    // A replica goes and comes; it is in sync when the command says so.
    run(&nodes, &["replica", "remove", "t", "0", "3"]).exits(0);
    assert_eq!(replicas(&nodes, 0).len(), 2);
    run(&nodes, &["replica", "remove", "t", "0", "3"]).fails(5, &["no replica"]);
    let added = run(&nodes, &["replica", "add", "t", "0", "3", "--wait", "--json"]).json();
    assert_eq!((&added["node"], &added["in_sync"]), (&json!(3), &json!(true)), "{added}");
    assert!(replicas(&nodes, 0).iter().all(|replica| replica["in_sync"] == json!(true)));
    run(&nodes, &["replica", "add", "t", "0", "3"]).fails(5, &["has a replica"]);
    run(&nodes, &["topic", "alter", "t", "--replicas", "2"]).exits(0);
    assert_eq!(replicas(&nodes, 5).len(), 2);
    run(&nodes, &["topic", "alter", "t", "--replicas", "3"]).exits(0);
    nodes.await_in_sync("t", 3);

    // A node dies: the status says so, and what is not well, and nobody is made to give up records.
    nodes.kill(3);
    nodes.await_that("a smaller ISR", || {
        let status = run(&nodes, &["cluster", "status", "--json"]).json();
        (status["under_replicated"] == json!(6)).then_some(())
    });
    run(&nodes, &["cluster", "status", "--check"]).fails(1, &["1 node not running", "6 partitions"]);
    nodes.await_that("the end of its session", || {
        let status = run(&nodes, &["cluster", "status", "--json"]).json();
        (status["nodes"][2]["state"] == json!("gone")).then_some(())
    });
    let text = run(&nodes, &["topic", "describe", "t"]).exits(0);
    assert!(text.contains("node 3: out of sync, not running"), "{text}");
    run(&nodes, &["topic", "elect-unclean", "t", "0"]).fails(2, &["--yes-lose-data"]);
    run(&nodes, &["topic", "elect-unclean", "t", "0", "--yes-lose-data"]).fails(5, &["no unclean election"]);
    run(&nodes, &["cluster", "forget", "3"]).fails(5, &["replicas"]);
    run(&nodes, &["cluster", "forget", "1"]).fails(5, &["stop it"]);
    nodes.restart(3);
    nodes.await_in_sync("t", 3);
    run(&nodes, &["cluster", "status", "--check"]).exits(0);
}

/// Polls until an error comes; what was read before it.
async fn read_until_told(consumer: &mut Consumer, leave_at: usize) -> (usize, Option<ConsumeError>) {
    let (mut seen, began) = (0, std::time::Instant::now());
    loop {
        assert!(began.elapsed() < support::PATIENCE, "{seen} records came, and no word");
        match consumer.poll(PollLimits::default()).await {
            Ok(records) => seen += records.len(),
            Err(error) => return (seen, Some(error)),
        }
        if seen >= leave_at {
            return (seen, None);
        }
    }
}

#[tokio::test]
async fn records_are_given_up_only_on_an_operators_word_and_readers_are_told() {
    let dir = directory();
    let ensemble = Ensemble::start(1);
    let mut nodes = Nodes::start(&ensemble, dir.path(), &["0", "0,1", "1"]);
    let create = ["topic", "create", "t", "-p", "1", "--replicas", "2", "-o", "min_insync_replicas=1"];
    run(&nodes, &create).exits(0);
    nodes.await_in_sync("t", 2);
    let (leader, _) = nodes.leader("t", 0);
    let holders = replicas(&nodes, 0);
    let follower = holders.iter().find(|replica| replica["is_leader"] == json!(false)).expect("a follower");
    let follower = follower["node"].as_u64().expect("a node") as u32;
    let client = nodes.client().await;
    let producer = client.producer(ProducerConfig::default()).expect("sound settings");
    let record = ProducerRecord { value: Some(b"v"), ..ProducerRecord::default() };
    for _ in 0..5 {
        producer.send("t", record).await.expect("taken").wait().await.expect("acked by both");
    }
    nodes.kill(follower);
    for _ in 0..5 {
        producer.send("t", record).await.expect("taken").wait().await.expect("acked by the one in sync");
    }
    let mut consumer = client.consumer(ConsumerConfig { patience_ms: 600_000, ..ConsumerConfig::default() });
    consumer.assign_all("t", StartAt::Earliest).await.expect("assigned");
    assert_eq!(read_until_told(&mut consumer, 10).await.0, 10);

    nodes.kill(leader);
    nodes.restart(follower);
    nodes.await_that("a partition without a leader", || {
        let status = run(&nodes, &["cluster", "status", "--json"]).json();
        (status["offline"] == json!(1)).then_some(())
    });
    run(&nodes, &["cluster", "status", "--check"]).fails(1, &["1 partition without a leader"]);
    run(&nodes, &["topic", "elect-unclean", "t", "0", "--yes-lose-data"]).exits(0);
    assert_eq!(nodes.leader("t", 0).0, follower);
    let (seen, told) = read_until_told(&mut consumer, 1).await;
    match told {
        Some(ConsumeError::Truncated { position, reset_to, .. }) => {
            assert_eq!((seen, position.0, reset_to.0), (0, 10, 5));
        }
        other => panic!("{seen} records, then {other:?}"),
    }
    producer.send("t", record).await.expect("taken").wait().await.expect("acked by the new leader");
    let records =
        consumer.poll(PollLimits { wait_ms: 10_000, ..PollLimits::default() }).await.expect("it goes on");
    assert_eq!(records.first().map(|record| record.offset.0), Some(5));

    // The old leader comes back, and gives up what nobody else has.
    nodes.restart(leader);
    nodes.await_in_sync("t", 2);
    let described = run(&nodes, &["topic", "describe", "t", "--json"]).json();
    assert_eq!(described[0]["partitions"][0]["high_watermark"], json!(6), "{described}");
}
