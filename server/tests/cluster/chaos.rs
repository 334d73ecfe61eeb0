//! One run: a cluster, a load, faults for a while, the verdict.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use corelog_sim::checker::{self, Violation};
use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

use super::cluster::{Cluster, NODES};
use super::faults::Faults;
use super::recorder::Recorder;
use super::verdict;
use super::view;
use super::workload::{self, COMMIT, Load, TOPICS};

/// A cluster on a busy machine is well again so long after the last fault, or never.
const HEALING: Duration = Duration::from_secs(90);
const SHOWN_MAX: usize = 20;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) seed: u64,
    /// How long faults go on; the last round is finished.
    pub(crate) duration: Duration,
    /// Leave it to the summary.
    pub(crate) is_quiet: bool,
}

/// Stops the thread of the faults, also when a client panics.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Run {
    /// Runs it in the calling thread, which is in namespaces of its own from then on, with files below `dir`; prints a
    /// summary. True: nothing was found.
    pub(crate) fn go(self, dir: &Path) -> std::io::Result<bool> {
        let cluster = Cluster::start(dir, ["0", "1", "0,1"])?;
        let (disks, clocks) = (cluster.has_disks(), cluster.has_clocks());
        if !disks {
            eprintln!("no loop devices here: full and slow disks are left out");
        }
        if !clocks {
            eprintln!("no C compiler here: clock steps are left out");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = tokio::task::LocalSet::new();
        Ok(local.block_on(&runtime, self.run(cluster)))
    }

    async fn run(self, mut cluster: Cluster) -> bool {
        let recorder = Recorder::new();
        let shared = cluster.shared.clone();
        let mut problems = Vec::new();
        let client = workload::connect_to_all("setup").await;
        for &(topic, partitions, options) in TOPICS {
            if let Err(why) = workload::create_topic(&client, topic, (partitions, 3), options).await {
                problems.push(format!("{topic} cannot be created: {why}"));
            }
        }
        if let Err(why) = view::await_well(HEALING).await {
            problems.push(format!("the cluster does not start: {why}"));
        }
        if !problems.is_empty() {
            problems.append(&mut cluster.problems);
            problems.extend(cluster.alarms());
            problems.iter().for_each(|problem| eprintln!("  PROBLEM {problem}"));
            return false;
        }
        let watching = tokio::task::spawn_local(view::watch(shared.clone()));
        let load = Load::start(&recorder, &shared, self.seed).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let (mut cluster, faults) = self.shake(cluster, &recorder).await;
        recorder.end();
        load.finish().await;
        watching.abort();
        if let Err(why) = view::await_well(HEALING).await {
            problems.push(format!("not well {HEALING:?} after the last fault: {why}"));
        }
        let mut violations = Vec::new();
        match self.complete(&recorder, &mut cluster).await {
            Ok(found) => violations = found,
            Err(why) => problems.push(why),
        }
        problems.append(&mut cluster.problems);
        problems.extend(cluster.alarms());
        self.tell(&recorder, &faults, &cluster, &problems, &violations);
        problems.is_empty() && violations.is_empty()
    }

    /// Faults, on a thread that may block, until the time is over.
    async fn shake(self, mut cluster: Cluster, recorder: &Recorder) -> (Cluster, Faults) {
        let is_over = Arc::new(AtomicBool::new(false));
        let _stop = StopOnDrop(is_over.clone());
        let over = is_over.clone();
        let (random, began) = (Pcg64Mcg::seed_from_u64(self.seed), recorder.began());
        let thread = std::thread::spawn(move || {
            let mut faults = Faults::new(random, began, self.is_quiet);
            let began = Instant::now();
            while began.elapsed() < self.duration && !over.load(Ordering::SeqCst) {
                faults.round(&mut cluster);
            }
            (cluster, faults)
        });
        let mut told = Instant::now();
        while !thread.is_finished() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if !self.is_quiet && told.elapsed() > Duration::from_secs(30) {
                told = Instant::now();
                let tally = recorder.tally.borrow();
                eprintln!(
                    "           {} records acked, {} refused, {} unknown, {} read, {} turned away",
                    tally.acked, tally.refused, tally.unknown, tally.read, tally.turned_away
                );
            }
        }
        thread.join().expect("faults do not panic")
    }

    /// The end of the history, and what the checker says. The nodes have stopped then.
    async fn complete(self, recorder: &Recorder, cluster: &mut Cluster) -> Result<Vec<Violation>, String> {
        verdict::produce_last(recorder).await?;
        let mut finals = verdict::read_all(recorder).await?;
        for node in 1..=NODES {
            cluster.stop(node);
        }
        let data: Vec<_> = (1..=NODES).map(|node| cluster.data(node)).collect();
        verdict::read_replicas(&mut finals, &data)?;
        recorder.with(|history| {
            history.partitions = finals;
            Ok(checker::check(history))
        })
    }

    fn tell(
        self,
        recorder: &Recorder,
        faults: &Faults,
        cluster: &Cluster,
        problems: &[String],
        violations: &[Violation],
    ) {
        let tally = recorder.tally.borrow();
        let counts: Vec<String> =
            faults.counts().iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
        let pause = recorder.longest_pause(COMMIT);
        let pause = pause.map_or("none".to_owned(), |pause| {
            let (length, until) = (pause.length.as_secs_f64(), pause.until.as_secs_f64());
            format!("{length:.1} s, up to {until:.1} s ({COMMIT}/{})", pause.partition)
        });
        eprintln!(
            "seed {}: {} faults: {}",
            self.seed,
            faults.counts().values().sum::<u32>(),
            counts.join(", ")
        );
        eprintln!(
            "  {} records acked, {} refused, {} unknown, {} read; {} requests to nodes that did not lead turned \
             away; {} changes by the operator; longest time without an ack {pause}; per node at most {} MiB and {} \
             descriptors",
            tally.acked,
            tally.refused,
            tally.unknown,
            tally.read,
            tally.turned_away,
            tally.changes,
            cluster.resources.memory_bytes >> 20,
            cluster.resources.descriptors,
        );
        eprintln!("  {} violations, {} problems", violations.len(), problems.len());
        for violation in violations.iter().take(SHOWN_MAX) {
            eprintln!("  VIOLATION {violation}");
        }
        for problem in problems.iter().take(SHOWN_MAX) {
            eprintln!("  PROBLEM {problem}");
        }
    }
}
