//! The two tuning files: `cores.toml` and `disk.toml`.
//!
//! Owns: their keys, ranges and comparison with the host. Unknown keys are errors.
//! Invariant: what a file does not say keeps the default; a file is checked whole, and all faults are told at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::Host;
use crate::cores::check_allowed;
use crate::disk::DiskInfo;

/// Something that an operator should know; the server goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning(pub String);

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a tuning file cannot be used. The server does not start: a file that is not understood is not obeyed in part.
#[derive(Debug, thiserror::Error)]
pub enum TuningError {
    /// It cannot be read; mend the path or the permissions.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not TOML, or has a key that nobody knows.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where, and what is known there.
        source: toml::de::Error,
    },
    /// Values out of their range, all of them.
    #[error("{path}: {}", faults.join("; "))]
    Values {
        /// The file.
        path: PathBuf,
        /// One sentence for each.
        faults: Vec<String>,
    },
}

/// `cores.toml`: which cores do what. `tuning/cores.toml` of the source tree is a commented example.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoresFile {
    /// Cores that run a shard each, in the order of the shards (shard i listens on the base port plus i).
    pub data: Vec<usize>,
    /// Core of the control thread; not pinned if absent.
    pub control: Option<usize>,
    /// Buffer memory of each shard.
    pub memory_bytes_per_core: Option<u64>,
    /// The host for which this was written; compared at start.
    pub measured: Option<MeasuredHost>,
}

/// What `cores.toml` was written for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredHost {
    /// Day of the measurement.
    pub date: String,
    /// Kernel release then.
    pub kernel: String,
    /// Number of cores that the process could use then.
    pub cores: usize,
}

/// `disk.toml`: how deep each disk is driven. `tuning/disk.toml` of the source tree is a commented example.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskFile {
    /// One table for each data directory that departs from the defaults.
    pub disk: Vec<DiskTuning>,
}

/// One disk of `disk.toml`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskTuning {
    /// The data directory, as in the server's configuration.
    pub dir: PathBuf,
    /// Writes and syncs that the device has at once; 1 to 1024.
    pub commit_depth_max: Option<usize>,
    /// Cold reads that the device has at once; 1 to 1024.
    pub cold_read_depth_max: Option<usize>,
    /// Background operations that the device has at once; 1 to 1024.
    pub background_depth_max: Option<usize>,
    /// The disk for which this was written; compared at start.
    pub measured: Option<MeasuredDisk>,
}

/// What a table of `disk.toml` was written for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredDisk {
    /// Day of the measurement.
    pub date: String,
    /// Device then, such as `/dev/nvme0n1p1`.
    pub device: String,
    /// File system type then.
    pub file_system: String,
}

const DEPTH_MAX: usize = 1024;
const MEMORY_BYTES_PER_CORE_MIN: u64 = crate::defaults::MEMORY_BYTES_PER_CORE_MIN;

impl CoresFile {
    /// Reads and checks a file. A core that this process may not use is an error: nobody else can be asked to run it.
    pub fn load(path: &Path, host: &Host) -> Result<Self, TuningError> {
        let file: Self = parse(path, &read(path)?)?;
        fail_on(path, file.faults(host))?;
        Ok(file)
    }

    fn faults(&self, host: &Host) -> Vec<String> {
        let mut faults = Vec::new();
        let named: Vec<usize> = self.data.iter().copied().chain(self.control).collect();
        if let Err(e) = check_allowed(&named, &host.cores.allowed) {
            faults.push(e.to_string());
        }
        for (i, core) in self.data.iter().enumerate() {
            if self.data[..i].contains(core) {
                faults.push(format!("core {core} stands twice in `data`"));
            }
        }
        if self.memory_bytes_per_core.is_some_and(|bytes| bytes < MEMORY_BYTES_PER_CORE_MIN) {
            faults.push(format!("`memory_bytes_per_core` is below {MEMORY_BYTES_PER_CORE_MIN}"));
        }
        faults
    }

