//! What a command prints. A reader that has seen enough (`cargo xtask sim list | head -1`) is no
//! failure: the error goes up like any other, guards are dropped in order, and `main` ends well.

use std::fmt::Display;
use std::io::{self, Write as _};

/// Prints one line on standard output.
///
/// # Errors
/// What writing to standard output says.
pub fn line(text: impl Display) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

/// Whether the reader of standard output has gone, whatever was done with that error on its way.
pub fn reader_is_gone(error: &anyhow::Error) -> bool {
    let is_broken_pipe = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref())
        .any(is_broken_pipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context as _;

    #[test]
    fn a_closed_pipe_is_told_from_other_errors() {
        let cases = [
            (io::ErrorKind::BrokenPipe, true),
            (io::ErrorKind::StorageFull, false),
        ];
        for (kind, gone) in cases {
            let error: anyhow::Result<()> = Err(io::Error::from(kind)).context("the table");
            assert_eq!(error.as_ref().is_err_and(reader_is_gone), gone, "{kind}");
        }
    }
}
