//! `corelog bench`: hands its arguments to the crate `bench`.

use std::ffi::OsString;

use super::{CliError, CliResult, Exit};

/// Arguments of `corelog bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// The measurement and its flags.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub arguments: Vec<OsString>,
}

/// Runs a measurement.
pub fn run(args: BenchArgs) -> CliResult {
    let _ = args;
    Err(CliError::new(Exit::Failure, "this build has no bench yet"))
}
