//! The door: servers to start from, and what to make of them.

use std::sync::Arc;

use crate::admin::Admin;
use crate::cluster::Cluster;
use crate::connection::ConnectOptions;
use crate::consumer::{Consumer, ConsumerConfig};
use crate::error::RequestError;
use crate::producer::{Producer, ProducerConfig, ProducerConfigError};

/// Where the cluster is and how long to wait for it.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Addresses (`HOST:PORT`) to start from, tried in order; any shard of any node does.
    pub servers: Vec<String>,
    /// Names the application in the server's logs and metrics; at most 255 bytes.
    pub client_id: String,
    /// Limit of connecting and shaking hands.
    pub connect_timeout_ms: u64,
    /// Limit of one request.
    pub request_timeout_ms: u64,
    /// Largest answer that is taken. 128 MiB: above what a fetch asks for, so that one oversized batch still comes.
    pub response_bytes_max: u32,
}

impl ClientConfig {
    /// The defaults, for these servers.
    pub fn new(servers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            servers: servers.into_iter().map(Into::into).collect(),
            client_id: "corelog-client".to_owned(),
            connect_timeout_ms: 5_000,
            request_timeout_ms: 30_000,
            response_bytes_max: 128 << 20,
        }
    }
}

/// A cluster, reached. Clones share the cached metadata and the connections that fetch it; each producer and
/// consumer has connections of its own.
#[derive(Clone)]
pub struct Client {
    pub(crate) cluster: Arc<Cluster>,
}

impl Client {
    /// Connects to the first server that answers.
    ///
    /// Panics without any address in `servers`, or outside a tokio runtime.
    pub async fn connect(config: ClientConfig) -> Result<Self, RequestError> {
        assert!(!config.servers.is_empty(), "a client needs at least one server address");
        let options = ConnectOptions {
            client_id: config.client_id.into(),
            connect_timeout_ms: config.connect_timeout_ms,
            request_timeout_ms: config.request_timeout_ms,
            response_bytes_max: config.response_bytes_max,
        };
        let bootstrap = config.servers.into_iter().map(Arc::from).collect();
        let client = Self { cluster: Arc::new(Cluster::new(bootstrap, options)) };
        client.cluster.shards().await?;
        Ok(client)
    }

    /// Starts a producer on the current tokio runtime.
    pub fn producer(&self, config: ProducerConfig) -> Result<Producer, ProducerConfigError> {
        Producer::start(Arc::clone(&self.cluster), config)
    }

    /// A consumer without assignment.
    pub fn consumer(&self, config: ConsumerConfig) -> Consumer {
        Consumer::new(Arc::clone(&self.cluster), config)
    }

    /// Admin operations.
    pub fn admin(&self) -> Admin {
        Admin { cluster: Arc::clone(&self.cluster) }
    }
}
