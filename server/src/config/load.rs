//! Joins the sources into one complete configuration, or reports everything that is wrong with them at once.
//!
//! Owns: precedence (defaults, file, environment, flags; later wins) and the way from values to [`Config`].
//! Invariant: a `Config` that exists has passed every check that needs no look at the machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::check;
use super::keys::{self, Key};
use super::source::{self, FILE_BYTES_MAX, Origin, Problem, Setting, nearest};
use super::value::{HostPort, Raw, Value};
use super::{
    Config, ControllerConfig, CoresConfig, DataConfig, HttpConfig, LimitsConfig, ListenConfig, LogConfig,
    LogFormat, NodeConfig, ReplicationConfig, TopicConfig, TuningConfig, ZooKeeperAuth, ZooKeeperConfig,
    ZooKeeperTls,
};
use crate::control::options::{TOPIC_OPTIONS, TopicOptions};
use crate::control::snapshot::NodeId;

/// What a configuration is made from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file; without one, defaults.
    pub file: Option<PathBuf>,
    /// Variables of the environment; [`Sources::from_process`] takes those of this process.
    pub environment: Vec<(String, String)>,
    /// Flags given: key, value, and the flag's name for messages.
    pub flags: Vec<(&'static str, Raw, &'static str)>,
}

impl Sources {
    /// A file and the environment of this process.
    pub fn from_process(file: Option<PathBuf>) -> Self {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self { file, environment, flags: Vec::new() }
    }

    /// Adds a flag that overrides `key`.
    #[must_use]
    pub fn flag(mut self, key: &'static str, value: impl Into<Raw>, flag: &'static str) -> Self {
        self.flags.push((key, value.into(), flag));
        self
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}: {error}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// These settings must change.
    #[error("{}", join(.0))]
    Problems(Vec<Problem>),
}

fn join(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    let (count, s) = (problems.len(), if problems.len() == 1 { "" } else { "s" });
    format!("{count} problem{s} in the configuration:\n  {}", lines.join("\n  "))
}

/// Values by full key name, each with its place.
#[derive(Clone, Debug)]
pub struct Values(BTreeMap<String, (Value, Origin)>);

impl Values {
    /// Value and origin of a key of the table.
    pub fn get(&self, key: &str) -> &(Value, Origin) {
        self.0.get(key).unwrap_or_else(|| panic!("{key} is not in the table of keys"))
    }

    /// Where a key was set.
    pub fn origin(&self, key: &str) -> &Origin {
        &self.get(key).1
    }

    /// Whether a key was set anywhere.
    pub fn is_set(&self, key: &str) -> bool {
        *self.origin(key) != Origin::Default
    }

    fn value(&self, key: &str) -> &Value {
        &self.get(key).0
    }

    fn number(&self, key: &str) -> u64 {
        match self.value(key) {
            Value::Count(n) | Value::Bytes(n) | Value::Millis(n) | Value::Micros(n) => *n,
            other => panic!("{key} holds {other:?}, not a number"),
        }
    }

    /// A count whose range in the table fits the type.
    fn count<T: TryFrom<u64>>(&self, key: &str) -> T {
        T::try_from(self.number(key))
            .unwrap_or_else(|_| panic!("the range of {key} is too large for its type"))
    }

    fn limit(&self, key: &str) -> Option<u64> {
        match self.value(key) {
            Value::Unlimited | Value::Auto => None,
            _ => Some(self.number(key)),
        }
    }

    fn flag(&self, key: &str) -> bool {
        matches!(self.value(key), Value::Flag(true))
    }

    fn text(&self, key: &str) -> String {
        self.value(key).to_string()
    }

    /// A text, unless it is empty.
    fn word(&self, key: &str) -> Option<String> {
        Some(self.text(key)).filter(|text| !text.is_empty())
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.word(key).map(PathBuf::from)
    }

    fn address(&self, key: &str) -> HostPort {
        match self.value(key) {
            Value::Address(address) => address.clone(),
            other => panic!("{key} holds {other:?}, not an address"),
        }
    }

    fn cores(&self, key: &str) -> Option<Vec<u16>> {
        match self.value(key) {
            Value::Cores(cores) => Some(cores.clone()),
            _ => None,
        }
    }
}

/// Reads, joins and checks. All problems come back together.
pub fn load(sources: &Sources) -> Result<Config, ConfigError> {
    let keys = keys::all();
    let mut problems = Vec::new();
    let mut settings = Vec::new();
    if let Some(path) = &sources.file {
        settings.extend(source::from_toml(path, &read_file(path)?, &keys, &mut problems));
    }
    settings.extend(source::from_environment(sources.environment.iter().cloned(), &keys, &mut problems));
    settings.extend(sources.flags.iter().map(|(key, value, flag)| Setting {
        key: (*key).to_owned(),
        raw: value.clone(),
        origin: Origin::Flag(flag),
    }));
    let values = understand(&keys, settings, &mut problems);
    let config = build(values);
    problems.extend(check::contradictions(&config));
    if problems.is_empty() { Ok(config) } else { Err(ConfigError::Problems(problems)) }
}

fn read_file(path: &Path) -> Result<String, ConfigError> {
    use std::io::Read;
    let unreadable = |error| ConfigError::Unreadable { path: path.to_owned(), error };
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(unreadable(std::io::Error::other(format!("larger than {FILE_BYTES_MAX} bytes"))));
    }
    Ok(text)
}

