//! The programs of the last landed version, built from this repository's own history.
//!
//! An upgrade meets what is out there: initrds that hold the agent of then, seeds that have not been
//! upgraded yet, state directories that the seed of then wrote. A test that only remembers their bytes
//! checks what somebody thought of; these are the programs themselves. What they must go on doing is in
//! `tests/tests/upgrade.rs`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::cargo;
use crate::vm::binaries::{Binaries, target_directory, workspace_root};

/// The commit whose wire version, state directory and initrds the present version still serves. It moves on
/// when another version has landed.
pub const COMMIT: &str = "e02d474dd78e5bc9c45ddcd191285b164a189602";

/// Builds both programs of [`COMMIT`], once a process; cargo does nothing where they are built already.
///
/// # Errors
/// When the history is not there, or they do not build: what the operator can do is in the message.
pub fn programs() -> Result<&'static Binaries, String> {
    static BUILT: OnceLock<Result<Binaries, String>> = OnceLock::new();
    BUILT.get_or_init(build).as_ref().map_err(String::clone)
}

fn build() -> Result<Binaries, String> {
    let place = target_directory().join("last-landed");
    let source = place.join(COMMIT);
    unpack(&source)?;
    // A directory of its own: cargo names what it makes of a workspace's members by their place within the
    // workspace, and would take the files of one version for those of the other.
    let target = place.join("target");
    let mut command = cargo::command();
    command
        .args(["build", "--quiet", "--locked", "--package", "rootswarm"])
        .args(["--package", "rootswarm-agent", "--target-dir"])
        .arg(&target)
        .current_dir(&source);
    run(command, "the last landed version does not build")?;
    Ok(Binaries {
        server: target.join("debug/rootswarm"),
        agent: target.join("debug/rootswarm-agent"),
    })
}

/// The tree of [`COMMIT`] in `source`, complete or not there.
fn unpack(source: &Path) -> Result<(), String> {
    if source.is_dir() {
        return Ok(());
    }
    let partial = PathBuf::from(format!("{}.{}", source.display(), std::process::id()));
    let file = |error: std::io::Error| format!("{}: {error}", partial.display());
    std::fs::create_dir_all(&partial).map_err(file)?;
    let mut archive = Command::new("git")
        .args(["archive", COMMIT])
        .current_dir(workspace_root())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot run git: {error}; install it"))?;
    let mut unpack = Command::new("tar");
    unpack.arg("-x").arg("-C").arg(&partial);
    if let Some(tree) = archive.stdout.take() {
        unpack.stdin(tree);
    }
    let unpacked = run(unpack, "cannot unpack the last landed version");
    let archived = archive.wait_with_output().map_err(file)?;
    if !archived.status.success() {
        let _ = std::fs::remove_dir_all(&partial);
        return Err(format!(
            "the last landed version, commit {COMMIT}, is not in this repository ({}); the upgrade tests \
             build it: fetch the whole history (git fetch --unshallow)",
            String::from_utf8_lossy(&archived.stderr).trim()
        ));
    }
    unpacked?;
    std::fs::rename(&partial, source).map_err(|error| format!("{}: {error}", source.display()))
}

fn run(mut command: Command, what: &str) -> Result<(), String> {
    let output = command
        .output()
        .map_err(|error| format!("{what}: cannot run {:?}: {error}", command.get_program()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{what}:\n{}",
        String::from_utf8_lossy(&output.stderr).trim_end()
    ))
}
