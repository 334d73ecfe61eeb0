//! One run: a cluster under load while things go wrong (safety), then everything heals (liveness), then the verdict.
//!
//! Owns: how a run is drawn from its seed, and its phases. Same seed, same trace.

mod liveness;
mod reading;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use corelog_replication::controller::ControllerOptions;

use crate::checker;
use crate::cluster::{SimCluster, SimClusterOptions};
use crate::coordination::SimCoordinationOptions;
use crate::disk::SimDiskOptions;
use crate::executor::{Executor, Handle};
use crate::faults::{Faults, Trouble};
use crate::network::SimNetworkOptions;
use crate::workload::{Operator, TopicPlan, Workload};

/// What a run is given beside its seed.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Decides everything else.
    pub seed: u64,
    /// Simulated seconds under load.
    pub seconds: u64,
    /// Faults in that time.
    pub faults: u64,
    /// Who gets the lines of the trace.
    pub trace: Option<fn(&str)>,
}

impl RunOptions {
    /// A run of the usual length.
    pub fn new(seed: u64) -> Self {
        Self { seed, seconds: 60, faults: 20, trace: None }
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Of the run.
    pub seed: u64,
    /// Over all that happened.
    pub trace_hash: u64,
    /// What must not happen, and did; empty: all is well.
    pub problems: Vec<String>,
    /// How often each fault struck.
    pub faults: BTreeMap<Trouble, u64>,
    /// Produce requests that were acked.
    pub acks: u64,
    /// Simulated microseconds, all phases.
    pub simulated_us: u64,
    /// Simulated microseconds from the end of the faults until all was well.
    pub healed_us: Option<u64>,
}

/// Simulated time after which a run counts as stuck.
const STUCK_MS: u64 = 400_000;

/// Problems that are told; the rest is like them.
const PROBLEMS_MAX: usize = 12;

/// Runs one seed.
pub fn run(options: &RunOptions) -> Outcome {
    let executor = Executor::new(options.seed);
    if let Some(listener) = options.trace {
        executor.listen(listener);
    }
    let handle = executor.handle();
    let limit_us = (STUCK_MS + options.seconds * 1000) * 1000;
    let stop = {
        let handle = handle.clone();
        move || handle.now_us() > limit_us
    };
    let played = executor.run_until_or(play(handle, options.clone()), stop);
    let mut outcome = played.unwrap_or_else(|| Outcome {
        seed: options.seed,
        trace_hash: 0,
        problems: vec!["the run came to no end: something waits for ever".to_owned()],
        faults: BTreeMap::new(),
        acks: 0,
        simulated_us: 0,
        healed_us: None,
    });
    outcome.trace_hash = executor.trace_hash();
    outcome.simulated_us = executor.now_us();
    outcome
}

async fn play(handle: Handle, options: RunOptions) -> Outcome {
    let cluster = Rc::new(SimCluster::new(&handle, draw_cluster(&handle)));
    let mut problems = Vec::new();
    cluster.start_all();
    if !cluster.registered(30_000).await {
        problems.push("the nodes did not register within 30 s of their first start".to_owned());
    }
    let topics = draw_topics(&handle);
    let workload = Workload::start(&cluster, 3, 2, 450);
    let operator = Rc::new(Operator::new(&workload));
    for topic in &topics {
        if !operator.create(topic, 30).await {
            problems.push(format!("topic {} could not be made in a healthy cluster", topic.name));
        }
    }
    let faults = Faults::new(&cluster, &operator, topics.clone());
    let began_us = handle.now_us();
    faults.strike(options.faults, options.seconds * 1000).await;
    let rest_us = (began_us + options.seconds * 1_000_000).saturating_sub(handle.now_us());
    handle.sleep(Duration::from_micros(rest_us)).await;
    faults.end_all().await;
    workload.end();
    let until_us = handle.now_us() + 20_000_000;
    while !workload.has_ended() && handle.now_us() < until_us {
        handle.sleep(Duration::from_millis(100)).await;
    }
    let healing_us = handle.now_us();
    let healed = liveness::heal(&cluster, &operator, &topics).await;
    let healed_us = healed.is_ok().then(|| handle.now_us() - healing_us);
    if let Err(why) = healed {
        problems.push(format!("not well again after the faults had ended: {why}"));
    }
    reading::complete(&cluster, &workload, &operator, &mut problems).await;
    problems.extend(cluster.world.recorder.complaints());
    let violations = cluster.world.recorder.with(|history| checker::check(history));
    problems.extend(violations.iter().map(ToString::to_string));
    // Names tell more than ids.
    for topic in cluster.state().topics.values() {
        let (id, decimal) = (topic.record.id.to_string(), topic.record.id.0.to_string());
        for problem in &mut problems {
            *problem = problem.replace(&id, &topic.record.name).replace(&decimal, &topic.record.name);
        }
    }
    problems.truncate(PROBLEMS_MAX);
    Outcome {
        seed: options.seed,
        trace_hash: 0,
        problems,
        faults: faults.counts(),
        acks: workload.acks(),
        simulated_us: 0,
        healed_us,
    }
}

fn draw_cluster(handle: &Handle) -> SimClusterOptions {
    let nodes = if handle.one_in(6) { 4 } else { 3 };
    SimClusterOptions {
        nodes,
        dirs: if handle.one_in(4) { 2 } else { 1 },
        tick_ms: 100,
        coordination: SimCoordinationOptions {
            session_timeout_ms: handle.random(1_000..4_000),
            latency_us_max: handle.random(500..8_000),
        },
        network: SimNetworkOptions {
            latency_us_max: handle.random(100..3_000),
            ..SimNetworkOptions::default()
        },
        disk: SimDiskOptions { latency_us_max: handle.random(100..4_000), ..SimDiskOptions::default() },
        controller: ControllerOptions {
            balance_delay_ms: handle.random(1_000..10_000),
            ..ControllerOptions::default()
        },
    }
}

fn draw_topics(handle: &Handle) -> Vec<TopicPlan> {
    let option = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let min_insync = |n: &str| option("min_insync_replicas", n);
    let all = TopicPlan {
        name: "all",
        partitions: handle.random(1..3) as u32,
        replicas: 3,
        options: vec![min_insync(if handle.one_in(3) { "1" } else { "2" })],
    };
    let mut topics = vec![all];
    let interval = vec![option("flush_interval_ms", "300"), min_insync("2")];
    let short = vec![option("segment_bytes", "8192"), option("retention_bytes", "20000")];
    let others = [
        TopicPlan { name: "leader", partitions: 1, replicas: 3, options: vec![min_insync("1")] },
        TopicPlan { name: "none", partitions: 1, replicas: 2, options: vec![min_insync("1")] },
        TopicPlan { name: "interval", partitions: 1, replicas: 3, options: interval },
        TopicPlan { name: "short", partitions: 1, replicas: 3, options: short },
    ];
    let first = handle.random(0..others.len() as u64) as usize;
    topics.push(others[first].clone());
    if handle.one_in(2) {
        topics.push(others[(first + 1) % others.len()].clone());
    }
    topics
}
