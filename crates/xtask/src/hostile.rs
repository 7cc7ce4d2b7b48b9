//! `cargo xtask hostile`: each attack alone, a tenth of the machines hostile, and what it cost.
//!
//! The attacks and the honest programs are in the package rootswarm-tests; this file measures and
//! prints. For times that mean something: `cargo run --release --package xtask hostile`, on a
//! machine with nothing else to do.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rootswarm_tests::hostile::arena::{AGENT_BYTES_MAX, Arena, Outcome, SEED_BYTES_MAX};
use rootswarm_tests::hostile::{Attack, Target};
use rootswarm_tests::scratch::Scratch;

use crate::{needs, print};

/// Options of `cargo xtask hostile`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only attacks whose name contains this
    filter: Option<String>,
    /// Honest nodes; a tenth of all machines is hostile
    #[arg(long, default_value_t = 18)]
    nodes: usize,
    /// Runs of each row, and without an attack; their medians are compared
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=100))]
    runs: u8,
    /// Name the attacks and make none
    #[arg(long)]
    list: bool,
}

/// What is done to a program that was taken over, in one boot of a machine.
const CAPTIVE: &[&str] = match cfg!(target_arch = "x86_64") {
    true => &["writes what it holds", "leaves its namespaces"],
    false => &[],
};

fn captive_name(goal: &str) -> String {
    format!("taken over: {goal}")
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
    let filter = args.filter.as_deref().unwrap_or_default();
    let names = Attack::ALL
        .iter()
        .map(|(attack, _)| attack.name().to_owned());
    let names = names.chain(CAPTIVE.iter().map(|goal| captive_name(goal)));
    let chosen: Vec<String> = names.filter(|name| name.contains(filter)).collect();
    ensure!(
        !chosen.is_empty(),
        "no attack's name contains {filter:?}: see cargo xtask hostile --list"
    );
    if args.list {
        for name in chosen {
            print::line(format_args!("{name}"))?;
        }
        return Ok(());
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "control groups are made by root: run it as root"
    );
    needs::install(false)?;
    let arena = Arena {
        nodes: args.nodes,
        image_bytes: IMAGE_BYTES,
        rate: RATE,
        limit: LIMIT,
        siege: Duration::from_secs(1),
    };
    let run = |attacks: &[(Attack, Target)], machines| {
        let once = || {
            let need_bytes = IMAGE_BYTES * (args.nodes as u64 + 4);
            let scratch = Scratch::create("hostile", need_bytes, &std::env::temp_dir())?;
            anyhow::Ok(arena.run(scratch.path(), attacks, machines)?)
        };
        let runs = (0..args.runs).map(|_| once());
        runs.collect::<anyhow::Result<Vec<_>>>()
    };
    let measure = median_s(&run(&[], 0).context("without an attack")?);
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    print::line(format_args!(
        "{} honest nodes, image {} MB at {RATE}: median {measure:.2} s without an attack; {} runs each; \
         bounds: seed {} MiB, node {} MiB",
        args.nodes,
        IMAGE_BYTES / 1_000_000,
        args.runs,
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
        if !name.contains(filter) {
            continue;
        }
        for target in *targets {
            match run(&[(*attack, *target)], machines) {
                Ok(outcomes) => {
                    let median = median_s(&outcomes);
                    let added = median / measure - 1.0;
                    if added > ADDED_MAX {
                        failures.push(format!(
                            "{name} at the {target}: {:.0} % slower",
                            added * 100.0
                        ));
                    }
                    let fired = outcomes.iter().flat_map(|outcome| &outcome.fired);
                    let most = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).max().unwrap_or(0);
                    print::line(format_args!(
                        "{name:<26} {target:<6} {:>9}  all {:<4} {median:>9.2} {:>6.1}% {:>6} {:>9} {:>9}",
                        fired.map(|(.., fired)| fired).sum::<u64>(),
                        args.nodes,
                        added * 100.0,
                        most(|outcome| outcome.banned as u64),
                        mib(most(|outcome| outcome.seed_anon_bytes)),
                        mib(most(|outcome| outcome.agent_anon_bytes)),
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
    #[cfg(target_arch = "x86_64")]
    failures.extend(captive(filter)?);
    ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}

/// An agent that was taken over after the handoff, row by row; returns what it could do.
#[cfg(target_arch = "x86_64")]
fn captive(filter: &str) -> anyhow::Result<Vec<String>> {
    use rootswarm_tests::hostile::captive;
    let is_wanted = |goal: &&str| captive_name(goal).contains(filter);
    if !CAPTIVE.iter().any(is_wanted) {
        return Ok(Vec::new());
    }
    let scratch = Scratch::create("hostile", 64_000_000, &std::env::temp_dir())?;
    let mut failures = Vec::new();
    for (goal, attempts) in captive::take_over(scratch.path())? {
        if !is_wanted(&goal) {
            continue;
        }
        let done: Vec<_> = attempts.iter().filter(|it| !it.is_refused()).collect();
        print::line(format_args!(
            "{:<33} node {:>5} refused {:>5} of {}",
            captive_name(goal),
            "",
            attempts.len() - done.len(),
            attempts.len()
        ))?;
        ensure!(!attempts.is_empty(), "{goal}: nothing was tried");
        failures.extend(done.into_iter().map(|it| format!("it could {}", it.what)));
    }
    Ok(failures)
}

/// The middle one of the runs' medians.
fn median_s(outcomes: &[Outcome]) -> f64 {
    let mut medians: Vec<f64> = outcomes.iter().map(Outcome::median_s).collect();
    medians.sort_by(f64::total_cmp);
    medians.get(medians.len() / 2).copied().unwrap_or(f64::NAN)
}
