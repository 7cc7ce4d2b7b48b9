//! `cargo xtask faults`: every fault injected into the real programs, one after the other, and a
//! table of what came of it.
//!
//! The faults are in the package rootswarm-tests; this file chooses, runs and prints.

use anyhow::ensure;
use rootswarm_tests::faults::{ALL, Fault, MACHINES};
use rootswarm_tests::scratch::Scratch;

use crate::{needs, print};

/// Options of `cargo xtask faults`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only faults whose name contains this
    filter: Option<String>,
    /// Leave out those in virtual machines (a minute or some each)
    #[arg(long)]
    no_vm: bool,
    /// Name the faults and inject none
    #[arg(long)]
    list: bool,
}

/// Runs and prints.
///
/// # Errors
/// When a row failed, or a fault did not fire.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let filter = args.filter.as_deref().unwrap_or_default();
    let machines = if args.no_vm { &[][..] } else { MACHINES };
    let chosen: Vec<&Fault> = ALL
        .iter()
        .chain(machines)
        .filter(|fault| fault.name.contains(filter))
        .collect();
    ensure!(
        !chosen.is_empty(),
        "no fault's name contains {filter:?}: see cargo xtask faults --list"
    );
    if args.list {
        for fault in chosen {
            print::line(format_args!("{}", fault.name))?;
        }
        return Ok(());
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "network namespaces are made by root: run it as root"
    );
    needs::install(!args.no_vm)?;
    print::line(format_args!(
        "{:<34} {:<30} {:<20} outcome",
        "fault", "injected", "added"
    ))?;
    let mut failed = Vec::new();
    for fault in chosen {
        let result = Scratch::create("fault", fault.need_bytes, &std::env::temp_dir())
            .map_err(Into::into)
            .and_then(|scratch| fault.run(scratch.path()));
        match result {
            Ok(outcome) => {
                let injected = format!("{} {}", outcome.fired, outcome.unit);
                let added = outcome
                    .added
                    .map_or("-".to_owned(), |added| added.to_string());
                print::line(format_args!(
                    "{:<34} {injected:<30} {added:<20} {}",
                    fault.name, outcome.outcome
                ))?;
            }
            Err(error) => {
                let line = error.to_string();
                let line = line.lines().next().unwrap_or_default();
                print::line(format_args!("{:<34} FAILED: {line}", fault.name))?;
                failed.push(fault.name);
            }
        }
    }
    ensure!(
        failed.is_empty(),
        "{} of the faults were not survived: {}; replay: cargo xtask faults \"NAME\"",
        failed.len(),
        failed.join(", ")
    );
    Ok(())
}
