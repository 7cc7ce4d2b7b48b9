//! aria2, with opentracker at the seed.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::process::Process;

use super::super::lab::LabNode;
use super::super::measure::BenchError;
use super::torrent::Torrent;
use super::{SEED_READY, Seed, SeedPlace, writing};

pub(super) fn seed(place: &SeedPlace<'_>) -> Result<Seed, BenchError> {
    let directory = place.directory;
    let Torrent { file, tracker } = Torrent::make(place)?;
    let hook = directory.join("hook");
    std::fs::write(&hook, "#!/bin/sh\n: >\"$COMPLETE\"\n").map_err(writing(&hook))?;
    std::fs::set_permissions(&hook, PermissionsExt::from_mode(0o755)).map_err(writing(&hook))?;
    let mut command = client(place.node, directory, &file);
    command.arg("--check-integrity=true");
    let mut process = Process::spawn("aria2 seed", command, &directory.join("log"))?;
    process.wait_for_output("checked copy", SEED_READY, |output| {
        output
            .contains("Verification finished successfully")
            .then_some(())
    })?;
    let fetch = move |node: &LabNode, directory: &Path| {
        let mut command = client(node, directory, &file);
        command.arg(format!("--on-bt-download-complete={}", hook.display()));
        command.env("COMPLETE", directory.join("complete"));
        command
    };
    Ok(Seed {
        process,
        _tracker: Some(tracker),
        fetch: Box::new(fetch),
    })
}

/// What seed and node have in common. Without `--seed-ratio=0.0` a seed stops after one copy.
fn client(node: &LabNode, directory: &Path, torrent: &Path) -> Command {
    let mut command = node.namespace.command("aria2c");
    command.args([
        "--no-conf",
        "--seed-ratio=0.0",
        "--enable-dht=false",
        "--enable-dht6=false",
        "--disable-ipv6=true",
        "--file-allocation=none",
        "--listen-port=6881",
        "--summary-interval=0",
        "--console-log-level=notice",
        "--enable-color=false",
        "--show-console-readout=false",
    ]);
    command.arg("--dir").arg(directory).arg(torrent);
    command
}
