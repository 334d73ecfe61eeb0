//! The table of all settings: name, type and range, default, what it does, when to change it.
//!
//! Owns: every name in `corelog.toml`. `docs/configuration.md`, `corelog config print`, the environment and the
//! checks are made from it. The options of topics follow from their own table under `topic.`.

use super::value::{Kind, Or};
use crate::control::options::TOPIC_OPTIONS;

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its section.
    pub section: &'static str,
    /// Its name in the section.
    pub name: &'static str,
    /// Type and range.
    pub kind: Kind,
    /// Default, as one would write it.
    pub default: &'static str,
    /// What it does.
    pub what: &'static str,
    /// When to change it.
    pub change_when: &'static str,
}

impl Key {
    /// `section.name`.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The environment variable that overrides it: `CORELOG_SECTION_NAME`.
    pub fn environment(&self) -> String {
        format!("CORELOG_{}_{}", self.section, self.name).to_uppercase()
    }
}

/// The sections, in the order of the reference, with one sentence each.
pub const SECTIONS: &[(&str, &str)] = &[
    ("node", "Who this node is."),
    ("listen", "Where clients connect: shard i listens on the port of `listen.address` plus i."),
    (
        "zookeeper",
        "The coordination service of a cluster. Without it this node is alone and keeps its metadata itself.",
    ),
    ("replication", "How the replicas of partitions on several nodes are kept in step."),
    (
        "controller",
        "How the cluster is kept in balance; the node that is the controller uses its own values.",
    ),
    ("http", "Metrics and health, for machines that watch: /metrics, /livez, /readyz."),
    ("data", "Where data lies: one directory per disk."),
    ("cores", "Which CPU cores do what."),
    ("memory", "How much memory a shard may take."),
    ("limits", "Where the server says \"wait\" or \"no\" instead of falling over."),
    ("topic", "What a topic gets that does not say otherwise. An option set on a topic wins over these."),
    ("tuning", "What `corelog tune` has measured on this host."),
    ("log", "What the server says about itself, on standard error."),
];

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

macro_rules! keys {
    ($($section:ident { $($name:ident: $kind:expr, $default:literal, $what:literal, $when:literal;)* })*) => {
        &[$($(Key {
            section: stringify!($section),
            name: stringify!($name),
            kind: $kind,
            default: $default,
            what: $what,
            change_when: $when,
        },)*)*]
    };
}

