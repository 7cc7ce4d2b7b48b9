//! Builds the two programs as they are shipped: the server for this machine, the agent static and
//! small.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::step::{self, StepError};

const AGENT_TARGET: &str = "x86_64-unknown-linux-gnu";
/// Both from nothing on two busy cores; the agent's fat LTO takes most of it.
const BUILD_LIMIT: Duration = Duration::from_secs(30 * 60);

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

        let mut server = cargo_build(&["--release", "--package", "rootswarm"]);
        server.env("CARGO_TARGET_DIR", &target_directory);
        step::run(
            "cargo build (server)",
            server,
            &logs.join("server.log"),
            BUILD_LIMIT,
        )?;

        // An explicit target keeps the flag away from build scripts and procedural macros, which
        // cannot be static.
        let profile = [
            "--profile",
            "agent",
            "--package",
            "rootswarm-agent",
            "--target",
            AGENT_TARGET,
        ];
        let mut agent = cargo_build(&profile);
        agent
            .env("CARGO_TARGET_DIR", &target_directory)
            .env("RUSTFLAGS", "-C target-feature=+crt-static");
        step::run(
            "cargo build (agent)",
            agent,
            &logs.join("agent.log"),
            BUILD_LIMIT,
        )?;

        Ok(Binaries {
            server: target_directory.join("release/rootswarm"),
            agent: target_directory
                .join(AGENT_TARGET)
                .join("agent/rootswarm-agent"),
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

fn cargo_build(args: &[&str]) -> Command {
    let mut command = crate::cargo::command();
    command
        .arg("build")
        .args(args)
        .current_dir(workspace_root());
    command
}
