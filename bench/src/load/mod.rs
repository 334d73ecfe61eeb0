//! What the load generators share: threads, the window that counts, the live line, whose CPU it was.
//!
//! Owns: the life of a run. One pinned thread for each generator core, each with its connections; nothing is shared
//! between them while they run but three counters for the live line and a flag that stops all when one fails.

pub(crate) mod connection;
pub(crate) mod event;
pub(crate) mod plan;
mod progress;
pub(crate) mod server_process;
mod tally;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

pub(crate) use plan::{ConnectionPlan, Schedule, Window, plan_connections};
pub(crate) use tally::{ErrorCount, Tally};

use crate::affinity::pin_to;
use crate::cpu::{ProcessCpu, StealProbe};
use crate::error::BenchResult;
use crate::latency::Percentiles;
use progress::Progress;

/// What all generators are told.
#[derive(Clone, Debug)]
pub(crate) struct LoadOptions {
    /// Cores for the generator's threads.
    pub(crate) cores: Vec<usize>,
    /// Time before the window that counts.
    pub(crate) warmup: Duration,
    /// The window that counts.
    pub(crate) duration: Duration,
    /// Poll the sockets instead of sleeping.
    pub(crate) spin: bool,
    /// The servers' processes, as far as they can be seen.
    pub(crate) server_pids: Vec<u32>,
}

/// Read by the live line, written by one thread.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Counters {
    pub(crate) bytes: AtomicU64,
    pub(crate) records: AtomicU64,
}

/// What a generator's thread sees of the run around it.
pub(crate) struct Run<'a> {
    /// When to do what.
    pub(crate) window: Window,
    /// Poll instead of sleeping.
    pub(crate) spin: bool,
    /// For the live line.
    pub(crate) counters: &'a Counters,
    stop: &'a AtomicBool,
}

impl Run<'_> {
    /// Whether another thread has failed.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// How long a thread may sleep that has to act at `next`; `None` means that only an answer wakes it, or the end.
    pub(crate) fn sleep(&self, now: Instant, next: Option<Instant>) -> Duration {
        if self.spin {
            return Duration::ZERO;
        }
        let end = if now < self.window.end { self.window.end } else { self.window.drained };
        // Short enough to notice that another thread has failed.
        let longest = Duration::from_millis(200);
        next.unwrap_or(end).min(end).saturating_duration_since(now).min(longest)
    }
}

/// The work of one generator thread.
pub(crate) trait Worker: Send {
    /// Makes load until the window has closed and what is in flight is answered.
    fn run(self, run: &Run<'_>) -> BenchResult<Tally>;
}

/// What a run yields.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LoadFigures {
    /// Length of the window that counts.
    pub(crate) seconds: f64,
    /// Requests answered in it.
    pub(crate) requests: u64,
    /// Records in them.
    pub(crate) records: u64,
    /// Bytes in them: record values for produce, record batches for fetch.
    pub(crate) bytes: u64,
    /// Millions of bytes a second.
    pub(crate) megabytes_per_second: f64,
    /// Records a second.
    pub(crate) records_per_second: f64,
    /// Requests a second.
    pub(crate) requests_per_second: f64,
    /// From the intended time of a request to its answer, of all requests intended within the window.
    pub(crate) latency: Percentiles,
    /// CPU that the servers used in the window, if their processes could be seen.
    pub(crate) server_cpu_seconds: Option<f64>,
    /// Millions of bytes for each of them.
    pub(crate) megabytes_per_server_cpu_second: Option<f64>,
    /// CPU that this generator used in the window.
    pub(crate) generator_cpu_seconds: f64,
    /// The same as a share of its cores: near 100 the figure shows the generator, not the server.
    pub(crate) generator_busy_percent: f64,
    /// Requests of an open loop that were due and never sent; their latencies count as if answered at the end.
    pub(crate) unsent: u64,
    /// Refusals by their code, with the first message of each.
    pub(crate) errors: Vec<ErrorCount>,
}

/// Runs one worker on each core (the i-th worker on the i-th core, round again), and waits for all.
pub(crate) fn drive<W: Worker>(workers: Vec<W>, options: &LoadOptions) -> BenchResult<(LoadFigures, f64)> {
    let stop = AtomicBool::new(false);
    let counters: Vec<Counters> = workers.iter().map(|_| Counters::default()).collect();
    let cores_used = workers.len().min(options.cores.len()).max(1);
    // Time for the threads to start.
    let window = Window::new(Instant::now() + Duration::from_millis(50), options.warmup, options.duration);
    let (tallies, usage) = thread::scope(|scope| {
        let threads: Vec<_> = workers
            .into_iter()
            .zip(&counters)
            .enumerate()
            .map(|(i, (worker, counters))| {
                let run = Run { window, spin: options.spin, counters, stop: &stop };
                let core = options.cores[i % options.cores.len()];
                scope.spawn(move || {
                    event::sharpen_timers();
                    let tally = pin_to(core).and_then(|()| worker.run(&run));
                    if tally.is_err() {
                        run.stop.store(true, Ordering::Relaxed);
                    }
                    tally
                })
            })
            .collect();
        let usage = watch(&window, &counters, options, || threads.iter().all(|t| t.is_finished()));
        let join = |thread: thread::ScopedJoinHandle<'_, BenchResult<Tally>>| {
            thread.join().expect("a thread of ours does not panic")
        };
        (threads.into_iter().map(join).collect::<Vec<_>>(), usage)
    });
    let mut total = Tally::default();
    for tally in tallies {
        total.add(tally?);
    }
    Ok((figures(&total, window.seconds(), &usage, cores_used), usage.steal_percent))
}

