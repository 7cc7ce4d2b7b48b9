//! The table of a simulation: a row for each run, the worst of them, and what was run.

use std::fmt::Write as _;

use rootswarm_image::ChunkSize;
use rootswarm_sim::{Arrivals, Plan, Source};

use super::{Run, proc_kb};

const MB: f64 = 1e6;

/// What is run, for the reader of the table.
pub fn describe(plan: &Plan, source: &Source) -> String {
    if *source == Source::Mixed {
        return "mixed: small swarms with mixtures of faults, another for each seed".to_owned();
    }
    let chunk = ChunkSize::from_bytes(plan.chunk_bytes);
    let chunk = chunk.map_or_else(|_| plan.chunk_bytes.to_string(), |size| size.to_string());
    let mut text = format!(
        "{}: {}\n{} nodes of {}, seed {}, {:.1} MB in chunks of {chunk}",
        plan.name,
        plan.about,
        plan.nodes,
        rate(plan.node_link.up_bits),
        rate(plan.seed_link.up_bits),
        plan.image_bytes as f64 / MB,
    );
    if let Arrivals::Within { spread_us } = plan.arrivals {
        let _ = write!(text, ", arriving within {} ms", spread_us as f64 / 1e3);
    }
    if let Some(racks) = &plan.racks {
        let (count, over) = (racks.count, racks.oversubscription);
        let _ = write!(text, ", {count} racks, core {over}:1");
    }
    if plan.loss > 0.0 {
        let _ = write!(text, ", {} % loss", plan.loss * 100.0);
    }
    let _ = write!(
        text,
        "\nT* = {:.3} s at the rate of the links; headers leave {:.3} of it to payload, so no ratio \
         is below {:.3}",
        plan.bound_us() / 1e6,
        plan.efficiency,
        1.0 / plan.efficiency,
    );
    text
}

fn rate(bits_per_s: f64) -> String {
    match bits_per_s {
        bits if bits >= 1e9 => format!("{} Gbit", bits / 1e9),
        bits => format!("{} Mbit", bits / 1e6),
    }
}

/// The heading over [`row`].
pub fn heading(plan: &Plan) -> String {
    format!(
        "{:>8} {:>6} {:>6} {:>6} {:>11} {:>7}{} {:>6} {:>7} {:>6} {:>9} {:>7} {:>5}  {}",
        "seed",
        "p50",
        "p99",
        "last",
        "p99/payload",
        "copies",
        if plan.racks.is_some() {
            format!(" {:>13}", "into a rack")
        } else {
            String::new()
        },
        "dup %",
        "ctl kB",
        "ctl %",
        "events",
        "wall s",
        "left",
        "verdict"
    )
}

/// One run.
pub fn row(run: &Run) -> String {
    let outcome = &run.outcome;
    format!(
        "{:>8} {:6.3} {:6.3} {:6.3} {:11.3} {:7.3}{} {:6.2} {:7.1} {:6.3} {:9} {:7.1} {:5}  {}",
        run.seed,
        outcome.ratio(0.5),
        outcome.ratio(0.99),
        outcome.ratio(1.0),
        outcome.ratio(0.99) * outcome.efficiency,
        outcome.seed_copies,
        racks(run),
        outcome.waste * 100.0,
        outcome.control_bytes_per_node / 1e3,
        outcome.control_share * 100.0,
        outcome.events,
        run.wall_s,
        outcome.unfinished,
        verdict(run)
    )
}

fn racks(run: &Run) -> String {
    let into = &run.outcome.rack_copies;
    if into.is_empty() {
        return String::new();
    }
    let mean = into.iter().sum::<f64>() / into.len() as f64;
    let most = into.iter().copied().fold(0.0, f64::max);
    format!(" {mean:5.2} to {most:4.2}")
}

/// `failed`, `meets`, or the figures that were missed.
fn verdict(run: &Run) -> String {
    if !run.is_sound() {
        return "failed".to_owned();
    }
    let misses = run.outcome.misses(&run.plan.expect);
    if misses.is_empty() {
        return "meets".to_owned();
    }
    let shown = misses
        .iter()
        .map(|miss| format!("{} {:.3} (at most {})", miss.what, miss.found, miss.most));
    format!("misses {}", shown.collect::<Vec<_>>().join(", "))
}

/// The worst of each column over all runs: the row that the expectations are for.
pub fn worst(runs: &[Run]) -> String {
    let most = |of: &dyn Fn(&Run) -> f64| runs.iter().map(of).fold(0.0, f64::max);
    let met = runs
        .iter()
        .filter(|run| run.is_sound() && run.outcome.misses(&run.plan.expect).is_empty())
        .count();
    let into = most(&|run| run.outcome.rack_copies.iter().copied().fold(0.0, f64::max));
    let racks = if runs.iter().any(|run| !run.outcome.rack_copies.is_empty()) {
        format!(" {into:13.2}")
    } else {
        String::new()
    };
    format!(
        "{:>8} {:6.3} {:6.3} {:6.3} {:11.3} {:7.3}{racks} {:6.2} {:7.1} {:6.3} {:9} {:7.1} {:5}  {met} of {} meet",
        "worst",
        most(&|run| run.outcome.ratio(0.5)),
        most(&|run| run.outcome.ratio(0.99)),
        most(&|run| run.outcome.ratio(1.0)),
        most(&|run| run.outcome.ratio(0.99) * run.outcome.efficiency),
        most(&|run| run.outcome.seed_copies),
        most(&|run| run.outcome.waste) * 100.0,
        most(&|run| run.outcome.control_bytes_per_node) / 1e3,
        most(&|run| run.outcome.control_share) * 100.0,
        runs.iter().map(|run| run.outcome.events).max().unwrap_or(0),
        most(&|run| run.wall_s),
        runs.iter()
            .map(|run| run.outcome.unfinished)
            .max()
            .unwrap_or(0),
        runs.len(),
    )
}

/// What the columns mean, which faults struck, and what the whole took.
pub fn footer(runs: &[Run], jobs: usize) -> String {
    let mut struck = rootswarm_sim::Sometimes::default();
    for run in runs {
        struck.add(&run.outcome.sometimes);
    }
    let mut text = String::from(
        "p50, p99, last: nodes' times from each one's start, over their bounds; p99/payload: at the \
         rate left for payload\n\
         copies: what left the seed; dup: chunk bytes that arrived and were not needed; ctl: \
         control bytes a node, and of the image\n",
    );
    let _ = write!(text, "happened:");
    for (what, count) in struck.iter() {
        let _ = write!(text, " {what} {count},");
    }
    let mut text = text.trim_end_matches(',').to_owned();
    // A fault that did not strike proves nothing.
    let never: std::collections::BTreeSet<&str> = runs
        .iter()
        .flat_map(|run| run.plan.counters())
        .filter(|what| struck.count(what) == 0)
        .collect();
    for what in never {
        let _ = write!(text, "\nnever: {what}, which the plan asks for");
    }
    let peak_mb = proc_kb("/proc/self/status", "VmHWM:").unwrap_or(0) as f64 / 1024.0;
    format!("{text}\npeak memory {peak_mb:.0} MiB with {jobs} at a time")
}
