//! What cannot be true together. Pure: a configuration in, problems out; the machine is not looked at.
//!
//! Owns: every rule that concerns more than one key. Ranges of single keys are in `keys.rs`.

use std::path::{Component, Path};

use corelog_engine::log::CleanupPolicy;

use super::Config;
use super::keys;
use super::source::{Origin, Problem};
use super::value::{HostPort, Value};
use crate::control::options::Flush;

/// Head and framing around the batches of a produce request; generous.
pub const FRAME_OVERHEAD_BYTES: u64 = 4 << 10;

/// Whether a produce of one such batch fits a frame.
pub fn batch_fits_frame(batch_bytes_max: u64, frame_bytes_max: u32) -> bool {
    batch_bytes_max + FRAME_OVERHEAD_BYTES <= u64::from(frame_bytes_max)
}

/// All contradictions of a configuration, each at the place of the key to change.
pub fn contradictions(config: &Config) -> Vec<Problem> {
    let mut found = Found { config, problems: Vec::new() };
    found.addresses();
    found.zookeeper();
    found.cores();
    found.sizes();
    found.topics();
    found.directories();
    found.problems
}

/// Ports that two listeners would share, once the number of shards is known.
pub fn port_conflict(config: &Config, shards: u16) -> Option<String> {
    let shards = u32::from(shards);
    let Config { listen, replication, http, .. } = config;
    let range = |key, address: &HostPort, count: u32| {
        let first = u32::from(address.port);
        (address.port != 0).then(|| Ports { key, address: address.clone(), first, end: first + count })
    };
    let ranges = [
        range("listen.address", &listen.address, shards),
        config.zookeeper.as_ref().and_then(|_| range("replication.address", &replication.address, shards)),
        http.enabled.then(|| range("http.address", &http.address, 1)).flatten(),
    ];
    let ranges: Vec<Ports> = ranges.into_iter().flatten().collect();
    if let Some(Ports { key, first, end, .. }) = ranges.iter().find(|ports| ports.end > 65_536) {
        return Some(format!(
            "{key}: {shards} shards need the ports {first} to {}, and there is none above 65535; choose a lower \
             port, or fewer cores.data",
            end - 1
        ));
    }
    for (number, later) in ranges.iter().enumerate() {
        for earlier in &ranges[..number] {
            let is_shared = later.first < earlier.end && earlier.first < later.end;
            if is_shared && overlap(&earlier.address, &later.address) {
                let port = later.first.max(earlier.first);
                return Some(format!(
                    "{}: port {port} belongs to shard {} of {} (shards listen on {} to {}); choose another one",
                    later.key,
                    port - earlier.first,
                    earlier.key,
                    earlier.first,
                    earlier.end - 1
                ));
            }
        }
    }
    None
}

/// Ports of one listener: one for each shard.
struct Ports {
    key: &'static str,
    address: HostPort,
    first: u32,
    end: u32,
}

fn overlap(a: &HostPort, b: &HostPort) -> bool {
    a.host == b.host || a.is_wildcard() || b.is_wildcard() || (a.is_loopback() && b.is_loopback())
}

struct Found<'a> {
    config: &'a Config,
    problems: Vec<Problem>,
}

