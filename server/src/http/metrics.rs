//! Metrics in OpenMetrics text: the node, its data directories, its shards, its partitions.
//!
//! Owns: the names. `corelog_WHAT_UNIT`; counters end in `_total`; times are seconds, sizes are bytes. A name never
//! changes its meaning. Labels: `dir`, `shard`, `topic`, `partition`.
//! A shard that did not answer in time shows `corelog_shard_up 0` and no other series.

use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::cluster_metrics;
use super::process::{self, Process};
use crate::control::snapshot::{DataDirState, Snapshot};
use crate::control::stats::{LATENCY_BOUNDS_US, LatencyBuckets, PartitionStats, ShardStats};
use crate::control::view::{DataDirSizes, View};

/// One scrape.
pub fn encode(
    view: Arc<View>,
    stats: Vec<Option<ShardStats>>,
    with_partitions: bool,
) -> Result<String, Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape { view, stats, with_partitions, process: process::read() }));
    let mut body = String::new();
    text::encode(&mut body, &registry)?;
    Ok(body)
}

#[derive(Debug)]
struct Scrape {
    view: Arc<View>,
    stats: Vec<Option<ShardStats>>,
    with_partitions: bool,
    process: Process,
}

/// Name, help, and how to read one series from a `T`.
type Series<T> = (&'static str, &'static str, fn(&T) -> u64);
type Buckets = for<'a> fn(&'a ShardStats) -> &'a LatencyBuckets;

const SHARD_GAUGES: &[Series<ShardStats>] = &[
    ("corelog_shard_metadata_version", "Snapshot that the shard has applied", |s| s.applied.0),
    ("corelog_shard_connections", "Open client connections", |s| s.connections.into()),
    ("corelog_shard_buffer_bytes", "Buffer memory in use", |s| s.buffer_bytes),
    ("corelog_shard_buffer_max_bytes", "Buffer memory the shard may use", |s| s.buffer_bytes_max),
    ("corelog_shard_partitions", "Partitions that the shard owns", |s| s.partitions.len() as u64),
];

const SHARD_COUNTERS: &[Series<ShardStats>] = &[
    ("corelog_connections_accepted", "Client connections accepted", |s| s.connections_accepted),
    ("corelog_connections_refused", "Client connections turned away at the limit", |s| s.connections_refused),
    ("corelog_requests", "Requests answered", |s| s.requests),
    ("corelog_request_errors", "Requests answered with an error", |s| s.request_errors),
    ("corelog_requests_forwarded", "Requests passed on to the shard that owns the partition", |s| {
        s.requests_forwarded
    }),
    ("corelog_produce_bytes", "Record batch bytes appended", |s| s.produce_bytes),
    ("corelog_fetch_bytes", "Record batch bytes sent to consumers", |s| s.fetch_bytes),
    ("corelog_syncs", "Device syncs", |s| s.engine.syncs),
    ("corelog_device_writes", "Device writes of commits", |s| s.engine.writes),
    ("corelog_device_written_bytes", "Bytes that commits gave to the device", |s| {
        s.engine.device_written_bytes
    }),
    ("corelog_device_zeroed_bytes", "Bytes written ahead of appends", |s| s.engine.device_zeroed_bytes),
    ("corelog_device_read_bytes", "Bytes of cold reads", |s| s.engine.device_read_bytes),
    ("corelog_copied_bytes", "Bytes copied on their way from the socket to the device", |s| {
        s.engine.copied_bytes
    }),
    ("corelog_recycled_segments", "Segments made from expired ones", |s| s.engine.recycled_segments),
    ("corelog_buffer_evictions", "Cached chunks given up for memory", |s| s.engine.evictions),
];

const SHARD_LATENCIES: &[(&str, &str, Buckets)] = &[
    ("corelog_produce_latency_seconds", "From the arrival of a produce to its answer", |s| {
        &s.produce_latency
    }),
    (
        "corelog_fetch_latency_seconds",
        "From the arrival of a fetch to its answer, its wait for bytes included",
        |s| &s.fetch_latency,
    ),
    ("corelog_sync_latency_seconds", "Time of a device sync", |s| &s.sync_latency),
];