const OWN_KEYS: &[Key] = keys! {
    node {
        id: Kind::Count { min: 0, max: 2_000_000 }, "1",
            "Number of this node in its cluster. Data directories remember it.",
            "Give each node of a cluster its own; never change it on a node that has data.";
        rack: Kind::Text { bytes_max: 255 }, "",
            "Rack or zone of this node, a label of the metric corelog_build_info.",
            "When nodes fail in groups (power, switch) and you want to see which.";
    }
    listen {
        address: Kind::Address, "127.0.0.1:9700",
            "Address of shard 0; shard i listens on the port plus i. Port 0 takes any free range of ports and prints it.",
            "To serve other machines; see listen.insecure.";
        advertised_host: Kind::Text { bytes_max: 253 }, "",
            "Name or address that clients are told to connect to. Empty: the host of listen.address.",
            "When clients reach this machine under another name (0.0.0.0, NAT, containers).";
        insecure: Kind::Flag, "false",
            "Allows an address that other machines reach. There is no authentication and no encryption yet: whoever \
             connects may read, write and delete everything.",
            "Only in a network that you trust.";
    }
    zookeeper {
        connect: Kind::Text { bytes_max: 4096 }, "",
            "Servers of the ZooKeeper ensemble, as HOST:PORT,HOST:PORT. Empty: no cluster; the metadata lie in the first data directory.",
            "To make this node the first of a cluster (its topics are carried over), or to let it join one.";
        root: Kind::Text { bytes_max: 255 }, "/corelog",
            "The znode below which everything of this cluster lies. Must be the same on all nodes.",
            "When several clusters share an ensemble.";
        session_timeout: Kind::Millis { min: 1_000, max: 60_000, or: Or::Nothing }, "6s",
            "A node that ZooKeeper has not heard from for this long is taken for dead; one that cannot reach ZooKeeper for \
             this long stops acks=1 and reads. A process that was killed is found out sooner, by its broken connections.",
            "Lower it to replace silent nodes sooner, at the risk of replacing slow ones. The ensemble may impose bounds.";
        auth: Kind::Choice(&["none", "digest", "sasl"]), "none",
            "How this node authenticates. \"digest\": ZooKeeper's own scheme, nothing to set up on its servers; the password \
             travels readably unless TLS is on. \"sasl\": DIGEST-MD5, the servers know names and passwords.",
            "Where others can reach the ensemble: with either, only nodes with the same user and password see the metadata.";
        user: Kind::Text { bytes_max: 255 }, "",
            "User that this node authenticates as; the same on all nodes.",
            "Together with zookeeper.auth.";
        password_file: Kind::Text { bytes_max: 4096 }, "",
            "Path of a file that holds the user's password.",
            "Together with zookeeper.user; keep the file readable for the server alone.";
        tls: Kind::Flag, "false",
            "Whether the connection to ZooKeeper is encrypted.",
            "When the ensemble has a secureClientPort, whose port zookeeper.connect then names.";
        tls_ca_file: Kind::Text { bytes_max: 4096 }, "",
            "Path of a PEM file with the certificates that vouch for the ensemble.",
            "Together with zookeeper.tls.";
        tls_certificate_file: Kind::Text { bytes_max: 4096 }, "",
            "Path of a PEM file with this node's certificate. Empty: none is shown.",
            "When the ensemble wants certificates of its clients.";
        tls_key_file: Kind::Text { bytes_max: 4096 }, "",
            "Path of a PEM file with the key of that certificate.",
            "Together with zookeeper.tls_certificate_file.";
    }
    replication {
        address: Kind::Address, "127.0.0.1:9800",
            "Where the other nodes' streams connect: shard i listens on the port plus i. Port 0 takes any free range. Not used \
             without zookeeper.connect.",
            "In a cluster: an address that the other nodes reach, on a network that only they reach.";
        advertised_host: Kind::Text { bytes_max: 253 }, "",
            "Name or address that the other nodes connect to. Empty: the host of replication.address.",
            "When they reach this machine under another name.";
        insecure: Kind::Flag, "false",
            "Allows an address that other machines reach. There is no authentication and no encryption yet: whoever \
             connects may read everything.",
            "Only in a network that you trust.";
        lag_max: Kind::Millis { min: 100, max: 3_600_000, or: Or::Nothing }, "10s",
            "A follower that is connected and has not caught up with the leader's end for this long leaves the ISR: acks=all \
             waits for it no longer.",
            "Lower it to bound the latency that a slow follower causes; raise it where followers stall and come back.";
        disconnect_max: Kind::Millis { min: 0, max: 3_600_000, or: Or::Nothing }, "1s",
            "A follower without a connection leaves the ISR after this long.",
            "Raise it on a network that drops connections; lower it to let producers wait less for dead followers.";
        catch_up_bytes_per_second: Kind::Bytes { min: 1 << 16, max: 1 << 40, or: Or::Unlimited }, "none",
            "How fast one shard sends old records, from its disks, to followers that are far behind.",
            "When catching up disturbs producers and consumers more than they can bear.";
        scrub_bytes_per_second: Kind::Bytes { min: 0, max: 1 << 40, or: Or::Nothing }, "4MiB",
            "How fast one shard reads its sealed segments in the background to find damage. 0B: not at all.",
            "Raise it to find damage sooner: all sealed data should be read within some weeks.";
    }
    controller {
        balance_delay: Kind::Millis { min: 0, max: 86_400_000, or: Or::Unlimited }, "30s",
            "Leadership goes back to the preferred replicas once they have been in sync for this long. \"none\": only on \
             `corelog cluster rebalance`.",
            "Raise it where nodes come and go often.";
    }
    http {
        enabled: Kind::Flag, "true",
            "Whether metrics and health are served.",
            "Turn it off if nobody looks.";
        address: Kind::Address, "127.0.0.1:9690",
            "Address of metrics and health. Port 0 takes any free port and prints it.",
            "When the machine that watches is another one; see http.insecure.";
        insecure: Kind::Flag, "false",
            "Allows an address that other machines reach. Metrics name topics and sizes; nothing can be changed here.",
            "Only in a network that you trust.";
    }
    data {
        dirs: Kind::Paths, "/var/lib/corelog",
            "Data directories, one per disk. New partitions go to the one with the most free space; the first one \
             also holds the metadata. A failed one takes only its own partitions offline.",
            "Name one directory on each disk that is to hold data. Append new ones at the end.";
        free_bytes_min: Kind::Bytes { min: 0, max: 1 << 50, or: Or::Nothing }, "1GiB",
            "With less free space than this on a disk, produce to its partitions is refused; reads, deletes and \
             retention go on, and produce comes back by itself.",
            "Raise it on large disks: about what producers write in the time you need to react.";
    }
    cores {
        data: Kind::Cores, "auto",
            "Cores that run one shard each, pinned. \"auto\": all that the process may use but the last one.",
            "To leave cores to other programs, or to stay on one NUMA node. The data opens on any number of shards.";
        control: Kind::Core, "auto",
            "Core of the control thread (metadata, HTTP). \"auto\": one that runs no shard, if there is one.",
            "Rarely.";
        polling: Kind::Micros { min: 0, max: 10_000 }, "0us",
            "How long an idle shard polls for work before it sleeps. 0us: an idle node costs next to nothing.",
            "50us to 1ms takes some microseconds off the latency and the whole of each data core.";
    }
    memory {
        per_shard: Kind::Bytes { min: 16 * MIB, max: 1 << 40, or: Or::Auto }, "auto",
            "Buffer memory of one shard: tails of its logs, requests, read-ahead. When it is used up, producers \
             wait. \"auto\": a quarter of the usable memory, shared out over the shards, 64MiB to 192MiB each.",
            "Raise it with many partitions or many slow consumers near the tail; lower it beside other programs.";
    }
    limits {
        connections_max: Kind::Count { min: 1, max: 1_000_000 }, "4096",
            "Connections of one shard; more are turned away.",
            "With more clients than that per shard. Each takes a descriptor (see `ulimit -n`).";
        frame_bytes_max: Kind::Bytes { min: 64 * KIB, max: 256 * MIB, or: Or::Nothing }, "16MiB",
            "Largest request or response.",
            "Together with topic.batch_bytes_max, for large records.";
        in_flight_bytes_max: Kind::Bytes { min: 64 * KIB, max: 4 * GIB, or: Or::Nothing }, "32MiB",
            "Unanswered bytes of one connection beyond which the server stops reading from it.",
            "Raise it for few fast producers over long lines; lower it for very many connections.";
        in_flight_requests_max: Kind::Count { min: 1, max: 100_000 }, "1024",
            "Unanswered requests of one connection beyond which the server stops reading from it.",
            "Rarely.";
        idle_timeout: Kind::Millis { min: 1_000, max: 86_400_000, or: Or::Unlimited }, "10m",
            "A connection that sends no request for this long is closed.",
            "When a firewall between forgets connections sooner, or clients sleep longer.";
        partitions_max: Kind::Count { min: 1, max: 1_000_000 }, "10000",
            "Partitions of this node; creating more is refused. Each takes a few kilobytes, and descriptors when in use.",
            "When you have measured that this machine carries more.";
        partitions_per_topic_max: Kind::Count { min: 1, max: 100_000 }, "1000",
            "Partitions of one topic.",
            "Rarely: more partitions than cores and consumers do not make a topic faster.";
        open_files_max: Kind::Count { min: 16, max: 1_000_000 }, "512",
            "Sealed segment files that one shard holds open for readers; others are opened when needed.",
            "Raise it, and `ulimit -n`, when many consumers read old data of many partitions.";
        stop_timeout: Kind::Millis { min: 100, max: 3_600_000, or: Or::Nothing }, "30s",
            "How long a stop waits for requests under way and for syncs. After it the node stops without the clean \
             marker, and the next start scans the tails of the logs.",
            "Together with the time that the service manager grants (TimeoutStopSec= of systemd).";
    }
    topic {
        partitions: Kind::Count { min: 1, max: 100_000 }, "1",
            "Partitions of a topic that is created without a number of them.",
            "When most of your topics want more.";
        replicas: Kind::Count { min: 0, max: 15 }, "0",
            "Replicas of each partition of a topic that is created without a number of them. 0: three, or as many as there \
             are nodes.",
            "When most of your topics want more, or fewer.";
        auto_create: Kind::Flag, "false",
            "Whether a produce to a topic that does not exist creates it.",
            "For trying things out. In production a misspelt name then becomes a topic.";
    }
    tuning {
        cores_file: Kind::Text { bytes_max: 4096 }, "",
            "Path of a `cores.toml`; it fills in cores.* and memory.* that are \"auto\". Empty: safe defaults.",
            "After `corelog tune` has written one.";
        disk_file: Kind::Text { bytes_max: 4096 }, "",
            "Path of a `disk.toml` with the depths that suit each disk. Empty: safe defaults.",
            "After `corelog tune` has written one.";
    }
    log {
        level: Kind::Choice(&["error", "warn", "info", "debug", "trace"]), "info",
            "Least important kind of message that is printed. RUST_LOG, if set, wins.",
            "\"debug\" while looking for a fault; it costs speed.";
        format: Kind::Choice(&["human", "json"]), "human",
            "\"human\": one line for people. \"json\": one object per line for machines.",
            "\"json\" where logs are collected.";
    }
};

