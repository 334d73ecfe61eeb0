//! A node from its configuration to its end: the one place that wires config, control thread, shards, HTTP.
//!
//! Owns: the order of the start. Sockets are bound first (a taken port costs nothing), then the data directories are
//! locked, then the shards come up, then the control thread finds the cluster and tells them what to serve.
//! Owns: what a panic does. It is logged and the process ends: a half-dead node would hold connections and answer
//! nobody, and a restart is safe at any instant.
//! Not here: what ends a node and how it drains (`crate::control`, `crate::shard`).

mod options;

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use corelog_engine::TimestampMs;
use corelog_replication::cluster::Endpoint;

use crate::config::host::{HostError, HostPlan, plan};
use crate::config::{Config, HostPort};
use crate::control::{
    ControlError, ControlThread, Found, Observer, ShardAddress, ShardId, StartError, Stopped, link_shards,
    look,
};
use crate::shard::{self, ShardError, ShardStart, listener};
use options::shard_options;

/// Why a node did not run to a clean end.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It does not fit this host as configured.
    #[error("{0}")]
    Host(Box<HostError>),
    /// An address cannot be listened on: it is taken, or not this host's.
    #[error("{key} = {address}: {source}")]
    Listen {
        /// The setting.
        key: &'static str,
        /// Its value.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The data directories cannot be used.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A shard did not come up.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The control thread did not come up, or died.
    #[error("the control thread failed: {0}")]
    Control(io::Error),
    /// It stopped, but not everything was synced and closed, for lack of time or of a disk.
    #[error("the node stopped, but not every log was synced and closed; the next start scans their tails")]
    Unclean,
}

/// Where a node listens, once it does.
#[derive(Clone, Debug)]
struct Listening {
    native: SocketAddr,
    shards: usize,
    http: Option<SocketAddr>,
    /// For streams of other nodes, if there may be any.
    replication: Option<SocketAddr>,
}

/// Runs a node in the foreground until SIGTERM, SIGINT, or a failure. Logs go to standard error; one line on standard
/// output says when and where it serves.
pub fn run(config: Config) -> Result<(), ServeError> {
    crate::logging::start(&config.log);
    abort_on_panic();
    let files = corelog_tuning::raise_open_files();
    let host = corelog_tuning::detect();
    let plan = plan(&config, &host).map_err(|error| ServeError::Host(Box::new(error)))?;
    for warning in &plan.warnings {
        tracing::warn!("{warning}");
    }
    let shards = plan.shards();
    let native = resolve("listen.address", &config.listen.address)?;
    let listeners =
        listener::bind(native, shards).map_err(|e| failed("listen.address", &config.listen.address, e))?;
    let streams = bind_streams(&config, shards)?;
    let http = bind_http(&config)?;
    let listening = where_bound(&listeners, http.as_ref(), streams.first())
        .map_err(|e| failed("listen.address", &config.listen.address, e))?;
    tracing::info!(
        listen = %listening.native, shards, cores = ?plan.data_cores, memory_per_shard = plan.memory_bytes_per_shard,
        open_files = files, version = env!("CARGO_PKG_VERSION"), "starting"
    );
    let found = look(&config)?;
    // A directory that is yet to be made is made by the start.
    let there = config.data.dirs.iter().filter(|dir| dir.exists());
    for warning in there.flat_map(|dir| corelog_tuning::disk::warnings_of(dir)) {
        tracing::warn!("{warning}");
    }
    let bound = Bound { listeners, streams, http };
    let stopped = run_found(config, &plan, bound, found, listening)?;
    match stopped {
        Stopped::Clean => {
            tracing::info!("stopped cleanly");
            Ok(())
        }
        Stopped::Unclean => Err(ServeError::Unclean),
    }
}

/// The sockets of a node.
struct Bound {
    /// For clients, one for each shard.
    listeners: Vec<TcpListener>,
    /// For the replication streams of other nodes: one for each shard, or none at all.
    streams: Vec<TcpListener>,
    http: Option<TcpListener>,
}

