//! A machine that boots, in one directory: the agent's `boot` with every path moved there.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{agent, eventually, loops_of, mounted_at, mounts, run, small_root, squashfs};

/// Everything a boot needs, in one directory.
pub struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Lab {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("conf")).expect("a directory");
        fs::create_dir(dir.path().join("root")).expect("a directory");
        Lab { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A real squashfs.
    pub fn image(&self) -> Vec<u8> {
        let (tree, image) = (small_root(self.dir.path()), self.path("made.squashfs"));
        squashfs(&tree, &image);
        let bytes = fs::read(&image).expect("the image");
        fs::remove_dir_all(tree).expect("a directory");
        fs::remove_file(image).expect("a file");
        bytes
    }

    pub fn boot(&self, cmdline: &str) -> Command {
        fs::write(self.path("cmdline"), cmdline).expect("a file");
        let mut command = agent();
        command.arg("boot");
        let options = [
            ("--rootmnt", "root"),
            ("--cmdline", "cmdline"),
            ("--run-dir", "run"),
            ("--conf", "conf"),
            ("--mnt", "mnt"),
        ];
        for (option, name) in options {
            command.arg(option).arg(name);
        }
        // Relative paths mean the caller's directory, whatever the child does.
        command.current_dir(self.dir.path());
        command
    }

    pub fn at(&self, name: &str) -> String {
        mounted_at(&self.path(name)).unwrap_or_default()
    }

    pub fn status(&self) -> serde_json::Value {
        let text = fs::read(self.path("run/status.json")).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    pub fn name(&self) -> String {
        self.dir
            .path()
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned()
    }

    /// Processes that have this lab in their arguments or as their directory.
    pub fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let dir = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&self.name()) || dir == self.dir.path() {
                found.push(pid);
            }
        }
        found
    }

    /// Failed, with this line, and as if nothing had been.
    #[track_caller]
    pub fn check_fails(&self, cmdline: &str, code: i32, part: &str) {
        let before = mounts();
        let (found, out, err) = run(&mut self.boot(cmdline));
        assert_eq!((found, out.as_str()), (code, ""), "{err}");
        let last = err.lines().last().unwrap_or_default();
        assert!(last.starts_with("rootswarm-agent: "), "{err}");
        assert!(last.contains(part), "expected \"{part}\" in: {err}");
        let note = fs::read_to_string(self.path("run.error")).expect("the line, to be repeated");
        assert_eq!(format!("rootswarm-agent: {note}"), format!("{last}\n"));
        self.check_nothing_left(&before);
    }

    #[track_caller]
    pub fn check_nothing_left(&self, before: &[String]) {
        assert_eq!(mounts(), before);
        assert!(!self.path("run").exists() && !self.path("mnt").exists());
        assert_eq!(self.processes(), Vec::<i32>::new());
        eventually("the loop device clearing itself", || {
            loops_of(&self.name()).is_empty()
        });
    }
}

impl Drop for Lab {
    /// A test that failed leaves no agent behind.
    fn drop(&mut self) {
        let own = std::process::id();
        for pid in self.processes() {
            if pid.unsigned_abs() != own {
                let pid = Pid::from_raw(pid).expect("a pid");
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

/// Waits for the end of a process.
pub fn ends_within(pid: i32, limit: Duration) {
    let asked = Instant::now();
    let alive = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A zombie has ended; its parent here is whoever adopted it.
        !stat.is_empty() && !stat.contains(") Z ")
    };
    while alive() {
        assert!(asked.elapsed() < limit, "process {pid} lives on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Sends a signal.
pub fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("a pid"), signal).expect("a process");
}
