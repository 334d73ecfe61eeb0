//! `corelog config check|print|reference`: looks at the configuration without starting a node.

use std::path::PathBuf;

use super::output::Output;
use super::{CliError, CliResult};
use crate::config::{self, Sources};

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
    let mut out = Output::stdout();
    match command {
        ConfigCommand::Check { file } => {
            load(Some(file.clone()))?;
            out.line(format!("{}: no problems", file.display()))?;
        }
        ConfigCommand::Print { file, json } => {
            let config = load(file)?;
            if json {
                out.json(&config::to_json(&config))?
            } else {
                out.line(config::to_toml(&config).trim_end())?
            }
        }
        ConfigCommand::Reference => out.line(config::reference().trim_end())?,
    }
    out.flush()
}

fn load(file: Option<PathBuf>) -> CliResult<config::Config> {
    config::load(&Sources::from_process(file)).map_err(|error| {
        CliError::usage(error).advise("`corelog config reference` lists every key with its range and default")
    })
}
