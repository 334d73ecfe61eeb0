//! One setting as text or TOML, what kinds there are, and how each is read and printed.
//!
//! Owns: the spelling of sizes (`16MiB`), durations (`5s`), addresses, lists and choices, and their ranges. The
//! same kinds serve the configuration file, the environment, the flags and the options of topics.
//! Invariant: what `Value` prints, its `Kind` reads back as the same value (a property test holds it).

use std::fmt;

/// A value as it was written, before anybody knows what it should be.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw {
    /// A whole number.
    Integer(i64),
    /// `true` or `false`.
    Flag(bool),
    /// A string; also everything from the environment, the flags and the wire.
    Text(String),
    /// A list.
    List(Vec<Raw>),
    /// Something that no setting takes (a date, a float, a table), by its TOML name.
    Other(&'static str),
}

impl From<&str> for Raw {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Raw {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<Vec<String>> for Raw {
    fn from(items: Vec<String>) -> Self {
        Self::List(items.into_iter().map(Self::Text).collect())
    }
}

/// What a setting holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number of things, from `min` to `max`.
    Count {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A size in bytes.
    Bytes {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
        /// What else may be said.
        or: Or,
    },
    /// A duration in whole milliseconds.
    Millis {
        /// Shortest.
        min: u64,
        /// Longest.
        max: u64,
        /// What else may be said.
        or: Or,
    },
    /// A duration in whole microseconds.
    Micros {
        /// Shortest.
        min: u64,
        /// Longest.
        max: u64,
    },
    /// Yes or no.
    Flag,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Free text of up to so many bytes.
    Text {
        /// Longest.
        bytes_max: usize,
    },
    /// One or more paths.
    Paths,
    /// `HOST:PORT`.
    Address,
    /// A list of core numbers, or `auto`.
    Cores,
    /// One core number, or `auto`.
    Core,
}

/// What a size or duration may say instead of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Or {
    /// Nothing else.
    Nothing,
    /// `none`: no limit.
    Unlimited,
    /// `auto`: chosen at the start.
    Auto,
}

/// Highest core number anybody may name.
const CORE_MAX: u64 = 4095;

/// A setting, understood and within its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A count.
    Count(u64),
    /// A size in bytes.
    Bytes(u64),
    /// A duration in milliseconds.
    Millis(u64),
    /// A duration in microseconds.
    Micros(u64),
    /// Yes or no.
    Flag(bool),
    /// A word or free text.
    Text(String),
    /// Paths.
    Paths(Vec<String>),
    /// Where to listen.
    Address(HostPort),
    /// Core numbers, in the order written.
    Cores(Vec<u16>),
    /// `none`.
    Unlimited,
    /// `auto`.
    Auto,
}

/// A host (a name or an address, IPv6 without brackets) and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Name or address.
    pub host: String,
    /// TCP port; 0 lets the kernel choose.
    pub port: u16,
}

