//! `cargo xtask predict`: some of the lab's cases measured and simulated, side by side.
//!
//! The measuring is `bench`'s, the simulating `rootswarm_sim`'s: here both are given the same nodes,
//! links, image and chunk size, and the ratios are compared.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use rootswarm_sim::{Arrivals, Plan, Source};
use rootswarm_tests::bench::{Case, Outcome, Report, Spread, Tool, Trouble};

use crate::{bench, print};

/// What the simulator has to predict: the bench's case, and the simulator's plan of it.
const CASES: &[(&str, &str)] = &[
    ("8x100", "lab-8x100"),
    ("24x50", "lab-24x50"),
    ("16x50/500", "lab-16x50-500"),
    ("24x50+over20", "spread-24x50"),
];

/// How far the simulated ratio may be from the measured one, as a share of it.
const DEVIATION_MAX: f64 = 0.10;

/// Measure some of the lab's cases, simulate them, and compare.
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

/// One case, both ways. Ratios are the last node's finish over T*, from the start of the first; of nodes that
/// come one after the other, the longest that one took from its own start.
struct Prediction {
    measured: Spread,
    simulated: Spread,
    /// Images' worth of bytes that left the seed, for the record.
    measured_copies: Spread,
    simulated_copies: Spread,
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
    let cases = cases()?;
    let report = if args.measured.is_empty() {
        bench::measure_rootswarm(
            &cases.iter().map(|(case, _)| *case).collect::<Vec<_>>(),
            args.runs,
            args.image,
            args.bin_dir,
        )?
    } else {
        let reports = args.measured.iter().map(|path| Report::read(path));
        Report::merge(reports.collect::<Result<Vec<_>, _>>()?)?
    };
    print::line(format_args!("measured: {}", report.machine))?;
    print::line(format_args!(
        "{:12} {:>24} {:>24} {:>10}  {:>24}",
        "case", "measured last/T*", "simulated last/T*", "deviation", "copies, both"
    ))?;
    let mut beyond = Vec::new();
    for (case, plan) in cases {
        let prediction = predict(&report, case, plan, args.seeds)?;
        print::line(format_args!(
            "{:12} {:>24} {:>24} {:>+9.1}%  {:>10.2} {:>10.2}  {}",
            case.to_string(),
            show(&prediction.measured),
            show(&prediction.simulated),
            prediction.deviation() * 100.0,
            prediction.measured_copies.median,
            prediction.simulated_copies.median,
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

fn cases() -> anyhow::Result<Vec<(Case, &'static str)>> {
    let read = |(case, plan): &(&str, &'static str)| Ok((case.parse()?, *plan));
    CASES.iter().map(read).collect()
}

fn predict(report: &Report, case: Case, plan: &str, seeds: u64) -> anyhow::Result<Prediction> {
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
    let measured_copies = Spread::of(runs.iter().map(|run| run.seed_copies));
    let source = source(plan, image_bytes)?;
    let (mut ratios, mut copies) = (Vec::new(), Vec::new());
    for seed in 1..=seeds {
        let plan = source.plan(seed)?;
        same(case, &plan)?;
        let outcome = rootswarm_sim::run(&plan, seed);
        if outcome.unfinished > 0 || !outcome.violations.is_empty() {
            bail!("the simulation of {case} failed: {}", source.replay(seed));
        }
        let last_s = match case.trouble {
            Trouble::Over(_) => outcome.quantile_s(1.0),
            _ => outcome.last_end_s,
        };
        ratios.push(last_s / outcome.bound_s);
        copies.push(outcome.seed_copies);
    }
    let none = "no simulated run";
    Ok(Prediction {
        measured,
        simulated: Spread::of(ratios).context(none)?,
        measured_copies: measured_copies.context("no run")?,
        simulated_copies: Spread::of(copies).context(none)?,
    })
}

/// The plan of a case of the lab, with the image that was moved; the chunk size follows from it by
/// the same rule.
fn source(plan: &str, image_bytes: u64) -> anyhow::Result<Source> {
    let image = format!("image={image_bytes}B").parse()?;
    Ok(Source::find(plan, false, vec![image])?)
}

/// The plan must be the case: a plan that somebody changed would compare apples with pears.
fn same(case: Case, plan: &Plan) -> anyhow::Result<()> {
    let bits = |rate: f64| Some(rate as u64);
    let within = match case.trouble {
        Trouble::Over(seconds) => u64::from(seconds) * 1_000_000,
        _ => Plan::TOGETHER_US,
    };
    ensure!(
        plan.nodes as u64 == u64::from(case.nodes)
            && plan.arrivals == (Arrivals::Within { spread_us: within })
            && bits(plan.node_link.up_bits) == case.node_bit_per_s
            && bits(plan.seed_link.up_bits) == case.seed_bit_per_s,
        "plan {} has other nodes, arrivals or links than {case} of the lab",
        plan.name
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_to_predict_has_its_plan() {
        for (case, plan) in cases().expect("cases") {
            let source = source(plan, 96_301_056).expect("the case's plan");
            let plan = source.plan(1).expect("a plan without errors");
            same(case, &plan).expect("the same nodes, arrivals and links");
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
            measured_copies: spread(1.0),
            simulated_copies: spread(1.0),
        };
        assert!((deviates(1.25, 1.0).deviation() + 0.2).abs() < 1e-9);
        assert!(!deviates(1.25, 1.0).is_within());
        assert!(deviates(1.10, 1.20).is_within());
        assert!(!deviates(1.0, 1.11).is_within());
    }
}
