//! A machine whose agent is taken over after the handoff: booted from a real seed, in a mount namespace
//! of its own, and then made to try what it should not be able to.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;

use super::arena::ArenaError;
use super::takeover::{self, Attempt};
use crate::swarm::{Place, Seed, SwarmError, programs};

const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// What was tried, by what it was for.
pub type Tried = Vec<(&'static str, Vec<Attempt>)>;

/// Boots a machine in `directory` and takes its agent over.
///
/// # Errors
/// When it does not boot, or cannot be traced.
pub fn take_over(directory: &Path) -> Result<Tried, ArenaError> {
    let tree = directory.join("tree");
    let image = directory.join("image.squashfs");
    fs::create_dir_all(tree.join("etc"))?;
    fs::write(tree.join("etc/hostname"), "captive\n")?;
    let made = Command::new("mksquashfs")
        .arg(&tree)
        .arg(&image)
        .args(["-noappend", "-no-progress", "-quiet"])
        .output()?;
    if !made.status.success() {
        let text = String::from_utf8_lossy(&made.stderr).into_owned();
        return Err(io::Error::other(format!("mksquashfs: {text}")).into());
    }
    let place = Place::loopback();
    let mut seed = Seed::start(place, directory, &[("captive", image.as_path())], &[])?;
    let url = seed.url("captive")?;
    programs()?;
    // A thread of its own: what it mounts is seen by nobody else and goes with it.
    std::thread::scope(|scope| {
        let machine = scope.spawn(|| in_its_namespace(directory, &url));
        match machine.join() {
            Ok(tried) => tried,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn in_its_namespace(directory: &Path, url: &str) -> Result<Tried, ArenaError> {
    let error = |e: rustix::io::Errno| io::Error::from(e);
    // SAFETY: descriptors stay shared; only the mounts and the working directory become the thread's own.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.map_err(error)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(error)?;
    let at = |name: &str| directory.join(name);
    for made in ["root", "conf"] {
        fs::create_dir_all(at(made))?;
    }
    fs::write(at("cmdline"), format!("rooturl={url}"))?;
    let booted = Command::new(&programs()?.agent)
        .arg("boot")
        .arg("--rootmnt")
        .arg(at("root"))
        .arg("--cmdline")
        .arg(at("cmdline"))
        .arg("--run-dir")
        .arg(at("run"))
        .arg("--conf")
        .arg(at("conf"))
        .arg("--mnt")
        .arg(at("mnt"))
        .output()?;
    let said = String::from_utf8_lossy(&booted.stderr);
    if !booted.status.success() {
        return Err(io::Error::other(format!("the machine did not boot: {said}")).into());
    }
    let status = at("run/status.json");
    let document: serde_json::Value =
        serde_json::from_slice(&fs::read(&status)?).map_err(io::Error::other)?;
    let pid = document["pid"]
        .as_i64()
        .and_then(|pid| i32::try_from(pid).ok());
    let agent = Left(
        pid.and_then(Pid::from_raw)
            .ok_or_else(|| SwarmError::Status {
                label: "captive".to_owned(),
                reason: "no pid".to_owned(),
                document: document.to_string(),
            })?,
    );
    let pid = agent.0.as_raw_nonzero().get();
    let started = Instant::now();
    while !takeover::is_confined(pid)? {
        if started.elapsed() >= LIMIT {
            return Err(io::Error::other("the agent gave nothing up").into());
        }
        std::thread::sleep(POLL);
    }
    let content = fs::read(at("run/image.squashfs"))?;
    let path = status.display().to_string();
    let mut tried = vec![
        (
            "writes what it holds",
            takeover::write_what_it_holds(pid, &path)?,
        ),
        ("leaves its namespaces", takeover::leave_its_place(pid)?),
    ];
    if fs::read(at("run/image.squashfs"))? != content {
        let what = "the image is another one now".to_owned();
        tried[0].1.push(Attempt { what, result: 0 });
    }
    drop(agent);
    for mounted in ["root", "run"] {
        let _ = rustix::mount::unmount(at(mounted), UnmountFlags::DETACH);
    }
    Ok(tried)
}

/// The agent that stays behind, which is nobody's child: ended with this.
struct Left(Pid);

impl Drop for Left {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(self.0, Signal::TERM);
        let started = Instant::now();
        while rustix::process::test_kill_process(self.0).is_ok() && started.elapsed() < LIMIT {
            std::thread::sleep(POLL);
        }
    }
}