fn run_found(
    config: Config,
    plan: &HostPlan,
    Bound { listeners, streams, http }: Bound,
    found: Found,
    listening: Listening,
) -> Result<Stopped, ServeError> {
    let (control_link, links) = link_shards(plan.shards());
    let addresses = addresses(&config, plan, &listeners, &streams);
    let mut streams = streams.into_iter();
    let starts = listeners.into_iter().zip(links).zip(&plan.data_cores).map(|((listener, link), &core)| {
        let options = shard_options(&config, plan, core);
        ShardStart { options, link, listener, streams: streams.next() }
    });
    let threads = shard::start(starts.collect())?;
    let control = ControlThread {
        config: Arc::new(config),
        found,
        started: now(),
        shards: addresses,
        link: control_link,
        http,
        core: plan.control_core,
        handle_signals: true,
        watcher: Some(Box::new(move |observer| Box::pin(tell_when_ready(observer, listening)))),
    };
    let handle = control.spawn().map_err(ServeError::Control)?;
    let stopped = handle.join().map_err(|error| match error {
        ControlError::Start(error) => ServeError::Start(error),
        ControlError::Thread(error) => ServeError::Control(error),
    })?;
    // A shard that hangs on a dead disk is left behind: the process ends, and with it the thread.
    if stopped == Stopped::Clean {
        threads.into_iter().for_each(|thread| drop(thread.join()));
    }
    Ok(stopped)
}

/// What clients and other nodes are told of each shard.
fn addresses(
    config: &Config,
    plan: &HostPlan,
    listeners: &[TcpListener],
    streams: &[TcpListener],
) -> Vec<ShardAddress> {
    let port_of = |listener: &TcpListener| listener.local_addr().map_or(0, |address| address.port());
    let shards = listeners.iter().zip(&plan.data_cores).zip(0u16..);
    let address = |((listener, &core), shard): ((&TcpListener, &u16), u16)| ShardAddress {
        node: config.node.id,
        shard: ShardId(shard),
        core,
        host: config.listen.advertised_host().to_owned(),
        port: port_of(listener),
        replication: Endpoint {
            host: config.replication.advertised_host().to_owned(),
            port: streams.get(usize::from(shard)).map_or(0, port_of),
        },
    };
    shards.map(address).collect()
}

fn failed(key: &'static str, address: &HostPort, source: io::Error) -> ServeError {
    ServeError::Listen { key, address: address.to_string(), source }
}

fn resolve(key: &'static str, address: &HostPort) -> Result<SocketAddr, ServeError> {
    let found =
        (address.host.as_str(), address.port).to_socket_addrs().map_err(|e| failed(key, address, e))?;
    // Where a name has both kinds of address, the one that more clients reach.
    let mut found: Vec<SocketAddr> = found.collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    found.first().copied().ok_or_else(|| {
        failed(key, address, io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
    })
}

/// The sockets of replication streams; none on a node that is alone.
fn bind_streams(config: &Config, shards: u16) -> Result<Vec<TcpListener>, ServeError> {
    if config.zookeeper.is_none() {
        return Ok(Vec::new());
    }
    let (key, address) = ("replication.address", &config.replication.address);
    listener::bind(resolve(key, address)?, shards).map_err(|e| failed(key, address, e))
}

fn bind_http(config: &Config) -> Result<Option<TcpListener>, ServeError> {
    if !config.http.enabled {
        return Ok(None);
    }
    let address = resolve("http.address", &config.http.address)?;
    let bound = listener::patiently(|| TcpListener::bind(address));
    let bound = bound.map_err(|e| failed("http.address", &config.http.address, e))?;
    Ok(Some(bound))
}

fn where_bound(
    listeners: &[TcpListener],
    http: Option<&TcpListener>,
    replication: Option<&TcpListener>,
) -> io::Result<Listening> {
    let first = listeners.first().ok_or_else(|| io::Error::other("there is no shard"))?;
    Ok(Listening {
        native: first.local_addr()?,
        shards: listeners.len(),
        http: http.map(TcpListener::local_addr).transpose()?,
        replication: replication.map(TcpListener::local_addr).transpose()?,
    })
}

/// Says once that all shards serve: a log line, and a line on standard output for scripts.
async fn tell_when_ready(mut observer: Observer, listening: Listening) {
    if !observer.wait_until_ready().await {
        return;
    }
    let view = observer.view();
    let topics = view.snapshot.topics().len();
    let partitions: usize = view.snapshot.topics().iter().map(|topic| topic.partitions.len()).sum();
    let Listening { native, shards, http, replication } = listening;
    let shown = |address: Option<SocketAddr>| address.map_or("off".to_owned(), |address| address.to_string());
    let (http, replication) = (shown(http), shown(replication));
    tracing::info!(
        listen = %native, shards, http, replication, topics, partitions, failed_partitions = view.failed_partitions, "ready"
    );
    let mut out = io::stdout();
    // Nobody has to read it.
    let ready = format!("ready listen={native} shards={shards} http={http} replication={replication}");
    let _ = writeln!(out, "{ready}").and_then(|()| out.flush());
}

/// Logs a panic and ends the process, whatever the build profile says.
fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let backtrace = std::backtrace::Backtrace::force_capture();
        tracing::error!(thread = thread.name(), "{panic}; the node ends here\n{backtrace}");
        std::process::abort();
    }));
}

fn now() -> TimestampMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    TimestampMs(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
