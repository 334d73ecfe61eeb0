//! The control thread itself: a thread, a single-threaded tokio runtime on it, signals, HTTP.
//!
//! Owns: what ends a node. SIGTERM, SIGINT and [`ControlHandle::stop`] begin a graceful stop; a second signal ends the
//! process at once, which is safe (it is what kill -9 does) and costs the next start a scan.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::signal::unix::{SignalKind, signal};

use super::messages::ControlLink;
use super::snapshot::ShardAddress;
use super::start::Opened;
use super::thread::{Control, Stopped};
use super::view::Observer;
use crate::config::Config;
use crate::http;

/// Exit code of a process that a second signal has ended.
const EXIT_IMPATIENT: i32 = 130;

/// What a control thread runs on.
pub struct ControlThread {
    /// The configuration.
    pub config: Arc<Config>,
    /// The opened node.
    pub opened: Opened,
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

/// A running control thread.
pub struct ControlHandle {
    stop: flume::Sender<()>,
    thread: JoinHandle<io::Result<Stopped>>,
}

impl ControlHandle {
    /// Begins a graceful stop.
    pub fn stop(&self) {
        let _ = self.stop.try_send(());
    }

    /// Waits for the end of the node: a signal, [`ControlHandle::stop`], or the death of all shards.
    pub fn join(self) -> io::Result<Stopped> {
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the control thread has panicked")))
    }
}

impl ControlThread {
    /// Starts the thread. The shards get the first snapshot from it.
    pub fn spawn(self) -> io::Result<ControlHandle> {
        let (stop, stopped) = flume::bounded(1);
        let thread =
            std::thread::Builder::new().name("control".to_owned()).spawn(move || self.run(stopped))?;
        Ok(ControlHandle { stop, thread })
    }

    fn run(self, stopped: flume::Receiver<()>) -> io::Result<Stopped> {
        if let Some(core) = self.core
            && !core_affinity::set_for_current(core_affinity::CoreId { id: core.into() })
        {
            tracing::warn!(core, "cannot pin the control thread; it runs wherever the scheduler likes");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async move {
            let control = Control::new(self.config, self.opened, self.shards, self.link);
            if let Some(listener) = self.http {
                let observer = control.observer();
                tokio::spawn(async move {
                    if let Err(error) = http::serve(listener, observer).await {
                        tracing::error!(%error, "metrics and health are not served any more");
                    }
                });
            }
            if let Some(watcher) = self.watcher {
                tokio::spawn(watcher(control.observer()));
            }
            let handle_signals = self.handle_signals;
            Ok(control.run(async move { wait_for_stop(stopped, handle_signals).await }).await)
        })
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
