//! Leaving the initramfs: `boot` does its work in a detached child, which goes on serving when the
//! shell that called it has become the booted system.
//!
//! Parent and child are two halves of one program. The child's standard output is a pipe to the
//! parent, on which it says exactly one thing: how the boot ended. The parent turns that into its
//! own exit code. Until then the child dies with the parent (and takes the mounts apart); from
//! then on it belongs to nobody, writes to the kernel log and ends at once on SIGTERM.
//!
//! What fetching and mounting mean is not known here, so that an agent that is itself /init can
//! leave this file out and switch root on its own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::args::BootArgs;
use crate::console;
use crate::exit::{Exit, Failure};

/// The parent's half: starts the child, waits for its word and passes it on.
///
/// The line of a failure is also left beside the run-time directory (`/run/rootswarm.error`): the
/// boot script repeats it where the boot stops, when the console has long scrolled on.
pub fn boot_in_child(args: &BootArgs) -> Result<(), Failure> {
    // Beside it and not in it: that one is unmounted after a failure.
    let mut note = args.run_dir.clone().into_os_string();
    note.push(".error");
    // Of an earlier try; mostly there is none.
    let _ = fs::remove_file(&note);
    start_and_wait(args).inspect_err(|failure| {
        // Only a convenience: the line is on the console too.
        let _ = fs::write(&note, format!("{}\n", failure.message));
    })
}

fn start_and_wait(args: &BootArgs) -> Result<(), Failure> {
    let start = |e: io::Error| {
        Failure::new(
            Exit::Unexpected,
            format!("cannot start the boot process: {e}"),
        )
    };
    let mut child = Command::new("/proc/self/exe")
        .arg0("rootswarm-agent")
        .arg("boot-child")
        .args(args.to_words())
        .envs(LEAN_MALLOC)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(start)?;
    let mut word = Vec::new();
    if let Some(mut pipe) = child.stdout.take() {
        // One line; the pipe closes with the child's end or its handoff, whichever is first.
        let mut byte = [0; 1];
        while word.len() < MAX_WORD_BYTES && !word.ends_with(b"\n") {
            match pipe.read(&mut byte) {
                Ok(0) => break,
                Ok(_) => word.push(byte[0]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }
    match Word::parse(&String::from_utf8_lossy(&word)) {
        // The child lives on: it is not waited for, the booted system's init will be its parent.
        Some(Word::Ready) => Ok(()),
        Some(Word::Failed(failure)) => {
            // It is undoing its mounts; when it is gone they are too.
            let _ = child.wait();
            Err(failure)
        }
        None => {
            let how = match child.wait() {
                Ok(status) => match status.signal() {
                    Some(9) => "was killed (out of memory?)".to_owned(),
                    Some(signal) => format!("was ended by signal {signal}"),
                    None => format!("ended with {status}"),
                },
                Err(e) => format!("was lost: {e}"),
            };
            Err(Failure::new(
                Exit::Unexpected,
                format!("the boot process {how}"),
            ))
        }
    }
}

/// For a process that stays: glibc gives each chunk's buffer back to the kernel as soon as it is
/// free, instead of keeping some for each thread that once hashed (mallopt(3)). 1 MB less in each
/// booted node, for 64 page faults a chunk while it fetches.
const LEAN_MALLOC: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "131072"),
    ("MALLOC_TRIM_THRESHOLD_", "131072"),
];

/// Longer than any line we say.
const MAX_WORD_BYTES: usize = 16 * 1024;

/// What the child tells the parent, once.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word {
    Ready,
    Failed(Failure),
}

impl Word {
    fn render(&self) -> String {
        match self {
            Word::Ready => "0\n".to_owned(),
            Word::Failed(failure) => {
                let message = failure.message.replace('\n', " ");
                format!("{} {message}\n", failure.exit.code())
            }
        }
    }

