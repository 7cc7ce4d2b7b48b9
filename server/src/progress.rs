//! How far a long operation is: a bar on a terminal, a line now and then elsewhere.
//!
//! It goes to standard error, because standard output belongs to what scripts read.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::units::Bytes;

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Making the seed's own copy.
    Copy,
    /// Hashing it.
    Hash,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Phase::Copy => "copying",
            Phase::Hash => "hashing",
        })
    }
}

/// Somebody who wants to know how far an operation is.
pub trait Progress: Sync {
    /// A phase begins; it is over when `done` bytes are `total`.
    fn begin(&self, phase: Phase, total: u64);
    /// So many bytes of the phase are done in all.
    fn advance(&self, done: u64);
    /// No phase will follow soon.
    fn end(&self);
}

/// Nobody wants to know.
pub struct Quiet;

impl Progress for Quiet {
    fn begin(&self, _phase: Phase, _total: u64) {}
    fn advance(&self, _done: u64) {}
    fn end(&self) {}
}

/// Progress for a person: `subject` is the image's name.
pub fn to_stderr(subject: &str) -> Box<dyn Progress> {
    if std::io::stderr().is_terminal() {
        Box::new(Bar {
            subject: subject.to_owned(),
            bar: Mutex::new(None),
        })
    } else {
        Box::new(Lines {
            subject: subject.to_owned(),
            current: Mutex::new(None),
        })
    }
}

struct Bar {
    subject: String,
    bar: Mutex<Option<indicatif::ProgressBar>>,
}

impl Progress for Bar {
    fn begin(&self, phase: Phase, total: u64) {
        let bar = indicatif::ProgressBar::new(total);
        if let Ok(style) = indicatif::ProgressStyle::with_template(
            "{prefix} {msg:9} [{bar:30}] {percent:>3}% {decimal_bytes_per_sec:>12} {eta:>4}",
        ) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(self.subject.clone());
        bar.set_message(phase.to_string());
        let mut current = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(previous) = current.replace(bar) {
            previous.finish_and_clear();
        }
    }

    fn advance(&self, done: u64) {
        if let Some(bar) = &*self.bar.lock().unwrap_or_else(PoisonError::into_inner) {
            bar.set_position(done);
        }
    }

    fn end(&self) {
        if let Some(bar) = self
            .bar
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            bar.finish_and_clear();
        }
    }
}

/// An operation that takes less than this is not worth a line in a log, and a longer one is not
/// worth more than one line in this time.
const LINE_EVERY: Duration = Duration::from_secs(2);

struct Lines {
    subject: String,
    current: Mutex<Option<Current>>,
}

struct Current {
    phase: Phase,
    total: u64,
    last_line: Instant,
}

impl Progress for Lines {
    fn begin(&self, phase: Phase, total: u64) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(Current {
            phase,
            total,
            last_line: Instant::now(),
        });
    }

    fn advance(&self, done: u64) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(current) = current.as_mut() else {
            return;
        };
        if current.last_line.elapsed() < LINE_EVERY {
            return;
        }
        current.last_line = Instant::now();
        let percent = done.saturating_mul(100) / current.total.max(1);
        // A log that cannot be written must not stop the work.
        let _ = writeln!(
            std::io::stderr(),
            "rootswarm: {}: {} {percent}% of {}",
            self.subject,
            current.phase,
            Bytes(current.total)
        );
    }

    fn end(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