/// Who used how much CPU in the window.
struct Usage {
    server_seconds: Option<f64>,
    generator_seconds: f64,
    steal_percent: f64,
}

/// Shows the live line and reads the clocks of CPU at both edges of the window.
fn watch(window: &Window, counters: &[Counters], options: &LoadOptions, is_over: impl Fn() -> bool) -> Usage {
    let mut progress = Progress::new();
    let mut sleep_until = |until: Instant| {
        while Instant::now() < until && !is_over() {
            let left = until.saturating_duration_since(Instant::now());
            thread::sleep(left.min(Duration::from_millis(100)));
            progress.show(window, counters);
        }
    };
    sleep_until(window.measure);
    let own = ProcessCpu::start(std::process::id());
    let servers: Vec<ProcessCpu> =
        options.server_pids.iter().filter_map(|pid| ProcessCpu::start(*pid)).collect();
    let steal = StealProbe::start();
    sleep_until(window.end);
    let usage = Usage {
        // A process that has gone, or none at all: not known.
        server_seconds: servers
            .iter()
            .map(ProcessCpu::seconds)
            .sum::<Option<f64>>()
            .filter(|_| !servers.is_empty()),
        generator_seconds: own.and_then(|cpu| cpu.seconds()).unwrap_or(0.0),
        steal_percent: steal.percent(),
    };
    sleep_until(window.drained);
    progress.clear();
    usage
}

fn figures(total: &Tally, seconds: f64, usage: &Usage, cores: usize) -> LoadFigures {
    let megabytes = total.bytes as f64 / 1e6;
    LoadFigures {
        seconds,
        requests: total.requests,
        records: total.records,
        bytes: total.bytes,
        megabytes_per_second: megabytes / seconds,
        records_per_second: total.records as f64 / seconds,
        requests_per_second: total.requests as f64 / seconds,
        latency: total.latencies.percentiles(),
        server_cpu_seconds: usage.server_seconds,
        megabytes_per_server_cpu_second: usage.server_seconds.filter(|s| *s > 0.0).map(|s| megabytes / s),
        generator_cpu_seconds: usage.generator_seconds,
        generator_busy_percent: 100.0 * usage.generator_seconds / (seconds * cores as f64),
        unsent: total.unsent,
        errors: total.errors(),
    }
}

/// Share of its cores above which the generator itself is the limit.
const GENERATOR_BUSY_PERCENT_MAX: f64 = 90.0;

impl LoadFigures {
    /// Lines for people; `bytes_are` says what was counted.
    pub(crate) fn table(&self, bytes_are: &str) -> String {
        let mut lines = vec![
            format!(
                "{:>10.1} MB/s of {bytes_are}   {:>10.0} records/s   {:>9.0} requests/s   over {:.1} s",
                self.megabytes_per_second, self.records_per_second, self.requests_per_second, self.seconds
            ),
            format!("{:>10} {} ms", "", Percentiles::HEAD),
            format!("{:>10} {}", "latency", self.latency.row()),
        ];
        lines.push(match (self.server_cpu_seconds, self.megabytes_per_server_cpu_second) {
            (Some(seconds), Some(megabytes)) => {
                format!("server CPU {seconds:.2} s, {megabytes:.0} MB per CPU-second")
            }
            (Some(seconds), None) => format!("server CPU {seconds:.2} s"),
            (None, _) => "server CPU unknown (its process is not seen here; give --server-pid)".to_owned(),
        });
        let busy = self.generator_busy_percent;
        lines.push(format!(
            "generator CPU {:.2} s, {busy:.0} % of its cores{}",
            self.generator_cpu_seconds,
            if busy > GENERATOR_BUSY_PERCENT_MAX { ": THE GENERATOR IS THE LIMIT" } else { "" }
        ));
        if self.unsent > 0 {
            lines.push(format!(
                "BEHIND: {} requests were due and never sent; the server does not reach this rate, and the latencies \
                 are lower bounds",
                self.unsent
            ));
        }
        for error in &self.errors {
            lines.push(format!("ERRORS: {} x {}: {}", error.count, error.code, error.first_message));
        }
        lines.join("\n")
    }
}
