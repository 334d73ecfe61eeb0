//! `corelog config check|print|reference`: looks at the configuration without starting a node.

use std::io::Write;
use std::path::PathBuf;

use super::{CliError, CliResult};
use crate::config::{self, Config, Sources};

/// What to do with the configuration.
#[derive(Debug, clap::Subcommand)]
pub enum ConfigCommand {
    /// Check a file: unknown keys, ranges, contradictions; all of them at once.
    #[command(after_help = "Example:\n  corelog config check corelog.toml")]
    Check {
        /// Configuration file (TOML).
        file: PathBuf,
    },
    /// Print the configuration that a node would run with: defaults, file and environment joined.
    #[command(after_help = "Example:\n  corelog config print corelog.toml --json")]
    Print {
        /// Configuration file (TOML); without it, the defaults.
        file: Option<PathBuf>,
        /// Print JSON instead of TOML.
        #[arg(long)]
        json: bool,
    },
    /// Print every key with its default, unit, range and when to change it.
    #[command(after_help = "Example:\n  corelog config reference | less")]
    Reference,
}

/// Runs one of the config commands.
pub fn run(command: ConfigCommand) -> CliResult {
    let text = match command {
        ConfigCommand::Check { file } => {
            load(Some(file.clone()))?;
            format!("{}: no problems found\n", file.display())
        }
        ConfigCommand::Print { file, json: false } => config::to_toml(&load(file)?),
        ConfigCommand::Print { file, json: true } => format!("{:#}\n", config::to_json(&load(file)?)),
        ConfigCommand::Reference => config::reference(),
    };
    std::io::stdout().lock().write_all(text.as_bytes()).map_err(CliError::output)
}

fn load(file: Option<PathBuf>) -> CliResult<Config> {
    config::load(&Sources::from_process(file)).map_err(CliError::usage)
}
