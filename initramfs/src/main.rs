//! `rootswarm-agent`: see the library for everything it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    rootswarm_agent::run(std::env::args_os().skip(1))
}