/// Looks every setting up in the table. A wrong one leaves the earlier value in place, so that the checks go on.
fn understand(keys: &[Key], settings: Vec<Setting>, problems: &mut Vec<Problem>) -> Values {
    let mut values: BTreeMap<String, (Value, Origin)> = keys
        .iter()
        .map(|key| {
            let default = key.kind.parse(&Raw::Text(key.default.to_owned()));
            (key.full_name(), (default.expect("defaults are in range"), Origin::Default))
        })
        .collect();
    for Setting { key, raw, origin } in settings {
        let Some(known) = keys.iter().find(|known| known.full_name() == key) else {
            problems.push(Problem { text: unknown_key(keys, &key), origin });
            continue;
        };
        match known.kind.parse(&raw) {
            Ok(value) => {
                values.insert(key, (value, origin));
            }
            Err(text) => problems.push(Problem { text: format!("{key}: {text}"), origin }),
        }
    }
    Values(values)
}

fn unknown_key(keys: &[Key], key: &str) -> String {
    let names: Vec<String> = keys.iter().map(Key::full_name).collect();
    // A right name in a wrong section, or without any, is the likeliest mistake.
    let last = key.rsplit('.').next().unwrap_or(key);
    // A section's name in the place of a key (`listen.http`) means where that section listens, or its first key.
    let of_section = || keys.iter().filter(|known| known.section == last);
    let elsewhere = keys.iter().find(|known| known.name == last);
    let elsewhere = elsewhere.or_else(|| of_section().find(|known| known.name == "address"));
    let elsewhere = elsewhere.or_else(|| of_section().next()).map(Key::full_name);
    match elsewhere.as_deref().or_else(|| nearest(key, names.iter().map(String::as_str))) {
        Some(name) => format!("unknown key {key}; did you mean {name}?"),
        None => format!("unknown key {key}; `corelog config reference` lists all keys"),
    }
}

fn zookeeper(values: &Values) -> Option<ZooKeeperConfig> {
    let identity = values.path("zookeeper.tls_certificate_file").zip(values.path("zookeeper.tls_key_file"));
    let tls = values.path("zookeeper.tls_ca_file").map(|ca_file| ZooKeeperTls { ca_file, identity });
    let who = values.word("zookeeper.user").zip(values.path("zookeeper.password_file"));
    let auth = values.text("zookeeper.auth");
    Some(ZooKeeperConfig {
        connect: values.word("zookeeper.connect")?,
        root: values.text("zookeeper.root"),
        session_timeout_ms: values.number("zookeeper.session_timeout"),
        auth: who.filter(|_| auth != "none").map(|(user, password_file)| ZooKeeperAuth {
            is_sasl: auth == "sasl",
            user,
            password_file,
        }),
        tls: tls.filter(|_| values.flag("zookeeper.tls")),
    })
}

fn build(values: Values) -> Config {
    let mut options = TopicOptions::default();
    for key in TOPIC_OPTIONS {
        (key.set)(&mut options, values.value(&format!("topic.{}", key.name)));
    }
    let paths = match values.value("data.dirs") {
        Value::Paths(paths) => paths.iter().map(PathBuf::from).collect(),
        other => panic!("data.dirs holds {other:?}, not paths"),
    };
    let format = if values.text("log.format") == "json" { LogFormat::Json } else { LogFormat::Human };
    Config {
        node: NodeConfig { id: NodeId(values.count("node.id")), rack: values.text("node.rack") },
        listen: ListenConfig {
            address: values.address("listen.address"),
            advertised_host: values.word("listen.advertised_host"),
            insecure: values.flag("listen.insecure"),
        },
        zookeeper: zookeeper(&values),
        replication: ReplicationConfig {
            address: values.address("replication.address"),
            advertised_host: values.word("replication.advertised_host"),
            insecure: values.flag("replication.insecure"),
            lag_max_ms: values.number("replication.lag_max"),
            disconnect_max_ms: values.number("replication.disconnect_max"),
            catch_up_bytes_per_second: values.limit("replication.catch_up_bytes_per_second"),
            scrub_bytes_per_second: values.number("replication.scrub_bytes_per_second"),
        },
        controller: ControllerConfig { balance_delay_ms: values.limit("controller.balance_delay") },
        http: HttpConfig {
            enabled: values.flag("http.enabled"),
            address: values.address("http.address"),
            insecure: values.flag("http.insecure"),
        },
        data: DataConfig { dirs: paths, free_bytes_min: values.number("data.free_bytes_min") },
        cores: CoresConfig {
            data: values.cores("cores.data"),
            control: values.cores("cores.control").map(|cores| cores[0]),
            polling_us: values.number("cores.polling"),
        },
        memory_bytes_per_shard: values.limit("memory.per_shard"),
        limits: LimitsConfig {
            connections_max: values.count("limits.connections_max"),
            frame_bytes_max: values.count("limits.frame_bytes_max"),
            in_flight_bytes_max: values.number("limits.in_flight_bytes_max"),
            in_flight_requests_max: values.count("limits.in_flight_requests_max"),
            idle_timeout_ms: values.limit("limits.idle_timeout"),
            partitions_max: values.count("limits.partitions_max"),
            partitions_per_topic_max: values.count("limits.partitions_per_topic_max"),
            open_files_max: values.count("limits.open_files_max"),
            stop_timeout_ms: values.number("limits.stop_timeout"),
        },
        topic: TopicConfig {
            partitions: values.count("topic.partitions"),
            replicas: Some(values.count("topic.replicas")).filter(|replicas| *replicas > 0),
            auto_create: values.flag("topic.auto_create"),
            options,
        },
        tuning: TuningConfig {
            cores_file: values.path("tuning.cores_file"),
            disk_file: values.path("tuning.disk_file"),
        },
        log: LogConfig { level: values.text("log.level"), format },
        values,
    }
}
