//! A shell in a booted machine: commands go in over its second serial port, output and status come
//! back.
//!
//! The machine's side is the end of `guest/report.sh`, so it answers once the report is whole. Its
//! first port, the console, stays what an admin would see.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long one read waits before the limit is looked at.
const READ_TIMEOUT: Duration = Duration::from_millis(200);
/// A port that nobody in the machine has opened yet loses what is written to it: the shell is asked
/// again until it answers.
const ASK_INTERVAL: Duration = Duration::from_secs(2);
/// The command that it is asked with; real ones count from 1.
const ASK_ID: u32 = 0;

/// Why a command has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    /// The port cannot be reached, or was hung up.
    #[error("its second serial port: {0}")]
    Port(#[from] io::Error),
    /// A command is one line.
    #[error("a command of several lines: `{0}`")]
    Lines(String),
    /// It did not end in time.
    #[error("`{command}` did not end within {limit_s} s; so far:\n{output}")]
    Late {
        /// The command.
        command: String,
        /// For how long was waited.
        limit_s: u64,
        /// What it had printed.
        output: String,
    },
    /// It ended with another status than 0.
    #[error("`{command}` ended with {status}: {output}")]
    Failed {
        /// The command.
        command: String,
        /// Its exit status.
        status: i32,
        /// What it printed, standard error included.
        output: String,
    },
}

/// The line to one machine.
#[derive(Debug)]
pub struct Shell {
    port: UnixStream,
    commands: u32,
    /// It has answered once.
    ready: bool,
    /// What came in and belongs to no command yet.
    pending: Vec<u8>,
}

impl Shell {
    /// Connects to the socket that qemu made for the port.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(socket: &Path) -> Result<Shell, ShellError> {
        let port = UnixStream::connect(socket)?;
        port.set_read_timeout(Some(READ_TIMEOUT))?;
        Ok(Shell {
            port,
            commands: 0,
            ready: false,
            pending: Vec::new(),
        })
    }

    /// Runs one line of shell and returns what it printed, standard error included, without the
    /// line breaks around it.
    ///
    /// # Errors
    /// When it ends with another status than 0, or not within `limit`.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<String, ShellError> {
        if command.contains('\n') {
            return Err(ShellError::Lines(command.to_owned()));
        }
        let started = Instant::now();
        let late = |pending: &[u8]| ShellError::Late {
            command: command.to_owned(),
            limit_s: limit.as_secs(),
            output: String::from_utf8_lossy(pending).into_owned(),
        };
        while !self.ready {
            if started.elapsed() > limit {
                return Err(late(&self.pending));
            }
            self.ready = self.ask()?;
        }
        self.commands += 1;
        let id = self.commands;
        self.port
            .write_all(format!("{id} {command}\n").as_bytes())?;
        loop {
            if let Some((output, status)) = take_outcome(&mut self.pending, id) {
                return match status {
                    0 => Ok(output),
                    status => Err(ShellError::Failed {
                        command: command.to_owned(),
                        status,
                        output,
                    }),
                };
            }
            if started.elapsed() > limit {
                return Err(late(&self.pending));
            }
            self.read()?;
        }
    }

    /// Asks whether somebody is there. The line break before ends what may have come half.
    fn ask(&mut self) -> Result<bool, ShellError> {
        self.port
            .write_all(format!("\n{ASK_ID} true\n").as_bytes())?;
        let asked = Instant::now();
        while asked.elapsed() < ASK_INTERVAL {
            self.read()?;
            if take_outcome(&mut self.pending, ASK_ID).is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes in what there is, and waits a moment where there is nothing.
    fn read(&mut self) -> Result<(), ShellError> {
        let mut buffer = [0; 4096];
        match self.port.read(&mut buffer) {
            Ok(0) => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(length) => {
                self.pending.extend_from_slice(&buffer[..length]);
                Ok(())
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Takes what a command printed and its status out of `pending`, once its last line is whole.
fn take_outcome(pending: &mut Vec<u8>, id: u32) -> Option<(String, i32)> {
    let text = String::from_utf8_lossy(pending).into_owned();
    let (output, rest) = text.split_once(&format!("\n@done {id} "))?;
    let (status, rest) = rest.split_once('\n')?;
    let status = status.trim().parse().ok()?;
    // Answers to what was asked more than once come before anything that was run.
    let output = match output.rsplit_once(&format!("@done {ASK_ID} ")) {
        Some((_, after)) => after.split_once('\n').map_or("", |(_, after)| after),
        None => output,
    };
    let outcome = (output.trim_matches(['\r', '\n']).to_owned(), status);
    *pending = rest.as_bytes().to_vec();
    Some(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_counts_when_its_last_line_is_whole() {
        let mut pending = b"a\nb\n\n@done 7 0".to_vec();
        assert_eq!(take_outcome(&mut pending, 7), None);
        pending.extend_from_slice(b"\nnext");
        assert_eq!(take_outcome(&mut pending, 6), None, "of another command");
        assert_eq!(take_outcome(&mut pending, 7), Some(("a\nb".to_owned(), 0)));
        assert_eq!(pending, b"next");
        let mut pending =
            b"sh: 1: x: not found\n\n@done 0 0\n\n@done 0 0\nout\n\n@done 1 0\n".to_vec();
        assert_eq!(take_outcome(&mut pending, 1), Some(("out".to_owned(), 0)));
        let mut pending = b"\n@done 8 127\n".to_vec();
        assert_eq!(take_outcome(&mut pending, 8), Some((String::new(), 127)));
    }
}
