//! `cargo xtask bench`: the command line around the lab in `rootswarm_tests::bench`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rootswarm_tests::bench::{
    Case, Failure, Image, Report, Skipped, Tool, Trial, default_cases, hard_cases, markdown,
    run as measure, svg, terminal,
};
use rootswarm_tests::packages;
use rootswarm_tests::scratch::Scratch;
use rootswarm_tests::vm::binaries::{Binaries, target_directory, workspace_root};

use crate::print;

/// The length of the Debian squashfs whose figures are known for other tools.
const IMAGE_BYTES: u64 = 96_301_056;

/// A tool whose seed alone needs longer than this for a run is not waited for.
const LONG_S: f64 = 120.0;

/// Measure rootswarm and other tools in one lab of shaped links.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// NODESxMBIT[/SEEDMBIT], NODESxmax (not shaped) or quick (1 MB to one node), then @MTU, ~MS (what a link
    /// queues, behind a bucket of two packets), and +slow, +killed (one node at a tenth, or killed half-way) or
    /// +overSECONDS (they come one after the other); may be repeated
    /// [default: 8x100 24x50 16x50/500 1x1000 4xmax quick]
    #[arg(long = "case")]
    cases: Vec<Case>,
    /// The cases in which jumbo packets and simple schemes break: 8x100@9000 1x1000@9000 1xmax@9000 4xmax@9000
    /// 40x20/200 8x50+slow 8x50+killed 8x50+over10 24x50+over20 3x20~15
    #[arg(long, conflicts_with = "cases")]
    hard: bool,
    /// rootswarm, nginx (with wget), aria2, libtorrent, udpcast, mbuffer or uftp
    #[arg(
        long = "tool",
        value_delimiter = ',',
        default_value = "rootswarm,nginx,aria2,libtorrent,udpcast,mbuffer,uftp"
    )]
    tools: Vec<Tool>,
    /// Runs of each case with each tool; each run begins with another tool
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Also run what is sure to be slow: nginx where the seed would need more than two minutes
    #[arg(long)]
    slow: bool,
    /// Give a run up after so many seconds [default: a minute and several times its bound]
    #[arg(long)]
    timeout: Option<f64>,
    /// Also write all figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also write tables in Markdown to this file
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// Also write a plot to this file
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Measure nothing: show what earlier runs wrote with --json, as one report; may be repeated
    #[arg(long, conflicts_with_all = ["cases", "hard", "tools", "runs", "slow", "timeout", "image", "bin_dir"])]
    from: Vec<PathBuf>,
    /// Move this file instead of 96.3 MB of pseudo-random bytes
    #[arg(long)]
    image: Option<PathBuf>,
    /// Take `rootswarm` and `rootswarm-agent` from this directory instead of building them
    #[arg(long)]
    bin_dir: Option<PathBuf>,
}

/// Runs every case with every tool, or reads what was run, and shows the report.
///
/// # Errors
/// When something cannot be installed, built, read or written, or a run gave no figure.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let report = if args.from.is_empty() {
        measure_all(args)?
    } else {
        let reports = args.from.iter().map(|path| Report::read(path));
        Report::merge(reports.collect::<Result<Vec<_>, _>>()?)?
    };
    print::line(terminal(&report))?;
    if let Some(path) = &args.json {
        write(path, &report.to_json()?)?;
    }
    if let Some(path) = &args.markdown {
        write(path, &markdown(&report))?;
    }
    if let Some(path) = &args.svg {
        write(path, &svg(&report))?;
    }
    // What was read was said when it was measured.
    if args.from.is_empty() && !report.failures.is_empty() {
        bail!("{} runs gave no figure", report.failures.len());
    }
    Ok(())
}

/// Runs `cases` with this project alone, each so many times.
///
/// # Errors
/// When something cannot be installed, built, read or written.
pub fn measure_rootswarm(
    cases: &[Case],
    runs: u32,
    image: Option<PathBuf>,
    bin_dir: Option<PathBuf>,
) -> anyhow::Result<Report> {
    measure_all(&Args {
        cases: cases.to_vec(),
        hard: false,
        tools: vec![Tool::Rootswarm],
        runs,
        slow: false,
        timeout: None,
        json: None,
        markdown: None,
        svg: None,
        from: vec![],
        image,
        bin_dir,
    })
}

