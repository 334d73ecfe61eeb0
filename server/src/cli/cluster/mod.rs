//! `corelog cluster`: status, drain, rebalance, forget.
//!
//! Owns: the verbs and their waiting. What a status looks like is in `status.rs`.

mod status;

pub(super) use status::lag_text;

use std::time::{Duration, Instant};

use corelog_client::RequestError;
use corelog_client::admin::Admin;
use corelog_schemas::messages::{ClusterNode, DescribeClusterResponse, ElectionKind, ElectionResult};
use serde_json::json;

use super::connect::{ServerArgs, block_on, request_error};
use super::output::{Output, Progress, counted};
use super::{CliError, CliResult, Exit};

/// How often a command that waits looks again.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// `corelog cluster ...`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  corelog cluster status --watch
  corelog cluster drain 2
  corelog cluster rebalance")]
pub struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
    #[command(flatten)]
    server: ServerArgs,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum ClusterCommand {
    /// Show the nodes, who leads, and which partitions are not well.
    #[command(after_help = "\
Examples:
  corelog cluster status
  corelog cluster status --watch
  corelog cluster status --check --json    exit code 1 unless every replica is in sync and every node runs")]
    Status {
        /// Show it again and again until Ctrl-C.
        #[arg(long, short)]
        watch: bool,
        /// How often, with --watch.
        #[arg(long, value_name = "MS", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(100..))]
        interval_ms: u64,
        /// End with exit code 1 if a node is gone, or a partition has no leader or lacks a replica in sync.
        #[arg(long, conflicts_with = "watch")]
        check: bool,
        /// Most partitions to list of those that are not well.
        #[arg(long, value_name = "N", default_value_t = 50)]
        partitions_max: u32,
    },
    /// Take leadership off a node before maintenance, and wait until it leads nothing.
    #[command(after_help = "\
Examples:
  corelog cluster drain 2 && systemctl restart corelog   on node 2
  corelog cluster drain 2 --undo")]
    Drain {
        /// Its number.
        node: u32,
        /// Let it lead again; `cluster rebalance` gives it its leaderships back at once.
        #[arg(long)]
        undo: bool,
        /// Return at once; the work goes on.
        #[arg(long)]
        no_wait: bool,
        /// How long to wait.
        #[arg(long, value_name = "MS", default_value_t = 60_000)]
        timeout_ms: u64,
    },
    /// Let every partition be led by its preferred replica, now rather than in a while.
    #[command(after_help = "Example:\n  corelog cluster rebalance")]
    Rebalance,
    /// Forget a node that is gone for good and has no replicas.
    #[command(after_help = "Example:\n  corelog cluster forget 3")]
    Forget {
        /// Its number.
        node: u32,
    },
}

/// Runs one of the cluster commands.
pub fn run(args: ClusterArgs) -> CliResult {
    block_on(async move {
        let admin = args.server.connect("cluster").await?.admin();
        let mut out = Output::stdout();
        match args.command {
            ClusterCommand::Status { watch, interval_ms, check, partitions_max } => {
                let interval = watch.then(|| Duration::from_millis(interval_ms));
                status::run(&admin, interval, check, partitions_max, args.json, &mut out).await?;
            }
            ClusterCommand::Drain { node, undo, no_wait, timeout_ms } => {
                let wait = (!undo && !no_wait).then(|| Duration::from_millis(timeout_ms));
                drain(&admin, node, !undo, wait, args.json, &mut out).await?;
            }
            ClusterCommand::Rebalance => rebalance(&admin, args.json, &mut out).await?,
            ClusterCommand::Forget { node } => forget(&admin, node, args.json, &mut out).await?,
        }
        out.flush()
    })
}

/// The picture, without the partitions.
async fn look(admin: &Admin, what: &str) -> CliResult<DescribeClusterResponse> {
    admin.describe_cluster(0).await.map_err(|error| request_error(what, &error))
}

fn find(cluster: &DescribeClusterResponse, node: u32) -> Option<&ClusterNode> {
    cluster.nodes.iter().find(|known| known.node == node)
}

