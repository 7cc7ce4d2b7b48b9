//! Child processes as guards: their output in a file, their end certain, their cost known.
//!
//! A child is killed when its guard is dropped and, through the kernel's parent-death signal, when
//! the thread that started it ends in any other way. (The signal is tied to the thread, not to the
//! process: start children from a thread that lives as long as they should.)
//!
//! It leaves to others: where the child runs (see `netns`) and what its output means.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, getpid, getppid, kill_process,
    set_parent_process_death_signal, waitid,
};

/// How often a waiting function looks again: fine enough for tests, and no load.
const POLL: Duration = Duration::from_millis(20);
/// How long a child may take to die of SIGKILL before that counts as a failure of the machine.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// What can go wrong with a child.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started.
    #[error("cannot start {label} (`{command}`): {source}")]
    Start {
        /// Its label.
        label: String,
        /// The command line.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// Its log cannot be opened or read.
    #[error("log {} of {label}: {source}", path.display())]
    Log {
        /// Its label.
        label: String,
        /// The log.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended while something else was expected of it.
    #[error("{label} ended ({status}) before {awaited}; its last lines:\n{tail}")]
    Ended {
        /// Its label.
        label: String,
        /// How it ended.
        status: ExitStatus,
        /// What was waited for.
        awaited: String,
        /// The end of its log.
        tail: String,
    },
    /// It took too long.
    #[error("{label}: no {awaited} after {waited_ms} ms; its last lines:\n{tail}")]
    Timeout {
        /// Its label.
        label: String,
        /// What was waited for.
        awaited: String,
        /// For how long.
        waited_ms: u128,
        /// The end of its log.
        tail: String,
    },
    /// A system call on it failed.
    #[error("{label} (pid {pid}): {operation}: {source}")]
    System {
        /// Its label.
        label: String,
        /// Its process id.
        pid: u32,
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, ProcessError>;

/// A running (or ended) child.
#[derive(Debug)]
pub struct Process {
    label: String,
    child: Child,
    pid: Pid,
    log: PathBuf,
    /// Set once it was reaped.
    ended: Option<ExitStatus>,
    /// CPU time read just before it was reaped.
    final_cpu_s: f64,
}

/// What a child has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// User and system time.
    pub cpu_s: f64,
    /// Resident set now: anonymous, shared memory and mapped files.
    pub rss_bytes: u64,
    /// The largest resident set so far.
    pub rss_peak_bytes: u64,
    /// Its own memory: heap and stacks, not what it maps.
    pub rss_anon_bytes: u64,
}

impl Process {
    /// Starts `command` with standard output and error appended to the file `log` and nothing on
    /// its standard input (unless the caller has set one of `stdin`'s own).
    ///
    /// # Errors
    /// When the log cannot be made or the program cannot be started.
    pub fn spawn(label: &str, mut command: Command, log: &Path) -> Result<Self> {
        let log_error = |source| ProcessError::Log {
            label: label.to_owned(),
            path: log.to_owned(),
            source,
        };
        let out = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .map_err(log_error)?;
        let err = out.try_clone().map_err(log_error)?;
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        die_with_parent(&mut command);
        let child = command.spawn().map_err(|source| ProcessError::Start {
            label: label.to_owned(),
            command: format!("{command:?}"),
            source,
        })?;
        let pid = Pid::from_child(&child);
        Ok(Process {
            label: label.to_owned(),
            child,
            pid,
            log: log.to_owned(),
            ended: None,
            final_cpu_s: 0.0,
        })
    }

    /// What its messages call it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file with its output.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// All it has printed so far.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn output(&self) -> Result<String> {
        let error = |source| ProcessError::Log {
            label: self.label.clone(),
            path: self.log.clone(),
            source,
        };
        let mut bytes = Vec::new();
        File::open(&self.log)
            .and_then(|mut file| file.read_to_end(&mut bytes))
            .map_err(error)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The last `lines` lines it has printed; empty when there is no log.
    pub fn tail(&self, lines: usize) -> String {
        last_lines(&self.output().unwrap_or_default(), lines)
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_some() {
            return Ok(self.ended);
        }
        // First look without reaping: a zombie still has its CPU time in /proc.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let seen = waitid(WaitId::Pid(self.pid), options)
            .map_err(|errno| self.system("wait", errno.into()))?;
        if seen.is_none() {
            return Ok(None);
        }
        self.final_cpu_s = self.cpu_s().unwrap_or_default();
        let status = self
            .child
            .wait()
            .map_err(|source| self.system("wait", source))?;
        self.ended = Some(status);
        Ok(self.ended)
    }

    /// Waits for its end, at most `timeout`.
    ///
    /// # Errors
    /// [`ProcessError::Timeout`] when it still runs.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() >= timeout {
                return Err(self.timeout("end", start));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits for a line of output that starts with `prefix` and returns the first such line.
    ///
    /// # Errors
    /// When it ends first, or after `timeout`.
    pub fn wait_for_line(&mut self, prefix: &str, timeout: Duration) -> Result<String> {
        self.wait_for_output(&format!("line `{prefix}…`"), timeout, |output| {
            // Only whole lines: the end of one may still be on its way.
            let whole = output
                .split_inclusive('\n')
                .filter_map(|line| line.strip_suffix('\n'));
            whole
                .into_iter()
                .find(|line| line.starts_with(prefix))
                .map(str::to_owned)
        })
    }

    /// Waits until `find` finds something in all that was printed. `awaited` names it in errors.
    ///
    /// # Errors
    /// When it ends first, or after `timeout`.
    pub fn wait_for_output<T>(
        &mut self,
        awaited: &str,
        timeout: Duration,
        find: impl Fn(&str) -> Option<T>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            // In this order: what it printed before it ended counts.
            let ended = self.try_wait()?;
            if let Some(found) = find(&self.output()?) {
                return Ok(found);
            }
            if let Some(status) = ended {
                return Err(ProcessError::Ended {
                    label: self.label.clone(),
                    status,
                    awaited: awaited.to_owned(),
                    tail: self.tail(20),
                });
            }
            if start.elapsed() >= timeout {
                return Err(self.timeout(awaited, start));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Sends a signal; does nothing when it has ended.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.try_wait()?.is_some() {
            return Ok(());
        }
        kill_process(self.pid, signal).map_err(|errno| self.system("signal", errno.into()))
    }

    /// SIGTERM, at most `grace` to end, then SIGKILL. Returns how it ended.
    ///
    /// # Errors
    /// When it survives SIGKILL.
    pub fn terminate(&mut self, grace: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        // A frozen child would not see the SIGTERM.
        self.signal(Signal::CONT)?;
        match self.wait(grace) {
            Err(ProcessError::Timeout { .. }) => self.kill(),
            other => other,
        }
    }

    /// SIGKILL. Returns how it ended.
    ///
    /// # Errors
    /// When it survives that.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.wait(KILL_WAIT)
    }

    /// What it has used. After its end only the CPU time is known.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn usage(&mut self) -> Result<Usage> {
        if self.try_wait()?.is_some() {
            return Ok(Usage {
                cpu_s: self.final_cpu_s,
                ..Usage::default()
            });
        }
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(path)
            .map_err(|source| self.system("read /proc/PID/status", source))?;
        let bytes = |key: &str| status_kib(&status, key).unwrap_or_default() * 1024;
        Ok(Usage {
            cpu_s: self.cpu_s()?,
            rss_bytes: bytes("VmRSS:"),
            rss_peak_bytes: bytes("VmHWM:"),
            rss_anon_bytes: bytes("RssAnon:"),
        })
    }

    /// Its proportional set size: what it alone is to blame for, where pages are shared.
    ///
    /// # Errors
    /// When /proc cannot be read, as after its end.
    pub fn pss_bytes(&self) -> Result<u64> {
        let path = format!("/proc/{}/smaps_rollup", self.pid());
        let rollup = std::fs::read_to_string(path)
            .map_err(|source| self.system("read /proc/PID/smaps_rollup", source))?;
        Ok(status_kib(&rollup, "Pss:").unwrap_or_default() * 1024)
    }

    fn cpu_s(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.pid());
        let stat = std::fs::read_to_string(path)
            .map_err(|source| self.system("read /proc/PID/stat", source))?;
        let ticks_per_s = rustix::param::clock_ticks_per_second() as f64;
        Ok(stat_cpu_ticks(&stat).unwrap_or_default() as f64 / ticks_per_s)
    }

    fn system(&self, operation: &'static str, source: io::Error) -> ProcessError {
        ProcessError::System {
            label: self.label.clone(),
            pid: self.pid(),
            operation,
            source,
        }
    }

    fn timeout(&self, awaited: &str, start: Instant) -> ProcessError {
        ProcessError::Timeout {
            label: self.label.clone(),
            awaited: awaited.to_owned(),
            waited_ms: start.elapsed().as_millis(),
            tail: self.tail(20),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nobody is left to report a failure to, and the parent-death signal is still behind it.
        let _ = self.kill();
    }
}

/// Makes the child die with the thread that starts it.
pub fn die_with_parent(command: &mut Command) {
    let parent = getpid();
    // SAFETY: the closure runs between fork and exec and makes two system calls; it allocates
    // nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above; nothing would signal that any more.
            if getppid() != Some(parent) {
                return Err(io::Error::from(rustix::io::Errno::SRCH));
            }
            Ok(())
        });
    }
}

/// The last `lines` lines of a text.
pub fn last_lines(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// `Key:   123 kB` in the style of /proc/PID/status.
fn status_kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

/// User and system ticks of /proc/PID/stat. The program's name may hold spaces and brackets, so
/// fields are counted from the last closing bracket: state is the first after it.
fn stat_cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_ticks_are_found_behind_a_hostile_program_name() {
        let stat = "7 (a) S (b) R 1 7 7 0 -1 4194304 100 0 0 0 250 30 0 0 20 0 1 0 99 0 0";
        assert_eq!(stat_cpu_ticks(stat), Some(280));
        assert_eq!(stat_cpu_ticks("7 (a) R 1"), None);
    }

    #[test]
    fn memory_lines_are_read_by_their_key() {
        let status = "VmHWM:\t    1234 kB\nVmRSS:\t     999 kB\nRssAnon:\t      10 kB\n";
        assert_eq!(status_kib(status, "VmHWM:"), Some(1234));
        assert_eq!(status_kib(status, "RssAnon:"), Some(10));
        assert_eq!(status_kib(status, "VmPeak:"), None);
    }
}
