//! What several runs of one case with one tool say together.

use serde::Serialize;

use super::{Case, Outcome, Report, Skipped, Tool, default_cases, hard_cases};

/// Of several runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one; of an even number the mean of the middle two.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// `None` of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => (values[middle - 1] + values[middle]) / 2.0,
            _ => values[middle],
        };
        Some(Spread { median, min, max })
    }
}

/// One case with one tool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The shape of the swarm.
    pub case: Case,
    /// What moved the image.
    pub tool: Tool,
    /// Runs that gave figures.
    pub runs: usize,
    /// The first line of each error.
    pub errors: Vec<String>,
    /// Set where it was not run.
    pub skipped: Option<Skipped>,
    /// When the last node had the image, in seconds.
    pub last_s: Option<Spread>,
    /// That over the fluid bound.
    pub last_over_bound: Option<Spread>,
    /// The middle node's time over the fluid bound.
    pub middle_over_bound: Option<Spread>,
    /// Where links are not shaped: `last_s` over nginx's in the same run.
    pub over_nginx: Option<Spread>,
    /// In `quick`: how much later than nginx's in the same run, in milliseconds.
    pub behind_nginx_ms: Option<Spread>,
    /// Bytes that left the seed over the image's length.
    pub seed_copies: Option<Spread>,
    /// When the middle node had its first usable bytes, in seconds.
    pub first_byte_s: Option<Spread>,
    /// CPU time of one node, in seconds.
    pub node_cpu_s: Option<Spread>,
    /// CPU time of the seed, in seconds.
    pub seed_cpu_s: Option<Spread>,
    /// CPU time of all for each 10^9 bytes that arrived, in seconds.
    pub cpu_s_per_gb: Option<Spread>,
    /// The largest sample of a node's memory beside the image, in bytes.
    pub node_own_bytes: Option<Spread>,
    /// The same of the seed.
    pub seed_own_bytes: Option<Spread>,
}

/// One summary for each case and tool of the report, known cases first.
pub fn summarise(report: &Report) -> Vec<Summary> {
    let mut cases = report.cases();
    let known = [default_cases(), hard_cases()].concat();
    // Stable: other cases stay in the report's order, behind.
    cases.sort_by_key(|case| {
        known
            .iter()
            .position(|other| other == case)
            .unwrap_or(known.len())
    });
    let pairs = cases
        .into_iter()
        .flat_map(|case| Tool::ALL.into_iter().map(move |tool| (case, tool)));
    pairs
        .filter_map(|(case, tool)| summary(report, case, tool))
        .collect()
}

/// `None` where the report has nothing.
fn summary(report: &Report, case: Case, tool: Tool) -> Option<Summary> {
    let runs: Vec<&Outcome> = report
        .outcomes
        .iter()
        .filter(|run| run.case == case && run.tool == tool)
        .collect();
    let errors: Vec<String> = report
        .failures
        .iter()
        .filter(|failure| failure.case == case && failure.tool == tool)
        .map(|failure| failure.error.lines().next().unwrap_or_default().to_owned())
        .collect();
    let skipped = report
        .skipped
        .iter()
        .find(|skipped| skipped.case == case && skipped.tool == tool)
        .copied();
    if runs.is_empty() && errors.is_empty() && skipped.is_none() {
        return None;
    }
    let spread =
        |of: &dyn Fn(&Outcome) -> Option<f64>| Spread::of(runs.iter().filter_map(|run| of(run)));
    // The kernel counts a process's time in ticks of 10 ms, and memory is sampled: `quick` is over
    // sooner.
    let cost =
        |of: &dyn Fn(&Outcome) -> f64| spread(&|run| Some(of(run)).filter(|_| !case.is_quick()));
    let nginx_s = |run: &Outcome| {
        let mut others = report.outcomes.iter();
        let same = others.find(|other| {
            other.tool == Tool::Nginx && other.case == run.case && other.run == run.run
        });
        same.filter(|_| run.tool != Tool::Nginx && run.bound_s.is_none())
            .map(|nginx| nginx.last_s)
    };
    Some(Summary {
        case,
        tool,
        runs: runs.len(),
        errors,
        skipped: skipped.filter(|_| runs.is_empty()),
        last_s: spread(&|run| Some(run.last_s)),
        last_over_bound: spread(&|run| run.last_over_bound),
        middle_over_bound: spread(&|run| Some(middle(&run.node_s)? / run.bound_s?)),
        over_nginx: spread(&|run| Some(run.last_s / nginx_s(run)?)).filter(|_| !case.is_quick()),
        behind_nginx_ms: spread(&|run| Some((run.last_s - nginx_s(run)?) * 1e3))
            .filter(|_| case.is_quick()),
        seed_copies: spread(&|run| Some(run.seed_copies)),
        first_byte_s: spread(&|run| middle(&run.first_byte_s)),
        node_cpu_s: cost(&|run| run.nodes_cpu_s / f64::from(case.nodes)),
        seed_cpu_s: cost(&|run| run.seed_cpu_s),
        cpu_s_per_gb: cost(&|run| {
            let arrived_gb = run.image_bytes as f64 * f64::from(case.nodes) / 1e9;
            (run.seed_cpu_s + run.nodes_cpu_s) / arrived_gb
        }),
        node_own_bytes: cost(&|run| run.node_rss_anon_peak_bytes as f64),
        seed_own_bytes: cost(&|run| run.seed_rss_anon_peak_bytes as f64),
    })
}

