//! The Debian packages, built by the command that a user builds them with.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::binaries::{target_directory, workspace_root};
use super::step::{self, StepError};

/// Both programs from nothing on two busy cores, and packing.
const BUILD_LIMIT: Duration = Duration::from_secs(35 * 60);

/// Where the packages are.
#[derive(Debug, Clone)]
pub struct Debs {
    /// `rootswarm`: the seed.
    pub server: PathBuf,
    /// `rootswarm-initramfs`: what goes into the nodes' initramfs.
    pub initramfs: PathBuf,
}

impl Debs {
    /// `cargo xtask deb --out OUT`.
    ///
    /// # Errors
    /// When it fails or leaves no package.
    pub fn build(out: &Path, logs: &Path) -> Result<Debs, StepError> {
        let mut command = crate::cargo::command();
        command
            .args(["run", "--quiet", "--locked", "--package", "xtask", "--"])
            .args(["deb", "--out"])
            .arg(out)
            .current_dir(workspace_root())
            .env("CARGO_TARGET_DIR", target_directory());
        step::run(STEP, command, &logs.join("deb.log"), BUILD_LIMIT)?;
        Ok(Debs {
            server: find(out, "rootswarm_")?,
            initramfs: find(out, "rootswarm-initramfs_")?,
        })
    }
}

const STEP: &str = "cargo xtask deb";

fn find(out: &Path, prefix: &str) -> Result<PathBuf, StepError> {
    let entries = fs::read_dir(out).map_err(StepError::file("read", out))?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(prefix) && name.ends_with(".deb")
        })
        .ok_or_else(|| StepError::Missing {
            step: STEP,
            expected: format!("{prefix}*.deb"),
            directory: out.to_owned(),
        })
}
