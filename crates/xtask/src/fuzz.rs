//! `cargo xtask fuzz`: every decoder under libFuzzer for a given time, and a table of what came out.
//!
//! The targets and what they hold a decoder to are in tests/fuzz. The stable compiler inserts the
//! coverage counters itself (LLVM's sanitizer-coverage pass), so no other toolchain is needed.
//! Findings are kept in target/fuzz/NAME; a fault that was mended goes into the corpus by hand, under
//! a name that says what it was.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use rootswarm_tests::cargo;

use crate::print;

/// Without a target: list them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The target, or `all`
    target: Option<String>,
    /// Seconds for each target
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    time: u64,
    /// Run these inputs once and make no new ones
    #[arg(long, value_name = "FILE", num_args = 1..)]
    replay: Vec<PathBuf>,
    /// Add to the corpus what reached code that no input in it does
    #[arg(long)]
    keep: bool,
}

/// LLVM's pass and what libFuzzer reads of it: which edges were taken, and both sides of
/// comparisons, so that magic numbers are found.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// The longest time for one input: none takes a thousandth of it.
const INPUT_TIMEOUT_S: u32 = 10;

/// What `--keep` lets a corpus grow to, in bytes and in inputs: it is read by people.
const KEPT_BYTES_MAX: u64 = 8 * 1024;
/// See [`KEPT_BYTES_MAX`].
const KEPT_MAX: usize = 48;

/// Lists, replays or fuzzes.
///
/// # Errors
/// A build that fails, an unknown target, or a finding.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let root = repository();
    let targets = targets(&root)?;
    let Some(wanted) = &args.target else {
        for target in &targets {
            print::line(format_args!("{target}"))?;
        }
        return Ok(());
    };
    ensure!(
        wanted == "all" || targets.contains(wanted),
        "no target {wanted:?}: expected all or one of {}",
        targets.join(", ")
    );
    let chosen: Vec<&String> = targets
        .iter()
        .filter(|target| wanted == "all" || *target == wanted)
        .collect();
    let fuzzer = Fuzzer {
        program: build(&root)?,
        root,
    };
    if !args.replay.is_empty() {
        ensure!(wanted != "all", "--replay wants one target");
        return fuzzer.replay(wanted, &args.replay);
    }
    print::line(format_args!(
        "{:<14} {:>7} {:>12} {:>9} {:>8} {:>7}  findings",
        "target", "seconds", "executions", "coverage", "features", "corpus"
    ))?;
    let mut findings = 0;
    for target in chosen {
        let result = fuzzer.run(target, args.time)?;
        print::line(format_args!(
            "{target:<14} {:>7} {:>12} {:>9} {:>8} {:>7}  {}",
            args.time,
            result.executions,
            result.edges,
            result.features,
            result.inputs,
            if result.findings.is_empty() {
                "none".to_owned()
            } else {
                result.findings.join(", ")
            }
        ))?;
        findings += result.findings.len();
        if args.keep && result.findings.is_empty() {
            fuzzer.keep(target)?;
        }
    }
    ensure!(
        findings == 0,
        "{findings} findings; replay: cargo xtask fuzz TARGET --replay FILE"
    );
    Ok(())
}

