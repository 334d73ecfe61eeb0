//! Options of a topic: the one table of their names, ranges and meanings, and what they mean to a log.
//!
//! Owns: the table ([`TOPIC_OPTIONS`]). The configuration's `[topic]` section, `topic create|alter|describe`, the
//! wire and `docs/configuration.md` all read it, so an option has one name and one range everywhere.
//! Invariant: a [`TopicOptions`] is complete (defaults filled in) and each value is within its range.

use std::collections::BTreeMap;

use corelog_engine::LogOptions;
use corelog_engine::batch::TimestampType;
use corelog_engine::log::{CleanupPolicy, FlushPolicy};

use crate::config::value::{Kind, Or, Raw, Value};

/// When appended bytes are made to survive power loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Before a produce is answered.
    Commit,
    /// In the background, when `flush_interval_bytes` or `flush_interval_ms` is reached.
    Interval,
}

/// Options of one topic. Field names are the names of the options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicOptions {
    /// A segment rolls before it would pass this many bytes.
    pub segment_bytes_max: u64,
    /// A segment rolls when its first append is older than this.
    pub segment_age_max_ms: u64,
    /// Oldest segments go while the log is larger than this. `None`: no limit.
    pub retention_bytes: Option<u64>,
    /// Segments go when their newest record is older than this. `None`: no limit.
    pub retention_ms: Option<u64>,
    /// When bytes are synced.
    pub flush: Flush,
    /// Unsynced bytes that start a sync, with `flush = interval`.
    pub flush_interval_bytes: u64,
    /// Age of the oldest unsynced byte that starts a sync, with `flush = interval`.
    pub flush_interval_ms: u64,
    /// Largest batch accepted, header included.
    pub batch_bytes_max: u64,
    /// Whose clock the record timestamps show.
    pub timestamp_type: TimestampType,
    /// What happens to old records.
    pub cleanup_policy: CleanupPolicy,
    /// Fewer replicas in sync: `acks = all` is refused. 0: see [`TopicOptions::min_insync_replicas_of`].
    pub min_insync_replicas: u16,
}

/// One row of the table.
#[derive(Debug)]
pub struct TopicOptionKey {
    /// Its name.
    pub name: &'static str,
    /// Type and range.
    pub kind: Kind,
    /// Default, as one would write it.
    pub default: &'static str,
    /// What it does.
    pub what: &'static str,
    /// When to change it.
    pub change_when: &'static str,
    /// Reads it from complete options.
    pub get: fn(&TopicOptions) -> Value,
    /// Puts a value of this kind in.
    pub set: fn(&mut TopicOptions, &Value),
}

const DAY_MS: u64 = 86_400_000;
/// Times beyond this are as good as for ever, and milliseconds stay far from overflow.
const TIME_MS_MAX: u64 = 36_500 * DAY_MS;

