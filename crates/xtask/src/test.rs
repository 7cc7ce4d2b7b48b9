//! `cargo xtask test`: installs what the tests need and runs all of them.

use anyhow::{Context as _, bail, ensure};
use rootswarm_tests::bench::Tool;
use rootswarm_tests::packages;

use crate::needs;

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave out the virtual machines (some ten minutes on two cores), and the Debian packages that they
    /// boot from
    #[arg(long)]
    no_vm: bool,
    /// Do not install missing Debian packages
    #[arg(long)]
    no_install: bool,
}

/// The suites of the package `rootswarm-tests`, the quick ones first.
const SUITES: &[&str] = &[
    "harness",
    "bench",
    "bad_input",
    "loopback",
    "seeds",
    "upgrade",
    "hostile",
    "namespaces",
    "reach",
    "faults",
];

/// Those that need a Debian root of their own.
const DEBIAN_SUITES: &[&str] = &["packages", "vm"];

/// Installs and runs.
///
/// # Errors
/// A package that cannot be installed, or a test that failed.
pub fn run(args: Args) -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the tests make network namespaces and mounts: run them as root"
    );
    if !args.no_install {
        let compared = Tool::ALL.iter().flat_map(|tool| tool.packages());
        let compared: Vec<_> = compared.copied().collect();
        packages::ensure(&compared).context("cannot install what the bench compares with")?;
        needs::install(!args.no_vm)?;
    }
    cargo(&[
        "test",
        "--workspace",
        "--locked",
        "--exclude",
        "rootswarm-tests",
    ])?;
    let debian = if args.no_vm { &[][..] } else { DEBIAN_SUITES };
    let mut tests = vec!["test", "--locked", "--package", "rootswarm-tests", "--lib"];
    for suite in SUITES.iter().chain(debian) {
        tests.extend(["--test", suite]);
    }
    // They time out on a machine that is busy with other tests: one at a time.
    tests.extend(["--", "--test-threads=1"]);
    cargo(&tests)
}

fn cargo(args: &[&str]) -> anyhow::Result<()> {
    let line = format!("cargo {}", args.join(" "));
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "$ {line}");
    let status = rootswarm_tests::cargo::command()
        .args(args)
        .status()
        .with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed");
    }
    Ok(())
}