impl HostPort {
    /// Reads `HOST:PORT` or `[IPV6]:PORT`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no address; write HOST:PORT, such as 127.0.0.1:9700 or [::1]:9700");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(wrong)?,
            None if host.contains(':') => return Err(wrong()),
            None => host,
        };
        if host.is_empty()
            || host.contains(|c: char| c.is_whitespace() || c.is_control() || "[]/".contains(c))
        {
            return Err(wrong());
        }
        let port = port.parse().map_err(|_| format!("{port:?} is no port; a port is 0 to 65535"))?;
        Ok(Self { host: host.to_owned(), port })
    }

    /// Whether only this machine can reach it. Names other than `localhost` are not looked up: they count as no.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    /// Whether it means every address of the machine.
    pub fn is_wildcard(&self) -> bool {
        self.ip().is_some_and(|ip| ip.is_unspecified())
    }

    fn ip(&self) -> Option<std::net::IpAddr> {
        self.host.parse().ok()
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

const SIZES: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
const DURATIONS_US: [(&str, u64); 6] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

impl Kind {
    /// Understands a raw value. The error says what would be right; whoever reports it adds the key and the place.
    pub fn parse(&self, raw: &Raw) -> Result<Value, String> {
        match (self, raw) {
            (_, Raw::Other(what)) => Err(format!("a {what} makes no sense here; {}", self.expects())),
            (Self::Paths, _) => parse_paths(raw),
            (Self::Cores, _) => parse_cores(raw),
            (_, Raw::List(_)) => Err(format!("a list makes no sense here; {}", self.expects())),
            (Self::Flag, Raw::Flag(flag)) => Ok(Value::Flag(*flag)),
            (Self::Flag, Raw::Text(text)) => match text.as_str() {
                "true" => Ok(Value::Flag(true)),
                "false" => Ok(Value::Flag(false)),
                other => Err(format!("{other:?} is neither true nor false")),
            },
            (_, Raw::Flag(flag)) => Err(format!("{flag} makes no sense here; {}", self.expects())),
            (_, Raw::Integer(number)) => match u64::try_from(*number) {
                Ok(number) if self.is_numeric() => self.number(number),
                Ok(_) => Err(format!("a number makes no sense here; {}", self.expects())),
                Err(_) => Err(format!("{number} is negative; {}", self.expects())),
            },
            (_, Raw::Text(text)) => self.parse_text(text.trim()),
        }
    }

    fn parse_text(&self, text: &str) -> Result<Value, String> {
        match self {
            Self::Count { .. } => {
                let number =
                    text.parse().map_err(|_| format!("{text:?} is no whole number; {}", self.expects()))?;
                self.number(number)
            }
            Self::Bytes { or, .. } | Self::Millis { or, .. } if or.matches(text) => Ok(or.value()),
            Self::Bytes { .. } => self.number(parse_quantity(text, &SIZES, 1, || size_hint(text))?),
            Self::Millis { .. } => {
                let hint = || {
                    format!("{text:?} is no duration in whole milliseconds; write 250ms, 5s, 10m, 12h or 7d")
                };
                self.number(parse_quantity(text, &DURATIONS_US, 1_000, hint)?)
            }
            Self::Micros { .. } => {
                let hint = || format!("{text:?} is no duration; write 50us, 1ms or 0us");
                self.number(parse_quantity(text, &DURATIONS_US, 1, hint)?)
            }
            Self::Choice(words) => match words.iter().find(|word| **word == text) {
                Some(word) => Ok(Value::Text((*word).to_owned())),
                None => Err(format!("{text:?} is not a choice; {}", self.expects())),
            },
            Self::Text { bytes_max } if text.len() > *bytes_max => {
                Err(format!("longer than {bytes_max} bytes"))
            }
            Self::Text { .. } if text.contains(|c: char| c.is_control()) => {
                Err("holds a control character".to_owned())
            }
            Self::Text { .. } => Ok(Value::Text(text.to_owned())),
            Self::Address => HostPort::parse(text).map(Value::Address),
            Self::Core if text == "auto" => Ok(Value::Auto),
            Self::Core => match text.parse::<u64>() {
                Ok(core) => self.number(core),
                Err(_) => Err(format!("{text:?} is no core; {}", self.expects())),
            },
            Self::Flag | Self::Paths | Self::Cores => unreachable!("read before"),
        }
    }

    fn is_numeric(&self) -> bool {
        matches!(
            self,
            Self::Count { .. } | Self::Bytes { .. } | Self::Millis { .. } | Self::Micros { .. } | Self::Core
        )
    }

    /// A number in the base unit of this kind, if it is in range.
    fn number(&self, number: u64) -> Result<Value, String> {
        let (value, min, max): (fn(u64) -> Value, u64, u64) = match *self {
            Self::Count { min, max } => (Value::Count, min, max),
            Self::Bytes { min, max, .. } => (Value::Bytes, min, max),
            Self::Millis { min, max, .. } => (Value::Millis, min, max),
            Self::Micros { min, max } => (Value::Micros, min, max),
            Self::Core => (|core| Value::Cores(vec![core as u16]), 0, CORE_MAX),
            _ => return Err(format!("a number makes no sense here; {}", self.expects())),
        };
        if (min..=max).contains(&number) {
            Ok(value(number))
        } else {
            Err(format!("{} is out of range: {} to {}", value(number), value(min), value(max)))
        }
    }

    /// What would be right, as the end of a sentence.
    fn expects(&self) -> String {
        format!("it takes {}", self.describe())
    }

    /// Type and range, for the reference and for messages.
    pub fn describe(&self) -> String {
        match self {
            Self::Count { min, max } => format!("a whole number, {min} to {max}"),
            Self::Bytes { min, max, or } => {
                format!("a size, {} to {}{}", Value::Bytes(*min), Value::Bytes(*max), or.describe())
            }
            Self::Millis { min, max, or } => {
                format!("a duration, {} to {}{}", Value::Millis(*min), Value::Millis(*max), or.describe())
            }
            Self::Micros { min, max } => {
                format!("a duration, {} to {}", Value::Micros(*min), Value::Micros(*max))
            }
            Self::Flag => "true or false".to_owned(),
            Self::Choice(words) => {
                let quoted: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
                quoted.join(" or ")
            }
            Self::Text { bytes_max } => format!("text, up to {bytes_max} bytes"),
            Self::Paths => "a path or a list of paths".to_owned(),
            Self::Address => "an address, HOST:PORT".to_owned(),
            Self::Cores => "a list of cores, such as \"1-3,6\" or [1, 2], or \"auto\"".to_owned(),
            Self::Core => "a core number or \"auto\"".to_owned(),
        }
    }
}

impl Or {
    fn word(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Unlimited => Some("none"),
            Self::Auto => Some("auto"),
        }
    }

    fn matches(self, text: &str) -> bool {
        self.word() == Some(text)
    }

    fn value(self) -> Value {
        match self {
            Self::Unlimited => Value::Unlimited,
            Self::Auto | Self::Nothing => Value::Auto,
        }
    }

    fn describe(self) -> String {
        self.word().map_or_else(String::new, |word| format!(", or {word:?}"))
    }
}

