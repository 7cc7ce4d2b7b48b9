//! What is shown of the runs: a table for people, a document for programs.

use std::fmt::Write as _;

use serde::Serialize;

use super::{Case, Outcome, Tool};

const MIB: f64 = 1024.0 * 1024.0;

/// Where the figures were taken; a figure without it means little.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Cores the bench could use.
    pub cores: usize,
    /// The processor's name.
    pub processor: String,
    /// The kernel's release.
    pub kernel: String,
    /// The commit that was measured, `-dirty` when the tree was changed.
    pub commit: String,
}

/// All runs of one invocation.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// What, in order.
    pub outcomes: Vec<Outcome>,
    /// Runs that gave no figure, with the reason.
    pub failures: Vec<String>,
}

impl Machine {
    /// This machine; `commit` is the caller's to find.
    pub fn this(commit: String) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        Machine {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            processor: model
                .unwrap_or("unknown")
                .trim_start_matches([' ', '\t', ':'])
                .to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            commit,
        }
    }
}

/// One row for each case and tool: the median of its runs and, where there were several, the range.
pub fn markdown(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "{} cores of {}, Linux {}, commit {}\n\n\
         | case | tool | last node s | last / bound | median / bound | seed copies \
         | CPU s seed + nodes | node peak RSS MiB | node own MiB | seed own MiB | runs |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
        machine.cores, machine.processor, machine.kernel, machine.commit
    );
    let mut rows: Vec<(Case, Tool)> = Vec::new();
    for outcome in &report.outcomes {
        if !rows.contains(&(outcome.case, outcome.tool)) {
            rows.push((outcome.case, outcome.tool));
        }
    }
    for (case, tool) in rows {
        let runs: Vec<&Outcome> = report
            .outcomes
            .iter()
            .filter(|outcome| outcome.case == case && outcome.tool == tool)
            .collect();
        let show = |decimals, of: &dyn Fn(&Outcome) -> Option<f64>| {
            spread(runs.iter().filter_map(|run| of(run)).collect(), decimals)
        };
        let middle = |run: &Outcome| run.node_s.get(run.node_s.len() / 2).copied();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {case} | {tool} | {} | {} | {} | {} | {} + {} | {} | {} | {} | {} |",
            show(2, &|run| Some(run.last_s)),
            show(3, &|run| run.last_over_bound),
            show(3, &|run| Some(middle(run)? / run.bound_s?)),
            show(2, &|run| Some(run.seed_copies)),
            show(2, &|run| Some(run.seed_cpu_s)),
            show(2, &|run| Some(run.nodes_cpu_s)),
            show(0, &|run| Some(run.node_rss_peak_bytes as f64 / MIB)),
            show(1, &|run| Some(run.node_rss_anon_peak_bytes as f64 / MIB)),
            show(1, &|run| Some(run.seed_rss_anon_peak_bytes as f64 / MIB)),
            runs.len(),
        );
    }
    for failure in &report.failures {
        let _ = writeln!(text, "\nfailed: {failure}");
    }
    text
}

/// `median (least-most)`, or the one value, or a dash.
fn spread(mut values: Vec<f64>, decimals: usize) -> String {
    values.sort_by(f64::total_cmp);
    match values[..] {
        [] => "–".to_owned(),
        [one] => format!("{one:.decimals$}"),
        [least, .., most] => {
            let middle = values[values.len() / 2];
            format!("{middle:.decimals$} ({least:.decimals$}-{most:.decimals$})")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_shows_the_median_between_the_extremes() {
        assert_eq!(spread(vec![], 2), "–");
        assert_eq!(spread(vec![1.5], 2), "1.50");
        assert_eq!(spread(vec![3.0, 1.0, 2.0], 1), "2.0 (1.0-3.0)");
    }
}