/// Every option of a topic.
pub const TOPIC_OPTIONS: &[TopicOptionKey] = &[
    TopicOptionKey {
        name: "segment_bytes_max",
        kind: Kind::Bytes { min: 64 << 10, max: 2 << 30, or: Or::Nothing },
        default: "1GiB",
        what: "A segment file is sealed, and the next one begun, before it would pass this size.",
        change_when: "Lower it where retention must follow closely: only whole sealed segments are deleted.",
        get: |o| Value::Bytes(o.segment_bytes_max),
        set: |o, v| o.segment_bytes_max = number(v),
    },
    TopicOptionKey {
        name: "segment_age_max_ms",
        kind: Kind::Millis { min: 1_000, max: TIME_MS_MAX, or: Or::Nothing },
        default: "7d",
        what: "A segment is sealed when its first record was appended longer ago than this.",
        change_when: "Lower it on topics with little traffic whose old records must go in time.",
        get: |o| Value::Millis(o.segment_age_max_ms),
        set: |o, v| o.segment_age_max_ms = number(v),
    },
    TopicOptionKey {
        name: "retention_bytes",
        kind: Kind::Bytes { min: 0, max: 1 << 60, or: Or::Unlimited },
        default: "none",
        what: "The oldest segments of a partition are deleted while its log is larger than this.",
        change_when: "Set it wherever a partition could outgrow its disk; it counts per partition.",
        get: |o| o.retention_bytes.map_or(Value::Unlimited, Value::Bytes),
        set: |o, v| o.retention_bytes = limit(v),
    },
    TopicOptionKey {
        name: "retention_ms",
        kind: Kind::Millis { min: 0, max: TIME_MS_MAX, or: Or::Unlimited },
        default: "7d",
        what: "Segments are deleted when their newest record is older than this.",
        change_when: "As long as the slowest consumer may be away, or as long as the law allows.",
        get: |o| o.retention_ms.map_or(Value::Unlimited, Value::Millis),
        set: |o, v| o.retention_ms = limit(v),
    },
    TopicOptionKey {
        name: "flush",
        kind: Kind::Choice(&["commit", "interval"]),
        default: "commit",
        what: "\"commit\": a produce is answered when its bytes are synced, so it survives power loss. \"interval\": \
               answered when written, so it survives kill -9 of the process but not power loss; synced in the \
               background.",
        change_when: "Use \"interval\" for data that can be produced again, or that replicas keep.",
        get: |o| Value::Text(if o.flush == Flush::Commit { "commit" } else { "interval" }.to_owned()),
        set: |o, v| o.flush = if word(v) == "commit" { Flush::Commit } else { Flush::Interval },
    },
    TopicOptionKey {
        name: "flush_interval_bytes",
        kind: Kind::Bytes { min: 4 << 10, max: 1 << 40, or: Or::Nothing },
        default: "64MiB",
        what: "With flush = \"interval\": so many unsynced bytes start a sync.",
        change_when: "Lower it to lose less on power loss, at the price of more syncs.",
        get: |o| Value::Bytes(o.flush_interval_bytes),
        set: |o, v| o.flush_interval_bytes = number(v),
    },
    TopicOptionKey {
        name: "flush_interval_ms",
        kind: Kind::Millis { min: 1, max: DAY_MS, or: Or::Nothing },
        default: "1s",
        what: "With flush = \"interval\": unsynced bytes older than this start a sync.",
        change_when: "As much time as you can afford to lose on power loss.",
        get: |o| Value::Millis(o.flush_interval_ms),
        set: |o, v| o.flush_interval_ms = number(v),
    },
    TopicOptionKey {
        name: "batch_bytes_max",
        kind: Kind::Bytes { min: 1 << 10, max: 128 << 20, or: Or::Nothing },
        default: "1048588B",
        what: "Largest record batch that is accepted, its 61 byte header included.",
        change_when: "Raise it, and limits.frame_bytes_max with it, for large single records.",
        get: |o| Value::Bytes(o.batch_bytes_max),
        set: |o, v| o.batch_bytes_max = number(v),
    },
    TopicOptionKey {
        name: "timestamp_type",
        kind: Kind::Choice(&["create_time", "log_append_time"]),
        default: "create_time",
        what: "Whose clock the timestamps of records show: the producer's, or the server's at append.",
        change_when: "Use \"log_append_time\" where producers' clocks cannot be trusted with retention.",
        get: |o| {
            let create = o.timestamp_type == TimestampType::CreateTime;
            Value::Text(if create { "create_time" } else { "log_append_time" }.to_owned())
        },
        set: |o, v| {
            let create = word(v) == "create_time";
            o.timestamp_type = if create { TimestampType::CreateTime } else { TimestampType::LogAppendTime };
        },
    },
    TopicOptionKey {
        name: "cleanup_policy",
        kind: Kind::Choice(&["delete", "keep"]),
        default: "delete",
        what: "\"delete\": retention deletes old segments. \"keep\": nothing is deleted unless asked for.",
        change_when: "Use \"keep\" for a log that is the only copy of something.",
        get: |o| {
            Value::Text(if o.cleanup_policy == CleanupPolicy::Delete { "delete" } else { "keep" }.to_owned())
        },
        set: |o, v| {
            o.cleanup_policy = if word(v) == "delete" { CleanupPolicy::Delete } else { CleanupPolicy::Keep }
        },
    },
    TopicOptionKey {
        name: "min_insync_replicas",
        kind: Kind::Count { min: 0, max: 15 },
        default: "0",
        what: "With fewer replicas in sync, a produce with acks=all is refused. 0: 2 of three or more replicas, else 1.",
        change_when: "Lower it to 1 where writing matters more than surviving two failures; more than the replicas \
                      refuses every acks=all.",
        get: |o| Value::Count(o.min_insync_replicas.into()),
        set: |o, v| o.min_insync_replicas = u16::try_from(number(v)).expect("its range fits"),
    },
];

