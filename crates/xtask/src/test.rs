//! `cargo xtask test`: installs what the tests need and runs all of them.

use anyhow::{Context as _, bail, ensure};
use rootswarm_tests::bench::Tool;
use rootswarm_tests::{packages, vm};

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave out the virtual machines (some ten minutes on two cores)
    #[arg(long)]
    no_vm: bool,
    /// Do not install missing Debian packages
    #[arg(long)]
    no_install: bool,
}

/// What the tests run, and the package it comes from; the virtual machines' lab names its own.
const PROGRAMS: &[(&str, &str)] = &[
    ("cc", "gcc"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("nft", "nftables"),
    ("mksquashfs", "squashfs-tools"),
    ("b3sum", "b3sum"),
    ("zstd", "zstd"),
    ("wget", "wget"),
    ("setfattr", "attr"),
    ("strace", "strace"),
    ("setcap", "libcap2-bin"),
    ("dnsmasq", "dnsmasq-base"),
    ("/usr/lib/PXELINUX/lpxelinux.0", "pxelinux"),
    (
        "/usr/lib/syslinux/modules/bios/ldlinux.c32",
        "syslinux-common",
    ),
    ("systemd-analyze", "systemd"),
];

/// The suites of the package `rootswarm-tests`, the quick ones first.
const SUITES: &[&str] = &[
    "harness",
    "bench",
    "bad_input",
    "loopback",
    "seeds",
    "hostile",
    "namespaces",
    "faults",
];

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
        let needs: Vec<_> = PROGRAMS.iter().chain(compared).copied().collect();
        packages::ensure(&needs).context("cannot install what the tests need")?;
        if !args.no_vm {
            packages::ensure(vm::PACKAGES).context("cannot install what the machines need")?;
        }
    }
    cargo(&[
        "test",
        "--workspace",
        "--locked",
        "--exclude",
        "rootswarm-tests",
    ])?;
    let vm = if args.no_vm { &[][..] } else { &["vm"][..] };
    let mut tests = vec!["test", "--locked", "--package", "rootswarm-tests", "--lib"];
    for suite in SUITES.iter().chain(vm) {
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
