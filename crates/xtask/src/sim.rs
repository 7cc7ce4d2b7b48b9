//! `cargo xtask sim`: runs a plan of `crates/sim` with one seed or many and prints how it went.
//!
//! The runs are `rootswarm_sim`'s. Here are the options, the threads, the table and the verdict;
//! the plot is drawn in `plot`, the document written in `document`.

mod document;
mod memory;
mod plot;
mod table;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use rootswarm_sim::{MIXED, Outcome, Override, Plan, Source, named_plans};

use crate::print;

/// The word in a plan's place that prints what plans there are.
const LIST: &str = "list";

/// With more seeds than this only the runs that failed have a row of their own.
const ROWS_MAX: u64 = 20;

/// What one simulated node is taken to need: its scheduler, its share of connections, chunks and
/// events. 1,000 nodes with 1,908 chunks took 195 kB each, 10,000 took 124; half as much again is for
/// schedulers that remember more. The limit on how many runs go on at a time follows from it.
const NODE_BYTES: u64 = 300_000;

/// Run a plan in the simulator.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The plan's name, or the path of a TOML file; `list` prints the names
    #[arg(value_name = "PLAN")]
    plan: String,
    /// Nodes, instead of the plan's
    #[arg(long)]
    nodes: Option<usize>,
    /// Runs, each with a seed of its own, one after the other from --seed
    #[arg(long, default_value_t = 1)]
    seeds: u64,
    /// The first run's seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Another value for a field of the plan, such as links.seed=10Gbit; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<Override>,
    /// The plan's small version: what the tests run
    #[arg(long)]
    small: bool,
    /// Runs at a time [default: one for each core, as far as 300 kB for each node fit in the free
    /// memory]
    #[arg(long)]
    jobs: Option<NonZeroUsize>,
    /// Draw the first run's progress over time into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write all figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One finished run.
pub struct Run {
    /// What it followed from, with the plan.
    pub seed: u64,
    /// The plan; a mixture is another one for each seed.
    pub plan: Plan,
    /// What it gave.
    pub outcome: Outcome,
    /// How long it took to simulate.
    pub wall_s: f64,
}

impl Run {
    /// Whether everybody finished and nothing happened that must not.
    pub fn is_sound(&self) -> bool {
        self.outcome.violations.is_empty() && self.outcome.unfinished == 0
    }
}

/// Runs the plan and prints the table.
///
/// # Errors
/// A plan that cannot be read, a file that cannot be written, a run with a violation or with nodes
/// that did not finish.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.plan == LIST {
        return list();
    }
    let mut overrides = args.overrides;
    if let Some(nodes) = args.nodes {
        overrides.push(format!("nodes={nodes}").parse()?);
    }
    let source = Source::find(&args.plan, args.small, overrides)?;
    memory::in_huge_pages(args.seeds == 1);
    let first = source.plan(args.seed)?;
    let command = source.replay(args.seed);
    print::line(format_args!("$ {command} --seeds {}", args.seeds))?;
    print::line(table::describe(&first, &source))?;
    let jobs = args.jobs.map_or_else(|| jobs(&first), NonZeroUsize::get);
    let jobs = jobs.min(usize::try_from(args.seeds).unwrap_or(usize::MAX));

    print::line(table::heading(&first))?;
    let mut runs = Vec::new();
    run_all(&source, args.seed, args.seeds, jobs, |run| {
        if args.seeds <= ROWS_MAX || !run.is_sound() {
            print::line(table::row(&run))?;
        }
        for violation in run.outcome.violations.iter().take(5) {
            print::line(format_args!("    {violation}"))?;
        }
        if !run.is_sound() {
            print::line(format_args!("    again: {}", source.replay(run.seed)))?;
        }
        runs.push(run);
        Ok(())
    })?;
    if runs.len() > 1 {
        print::line(table::worst(&runs))?;
    }
    print::line(table::footer(&runs, jobs))?;
    if let (Some(path), Some(run)) = (&args.svg, runs.first()) {
        std::fs::write(path, plot::svg(run))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&document::json(&runs, &source))?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let failed = runs.iter().filter(|run| !run.is_sound()).count();
    if failed > 0 {
        bail!(
            "{failed} of {} runs failed; see above for how to run them again",
            runs.len()
        );
    }
    Ok(())
}

fn list() -> anyhow::Result<()> {
    for name in named_plans()? {
        let plan = Source::find(&name, false, Vec::new())?.plan(1)?;
        print::line(format_args!("{name:20} {}", plan.about))?;
    }
    print::line(format_args!(
        "{MIXED:20} a small swarm with a mixture of faults, another for each seed"
    ))?;
    Ok(())
}

/// Runs every seed, `jobs` at a time, and hands over the runs in the order of their seeds.
fn run_all(
    source: &Source,
    first: u64,
    count: u64,
    jobs: usize,
    mut finished: impl FnMut(Run) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let count = usize::try_from(count).context("more seeds than this machine can count")?;
    let next = AtomicUsize::new(0);
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let run = run_one(source, first.wrapping_add(number as u64));
                    // Nobody listens any more once a run could not begin.
                    if sender.send((number, run)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut early = std::collections::BTreeMap::new();
        let mut due = 0;
        for (number, run) in receiver {
            early.insert(number, run?);
            while let Some(run) = early.remove(&due) {
                finished(run)?;
                due += 1;
            }
        }
        Ok(())
    })
}

fn run_one(source: &Source, seed: u64) -> anyhow::Result<Run> {
    let plan = source.plan(seed)?;
    let began = Instant::now();
    let outcome = rootswarm_sim::run(&plan, seed);
    Ok(Run {
        seed,
        outcome,
        plan,
        wall_s: began.elapsed().as_secs_f64(),
    })
}

/// One run for each core, as far as the memory that is free allows; one in any case.
fn jobs(plan: &Plan) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let free_kb = proc_kb("/proc/meminfo", "MemAvailable:").unwrap_or(0);
    let fit = free_kb * 1024 / (plan.nodes as u64 * NODE_BYTES).max(1);
    cores.min(usize::try_from(fit).unwrap_or(cores)).max(1)
}

/// A figure in kB from one of the kernel's files of `name: value kB` lines.
pub fn proc_kb(path: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}