fn repository() -> PathBuf {
    // crates/xtask is two levels below it.
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// A target has a corpus of its name; a test holds both against each other.
fn targets(root: &Path) -> anyhow::Result<Vec<String>> {
    let corpora = root.join("tests/fuzz/corpus");
    let mut names: Vec<String> = fs::read_dir(&corpora)
        .with_context(|| format!("cannot read {}", corpora.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

/// The instrumented program.
fn build(root: &Path) -> anyhow::Result<PathBuf> {
    let status = cargo::command()
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "rootswarm-fuzz",
        ])
        .args(["--features", "engine", "--profile", "fuzz"])
        // With a target named, the flags do not reach build scripts.
        .args(["--target", TRIPLE])
        .env("RUSTFLAGS", FLAGS.join(" "))
        .current_dir(root)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the fuzz targets do not build");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    Ok(target.join(TRIPLE).join("fuzz/rootswarm-fuzz"))
}

/// What one run came to.
struct Outcome {
    executions: u64,
    /// Edges of the control flow that were taken.
    edges: u64,
    /// Edges, how often each was taken, and comparisons.
    features: u64,
    /// Inputs that it would keep.
    inputs: u64,
    findings: Vec<String>,
}

struct Fuzzer {
    program: PathBuf,
    root: PathBuf,
}

impl Fuzzer {
    fn command(&self, target: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("ROOTSWARM_FUZZ_TARGET", target)
            .stdin(Stdio::null());
        command
    }

    fn corpus(&self, target: &str) -> PathBuf {
        self.root.join("tests/fuzz/corpus").join(target)
    }

    /// Where a run keeps what it makes: new inputs in `found`, faults beside it.
    fn place(&self, target: &str) -> anyhow::Result<PathBuf> {
        let place = self.root.join("target/fuzz").join(target);
        fs::create_dir_all(place.join("found"))
            .with_context(|| format!("cannot make {}", place.display()))?;
        Ok(place)
    }

    fn replay(&self, target: &str, inputs: &[PathBuf]) -> anyhow::Result<()> {
        let status = self
            .command(target)
            .args(inputs)
            .status()
            .context("cannot run the fuzzer")?;
        ensure!(status.success(), "the target breaks a promise");
        Ok(())
    }

    fn run(&self, target: &str, time_s: u64) -> anyhow::Result<Outcome> {
        let place = self.place(target)?;
        let output = self
            .command(target)
            .arg(format!("-max_total_time={time_s}"))
            .arg(format!("-timeout={INPUT_TIMEOUT_S}"))
            .arg(format!("-artifact_prefix={}/", place.display()))
            .args([
                "-print_final_stats=1",
                "-max_len=4096",
                "-use_value_profile=1",
            ])
            // New inputs go to the first directory.
            .arg(place.join("found"))
            .arg(self.corpus(target))
            .output()
            .context("cannot run the fuzzer")?;
        let log = String::from_utf8_lossy(&output.stderr);
        fs::write(place.join("log"), log.as_bytes())
            .with_context(|| format!("cannot write {}", place.display()))?;
        let findings: Vec<String> = log
            .lines()
            .filter_map(|line| Some(line.split_once("Test unit written to ")?.1.to_owned()))
            .collect();
        if !output.status.success() && findings.is_empty() {
            bail!(
                "the fuzzer of {target} failed ({}); see {}",
                output.status,
                place.join("log").display()
            );
        }
        let last = |word: &str| {
            let words = log.lines().rev().filter(|line| line.starts_with('#'));
            words.into_iter().find_map(|line| {
                let rest = line.split_once(word)?.1;
                rest.trim().split([' ', '/']).next()?.parse().ok()
            })
        };
        let executions = log
            .lines()
            .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
            .and_then(|number| number.trim().parse().ok());
        Ok(Outcome {
            executions: executions.unwrap_or(0),
            edges: last("cov:").unwrap_or(0),
            features: last("ft:").unwrap_or(0),
            inputs: last("corp:").unwrap_or(0),
            findings,
        })
    }

    /// Adds to the corpus some of the inputs that reach what no input in it does: libFuzzer's merge
    /// says which.
    fn keep(&self, target: &str) -> anyhow::Result<()> {
        let place = self.place(target)?;
        let merged = place.join("merged");
        let _ = fs::remove_dir_all(&merged);
        fs::create_dir_all(&merged).with_context(|| format!("cannot make {}", merged.display()))?;
        let corpus = self.corpus(target);
        for entry in fs::read_dir(&corpus)?.flatten() {
            fs::copy(entry.path(), merged.join(entry.file_name()))?;
        }
        let status = self
            .command(target)
            .args(["-merge=1", "-max_len=4096"])
            .arg(&merged)
            .arg(place.join("found"))
            .stderr(Stdio::null())
            .status()
            .context("cannot run the fuzzer")?;
        ensure!(status.success(), "the inputs of {target} do not merge");
        let mut inputs: Vec<(u64, PathBuf)> = fs::read_dir(&merged)?
            .flatten()
            .filter(|entry| !corpus.join(entry.file_name()).exists())
            .filter_map(|entry| Some((entry.metadata().ok()?.len(), entry.path())))
            .collect();
        inputs.sort();
        let mut total_bytes: u64 = fs::read_dir(&corpus)?
            .flatten()
            .filter_map(|entry| Some(entry.metadata().ok()?.len()))
            .sum();
        let room = KEPT_MAX.saturating_sub(fs::read_dir(&corpus)?.count());
        // The shortest first, evenly spread where there are more than there is room for.
        let step = inputs.len().div_ceil(room.max(1)).max(1);
        for (bytes, path) in inputs.into_iter().step_by(step).take(room) {
            total_bytes += bytes;
            if total_bytes > KEPT_BYTES_MAX {
                break;
            }
            let name = path.file_name().context("a file has a name")?;
            // A hash of 40 digits; twelve tell them apart.
            let short: String = name.to_string_lossy().chars().take(12).collect();
            fs::copy(&path, corpus.join(short))?;
        }
        Ok(())
    }
}
