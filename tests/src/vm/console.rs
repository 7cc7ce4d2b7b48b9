//! A machine's serial console, followed while it grows: each line with the time it was seen.
//!
//! Times are those of this side: the guest's clock starts only with its kernel, after firmware,
//! DHCP and TFTP.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A console's file and what was read of it.
#[derive(Debug)]
pub struct Console {
    path: PathBuf,
    started: Instant,
    read_bytes: u64,
    /// The end of what was read, as long as its line has no end.
    unfinished: Vec<u8>,
    lines: Vec<Line>,
}

/// One line of a console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When it was seen, since the machine was switched on.
    pub at: Duration,
    /// Without escape sequences and line end.
    pub text: String,
}

impl Console {
    /// Follows `path`, which may not be there yet, for a machine that is switched on now.
    pub fn follow(path: &Path) -> Console {
        Console {
            path: path.to_owned(),
            started: Instant::now(),
            read_bytes: 0,
            unfinished: Vec::new(),
            lines: Vec::new(),
        }
    }

    /// Reads what is new.
    ///
    /// # Errors
    /// When the file cannot be read; a file that is not there yet has no lines.
    pub fn update(&mut self) -> io::Result<()> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        file.seek(SeekFrom::Start(self.read_bytes))?;
        let mut new = Vec::new();
        self.read_bytes += file.read_to_end(&mut new)? as u64;
        let at = self.started.elapsed();
        self.unfinished.append(&mut new);
        let Some(end) = self.unfinished.iter().rposition(|&byte| byte == b'\n') else {
            return Ok(());
        };
        let rest = self.unfinished.split_off(end + 1);
        let whole = std::mem::replace(&mut self.unfinished, rest);
        let texts = String::from_utf8_lossy(&whole);
        self.lines.extend(texts.lines().map(|text| Line {
            at,
            text: plain(text),
        }));
        Ok(())
    }

    /// Where it is kept.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How long the machine has been on.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// All whole lines so far.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// All lines' texts.
    pub fn texts(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.lines.iter().map(|line| line.text.as_str())
    }

    /// When a line that holds `text` was first seen.
    pub fn first(&self, text: &str) -> Option<&Line> {
        self.lines.iter().find(|line| line.text.contains(text))
    }

    /// The lines from the last one on that holds `text`; all of them where none does.
    pub fn since_last(&self, text: &str) -> &[Line] {
        let holds = |line: &Line| line.text.contains(text);
        let at = self.lines.iter().rposition(holds).unwrap_or_default();
        &self.lines[at..]
    }

    /// The last `count` lines, for messages, with what was begun and has no end yet.
    pub fn tail(&self, count: usize) -> String {
        let begun = plain(&String::from_utf8_lossy(&self.unfinished));
        let texts = self.texts().chain([begun.as_str()]);
        let texts: Vec<&str> = texts.filter(|text| !text.is_empty()).collect();
        texts[texts.len().saturating_sub(count)..].join("\n")
    }
}

/// Without terminal escapes (`ESC [ … letter`, `ESC char`) and other control characters: the
/// firmware positions its cursor, systemd paints its states.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\u{1b}' => {
                if chars.next() == Some('[') {
                    chars.by_ref().find(|char| ('@'..='~').contains(char));
                }
            }
            char if char.is_control() => {}
            char => out.push(char),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn lines_are_seen_whole_and_plain() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("console");
        let mut console = Console::follow(&path);
        console.update().expect("no file is no error");
        assert_eq!(console.lines(), []);

        let mut file = File::create(&path).expect("create");
        file.write_all(b"[\x1b[0;32m  OK  \x1b[0m] Reached\r\nhalf")
            .expect("write");
        console.update().expect("update");
        assert_eq!(console.texts().collect::<Vec<_>>(), ["[  OK  ] Reached"]);

        file.write_all(b" a line\n\nlast\n").expect("write");
        console.update().expect("update");
        assert_eq!(
            console.texts().skip(1).collect::<Vec<_>>(),
            ["half a line", "", "last"]
        );
        assert!(console.first("a line").is_some());
        assert_eq!(console.tail(2), "half a line\nlast");
    }
}
