//! Metrics of the cluster, as one node knows it: leadership, replicas in sync, the coordination service, streams.
//!
//! Owns: these names. What several nodes could count is counted by the node that leads the partition, so that sums over
//! nodes are right; what nobody leads is counted by every node.

use std::fmt::Error;

use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::control::snapshot::{PartitionMetadata, Snapshot, TopicMetadata};
use crate::control::stats::{PartitionStats, ShardStats};
use crate::control::view::View;

/// Counts of partitions in one snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    replicas: u64,
    led: u64,
    under_replicated: u64,
    below_min_insync: u64,
    offline: u64,
    not_preferred: u64,
    single_replica: u64,
}

impl Counts {
    fn of(snapshot: &Snapshot) -> Self {
        let mut counts = Self::default();
        for topic in snapshot.topics() {
            topic.partitions.iter().for_each(|partition| counts.count(snapshot, topic, partition));
        }
        counts
    }

    fn count(&mut self, snapshot: &Snapshot, topic: &TopicMetadata, partition: &PartitionMetadata) {
        let me = snapshot.node;
        self.replicas += u64::from(partition.local.is_some());
        self.offline += u64::from(partition.leader.is_none());
        let (replicas, isr) = (partition.replicas.len(), partition.isr.len());
        let is_preferred = partition.replicas.first().is_some_and(|replica| replica.node == me);
        let is_led_elsewhere = partition.leader.is_some_and(|leader| leader.node != me);
        self.not_preferred += u64::from(is_preferred && is_led_elsewhere);
        if partition.led_by(me).is_some() {
            self.led += 1;
            self.under_replicated += u64::from(isr < replicas);
            self.below_min_insync += u64::from(isr < topic.options.min_insync_replicas_of(replicas));
            self.single_replica += u64::from(replicas < 2);
        }
    }
}

/// Series of the node.
pub(super) fn node(view: &View, encoder: &mut DescriptorEncoder<'_>) -> Result<(), Error> {
    let (snapshot, cluster) = (&view.snapshot, &view.cluster);
    let counts = Counts::of(snapshot);
    let is_controller = cluster.controller == Some(snapshot.node);
    let gauges: [(&str, &str, u64); 11] = [
        ("corelog_nodes", "Nodes that run", snapshot.nodes.len() as u64),
        ("corelog_controller", "1 if this node is the controller", is_controller.into()),
        (
            "corelog_coordination_connected",
            "1 if the coordination service answers",
            cluster.is_connected.into(),
        ),
        (
            "corelog_coordination_isolated",
            "1 if it has been silent for longer than a session: acks=1 and reads are refused",
            snapshot.is_isolated.into(),
        ),
        ("corelog_replicas", "Replicas on this node", counts.replicas),
        ("corelog_partitions_led", "Partitions that this node leads", counts.led),
        (
            "corelog_partitions_under_replicated",
            "Partitions led here with fewer replicas in sync than they have",
            counts.under_replicated,
        ),
        (
            "corelog_partitions_below_min_insync",
            "Partitions led here that refuse acks=all for want of replicas in sync",
            counts.below_min_insync,
        ),
        ("corelog_partitions_offline", "Partitions that nobody leads", counts.offline),
        (
            "corelog_partitions_not_preferred",
            "Partitions that prefer this node as leader and are led by another one",
            counts.not_preferred,
        ),
        (
            "corelog_partitions_single_replica",
            "Partitions led here that have one replica",
            counts.single_replica,
        ),
    ];
    for (name, help, value) in gauges {
        let descriptor = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(descriptor)?;
    }
    let counters = [
        (
            "corelog_isr_shrinks",
            "Replicas that left the ISR of a partition led here",
            cluster.isr_changes.shrinks,
        ),
        (
            "corelog_isr_expands",
            "Replicas that joined the ISR of a partition led here",
            cluster.isr_changes.expands,
        ),
    ];
    for (name, help, value) in counters {
        let descriptor = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(descriptor)?;
    }
    Ok(())
}

type OfShard = (&'static str, &'static str, fn(&ShardStats) -> u64);

const STREAM_GAUGES: &[OfShard] = &[
    ("corelog_replication_connections", "Open replication streams, of both directions", |s| {
        s.replication.connections.into()
    }),
    ("corelog_replication_followers_catching_up", "Followers that are fed from this shard's disks", |s| {
        let followers = s.partitions.iter().flat_map(|partition| &partition.replica.followers);
        followers.filter(|follower| follower.is_catching_up).count() as u64
    }),
];

