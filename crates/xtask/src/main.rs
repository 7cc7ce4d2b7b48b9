//! `cargo xtask`: the demo, the tests, the bench and the size check. This file only chooses between them.

mod bench;
mod demo;
mod size;
mod test;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Demo, bench and packaging commands")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Boot virtual machines over PXE from one seed and from each other (needs root)
    Demo(demo::Args),
    /// Measure rootswarm and other tools in one lab of shaped links (needs root)
    Bench(bench::Args),
    /// Install what the tests need and run all of them (needs root)
    Test(test::Args),
    /// Build the static agent and hold its size against the limit
    Size(size::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Demo(args) => demo::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Test(args) => test::run(args),
        Command::Size(args) => size::run(args),
    }
}
