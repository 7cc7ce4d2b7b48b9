//! mbuffer: each node writes what it receives and passes it on to the next, over one TCP connection. It is what
//! dolly, Kascade and many a shell script do.
//!
//! Blocks are 64 KiB instead of 4 MiB, and buffers 8 MiB: a node passes on whole blocks.

use std::path::Path;

use crate::process::Process;

use super::super::lab::LabNode;
use super::super::measure::{BenchError, GO};
use super::{IMAGE_NAME, Seed, SeedPlace};

/// Where each node listens.
pub(super) const PORT: u16 = 7777;

/// What seed and node have in common.
const BUFFER: [&str; 6] = ["-q", "-4", "-m", "8M", "-s", "64k"];

pub(super) fn seed(place: &SeedPlace<'_>) -> Result<Seed, BenchError> {
    let addresses: Vec<String> = place
        .nodes
        .iter()
        .map(|node| node.link.address().to_string())
        .collect();
    let first = addresses.first().cloned().unwrap_or_default();
    // A node accepts before it connects to the next, so that all have to listen when the first is dialed.
    let mut command = place.node.namespace.command("sh");
    let wait = "until [ -e \"$GO\" ]; do sleep 0.002; done; exec mbuffer \"$@\"";
    command.args(["-c", wait, "mbuffer"]).args(BUFFER);
    command.arg("-i").arg(place.image);
    command.args(["-O", &format!("{first}:{PORT}")]);
    command.env("GO", place.directory.join(GO));
    let process = Process::spawn("mbuffer seed", command, &place.directory.join("log"))?;
    let fetch = move |node: &LabNode, directory: &Path| {
        let own = node.link.address().to_string();
        let next = addresses
            .iter()
            .skip_while(|address| **address != own)
            .nth(1);
        let mut command = node.namespace.command("mbuffer");
        command.args(BUFFER).args(["-I", &PORT.to_string()]);
        if let Some(next) = next {
            command.args(["-O", &format!("{next}:{PORT}")]);
        }
        command.arg("-o").arg(directory.join(IMAGE_NAME));
        command
    };
    Ok(Seed {
        process,
        _tracker: None,
        fetch: Box::new(fetch),
    })
}
