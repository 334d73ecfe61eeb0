//! Load generators and raw floors: measures a server, or what the machine below it can do.
//!
//! Owns: `corelog bench` whole (arguments, runs, reports); the command line of the server only delegates here.
//! Invariant: latency is counted from the *intended* time of a request, and a figure is printed beside the
//! generator's own CPU and the machine's stolen time, so that a reader can tell whose limit it shows.
//! Not here: the client library. The generators speak the native protocol with prebuilt batches, so that they
//! are never the limit; whoever wants to know what a real client reaches runs one.

mod affinity;
mod args;
mod cpu;
mod engine;
mod environment;
mod error;
mod fetch;
pub mod floor;
mod kafka;
mod latency;
mod load;
mod produce;
mod repeat;
mod report;
mod target;
mod units;
mod wire;

pub use args::{BenchArgs, run};
pub use cpu::{ProcessCpu, StealProbe};
pub use environment::Environment;
pub use error::BenchError;
pub use latency::{Latencies, Percentiles};

#[cfg(test)]
mod tests {
    /// A temporary directory beside the test's binary: on a real disk, as `/tmp` may not be, and not among the sources.
    pub(crate) fn dir_on_disk() -> tempfile::TempDir {
        let binary = std::env::current_exe().expect("a test knows its binary");
        tempfile::tempdir_in(binary.parent().expect("it lies in a directory")).expect("a temporary directory")
    }
}
