//! The control thread itself: a thread, a single-threaded tokio runtime on it, signals, HTTP.
//!
//! Owns: what ends a node. SIGTERM, SIGINT and [`ControlHandle::stop`] begin a graceful stop; a second signal ends the
//! process at once, which is safe (it is what kill -9 does) and costs the next start a scan.
//! Owns: the way from data directories and sockets to a running control loop: the coordination service is found first,
//! however long that takes; metrics and health are served meanwhile.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use corelog_engine::TimestampMs;
use corelog_replication::cluster::Endpoint;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::LocalSet;

use super::messages::{ControlLink, ShardCommand, ShardReport};
use super::open::{Opened, open};
use super::snapshot::{ShardAddress, Snapshot};
use super::start::{Found, StartError};
use super::thread::{Control, Stopped};
use super::view::{Observer, View};
use crate::config::Config;
use crate::http;

/// Exit code of a process that a second signal has ended.
const EXIT_IMPATIENT: i32 = 130;

/// How long shards that have seen nothing yet may take to stop.
const SHARDS_STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// What a control thread runs on.
pub struct ControlThread {
    /// The configuration.
    pub config: Arc<Config>,
    /// The data directories that are there.
    pub found: Found,
    /// When the node was started.
    pub started: TimestampMs,
    /// One address per shard, by number.
    pub shards: Vec<ShardAddress>,
    /// One channel per shard.
    pub link: ControlLink,
    /// Bound listener of metrics and health, if they are wanted.
    pub http: Option<std::net::TcpListener>,
    /// Core to pin the thread to; `None`: wherever the scheduler likes.
    pub core: Option<u16>,
    /// Whether SIGTERM and SIGINT stop the node; tests that run several nodes in a process say no.
    pub handle_signals: bool,
    /// Runs beside the control loop and looks at the node: who says that it is ready.
    pub watcher: Option<Watcher>,
}

/// Makes the future of [`ControlThread::watcher`].
pub type Watcher = Box<dyn FnOnce(Observer) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// Why a control thread did not run to an end.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The node cannot start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// No thread or no runtime.
    #[error("the control thread failed: {0}")]
    Thread(#[from] io::Error),
}

/// A running control thread.
pub struct ControlHandle {
    stop: flume::Sender<()>,
    thread: JoinHandle<Result<Stopped, ControlError>>,
}

impl ControlHandle {
    /// Begins a graceful stop.
    pub fn stop(&self) {
        let _ = self.stop.try_send(());
    }

    /// Waits for the end of the node: a signal, [`ControlHandle::stop`], a start that cannot be, or the death of all
    /// shards.
    pub fn join(self) -> Result<Stopped, ControlError> {
        let died = || io::Error::other("the control thread has panicked");
        self.thread.join().unwrap_or_else(|_| Err(died().into()))
    }
}

impl ControlThread {
    /// Starts the thread. The shards get their first snapshot from it.
    pub fn spawn(self) -> io::Result<ControlHandle> {
        let (stop, stopped) = flume::bounded(1);
        let thread =
            std::thread::Builder::new().name("control".to_owned()).spawn(move || self.run(stopped))?;
        Ok(ControlHandle { stop, thread })
    }

