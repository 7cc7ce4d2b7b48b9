//! `cargo xtask`: the demo, the tests, the bench, the simulator, the fuzzer, the attacks, the faults,
//! the packages, the bills of materials and the size check. This file only chooses between them.

mod bench;
mod boots;
mod deb;
mod demo;
mod faults;
mod fuzz;
mod hostile;
mod members;
mod needs;
mod predict;
mod print;
mod sbom;
mod sim;
mod size;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    about = "Demo, bench, simulator and packaging commands"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot virtual machines over PXE from one seed and from each other (needs root)
    Demo(demo::Args),
    /// Boot many machines in a row on cables that lose packets (needs root)
    Boots(boots::Args),
    /// Measure rootswarm and other tools in one lab of shaped links (needs root)
    Bench(Box<bench::Args>),
    /// Run a plan of crates/sim in the simulator and print how close to the bound it came
    Sim(sim::Args),
    /// Hold the simulator against the lab: the same cases measured and simulated (needs root)
    Predict(predict::Args),
    /// Install what the tests need and run all of them (needs root)
    Test(test::Args),
    /// Fuzz every decoder, or one, for a given time
    Fuzz(fuzz::Args),
    /// Attack the programs in every way there is, one after the other, and print what it cost (needs root)
    Hostile(hostile::Args),
    /// Let ten thousand members join one seed, and print what they cost it in memory
    Members(members::Args),
    /// Inject every fault there is into the programs, and print what came of it (needs root)
    Faults(faults::Args),
    /// Build a Debian package of each of the two programs
    Deb(deb::Args),
    /// Write a bill of materials for each of the two programs
    Sbom(sbom::Args),
    /// Build the static agent and hold its size against the limit
    Size(size::Args),
}

#[allow(clippy::print_stderr)] // A command that people run.
fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(args),
        Command::Boots(args) => boots::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Sim(args) => sim::run(args),
        Command::Predict(args) => predict::run(args),
        Command::Test(args) => test::run(args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Hostile(args) => hostile::run(&args),
        Command::Members(args) => members::run(&args),
        Command::Faults(args) => faults::run(&args),
        Command::Deb(args) => deb::run(&args),
        Command::Sbom(args) => sbom::run(&args),
        Command::Size(args) => size::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if print::reader_is_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: the causes after the effect.
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
