//! What a run prints and writes.

use std::path::Path;

use serde::Serialize;

use crate::cpu::STEAL_PERCENT_MAX;
use crate::environment::Environment;
use crate::error::{BenchError, BenchResult};

/// A run with all that its figures depend on, as written by `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Report<T: Serialize> {
    /// Which measurement: `floor`, `produce`, `fetch` or `engine`.
    pub(crate) kind: &'static str,
    /// Machine and build.
    pub(crate) environment: Environment,
    /// Share of the machine's time that its hypervisor gave to others during the run.
    pub(crate) steal_percent: f64,
    /// Whether the stolen share spoils the run.
    pub(crate) is_spoilt: bool,
    /// The figures.
    pub(crate) results: T,
}

impl<T: Serialize> Report<T> {
    /// Joins figures with their circumstances.
    pub(crate) fn new(kind: &'static str, environment: Environment, steal_percent: f64, results: T) -> Self {
        Self { kind, environment, steal_percent, is_spoilt: steal_percent > STEAL_PERCENT_MAX, results }
    }

    /// Writes it where asked, and prints `figures` for people unless standard output has the JSON.
    pub(crate) fn finish(&self, json: Option<&Path>, figures: &str) -> BenchResult<()> {
        if let Some(path) = json {
            self.write_json(path)?;
        }
        if json.is_none_or(|path| path.as_os_str() != "-") {
            self.print(figures);
        }
        Ok(())
    }

    /// Writes it as JSON; `-` means standard output.
    fn write_json(&self, path: &Path) -> BenchResult<()> {
        let mut text =
            serde_json::to_string_pretty(self).expect("a report has string keys and finite numbers");
        text.push('\n');
        if path.as_os_str() == "-" {
            print!("{text}");
            return Ok(());
        }
        std::fs::write(path, text).map_err(BenchError::io(format!("cannot write {}", path.display())))
    }

    /// The lines around the figures of a report for people.
    fn print(&self, figures: &str) {
        println!("{}\n\n{}", self.environment.lines(), figures.trim_end());
        if self.is_spoilt {
            println!(
                "\nSPOILT: the hypervisor took {:.1} % of the machine during this run (limit {STEAL_PERCENT_MAX} %); \
                 repeat it",
                self.steal_percent
            );
        }
    }
}
