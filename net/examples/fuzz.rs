//! Looks for bytes that break a decoder: `cargo run -p corelog-net --example fuzz -- --seconds 60 [--seed N] [--target NAME]`.
//!
//! A case that panics is written to `net/fuzz/corpus` before the process dies; commit it with the repair.

#[path = "../fuzz/mod.rs"]
mod fuzz;

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use fuzz::memory::CountingAllocator;
use fuzz::mutate::{Random, mutate};
use fuzz::{TARGETS, Target, corpus, corpus_dir};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The case that is running: what the panic hook saves.
static CURRENT: Mutex<(&str, Vec<u8>)> = Mutex::new(("", Vec::new()));

/// A case that takes longer is reported like a panic: a decoder that can be made slow is a fault too.
const CASE_TIME_MAX: Duration = Duration::from_secs(2);

struct Arguments {
    seconds: u64,
    seed: u64,
    target: Option<String>,
}

fn arguments() -> Result<Arguments, String> {
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
    let mut parsed = Arguments { seconds: 60, seed, target: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let number = |text: String| text.parse().map_err(|_| format!("{text} is not a number"));
        match word.as_str() {
            "--seconds" => parsed.seconds = number(value()?)?,
            "--seed" => parsed.seed = number(value()?)?,
            "--target" => parsed.target = Some(value()?),
            _ => return Err(format!("{word} is unknown; there are --seconds N, --seed N, --target NAME")),
        }
    }
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    match &parsed.target {
        Some(name) if !names.contains(&name.as_str()) => {
            Err(format!("no target {name}; there are {}", names.join(", ")))
        }
        _ => Ok(parsed),
    }
}

fn save_case() {
    let Ok(current) = CURRENT.lock() else { return };
    let (target, case) = &*current;
    let path = corpus_dir().join(format!("{target}-found-{:08x}.bin", checksum(case)));
    match std::fs::write(&path, case) {
        Ok(()) => eprintln!("the case is in {}; mend the fault and commit it", path.display()),
        Err(error) => eprintln!("the case could not be written to {}: {error}", path.display()),
    }
}

/// Tells cases apart by name.
fn checksum(case: &[u8]) -> u32 {
    case.iter().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

fn fuzz_for(target: &'static Target, time: Duration, random: &mut Random) -> u64 {
    let found: Vec<Vec<u8>> = corpus(target.name).into_iter().map(|(_, case)| case).collect();
    let seeds = [(target.seeds)(), found].concat();
    let started = Instant::now();
    let mut cases = 0;
    while started.elapsed() < time {
        let mut case = seeds[random.below(seeds.len())].clone();
        let other = &seeds[random.below(seeds.len())];
        mutate(&mut case, other, random);
        *CURRENT.lock().expect("one thread") = (target.name, case.clone());
        let case_started = Instant::now();
        (target.run)(&case);
        assert!(
            case_started.elapsed() < CASE_TIME_MAX,
            "{}: a case took {:?}",
            target.name,
            case_started.elapsed()
        );
        cases += 1;
    }
    cases
}

fn main() {
    let arguments = arguments().unwrap_or_else(|message| {
        eprintln!("fuzz: {message}");
        std::process::exit(2);
    });
    let said = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        said(info);
        save_case();
    }));
    let targets: Vec<&Target> =
        TARGETS.iter().filter(|t| arguments.target.as_ref().is_none_or(|name| name == t.name)).collect();
    println!("seed {}", arguments.seed);
    let time = Duration::from_secs(arguments.seconds) / targets.len() as u32;
    let mut random = Random(arguments.seed);
    for target in targets {
        let cases = fuzz_for(target, time, &mut random);
        println!("{}: {cases} cases passed", target.name);
    }
}