async fn drain(
    admin: &Admin,
    node: u32,
    is_drained: bool,
    wait: Option<Duration>,
    json: bool,
    out: &mut Output,
) -> CliResult {
    let what = if is_drained { "cannot drain the node" } else { "cannot take the node into service" };
    let change = admin.drain_node(node, is_drained).await.map_err(|error| request_error(what, &error))?;
    let leaders = match wait {
        Some(limit) => Some(wait_for_no_leaders(admin, node, limit).await?),
        None => None,
    };
    if json {
        let leaders = leaders.unwrap_or_default();
        let report = json!({
            "node": node, "is_drained": is_drained, "was_so": change.is_unchanged, "leaders_left": leaders,
        });
        out.json(&report)?;
    } else if !is_drained {
        out.line(format!(
            "node {node} may lead again; `corelog cluster rebalance` gives it its partitions now"
        ))?;
    } else if leaders == Some(0) {
        out.line(format!("node {node} leads nothing: it can be stopped"))?;
    } else if leaders.is_none() {
        out.line(format!("node {node} is being drained; `corelog cluster status` shows how far it is"))?;
    }
    match leaders {
        Some(left) if left > 0 => {
            let message = format!("node {node} still leads {}", counted(left.into(), "partition"));
            let advice = "no other replica of them is in sync: `corelog cluster status` shows which; wait for the \
                          replicas, or add some";
            Err(CliError::new(Exit::Failure, message).advise(advice))
        }
        _ => Ok(()),
    }
}

/// Waits until a node leads nothing; returns what it still leads when the time is up.
async fn wait_for_no_leaders(admin: &Admin, node: u32, limit: Duration) -> CliResult<u32> {
    let started = Instant::now();
    let mut progress = Progress::new(true);
    loop {
        let cluster = look(admin, "cannot see how far it is").await?;
        let left = find(&cluster, node).map_or(0, |node| node.leaders);
        if left == 0 || started.elapsed() >= limit {
            return Ok(left);
        }
        progress.tick(|| format!("node {node} still leads {}", counted(left.into(), "partition")));
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn rebalance(admin: &Admin, json: bool, out: &mut Output) -> CliResult {
    let elected = admin.elect_leaders(ElectionKind::Preferred, Vec::new()).await;
    let elected = elected.map_err(|error| request_error("cannot rebalance", &error))?;
    let moved = elected.iter().filter(|result| result.failure.is_none() && !result.is_unchanged).count();
    let refused: Vec<&ElectionResult> = elected.iter().filter(|result| result.failure.is_some()).collect();
    if json {
        let rows = elected.iter().map(election_json).collect::<Vec<_>>();
        out.json(&json!({ "moved": moved, "refused": refused.len(), "partitions": rows }))?;
    } else {
        out.line(format!("{} moved to the preferred leader", counted(moved as u64, "partition")))?;
        for result in &refused {
            let reason = result.failure.as_ref().map(|failure| failure.message.as_str()).unwrap_or_default();
            out.line(format!("{}/{} stays: {reason}", result.topic, result.partition))?;
        }
    }
    if refused.is_empty() {
        return Ok(());
    }
    let message = format!("{} could not be moved", counted(refused.len() as u64, "partition"));
    Err(CliError::new(Exit::Refused, message))
}

/// One result of an election.
pub fn election_json(result: &ElectionResult) -> serde_json::Value {
    json!({
        "topic": result.topic,
        "partition": result.partition,
        "leader_node": result.leader_node,
        "was_so": result.is_unchanged,
        "error": result.failure.as_ref().map(ToString::to_string),
    })
}

async fn forget(admin: &Admin, node: u32, json: bool, out: &mut Output) -> CliResult {
    let forgotten: Result<_, RequestError> = admin.forget_node(node).await;
    forgotten.map_err(|error| request_error("cannot forget the node", &error))?;
    if json {
        return out.json(&json!({ "node": node, "result": "forgotten" }));
    }
    out.line(format!("node {node} is forgotten"))
}
