//! One command of a build, in a container of its own: what it leaves running or mounted goes with
//! it, however it ends.
//!
//! What is built is said elsewhere.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use crate::process::{Process, ProcessError};

/// How much of a failed command's log is repeated in the error.
const TAIL_LINES: usize = 15;

/// Why a step of the build failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The command failed.
    #[error("{step} failed ({status}); the end of {}:\n{tail}", log.display())]
    Failed {
        /// What it was to make.
        step: String,
        /// How it ended.
        status: ExitStatus,
        /// All that it printed.
        log: PathBuf,
        /// The end of that.
        tail: String,
    },
    /// The command could not be run or took too long.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A file could not be read, written, renamed or removed.
    #[error("cannot {operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A step succeeded without making what it should.
    #[error("{step}: {} holds no {expected}", directory.display())]
    Missing {
        /// What ran.
        step: &'static str,
        /// What it should have left.
        expected: String,
        /// Where.
        directory: PathBuf,
    },
}

impl StepError {
    /// For `map_err` on file operations.
    pub(super) fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| StepError::File {
            operation,
            path,
            source,
        }
    }
}

/// A command in its own process and mount namespace: when it, or whoever started it, dies, every
/// process it started is killed and every mount it made is gone.
pub(super) fn contained(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg("--").arg(program);
    command
}

/// Runs a command to its end with its output in `log`, which is started anew.
pub(super) fn run(
    step: &str,
    command: Command,
    log: &Path,
    limit: Duration,
) -> Result<(), StepError> {
    match std::fs::remove_file(log) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(StepError::file("remove", log)(error));
        }
        _ => {}
    }
    let mut process = Process::spawn(step, command, log)?;
    let status = process.wait(limit)?;
    if status.success() {
        return Ok(());
    }
    Err(StepError::Failed {
        step: step.to_owned(),
        status,
        log: log.to_owned(),
        tail: process.tail(TAIL_LINES),
    })
}
