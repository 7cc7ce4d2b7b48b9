//! Builds the two programs as they are shipped: the server for this machine, the agent static and
//! small. Where the source and cargo's downloads lie on this machine is not in them, so that another
//! checkout of the same commit makes the same bytes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::step::{self, StepError};

/// Naming it keeps the flags away from build scripts and procedural macros, which cannot be static.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Both from nothing on two busy cores; the agent's fat LTO takes most of it.
const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Between the flags in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\x1f";

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `rootswarm`.
    pub server: PathBuf,
    /// `rootswarm-agent`, static.
    pub agent: PathBuf,
}

impl Binaries {
    /// Builds them with cargo, which does nothing where nothing has changed.
    ///
    /// # Errors
    /// When cargo cannot be run or the build fails.
    pub fn build(logs: &Path) -> Result<Binaries, StepError> {
        let target_directory = target_directory();

        let mut server = cargo_build(&["--release", "--package", "rootswarm"], &[]);
        server.env("CARGO_TARGET_DIR", &target_directory);
        step::run(
            "cargo build (server)",
            server,
            &logs.join("server.log"),
            BUILD_LIMIT,
        )?;

        let mut agent = cargo_build(
            &["--profile", "agent", "--package", "rootswarm-agent"],
            &["-Ctarget-feature=+crt-static"],
        );
        agent.env("CARGO_TARGET_DIR", &target_directory);
        step::run(
            "cargo build (agent)",
            agent,
            &logs.join("agent.log"),
            BUILD_LIMIT,
        )?;

        Ok(Binaries {
            server: target_directory.join(TARGET).join("release/rootswarm"),
            agent: target_directory.join(TARGET).join("agent/rootswarm-agent"),
        })
    }
}

/// The directory of the workspace's Cargo.toml.
pub fn workspace_root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Where cargo puts what it builds, and where the lab keeps what it made.
pub fn target_directory() -> PathBuf {
    // A relative CARGO_TARGET_DIR means the directory cargo was started in; the workspace is the
    // best guess for that.
    let named = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    workspace_root().join(named)
}

fn cargo_build(args: &[&str], flags: &[&str]) -> Command {
    let mut command = crate::cargo::command();
    command
        .args(["build", "--locked", "--target", TARGET])
        .args(args)
        .env("CARGO_ENCODED_RUSTFLAGS", encoded_flags(flags))
        .current_dir(workspace_root());
    command
}

/// The compiler's flags, in the form in which a path may hold a space: `flags`, and other names for
/// the two directories that panic messages would tell of.
fn encoded_flags(flags: &[&str]) -> OsString {
    let mut encoded = OsString::from(flags.join(SEPARATOR));
    let downloads = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(std::env::home_dir()?.join(".cargo")));
    let named = [
        (Some(workspace_root().to_owned()), "/rootswarm"),
        (downloads, "/cargo"),
    ];
    for (directory, name) in named {
        let Some(directory) = directory else {
            continue;
        };
        if !encoded.is_empty() {
            encoded.push(SEPARATOR);
        }
        encoded.push("--remap-path-prefix=");
        encoded.push(directory);
        encoded.push("=");
        encoded.push(name);
    }
    encoded
}
