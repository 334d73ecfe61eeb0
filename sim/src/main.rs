//! `corelog-sim`: runs seeds of the simulated cluster, and prints one line for each that fails.
//!
//! Usage: `corelog-sim --seed N [--trace] [--seconds S] [--faults F]`, or `--seeds A..B [--jobs J]`; `--json` for machines.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

fn main() -> ExitCode {
    match corelog_sim::command::main(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(usage) => {
            eprintln!("{usage}");
            ExitCode::from(2)
        }
    }
}
