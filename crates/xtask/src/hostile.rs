//! `cargo xtask hostile`: each attack alone, a tenth of the machines hostile, and what it cost.
//!
//! The attacks and the honest programs are in the package rootswarm-tests; this file measures and
//! prints. For times that mean something: `cargo run --release --package xtask hostile`, on a
//! machine with nothing else to do.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rootswarm_tests::hostile::arena::{AGENT_BYTES_MAX, Arena, SEED_BYTES_MAX};
use rootswarm_tests::hostile::{Attack, Target};
use rootswarm_tests::scratch::Scratch;

use crate::print;

/// Options of `cargo xtask hostile`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only attacks whose name contains this
    filter: Option<String>,
    /// Honest nodes; a tenth of all machines is hostile
    #[arg(long, default_value_t = 18)]
    nodes: usize,
    /// Runs without an attack, whose median is the measure
    #[arg(long, default_value_t = 3)]
    baseline: usize,
}

/// Twice the image at this rate is what a quiet run takes.
const RATE: &str = "40Mbit";
const IMAGE_BYTES: u64 = 10_000_000;
/// For everything; a run takes a few seconds.
const LIMIT: Duration = Duration::from_secs(40);
/// The most that the honest nodes' median may grow.
const ADDED_MAX: f64 = 0.10;

/// Runs and prints.
///
/// # Errors
/// When a honest node fails, grows beyond its bound or is slowed down too much.
pub fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "control groups are made by root: run it as root"
    );
    let arena = Arena {
        nodes: args.nodes,
        image_bytes: IMAGE_BYTES,
        rate: RATE,
        limit: LIMIT,
        siege: Duration::from_secs(1),
    };
    let once = |attacks: &[(Attack, Target)], machines| {
        let need_bytes = IMAGE_BYTES * (args.nodes as u64 + 4);
        let scratch = Scratch::create("hostile", need_bytes, &std::env::temp_dir())?;
        anyhow::Ok(arena.run(scratch.path(), attacks, machines)?)
    };
    let mut quiet = Vec::new();
    for _ in 0..args.baseline.max(1) {
        quiet.push(once(&[], 0).context("without an attack")?.median_s());
    }
    quiet.sort_by(f64::total_cmp);
    let measure = quiet[quiet.len() / 2];
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    print::line(format_args!(
        "{} honest nodes, image {} MB at {RATE}: median {measure:.2} s without an attack ({} runs); \
         bounds: seed {} MiB, node {} MiB",
        args.nodes,
        IMAGE_BYTES / 1_000_000,
        quiet.len(),
        mib(SEED_BYTES_MAX),
        mib(AGENT_BYTES_MAX)
    ))?;
    print::line(format_args!(
        "{:<26} {:<6} {:>9}  {:<8} {:>9} {:>7} {:>6} {:>9} {:>9}",
        "attack", "at", "fired", "honest", "median s", "added", "bans", "seed MiB", "node MiB"
    ))?;
    // A tenth of all machines, and at least one.
    let machines = (args.nodes / 9).max(1);
    let mut failures = Vec::new();
    for (attack, targets) in Attack::ALL {
        let name = attack.name();
        if args
            .filter
            .as_ref()
            .is_some_and(|part| !name.contains(part))
        {
            continue;
        }
        for target in *targets {
            match once(&[(*attack, *target)], machines) {
                Ok(outcome) => {
                    let fired: u64 = outcome.fired.iter().map(|(.., fired)| fired).sum();
                    let added = outcome.median_s() / measure - 1.0;
                    if added > ADDED_MAX {
                        failures.push(format!(
                            "{name} at the {target}: {:.0} % slower",
                            added * 100.0
                        ));
                    }
                    print::line(format_args!(
                        "{name:<26} {target:<6} {fired:>9}  all {:<4} {:>9.2} {:>6.1}% {:>6} {:>9} {:>9}",
                        outcome.fetch_s.len(),
                        outcome.median_s(),
                        added * 100.0,
                        outcome.banned,
                        mib(outcome.seed_anon_bytes),
                        mib(outcome.agent_anon_bytes),
                    ))?;
                }
                Err(error) => {
                    let line = format!("{error:#}")
                        .lines()
                        .next()
                        .unwrap_or_default()
                        .to_owned();
                    print::line(format_args!("{name:<26} {target:<6} FAILED: {line}"))?;
                    failures.push(format!("{name} at the {target}: {line}"));
                }
            }
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}