// The kind of the row has read the value, so another variant is a bug of the table.
fn number(value: &Value) -> u64 {
    match value {
        Value::Bytes(n) | Value::Millis(n) | Value::Count(n) => *n,
        other => panic!("{other:?} is no number"),
    }
}

fn limit(value: &Value) -> Option<u64> {
    if *value == Value::Unlimited { None } else { Some(number(value)) }
}

fn word(value: &Value) -> &str {
    match value {
        Value::Text(word) => word,
        other => panic!("{other:?} is no word"),
    }
}

impl Default for TopicOptions {
    fn default() -> Self {
        let mut options = Self {
            segment_bytes_max: 0,
            segment_age_max_ms: 0,
            retention_bytes: None,
            retention_ms: None,
            flush: Flush::Commit,
            flush_interval_bytes: 0,
            flush_interval_ms: 0,
            batch_bytes_max: 0,
            timestamp_type: TimestampType::CreateTime,
            cleanup_policy: CleanupPolicy::Delete,
            min_insync_replicas: 0,
        };
        for key in TOPIC_OPTIONS {
            let default = key.kind.parse(&Raw::Text(key.default.to_owned()));
            (key.set)(&mut options, &default.expect("defaults are in range"));
        }
        options
    }
}

/// Why a set of options was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicOptionError {
    /// No option has that name.
    #[error("no topic option is called {name:?}{}", nearest.map_or_else(String::new, |n| format!("; did you mean {n:?}?")))]
    Unknown {
        /// What was asked for.
        name: String,
        /// The nearest right name.
        nearest: Option<&'static str>,
    },
    /// The value is not of its type, or out of its range.
    #[error("topic option {name}: {problem}")]
    Value {
        /// The option.
        name: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// Two values contradict each other.
    #[error("{0}")]
    Contradiction(String),
}

/// The row of an option.
pub fn topic_option(name: &str) -> Result<&'static TopicOptionKey, TopicOptionError> {
    TOPIC_OPTIONS.iter().find(|key| key.name == name).ok_or_else(|| TopicOptionError::Unknown {
        name: name.to_owned(),
        nearest: crate::config::nearest(name, TOPIC_OPTIONS.iter().map(|key| key.name)),
    })
}

/// Checks one option as a client wrote it; returns the spelling that is stored.
pub fn check_topic_option(name: &str, value: &str) -> Result<(&'static str, String), TopicOptionError> {
    let key = topic_option(name)?;
    let parsed = key.kind.parse(&Raw::Text(value.to_owned()));
    let value = parsed.map_err(|problem| TopicOptionError::Value { name: key.name, problem })?;
    Ok((key.name, value.to_string()))
}

impl TopicOptions {
    /// Fills in `defaults` where `set` says nothing.
    ///
    /// Errors: the first option that is unknown or wrong, or a contradiction between them.
    pub fn resolve(defaults: &Self, set: &BTreeMap<String, String>) -> Result<Self, TopicOptionError> {
        let mut options = defaults.clone();
        for (name, value) in set {
            let key = topic_option(name)?;
            let parsed = key.kind.parse(&Raw::Text(value.clone()));
            let value = parsed.map_err(|problem| TopicOptionError::Value { name: key.name, problem })?;
            (key.set)(&mut options, &value);
        }
        match options.contradiction() {
            Some(problem) => Err(TopicOptionError::Contradiction(problem)),
            None => Ok(options),
        }
    }

