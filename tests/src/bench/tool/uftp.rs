//! uftp: the seed multicasts to all nodes, encrypted with AES-256-GCM, and sends again what some of them missed.
//!
//! It sends at a fixed rate, of which it has to be told: 94 % of the slowest link, and as fast as it can where links
//! are not shaped. It begins when all nodes have registered; the first round trip that it assumes is that of a LAN
//! instead of half a second.

use std::path::Path;

use crate::netns::NODE_INTERFACE;
use crate::process::Process;

use super::super::lab::LabNode;
use super::super::measure::{BenchError, GO};
use super::{Seed, SeedPlace, link_into};

/// Where each node listens.
pub(super) const PORT: u16 = 1044;

/// IP, UDP, and the headers of uftp with those of its encryption.
const HEADERS_BYTES: u16 = 150;

pub(super) fn seed(place: &SeedPlace<'_>) -> Result<Seed, BenchError> {
    let image = link_into(place.image, place.directory)?;
    let rate = match place.slowest_bit_per_s {
        Some(rate) => (rate * 94 / 100 / 1000).to_string(),
        None => "-1".to_owned(),
    };
    let block = (place.mtu_bytes - HEADERS_BYTES).to_string();
    let members: Vec<String> = place
        .nodes
        .iter()
        .map(|node| uid(&node.link.address()))
        .collect();
    let mut command = place.node.namespace.command("sh");
    let wait = "until [ -e \"$GO\" ]; do sleep 0.002; done; exec uftp \"$@\"";
    command.args(["-c", wait, "uftp", "-R", &rate, "-b", &block]);
    command.args([
        "-I",
        NODE_INTERFACE,
        "-U",
        "0x00000001",
        "-H",
        &members.join(","),
    ]);
    command.args([
        "-Y",
        "aes256-gcm",
        "-h",
        "sha256",
        "-r",
        "0.02:0.005:1",
        "-B",
        "4000000",
    ]);
    command.arg(image).env("GO", place.directory.join(GO));
    let process = Process::spawn("uftp seed", command, &place.directory.join("log"))?;
    let fetch = |node: &LabNode, directory: &Path| {
        let mut command = node.namespace.command("uftpd");
        command.args([
            "-d",
            "-t",
            "-q",
            "-E",
            "-I",
            NODE_INTERFACE,
            "-B",
            "4000000",
        ]);
        command.args(["-U", &uid(&node.link.address()), "-D"]);
        command.arg(directory);
        command
    };
    Ok(Seed {
        process,
        _tracker: None,
        fetch: Box::new(fetch),
    })
}

/// What a node is known by: its address, in hexadecimal.
fn uid(address: &std::net::Ipv4Addr) -> String {
    format!("0x{:08x}", u32::from(*address))
}