    fn run(self, stopped: flume::Receiver<()>) -> Result<Stopped, ControlError> {
        if let Some(core) = self.core
            && !core_affinity::set_for_current(core_affinity::CoreId { id: core.into() })
        {
            tracing::warn!(core, "cannot pin the control thread; it runs wherever the scheduler likes");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        // Lives until the thread ends: what the store still has to do is done with the runtime.
        let local = LocalSet::new();
        local.block_on(&runtime, self.live(stopped))
    }

    async fn live(self, stopped: flume::Receiver<()>) -> Result<Stopped, ControlError> {
        let Self { config, found, started, shards, link, http, handle_signals, watcher, .. } = self;
        let first = Snapshot::empty(&config, started, shards.clone());
        let view = watch::Sender::new(Arc::new(View::starting(Arc::new(first), &config.node.rack)));
        let observer = Observer::new(view.subscribe(), link.commands.clone());
        let http_endpoint = http.as_ref().and_then(|listener| endpoint_of(&config, listener));
        if let Some(listener) = http {
            let observer = observer.clone();
            tokio::spawn(async move {
                if let Err(error) = http::serve(listener, observer).await {
                    tracing::error!(%error, "metrics and health are not served any more");
                }
            });
        }
        if let Some(watcher) = watcher {
            tokio::spawn(watcher(observer));
        }
        let mut stop = pin!(wait_for_stop(stopped, handle_signals));
        let opened = tokio::select! {
            opened = open(&config, found, shards, http_endpoint, started) => opened,
            () = &mut stop => Err(StartError::Stopped),
        };
        let Opened { local, store } = match opened {
            Ok(opened) => opened,
            Err(error) => {
                view.send_modify(|view| Arc::make_mut(view).is_stopping = true);
                stop_idle_shards(&link).await;
                // Nothing was served and nothing was begun: that is as clean as it was before.
                return if matches!(error, StartError::Stopped) {
                    Ok(Stopped::Clean)
                } else {
                    Err(error.into())
                };
            }
        };
        let connection = store.store().clone();
        let control = Control::new(config, local, store, link, view);
        let stopped = control.run(stop).await;
        connection.close().await;
        Ok(stopped)
    }
}

/// Where others find the metrics.
fn endpoint_of(config: &Config, listener: &std::net::TcpListener) -> Option<Endpoint> {
    let port = listener.local_addr().ok()?.port();
    let host = if config.http.address.is_wildcard() {
        config.listen.advertised_host()
    } else {
        config.http.address.host.as_str()
    };
    Some(Endpoint { host: host.to_owned(), port })
}

/// Stops shards that have never got a snapshot.
async fn stop_idle_shards(link: &ControlLink) {
    let stopped = async {
        for commands in &link.commands {
            // One that is gone needs no order.
            let _ = commands.send_async(ShardCommand::Stop).await;
        }
        let mut left = link.commands.len();
        while left > 0 {
            match link.reports.recv_async().await {
                Ok(ShardReport::Stopped { .. }) => left -= 1,
                Ok(_) => {}
                Err(flume::RecvError::Disconnected) => return,
            }
        }
    };
    if tokio::time::timeout(SHARDS_STOP_TIMEOUT, stopped).await.is_err() {
        tracing::warn!("not every shard has stopped in time");
    }
}

/// Completes at the first request to stop; leaves a task behind that watches for the second signal.
async fn wait_for_stop(stopped: flume::Receiver<()>, handle_signals: bool) {
    let signals = if handle_signals { listen_for_signals() } else { None };
    let Some(signals) = signals else {
        // A handle that is dropped without a word does not stop the node.
        if stopped.recv_async().await.is_err() {
            std::future::pending::<()>().await;
        }
        return;
    };
    tokio::select! {
        Ok(()) = stopped.recv_async() => {}
        Ok(name) = signals.recv_async() => {
            tracing::info!(signal = name, "stopping; once more to stop at once");
        }
    }
    tokio::spawn(async move {
        if signals.recv_async().await.is_ok() {
            tracing::warn!(
                "stopped at once, without the clean marker: the next start scans the tails of the logs"
            );
            std::process::exit(EXIT_IMPATIENT);
        }
    });
}

fn listen_for_signals() -> Option<flume::Receiver<&'static str>> {
    let (sender, receiver) = flume::bounded(2);
    for (kind, name) in [(SignalKind::terminate(), "SIGTERM"), (SignalKind::interrupt(), "SIGINT")] {
        let mut signals = match signal(kind) {
            Ok(signals) => signals,
            Err(error) => {
                tracing::error!(%error, signal = name, "cannot listen for a signal; only kill -9 stops this node");
                return None;
            }
        };
        let sender = sender.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let _ = sender.try_send(name);
            }
        });
    }
    Some(receiver)
}