impl Found<'_> {
    /// Reports a problem at the first of `keys` that somebody has set.
    fn at(&mut self, keys: &[&str], text: String) {
        let values = &self.config.values;
        let set = keys.iter().find(|key| values.is_set(key));
        let origin = set.map_or(Origin::Default, |key| values.origin(key).clone());
        self.problems.push(Problem { origin, text });
    }

    /// Whether a key holds something else than its default (`config print` writes defaults out).
    fn is_changed(&self, key: &str) -> bool {
        let default =
            keys::all().into_iter().find(|known| known.full_name() == key).map(|known| known.default);
        default != Some(self.config.values.get(key).0.to_string().as_str())
    }

    fn addresses(&mut self) {
        let Config { listen, http, replication, .. } = self.config;
        let open = [
            ("listen", &listen.address, listen.insecure, true),
            ("replication", &replication.address, replication.insecure, self.config.zookeeper.is_some()),
            ("http", &http.address, http.insecure, http.enabled),
        ];
        for (section, address, insecure, is_used) in open {
            if is_used && !address.is_loopback() && !insecure {
                let text = format!(
                    "{section}.address: other machines can reach {address}, and there is no authentication or \
                     encryption yet; listen on 127.0.0.1, or set {section}.insecure = true in a network that you trust"
                );
                self.at(&[&format!("{section}.address")], text);
            }
        }
        let advertised = [
            ("listen", "clients", &listen.address, &listen.advertised_host, true),
            (
                "replication",
                "other nodes",
                &replication.address,
                &replication.advertised_host,
                self.config.zookeeper.is_some(),
            ),
        ];
        for (section, who, address, host, is_used) in advertised {
            if is_used && address.is_wildcard() && host.is_none() {
                let text = format!(
                    "{section}.address: {who} cannot connect to {}; set {section}.advertised_host to the name or \
                     address under which they reach this machine",
                    address.host
                );
                self.at(&[&format!("{section}.address")], text);
            }
        }
        if let Some(cores) = &self.config.cores.data
            && let Some(text) = port_conflict(self.config, u16::try_from(cores.len()).unwrap_or(u16::MAX))
        {
            self.at(&["http.address", "replication.address", "listen.address", "cores.data"], text);
        }
    }

    fn zookeeper(&mut self) {
        let changed = |key: &str| self.is_changed(key);
        let together = [
            ("zookeeper.auth", "zookeeper.user"),
            ("zookeeper.auth", "zookeeper.password_file"),
            ("zookeeper.user", "zookeeper.auth"),
            ("zookeeper.password_file", "zookeeper.auth"),
            ("zookeeper.tls", "zookeeper.tls_ca_file"),
            ("zookeeper.tls_ca_file", "zookeeper.tls"),
            ("zookeeper.tls_certificate_file", "zookeeper.tls_key_file"),
            ("zookeeper.tls_key_file", "zookeeper.tls_certificate_file"),
        ];
        let alone: Vec<_> =
            together.into_iter().filter(|(key, other)| changed(key) && !changed(other)).collect();
        for (key, missing) in alone {
            self.at(&[key], format!("{key}: has no meaning alone; set {missing} as well"));
        }
        let Some(zookeeper) = &self.config.zookeeper else {
            return;
        };
        for server in zookeeper.connect.split(',') {
            let problem = match HostPort::parse(server.trim()) {
                Ok(address) if address.port > 0 => continue,
                Ok(_) => format!("{server:?} has port 0; ZooKeeper usually listens on 2181"),
                Err(problem) => problem,
            };
            self.at(&["zookeeper.connect"], format!("zookeeper.connect: {problem}"));
        }
        let root = &zookeeper.root;
        let is_plain = |part: &str| {
            !part.is_empty()
                && part != "."
                && part != ".."
                && part.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if !root.strip_prefix('/').is_some_and(|parts| parts.split('/').all(is_plain)) {
            let text = format!(
                "zookeeper.root: {root:?} is no path of a znode; write one like /corelog, without a slash at its end"
            );
            self.at(&["zookeeper.root"], text);
        }
    }

    fn cores(&mut self) {
        let cores = &self.config.cores;
        if let (Some(data), Some(control)) = (&cores.data, cores.control)
            && data.contains(&control)
        {
            let text = format!(
                "cores.control: core {control} is also one of cores.data; take it out there, or leave cores.control at \
                 \"auto\""
            );
            self.at(&["cores.control", "cores.data"], text);
        }
    }

    fn sizes(&mut self) {
        let (limits, options) = (&self.config.limits, &self.config.topic.options);
        let (frame, in_flight) = (u64::from(limits.frame_bytes_max), limits.in_flight_bytes_max);
        if !batch_fits_frame(options.batch_bytes_max, limits.frame_bytes_max) {
            let text = format!(
                "topic.batch_bytes_max: a batch of {} does not fit a frame of {}; raise limits.frame_bytes_max to \
                 at least {} more than it",
                Value::Bytes(options.batch_bytes_max),
                Value::Bytes(frame),
                Value::Bytes(FRAME_OVERHEAD_BYTES)
            );
            self.at(&["topic.batch_bytes_max", "limits.frame_bytes_max"], text);
        }
        if in_flight < frame {
            let text = format!(
                "limits.in_flight_bytes_max: {} is less than one frame (limits.frame_bytes_max is {}); raise it",
                Value::Bytes(in_flight),
                Value::Bytes(frame)
            );
            self.at(&["limits.in_flight_bytes_max", "limits.frame_bytes_max"], text);
        }
        if let Some(memory) = self.config.memory_bytes_per_shard
            && memory < 2 * frame
        {
            let text = format!(
                "memory.per_shard: {} does not hold two frames (limits.frame_bytes_max is {}); raise it, or lower \
                 limits.frame_bytes_max",
                Value::Bytes(memory),
                Value::Bytes(frame)
            );
            self.at(&["memory.per_shard", "limits.frame_bytes_max"], text);
        }
    }

    fn topics(&mut self) {
        let (limits, topic) = (&self.config.limits, &self.config.topic);
        if topic.partitions > limits.partitions_per_topic_max {
            let text = format!(
                "topic.partitions: {} is more than limits.partitions_per_topic_max ({})",
                topic.partitions, limits.partitions_per_topic_max
            );
            self.at(&["topic.partitions", "limits.partitions_per_topic_max"], text);
        }
        if limits.partitions_per_topic_max > limits.partitions_max {
            let text = format!(
                "limits.partitions_per_topic_max: {} is more than limits.partitions_max ({}), which counts those of \
                 all topics",
                limits.partitions_per_topic_max, limits.partitions_max
            );
            self.at(&["limits.partitions_per_topic_max", "limits.partitions_max"], text);
        }
        if let Some(text) = topic.options.contradiction() {
            self.at(&["topic.batch_bytes_max", "topic.segment_bytes_max"], format!("topic: {text}"));
        }
        for key in ["topic.flush_interval_bytes", "topic.flush_interval_ms"] {
            if topic.options.flush == Flush::Commit && self.is_changed(key) {
                let text = format!(
                    "{key}: has no effect with topic.flush = \"commit\"; set topic.flush = \"interval\" or remove it"
                );
                self.at(&[key], text);
            }
        }
        for key in ["topic.retention_bytes", "topic.retention_ms"] {
            if topic.options.cleanup_policy == CleanupPolicy::Keep && self.is_changed(key) {
                let text = format!(
                    "{key}: has no effect with topic.cleanup_policy = \"keep\"; set topic.cleanup_policy = \"delete\" \
                     or remove it"
                );
                self.at(&[key], text);
            }
        }
    }

    fn directories(&mut self) {
        let dirs = &self.config.data.dirs;
        for (number, dir) in dirs.iter().enumerate() {
            for earlier in &dirs[..number] {
                let (a, b) = (plain(earlier), plain(dir));
                if a == b {
                    self.at(&["data.dirs"], format!("data.dirs: {} is named twice", dir.display()));
                } else if a.starts_with(&b) || b.starts_with(&a) {
                    let text = format!(
                        "data.dirs: {} and {} lie one inside the other; name one directory per disk",
                        earlier.display(),
                        dir.display()
                    );
                    self.at(&["data.dirs"], text);
                }
            }
        }
    }
}

/// A path without `.` and repeated separators, so that two spellings of one directory compare equal.
fn plain(path: &Path) -> std::path::PathBuf {
    path.components().filter(|component| *component != Component::CurDir).collect()
}
