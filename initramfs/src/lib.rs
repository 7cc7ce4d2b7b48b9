//! The node's program: everything that happens between "the kernel has a network" and "the root
//! is mounted", and the small process that goes on serving the image afterwards.
//!
//! Three steps are kept apart, because a later agent that is the initrd's own `/init` needs them
//! one by one: [`fetch`] brings a verified image into RAM, [`mount`] makes a root of it, and
//! [`handoff`] leaves the initramfs without taking the serving process down. [`boot`] only strings
//! them together in the order the boot contract asks for.
//!
//! Who fetches which chunk from whom is not decided here: that is `rootswarm-swarm`, driven by
//! `rootswarm-transport`. What an image is, is `rootswarm-image`.
//!
//! Every decision that a kernel command line can cause is parsed once, at the edge
//! ([`cmdline::BootPlan`]); the rest of the crate sees only typed values.

pub mod args;
pub mod baked;
pub mod boot;
pub mod cmdline;
pub mod confine;
pub mod console;
pub mod copy_tree;
pub mod exit;
pub mod fetch;
pub mod handoff;
pub mod http;
pub mod http_chunks;
pub mod http_error;
pub mod http_fetch;
pub mod http_image;
pub mod http_response;
pub mod loop_device;
pub mod minimum;
pub mod mount;
pub mod network;
pub mod patience;
pub mod plan;
pub mod preflight;
pub mod progress;
pub mod rack;
pub mod remedy;
pub mod report;
pub mod resolve;
pub mod run_dir;
pub mod seed_names;
pub mod serving;
pub mod status;
pub mod swarm_download;
pub mod swarm_fetch;
pub mod syscalls;
pub mod units;

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the program: parses `args` (without the program's own name) and does what they say.
///
/// This is all that `main` calls; it prints the one error line and picks the exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let result = match args::parse(args) {
        Ok(args::Command::Help(text)) => console::print_out(text),
        Ok(args::Command::Version) => {
            console::print_out(concat!("rootswarm-agent ", env!("CARGO_PKG_VERSION"), "\n"))
        }
        Ok(args::Command::Boot(boot)) => handoff::boot_in_child(&boot),
        Ok(args::Command::BootChild(boot)) => return boot::run_child(&boot),
        Ok(args::Command::Fetch(fetch)) => fetch::run(&fetch),
        Ok(args::Command::Status(status)) => status::run(&status),
        Ok(args::Command::Check(check)) => baked::check(&check),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            console::line(&format!("rootswarm-agent: {}", failure.message));
            failure.exit.into()
        }
    }
}
