//! udpcast: the seed multicasts once to all nodes, which ask again for what they missed.
//!
//! Its settings are the best of those tried in this lab, last node over the bound:
//!
//! | | 8x100 | 24x50 | 16x50/500 | 1x1000 |
//! |---|---|---|---|---|
//! | as it comes | 1.38 | | | |
//! | `--full-duplex` | 1.37 | | | |
//! | and `--exit-wait 20` at the nodes | 1.31 | | | |
//! | and `--rexmit-hello-interval 100` | 1.065 | 1.054 | 1.060 | 1.24 |
//! | with 20 instead of 100 | | | | 1.13 |
//! | and `--max-bitrate` at 95 % of the slowest link | 1.09 | 1.086 | 1.084 | 1.17 |
//! | and `--fec 8x8/128` (without the two intervals) | 1.55 | | | |
//!
//! By default it finds out only every other second that all nodes are there, and a node waits half
//! a second before it ends. With acknowledged slices it keeps to the slowest link by itself.
//! (`--async`, without acknowledgements, gives no whole image where a packet is lost.)

use std::path::Path;

use crate::netns::NODE_INTERFACE;
use crate::process::Process;

use super::super::lab::LabNode;
use super::super::measure::BenchError;
use super::{IMAGE_NAME, SEED_READY, Seed, SeedPlace};

pub(super) fn seed(place: &SeedPlace<'_>) -> Result<Seed, BenchError> {
    let mut command = place.node.namespace.command("udp-sender");
    command.arg("--file").arg(place.image);
    command.args(["--interface", NODE_INTERFACE, "--nokbd", "--no-progress"]);
    command.args(["--full-duplex", "--rexmit-hello-interval", "20"]);
    // It begins when all are there, and never without one of them.
    command.args(["--min-receivers", &place.nodes.len().to_string()]);
    let mut process = Process::spawn("udp-sender", command, &place.directory.join("log"))?;
    process.wait_for_line("UDP sender for", SEED_READY)?;
    let fetch = |node: &LabNode, directory: &Path| {
        let mut command = node.namespace.command("udp-receiver");
        command.arg("--file").arg(directory.join(IMAGE_NAME));
        command.args(["--interface", NODE_INTERFACE, "--nokbd", "--no-progress"]);
        command.args(["--exit-wait", "20"]);
        command
    };
    Ok(Seed {
        process,
        _tracker: None,
        fetch: Box::new(fetch),
    })
}
