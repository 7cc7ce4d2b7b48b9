//! A shell script in namespaces of its own, gone with it.

use std::process::Command;

use crate::common::{stderr, stdout};

/// Runs `script` with these variables, and `PROGRAM`, in a new namespace of `kind`: `n` (network) or `m`
/// (mounts), which whoever is not root gets as root of a user namespace. Returns all that it said; it has to end
/// well.
pub fn run_in_namespace(kind: char, script: &str, variables: &[(&str, &str)]) -> String {
    let mut command = Command::new("unshare");
    command.arg(match rustix::process::geteuid().is_root() {
        true => format!("-{kind}"),
        false => format!("-Ur{kind}"),
    });
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROOTSWARM_")) {
        command.env_remove(name);
    }
    let output = command
        .args(["sh", "-c", script])
        .env("PROGRAM", env!("CARGO_BIN_EXE_rootswarm"))
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = format!("{}{}", stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(0), "{said}");
    said
}
