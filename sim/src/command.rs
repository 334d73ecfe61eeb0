//! The command line of `corelog-sim`: which seeds to run, on how many cores, and what to say about them.
//!
//! Owns: arguments, the worker processes, the report. Each worker runs its seeds one after the other; one that dies (a
//! broken assertion ends the process) is replaced, and the seed at which it died counts as failed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use corelog_replication::canary::{self, Canary};
use serde_json::{Value, json};

use crate::run::{Outcome, RunOptions, run};

const USAGE: &str = "usage: corelog-sim --seed N [--trace] | --seeds FROM..TO [--jobs J]
       [--seconds S] [--faults F] [--canary NAME] [--json]";

/// What was asked for.
#[derive(Clone, Debug)]
struct Arguments {
    from: u64,
    to: u64,
    jobs: usize,
    seconds: u64,
    faults: u64,
    trace: bool,
    json: bool,
    worker: bool,
    canary: Option<Canary>,
}

/// Runs what the arguments ask for. True: no seed failed.
///
/// Errors: the arguments make no sense; how they would.
pub fn main(arguments: &[String]) -> Result<bool, String> {
    let arguments = parse(arguments).ok_or(USAGE)?;
    canary::plant(arguments.canary);
    if arguments.trace {
        // What the code under test logs stands among the lines of the trace.
        let subscriber =
            tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(std::io::stdout);
        subscriber.with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG).init();
    }
    if arguments.worker {
        return Ok(work(&arguments));
    }
    if arguments.to - arguments.from == 1 {
        return Ok(run_one(&arguments));
    }
    run_many(&arguments)
}

fn parse(arguments: &[String]) -> Option<Arguments> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut parsed = Arguments {
        from: 0,
        to: 0,
        jobs,
        seconds: 60,
        faults: 20,
        trace: false,
        json: false,
        worker: false,
        canary: None,
    };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--trace" => parsed.trace = true,
            "--json" => parsed.json = true,
            "--worker" => parsed.worker = true,
            "--seed" => {
                parsed.from = words.next()?.parse().ok()?;
                parsed.to = parsed.from + 1;
            }
            "--seeds" => {
                let (from, to) = words.next()?.split_once("..")?;
                (parsed.from, parsed.to) = (from.parse().ok()?, to.parse().ok()?);
            }
            "--jobs" => parsed.jobs = words.next()?.parse().ok()?,
            "--seconds" => parsed.seconds = words.next()?.parse().ok()?,
            "--faults" => parsed.faults = words.next()?.parse().ok()?,
            "--canary" => parsed.canary = Some(canary_named(words.next()?)?),
            _ => return None,
        }
    }
    (parsed.from < parsed.to && parsed.jobs > 0).then_some(parsed)
}

fn canary_named(name: &str) -> Option<Canary> {
    Canary::ALL.into_iter().find(|canary| format!("{canary:?}") == name)
}

impl Arguments {
    fn options(&self, seed: u64) -> RunOptions {
        RunOptions {
            seed,
            seconds: self.seconds,
            faults: self.faults,
            trace: self.trace.then_some(print_line),
        }
    }

    /// The line that reproduces a seed.
    fn line(&self, seed: u64) -> String {
        let mut line = format!("cargo run --release -p corelog-sim -- --seed {seed}");
        let usual = RunOptions::new(seed);
        if self.seconds != usual.seconds {
            line += &format!(" --seconds {}", self.seconds);
        }
        if self.faults != usual.faults {
            line += &format!(" --faults {}", self.faults);
        }
        if let Some(canary) = self.canary {
            line += &format!(" --canary {canary:?}");
        }
        line
    }
}

fn print_line(line: &str) {
    println!("{line}");
}

fn run_one(arguments: &Arguments) -> bool {
    let began = Instant::now();
    let outcome = run(&arguments.options(arguments.from));
    if arguments.json {
        println!("{}", to_json(&outcome));
    } else {
        let simulated = outcome.simulated_us as f64 / 1e6;
        let (acks, hash, real) = (outcome.acks, outcome.trace_hash, began.elapsed().as_secs_f64());
        println!(
            "seed {}: {acks} acks in {simulated:.1} simulated seconds, {real:.2} s, trace {hash:016x}",
            outcome.seed
        );
        if let Some(healed_us) = outcome.healed_us {
            println!("all was well {:.1} s after the faults had ended", healed_us as f64 / 1e6);
        }
        for problem in &outcome.problems {
            println!("PROBLEM {problem}");
        }
    }
    if !outcome.problems.is_empty() {
        println!("FAILED {}", arguments.line(outcome.seed));
    }
    outcome.problems.is_empty()
}

fn to_json(outcome: &Outcome) -> Value {
    let faults: BTreeMap<String, u64> =
        outcome.faults.iter().map(|(trouble, count)| (format!("{trouble:?}"), *count)).collect();
    json!({
        "seed": outcome.seed,
        "trace_hash": format!("{:016x}", outcome.trace_hash),
        "problems": outcome.problems,
        "faults": faults,
        "acks": outcome.acks,
        "simulated_us": outcome.simulated_us,
        "healed_us": outcome.healed_us,
    })
}

fn work(arguments: &Arguments) -> bool {
    let mut all_well = true;
    for seed in arguments.from..arguments.to {
        println!("{}", json!({ "begins": seed }));
        let outcome = run(&arguments.options(seed));
        all_well &= outcome.problems.is_empty();
        println!("{}", to_json(&outcome));
    }
    all_well
}

