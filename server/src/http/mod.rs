//! HTTP on the control thread: metrics and health, for machines that watch. Nothing can be changed here.
//!
//! Owns: the routes. `/livez`: the control thread runs. `/readyz`: the node serves what it can, is not stopping, and is
//! not cut off from its cluster. `/metrics`: OpenMetrics text; `?partitions=false` leaves the per-partition series out.
//! Invariant: at most [`listener::CONNECTIONS_MAX`] connections, none older than [`listener::LIFETIME_MAX`], so that slow
//! or silent peers cost a bounded amount of memory.

mod cluster_metrics;
pub mod listener;
pub mod metrics;
mod process;
#[cfg(test)]
mod tests;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;

use crate::control::Observer;
use crate::control::snapshot::SnapshotVersion;

/// The media type of OpenMetrics text.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until the runtime ends or `listener` fails for good.
pub async fn serve(listener: std::net::TcpListener, observer: Observer) -> std::io::Result<()> {
    let listener = listener::BoundedListener::new(listener)?;
    axum::serve(listener, router(observer)).await
}

fn router(observer: Observer) -> Router {
    Router::new()
        .route("/", get(hint))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(unknown)
        .with_state(observer)
}

async fn hint() -> &'static str {
    "corelog: /metrics (?partitions=false: without partitions), /livez, /readyz\n\
     Clients speak the native protocol on the ports of listen.address; try `corelog topic list`.\n"
}

async fn unknown() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "there is /metrics, /livez and /readyz\n")
}

async fn live() -> &'static str {
    "live\n"
}

async fn ready(State(observer): State<Observer>) -> (StatusCode, String) {
    let view = observer.view();
    if view.is_ready() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    if view.is_stopping {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned());
    }
    if view.snapshot.is_isolated {
        let text = "cut off from the coordination service: acks=1 and reads are refused\n";
        return (StatusCode::SERVICE_UNAVAILABLE, text.to_owned());
    }
    let opening = view.applied.iter().filter(|version| **version == SnapshotVersion(0)).count();
    let text = if view.snapshot.version == SnapshotVersion(0) {
        "starting: looking for the cluster\n".to_owned()
    } else if opening > 0 {
        format!("starting: {opening} of {} shards are still opening their partitions\n", view.applied.len())
    } else {
        "starting: some partitions have no leader yet\n".to_owned()
    };
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

#[derive(Deserialize)]
struct MetricsQuery {
    #[serde(default = "yes")]
    partitions: bool,
}

fn yes() -> bool {
    true
}

async fn metrics(State(observer): State<Observer>, Query(query): Query<MetricsQuery>) -> Response {
    let stats = observer.stats().await;
    match metrics::encode(observer.view(), stats, query.partitions) {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
