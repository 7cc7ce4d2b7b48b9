//! Writing to the console, one whole line per `write`, so that lines of several programs on a
//! serial console, and records of /dev/kmsg after the handoff, stay whole.
//!
//! What is said, and how often, is decided elsewhere.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::exit::{Exit, Failure};

/// After the handoff standard error is /dev/kmsg, where a priority goes in front of each record.
static KERNEL_LOG: AtomicBool = AtomicBool::new(false);

/// From now on standard error is the kernel log.
pub fn use_kernel_log() {
    KERNEL_LOG.store(true, Ordering::Relaxed);
}

/// `text` with its control characters spelt out. What a seed, a peer or a command line said goes to
/// a terminal: it may not move its cursor, nor pass for a line of its own.
pub fn printable(text: &str) -> String {
    let spell = |c: char| -> String {
        match c.is_control() {
            true => c.escape_default().collect(),
            false => c.into(),
        }
    };
    text.chars().map(spell).collect()
}

/// One line to standard error. A console that cannot be written to (a closed pipe, a hung serial
/// line) must not stop a boot, so errors are ignored here and only here.
pub fn line(text: &str) {
    // 6 is "informational" in the kernel's scale: it lands in the log, not on the login screen.
    let priority = if KERNEL_LOG.load(Ordering::Relaxed) {
        "<6>"
    } else {
        ""
    };
    let record = format!("{priority}{}\n", printable(text));
    let _ = std::io::stderr().write_all(record.as_bytes());
}

/// One line of the boot's own voice: `rootswarm: …`.
pub fn say(text: &str) {
    line(&format!("rootswarm: {text}"));
}

/// Text for standard output, where a script may read it: here an error counts.
pub fn print_out(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|e| {
            Failure::new(
                Exit::Unexpected,
                format!("cannot write to standard output: {e}"),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn what_was_said_stays_on_its_line() {
        assert_eq!(printable("40 % of 1 GB · µs"), "40 % of 1 GB · µs");
        assert_eq!(
            printable("no\u{1b}[2J\nrootswarm: booted\r"),
            "no\\u{1b}[2J\\nrootswarm: booted\\r"
        );
    }
}