const PARTITION_GAUGES: &[Series<PartitionStats>] = &[
    ("corelog_partition_log_start_offset", "First offset that can be read", |p| p.log_start.0),
    ("corelog_partition_high_watermark_offset", "Exclusive end of what is committed", |p| p.high_watermark.0),
    ("corelog_partition_log_end_offset", "Offset that the next record gets", |p| p.log_end.0),
    ("corelog_partition_durable_end_offset", "Exclusive end of what has been synced", |p| p.durable_end.0),
    ("corelog_partition_log_bytes", "Bytes of all segments", |p| p.log_bytes),
    ("corelog_partition_segments", "Segments", |p| p.segments.into()),
    ("corelog_partition_in_sync_replicas", "Replicas in sync, of a partition led here; else 0", |p| {
        p.replica.isr.len() as u64
    }),
    ("corelog_partition_leader_epoch", "Newest epoch that the replica has seen", |p| {
        p.replica.leader_epoch.0.into()
    }),
    ("corelog_partition_failed", "1 if the partition takes no appends", |p| p.failure.is_some().into()),
];

const PARTITION_COUNTERS: &[Series<PartitionStats>] = &[
    ("corelog_partition_produce_bytes", "Record batch bytes appended", |p| p.produce_bytes),
    ("corelog_partition_produce_records", "Records appended", |p| p.produce_records),
    ("corelog_partition_fetch_bytes", "Record batch bytes sent to consumers", |p| p.fetch_bytes),
];

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        self.node(&mut encoder)?;
        cluster_metrics::node(&self.view, &mut encoder)?;
        self.process(&mut encoder)?;
        self.data_dirs(&mut encoder)?;
        self.shards(&mut encoder)?;
        cluster_metrics::streams(&self.stats, &mut encoder)?;
        if self.with_partitions { self.partitions(&mut encoder) } else { Ok(()) }
    }
}

