//! `cargo xtask test`: installs what the tests need and runs all of them.

mod ahead;
mod suite;
mod watch;

use std::io::{Write, stdout};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use rootswarm_tests::bench::Tool;
use rootswarm_tests::packages;

use crate::needs;
use suite::Suite;

/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Leave out the virtual machines (some ten minutes on two cores), and the Debian packages that they
    /// boot from
    #[arg(long)]
    no_vm: bool,
    /// All ways in which machines boot, not only those of most of them (half an hour more)
    #[arg(long, conflicts_with = "no_vm")]
    all_machines: bool,
    /// Do not install missing Debian packages
    #[arg(long)]
    no_install: bool,
}

/// The suites of the package `rootswarm-tests`, the quick ones first.
const SUITES: &[&str] = &[
    "lib",
    "harness",
    "bench",
    "bad_input",
    "loopback",
    "seeds",
    "upgrade",
    "hostile",
    "namespaces",
    "reach",
    "members",
    "faults",
];

/// What a test may take without a word. The longest takes four minutes on two cores.
const SILENCE: Duration = Duration::from_secs(15 * 60);
/// The same where machines boot. They take up to 17 minutes.
const SILENCE_OF_MACHINES: Duration = Duration::from_secs(40 * 60);

/// It needs a Debian root of its own.
const PACKAGES: &str = "packages";

/// What boots in virtual machines each time; the rest of the suite `vm` takes longer than all other tests.
const MACHINES: &str = "machines_boot_over_pxe";

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
    let suites = suite::build()?;
    let of = |place: &str| -> Vec<&Suite> {
        let there = suites
            .iter()
            .filter(|suite| suite.place == Path::new(place));
        there.collect()
    };
    let (seed, agent, lab) = (of("server"), of("initramfs"), of("tests"));
    ensure!(
        !seed.is_empty() && !agent.is_empty() && !lab.is_empty(),
        "cargo named no test program of the seed, the agent or the lab"
    );
    for suite in &lab {
        let name = suite.name().to_string_lossy();
        ensure!(
            [SUITES, &[PACKAGES, "vm"]].concat().contains(&&*name),
            "nobody runs the suite {name}: name it in crates/xtask/src/test.rs"
        );
    }
    let rest = suites.iter().filter(|suite| {
        let mut apart = seed.iter().chain(&agent).chain(&lab);
        apart.all(|other| other != suite)
    });
    let ahead = ahead::begin(!args.no_vm);
    for suite in rest {
        suite.run(&[], SILENCE, stdout())?;
    }
    beside(&seed, &agent)?;
    documents()?;
    ahead.end()?;

    let one_at_a_time = "--test-threads=1";
    let named = |name: &str| {
        let found = lab.iter().find(|suite| suite.name() == name);
        found.with_context(|| format!("cargo named no suite {name}"))
    };
    // They time out on a machine that is busy with other tests.
    for name in SUITES {
        named(name)?.run(&[one_at_a_time], SILENCE, stdout())?;
    }
    if !args.no_vm {
        named(PACKAGES)?.run(&[one_at_a_time], SILENCE, stdout())?;
        let mut line = vec![one_at_a_time];
        line.extend((!args.all_machines).then_some(MACHINES));
        named("vm")?.run(&line, SILENCE_OF_MACHINES, stdout())?;
    }
    Ok(())
}

/// Two packages whose tests mostly wait: side by side. What the second says comes after what the first does.
fn beside(first: &[&Suite], second: &[&Suite]) -> anyhow::Result<()> {
    let has_failed = AtomicBool::new(false);
    let run = |suites: &[&Suite], to: &mut dyn Write| {
        for suite in suites {
            if has_failed.load(Ordering::Relaxed) {
                break;
            }
            let result = suite.run(&[], SILENCE, &mut *to);
            result.inspect_err(|_| has_failed.store(true, Ordering::Relaxed))?;
        }
        anyhow::Ok(())
    };
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| {
            let mut said = Vec::new();
            (run(second, &mut said), said)
        });
        let first = run(first, &mut stdout());
        let (second, said) = beside.join().map_err(|_| anyhow!("a test run panicked"))?;
        stdout().write_all(&said)?;
        first.and(second)
    })
}

/// The examples in documents.
fn documents() -> anyhow::Result<()> {
    let mut command = rootswarm_tests::cargo::command();
    command.args(["test", "--workspace", "--locked", "--doc"]);
    let status = watch::run(command, SILENCE_OF_MACHINES, stdout())?;
    ensure!(status.success(), "an example in a document failed");
    Ok(())
}