    /// What no longer fits this host.
    pub fn warnings(&self, host: &Host) -> Vec<Warning> {
        let mut warnings = Vec::new();
        if let Some(measured) = &self.measured {
            let cores = host.cores.allowed.len();
            if measured.cores != cores {
                warnings.push(Warning(format!(
                    "cores.toml was written on {} for {} cores, and this process may use {cores}; review `data`",
                    measured.date, measured.cores
                )));
            }
            if measured.kernel != host.kernel {
                warnings.push(Warning(format!(
                    "cores.toml was written on {} under Linux {}, and this is {}; measure again",
                    measured.date, measured.kernel, host.kernel
                )));
            }
        }
        if self.control.is_some_and(|core| self.data.contains(&core)) {
            warnings.push(Warning(
                "cores.toml puts the control thread on a data core; its work delays a shard".into(),
            ));
        }
        let memory_bytes = self.memory_bytes_per_core.unwrap_or(0).saturating_mul(self.data.len() as u64);
        if memory_bytes > host.memory.usable_bytes() / 4 * 3 {
            warnings.push(Warning(format!(
                "cores.toml gives the shards {memory_bytes} bytes of buffers, more than three quarters of the {} that \
                 this process may use",
                host.memory.usable_bytes()
            )));
        }
        warnings
    }
}

impl DiskFile {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, TuningError> {
        let file: Self = parse(path, &read(path)?)?;
        fail_on(path, file.faults())?;
        Ok(file)
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (i, disk) in self.disk.iter().enumerate() {
            let dir = disk.dir.display();
            let depths = [
                ("commit_depth_max", disk.commit_depth_max),
                ("cold_read_depth_max", disk.cold_read_depth_max),
                ("background_depth_max", disk.background_depth_max),
            ];
            for (name, depth) in depths {
                if depth.is_some_and(|depth| !(1..=DEPTH_MAX).contains(&depth)) {
                    faults.push(format!("`{name}` of {dir} is not between 1 and {DEPTH_MAX}"));
                }
            }
            if self.disk[..i].iter().any(|other| other.dir == disk.dir) {
                faults.push(format!("{dir} has two tables"));
            }
        }
        faults
    }

    /// The table of a data directory.
    pub fn of(&self, dir: &Path) -> Option<&DiskTuning> {
        self.disk.iter().find(|disk| disk.dir == dir)
    }

    /// What no longer fits. `dirs` are the data directories with what lies below them now.
    pub fn warnings(&self, dirs: &[(PathBuf, DiskInfo)]) -> Vec<Warning> {
        let mut warnings = Vec::new();
        for disk in &self.disk {
            let dir = disk.dir.display();
            let Some((_, now)) = dirs.iter().find(|(path, _)| *path == disk.dir) else {
                warnings
                    .push(Warning(format!("disk.toml has a table for {dir}, which is no data directory")));
                continue;
            };
            let Some(measured) = &disk.measured else { continue };
            if measured.device != now.device || measured.file_system != now.file_system {
                warnings.push(Warning(format!(
                    "disk.toml was written on {} for {} on {}, and {dir} is now {} on {}; measure again",
                    measured.date, measured.file_system, measured.device, now.file_system, now.device
                )));
            }
        }
        warnings
    }
}

fn read(path: &Path) -> Result<String, TuningError> {
    fs::read_to_string(path).map_err(|source| TuningError::Read { path: path.to_owned(), source })
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, text: &str) -> Result<T, TuningError> {
    toml::from_str(text).map_err(|source| TuningError::Parse { path: path.to_owned(), source })
}

fn fail_on(path: &Path, faults: Vec<String>) -> Result<(), TuningError> {
    if faults.is_empty() { Ok(()) } else { Err(TuningError::Values { path: path.to_owned(), faults }) }
}

#[cfg(test)]
mod tests;
