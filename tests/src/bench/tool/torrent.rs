//! What BitTorrent tools share: the torrent and its tracker. Without a tracker they look for peers
//! only every few seconds, and every node would begin by waiting for that.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::Process;

use super::super::lab::LabNode;
use super::super::measure::BenchError;
use super::{SEED_READY, SeedPlace, finish, link_into, writing};

const TRACKER_PORT: u16 = 6969;

/// The image is in the seed's directory, and a tracker knows its torrent.
pub(super) struct Torrent {
    /// The torrent's file.
    pub file: PathBuf,
    /// Runs in the seed's namespace.
    pub tracker: Process,
}

impl Torrent {
    pub(super) fn make(place: &SeedPlace<'_>) -> Result<Self, BenchError> {
        let directory = place.directory;
        let image = link_into(place.image, directory)?;
        let file = directory.join("torrent");
        let mut make = Command::new("mktorrent");
        // Pieces of 2^18 bytes: the chunk size that rootswarm picks for such an image.
        let announce = format!(
            "http://{}:{TRACKER_PORT}/announce",
            place.node.link.address()
        );
        make.args(["-l", "18", "-a", &announce, "-o"])
            .arg(&file)
            .arg(image);
        finish("mktorrent", make, directory)?;

        let mut show = Command::new("aria2c");
        show.args(["--no-conf", "--show-files"]).arg(&file);
        let shown = finish("aria2c --show-files", show, directory)?;
        let hash = shown
            .lines()
            .find_map(|line| line.strip_prefix("Info Hash: "))
            .ok_or_else(|| BenchError::Torrent {
                shown: shown.clone(),
            })?;
        let tracker = start_tracker(place.node, hash, directory)?;
        Ok(Torrent { file, tracker })
    }
}

/// Debian's opentracker serves only the hashes it is told, and never as root: it becomes `nobody`.
fn start_tracker(node: &LabNode, hash: &str, directory: &Path) -> Result<Process, BenchError> {
    let list = directory.join("hashes");
    std::fs::write(&list, format!("{hash}\n")).map_err(writing(&list))?;
    let mut command = node.namespace.command("opentracker");
    let (address, port) = (node.link.address().to_string(), TRACKER_PORT.to_string());
    command.args(["-i", &address, "-p", &port]);
    // It changes its root to that directory and reads the list there.
    command.arg("-d").arg(directory).args(["-w", "/hashes"]);
    let mut process = Process::spawn("opentracker", command, &directory.join("tracker.log"))?;
    // It says nothing: it is ready when its port is taken.
    let table = format!("/proc/{}/net/tcp", process.pid());
    let port = format!(":{TRACKER_PORT:04X} 00000000:0000 0A");
    process.wait_for_output("listening tracker", SEED_READY, |_| {
        std::fs::read_to_string(&table)
            .is_ok_and(|table| table.contains(&port))
            .then_some(())
    })?;
    Ok(process)
}