/// Every key, in the order of the reference.
pub fn all() -> Vec<Key> {
    let topic_options = TOPIC_OPTIONS.iter().map(|option| Key {
        section: "topic",
        name: option.name,
        kind: option.kind,
        default: option.default,
        what: option.what,
        change_when: option.change_when,
    });
    let (after, mut keys): (Vec<Key>, Vec<Key>) =
        OWN_KEYS.iter().partition(|key| matches!(key.section, "tuning" | "log"));
    keys.extend(topic_options);
    keys.extend(after);
    keys
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::value::Raw;
    use super::*;

    #[test]
    fn every_default_is_in_its_own_range_and_prints_as_written() {
        for key in all() {
            let value = key.kind.parse(&Raw::Text(key.default.to_owned()));
            assert_eq!(value.map(|v| v.to_string()), Ok(key.default.to_owned()), "{}", key.full_name());
        }
    }

    #[test]
    fn names_are_unique_and_their_sections_known() {
        let keys = all();
        let names: BTreeSet<String> = keys.iter().map(Key::full_name).collect();
        let variables: BTreeSet<String> = keys.iter().map(Key::environment).collect();
        assert_eq!((names.len(), variables.len()), (keys.len(), keys.len()));
        for key in &keys {
            assert!(SECTIONS.iter().any(|(section, _)| *section == key.section), "{}", key.full_name());
            // The environment splits section and name at the first underscore.
            assert!(!key.section.contains('_'), "{}", key.full_name());
        }
    }
}
