//! `corelog bench`: hands its arguments to the crate `bench`.

pub use corelog_bench::BenchArgs;
use corelog_bench::BenchError;

use super::{CliError, CliResult, Exit};

/// Runs a measurement.
pub fn run(args: BenchArgs) -> CliResult {
    corelog_bench::run(args).map_err(|error| {
        let exit = match error {
            BenchError::Usage(_) | BenchError::Cores(_) => Exit::Usage,
            BenchError::Unreachable { .. } => Exit::Unreachable,
            BenchError::Refused { .. } => Exit::Refused,
            BenchError::Io { .. }
            | BenchError::NotEnoughSpace { .. }
            | BenchError::Protocol { .. }
            | BenchError::Engine { .. } => Exit::Failure,
        };
        CliError::new(exit, error)
    })
}
