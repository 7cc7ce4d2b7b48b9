//! The `rootswarm` command. All it does is in the library; this turns its result into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    rootswarm::commands::main(std::env::args_os())
}
