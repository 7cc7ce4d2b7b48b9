//! `cargo xtask members`: what thousands of members cost a seed in memory.
//!
//! The seed and the members are in the package rootswarm-tests; this file measures and prints.

use std::time::Duration;

use anyhow::{anyhow, ensure};
use rootswarm_tests::crowd::Crowd;
use rootswarm_tests::scratch::Scratch;

use crate::print;

/// Options of `cargo xtask members`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Members at a time, all driven by this process
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u16).range(1..=15_000))]
    nodes: u16,
    /// The image's length in MB
    #[arg(long, default_value_t = 64)]
    image: u64,
}

/// What a seed may have for ten thousand.
const BYTES_MAX: u64 = 500_000_000;

/// Runs and prints.
///
/// # Errors
/// When members do not get in, or cost too much.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let crowd = Crowd {
        members: args.nodes.into(),
        image_bytes: args.image * 1_000_000,
        limit: Duration::from_secs(600),
    };
    let scratch = Scratch::create("members", 4 * crowd.image_bytes, &std::env::temp_dir())?;
    let cost = crowd
        .run(scratch.path())
        .map_err(|error| anyhow!("{error}"))?;
    let each = cost.each(&crowd);
    let mb = |bytes: u64| bytes / 1_000_000;
    print::line(format_args!(
        "the seed's own memory: {} MB without members",
        mb(cost.empty_bytes)
    ))?;
    let rows = [("idle", cost.idle_bytes), ("fetching", cost.fetching_bytes)];
    for (number, (what, [most, last])) in rows.into_iter().enumerate() {
        print::line(format_args!(
            "{} {what} members: {} MB, {} MB at the most, {} bytes each; all in after {:.1} s",
            args.nodes,
            mb(last),
            mb(most),
            each[number],
            cost.joined_s[number]
        ))?;
    }
    print::line(format_args!(
        "{} chunks came to those who fetch",
        cost.chunks
    ))?;
    let most = cost.idle_bytes[0].max(cost.fetching_bytes[0]);
    ensure!(
        most <= BYTES_MAX,
        "the seed had {} MB, at most {} are allowed",
        mb(most),
        mb(BYTES_MAX)
    );
    Ok(())
}
