//! Why a measurement could not be made.

use std::io;

use corelog_schemas::Failure;
use corelog_tuning::CoreListError;

/// One enum for all runs: whatever fails, the run ends and the message is printed.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The operating system refused something; the message names it.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// Writing would fill the disk. Choose another directory or a smaller file.
    #[error(
        "{dir} has {free_bytes} bytes free; this run writes {needed_bytes} and leaves a reserve of {reserve_bytes}"
    )]
    NotEnoughSpace {
        /// Where it would write.
        dir: String,
        /// What is free.
        free_bytes: u64,
        /// What it would write.
        needed_bytes: u64,
        /// What it leaves to others.
        reserve_bytes: u64,
    },
    /// Nobody answers there.
    #[error("no server answers at {address}: {source}")]
    Unreachable {
        /// Where.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The server understood, and said no.
    #[error("{what}: {failure}")]
    Refused {
        /// What was asked.
        what: String,
        /// Its words.
        failure: Failure,
    },
    /// The server sent what cannot be understood: another version, or another program.
    #[error("{address} does not speak this protocol: {what}")]
    Protocol {
        /// Where.
        address: String,
        /// What came.
        what: String,
    },
    /// The engine failed under load: a fault of the engine or of the disk.
    #[error("{what}: {message}")]
    Engine {
        /// What was done.
        what: &'static str,
        /// What the engine said.
        message: String,
    },
    /// Arguments that contradict each other or the machine.
    #[error("{0}")]
    Usage(String),
    /// A core list that cannot be read.
    #[error(transparent)]
    Cores(#[from] CoreListError),
}

impl BenchError {
    /// Wraps an I/O error with what was tried; for `map_err`.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Wraps an error of the engine; for `map_err`.
    pub(crate) fn engine<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Engine { what, message: error.to_string() }
    }

    /// Wraps what a peer got wrong.
    pub(crate) fn protocol(address: &str, what: impl std::fmt::Display) -> Self {
        Self::Protocol { address: address.to_owned(), what: what.to_string() }
    }
}

/// What a run yields.
pub(crate) type BenchResult<T> = Result<T, BenchError>;