/// Sums over many runs.
#[derive(Default)]
struct Sums {
    seeds: u64,
    acks: u64,
    simulated_us: u64,
    healed_us_max: u64,
    faults: BTreeMap<String, u64>,
    failed: BTreeMap<u64, Vec<String>>,
}

impl Sums {
    fn add(&mut self, outcome: &Value) {
        let number = |name: &str| outcome[name].as_u64().unwrap_or(0);
        self.seeds += 1;
        self.acks += number("acks");
        self.simulated_us += number("simulated_us");
        self.healed_us_max = self.healed_us_max.max(number("healed_us"));
        for (fault, count) in outcome["faults"].as_object().into_iter().flatten() {
            *self.faults.entry(fault.clone()).or_insert(0) += count.as_u64().unwrap_or(0);
        }
        let problems: Vec<String> = outcome["problems"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|p| p.as_str().unwrap_or("?").to_owned())
            .collect();
        if !problems.is_empty() {
            self.failed.insert(number("seed"), problems);
        }
    }
}

fn run_many(arguments: &Arguments) -> Result<bool, String> {
    let began = Instant::now();
    let (send, outcomes) = mpsc::channel();
    let total = arguments.to - arguments.from;
    let share = total.div_ceil(arguments.jobs as u64);
    let mut threads = Vec::new();
    for job in 0..arguments.jobs as u64 {
        let from = arguments.from + job * share;
        let mine = Arguments { from, to: arguments.to.min(from + share), ..arguments.clone() };
        let send = send.clone();
        threads.push(std::thread::spawn(move || supervise(&mine, &send)));
    }
    drop(send);
    let mut sums = Sums::default();
    for outcome in outcomes {
        sums.add(&outcome);
        if let Some(problems) = outcome["seed"].as_u64().and_then(|seed| sums.failed.get(&seed)) {
            let seed = outcome["seed"].as_u64().unwrap_or(0);
            println!("FAILED {}   # {}", arguments.line(seed), problems[0]);
        }
    }
    for thread in threads {
        thread.join().map_err(|_| "a supervisor died".to_owned())?.map_err(|error| error.to_string())?;
    }
    report(arguments, &sums, began.elapsed().as_secs_f64());
    Ok(sums.failed.is_empty())
}

fn report(arguments: &Arguments, sums: &Sums, real_s: f64) {
    let hours = sums.simulated_us as f64 / 3.6e9;
    let rate = sums.seeds as f64 * 60.0 / real_s;
    if arguments.json {
        let failed: Vec<u64> = sums.failed.keys().copied().collect();
        println!(
            "{}",
            json!({ "seeds": sums.seeds, "failed": failed, "seeds_per_minute": rate, "simulated_hours": hours,
                    "acks": sums.acks, "faults": sums.faults, "healed_us_max": sums.healed_us_max, "seconds": real_s })
        );
        return;
    }
    println!(
        "{} seeds, {} failed; {rate:.0} seeds a minute on {} processes; {hours:.1} simulated hours, {} acks; slowest to heal {:.1} s",
        sums.seeds,
        sums.failed.len(),
        arguments.jobs,
        sums.acks,
        sums.healed_us_max as f64 / 1e6
    );
    let faults: Vec<String> = sums.faults.iter().map(|(fault, count)| format!("{fault} {count}")).collect();
    println!("faults: {}", faults.join(", "));
}

/// Runs a worker over some seeds; where it dies, another one goes on behind.
fn supervise(arguments: &Arguments, send: &mpsc::Sender<Value>) -> std::io::Result<()> {
    let mut next = arguments.from;
    while next < arguments.to {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--worker", "--seeds", &format!("{next}..{}", arguments.to)]);
        command.args([
            "--seconds",
            &arguments.seconds.to_string(),
            "--faults",
            &arguments.faults.to_string(),
        ]);
        if let Some(canary) = arguments.canary {
            command.args(["--canary", &format!("{canary:?}")]);
        }
        let mut worker = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let said = worker.stderr.take().map(|stderr| std::thread::spawn(move || last_words(stderr)));
        let mut under_way = None;
        let lines = worker.stdout.take().into_iter().flat_map(|stdout| BufReader::new(stdout).lines());
        for line in lines {
            let Ok(value) = serde_json::from_str::<Value>(&line?) else { continue };
            match value["begins"].as_u64() {
                Some(seed) => under_way = Some(seed),
                None => {
                    next = value["seed"].as_u64().unwrap_or(next) + 1;
                    under_way = None;
                    // Nobody listens only if the supervisor of all is gone.
                    let _ = send.send(value);
                }
            }
        }
        worker.wait()?;
        let words = said.and_then(|thread| thread.join().ok()).unwrap_or_default();
        let Some(seed) = under_way else { continue };
        let _ = send.send(json!({ "seed": seed, "problems": [format!("the process died: {words}")] }));
        next = seed + 1;
    }
    Ok(())
}

/// What a worker that died has said: the panic's place and message.
fn last_words(stderr: impl std::io::Read) -> String {
    let lines: Vec<String> = BufReader::new(stderr).lines().map_while(Result::ok).collect();
    let at = lines.iter().position(|line| line.contains("panicked at")).unwrap_or(0);
    lines.iter().skip(at).take(3).cloned().collect::<Vec<_>>().join(" ")
}
