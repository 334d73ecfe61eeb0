//! The command line: parses, picks the verb, maps its result to an exit code.
//!
//! Owns: the verbs and the flags they share. One file per verb. Not here: exit codes (`exit.rs`).
//! Output: results go to standard output, for people by default and as JSON with `--json`; progress, advice and
//! errors go to standard error, so that a pipe carries results alone.

pub mod bench;
pub mod cluster;
pub mod completions;
pub mod config;
pub mod connect;
pub mod consume;
pub mod demo;
pub mod exit;
pub mod input;
pub mod inspect;
pub mod node;
pub mod output;
pub mod produce;
pub mod record_json;
pub mod replica;
pub mod serve;
pub mod topic;
pub mod when;

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
    /// Send lines, key-separated lines or JSON records to a topic.
    Produce(produce::ProduceArgs),
    /// Print the records of a topic.
    Consume(consume::ConsumeArgs),
    /// Show a node: shards, load, disks.
    Node(node::NodeArgs),
    /// Show the cluster; drain a node, rebalance leaders.
    Cluster(cluster::ClusterArgs),
    /// Add and remove replicas of a partition.
    Replica(replica::ReplicaArgs),
    /// Look at segment files, logs and data directories without a server.
    Inspect(inspect::InspectArgs),
    /// Check, print or document the configuration.
    #[command(subcommand, after_help = config::EXAMPLES)]
    Config(config::ConfigCommand),
    /// Measure a server, or the floor below it.
    Bench(bench::BenchArgs),
    /// Watch a node take real data, be killed, and come back with all of it.
    Demo(demo::DemoArgs),
    /// Print the completion script of a shell.
    Completions(completions::CompletionsArgs),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Topic(args) => topic::run(args),
        Command::Produce(args) => produce::run(args),
        Command::Consume(args) => consume::run(args),
        Command::Node(args) => node::run(args),
        Command::Cluster(args) => cluster::run(args),
        Command::Replica(args) => replica::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Config(command) => config::run(command),
        Command::Bench(args) => bench::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Completions(args) => completions::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

/// Reads a separator: `\\t`, `\\n`, `\\r`, `\\0` and `\\\\` stand for what they stand for elsewhere.
fn separator(text: &str) -> Result<String, String> {
    let mut unescaped = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            unescaped.push(c);
            continue;
        }
        unescaped.push(match chars.next() {
            Some('t') => '\t',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('0') => '\0',
            Some('\\') => '\\',
            _ => return Err("after \\, expected t, n, r, 0 or \\".to_owned()),
        });
    }
    if unescaped.is_empty() { Err("must not be empty".to_owned()) } else { Ok(unescaped) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn separators_are_unescaped() {
        assert_eq!(separator("\\t"), Ok("\t".to_owned()));
        assert_eq!(separator("::"), Ok("::".to_owned()));
        assert_eq!(separator("a\\\\\\n"), Ok("a\\\n".to_owned()));
        assert!(separator("").is_err());
        assert!(separator("\\x").is_err());
    }

    #[test]
    fn every_command_has_an_example() {
        fn check(command: &clap::Command, path: &str) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{path} has no example");
            for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
                check(sub, &format!("{path} {}", sub.get_name()));
            }
        }
        for command in Cli::command().get_subcommands() {
            check(command, command.get_name());
        }
    }
}