    fn parse(line: &str) -> Option<Word> {
        let line = line.strip_suffix('\n')?;
        let (code, message) = line.split_once(' ').unwrap_or((line, ""));
        match code.parse().ok()? {
            0 => Some(Word::Ready),
            code => Some(Word::Failed(Failure::new(Exit::from_code(code), message))),
        }
    }
}

/// The child's half, from its first moment on.
#[derive(Debug)]
pub struct Detached {
    kernel_log: Option<File>,
}

impl Detached {
    /// Makes this process a session of its own that ends with its parent.
    pub fn begin() -> Result<Detached, Failure> {
        let lost = |e: io::Error| {
            Failure::new(
                Exit::Unexpected,
                format!("cannot detach from the initramfs: {e}"),
            )
        };
        // Huge pages would round its few megabytes up, where the kernel gives them to everybody.
        let _ = rustix::thread::disable_transparent_huge_pages(true);
        // What a shell of the initramfs forgot to close would stay open in the booted system.
        close_inherited().map_err(lost)?;
        // Fails when it leads a session already, which is just as good.
        let _ = rustix::process::setsid();
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
            .map_err(|e| lost(e.into()))?;
        // The mount that was the working directory must not be held.
        std::env::set_current_dir("/").map_err(lost)?;
        // Now, while there is a /dev; where there is none, silence.
        let kernel_log = ["/dev/kmsg", "/dev/null"]
            .iter()
            .find_map(|path| OpenOptions::new().write(true).open(path).ok());
        Ok(Detached { kernel_log })
    }

    /// Tells the parent that the root is mounted, and lets go of it and of the console. An error
    /// means that the parent is gone: nobody will switch root, so the mounts should go too.
    pub fn hand_off(self) -> io::Result<()> {
        // Before the word is out: from then on the parent may exit at any moment, and whoever called
        // it moves /proc into the new root.
        let adjust = OpenOptions::new()
            .write(true)
            .open("/proc/self/oom_score_adj");
        rustix::process::set_parent_process_death_signal(None)?;
        if let Err(e) = say(&Word::Ready) {
            rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
            return Err(e);
        }
        // The first to go when memory runs out. Its own memory is small, and the image in RAM
        // stays either way (the mount needs it), but nothing in the booted system depends on this
        // process: any other victim would be worse. Until here it was the boot itself.
        let _ = adjust.and_then(|mut adjust| adjust.write_all(b"1000"));
        if let Some(log) = &self.kernel_log {
            let _ = rustix::stdio::dup2_stderr(log);
        }
        // Nothing is said there any more: like standard input it is /dev/null, for reading. The pipe
        // closes, which is the parent's sign that no other word comes.
        let _ = rustix::stdio::dup2_stdout(rustix::stdio::stdin());
        console::use_kernel_log();
        Ok(())
    }
}

/// Closes every descriptor but the three standard ones.
fn close_inherited() -> io::Result<()> {
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|number| *number > 2)
        .collect();
    for number in open {
        // SAFETY: this is the first thing that the process does, so that no value owns any of them.
        // The one that listed them is closed already, and its number is free: that fails.
        let _ = unsafe { libc::close(number) };
    }
    Ok(())
}

/// Tells the parent why there is no root.
pub fn report_failure(failure: &Failure) {
    // Without a parent there is nobody to tell.
    let _ = say(&Word::Failed(failure.clone()));
}

fn say(word: &Word) -> io::Result<()> {
    let mut pipe = io::stdout();
    pipe.write_all(word.render().as_bytes())?;
    pipe.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for word in [
            Word::Ready,
            Word::Failed(Failure::new(Exit::Network, "gave up after 180 s: no route")),
            Word::Failed(Failure::new(Exit::Refused, "")),
        ] {
            assert_eq!(Word::parse(&word.render()), Some(word));
        }
        let two_lines = Word::Failed(Failure::new(Exit::Network, "a\nb")).render();
        assert_eq!(two_lines, "4 a b\n");
        for line in ["", "0", "4 cut off", "x y\n", "\n"] {
            assert_eq!(Word::parse(line), None, "{line:?}");
        }
    }
}
