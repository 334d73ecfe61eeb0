//! `corelog node describe`: shards, load and disks of a node.

use corelog_schemas::messages::DescribeNodeResponse;
use serde_json::{Value, json};

use super::CliResult;
use super::connect::{ServerArgs, block_on, request_error};
use super::output::{Output, bytes_text, count_text};

/// `corelog node ...`
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  corelog node describe --server 127.0.0.1:9700")]
pub struct NodeArgs {
    #[command(subcommand)]
    command: NodeCommand,
    #[command(flatten)]
    server: ServerArgs,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum NodeCommand {
    /// Show the shards, load and disks of the node at --server.
    #[command(after_help = "Example:\n  corelog node describe --server 127.0.0.1:9700")]
    Describe,
}

/// Runs one of the node commands.
pub fn run(args: NodeArgs) -> CliResult {
    let NodeCommand::Describe = args.command;
    block_on(async move {
        let admin = args.server.connect("node").await?.admin();
        let node = admin.describe_node().await;
        let node = node.map_err(|error| request_error("cannot describe the node", &error))?;
        let mut out = Output::stdout();
        if args.json {
            out.json(&node_json(&node))?
        } else {
            print_node(&node, &mut out)?
        }
        out.flush()
    })
}

fn node_json(node: &DescribeNodeResponse) -> Value {
    let shards: Vec<Value> = node
        .shards
        .iter()
        .map(|s| {
            json!({
                "shard": s.shard, "core": s.core, "host": s.host, "port": s.port,
                "partitions": s.partitions, "connections": s.connections,
                "buffer_bytes": s.buffer_bytes, "buffer_bytes_max": s.buffer_bytes_max,
                "produce_bytes": s.produce_bytes, "fetch_bytes": s.fetch_bytes, "requests": s.requests,
            })
        })
        .collect();
    let data_dirs: Vec<Value> = node
        .data_dirs
        .iter()
        .map(|d| {
            json!({
                "path": d.path, "total_bytes": d.total_bytes, "free_bytes": d.free_bytes,
                "partitions": d.partitions, "error": d.state.as_ref().err().map(ToString::to_string),
            })
        })
        .collect();
    json!({
        "node": node.node, "cluster_id": node.cluster_id, "software": node.software,
        "started_ms": node.started_ms, "metadata_version": node.metadata_version,
        "shards": shards, "data_dirs": data_dirs,
    })
}

fn print_node(node: &DescribeNodeResponse, out: &mut Output) -> CliResult {
    out.line(format!("node {}  cluster {}  {}", node.node, node.cluster_id, node.software))?;
    let heads = [
        "SHARD",
        "CORE",
        "ADDRESS",
        "PARTITIONS",
        "CONNECTIONS",
        "BUFFERS",
        "OF",
        "PRODUCED",
        "FETCHED",
        "REQUESTS",
    ];
    let rows: Vec<Vec<String>> = node
        .shards
        .iter()
        .map(|s| {
            vec![
                s.shard.to_string(),
                s.core.to_string(),
                format!("{}:{}", s.host, s.port),
                s.partitions.to_string(),
                s.connections.to_string(),
                bytes_text(s.buffer_bytes),
                bytes_text(s.buffer_bytes_max),
                bytes_text(s.produce_bytes),
                bytes_text(s.fetch_bytes),
                count_text(s.requests),
            ]
        })
        .collect();
    out.table(&heads, &rows)?;
    out.line("")?;
    let rows: Vec<Vec<String>> = node
        .data_dirs
        .iter()
        .map(|d| {
            let state = d.state.as_ref().err().map_or_else(|| "ok".to_owned(), ToString::to_string);
            let sizes = [bytes_text(d.free_bytes), bytes_text(d.total_bytes)];
            let [free, total] = sizes;
            vec![d.path.clone(), free, total, d.partitions.to_string(), state]
        })
        .collect();
    out.table(&["DATA DIRECTORY", "FREE", "OF", "PARTITIONS", "STATE"], &rows)
}
