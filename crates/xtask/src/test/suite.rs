//! The test programs of the workspace: built once and all together, and then run as cargo would.
//!
//! Cargo itself runs one after the other, and builds anew what a part of the workspace needs with other
//! features than the whole.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rootswarm_tests::cargo;
use rootswarm_tests::vm::binaries::workspace_root;
use serde_json::Value;

use super::watch;

/// A test program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Suite {
    /// Its package's directory, below the workspace's.
    pub(super) place: PathBuf,
    /// What it is made of, below that one: `tests/boot.rs`.
    pub(super) source: PathBuf,
    program: PathBuf,
}

/// Builds all of them.
///
/// # Errors
/// When one does not build.
pub(super) fn build() -> anyhow::Result<Vec<Suite>> {
    let line = "test --workspace --locked --no-run --message-format json-render-diagnostics";
    let mut command = cargo::command();
    command.args(line.split(' ')).stdout(Stdio::piped());
    let output = command.spawn()?.wait_with_output()?;
    ensure!(output.status.success(), "the tests do not build");
    let said = String::from_utf8(output.stdout).context("cargo's messages")?;
    let mut suites = Vec::new();
    for message in said.lines() {
        let message: Value = serde_json::from_str(message).context("cargo's messages")?;
        suites.extend(read(&message));
    }
    suites.sort();
    Ok(suites)
}

/// The test program that this message tells of.
fn read(message: &Value) -> Option<Suite> {
    if message["profile"]["test"] != true {
        return None;
    }
    let directory = Path::new(message["manifest_path"].as_str()?).parent()?;
    let source = Path::new(message["target"]["src_path"].as_str()?);
    Some(Suite {
        place: directory.strip_prefix(workspace_root()).ok()?.to_owned(),
        source: source.strip_prefix(directory).ok()?.to_owned(),
        program: message["executable"].as_str()?.into(),
    })
}

impl Suite {
    /// `boot` of `tests/boot.rs`.
    pub(super) fn name(&self) -> &OsStr {
        self.source.file_stem().unwrap_or_default()
    }

    /// Runs it; what it prints goes to `to`.
    ///
    /// # Errors
    /// When a test fails, or nothing is said for `silence`.
    pub(super) fn run(
        &self,
        args: &[&str],
        silence: Duration,
        mut to: impl Write,
    ) -> anyhow::Result<()> {
        let directory = workspace_root().join(&self.place);
        // As cargo says it.
        let kind = match self.source.starts_with("src") {
            true => "unittests ",
            false => "",
        };
        let (source, program) = (self.source.display(), self.program.display());
        writeln!(to, "     Running {kind}{source} ({program})")?;
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .current_dir(&directory)
            .env("CARGO_MANIFEST_DIR", &directory);
        let name = format!("{}, {source}", self.place.display());
        let status = watch::run(command, silence, to).with_context(|| name.clone())?;
        ensure!(status.success(), "{name}: {status}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_messages() {
        let root = workspace_root().display();
        let message = |test: bool, executable: &str| {
            let text = format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"{root}/server/Cargo.toml",
                "target":{{"name":"swarm","src_path":"{root}/server/tests/swarm.rs"}},
                "profile":{{"test":{test}}},"executable":{executable}}}"#
            );
            read(&serde_json::from_str(&text).unwrap())
        };
        let suite = message(true, r#""/target/debug/deps/swarm-1""#).unwrap();
        assert_eq!(suite.place, Path::new("server"));
        assert_eq!(suite.source, Path::new("tests/swarm.rs"));
        assert_eq!(suite.name(), "swarm");
        for other in [message(false, r#""/x""#), message(true, "null")] {
            assert_eq!(other, None);
        }
        assert_eq!(read(&serde_json::json!({"reason": "build-finished"})), None);
    }
}
