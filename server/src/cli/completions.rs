//! `corelog completions`: prints the completion script of a shell.

use std::io::Write;

use clap::CommandFactory;

use super::{Cli, CliError, CliResult};

/// Arguments of `corelog completions`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  corelog completions bash > ~/.local/share/bash-completion/completions/corelog"
)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// Prints the script.
pub fn run(args: CompletionsArgs) -> CliResult {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "corelog", &mut script);
    std::io::stdout().lock().write_all(&script).map_err(CliError::output)
}