/// A number with a unit, or a bare number in the base unit (`base` of the table's smallest unit).
fn parse_quantity(
    text: &str,
    units: &[(&str, u64)],
    base: u64,
    hint: impl Fn() -> String,
) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let number: u64 = text[..digits].parse().map_err(|_| hint())?;
    let unit = text[digits..].trim_start();
    let scale = match units.iter().find(|(name, _)| *name == unit) {
        Some((_, scale)) => *scale,
        None if unit.is_empty() => base,
        None => return Err(hint()),
    };
    let smallest = number.checked_mul(scale).ok_or_else(|| format!("{text:?} is too large for anything"))?;
    if smallest % base == 0 { Ok(smallest / base) } else { Err(hint()) }
}

fn size_hint(text: &str) -> String {
    let decimal =
        ["KB", "kB", "MB", "GB", "TB", "K", "M", "G", "T"].iter().find(|unit| text.ends_with(**unit));
    match decimal {
        Some(unit) => {
            let letter = unit[..1].to_uppercase();
            format!("{text:?}: sizes are powers of 1024 here; write {letter}iB instead of {unit}")
        }
        None => format!("{text:?} is no size; write bytes, or a number with KiB, MiB, GiB or TiB"),
    }
}

fn parse_paths(raw: &Raw) -> Result<Value, String> {
    let paths: Vec<String> = match raw {
        Raw::Text(text) => text.split(',').map(|path| path.trim().to_owned()).collect(),
        Raw::List(items) => items.iter().map(text_of).collect::<Result<_, _>>()?,
        _ => return Err("it takes a path or a list of paths".to_owned()),
    };
    if paths.is_empty() || paths.iter().any(String::is_empty) {
        return Err("an empty path; name at least one directory".to_owned());
    }
    Ok(Value::Paths(paths))
}

fn text_of(raw: &Raw) -> Result<String, String> {
    match raw {
        Raw::Text(text) => Ok(text.clone()),
        _ => Err("every entry of the list must be a quoted path".to_owned()),
    }
}

fn parse_cores(raw: &Raw) -> Result<Value, String> {
    let list = match raw {
        Raw::Text(text) if text.trim() == "auto" => return Ok(Value::Auto),
        Raw::Text(text) => text.clone(),
        Raw::Integer(core) => core.to_string(),
        Raw::List(items) => {
            let mut cores = Vec::with_capacity(items.len());
            for item in items {
                match item {
                    Raw::Integer(core) => cores.push(core.to_string()),
                    Raw::Text(text) => cores.push(text.clone()),
                    _ => return Err(Kind::Cores.expects()),
                }
            }
            cores.join(",")
        }
        Raw::Flag(_) | Raw::Other(_) => return Err(Kind::Cores.expects()),
    };
    let cores = corelog_tuning::parse_core_list(&list).map_err(|error| error.to_string())?;
    cores
        .into_iter()
        .map(u16::try_from)
        .collect::<Result<_, _>>()
        .map(Value::Cores)
        .map_err(|e| e.to_string())
}

/// The largest unit that divides a number, for printing.
fn with_unit(number: u64, units: &[(&str, u64)]) -> String {
    let unit = units.iter().find(|(_, scale)| number != 0 && number.is_multiple_of(*scale));
    match unit {
        Some((name, scale)) => format!("{}{name}", number / scale),
        None => format!("0{}", units.last().map_or("", |(name, _)| name)),
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(number) => number.fmt(f),
            Self::Bytes(bytes) => f.write_str(&with_unit(*bytes, &SIZES)),
            Self::Millis(ms) => match ms.checked_mul(1_000) {
                Some(0) => f.write_str("0ms"),
                Some(us) => f.write_str(&with_unit(us, &DURATIONS_US)),
                None => write!(f, "{ms}ms"),
            },
            Self::Micros(us) => f.write_str(&with_unit(*us, &DURATIONS_US)),
            Self::Flag(flag) => flag.fmt(f),
            Self::Text(text) => f.write_str(text),
            Self::Paths(paths) => f.write_str(&paths.join(",")),
            Self::Address(address) => address.fmt(f),
            Self::Cores(cores) => {
                let cores: Vec<String> = cores.iter().map(u16::to_string).collect();
                f.write_str(&cores.join(","))
            }
            Self::Unlimited => f.write_str("none"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl Value {
    /// As TOML.
    pub fn to_toml(&self) -> String {
        match self {
            Self::Count(number) => number.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Cores(cores) if cores.len() == 1 => cores[0].to_string(),
            Self::Cores(cores) => format!("{cores:?}"),
            Self::Paths(paths) => {
                let quoted: Vec<String> = paths.iter().map(|path| quote(path)).collect();
                format!("[{}]", quoted.join(", "))
            }
            other => quote(&other.to_string()),
        }
    }

    /// As JSON; sizes and durations as numbers in their base unit.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Count(n) | Self::Bytes(n) | Self::Millis(n) | Self::Micros(n) => (*n).into(),
            Self::Flag(flag) => (*flag).into(),
            Self::Paths(paths) => paths.clone().into(),
            Self::Cores(cores) => cores.clone().into(),
            Self::Unlimited => serde_json::Value::Null,
            other => other.to_string().into(),
        }
    }
}

/// A TOML basic string.
fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