    /// What cannot be true together, if anything.
    pub fn contradiction(&self) -> Option<String> {
        (self.batch_bytes_max > self.segment_bytes_max).then(|| {
            format!(
                "batch_bytes_max ({}) is larger than segment_bytes_max ({}): raise segment_bytes_max, or lower \
                 batch_bytes_max",
                Value::Bytes(self.batch_bytes_max),
                Value::Bytes(self.segment_bytes_max)
            )
        })
    }

    /// How many replicas must be in sync for `acks = all`, of a partition that has so many.
    pub fn min_insync_replicas_of(&self, replicas: usize) -> usize {
        match self.min_insync_replicas {
            0 if replicas >= 3 => 2,
            0 => 1,
            set => usize::from(set),
        }
    }

    /// What the options mean to each log of the topic.
    pub fn log_options(&self) -> LogOptions {
        LogOptions {
            segment_bytes_max: self.segment_bytes_max,
            segment_age_max_ms: self.segment_age_max_ms,
            retention_bytes: self.retention_bytes,
            retention_ms: self.retention_ms,
            flush: match self.flush {
                Flush::Commit => FlushPolicy::Commit,
                Flush::Interval => FlushPolicy::Interval {
                    bytes_max: self.flush_interval_bytes,
                    ms_max: self.flush_interval_ms,
                },
            },
            batch_bytes_max: usize::try_from(self.batch_bytes_max).expect("its range fits any usize"),
            timestamp_type: self.timestamp_type,
            cleanup_policy: self.cleanup_policy,
        }
    }

    /// Every option with its value, in the order of the table.
    pub fn values(&self) -> impl Iterator<Item = (&'static str, Value)> + '_ {
        TOPIC_OPTIONS.iter().map(|key| (key.name, (key.get)(self)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_option_reads_back_what_it_prints() {
        let defaults = TopicOptions::default();
        for key in TOPIC_OPTIONS {
            let printed = (key.get)(&defaults).to_string();
            let expected = key.kind.parse(&Raw::Text(key.default.to_owned()));
            assert_eq!(key.kind.parse(&Raw::Text(printed)), expected, "{}", key.name);
        }
    }

    #[test]
    fn three_replicas_want_two_in_sync_unless_told_otherwise() {
        let mut options = TopicOptions::default();
        let of = |options: &TopicOptions| [1, 2, 3, 5].map(|n| options.min_insync_replicas_of(n));
        assert_eq!(of(&options), [1, 1, 2, 2]);
        options.min_insync_replicas = 3;
        assert_eq!(of(&options), [3, 3, 3, 3]);
    }

    #[test]
    fn our_defaults_are_the_engines() {
        assert_eq!(TopicOptions::default().log_options(), LogOptions::default());
    }

    #[test]
    fn set_options_win_and_others_keep_their_defaults() {
        let defaults = TopicOptions::default();
        let mine = set(&[("retention_ms", "none"), ("flush", "interval"), ("segment_bytes_max", "2MiB")]);
        let options = TopicOptions::resolve(&defaults, &mine).expect("they are right");
        assert_eq!(options.retention_ms, None);
        assert_eq!(options.flush, Flush::Interval);
        assert_eq!(options.segment_bytes_max, 2 << 20);
        assert_eq!(options.segment_age_max_ms, defaults.segment_age_max_ms);
    }

    #[test]
    fn wrong_options_are_refused_with_advice() {
        let check = |name: &str, value: &str, words: &str| {
            let error = TopicOptions::resolve(&TopicOptions::default(), &set(&[(name, value)]));
            let text = error.expect_err("it is wrong").to_string();
            assert!(text.contains(words), "{text:?} does not say {words:?}");
        };
        check("retention_bites", "1", "retention_bytes");
        check("retention_bytes", "1MB", "MiB");
        check("flush", "always", "\"commit\" or \"interval\"");
        check("segment_age_max_ms", "1", "out of range");
        check("segment_bytes_max", "64KiB", "raise segment_bytes_max");
    }
}