impl Scrape {
    fn node(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let view = &self.view;
        let snapshot: &Snapshot = &view.snapshot;
        let build = encoder.encode_descriptor(
            "corelog_build_info",
            "Version of the server, cluster and rack of the node",
            None,
            MetricType::Gauge,
        );
        let labels = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("cluster", &*snapshot.cluster_id),
            ("rack", &*view.rack),
        ];
        ConstGauge::new(1_u64).encode(build?.encode_family(&labels)?)?;
        let partitions: usize = snapshot.topics().iter().map(|topic| topic.partitions.len()).sum();
        let gauges: [(&str, &str, u64); 8] = [
            ("corelog_node_id", "Number of the node", snapshot.node.0.into()),
            ("corelog_ready", "1 if the node serves all shards", view.is_ready().into()),
            ("corelog_metadata_version", "Version of the newest snapshot", snapshot.version.0),
            ("corelog_topics", "Topics", snapshot.topics().len() as u64),
            ("corelog_partitions", "Partitions", partitions as u64),
            ("corelog_partitions_failed", "Partitions that cannot be served", view.failed_partitions as u64),
            (
                "corelog_orphan_directories",
                "Directories of no topic, found at the start",
                view.orphans as u64,
            ),
            (
                "corelog_deletions_pending",
                "Lists of logs that are to be deleted and not yet gone from disk",
                view.cluster.removals as u64,
            ),
        ];
        for (name, help, value) in gauges {
            gauge(encoder, name, help, value)?;
        }
        let started = snapshot.started.0 as f64 / 1e3;
        gauge(encoder, "process_start_time_seconds", "Start of the node, since the Unix epoch", started)
    }

    fn process(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let process = &self.process;
        let gauges = [
            ("process_resident_memory_bytes", "Memory in RAM", process.resident_bytes),
            ("process_locked_memory_bytes", "Locked memory", process.locked_bytes),
            ("process_open_fds", "Open descriptors", process.open_fds),
            ("process_max_fds", "Descriptors that may be open", process.max_fds),
            ("process_threads", "Threads", process.threads),
        ];
        for (name, help, value) in gauges {
            if let Some(value) = value {
                gauge(encoder, name, help, value)?;
            }
        }
        if let Some(seconds) = process.cpu_seconds {
            let help = "User and system CPU time";
            let descriptor =
                encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            ConstCounter::new(seconds).encode(descriptor)?;
        }
        Ok(())
    }

    fn data_dirs(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let series: [Series<DataDirState>; 2] = [
            ("corelog_data_dir_online", "0 if the directory's partitions are offline", |state| {
                (!matches!(state, DataDirState::Offline { .. })).into()
            }),
            ("corelog_data_dir_full", "1 if produce is refused for lack of free space", |state| {
                matches!(state, DataDirState::Full { .. }).into()
            }),
        ];
        let dirs = &self.view.snapshot.data_dirs;
        for (name, help, value) in series {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for dir in dirs {
                let path = dir.path.display().to_string();
                ConstGauge::new(value(&dir.state))
                    .encode(metric.encode_family(&[("dir", path.as_str())])?)?;
            }
        }
        let sizes: [Series<DataDirSizes>; 2] = [
            ("corelog_data_dir_size_bytes", "Size of the file system", |sizes| sizes.total_bytes),
            ("corelog_data_dir_free_bytes", "Free bytes of the file system", |sizes| sizes.free_bytes),
        ];
        for (name, help, value) in sizes {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (dir, sizes) in dirs.iter().zip(&self.view.data_dirs) {
                let path = dir.path.display().to_string();
                ConstGauge::new(value(sizes)).encode(metric.encode_family(&[("dir", path.as_str())])?)?;
            }
        }
        Ok(())
    }

    fn shards(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        let help = "1 if the shard answers";
        let mut up = encoder.encode_descriptor("corelog_shard_up", help, None, MetricType::Gauge)?;
        for (shard, stats) in self.stats.iter().enumerate() {
            let labels = [("shard", shard.to_string())];
            ConstGauge::new(u64::from(stats.is_some())).encode(up.encode_family(&labels)?)?;
        }
        for (kind, series) in [(MetricType::Gauge, SHARD_GAUGES), (MetricType::Counter, SHARD_COUNTERS)] {
            for (name, help, value) in series {
                let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
                for shard in self.stats.iter().flatten() {
                    let labels = [("shard", shard.shard.to_string())];
                    number(kind, value(shard), metric.encode_family(&labels)?)?;
                }
            }
        }
        for (name, help, buckets) in SHARD_LATENCIES {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for shard in self.stats.iter().flatten() {
                let labels = [("shard", shard.shard.to_string())];
                let (buckets, mut series) = (buckets(shard), metric.encode_family(&labels)?);
                let bounds = LATENCY_BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::MAX]);
                let counts: Vec<(f64, u64)> = bounds.zip(buckets.counts).collect();
                let sum = buckets.sum_us as f64 / 1e6;
                series.encode_histogram::<[(&str, &str); 0]>(sum, buckets.count(), &counts, None)?;
            }
        }
        Ok(())
    }

    fn partitions(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
        // Names are looked up once: a topic deleted meanwhile has none and is left out.
        let named: Vec<(&str, &PartitionStats)> = self
            .stats
            .iter()
            .flatten()
            .flat_map(|shard| &shard.partitions)
            .filter_map(|stats| {
                let topic = self.view.snapshot.topic_by_id(stats.partition.topic)?;
                Some((&*topic.name, stats))
            })
            .collect();
        for (kind, series) in
            [(MetricType::Gauge, PARTITION_GAUGES), (MetricType::Counter, PARTITION_COUNTERS)]
        {
            for (name, help, value) in series {
                let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
                for (topic, stats) in &named {
                    let partition = stats.partition.partition.to_string();
                    let labels = [("topic", *topic), ("partition", partition.as_str())];
                    number(kind, value(stats), metric.encode_family(&labels)?)?;
                }
            }
        }
        cluster_metrics::followers(&named, encoder)
    }
}

fn gauge<N>(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: N) -> Result<(), Error>
where
    ConstGauge<N>: EncodeMetric,
{
    ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

pub(super) fn number(
    kind: MetricType,
    value: u64,
    encoder: prometheus_client::encoding::MetricEncoder<'_>,
) -> Result<(), Error> {
    if matches!(kind, MetricType::Counter) {
        ConstCounter::new(value).encode(encoder)
    } else {
        ConstGauge::new(value).encode(encoder)
    }
}
