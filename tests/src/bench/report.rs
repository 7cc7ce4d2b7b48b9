//! All that was measured, as one document: written by a bench, read again to show several benches
//! as one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::{Case, Outcome, Summary, Tool, summarise};

/// Where the figures were taken; a figure without it means little.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Cores the bench could use.
    pub cores: usize,
    /// The processor's name.
    pub processor: String,
    /// The kernel's release.
    pub kernel: String,
    /// The commit that was measured, `-dirty` when the tree was changed. Empty where this project
    /// was not.
    pub commit: String,
}

/// A run that gave no figure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Of this case.
    pub case: Case,
    /// With this tool.
    pub tool: Tool,
    /// Which run of the case it was, from 1.
    pub run: u32,
    /// Why; the first line says it, the end of a log may follow.
    pub error: String,
}

/// A tool that was not run because arithmetic says how slow it must be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Skipped {
    /// In this case.
    pub case: Case,
    /// This tool.
    pub tool: Tool,
    /// What its seed needs for sending each node its copy, without a byte of headers.
    pub at_least_s: f64,
    /// That over the fluid bound.
    pub at_least_over_bound: f64,
}

/// All runs of one invocation, or of several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// The Debian packages that were measured, and their versions.
    pub packages: BTreeMap<String, String>,
    /// What was measured, in order.
    pub outcomes: Vec<Outcome>,
    /// What gave no figure.
    pub failures: Vec<Failure>,
    /// What was not run.
    pub skipped: Vec<Skipped>,
}

/// Why a report cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// No file, or one that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not what a bench writes.
    #[error("{} is no report of this bench: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Two machines.
    #[error("figures of two machines do not belong into one table: {found} and {expected}")]
    Machine {
        /// The first report's.
        expected: String,
        /// Another's.
        found: String,
    },
    /// Nothing to show.
    #[error("no report to show")]
    Nothing,
}

/// The document: the runs, and what they say together.
#[derive(Serialize)]
struct Document<'a> {
    #[serde(flatten)]
    report: &'a Report,
    medians: Vec<Summary>,
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

    fn place(&self) -> String {
        format!(
            "{} cores of {}, Linux {}",
            self.cores, self.processor, self.kernel
        )
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.place())?;
        match &self.commit[..] {
            "" => Ok(()),
            commit => write!(f, ", commit {commit}"),
        }
    }
}

impl Report {
    /// Nothing measured yet with `tools`, on this machine.
    pub fn new(mut commit: String, tools: &[Tool]) -> Self {
        if !tools.contains(&Tool::Rootswarm) {
            commit.clear();
        }
        let packages = tools.iter().flat_map(|tool| tool.packages());
        Report {
            machine: Machine::this(commit),
            packages: packages
                .map(|(_, package)| ((*package).to_owned(), package_version(package)))
                .collect(),
            outcomes: vec![],
            failures: vec![],
            skipped: vec![],
        }
    }

    /// Reads what [`Report::to_json`] gave.
    ///
    /// # Errors
    /// When there is no such file or it holds something else.
    pub fn read(path: &Path) -> Result<Self, ReportError> {
        let text = std::fs::read_to_string(path).map_err(|source| ReportError::Read {
            path: path.to_owned(),
            source,
        })?;
        serde_json::from_str(&text).map_err(|source| ReportError::Format {
            path: path.to_owned(),
            source,
        })
    }

    /// Several reports as one. A case that stands in several has all their runs.
    ///
    /// # Errors
    /// When they come from different machines, or there is none.
    pub fn merge(reports: impl IntoIterator<Item = Report>) -> Result<Self, ReportError> {
        let mut reports = reports.into_iter();
        let mut whole = reports.next().ok_or(ReportError::Nothing)?;
        for report in reports {
            let (expected, found) = (whole.machine.place(), report.machine.place());
            if expected != found {
                return Err(ReportError::Machine { expected, found });
            }
            append(&mut whole.machine.commit, &report.machine.commit);
            for (package, version) in &report.packages {
                append(whole.packages.entry(package.clone()).or_default(), version);
            }
            // Runs that were made together keep a number together.
            let mut before: Vec<(Case, u32)> = Vec::new();
            for case in report.cases() {
                before.push((case, whole.last_run(case)));
            }
            let shift = |case: Case| {
                let found = before.iter().find(|(other, _)| *other == case);
                found.map_or(0, |(_, run)| *run)
            };
            whole
                .outcomes
                .extend(report.outcomes.into_iter().map(|run| Outcome {
                    run: run.run + shift(run.case),
                    ..run
                }));
            whole
                .failures
                .extend(report.failures.into_iter().map(|run| Failure {
                    run: run.run + shift(run.case),
                    ..run
                }));
            for skipped in report.skipped {
                if !whole.skipped.contains(&skipped) {
                    whole.skipped.push(skipped);
                }
            }
        }
        Ok(whole)
    }

