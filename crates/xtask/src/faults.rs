//! `cargo xtask faults`: every fault injected into the real programs, one after the other, and a
//! table of what came of it. A row that has a bound is held to it here, and nowhere else: it fails when
//! the last node took longer.
//!
//! The faults are in the package rootswarm-tests; this file chooses, runs, judges and prints.

use anyhow::ensure;
use rootswarm_tests::faults::{ALL, Fault, MACHINES, Outcome};
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
/// When a row failed or was beyond its bound, or a fault did not fire.
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
        "{:<34} {:<30} {:<20} {:<24} outcome",
        "fault", "injected", "added", "bound"
    ))?;
    let mut failed = Vec::new();
    for fault in chosen {
        let result = Scratch::create("fault", fault.need_bytes, &std::env::temp_dir())
            .map_err(Into::into)
            .and_then(|scratch| fault.run(scratch.path()));
        match result {
            Ok(outcome) => match fault.judge(&outcome) {
                Ok(()) => print::line(row(fault, &outcome))?,
                Err(beyond) => {
                    let said = &outcome.outcome;
                    print::line(format_args!("{:<34} FAILED: {beyond}; {said}", fault.name))?;
                    failed.push(fault.name);
                }
            },
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
        "{} of the faults were not survived, or cost more than they may: {}; replay: cargo xtask faults \
         \"NAME\"",
        failed.len(),
        failed.join(", ")
    );
    Ok(())
}

/// A line of the table. The bound is what may be added at most, and how that comes about.
fn row(fault: &Fault, outcome: &Outcome) -> String {
    let injected = format!("{} {}", outcome.fired, outcome.unit);
    let (mut added, mut bound) = ("-".to_owned(), "-".to_owned());
    if let Some(times) = outcome.added {
        added = times.to_string();
        if let Some(most) = fault.bound {
            let may_add = most.limit(times.without).saturating_sub(times.without);
            bound = format!("{:+.1} s ({most})", may_add.as_secs_f64());
        }
    }
    format!(
        "{:<34} {injected:<30} {added:<20} {bound:<24} {}",
        fault.name, outcome.outcome
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rootswarm_tests::faults::{Added, Bound};

    use super::*;

    #[test]
    fn a_row_says_what_was_added_and_what_may_be() {
        let fault = |bound| Fault {
            name: "test: nothing",
            need_bytes: 0,
            bound,
            inject: |_| Err("not injected".into()),
        };
        let outcome = |added| Outcome {
            fired: 3,
            unit: "tests",
            outcome: "done".to_owned(),
            added,
        };
        let times = Some(Added {
            with: Duration::from_millis(5_200),
            without: Duration::from_millis(4_000),
        });
        for (bound, added, columns) in [
            (None, None, "- | - | done"),
            (None, times, "+1.2 s on 4.0 s | - | done"),
            (
                Some(Bound::times(2.0)),
                times,
                "+1.2 s on 4.0 s | +4.0 s (2 x) | done",
            ),
            (
                Some(Bound::after(10, 1.5)),
                times,
                "+1.2 s on 4.0 s | +12.0 s (10 s + 1.5 x) | done",
            ),
        ] {
            let row = row(&fault(bound), &outcome(added));
            let found: Vec<&str> = row.split("  ").map(str::trim).collect();
            let found: Vec<&str> = found.into_iter().filter(|part| !part.is_empty()).collect();
            let expected = format!("test: nothing | 3 tests | {columns}");
            assert_eq!(found.join(" | "), expected);
        }
    }
}
