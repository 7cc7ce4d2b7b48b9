//! A bound on the memory of one program: a control group of its own, version 1 or 2.
//!
//! The kernel counts what the group's processes touch, page cache included (which it takes back
//! before it refuses anything), and kills what goes beyond the bound: a test then sees a dead
//! program, not a number. What the program holds itself is [`crate::process::Usage::rss_anon_bytes`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Where the memory controller is, and what its files are called: version 2, then version 1.
const CONTROLLERS: [(&str, &str, &str); 2] = [
    ("/sys/fs/cgroup", "memory.max", "memory.peak"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.max_usage_in_bytes",
    ),
];

/// How the directories are called, so that leftovers of a killed test are found.
const PREFIX: &str = "rootswarm-test";

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No memory controller: neither version is mounted where systemd mounts it.
    #[error("no memory controller below /sys/fs/cgroup: a bound on memory cannot be set")]
    NoController,
    /// A file of the group.
    #[error("control group: {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A control group with a bound, removed when dropped. Drop what runs in it first.
#[derive(Debug)]
pub struct MemoryBound {
    directory: PathBuf,
    peak: &'static str,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CgroupError + '_ {
    |source| CgroupError::Io {
        path: path.to_owned(),
        source,
    }
}

impl MemoryBound {
    /// A group that may use `bytes`.
    ///
    /// # Errors
    /// Without root, or without a memory controller.
    pub fn new(bytes: u64) -> Result<Self, CgroupError> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        for (root, maximum, peak) in CONTROLLERS {
            let root = Path::new(root);
            sweep(root);
            let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
            let directory = root.join(format!("{PREFIX}-{}-{serial}", std::process::id()));
            if fs::create_dir(&directory).is_err() {
                continue;
            }
            let bound = MemoryBound { directory, peak };
            let file = bound.directory.join(maximum);
            if !file.exists() {
                continue;
            }
            fs::write(&file, bytes.to_string()).map_err(io_error(&file))?;
            return Ok(bound);
        }
        Err(CgroupError::NoController)
    }

    /// Puts a process into it: what it touches from now on counts.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enclose(&self, pid: u32) -> Result<(), CgroupError> {
        let file = self.directory.join("cgroup.procs");
        fs::write(&file, pid.to_string()).map_err(io_error(&file))
    }

    /// The most that was in use, page cache included.
    ///
    /// # Errors
    /// When the kernel does not say (version 2 before Linux 5.19).
    pub fn peak_bytes(&self) -> Result<u64, CgroupError> {
        let file = self.directory.join(self.peak);
        let text = fs::read_to_string(&file).map_err(io_error(&file))?;
        text.trim()
            .parse()
            .map_err(|error| io_error(&file)(io::Error::other(error)))
    }
}

impl Drop for MemoryBound {
    fn drop(&mut self) {
        // A process that was just killed leaves the group a moment later.
        for _ in 0..50 {
            if fs::remove_dir(&self.directory).is_ok() || !self.directory.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Removes what tests left that were killed.
fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.strip_prefix('-'))
            .and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}