const STREAM_COUNTERS: &[OfShard] = &[
    ("corelog_replication_sent_bytes", "Bytes sent to other nodes", |s| s.replication.sent_bytes),
    ("corelog_replication_received_bytes", "Bytes received from other nodes", |s| {
        s.replication.received_bytes
    }),
    ("corelog_replication_caught_up_bytes", "Batch bytes read from disk for followers far behind", |s| {
        s.replication.streams.feeders.iter().map(|feeder| feeder.caught_up_bytes).sum()
    }),
    ("corelog_scrubbed_bytes", "Bytes that the scrubber has looked at", |s| {
        s.replication.streams.scrubbed_bytes
    }),
    ("corelog_damaged_ranges", "Damaged ranges found", |s| s.replication.streams.damaged_ranges),
    ("corelog_repaired_ranges", "Damaged ranges mended from another replica", |s| {
        s.replication.streams.repaired_ranges
    }),
];

/// Series of the streams of each shard.
pub(super) fn streams(
    stats: &[Option<ShardStats>],
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), Error> {
    for (kind, series) in [(MetricType::Gauge, STREAM_GAUGES), (MetricType::Counter, STREAM_COUNTERS)] {
        for (name, help, value) in series {
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for shard in stats.iter().flatten() {
                let labels = [("shard", shard.shard.to_string())];
                super::metrics::number(kind, value(shard), metric.encode_family(&labels)?)?;
            }
        }
    }
    Ok(())
}

/// How far each follower of each partition led here is behind.
pub(super) fn followers(
    named: &[(&str, &PartitionStats)],
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), Error> {
    let help = "Records of the leader's log that the follower does not have durable";
    let mut metric =
        encoder.encode_descriptor("corelog_follower_lag_records", help, None, MetricType::Gauge)?;
    for (topic, stats) in named {
        let partition = stats.partition.partition.to_string();
        for follower in &stats.replica.followers {
            let node = follower.replica.node.to_string();
            let labels = [("topic", *topic), ("partition", &partition), ("node", &node)];
            ConstGauge::new(follower.lag_records).encode(metric.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use corelog_engine::{LeaderEpoch, LogId, PartitionId, TimestampMs, TopicId, TopicPartition};
    use corelog_replication::ReplicaId;
    use corelog_replication::cluster::Incarnation;

    use super::*;
    use crate::control::TopicOptions;
    use crate::control::snapshot::{
        DataDirIndex, LeaderPlace, NodeId, ShardId, SnapshotHead, SnapshotVersion,
    };

    /// Of each partition: the nodes of its replicas, those in sync, its leader.
    type Row<'a> = (&'a [u32], &'a [u32], Option<u32>);

    fn counts(rows: &[Row<'_>]) -> Counts {
        let topic = TopicId(1);
        let replica = |node: &u32| ReplicaId { node: NodeId(*node), log: LogId((*node).into()) };
        let partitions = (0..).zip(rows).map(|(number, (replicas, isr, leader))| {
            let of = TopicPartition { topic, partition: PartitionId(number) };
            let alone =
                PartitionMetadata::led_alone(of, replica(&1), ShardId(0), DataDirIndex(0), LeaderEpoch(1));
            PartitionMetadata {
                leader: leader.map(|node| LeaderPlace { node: NodeId(node), shard: ShardId(0) }),
                replicas: replicas.iter().map(replica).collect(),
                isr: isr.iter().map(replica).collect(),
                local: alone.local.clone().filter(|_| replicas.contains(&1)),
                ..alone
            }
        });
        let metadata = TopicMetadata {
            id: topic,
            name: "t".into(),
            created: TimestampMs(0),
            options: TopicOptions::default(),
            partitions: partitions.collect(),
        };
        let head = SnapshotHead {
            version: SnapshotVersion(1),
            cluster_id: "c".into(),
            node: NodeId(1),
            started: TimestampMs(0),
            incarnation: Incarnation(1),
            shards: Vec::new(),
            nodes: Vec::new(),
            is_isolated: false,
            data_dirs: Vec::new(),
            removed: Default::default(),
        };
        Counts::of(&Snapshot::new(head, vec![std::sync::Arc::new(metadata)]))
    }

    #[test]
    fn each_partition_is_counted_by_the_node_that_leads_it() {
        let found = counts(&[
            (&[1, 2, 3], &[1, 2, 3], Some(1)),
            (&[1, 2, 3], &[1, 2], Some(1)),
            (&[2, 1, 3], &[1], Some(1)),
            (&[1, 2], &[2], Some(2)),
            (&[1], &[1], Some(1)),
            (&[2, 3], &[2], Some(2)),
            (&[2, 3], &[3], None),
        ]);
        let expected = Counts {
            replicas: 5,
            led: 4,
            under_replicated: 2,
            below_min_insync: 1,
            offline: 1,
            not_preferred: 1,
            single_replica: 1,
        };
        assert_eq!(found, expected);
    }
}
