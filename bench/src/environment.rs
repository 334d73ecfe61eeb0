//! What a figure depends on: recorded with every report.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// The machine and the build under which a run was made.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// When the run started, UTC, as in ISO 8601.
    pub date: String,
    /// Release of the running kernel.
    pub kernel: String,
    /// Model name of the processor.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: Vec<usize>,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// File system and device of the directory measured, if one was.
    pub file_system: Option<String>,
    /// Version of this program.
    pub version: String,
    /// Commit that it was built from ("unknown" outside a checkout).
    pub commit: String,
    /// Whether it was built with optimisation; a figure of a debug build says nothing.
    pub release_build: bool,
    /// The command line.
    pub command: Vec<String>,
}

impl Environment {
    /// Looks around. `dir` is the directory that the run writes to, if any.
    pub fn detect(dir: Option<&Path>) -> Self {
        let host = corelog_tuning::detect();
        Self {
            date: iso_date(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()),
            kernel: host.kernel,
            cpu: cpu_model(),
            cores: host.cores.allowed,
            memory_bytes: host.memory.total_bytes,
            file_system: dir
                .and_then(|dir| corelog_tuning::disk::detect(dir).ok())
                .map(|disk| format!("{} on {}", disk.file_system, disk.device)),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: env!("CORELOG_COMMIT").to_owned(),
            release_build: !cfg!(debug_assertions),
            command: std::env::args().collect(),
        }
    }

    /// Two lines for people.
    pub(crate) fn lines(&self) -> String {
        let build = if self.release_build { "" } else { ", DEBUG BUILD: figures mean nothing" };
        let file_system = self.file_system.as_ref().map(|fs| format!(", {fs}")).unwrap_or_default();
        format!(
            "corelog {} ({}{build}), {}\nLinux {}, {}, cores {:?}{file_system}",
            self.version, self.commit, self.date, self.kernel, self.cpu, self.cores
        )
    }
}

fn cpu_model() -> String {
    fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| "unknown processor".to_owned())
}

/// Seconds since the Unix epoch as `2026-11-24T15:00:00Z`.
///
/// Source: days to civil date in the proleptic Gregorian calendar, counted in eras of 400 years from 1 March.
fn iso_date(unix_seconds: u64) -> String {
    let (days, second) = (unix_seconds / 86_400 + 719_468, unix_seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_at_the_edges_of_months_and_leap_years() {
        let table = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, expected) in table {
            assert_eq!(iso_date(seconds), expected);
        }
    }

    #[test]
    fn the_environment_names_this_machine() {
        let environment = Environment::detect(Some(Path::new(".")));
        assert!(!environment.kernel.is_empty());
        assert!(!environment.cores.is_empty());
        assert!(environment.file_system.is_some());
        assert!(environment.lines().contains(&environment.kernel));
    }
}