    /// Every case in it, once, in order.
    pub fn cases(&self) -> Vec<Case> {
        let of_outcomes = self.outcomes.iter().map(|run| run.case);
        let of_failures = self.failures.iter().map(|run| run.case);
        let mut cases = Vec::new();
        for case in of_outcomes
            .chain(of_failures)
            .chain(self.skipped.iter().map(|run| run.case))
        {
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
        cases
    }

    fn last_run(&self, case: Case) -> u32 {
        let of_outcomes = self.outcomes.iter().map(|run| (run.case, run.run));
        let of_failures = self.failures.iter().map(|run| (run.case, run.run));
        let of_case = of_outcomes
            .chain(of_failures)
            .filter(|(other, _)| *other == case);
        of_case.map(|(_, run)| run).max().unwrap_or(0)
    }

    /// The document, with the medians.
    ///
    /// # Errors
    /// None that is known: the types can all be written.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(&Document {
            report: self,
            medians: summarise(self),
        })
    }
}

/// Several values of what should be one are all shown.
fn append(known: &mut String, value: &str) {
    if known.is_empty() {
        known.push_str(value);
    } else if !value.is_empty() && known.split(" and ").all(|one| one != value) {
        known.push_str(" and ");
        known.push_str(value);
    }
}

fn package_version(package: &str) -> String {
    let query = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Version}", package])
        .output();
    match query {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A run of `case` that ended after `last_s`, with figures that are easy to follow.
    pub fn outcome(case: &str, tool: Tool, run: u32, last_s: f64) -> Outcome {
        let case: Case = case.parse().unwrap();
        let image_bytes = case.image_bytes(100_000_000);
        let bound_s = case.fluid_bound_s(image_bytes);
        Outcome {
            case,
            tool,
            run,
            image_bytes,
            bound_s,
            node_s: vec![last_s / 2.0, last_s],
            last_s,
            last_over_bound: bound_s.map(|bound_s| last_s / bound_s),
            first_byte_s: vec![0.1, 0.2, 0.3],
            seed_copies: 1.04,
            seed_cpu_s: 0.5,
            nodes_cpu_s: 2.0,
            seed_rss_anon_peak_bytes: 5 << 20,
            node_rss_peak_bytes: 100 << 20,
            node_rss_anon_peak_bytes: 6 << 20,
        }
    }

    pub fn report(outcomes: Vec<Outcome>) -> Report {
        Report {
            machine: Machine {
                cores: 2,
                processor: "A & B".to_owned(),
                kernel: "6.1".to_owned(),
                commit: "abc".to_owned(),
            },
            packages: BTreeMap::from([("aria2".to_owned(), "1.36".to_owned())]),
            outcomes,
            failures: vec![],
            skipped: vec![],
        }
    }

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let mut written = report(vec![
            outcome("8x100", Tool::Rootswarm, 1, 9.0),
            outcome("quick", Tool::Nginx, 1, 0.02),
        ]);
        written.failures.push(Failure {
            case: "4xmax".parse().unwrap(),
            tool: Tool::Udpcast,
            run: 1,
            error: "it ended\nlog".to_owned(),
        });
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report");
        std::fs::write(&path, written.to_json().unwrap()).unwrap();
        assert_eq!(Report::read(&path).unwrap(), written);
        std::fs::write(&path, "{}").unwrap();
        let error = Report::read(&path).unwrap_err().to_string();
        assert!(error.contains("is no report of this bench"), "{error}");
    }

    #[test]
    fn merging_keeps_runs_apart_and_together() {
        let first = report(vec![
            outcome("4xmax", Tool::Nginx, 1, 1.0),
            outcome("4xmax", Tool::Rootswarm, 1, 2.0),
            outcome("8x100", Tool::Rootswarm, 1, 9.0),
        ]);
        let mut second = report(vec![
            outcome("4xmax", Tool::Rootswarm, 1, 3.0),
            outcome("4xmax", Tool::Nginx, 1, 1.0),
            outcome("24x50", Tool::Rootswarm, 1, 18.0),
        ]);
        second.machine.commit = "def".to_owned();
        let mut others = first.clone();
        others.machine.commit.clear();
        second
            .packages
            .insert("udpcast".to_owned(), "2012".to_owned());
        let whole = Report::merge([first.clone(), second, others]).unwrap();
        let runs: Vec<_> = whole
            .outcomes
            .iter()
            .map(|run| format!("{} {} {}", run.case, run.tool, run.run))
            .collect();
        let expected = [
            "4xmax nginx 1",
            "4xmax rootswarm 1",
            "8x100 rootswarm 1",
            "4xmax rootswarm 2",
            "4xmax nginx 2",
            "24x50 rootswarm 1",
            "4xmax nginx 3",
            "4xmax rootswarm 3",
            "8x100 rootswarm 2",
        ];
        assert_eq!(runs, expected);
        assert_eq!(whole.machine.commit, "abc and def");
        assert_eq!(whole.packages.len(), 2);
        assert_eq!(whole.packages["aria2"], "1.36");

        let mut other = first.clone();
        other.machine.cores = 64;
        assert!(matches!(
            Report::merge([first, other]),
            Err(ReportError::Machine { .. })
        ));
        assert!(matches!(Report::merge([]), Err(ReportError::Nothing)));
    }
}
