//! `cargo xtask size`: the static agent as it goes into the initrd, held against its limit.

use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use rootswarm_tests::vm::binaries::Binaries;

use crate::bench::build_logs;
use crate::print;

/// Every node loads this on every boot, from one host.
const LIMIT_BYTES: u64 = 2_500_000;

/// Build the static agent and hold its size against the limit.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Builds, compresses as an initrd is compressed, prints both sizes.
pub fn run(_args: Args) -> anyhow::Result<()> {
    rootswarm_tests::packages::ensure(&[("zstd", "zstd")])?;
    let agent = Binaries::build(&build_logs()?)?.agent;
    let bytes = std::fs::metadata(&agent)
        .with_context(|| format!("cannot read {}", agent.display()))?
        .len();
    let compressed = Command::new("zstd")
        .args(["-19", "--stdout", "--quiet", "--single-thread"])
        .arg(&agent)
        .output()
        .context("cannot run zstd")?;
    ensure!(
        compressed.status.success(),
        "zstd failed on {}",
        agent.display()
    );
    let compressed_bytes = compressed.stdout.len() as u64;
    print::line(format_args!(
        "{}: {bytes} bytes, {compressed_bytes} bytes with zstd -19 (limit {LIMIT_BYTES})",
        agent.display()
    ))?;
    if compressed_bytes > LIMIT_BYTES {
        bail!(
            "the agent is {} bytes over its limit",
            compressed_bytes - LIMIT_BYTES
        );
    }
    Ok(())
}