fn middle(ascending: &[f64]) -> Option<f64> {
    ascending.get(ascending.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::super::Failure;
    use super::super::report::tests::{outcome, report};
    use super::*;

    fn median(spread: Option<Spread>) -> f64 {
        spread.expect("a figure").median
    }

    #[test]
    fn a_spread_is_the_median_between_the_extremes() {
        let check = |values: &[f64], expected| {
            let found = Spread::of(values.iter().copied());
            assert_eq!(
                found.map(|s| (s.min, s.median, s.max)),
                expected,
                "{values:?}"
            );
        };
        check(&[], None);
        check(&[1.5], Some((1.5, 1.5, 1.5)));
        check(&[3.0, 1.0, 2.0], Some((1.0, 2.0, 3.0)));
        check(&[4.0, 1.0, 2.0, 3.0], Some((1.0, 2.5, 4.0)));
    }

    #[test]
    fn figures_are_by_node_and_by_gigabyte() {
        let runs = [9.0, 8.8, 10.0].map(|last_s| outcome("8x100", Tool::Rootswarm, 1, last_s));
        let summaries = summarise(&report(runs.to_vec()));
        let [summary] = &summaries[..] else {
            panic!("{summaries:?}")
        };
        assert_eq!(summary.runs, 3);
        assert_eq!(summary.last_over_bound.map(|s| s.median), Some(1.125));
        // The later of two nodes is the middle one.
        assert_eq!(median(summary.middle_over_bound), 1.125);
        assert_eq!(median(summary.first_byte_s), 0.2);
        assert_eq!(median(summary.node_cpu_s), 0.25);
        // 2.5 s for eight times 0.1 GB.
        assert_eq!(median(summary.cpu_s_per_gb), 3.125);
        assert_eq!(summary.over_nginx, None);
    }

    #[test]
    fn nginx_is_compared_within_a_run() {
        let summaries = summarise(&report(vec![
            outcome("quick", Tool::Rootswarm, 1, 0.050),
            outcome("quick", Tool::Nginx, 1, 0.010),
            outcome("4xmax", Tool::Rootswarm, 1, 0.6),
            outcome("4xmax", Tool::Nginx, 1, 0.4),
            outcome("4xmax", Tool::Nginx, 2, 0.1),
            outcome("4xmax", Tool::Rootswarm, 2, 0.3),
            // Nothing to compare with.
            outcome("4xmax", Tool::Rootswarm, 3, 0.3),
        ]));
        let of = |tool, case: &str| {
            let found = summaries
                .iter()
                .find(|s| s.tool == tool && s.case.to_string() == case);
            found.expect("a summary")
        };
        let ratio = of(Tool::Rootswarm, "4xmax").over_nginx.expect("a ratio");
        assert!(
            (ratio.min - 1.5).abs() < 1e-9 && (ratio.max - 3.0).abs() < 1e-9,
            "{ratio:?}"
        );
        assert!((median(of(Tool::Rootswarm, "quick").behind_nginx_ms) - 40.0).abs() < 1e-9);
        assert_eq!(of(Tool::Rootswarm, "quick").over_nginx, None);
        assert_eq!(of(Tool::Nginx, "4xmax").over_nginx, None);
        // Known cases in their order, whatever was measured first.
        assert_eq!(summaries[0].case.to_string(), "4xmax");
    }

    #[test]
    fn what_failed_or_was_skipped_has_its_row() {
        let mut report = report(vec![outcome("8x100", Tool::Aria2, 1, 16.0)]);
        report.failures.push(Failure {
            case: "8x100".parse().unwrap(),
            tool: Tool::Udpcast,
            run: 1,
            error: "node 3 holds another image than the seed\nits log".to_owned(),
        });
        let skipped = Skipped {
            case: "24x50".parse().unwrap(),
            tool: Tool::Nginx,
            at_least_s: 384.0,
            at_least_over_bound: 24.0,
        };
        report.skipped.push(skipped);
        let summaries = summarise(&report);
        assert_eq!(summaries.len(), 3);
        assert_eq!(
            summaries[1].errors,
            ["node 3 holds another image than the seed"]
        );
        assert_eq!(summaries[1].last_s, None);
        assert_eq!(summaries[2].skipped, Some(skipped));
    }
}
