//! `cargo xtask predict`: the lab's first three cases measured and simulated, side by side.
//!
//! The measuring is `bench`'s, the simulating `rootswarm_sim`'s: here both are given the same nodes,
//! links, image and chunk size, and the ratios are compared.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use rootswarm_sim::{Plan, Source};
use rootswarm_tests::bench::{Case, Outcome, Report, Spread, Tool, default_cases};

use crate::{bench, print};

/// The cases that the simulator has to predict: the first so many of the bench's own.
const CASES: usize = 3;

/// How far the simulated ratio may be from the measured one, as a share of it.
const DEVIATION_MAX: f64 = 0.10;

/// Measure the lab's first three cases, simulate them, and compare.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Take the measured figures from what `cargo xtask bench --json` wrote, instead of measuring;
    /// may be repeated
    #[arg(long, value_name = "FILE", conflicts_with_all = ["runs", "image", "bin_dir"])]
    measured: Vec<PathBuf>,
    /// Runs of each case in the lab; the median counts
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Runs of each case in the simulator, each with another seed; the median counts
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    /// Move this file instead of 96.3 MB of pseudo-random bytes
    #[arg(long)]
    image: Option<PathBuf>,
    /// Take `rootswarm` and `rootswarm-agent` from this directory instead of building them
    #[arg(long)]
    bin_dir: Option<PathBuf>,
}

/// One case, both ways. Ratios are the last node's finish, from the start of the first, over T*.
struct Prediction {
    measured: Spread,
    simulated: Spread,
}

impl Prediction {
    /// How much more the simulator says than the lab, as a share of what the lab says.
    fn deviation(&self) -> f64 {
        self.simulated.median / self.measured.median - 1.0
    }

    fn is_within(&self) -> bool {
        self.deviation().abs() <= DEVIATION_MAX
    }
}

/// Measures or reads, simulates, prints.
///
/// # Errors
/// A case that was not measured, a run that failed, or a deviation of more than 10 %.
pub fn run(args: Args) -> anyhow::Result<()> {
    ensure!(args.seeds > 0, "--seeds 0: expected at least 1");
    let cases: Vec<Case> = default_cases().into_iter().take(CASES).collect();
    let report = if args.measured.is_empty() {
        bench::measure_rootswarm(&cases, args.runs, args.image, args.bin_dir)?
    } else {
        let reports = args.measured.iter().map(|path| Report::read(path));
        Report::merge(reports.collect::<Result<Vec<_>, _>>()?)?
    };
    print::line(format_args!("measured: {}", report.machine))?;
    print::line(format_args!(
        "{:12} {:>24} {:>24} {:>10}",
        "case", "measured last/T*", "simulated last/T*", "deviation"
    ))?;
    let mut beyond = Vec::new();
    for case in cases {
        let prediction = predict(&report, case, args.seeds)?;
        print::line(format_args!(
            "{:12} {:>24} {:>24} {:>+9.1}%  {}",
            case.to_string(),
            show(&prediction.measured),
            show(&prediction.simulated),
            prediction.deviation() * 100.0,
            if prediction.is_within() {
                "within 10 %"
            } else {
                "beyond 10 %"
            }
        ))?;
        if !prediction.is_within() {
            beyond.push(case.to_string());
        }
    }
    if !beyond.is_empty() {
        bail!(
            "the simulator is more than 10 % off in {}",
            beyond.join(", ")
        );
    }
    Ok(())
}

/// `median (least to most)`.
fn show(spread: &Spread) -> String {
    format!(
        "{:.3} ({:.3} to {:.3})",
        spread.median, spread.min, spread.max
    )
}

fn predict(report: &Report, case: Case, seeds: u64) -> anyhow::Result<Prediction> {
    let runs: Vec<&Outcome> = report
        .outcomes
        .iter()
        .filter(|outcome| outcome.case == case && outcome.tool == Tool::Rootswarm)
        .collect();
    let measured = Spread::of(runs.iter().filter_map(|run| run.last_over_bound))
        .with_context(|| format!("no run of {case} with rootswarm gave a figure"))?;
    // Spread::of found one, so there is one.
    let image_bytes = runs.first().map_or(0, |run| run.image_bytes);
    ensure!(
        runs.iter().all(|run| run.image_bytes == image_bytes),
        "the runs of {case} moved images of different lengths"
    );
    let source = source(case, image_bytes)?;
    let mut ratios = Vec::new();
    for seed in 1..=seeds {
        let plan = source.plan(seed)?;
        same(case, &plan)?;
        let outcome = rootswarm_sim::run(&plan, seed);
        if outcome.unfinished > 0 || !outcome.violations.is_empty() {
            bail!("the simulation of {case} failed: {}", source.replay(seed));
        }
        ratios.push(outcome.last_end_s / outcome.bound_s);
    }
    let simulated = Spread::of(ratios).context("no simulated run")?;
    Ok(Prediction {
        measured,
        simulated,
    })
}

/// The plan of a case of the lab, with the image that was moved; the chunk size follows from it by
/// the same rule.
fn source(case: Case, image_bytes: u64) -> anyhow::Result<Source> {
    let name = format!("lab-{}", case.to_string().replace('/', "-"));
    let image = format!("image={image_bytes}B").parse()?;
    Ok(Source::find(&name, false, vec![image])?)
}

/// The plan must be the case: a plan that somebody changed would compare apples with pears.
fn same(case: Case, plan: &Plan) -> anyhow::Result<()> {
    let bits = |rate: f64| Some(rate as u64);
    ensure!(
        plan.nodes as u64 == u64::from(case.nodes)
            && bits(plan.node_link.up_bits) == case.node_bit_per_s
            && bits(plan.seed_link.up_bits) == case.seed_bit_per_s,
        "plan {} has other nodes or links than {case} of the lab",
        plan.name
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_to_predict_has_its_plan() {
        for case in default_cases().into_iter().take(CASES) {
            let source = source(case, 96_301_056).expect("a plan with the case's name");
            let plan = source.plan(1).expect("a plan without errors");
            same(case, &plan).expect("the same nodes and links");
            assert_eq!(plan.image_bytes, 96_301_056);
        }
    }

    #[test]
    fn a_deviation_is_a_share_of_what_was_measured() {
        let spread = |median| Spread {
            median,
            min: median,
            max: median,
        };
        let deviates = |measured, simulated| Prediction {
            measured: spread(measured),
            simulated: spread(simulated),
        };
        assert!((deviates(1.25, 1.0).deviation() + 0.2).abs() < 1e-9);
        assert!(!deviates(1.25, 1.0).is_within());
        assert!(deviates(1.10, 1.20).is_within());
        assert!(!deviates(1.0, 1.11).is_within());
    }
}
