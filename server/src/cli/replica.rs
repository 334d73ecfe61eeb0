//! `corelog replica`: add and remove replicas of a partition, online.

use std::time::{Duration, Instant};

use corelog_client::admin::Admin;
use corelog_schemas::messages::ReplicaDescription;
use serde_json::json;

use super::cluster::lag_text;
use super::connect::{ServerArgs, block_on, refused, request_error};
use super::output::{Output, Progress};
use super::{CliError, CliResult, Exit};

/// How often a command that waits looks again.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// `corelog replica ...`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  corelog replica add orders 3 4 --wait && corelog replica remove orders 3 2
  corelog replica add orders 3")]
pub struct ReplicaArgs {
    #[command(subcommand)]
    command: ReplicaCommand,
    #[command(flatten)]
    server: ServerArgs,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum ReplicaCommand {
    /// Give a partition another replica; it copies everything, and then stays in sync.
    #[command(after_help = "Example:\n  corelog replica add orders 3 4 --wait")]
    Add {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// Which node gets it; the one with the fewest replicas if not given.
        node: Option<u32>,
        /// Return once it is in sync; shows what it still lacks.
        #[arg(long)]
        wait: bool,
        /// How long to wait; 0: for ever.
        #[arg(long, value_name = "MS", default_value_t = 0)]
        timeout_ms: u64,
    },
    /// Take the replica that a node has of a partition away, with its data.
    #[command(after_help = "Example:\n  corelog replica remove orders 3 2")]
    Remove {
        /// The topic.
        topic: String,
        /// The partition.
        partition: u32,
        /// Whose replica.
        node: u32,
    },
}

/// Runs one of the replica commands.
pub fn run(args: ReplicaArgs) -> CliResult {
    block_on(async move {
        let admin = args.server.connect("replica").await?.admin();
        let mut out = Output::stdout();
        match args.command {
            ReplicaCommand::Add { topic, partition, node, wait, timeout_ms } => {
                let limit = wait.then(|| (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms)));
                add(&admin, &topic, partition, node, limit, args.json, &mut out).await?;
            }
            ReplicaCommand::Remove { topic, partition, node } => {
                remove(&admin, &topic, partition, node, args.json, &mut out).await?;
            }
        }
        out.flush()
    })
}

async fn add(
    admin: &Admin,
    topic: &str,
    partition: u32,
    node: Option<u32>,
    wait: Option<Option<Duration>>,
    json: bool,
    out: &mut Output,
) -> CliResult {
    let what = format!("cannot add a replica of {topic}/{partition}");
    let added = admin.add_replica(topic, partition, node).await;
    let added = added.map_err(|error| request_error(&what, &error))?;
    let node = added.node.or(node);
    let in_sync = match (wait, node) {
        (Some(limit), Some(node)) => wait_until_in_sync(admin, topic, partition, node, limit).await?,
        _ => false,
    };
    if json {
        return out
            .json(&json!({ "topic": topic, "partition": partition, "node": node, "in_sync": in_sync }));
    }
    let on = node.map_or_else(String::new, |node| format!(" on node {node}"));
    if in_sync {
        out.line(format!("{topic}/{partition} has a replica in sync{on}"))
    } else {
        out.line(format!(
            "{topic}/{partition} gets a replica{on}; `corelog topic describe {topic}` shows how far it is"
        ))
    }
}

/// Waits until the replica of a node is in sync.
async fn wait_until_in_sync(
    admin: &Admin,
    topic: &str,
    partition: u32,
    node: u32,
    limit: Option<Duration>,
) -> CliResult<bool> {
    let started = Instant::now();
    let mut progress = Progress::new(true);
    let mut lacks = "not following yet".to_owned();
    loop {
        if let Some(replica) = find(admin, topic, partition, node).await? {
            if replica.in_sync {
                return Ok(true);
            }
            lacks = lag_text(&replica);
        }
        if limit.is_some_and(|limit| started.elapsed() >= limit) {
            let message =
                format!("the replica of {topic}/{partition} on node {node} is not in sync yet: {lacks}");
            return Err(CliError::new(Exit::Failure, message)
                .advise(format!("it goes on; `corelog topic describe {topic}` shows how far it is")));
        }
        progress.tick(|| format!("{topic}/{partition} on node {node} lacks: {lacks}"));
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn find(
    admin: &Admin,
    topic: &str,
    partition: u32,
    node: u32,
) -> CliResult<Option<ReplicaDescription>> {
    let what = format!("cannot describe topic {topic}");
    let described = admin.describe_topics(&[topic]).await.map_err(|error| request_error(&what, &error))?;
    let described = described.into_iter().next().transpose().map_err(|failure| refused(&what, &failure))?;
    let partitions = described.into_iter().flat_map(|topic| topic.partitions);
    let replicas = partitions.filter(|found| found.partition == partition).flat_map(|found| found.replicas);
    Ok(replicas.into_iter().find(|replica| replica.node == node))
}

async fn remove(
    admin: &Admin,
    topic: &str,
    partition: u32,
    node: u32,
    json: bool,
    out: &mut Output,
) -> CliResult {
    let what = format!("cannot remove the replica of {topic}/{partition} on node {node}");
    admin.remove_replica(topic, partition, node).await.map_err(|error| request_error(&what, &error))?;
    if json {
        let report = json!({ "topic": topic, "partition": partition, "node": node, "result": "removed" });
        return out.json(&report);
    }
    out.line(format!("{topic}/{partition} has no replica on node {node} any more; the node deletes the data"))
}
