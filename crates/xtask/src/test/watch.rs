//! A test run that is waited for as long as it says something. One that hangs would otherwise be ended by
//! whoever ran it, an hour later, and leave no word of where.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::bail;
use rootswarm_tests::vm::binaries::target_directory;
use rustix::process::{Pid, Signal, kill_process};

/// How often it is looked whether a command has ended.
const LOOK: Duration = Duration::from_millis(500);

/// Runs a command, and passes on what it prints, both its outputs in one.
///
/// # Errors
/// When it cannot be run, or prints nothing for `silence`: then with what each of its threads waits for, and
/// it is ended with all that it started.
pub(super) fn run(
    mut command: Command,
    silence: Duration,
    mut to: impl Write,
) -> anyhow::Result<ExitStatus> {
    let (mut output, input) = std::io::pipe()?;
    let mut child = command.stdout(input.try_clone()?).stderr(input).spawn()?;
    // It holds ends of the pipe, too.
    drop(command);
    let (say, said) = sync_channel::<Vec<u8>>(16);
    // Not waited for: whatever the command leaves behind may hold its end of the pipe.
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = output.read(&mut buffer) {
            if say.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    let mut heard = Instant::now();
    loop {
        match said.recv_timeout(LOOK) {
            Ok(text) => {
                to.write_all(&text)?;
                to.flush()?;
                heard = Instant::now();
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(child.wait()?),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if heard.elapsed() >= silence {
            let below = below(child.id());
            let found = describe(&below);
            for pid in below.keys().rev() {
                let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
                // It may have ended by itself.
                let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
            }
            child.wait()?;
            let seconds = silence.as_secs();
            bail!("nothing was said for {seconds} s: ended.\n{found}");
        }
    }
}

/// A process, its parent and its name: what of /proc/PID/stat is needed.
fn parent_and_name(pid: u32) -> Option<(u32, String)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may have anything in it.
    let (head, rest) = stat.rsplit_once(") ")?;
    let name = head.split_once(" (")?.1.to_owned();
    Some((rest.split(' ').nth(1)?.parse().ok()?, name))
}

/// A process with all below it, and whatever else runs that was built here: an agent that stayed behind has
/// no parent any more.
fn below(root: u32) -> BTreeMap<u32, String> {
    let all: BTreeMap<u32, (u32, String)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, parent_and_name(pid)?)))
        .collect();
    let built = target_directory();
    let built = fs::canonicalize(&built).unwrap_or(built);
    // Whoever runs this is built here, too.
    let mut own = vec![std::process::id()];
    while let Some((parent, _)) = own.last().and_then(|pid| all.get(pid))
        && !own.contains(parent)
    {
        own.push(*parent);
    }
    let is_left_behind = |pid: u32, parent: u32| {
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        parent == 1 && program.starts_with(&built) && !own.contains(&pid)
    };
    let is_below = |pid: u32| {
        let mut at = pid;
        // A loop cannot be, but what is read one after the other may show one.
        for _ in 0..64 {
            if at == root {
                return true;
            }
            let Some((parent, _)) = all.get(&at) else {
                return false;
            };
            at = *parent;
        }
        false
    };
    let found = all
        .iter()
        .filter(|(pid, (parent, _))| is_below(**pid) || is_left_behind(**pid, *parent));
    found.map(|(pid, (_, name))| (*pid, name.clone())).collect()
}

/// What each thread of these processes waits for.
fn describe(processes: &BTreeMap<u32, String>) -> String {
    let mut text = String::new();
    for (pid, name) in processes {
        let place = Path::new("/proc").join(pid.to_string());
        let line = fs::read(place.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let parent = parent_and_name(*pid).map_or(0, |(parent, _)| parent);
        let _ = writeln!(text, "{pid} of {parent} ({name}): {line}");
        for thread in fs::read_dir(place.join("task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let read = |name: &str| {
                let found = fs::read_to_string(thread.path().join(name)).unwrap_or_default();
                found.trim_end().replace('\n', "; ")
            };
            let status = read("status");
            let state = status.split("; ").find(|line| line.starts_with("State:"));
            let _ = writeln!(
                text,
                "    {} {} {}, in {}, call {}\n      {}",
                thread.file_name().display(),
                read("comm"),
                state.unwrap_or_default(),
                read("wchan"),
                read("syscall"),
                read("stack"),
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        command
    }

    #[test]
    fn who_says_something_is_waited_for() {
        for (line, code, text) in [
            (
                "for i in 1 2 3; do sleep 0.7; printf $i; done; exit 3",
                3,
                "123",
            ),
            ("printf a; printf b >&2; exit 7", 7, "ab"),
            // What it leaves behind is not waited for.
            ("sleep 30 & printf left; exit 0", 0, "left"),
        ] {
            let (mut said, begun) = (Vec::new(), Instant::now());
            let status = run(sh(line), Duration::from_secs(2), &mut said).unwrap();
            assert_eq!(status.code(), Some(code), "{line}");
            assert_eq!(said, text.as_bytes(), "{line}");
            assert!(begun.elapsed() < Duration::from_secs(10), "{line}");
        }
    }

    #[test]
    fn who_hangs_is_named_and_ended() {
        let begun = Instant::now();
        let line = "sleep 301 & sh -c 'sleep 302; true'";
        let error = run(sh(line), Duration::from_secs(1), std::io::sink());
        let error = error.unwrap_err().to_string();
        assert!(
            error.starts_with("nothing was said for 1 s: ended."),
            "{error}"
        );
        for part in ["sleep 301", "sleep 302", "State:"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(begun.elapsed() < Duration::from_secs(20));
        let left = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).starts_with("sleep\x0030")
        };
        // Whoever adopted them takes a moment.
        for _ in 0..100 {
            if !below(1).keys().any(left) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("a process is left");
    }
}
