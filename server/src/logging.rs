//! Structured logs on standard error: one line per event, for people or as JSON.
//!
//! Owns: the one subscriber of the process. `RUST_LOG` wins over `log.level`.
//! `ERROR` means that a human must look; `WARN`, that one should; `INFO` is rare enough to keep.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogConfig, LogFormat};

/// Starts logging. A second call does nothing: the first one has decided.
pub fn start(config: &LogConfig) {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives(&config.level)));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = match config.format {
        LogFormat::Human => {
            let is_terminal = std::io::stderr().is_terminal();
            builder.with_ansi(is_terminal).with_target(false).finish().try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    };
}

/// What is logged at a level. The client of ZooKeeper warns of each attempt to connect; our own store says the same
/// once, and what to do about it.
fn directives(level: &str) -> String {
    format!("{level},zookeeper_client=error")
}
