//! The configuration of a node: `corelog.toml`, `CORELOG_*` variables and flags, joined and checked.
//!
//! Owns: every setting. One table (`keys.rs`) holds name, range, default, meaning and advice; the reference in
//! `docs/configuration.md`, the checks and the printing are made from it.
//! Invariant: unknown keys and values out of range are errors, all reported together, each with its place.

pub mod check;
pub mod host;
pub mod keys;
mod load;
mod print;
pub mod source;
#[cfg(test)]
mod tests;
pub mod value;

use std::path::PathBuf;

pub use host::{HostError, HostPlan};
pub use load::{ConfigError, Sources, Values, load};
pub use print::{reference, to_json, to_toml};
pub use source::{Origin, Problem, nearest};
pub use value::HostPort;

use crate::control::options::TopicOptions;
use crate::control::snapshot::NodeId;

/// A complete configuration. See `docs/configuration.md` for what each setting does.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[node]`
    pub node: NodeConfig,
    /// `[listen]`
    pub listen: ListenConfig,
    /// `[zookeeper]`; `None`: this node is alone.
    pub zookeeper: Option<ZooKeeperConfig>,
    /// `[replication]`
    pub replication: ReplicationConfig,
    /// `[controller]`
    pub controller: ControllerConfig,
    /// `[http]`
    pub http: HttpConfig,
    /// `[data]`
    pub data: DataConfig,
    /// `[cores]`
    pub cores: CoresConfig,
    /// `memory.per_shard`; `None`: auto.
    pub memory_bytes_per_shard: Option<u64>,
    /// `[limits]`
    pub limits: LimitsConfig,
    /// `[topic]`
    pub topic: TopicConfig,
    /// `[tuning]`
    pub tuning: TuningConfig,
    /// `[log]`
    pub log: LogConfig,
    /// All of it by name, with the place where each value was set.
    pub values: Values,
}

/// Who this node is.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Number in the cluster.
    pub id: NodeId,
    /// Rack or zone.
    pub rack: String,
}

/// Where clients connect.
#[derive(Clone, Debug)]
pub struct ListenConfig {
    /// Address of shard 0.
    pub address: HostPort,
    /// What clients are told; `None`: the host of `address`.
    pub advertised_host: Option<String>,
    /// Whether other machines may reach it.
    pub insecure: bool,
}

impl ListenConfig {
    /// The host that clients are told.
    pub fn advertised_host(&self) -> &str {
        self.advertised_host.as_deref().unwrap_or(&self.address.host)
    }
}

/// The coordination service of a cluster.
#[derive(Clone, Debug)]
pub struct ZooKeeperConfig {
    /// `HOST:PORT,HOST:PORT`
    pub connect: String,
    /// The znode below which everything lies; begins with a slash.
    pub root: String,
    /// Session timeout that is asked for.
    pub session_timeout_ms: u64,
    /// Who this node is to the ensemble, if it is to know.
    pub auth: Option<ZooKeeperAuth>,
    /// Encryption, if wanted.
    pub tls: Option<ZooKeeperTls>,
}

/// How a node authenticates with ZooKeeper.
#[derive(Clone, Debug)]
pub struct ZooKeeperAuth {
    /// SASL DIGEST-MD5; otherwise ZooKeeper's own digest.
    pub is_sasl: bool,
    /// Who.
    pub user: String,
    /// File that holds the password.
    pub password_file: PathBuf,
}

/// How the connection to ZooKeeper is encrypted.
#[derive(Clone, Debug)]
pub struct ZooKeeperTls {
    /// Certificates that vouch for the ensemble.
    pub ca_file: PathBuf,
    /// This node's certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How replicas are kept in step.
#[derive(Clone, Debug)]
pub struct ReplicationConfig {
    /// Address of shard 0's streams.
    pub address: HostPort,
    /// What other nodes are told; `None`: the host of `address`.
    pub advertised_host: Option<String>,
    /// Whether other machines may reach it.
    pub insecure: bool,
    /// A connected follower leaves the ISR after so long behind.
    pub lag_max_ms: u64,
    /// A follower without a connection leaves the ISR after this.
    pub disconnect_max_ms: u64,
    /// Cold bytes sent to followers by one shard. `None`: no limit.
    pub catch_up_bytes_per_second: Option<u64>,
    /// Bytes that one shard scrubs; 0: none.
    pub scrub_bytes_per_second: u64,
}

impl ReplicationConfig {
    /// The host that other nodes are told.
    pub fn advertised_host(&self) -> &str {
        self.advertised_host.as_deref().unwrap_or(&self.address.host)
    }
}

/// How the cluster is kept in balance.
#[derive(Clone, Copy, Debug)]
pub struct ControllerConfig {
    /// How long a preferred replica is in sync before it leads again. `None`: only when asked.
    pub balance_delay_ms: Option<u64>,
}

/// Metrics and health.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Whether there is any.
    pub enabled: bool,
    /// Where.
    pub address: HostPort,
    /// Whether other machines may reach it.
    pub insecure: bool,
}

/// Where data lies.
#[derive(Clone, Debug)]
pub struct DataConfig {
    /// Data directories; the first one holds the metadata.
    pub dirs: Vec<PathBuf>,
    /// Free space below which produce is refused.
    pub free_bytes_min: u64,
}

/// Which cores do what.
#[derive(Clone, Debug)]
pub struct CoresConfig {
    /// One shard each; `None`: auto.
    pub data: Option<Vec<u16>>,
    /// The control thread's; `None`: auto.
    pub control: Option<u16>,
    /// How long an idle shard polls, in microseconds.
    pub polling_us: u64,
}

/// Limits; see the reference.
#[derive(Clone, Debug)]
pub struct LimitsConfig {
    /// Connections of one shard.
    pub connections_max: u32,
    /// Largest frame.
    pub frame_bytes_max: u32,
    /// Unanswered bytes of one connection.
    pub in_flight_bytes_max: u64,
    /// Unanswered requests of one connection.
    pub in_flight_requests_max: u32,
    /// Idle connections are closed after this. `None`: never.
    pub idle_timeout_ms: Option<u64>,
    /// Partitions of this node.
    pub partitions_max: u32,
    /// Partitions of one topic.
    pub partitions_per_topic_max: u32,
    /// Sealed segments that one shard holds open.
    pub open_files_max: usize,
    /// How long a stop waits.
    pub stop_timeout_ms: u64,
}

/// What topics get by default.
#[derive(Clone, Debug)]
pub struct TopicConfig {
    /// Number of partitions.
    pub partitions: u32,
    /// Replicas of each; `None`: three, or as many as there are nodes.
    pub replicas: Option<u16>,
    /// Whether produce creates topics.
    pub auto_create: bool,
    /// Options.
    pub options: TopicOptions,
}

/// Files that `corelog tune` writes.
#[derive(Clone, Debug)]
pub struct TuningConfig {
    /// `cores.toml`
    pub cores_file: Option<PathBuf>,
    /// `disk.toml`
    pub disk_file: Option<PathBuf>,
}

/// What the server says about itself.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// A level of `tracing`.
    pub level: String,
    /// For people or for machines.
    pub format: LogFormat,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for people.
    Human,
    /// One JSON object per line.
    Json,
}
