//! cargo, started from a program that cargo started.

use std::process::Command;

/// `cargo` as a person at a shell would start it.
///
/// What cargo tells its children about themselves (CARGO_MANIFEST_DIR and the like) is taken out:
/// build scripts look at it, and a build that sees another value than the last one makes ring and
/// all that needs it again.
pub fn command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let told = [
            "CARGO_MANIFEST_",
            "CARGO_PKG_",
            "CARGO_BIN_",
            "CARGO_CRATE_",
        ];
        if text == "CARGO" || told.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}
