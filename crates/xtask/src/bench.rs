//! `cargo xtask bench`: the command line around the lab in `rootswarm_tests::bench`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail};
use rootswarm_tests::bench::{
    Case, Image, Machine, Report, Tool, default_cases, markdown, run as measure,
};
use rootswarm_tests::packages;
use rootswarm_tests::scratch::Scratch;
use rootswarm_tests::vm::binaries::{Binaries, target_directory, workspace_root};

/// The length of the Debian squashfs whose figures are known for other tools.
const IMAGE_BYTES: u64 = 96_301_056;

/// Measure rootswarm and other tools in one lab of shaped links.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// NODESxMBIT[/SEEDMBIT] or NODESxmax; may be repeated [default: 8x100 24x50 16x50/500 1x1000
    /// 4xmax]
    #[arg(long = "case")]
    cases: Vec<Case>,
    /// rootswarm, nginx (with wget) or aria2
    #[arg(
        long = "tool",
        value_delimiter = ',',
        default_value = "rootswarm,nginx,aria2"
    )]
    tools: Vec<Tool>,
    /// Runs of each case with each tool
    #[arg(long, default_value_t = 1)]
    runs: u32,
    /// Also run what is sure to be slow: nginx where the seed would need more than two minutes
    #[arg(long)]
    slow: bool,
    /// Also write all figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Move this file instead of 96.3 MB of pseudo-random bytes
    #[arg(long)]
    image: Option<PathBuf>,
    /// Take `rootswarm` and `rootswarm-agent` from this directory instead of building them
    #[arg(long)]
    bin_dir: Option<PathBuf>,
}

/// Runs every case with every tool and prints the table.
#[allow(clippy::print_stdout, clippy::print_stderr)] // A command that people run.
pub fn run(args: Args) -> anyhow::Result<()> {
    let cases = if args.cases.is_empty() {
        default_cases()
    } else {
        args.cases
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
        // As they are shipped: the agent static and small, not as fast as it could be.
        (true, None) => Some(Binaries::build(&build_logs()?)?),
    };

    let most_nodes = cases
        .iter()
        .map(|case| u64::from(case.nodes))
        .max()
        .unwrap_or(1);
    let image_bytes = match &args.image {
        Some(path) => Image::open(path)?.bytes,
        None => IMAGE_BYTES,
    };
    // A copy for each node, the image, the seed's own copy, and one for the odds and ends.
    let scratch = Scratch::create("bench", (most_nodes + 3) * image_bytes, &target_directory())?;
    let image = match &args.image {
        Some(path) => Image::open(path)?,
        None => Image::generate(&scratch.path().join("source"), image_bytes)?,
    };

    let mut report = Report {
        machine: Machine::this(commit()),
        outcomes: vec![],
        failures: vec![],
    };
    for case in &cases {
        for &tool in &args.tools {
            if let (false, Some(alone_s)) = (args.slow, alone_s(case, tool, image.bytes)) {
                eprintln!(
                    "{case} {tool} skipped: the seed alone would need {alone_s:.0} s (--slow)"
                );
                continue;
            }
            for number in 1..=args.runs {
                eprint!("{case} {tool} run {number} of {} … ", args.runs);
                match measure(case, tool, &image, &scratch, binaries.as_ref()) {
                    Ok(outcome) => {
                        eprintln!(
                            "last {:.2} s, seed copies {:.2}",
                            outcome.last_s, outcome.seed_copies
                        );
                        report.outcomes.push(outcome);
                    }
                    Err(error) => {
                        eprintln!("failed: {error}");
                        report
                            .failures
                            .push(format!("{case} {tool} run {number}: {error}"));
                    }
                }
            }
        }
    }
    println!("{}", markdown(&report));
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !report.failures.is_empty() {
        bail!("{} runs gave no figure", report.failures.len());
    }
    Ok(())
}

/// Where the logs of the builds go.
pub fn build_logs() -> anyhow::Result<PathBuf> {
    let logs = target_directory().join("logs");
    std::fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    Ok(logs)
}

/// How long a tool needs whose seed serves every node itself, where that is too long to wait for.
fn alone_s(case: &Case, tool: Tool, bytes: u64) -> Option<f64> {
    const LONG_S: f64 = 120.0;
    let seed_bit_per_s = case.seed_bit_per_s.filter(|_| tool == Tool::Nginx)?;
    let alone_s = f64::from(case.nodes) * (bytes * 8) as f64 / seed_bit_per_s as f64;
    (alone_s > LONG_S).then_some(alone_s)
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
