//! libtorrent through its Python binding, with opentracker at the seed. Its settings are in
//! `libtorrent.py`, which runs under the system's Python: that is where the Debian package puts the
//! binding.
//!
//! Of the settings tried here its own did best, last node over the bound in 8x100: 1.92; 64 KiB
//! pieces 1.84; 16 upload slots 2.20; longer request queues 2.05; fastest-upload choking 2.07; the
//! preset `high_performance_seed` 2.59; super-seeding 2.67, though with 1.06 copies from the seed.
//! It connects to new peers at its ticks of half a second only, which one node alone shows: ticks of
//! 100 ms give 1.35 instead of 1.77 in 1x1000, but 2.6 s instead of 1.6 s in 4xmax.

use std::path::Path;
use std::process::Command;

use crate::process::Process;

use super::super::lab::LabNode;
use super::super::measure::{BenchError, GO};
use super::torrent::Torrent;
use super::{SEED_READY, Seed, SeedPlace, writing};

/// The interpreter that knows the package.
pub(super) const PYTHON: &str = "/usr/bin/python3";
/// There when the package is installed.
pub(super) const INSTALLED: &str = "/usr/lib/python3/dist-packages/libtorrent.egg-info/PKG-INFO";

const DRIVER: &str = include_str!("../libtorrent.py");

pub(super) fn seed(place: &SeedPlace<'_>) -> Result<Seed, BenchError> {
    let directory = place.directory;
    let Torrent { file, tracker } = Torrent::make(place)?;
    // Not `libtorrent.py`: beside a script of that name Python would import it instead.
    let driver = directory.join("driver.py");
    std::fs::write(&driver, DRIVER).map_err(writing(&driver))?;
    let go = directory.join(GO);
    let client = move |mode: &str, node: &LabNode, directory: &Path| -> Command {
        let mut command = node.namespace.command(PYTHON);
        command.arg("-I").arg(&driver).arg(mode).arg(&file);
        command
            .arg(directory)
            .arg(node.link.address().to_string())
            .env("GO", &go);
        command
    };
    let command = client("seed", place.node, directory);
    let mut process = Process::spawn("libtorrent seed", command, &directory.join("log"))?;
    process.wait_for_line("seeding", SEED_READY)?;
    Ok(Seed {
        process,
        _tracker: Some(tracker),
        fetch: Box::new(move |node, directory| client("fetch", node, directory)),
    })
}
