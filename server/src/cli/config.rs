//! `corelog config check|print|reference`: looks at the configuration without starting a node.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::output::Output;
use super::{CliError, CliResult};
use crate::config::{self, ConfigError, Origin, Problem, Sources};

/// The advice beside every problem.
const ADVICE: &str = "`corelog config reference` lists every key with its range and default";

/// Examples of the group.
pub const EXAMPLES: &str = "\
Examples:
  corelog config check corelog.toml
  corelog config print corelog.toml
  corelog config reference | less";

/// What to do with the configuration.
#[derive(Debug, clap::Subcommand)]
pub enum ConfigCommand {
    /// Check a file: unknown keys, ranges, contradictions; all of them at once.
    #[command(after_help = "Example:\n  corelog config check corelog.toml --json")]
    Check {
        /// Configuration file (TOML).
        file: PathBuf,
        /// Print JSON: the problems with their places.
        #[arg(long)]
        json: bool,
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
        ConfigCommand::Check { file, json: true } => return check_json(file, &mut out),
        ConfigCommand::Check { file, json: false } => {
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
    config::load(&Sources::from_process(file)).map_err(|error| CliError::usage(error).advise(ADVICE))
}

fn check_json(file: PathBuf, out: &mut Output) -> CliResult {
    let place = file.display().to_string();
    let problems = match config::load(&Sources::from_process(Some(file))) {
        Ok(_) => Vec::new(),
        Err(ConfigError::Problems(problems)) => problems.iter().map(problem_json).collect(),
        Err(error @ ConfigError::Unreadable { .. }) => {
            vec![json!({ "place": place, "line": null, "problem": error.to_string(), "advice": null })]
        }
    };
    out.json(&json!({ "file": place, "problems": problems }))?;
    out.flush()?;
    match problems.len() {
        0 => Ok(()),
        1 => Err(CliError::usage("1 problem in the configuration").advise(ADVICE)),
        count => Err(CliError::usage(format!("{count} problems in the configuration")).advise(ADVICE)),
    }
}

fn problem_json(problem: &Problem) -> Value {
    let line = match problem.origin {
        Origin::File { line, .. } => Some(line),
        Origin::Default | Origin::Environment(_) | Origin::Flag(_) => None,
    };
    let (text, advice) = problem.text_and_advice();
    json!({ "place": problem.origin.to_string(), "line": line, "problem": text, "advice": advice })
}