#[allow(clippy::print_stderr)] // A command that people run.
fn measure_all(args: &Args) -> anyhow::Result<Report> {
    let cases = match (args.hard, args.cases.is_empty()) {
        (true, _) => hard_cases(),
        (false, true) => default_cases(),
        (false, false) => args.cases.clone(),
    };
    let mut needs = vec![("ip", "iproute2"), ("tc", "iproute2")];
    needs.extend(args.tools.iter().flat_map(|tool| tool.packages()));
    packages::ensure(&needs)?;
    let binaries = match (args.tools.contains(&Tool::Rootswarm), &args.bin_dir) {
        (false, _) => None,
        (true, Some(directory)) => Some(Binaries {
            server: directory.join("rootswarm"),
            agent: directory.join("rootswarm-agent"),
        }),
        // As they are shipped: the agent static.
        (true, None) => Some(Binaries::build(&build_logs()?)?),
    };
    let timeout = args
        .timeout
        .map(Duration::try_from_secs_f64)
        .transpose()
        .context("--timeout")?;

    let most_nodes = cases.iter().map(|case| u64::from(case.nodes)).max();
    let run_bytes = match &args.image {
        Some(path) => Image::open(path)?.bytes,
        None => IMAGE_BYTES,
    };
    // A copy for each node, the image, the seed's own copy, and one for the odds and ends.
    let need_bytes = (most_nodes.unwrap_or(1) + 3) * run_bytes;
    let scratch = Scratch::create("bench", need_bytes, &target_directory())?;
    let run_image = match &args.image {
        Some(path) => Image::open(path)?,
        None => Image::generate(&scratch.path().join("source"), run_bytes)?,
    };

    let mut report = Report::new(commit(), &args.tools);
    for case in cases {
        let image = match case.image_bytes(run_bytes) {
            bytes if bytes == run_bytes => run_image.clone(),
            bytes => Image::generate(&scratch.path().join(format!("source-{bytes}")), bytes)?,
        };
        let (tools, skipped) = split(args, case, image.bytes);
        report.skipped.extend(skipped);
        for run in 1..=args.runs {
            for tool in rotated(&tools, run) {
                eprint!("{case} {tool} run {run} of {} … ", args.runs);
                let trial = Trial {
                    case,
                    tool,
                    run,
                    image: &image,
                    binaries: binaries.as_ref(),
                    timeout,
                };
                match measure(&trial, &scratch) {
                    Ok(outcome) => {
                        let (last_s, copies) = (outcome.last_s, outcome.seed_copies);
                        eprintln!("last {last_s:.3} s, seed copies {copies:.2}");
                        report.outcomes.push(outcome);
                    }
                    Err(error) => {
                        eprintln!("failed: {error}");
                        report.failures.push(Failure {
                            case,
                            tool,
                            run,
                            error: error.to_string(),
                        });
                    }
                }
            }
        }
    }
    Ok(report)
}

/// The tools to run, and those that would take too long.
fn split(args: &Args, case: Case, bytes: u64) -> (Vec<Tool>, Vec<Skipped>) {
    let skipped = |tool: &Tool| {
        let at_least_s = case.unicast_bound_s(bytes)?;
        let wait = args.slow || !tool.is_unicast() || at_least_s <= LONG_S;
        Some(Skipped {
            case,
            tool: *tool,
            at_least_s,
            at_least_over_bound: at_least_s / case.fluid_bound_s(bytes)?,
        })
        .filter(|_| !wait)
    };
    let tools = args.tools.iter().filter(|tool| skipped(tool).is_none());
    let too_long = args.tools.iter().filter_map(skipped);
    (tools.copied().collect(), too_long.collect())
}

/// In another order for each run: what the machine does beside hits another tool.
fn rotated(tools: &[Tool], run: u32) -> Vec<Tool> {
    let mut tools = tools.to_vec();
    if !tools.is_empty() {
        let first = (run as usize - 1) % tools.len();
        tools.rotate_left(first);
    }
    tools
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Where the logs of the builds go.
pub fn build_logs() -> anyhow::Result<PathBuf> {
    let logs = target_directory().join("logs");
    std::fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    Ok(logs)
}

fn commit() -> String {
    let describe = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=10"])
        .current_dir(workspace_root())
        .output();
    match describe {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_begins_with_another_tool() {
        let tools = [Tool::Rootswarm, Tool::Nginx, Tool::Aria2];
        assert_eq!(rotated(&tools, 1), tools);
        assert_eq!(
            rotated(&tools, 2),
            [Tool::Nginx, Tool::Aria2, Tool::Rootswarm]
        );
        assert_eq!(rotated(&tools, 4), tools);
        assert_eq!(rotated(&[], 1), []);
    }
}
