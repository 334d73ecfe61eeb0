//! Exit codes of the command line, and the one error type that carries them.
//!
//! Owns: the table below, which scripts rely on (`corelog --help` prints it). A code never changes its meaning.
//!
//! | code | name | meaning |
//! |---|---|---|
//! | 0 | ok | done; also when the reader of our output closed the pipe |
//! | 1 | failure | the operation was tried and failed; the message says why |
//! | 2 | usage | wrong flags or arguments, or an input file that cannot be read or understood |
//! | 3 | unreachable | no server answered at `--server` |
//! | 4 | not found | the topic, partition or file does not exist |
//! | 5 | refused | the server understood and refused (exists already, invalid option, not authorized, disk full) |
//! | 6 | damaged | `inspect` found damage in the data |
//! | 130 | interrupted | Ctrl-C, SIGTERM, or the terminal was closed |

use std::fmt;
use std::process::ExitCode;

/// What the process answers to its caller; see the table in the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Tried and failed.
    Failure = 1,
    /// Wrong flags, arguments or input files.
    Usage = 2,
    /// Nobody answered at the server's address.
    Unreachable = 3,
    /// Topic, partition or file does not exist.
    NotFound = 4,
    /// The server refused.
    Refused = 5,
    /// Damage was found in the data.
    Damaged = 6,
    /// Ctrl-C, SIGTERM, or the terminal was closed.
    Interrupted = 130,
}

/// The table as `corelog --help` prints it.
pub const EXIT_CODES_HELP: &str = "\
Exit codes:
  0 ok   1 failure   2 usage (flags, arguments, input files)   3 server not reachable
  4 not found   5 refused by the server   6 damaged data (inspect)   130 interrupted";

/// Why a command did not succeed: a message for people, and the code for programs.
#[derive(Debug)]
pub enum CliError {
    /// A command failed; `advice` says what to do about it.
    Failed {
        /// The exit code.
        exit: Exit,
        /// What went wrong, with its causes.
        cause: anyhow::Error,
        /// What the person may do next, one sentence.
        advice: Option<String>,
    },
    /// The reader of our output went away (`corelog consume | head`): stop quietly, it has what it wanted.
    OutputClosed,
}

/// Result of every command.
pub type CliResult<T = ()> = Result<T, CliError>;

impl CliError {
    /// An error with its exit code.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self::Failed { exit, cause: anyhow::anyhow!("{message}"), advice: None }
    }

    /// Wrong flags, arguments or input.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Adds what the person may do next.
    #[must_use]
    pub fn advise(self, next: impl Into<String>) -> Self {
        match self {
            Self::Failed { exit, cause, .. } => Self::Failed { exit, cause, advice: Some(next.into()) },
            Self::OutputClosed => Self::OutputClosed,
        }
    }

    /// Wraps an error of the output stream: a closed pipe is not a failure.
    pub fn output(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::new(Exit::Failure, format!("cannot write the output: {error}"))
        }
    }

    /// The code that the process ends with.
    pub fn code(&self) -> u8 {
        match self {
            Self::Failed { exit, .. } => *exit as u8,
            Self::OutputClosed => 0,
        }
    }

    /// Prints the message and the advice to standard error, and yields the exit code.
    pub fn report(&self) -> ExitCode {
        if let Self::Failed { cause, advice, .. } = self {
            eprintln!("corelog: {cause:#}");
            if let Some(next) = advice {
                eprintln!("  -> {next}");
            }
        }
        ExitCode::from(self.code())
    }
}

impl From<anyhow::Error> for CliError {
    fn from(cause: anyhow::Error) -> Self {
        Self::Failed { exit: Exit::Failure, cause, advice: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_success_and_other_output_errors_are_not() {
        let closed = CliError::output(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!(closed.code(), 0);
        let full = CliError::output(std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert_eq!(full.code(), Exit::Failure as u8);
    }

    #[test]
    fn the_help_lists_every_code() {
        let all = [
            Exit::Failure,
            Exit::Usage,
            Exit::Unreachable,
            Exit::NotFound,
            Exit::Refused,
            Exit::Damaged,
            Exit::Interrupted,
        ];
        for exit in all {
            let code = (exit as u8).to_string();
            assert!(EXIT_CODES_HELP.split_whitespace().any(|word| word == code), "{code} is missing");
        }
    }
}
