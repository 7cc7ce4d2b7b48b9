//! `cargo xtask bench`: the command line around the lab in `rootswarm_tests::bench`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use rootswarm_tests::bench::{
    Binaries, Case, Image, Machine, Report, Tool, default_cases, markdown, run as measure,
};
use rootswarm_tests::packages;
use rootswarm_tests::scratch::Scratch;

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
    let root = workspace_root();
    let cases = if args.cases.is_empty() {
        default_cases()
    } else {
        args.cases
    };
    let mut needs = vec![("ip", "iproute2"), ("tc", "iproute2")];
    needs.extend(args.tools.iter().flat_map(|tool| tool.packages()));
    packages::ensure(&needs)?;
    let binaries = match (&args.bin_dir, args.tools.contains(&Tool::Rootswarm)) {
        (_, false) => Binaries::default(),
        (Some(directory), true) => Binaries {
            server: directory.join("rootswarm"),
            agent: directory.join("rootswarm-agent"),
        },
        (None, true) => build(&root)?,
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
    let scratch = Scratch::create(
        "bench",
        (most_nodes + 3) * image_bytes,
        &root.join("target"),
    )?;
    let image = match &args.image {
        Some(path) => Image::open(path)?,
        None => Image::generate(&scratch.path().join("source"), image_bytes)?,
    };

    let mut report = Report {
        machine: Machine::this(commit(&root)),
        outcomes: vec![],
        failures: vec![],
    };
    for case in &cases {
        for &tool in &args.tools {
            for number in 1..=args.runs {
                eprint!("{case} {tool} run {number} of {} … ", args.runs);
                match measure(case, tool, &image, &scratch, &binaries) {
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

/// The directory of the workspace's Cargo.toml.
pub fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Where cargo puts what it builds.
pub fn target_directory(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

fn build(root: &Path) -> anyhow::Result<Binaries> {
    let status = Command::new("cargo")
        .args(["build", "--quiet", "--release", "--package", "rootswarm"])
        .args(["--package", "rootswarm-agent"])
        .current_dir(root)
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("`cargo build --release --package rootswarm --package rootswarm-agent` failed");
    }
    let directory = target_directory(root).join("release");
    Ok(Binaries {
        server: directory.join("rootswarm"),
        agent: directory.join("rootswarm-agent"),
    })
}

fn commit(root: &Path) -> String {
    let describe = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=10"])
        .current_dir(root)
        .output();
    match describe {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}
