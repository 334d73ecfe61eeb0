//! `corelog serve`: the flags of a node. What runs it is `crate::serve`.

use std::path::PathBuf;

use super::{CliError, CliResult, Exit};
use crate::config::{self, Sources};
use crate::serve::{self, ServeError};

/// Flags of `corelog serve`; each one given overrides the configuration file.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    after_help = "Example:\n  corelog serve --data /var/lib/corelog --listen 127.0.0.1:9700 --cores 2,3"
)]
pub struct ServeArgs {
    /// Configuration file (TOML); without it, the defaults.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Data directory; give it once per disk.
    #[arg(long, value_name = "DIR")]
    pub data: Vec<PathBuf>,
    /// Address of shard 0; shard i listens on PORT + i. Port 0 picks a free range of ports and prints it.
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Number of this node in its cluster.
    #[arg(long, value_name = "NUMBER")]
    pub node_id: Option<String>,
    /// Servers of the ZooKeeper ensemble: this node is one of a cluster.
    #[arg(long, value_name = "HOST:PORT,..")]
    pub zookeeper: Option<String>,
    /// Address of shard 0 for the other nodes' replication streams; shard i listens on PORT + i.
    #[arg(long, value_name = "HOST:PORT")]
    pub replication_listen: Option<String>,
    /// Address of metrics and health.
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// Data cores, one shard each: a list such as 1,2 or 1-3.
    #[arg(long, value_name = "LIST")]
    pub cores: Option<String>,
}

/// Runs the node in the foreground.
pub fn run(args: ServeArgs) -> CliResult {
    let mut sources = Sources::from_process(args.config);
    if !args.data.is_empty() {
        let dirs: Vec<String> = args.data.iter().map(|dir| dir.display().to_string()).collect();
        sources = sources.flag("data.dirs", dirs, "--data");
    }
    let flags = [
        ("listen.address", args.listen, "--listen"),
        ("node.id", args.node_id, "--node-id"),
        ("zookeeper.connect", args.zookeeper, "--zookeeper"),
        ("replication.address", args.replication_listen, "--replication-listen"),
        ("http.address", args.http, "--http"),
        ("cores.data", args.cores, "--cores"),
    ];
    for (key, value, flag) in flags {
        if let Some(value) = value {
            sources = sources.flag(key, value, flag);
        }
    }
    let config = config::load(&sources).map_err(|error| {
        CliError::usage(error).advise("`corelog config reference` lists every key with its range and default")
    })?;
    serve::run(config).map_err(|error| match error {
        ServeError::Host(_) | ServeError::Listen { .. } => CliError::usage(error),
        ServeError::Start(_) | ServeError::Shard(_) | ServeError::Control(_) | ServeError::Unclean => {
            CliError::new(Exit::Failure, error)
        }
    })
}
