//! What qemu says of its machine: the events on its QMP monitor, taken in without waiting for them.
//!
//! A reset is not an end: firmware that got no answer resets its machine and tries again, as it does
//! on a real one. From the moment that something of ours runs a reset is an end, and why qemu ended is
//! kept for the message.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Without it qemu tells no events.
const NEGOTIATE: &str = r#"{"execute":"qmp_capabilities"}"#;
/// From now on a reset ends qemu, as `-no-reboot` does from the start.
const END_AT_RESET: &str =
    r#"{"execute":"set-action","arguments":{"reboot":"shutdown"},"id":"end-at-reset"}"#;
const RESET: &str = r#"{"execute":"system_reset"}"#;

/// One machine's monitor. qemu dials it when it starts.
#[derive(Debug)]
pub struct Qmp {
    path: PathBuf,
    listener: UnixListener,
    line: Option<UnixStream>,
    /// What came and is no whole line yet.
    pending: Vec<u8>,
    news: News,
}

/// What was told so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct News {
    /// How often the machine was reset, by itself or by its firmware.
    pub resets: u32,
    /// Whether the next reset ends it.
    pub ends_at_reset: bool,
    /// Why it was shut down, in qemu's words (`guest-reset`, `guest-shutdown`, …).
    pub shut_down: Option<String>,
}

impl Qmp {
    /// Listens at `path` for the qemu that is started next.
    ///
    /// # Errors
    /// When no socket can be made there.
    pub fn listen(path: &Path) -> io::Result<Qmp> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Qmp {
            path: path.to_owned(),
            listener,
            line: None,
            pending: Vec::new(),
            news: News::default(),
        })
    }

    /// The arguments that make qemu dial it.
    pub fn arguments(&self) -> [String; 4] {
        [
            "-chardev".to_owned(),
            format!("socket,id=qmp,path={}", self.path.display()),
            "-mon".to_owned(),
            "chardev=qmp,mode=control".to_owned(),
        ]
    }

    /// Takes in what there is.
    ///
    /// # Errors
    /// When the line breaks; that qemu hangs up is none.
    pub fn update(&mut self) -> io::Result<&News> {
        if self.line.is_none() {
            match self.listener.accept() {
                Ok((line, _)) => {
                    line.set_nonblocking(true)?;
                    self.line = Some(line);
                    self.say(NEGOTIATE)?;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(&self.news),
                Err(error) => return Err(error),
            }
        }
        let mut buffer = [0; 4096];
        while let Some(line) = &mut self.line {
            match line.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => self.pending.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::ConnectionReset
                    ) =>
                {
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        self.news.take(&mut self.pending);
        Ok(&self.news)
    }

    /// Has the next reset end qemu.
    ///
    /// # Errors
    /// When qemu has not dialled yet, or takes nothing.
    pub fn end_at_reset(&mut self) -> io::Result<()> {
        self.say(END_AT_RESET)
    }

    /// Presses the reset button.
    ///
    /// # Errors
    /// When qemu has not dialled yet, or takes nothing.
    pub fn reset(&mut self) -> io::Result<()> {
        self.say(RESET)
    }

    /// What was told so far.
    pub fn news(&self) -> &News {
        &self.news
    }

    fn say(&mut self, command: &str) -> io::Result<()> {
        let line = self.line.as_mut().ok_or(ErrorKind::NotConnected)?;
        // A command is far shorter than a socket's buffer, which is empty: written whole or not at all.
        match line.write_all(format!("{command}\n").as_bytes()) {
            // It has ended meanwhile; what it said before is still to be read.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }
}

impl News {
    /// Takes the whole lines out of `pending`.
    fn take(&mut self, pending: &mut Vec<u8>) {
        let Some(end) = pending.iter().rposition(|&byte| byte == b'\n') else {
            return;
        };
        let rest = pending.split_off(end + 1);
        let whole = std::mem::replace(pending, rest);
        for line in whole.split(|&byte| byte == b'\n') {
            // Its greeting and answers to commands are of no interest, but for one.
            let Ok(told) = serde_json::from_slice::<Value>(line) else {
                continue;
            };
            let reason = || told.pointer("/data/reason")?.as_str().map(str::to_owned);
            match told.get("event").and_then(Value::as_str) {
                Some("RESET") => self.resets += 1,
                Some("SHUTDOWN") => self.shut_down = reason().or(Some("no reason".to_owned())),
                _ => {}
            }
            let is_answer = told.get("id").and_then(Value::as_str) == Some("end-at-reset");
            self.ends_at_reset |= is_answer && told.get("return").is_some();
        }
    }
}

impl std::fmt::Display for News {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.shut_down {
            Some(reason) => write!(f, "shut down: {reason}")?,
            None => write!(f, "ended without a word")?,
        }
        write!(f, "; reset {} times before", self.resets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_count_when_their_line_is_whole() {
        let mut news = News::default();
        let mut pending = br#"{"QMP": {"version": {}, "capabilities": []}}
{"return": {}}
{"timestamp": {}, "event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}
{"return": {}, "id": "end-at-reset"}
{"timestamp": {}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-re"#
            .to_vec();
        news.take(&mut pending);
        let expected = News {
            resets: 1,
            ends_at_reset: true,
            shut_down: None,
        };
        assert_eq!(news, expected);
        pending.extend_from_slice(b"set\"}}\n");
        news.take(&mut pending);
        assert_eq!(news.shut_down.as_deref(), Some("guest-reset"));
        assert_eq!(pending, b"");
        assert_eq!(
            news.to_string(),
            "shut down: guest-reset; reset 1 times before"
        );
        assert_eq!(
            News::default().to_string(),
            "ended without a word; reset 0 times before"
        );
    }

    #[test]
    fn a_refused_command_changes_nothing() {
        let mut news = News::default();
        let mut pending =
            b"{\"id\": \"end-at-reset\", \"error\": {\"class\": \"GenericError\"}}\nno json\n"
                .to_vec();
        news.take(&mut pending);
        assert_eq!(news, News::default());
    }
}
