//! The configuration as TOML, as JSON, and the reference of all keys as Markdown.
//!
//! Owns: the text of `docs/configuration.md`; a test compares the file with it.

use std::fmt::Write;

use super::Config;
use super::keys::{self, Key, SECTIONS};
use super::source::Origin;

/// A complete configuration file; each value that is not the default says where it came from.
pub fn to_toml(config: &Config) -> String {
    let mut text = String::new();
    for (section, keys) in by_section() {
        let _ = writeln!(text, "{}[{section}]", if text.is_empty() { "" } else { "\n" });
        for key in keys {
            let (value, origin) = config.values.get(&key.full_name());
            let comment = if *origin == Origin::Default { String::new() } else { format!(" # {origin}") };
            let _ = writeln!(text, "{} = {}{comment}", key.name, value.to_toml());
        }
    }
    text
}

/// One object per section. Sizes are bytes; durations are in the unit of their default's family (ms, or us for
/// polling); no limit is null.
pub fn to_json(config: &Config) -> serde_json::Value {
    let mut sections = serde_json::Map::new();
    for (section, keys) in by_section() {
        let values = keys.iter().map(|key| {
            let (value, _) = config.values.get(&key.full_name());
            (key.name.to_owned(), value.to_json())
        });
        sections.insert(section.to_owned(), serde_json::Value::Object(values.collect()));
    }
    serde_json::Value::Object(sections)
}

fn by_section() -> Vec<(&'static str, Vec<Key>)> {
    let keys = keys::all();
    SECTIONS
        .iter()
        .map(|(section, _)| (*section, keys.iter().filter(|key| key.section == *section).copied().collect()))
        .collect()
}

const HEAD: &str = "\
# Configuration

<!-- Made by `corelog config reference`; a test compares. Change `server/src/config/keys.rs` (or, for the options of
topics, `server/src/control/options.rs`), then run `corelog config reference > docs/configuration.md`. -->

`corelog serve --config corelog.toml` reads one TOML file. Every key is optional. Later sources win over earlier ones:
defaults, the file, environment variables, flags. A key that does not exist, a value out of range and settings that
contradict each other are errors; all of them are reported at once, with their lines, and the node does not start.

- `corelog config check corelog.toml` says whether a node would start with this file.
- `corelog config print corelog.toml` prints what it would run with, and where each value comes from.
- Sizes are bytes, or a number with `KiB`, `MiB`, `GiB` or `TiB` (powers of 1024). Durations are a number with `us`,
  `ms`, `s`, `m`, `h` or `d`; a bare number counts in milliseconds (in microseconds for `cores.polling`).
- In environment variables a list is separated by commas.
- A change takes effect at the next start. Options of a topic (`corelog topic alter`) take effect at once.

A small file:

```toml
[listen]
address = \"10.0.0.5:9700\"
insecure = true

[data]
dirs = [\"/mnt/disk1/corelog\", \"/mnt/disk2/corelog\"]

[topic]
partitions = 8
retention_ms = \"3d\"
```
";

/// The reference of all keys, in Markdown.
pub fn reference() -> String {
    let mut text = HEAD.to_owned();
    for (section, keys) in by_section() {
        let about = SECTIONS.iter().find(|(name, _)| *name == section).map_or("", |(_, about)| about);
        let _ = write!(text, "\n## [{section}]\n\n{about}\n");
        for key in keys {
            let default =
                if key.default.is_empty() { "empty".to_owned() } else { format!("`{}`", key.default) };
            let _ = write!(
                text,
                "\n### {}\n\n{}\n\n- Type and range: {}\n- Default: {default}\n- When to change it: {}\n- Environment: \
                 `{}`\n",
                key.full_name(),
                key.what,
                key.kind.describe(),
                key.change_when,
                key.environment()
            );
        }
    }
    text
}
