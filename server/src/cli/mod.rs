//! The command line: parses, picks the verb, maps its result to an exit code.
//!
//! Owns: the verbs and the flags they share. One file per verb. Not here: exit codes (`exit.rs`).
//! Output: results go to standard output, for people by default and as JSON with `--json`; progress, advice and
//! errors go to standard error, so that a pipe carries results alone.

pub mod bench;
pub mod completions;
pub mod config;
pub mod connect;
pub mod exit;
pub mod node;
pub mod output;
pub mod serve;
pub mod topic;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use exit::{CliError, CliResult, Exit};

/// A partitioned log for Linux servers: one shard per core, direct I/O, record batches of Kafka.
#[derive(Debug, Parser)]
#[command(name = "corelog", version, after_help = exit::EXIT_CODES_HELP, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node until SIGTERM or Ctrl-C.
    Serve(serve::ServeArgs),
    /// Create, list, show, change and delete topics.
    Topic(topic::TopicArgs),
    /// Show a node: shards, load, disks.
    Node(node::NodeArgs),
    /// Check, print or document the configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Measure a server, or the floor below it.
    Bench(bench::BenchArgs),
    /// Print the completion script of a shell.
    Completions(completions::CompletionsArgs),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Topic(args) => topic::run(args),
        Command::Node(args) => node::run(args),
        Command::Config(command) => config::run(command),
        Command::Bench(args) => bench::run(args),
        Command::Completions(args) => completions::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
