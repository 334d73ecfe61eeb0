//! Where settings come from: the file, the environment, the flags; each with its place, for messages.
//!
//! Owns: reading them into one list without understanding any value. Later sources win over earlier ones.
//! Invariant: nothing is dropped silently. What cannot be a setting is a [`Problem`] with a line or a name.

use std::fmt;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{Key, SECTIONS};
use super::value::Raw;

/// Largest configuration file that is read: nobody writes more by hand, and `/dev/zero` is not a file of ours.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where a setting was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: the default.
    Default,
    /// In the file, on this line.
    File {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// In this variable.
    Environment(String),
    /// In this flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// One setting as it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// `section.name`; may be unknown.
    pub key: String,
    /// The value.
    pub raw: Raw,
    /// Where.
    pub origin: Origin,
}

/// One thing that is wrong, with its place and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {text}")]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// What is wrong, and what to do.
    pub text: String,
}

impl Problem {
    /// What is wrong, and what to do about it if the text says so: problems are written `WRONG; DO THIS`.
    pub fn text_and_advice(&self) -> (&str, Option<&str>) {
        // A semicolon within a quoted value separates nothing.
        let parts = self.text.rsplit_once("; ");
        match parts.filter(|(text, _)| text.matches('"').count().is_multiple_of(2)) {
            Some((text, advice)) => (text, Some(advice)),
            None => (&self.text, None),
        }
    }
}

/// The nearest of `candidates`, if it is near enough to be what was meant.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = candidates.into_iter().map(|candidate| (strsim::jaro_winkler(word, candidate), candidate));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= 0.8).then_some(best.1)
}

/// Reads the settings of a file's text. Syntax errors are problems; the rest is still read, but for what they may have
/// spoiled: the settings on their lines, and unknown keys, which a broken head of a section makes of right ones.
pub fn from_toml(path: &Path, text: &str, keys: &[Key], problems: &mut Vec<Problem>) -> Vec<Setting> {
    let at = |position: usize| Origin::File { path: path.to_owned(), line: line_of(text, position) };
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut broken = Vec::new();
    for error in errors {
        let origin = at(error.span().map_or(0, |span| span.start));
        broken.push(origin.clone());
        problems.push(Problem { origin, text: format!("not valid TOML: {}", error.message()) });
    }
    let mut settings = Vec::new();
    for (section, value) in table.into_inner() {
        let origin = at(section.span().start);
        let name = section.into_inner();
        match value.into_inner() {
            DeValue::Table(section) => {
                for (key, value) in section {
                    let origin = at(key.span().start);
                    let key = format!("{name}.{}", key.into_inner());
                    read_value(key, value, origin, &mut settings);
                }
            }
            // Every key has a section, so this is either unknown or wants one; the caller finds out which.
            other => settings.push(Setting { key: name.into_owned(), raw: raw_of(other), origin }),
        }
    }
    if !broken.is_empty() {
        let is_known = |name: &str| keys.iter().any(|key| key.full_name() == name);
        settings.retain(|setting| is_known(&setting.key) && !broken.contains(&setting.origin));
    }
    settings
}

fn read_value(key: String, value: Spanned<DeValue<'_>>, origin: Origin, settings: &mut Vec<Setting>) {
    settings.push(Setting { key, raw: raw_of(value.into_inner()), origin });
}

fn raw_of(value: DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.into_owned()),
        DeValue::Integer(number) => {
            let digits = number.as_str().replace('_', "");
            i64::from_str_radix(&digits, number.radix())
                .map_or(Raw::Other("number of that size"), Raw::Integer)
        }
        DeValue::Boolean(flag) => Raw::Flag(flag),
        DeValue::Array(items) => Raw::List(items.into_iter().map(|item| raw_of(item.into_inner())).collect()),
        DeValue::Float(_) => Raw::Other("fraction"),
        DeValue::Datetime(_) => Raw::Other("date"),
        DeValue::Table(_) => Raw::Other("table"),
    }
}

fn line_of(text: &str, position: usize) -> usize {
    text.as_bytes().iter().take(position).filter(|byte| **byte == b'\n').count() + 1
}

/// Reads the settings of `CORELOG_SECTION_NAME` variables. A variable whose first word is (or nearly is) a section is
/// ours, so it must name a key; others, such as `CORELOG_SERVER` of the client commands, are somebody else's.
pub fn from_environment(
    variables: impl IntoIterator<Item = (String, String)>,
    keys: &[Key],
    problems: &mut Vec<Problem>,
) -> Vec<Setting> {
    let mut settings = Vec::new();
    for (variable, value) in variables {
        let Some(rest) = variable.strip_prefix("CORELOG_") else { continue };
        let Some((section, _)) = rest.split_once('_') else { continue };
        if let Some(key) = keys.iter().find(|key| key.environment() == variable) {
            let origin = Origin::Environment(variable);
            settings.push(Setting { key: key.full_name(), raw: Raw::Text(value), origin });
            continue;
        }
        let section = section.to_lowercase();
        let is_ours = SECTIONS.iter().any(|(known, _)| strsim::levenshtein(known, &section) <= 1);
        if is_ours {
            let names: Vec<String> = keys.iter().map(Key::environment).collect();
            let hint = nearest(&variable, names.iter().map(String::as_str));
            let text = match hint {
                Some(name) => format!("no setting has this name; did you mean {name}?"),
                None => "no setting has this name; see `corelog config reference`".to_owned(),
            };
            problems.push(Problem { origin: Origin::Environment(variable), text });
        }
    }
    settings.sort_by(|a, b| a.key.cmp(&b.key));
    settings
}
