//! How long producers wait when something happens to the leader, and what errors they see.
//!
//! Each figure is the longest time without an ack in one partition, as an idempotent producer of the library with its
//! default settings sees it, one small record at a time with acks=all and flush=commit. Nothing is asserted: it measures.
//! `FIGURES_ROUNDS` (default 10) rounds each; with `FIGURES_JSON=1` a line of JSON for each figure.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use corelog_client::{ProducerConfig, ProducerRecord};
use corelog_schemas::messages::DrainNodeRequest;

use super::cluster::{Cluster, NODES, address};
use super::direct::Direct;
use super::view::{self, View};
use super::workload;

const TOPIC: &str = "figures";
const PARTITIONS: u32 = 6;
/// A topic whose partitions are not on every node.
const APART: &str = "apart";
const MANY: &str = "many";
const MANY_PARTITIONS: u32 = 1_000;
const PATIENCE: Duration = Duration::from_secs(120);
/// Leadership has gone back to the preferred replicas by then.
const SETTLING: Duration = Duration::from_secs(6);
/// A round is watched for so long after the event.
const WATCHED: Duration = Duration::from_secs(4);

/// Acks of one producer, by topic and partition.
type Acks = BTreeMap<(String, u32), Vec<Instant>>;

/// A producer on a thread of its own, with one record at a time on its way to each partition.
struct Meter {
    acks: Arc<Mutex<Acks>>,
    errors: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Meter {
    fn start(partitions: Vec<(&'static str, u32)>) -> Self {
        let (acks, errors, is_over) = (Arc::default(), Arc::default(), Arc::default());
        let shared = (Arc::clone(&acks), Arc::clone(&errors), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            let (acks, errors, is_over) = shared;
            block_on(async move {
                let client = workload::connect("meter").await;
                let producer = client.producer(ProducerConfig::default()).expect("a sound configuration");
                let produce = partitions.iter().map(|&(topic, partition)| {
                    one_at_a_time(&producer, topic, partition, &acks, &errors, &is_over)
                });
                futures_util::future::join_all(produce).await;
                producer.close().await;
            });
        });
        Self { acks, errors, is_over, thread }
    }

    /// The longest time without an ack since an instant, in one of the partitions that count.
    fn longest(&self, since: Instant, counts: impl Fn(&str, u32) -> bool) -> Duration {
        let acks = self.acks.lock().expect("nobody panics");
        let of_each =
            acks.iter().filter(|((topic, partition), _)| counts(topic, *partition)).map(|(_, at)| {
                let first = at.partition_point(|at| *at < since).saturating_sub(1);
                let pauses = at[first..].windows(2).map(|pair| pair[1] - pair[0]);
                // A partition without any ack since then has a pause that is not over.
                let open = at.last().map_or(since.elapsed(), Instant::elapsed);
                pauses.max().unwrap_or(Duration::ZERO).max(open)
            });
        of_each.max().unwrap_or(Duration::ZERO)
    }

    fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    fn finish(self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic");
    }
}

async fn one_at_a_time(
    producer: &corelog_client::Producer,
    topic: &str,
    partition: u32,
    acks: &Mutex<Acks>,
    errors: &AtomicU64,
    is_over: &AtomicBool,
) {
    while !is_over.load(Ordering::Relaxed) {
        let record = ProducerRecord {
            value: Some(&[7; 100]),
            partition: Some(partition),
            ..ProducerRecord::default()
        };
        let is_acked = match producer.send(topic, record).await {
            Ok(delivery) => delivery.wait().await.is_ok(),
            Err(_) => false,
        };
        if is_acked {
            let mut acks = acks.lock().expect("nobody panics");
            acks.entry((topic.to_owned(), partition)).or_default().push(Instant::now());
        } else {
            errors.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

fn await_well() -> View {
    block_on(view::await_well(PATIENCE)).expect("the cluster heals")
}

/// One figure.
struct Figure {
    name: &'static str,
    pauses: Vec<Duration>,
    errors: u64,
}

impl Figure {
    fn print(&self) {
        let mut sorted = self.pauses.clone();
        sorted.sort_unstable();
        let ms = |pause: Option<&Duration>| pause.map_or(0.0, |pause| pause.as_secs_f64() * 1e3);
        let (median, max) = (ms(sorted.get(sorted.len() / 2)), ms(sorted.last()));
        if std::env::var("FIGURES_JSON").is_ok_and(|set| set == "1") {
            let (name, rounds, errors) = (self.name, sorted.len(), self.errors);
            let line = serde_json::json!({
                "figure": name, "rounds": rounds, "median_ms": median, "max_ms": max, "errors": errors,
            });
            println!("{line}");
        } else {
            println!(
                "{:<62} {:>3} rounds  median {median:>7.0} ms  max {max:>7.0} ms  {} errors",
                self.name,
                sorted.len(),
                self.errors
            );
        }
    }
}

/// Measures all of them and prints a table.
pub(crate) fn measure() {
    let rounds = super::number("FIGURES_ROUNDS").unwrap_or(10);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let mut cluster = Cluster::start(dir.path(), ["0", "1", "0"]).expect("root may make namespaces");
    block_on(async {
        let client = workload::connect_to_all("figures").await;
        for (topic, replicas) in [(TOPIC, 3), (APART, 2)] {
            workload::create_topic(&client, topic, (PARTITIONS, replicas), &[]).await.expect("created");
        }
    });
    await_well();
    let mut pairs: Vec<(&'static str, u32)> = Vec::new();
    for topic in [TOPIC, APART] {
        pairs.extend((0..PARTITIONS).map(|partition| (topic, partition)));
    }
    let meter = Meter::start(pairs);
    events(&mut cluster, &meter, rounds);
    many(&mut cluster, &meter, rounds.min(3));
    meter.finish();
    for problem in cluster.problems.iter().chain(&cluster.alarms()) {
        println!("PROBLEM {problem}");
    }
}

/// What happens to the leader of a partition, and what undoes it.
type Event = fn(&mut Cluster, u32);

fn events(cluster: &mut Cluster, meter: &Meter, rounds: u64) {
    let events: [(&'static str, Event); 4] = [
        ("kill -9 of the leader, until the next ack", Cluster::kill),
        ("silent leader (SIGSTOP), session 2 s, until the next ack", Cluster::pause),
        ("leader stopped by SIGTERM, longest time without an ack", |cluster, node| {
            cluster.stop(node);
        }),
        ("leader drained, longest time without an ack", |_, node| drain(node, true)),
    ];
    for (name, event) in events {
        let errors = meter.errors();
        let mut pauses = Vec::new();
        for round in 0..rounds {
            let view = await_well();
            std::thread::sleep(SETTLING);
            let partition = (round % u64::from(PARTITIONS)) as u32;
            let node = view.leader(TOPIC, partition).expect("all is well");
            let node =
                block_on(view::ask(node)).ok().and_then(|v| v.leader(TOPIC, partition)).unwrap_or(node);
            let began = Instant::now();
            event(cluster, node);
            std::thread::sleep(WATCHED);
            pauses.push(meter.longest(began, |topic, of| topic == TOPIC && of == partition));
            cluster.heal();
            drain(node, false);
        }
        Figure { name, pauses, errors: meter.errors() - errors }.print();
    }
}

/// A node with a replica of each of a thousand partitions leaves and returns: what do partitions feel that it has no
/// replica of, and those that have one there and are led elsewhere?
fn many(cluster: &mut Cluster, meter: &Meter, rounds: u64) {
    block_on(async {
        let client = workload::connect("figures").await;
        let options = [("batch_bytes_max", "32KiB"), ("segment_bytes_max", "64KiB")];
        workload::create_topic(&client, MANY, (MANY_PARTITIONS, 3), &options).await.expect("created");
    });
    let errors = meter.errors();
    let mut figures: [Vec<Duration>; 4] = Default::default();
    for round in 0..rounds {
        await_well();
        std::thread::sleep(SETTLING);
        let view = await_well();
        let node = (round % u64::from(NODES)) as u32 + 1;
        let place =
            |topic: &str, partition: u32| view.partitions.get(&(topic.to_owned(), partition)).cloned();
        let is_apart = |topic: &str, of: u32| place(topic, of).is_some_and(|p| !p.replicas.contains(&node));
        let is_shrunk = |topic: &str, of: u32| {
            place(topic, of).is_some_and(|p| p.replicas.contains(&node) && p.leader_node != node)
        };
        let began = Instant::now();
        cluster.kill(node);
        std::thread::sleep(WATCHED);
        figures[0].push(meter.longest(began, is_apart));
        figures[1].push(meter.longest(began, is_shrunk));
        let began = Instant::now();
        cluster.start_node(node);
        await_well();
        figures[2].push(meter.longest(began, is_apart));
        figures[3].push(meter.longest(began, is_shrunk));
    }
    let names = [
        "1,000 partitions lose a replica: partitions that have none there",
        "1,000 partitions lose a replica: partitions that lose one too",
        "1,000 partitions get it back: partitions that have none there",
        "1,000 partitions get it back: partitions that get it back too",
    ];
    let errors = meter.errors() - errors;
    for (name, pauses) in names.into_iter().zip(figures) {
        Figure { name, pauses, errors }.print();
    }
}

fn drain(node: u32, is_drained: bool) {
    let request = DrainNodeRequest { node, is_drained };
    block_on(async {
        for other in (1..=NODES).cycle().take(60) {
            if let Ok(mut direct) = Direct::connect(address(other, 0)).await
                && let Ok(Ok((response, _))) = direct.ask(&request, &[], Duration::from_secs(5)).await
                && response.failure.is_none()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("node {node} cannot be drained, or led back");
    });
}
